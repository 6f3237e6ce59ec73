//! create, start, state, kill, delete, run, list, ps, pause, resume.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use proa_integration::ctx::eventually;
use proa_integration::{Ctx, Kind, tests};
use serde_json::json;

tests! {
    run_gives_the_exit_status_of_the_program;
    run_gives_128_and_the_signal;
    run_passes_stdin_stdout_and_stderr_through;
    run_leaves_nothing_in_the_list;
    run_with_keep_leaves_a_stopped_container;
    run_detached_returns_while_the_program_runs;
    run_forwards_signals_to_the_program;
    run_uses_the_current_directory_as_bundle;
    options_may_follow_the_id .since_runc(9, 9);
    create_waits_for_start;
    a_container_that_could_not_start_can_be_deleted_at_once .only_proa();
    created_process_is_not_the_program_yet;
    state_has_the_fields_of_the_specification;
    state_carries_annotations;
    pid_file_holds_the_pid_of_init;
    start_twice_is_refused;
    a_program_is_started_though_start_was_killed .once().only_proa();
    kill_takes_names_and_numbers;
    kill_of_a_stopped_container_is_refused;
    kill_all_reaches_every_process;
    kill_works_on_a_created_container;
    delete_of_a_running_container_is_refused;
    delete_force_kills;
    delete_force_of_an_absent_container_succeeds;
    delete_of_a_created_container_without_force;
    delete_of_a_stopped_container;
    list_shows_all_containers_as_table_and_json;
    list_quiet_shows_ids_only;
    ps_shows_the_processes;
    ps_as_json_is_a_list_of_pids;
    pause_stops_and_resume_continues;
    exec_in_a_paused_container_is_refused;
    resume_of_a_running_container_is_refused;
    kill_of_a_paused_container_takes_effect;
    init_that_dies_before_start_is_stopped;
    spec_writes_a_bundle_that_runs;
    spec_refuses_to_overwrite;
    spec_rootless_has_a_user_namespace;
    features_names_the_hooks_and_namespaces .since_runc(1, 2);
    version_names_the_specification;
    help_is_for_everyone;
    a_created_container_ends_when_it_is_asked_to .once().not_for(&[(Kind::Crun, "its init ignores SIGTERM")]);
    list_shows_nothing_but_containers .once();
}

fn run_gives_the_exit_status_of_the_program(ctx: &Ctx) {
    let bundle = ctx.bundle();
    ctx.run(&bundle).ok();
    bundle.sh("exit 42");
    ctx.run(&bundle).code(42);
}

fn run_gives_128_and_the_signal(ctx: &Ctx) {
    let bundle = ctx.bundle();
    // Pid 1 cannot kill itself: its child does, and the shell that waits reports it; then the real case from outside.
    bundle.sh("sh -c 'kill -TERM $$'; exit $?");
    ctx.run(&bundle).code(128 + 15);
    bundle.args(&["sleep", "1000"]);
    let pid_file = ctx.dir.join("pid");
    let id = ctx.id();
    let running = ctx.call(&[
        "run",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        &id,
    ]);
    let running = running.spawn();
    eventually("running", || {
        ctx.call(&["state", &id])
            .output()
            .stdout
            .contains("running")
            .then_some(())
    });
    ctx.call(&["kill", &id, "KILL"]).output().ok();
    running.wait().code(128 + 9);
}

fn run_passes_stdin_stdout_and_stderr_through(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("cat; echo problem >&2");
    let id = ctx.id();
    let out = ctx
        .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id])
        .stdin(b"one\ntwo\n")
        .output();
    assert_eq!(out.ok().stdout, "one\ntwo\n");
    assert_eq!(out.stderr, "problem\n");
}

fn run_leaves_nothing_in_the_list(ctx: &Ctx) {
    ctx.run(&ctx.bundle()).ok();
    assert_eq!(ctx.call(&["list", "--quiet"]).output().ok().text(), "");
}

fn run_with_keep_leaves_a_stopped_container(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let container = ctx.container(&bundle);
    ctx.call(&["run", "--keep", "--bundle", bundle.dir.to_str().unwrap(), &container.id])
        .output()
        .ok();
    assert_eq!(container.status(), "stopped");
    container.delete();
}

fn run_detached_returns_while_the_program_runs(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.container(&bundle);
    ctx.call(&[
        "run",
        "--detach",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &container.id,
    ])
    .output()
    .ok();
    assert_eq!(container.status(), "running");
    container.kill("KILL").stopped().delete();
}

fn run_forwards_signals_to_the_program(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.05; done");
    let id = ctx.id();
    let running = ctx
        .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id])
        .spawn();
    eventually("ready", || running.stdout().contains("ready").then_some(()));
    running.signal(Signal::SIGTERM);
    let out = running.wait();
    out.code(7);
    assert!(out.stdout.contains("caught"));
}

fn run_uses_the_current_directory_as_bundle(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("echo here");
    let id = ctx.id();
    assert_eq!(ctx.call(&["run", &id]).cwd(&bundle.dir).output().ok().text(), "here");
}

fn options_may_follow_the_id(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let container = ctx.container(&bundle);
    ctx.call(&["create", &container.id, "--bundle", bundle.dir.to_str().unwrap()])
        .output()
        .ok();
    ctx.call(&["delete", &container.id, "--force"]).output().ok();
    container.forget();
}

fn create_waits_for_start(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.writable().sh("echo ran; exec sleep 1000");
    let container = ctx.create(&bundle);
    assert_eq!(container.status(), "created");
    assert_eq!(container.stdout(), "");
    container.start().says("ran");
    assert_eq!(container.status(), "running");
}

fn created_process_is_not_the_program_yet(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.create(&bundle);
    let exe = || fs::read_link(format!("/proc/{}/exe", container.pid())).unwrap();
    assert!(!exe().ends_with("busybox"));
    container.start();
    eventually("exec of the program", || exe().ends_with("busybox").then_some(()));
}

fn state_has_the_fields_of_the_specification(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let container = ctx.create(&bundle);
    let state = container.state();
    assert_eq!(state["id"], container.id.as_str());
    assert_eq!(state["bundle"], bundle.dir.to_str().unwrap());
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."));
    assert!(state["pid"].as_u64().unwrap() > 1);
    assert!(fs::exists(format!("/proc/{}", state["pid"])).unwrap());
    container.kill("KILL").stopped();
    let state = container.state();
    assert!(state["pid"] == 0 || state.get("pid").is_none(), "{state}");
}

fn state_carries_annotations(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/annotations", json!({"org.example.key": "a value"}));
    let container = ctx.create(&bundle);
    assert_eq!(container.state()["annotations"]["org.example.key"], "a value");
}

fn pid_file_holds_the_pid_of_init(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let container = ctx.container(&bundle);
    let file = ctx.dir.join("the.pid");
    ctx.create_call(&bundle, &container.id, &["--pid-file", file.to_str().unwrap()])
        .output()
        .ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), container.pid().to_string());
}

/// With lines for the log on the way, which nobody takes any more.
fn a_program_is_started_though_start_was_killed(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let (up, go) = (bundle.path("/up"), bundle.path("/go"));
    for fifo in [&up, &go] {
        nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo > /up; read line < /go"]});
    bundle
        .writable()
        .set("/hooks/startContainer", json!([hook]))
        .sh("echo started; exec sleep 1000");
    let container = ctx.container(&bundle);
    let dir = bundle.dir.to_str().unwrap();
    let create = ["--debug", "create", "--bundle", dir, &container.id];
    let said = ctx.dir.join("said");
    ctx.call(&create).stdout_to(&said).output().ok();
    let mut start = ctx.call(&["start", &container.id]).spawn();
    fs::read(&up).unwrap();
    start.child.kill().unwrap();
    start.child.wait().unwrap();
    fs::write(&go, "\n").unwrap();
    eventually("the program", || {
        let text = fs::read_to_string(&said).unwrap_or_default();
        text.contains("started").then_some(())
    });
    assert_eq!(container.status(), "running");
}

fn start_twice_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    container
        .verb(&["start"])
        .refused(&["already running", "running", "not created"]);
    container.kill("KILL").stopped();
    container.verb(&["start"]).refused(&["stopped", "not created"]);
}

fn kill_takes_names_and_numbers(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("trap 'echo u1' USR1; trap 'echo u2' USR2; trap 'echo hup' HUP; echo up; while :; do sleep 0.02; done");
    let container = ctx.start(&bundle);
    container.says("up");
    container.kill("SIGUSR1").says("u1");
    container.kill("USR2").says("u2");
    container.kill("1").says("hup");
    ctx.call(&["kill", &container.id, "NOSUCH"])
        .output()
        .refused(&["signal"]);
    ctx.call(&["kill", &container.id, "KILL"]).output().ok();
    container.stopped();
}

fn kill_of_a_stopped_container_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let container = ctx.start(&bundle);
    container.stopped();
    // containerd's shim looks for these words.
    ctx.call(&["kill", &container.id, "TERM"])
        .output()
        .refused(&["container not running", "process already finished"]);
}

fn kill_all_reaches_every_process(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .sh("sleep 1000 & sleep 1000 & echo up; wait")
        .without_namespaces(&["pid"]);
    let container = ctx.start(&bundle);
    container.says("up");
    let pids = || fs::read_to_string(container.cgroup_dir("devices").join("cgroup.procs")).unwrap_or_default();
    assert_eq!(pids().lines().count(), 3);
    ctx.call(&["kill", "--all", &container.id, "KILL"]).output();
    eventually("an empty cgroup", || pids().is_empty().then_some(()));
}

fn kill_works_on_a_created_container(ctx: &Ctx) {
    let container = ctx.create(&ctx.bundle());
    container.kill("KILL").stopped().delete();
}

fn delete_of_a_running_container_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    container
        .verb(&["delete"])
        .refused(&["is not stopped", "not stopped", "running"]);
    assert_eq!(container.status(), "running");
}

fn delete_force_kills(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("trap '' TERM; while :; do sleep 1; done");
    let container = ctx.start(&bundle);
    let pid = container.pid();
    container.verb(&["delete", "--force"]).ok();
    container.forget();
    eventually("the end of init", || {
        (!fs::exists(format!("/proc/{pid}/root/bin")).unwrap()).then_some(())
    });
    container.verb(&["state"]).refused(&["does not exist"]);
}

fn delete_force_of_an_absent_container_succeeds(ctx: &Ctx) {
    ctx.call(&["delete", "--force", &ctx.id()]).output().ok();
}

fn delete_of_a_created_container_without_force(ctx: &Ctx) {
    // runc kills and deletes a container that was never started; crun refuses. runc is what callers know.
    let container = ctx.create(&ctx.bundle());
    let out = container.verb(&["delete"]);
    if out.code == 0 {
        container.forget();
        container.verb(&["state"]).refused(&["does not exist"]);
    } else {
        out.refused(&["created", "stopped"]);
    }
}

fn delete_of_a_stopped_container(ctx: &Ctx) {
    let container = ctx.start(&ctx.bundle());
    container.stopped().delete();
    container.verb(&["delete"]).refused(&["does not exist"]);
}

fn list_shows_all_containers_as_table_and_json(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let (one, two) = (ctx.start(&bundle), ctx.create(&ctx.bundle()));
    let table = ctx.call(&["list"]).output();
    let head: Vec<&str> = table.ok().stdout.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(&head[..4], ["ID", "PID", "STATUS", "BUNDLE"]);
    for (id, status) in [(&one.id, "running"), (&two.id, "created")] {
        let line = table.stdout.lines().find(|l| l.starts_with(id.as_str())).unwrap();
        assert!(line.contains(status) && line.contains("bundle"), "{line}");
    }
    let json = ctx.call(&["list", "--format", "json"]).output().ok().json();
    let entry = json
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["id"] == one.id.as_str())
        .unwrap();
    assert_eq!(entry["status"], "running");
    assert_eq!(entry["pid"], one.pid());
    for key in ["bundle", "created", "owner"] {
        assert!(entry[key].is_string(), "{key} in {entry}");
    }
}

fn list_quiet_shows_ids_only(ctx: &Ctx) {
    let container = ctx.create(&ctx.bundle());
    assert_eq!(ctx.call(&["list", "-q"]).output().ok().text(), container.id);
}

fn ps_shows_the_processes(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1234"]);
    let container = ctx.start(&bundle);
    let out = container.verb(&["ps"]);
    let lines: Vec<&str> = out.ok().stdout.lines().collect();
    assert!(lines[0].contains("PID") && lines[0].contains("CMD"), "{lines:?}");
    assert!(lines[1].contains(&container.pid().to_string()), "{lines:?}");
    eventually("the program in ps", || {
        let out = ctx.call(&["ps", &container.id, "-o", "pid,args"]).output();
        out.ok().stdout.contains("sleep 1234").then_some(())
    });
}

fn ps_as_json_is_a_list_of_pids(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    assert_eq!(
        container.verb(&["ps", "--format", "json"]).ok().json(),
        json!([container.pid()])
    );
}

fn pause_stops_and_resume_continues(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("while :; do echo tick; sleep 0.01; done");
    let container = ctx.start(&bundle);
    container.says("tick").verb(&["pause"]).ok();
    assert_eq!(container.status(), "paused");
    let before = container.stdout().len();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(container.stdout().len(), before, "a paused container went on");
    container.verb(&["resume"]).ok();
    assert_eq!(container.status(), "running");
    eventually("more ticks", || (container.stdout().len() > before).then_some(()));
}

fn exec_in_a_paused_container_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    container.verb(&["pause"]).ok();
    container.exec(&["true"]).refused(&["paused"]);
    container.verb(&["resume"]).ok();
    container.exec(&["true"]).ok();
}

fn resume_of_a_running_container_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    container
        .verb(&["resume"])
        .refused(&["not paused", "not currently paused", "running"]);
}

fn kill_of_a_paused_container_takes_effect(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    container.verb(&["pause"]).ok();
    container.verb(&["delete", "--force"]).ok();
    container.forget();
}

fn init_that_dies_before_start_is_stopped(ctx: &Ctx) {
    let container = ctx.create(&ctx.bundle());
    let pid = nix::unistd::Pid::from_raw(container.pid().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    container.stopped();
    container.verb(&["start"]).refused(&["stopped", "not created"]);
    container.delete();
}

fn spec_writes_a_bundle_that_runs(ctx: &Ctx) {
    let bundle = ctx.bundle();
    fs::remove_file(bundle.dir.join("config.json")).unwrap();
    ctx.call(&["spec", "--bundle", bundle.dir.to_str().unwrap()])
        .output()
        .ok();
    let text = fs::read_to_string(bundle.dir.join("config.json")).unwrap();
    let mut spec: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(spec["process"]["args"], json!(["sh"]));
    assert_eq!(spec["process"]["terminal"], true);
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["echo", "from spec"]);
    spec["linux"]["cgroupsPath"] = json!(format!("{}/spec", ctx.cgroup_parent()));
    fs::write(bundle.dir.join("config.json"), spec.to_string()).unwrap();
    assert_eq!(ctx.run(&bundle).ok().text(), "from spec");
}

fn spec_refuses_to_overwrite(ctx: &Ctx) {
    let bundle = ctx.bundle();
    ctx.call(&["spec"]).cwd(&bundle.dir).output().refused(&["config.json"]);
}

fn spec_rootless_has_a_user_namespace(ctx: &Ctx) {
    let dir = ctx.mkdir("rootless");
    ctx.call(&["spec", "--rootless"]).cwd(&dir).output().ok();
    let spec: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.iter().any(|n| n["type"] == "user"));
    assert!(!namespaces.iter().any(|n| n["type"] == "network"));
    assert_eq!(spec["linux"]["uidMappings"][0]["containerID"], 0);
}

fn features_names_the_hooks_and_namespaces(ctx: &Ctx) {
    let features = ctx.call(&["features"]).output().ok().json();
    assert!(features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string());
    for hook in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ] {
        assert!(features["hooks"].as_array().unwrap().contains(&json!(hook)), "{hook}");
    }
    for namespace in ["mount", "pid", "user", "network", "uts", "ipc", "cgroup"] {
        assert!(
            features["linux"]["namespaces"]
                .as_array()
                .unwrap()
                .contains(&json!(namespace)),
            "{namespace}"
        );
    }
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    assert!(
        features["linux"]["capabilities"]
            .as_array()
            .unwrap()
            .contains(&json!("CAP_SYS_ADMIN"))
    );
    assert!(features["mountOptions"].as_array().unwrap().contains(&json!("rbind")));
}

fn version_names_the_specification(ctx: &Ctx) {
    let out = ctx.call(&["--version"]).output();
    assert!(out.ok().stdout.lines().any(|l| l.starts_with("spec: 1.")), "{out:?}");
}

fn help_is_for_everyone(ctx: &Ctx) {
    let out = ctx.call(&["--help"]).output();
    for verb in [
        "create", "delete", "exec", "kill", "list", "pause", "ps", "resume", "run", "spec", "start", "state", "update",
    ] {
        assert!(out.ok().stdout.contains(verb), "{verb}");
    }
}

/// The first process of a pid namespace does not get a SIGTERM that it does not handle.
fn a_created_container_ends_when_it_is_asked_to(ctx: &Ctx) {
    let bundle = ctx.bundle();
    ctx.create(&bundle).kill("TERM").stopped();
}

fn list_shows_nothing_but_containers(ctx: &Ctx) {
    let bundle = ctx.bundle();
    // A compiled filter may be kept beside the containers.
    bundle.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]}),
    );
    let container = ctx.create(&bundle);
    let out = ctx.call(&["list", "--quiet"]).output();
    assert_eq!(out.ok().text(), container.id);
    assert_eq!(out.stderr, "");
}

/// buildah deletes at once, and not by force: what is not stopped by then stays.
fn a_container_that_could_not_start_can_be_deleted_at_once(ctx: &Ctx) {
    for _ in 0..10 {
        let bundle = ctx.bundle();
        bundle.file("/bin/odd", "neither ELF nor script").args(&["/bin/odd"]);
        fs::set_permissions(bundle.path("/bin/odd"), fs::Permissions::from_mode(0o755)).unwrap();
        let container = ctx.create(&bundle);
        container.verb(&["start"]).refused(&["exec format error"]);
        container.verb(&["delete"]).ok();
    }
}
