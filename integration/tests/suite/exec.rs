//! `exec`: another process in a running container.

use std::fs;

use proa_integration::ctx::eventually;
use proa_integration::{Ctx, Kind, View, tests};
use serde_json::json;

tests! {
    exec_gives_the_exit_status;
    exec_gives_128_and_the_signal .once();
    exec_passes_the_streams .once();
    exec_joins_every_namespace .once();
    exec_joins_the_user_namespace;
    exec_joins_the_cgroup;
    exec_sees_the_containers_root .once();
    exec_inherits_environment_and_adds .once();
    exec_sets_cwd .once();
    exec_takes_a_user .once();
    exec_takes_additional_groups .once();
    exec_adds_capabilities .once();
    exec_has_the_containers_capabilities_otherwise .once();
    exec_sets_no_new_privileges .once();
    exec_keeps_seccomp .once();
    exec_takes_a_process_file .once();
    exec_detached_writes_the_pid_file .once();
    exec_of_an_absent_program_is_127_or_255 .once();
    exec_of_a_file_without_permission .once();
    exec_without_arguments_is_refused .once();
    exec_in_an_absent_container_is_refused .once();
    exec_in_a_stopped_container_is_refused .once();
    exec_in_a_created_container .once();
    exec_forwards_signals .once();
    exec_rlimits_are_the_containers .once().not_for(&[(Kind::Runc, "1.1 was built with a Go that raises the soft limit")]);
    exec_into_a_named_cgroup .since_runc(1, 2).views(&[View::Hybrid, View::V1]).not_for(&[(Kind::Crun, "another meaning")]);
    exec_ignore_paused .once();
    exec_survives_many_at_once .once();
    exec_home_is_the_users .once();
    exec_processes_end_with_the_container .once();
    exec_oom_score_is_the_containers .once();
    exec_umask_is_the_containers .once().only_proa();
    exec_takes_both_forms_of_a_flag .once().only_proa();
    exec_process_file_sets_umask_and_rlimits .once().only_proa();
    exec_many_arguments_arrive .once();
    exec_follows_an_init_that_left_its_cgroup .views(&[View::V2]).since_runc(1, 5);
}

macro_rules! sleeper {
    ($ctx:ident, $name:ident $(, $bundle:ident => $change:expr)?) => {
        let bundle = $ctx.bundle();
        bundle.args(&["sleep", "1000"]);
        $({ let $bundle = &bundle; $change; })?
        let $name = $ctx.start(&bundle);
    };
}

fn exec_gives_the_exit_status(ctx: &Ctx) {
    sleeper!(ctx, container);
    container.exec(&["true"]).ok();
    container.exec(&["sh", "-c", "exit 37"]).code(37);
    assert_eq!(container.status(), "running");
}

fn exec_gives_128_and_the_signal(ctx: &Ctx) {
    sleeper!(ctx, container);
    container.exec(&["sh", "-c", "kill -9 $$"]).code(137);
}

fn exec_passes_the_streams(ctx: &Ctx) {
    sleeper!(ctx, container);
    let out = container
        .exec_call(&[], &["sh", "-c", "cat; echo err >&2"])
        .stdin(b"through")
        .output();
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("through", "err\n"));
}

const NAMESPACES: &str = "cd /proc/self/ns; for n in pid net ipc uts mnt user cgroup; do readlink $n; done";

fn joins(container: &proa_integration::Container) {
    let pid = container.pid();
    let expected: Vec<String> = ["pid", "net", "ipc", "uts", "mnt", "user", "cgroup"]
        .iter()
        .map(|n| {
            fs::read_link(format!("/proc/{pid}/ns/{n}"))
                .unwrap()
                .display()
                .to_string()
        })
        .collect();
    assert_eq!(
        container
            .exec(&["sh", "-c", NAMESPACES])
            .ok()
            .stdout
            .lines()
            .collect::<Vec<_>>(),
        expected
    );
}

fn exec_joins_every_namespace(ctx: &Ctx) {
    sleeper!(ctx, container, b => b.namespace("cgroup", None));
    joins(&container);
}

fn exec_joins_the_user_namespace(ctx: &Ctx) {
    sleeper!(ctx, container, b => b.userns(200_000));
    joins(&container);
    let text = container
        .exec(&["sh", "-c", "id -u; cat /proc/self/uid_map"])
        .ok()
        .stdout
        .clone();
    assert_eq!(
        text.split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "200000", "65536"]
    );
    container.exec_with(&["--user", "1000:1000"], &["id", "-u"]).ok();
}

fn exec_joins_the_cgroup(ctx: &Ctx) {
    sleeper!(ctx, container);
    let own = |text: String| {
        text.lines()
            .filter(|l| l.contains("proa-test"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let init = own(fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap());
    let inside = own(container.exec(&["cat", "/proc/self/cgroup"]).ok().stdout.clone());
    if ctx.view.has_v1() || !inside.is_empty() {
        assert_eq!(inside, init);
    }
    assert!(!init.is_empty());
}

fn exec_sees_the_containers_root(ctx: &Ctx) {
    sleeper!(ctx, container, b => b.file("/etc/mark", "inside"));
    assert_eq!(container.exec(&["cat", "/etc/mark"]).ok().text(), "inside");
}

fn exec_inherits_environment_and_adds(ctx: &Ctx) {
    sleeper!(ctx, container, b => b.set("/process/env", json!(["PATH=/bin", "A=config", "B=config"])));
    let out = container.exec_with(&["--env", "A=flag", "--env", "C=flag"], &["sh", "-c", "echo $A $B $C"]);
    assert_eq!(out.ok().text(), "flag config flag");
}

fn exec_sets_cwd(ctx: &Ctx) {
    sleeper!(ctx, container, b => b.set("/process/cwd", json!("/tmp")));
    assert_eq!(container.exec(&["pwd"]).ok().text(), "/tmp");
    assert_eq!(
        container.exec_with(&["--cwd", "/home/user"], &["pwd"]).ok().text(),
        "/home/user"
    );
}

fn exec_takes_a_user(ctx: &Ctx) {
    sleeper!(ctx, container);
    assert_eq!(
        container
            .exec_with(&["--user", "1000:2000"], &["sh", "-c", "echo $(id -u):$(id -g)"])
            .ok()
            .text(),
        "1000:2000"
    );
    assert_eq!(
        container
            .exec_with(&["-u", "1000"], &["sh", "-c", "echo $(id -u):$(id -g)"])
            .ok()
            .text(),
        "1000:0"
    );
}

fn exec_takes_additional_groups(ctx: &Ctx) {
    sleeper!(ctx, container);
    let out = container.exec_with(&["--user", "1000:1000", "-g", "100", "-g", "65534"], &["id", "-G"]);
    assert_eq!(out.ok().text(), "1000 100 65534");
}

fn effective(text: &str) -> u64 {
    let line = text.lines().find(|l| l.starts_with("CapEff")).unwrap();
    u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
}

const DEFAULT_CAPS: u64 = 1 << 5 | 1 << 10 | 1 << 29;

fn exec_adds_capabilities(ctx: &Ctx) {
    sleeper!(ctx, container);
    let out = container.exec_with(&["--cap", "CAP_SYS_ADMIN"], &["cat", "/proc/self/status"]);
    assert_eq!(effective(&out.ok().stdout), DEFAULT_CAPS | 1 << 21);
}

fn exec_has_the_containers_capabilities_otherwise(ctx: &Ctx) {
    sleeper!(ctx, container);
    let out = container.exec(&["cat", "/proc/self/status"]);
    assert_eq!(effective(&out.ok().stdout), DEFAULT_CAPS);
    let out = container.exec_with(&["--user", "1000"], &["cat", "/proc/self/status"]);
    assert_eq!(effective(&out.ok().stdout), 0);
}

fn exec_sets_no_new_privileges(ctx: &Ctx) {
    sleeper!(ctx, container, b => b.set("/process/noNewPrivileges", json!(false)));
    assert!(
        container
            .exec(&["grep", "NoNewPrivs:.0", "/proc/self/status"])
            .ok()
            .code
            == 0
    );
    container
        .exec_with(&["--no-new-privs"], &["grep", "NoNewPrivs:.1", "/proc/self/status"])
        .ok();
}

fn exec_keeps_seccomp(ctx: &Ctx) {
    sleeper!(ctx, container, b => b.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["sysinfo"], "action": "SCMP_ACT_ERRNO", "errnoRet": 44}]})));
    assert_eq!(container.exec(&["probe", "call", "sysinfo"]).ok().text(), "errno 44");
}

fn exec_takes_a_process_file(ctx: &Ctx) {
    sleeper!(ctx, container);
    let file = ctx.dir.join("process.json");
    fs::write(
        &file,
        json!({
            "args": ["sh", "-c", "echo $0 $FROM $(pwd) $(id -u); grep CapEff /proc/self/status"],
            "cwd": "/home", "env": ["PATH=/bin", "FROM=file"], "user": {"uid": 0, "gid": 0, },
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}, "noNewPrivileges": true
        })
        .to_string(),
    )
    .unwrap();
    let out = ctx
        .call(&["exec", "--process", file.to_str().unwrap(), &container.id])
        .output();
    let text = &out.ok().stdout;
    assert!(text.starts_with("sh file /home 0\n"), "{text}");
    assert_eq!(effective(text), 1 << 5);
}

fn exec_detached_writes_the_pid_file(ctx: &Ctx) {
    sleeper!(ctx, container);
    let file = ctx.dir.join("exec.pid");
    let out = container.exec_with(&["--detach", "--pid-file", file.to_str().unwrap()], &["sleep", "777"]);
    out.ok();
    let pid = fs::read_to_string(file).unwrap();
    eventually("the program", || {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .contains("777")
            .then_some(())
    });
    let listed = container.verb(&["ps", "--format", "json"]).ok().json();
    assert!(
        listed.as_array().unwrap().contains(&json!(pid.parse::<u32>().unwrap())),
        "{listed}"
    );
}

fn exec_of_an_absent_program_is_127_or_255(ctx: &Ctx) {
    sleeper!(ctx, container);
    let out = container.exec(&["no-such-program"]);
    // runc says 255 for everything that fails before the program runs; newer callers understand the shell's 127.
    assert!([255, 127, 1].contains(&out.code), "{out:?}");
    out.refused(&["no-such-program"]);
}

fn exec_of_a_file_without_permission(ctx: &Ctx) {
    sleeper!(ctx, container);
    let out = container.exec(&["/etc/passwd"]);
    assert!([255, 126, 1].contains(&out.code), "{out:?}");
    out.refused(&["permission denied"]);
}

fn exec_without_arguments_is_refused(ctx: &Ctx) {
    sleeper!(ctx, container);
    let out = ctx.call(&["exec", &container.id]).output();
    assert_ne!(out.code, 0);
}

fn exec_in_an_absent_container_is_refused(ctx: &Ctx) {
    ctx.call(&["exec", "nobody", "true"])
        .output()
        .refused(&["does not exist"]);
}

fn exec_in_a_stopped_container_is_refused(ctx: &Ctx) {
    let container = ctx.start(&ctx.bundle());
    container.stopped();
    container.exec(&["true"]).refused(&["stopped", "not running"]);
}

fn exec_in_a_created_container(ctx: &Ctx) {
    // Callers (CNI tools, debuggers) look into a container before it starts.
    let container = ctx.create(&ctx.bundle());
    assert_eq!(container.exec(&["hostname"]).ok().text(), "testhost");
}

fn exec_forwards_signals(ctx: &Ctx) {
    sleeper!(ctx, container);
    let call = container.exec_call(
        &[],
        &[
            "sh",
            "-c",
            "trap 'exit 8' TERM; echo ready; while :; do sleep 0.05; done",
        ],
    );
    let running = call.spawn();
    eventually("ready", || running.stdout().contains("ready").then_some(()));
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().code(8);
}

fn exec_rlimits_are_the_containers(ctx: &Ctx) {
    sleeper!(ctx, container, b => b.set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 55, "hard": 66}])));
    assert_eq!(
        container.exec(&["sh", "-c", "ulimit -n; ulimit -Hn"]).ok().stdout,
        "55\n66\n"
    );
}

fn exec_into_a_named_cgroup(ctx: &Ctx) {
    sleeper!(ctx, container);
    let sub = container.cgroup_dir("pids").join("sub");
    fs::create_dir(&sub).unwrap();
    let out = container.exec_with(&["--cgroup", "pids:sub"], &["cat", "/proc/self/cgroup"]);
    assert!(
        out.ok()
            .stdout
            .lines()
            .any(|l| l.contains(":pids:") && l.ends_with("/sub")),
        "{out:?}"
    );
}

fn exec_ignore_paused(ctx: &Ctx) {
    sleeper!(ctx, container);
    container.verb(&["pause"]).ok();
    let call = container.exec_call(&["--ignore-paused"], &["echo", "thawed"]);
    let running = call.spawn();
    container.verb(&["resume"]).ok();
    assert_eq!(running.wait().ok().text(), "thawed");
}

fn exec_survives_many_at_once(ctx: &Ctx) {
    sleeper!(ctx, container);
    let all: Vec<_> = (0..8)
        .map(|n| container.exec_call(&[], &["echo", &n.to_string()]).spawn())
        .collect();
    for (n, running) in all.into_iter().enumerate() {
        assert_eq!(running.wait().ok().text(), n.to_string());
    }
}

fn exec_home_is_the_users(ctx: &Ctx) {
    sleeper!(ctx, container);
    assert_eq!(
        container
            .exec_with(&["--user", "1000:1000"], &["sh", "-c", "echo $HOME"])
            .ok()
            .text(),
        "/home/user"
    );
}

fn exec_processes_end_with_the_container(ctx: &Ctx) {
    sleeper!(ctx, container);
    let running = container
        .exec_call(&[], &["sh", "-c", "echo up; sleep 1000; exit 1"])
        .spawn();
    eventually("the second process", || running.stdout().contains("up").then_some(()));
    container.kill("KILL");
    running.wait().code(137);
}

fn exec_oom_score_is_the_containers(ctx: &Ctx) {
    sleeper!(ctx, container, b => b.set("/process/oomScoreAdj", json!(400)));
    assert_eq!(container.exec(&["cat", "/proc/self/oom_score_adj"]).ok().text(), "400");
}

fn exec_umask_is_the_containers(ctx: &Ctx) {
    sleeper!(ctx, container, b => b.set("/process/user/umask", json!(0o77)));
    assert_eq!(container.exec(&["sh", "-c", "umask"]).ok().text(), "0077");
}

fn exec_many_arguments_arrive(ctx: &Ctx) {
    sleeper!(ctx, container);
    let many: Vec<String> = (0..5000).map(|n| format!("argument-number-{n}")).collect();
    let mut args = vec!["sh", "-c", "echo $#", "sh"];
    args.extend(many.iter().map(String::as_str));
    assert_eq!(container.exec(&args).ok().text(), "5000");
}

fn exec_takes_both_forms_of_a_flag(ctx: &Ctx) {
    sleeper!(ctx, container);
    assert_eq!(
        container
            .exec_with(&["--env", "A=1", "-e", "B=2"], &["sh", "-c", "echo $A$B"])
            .ok()
            .text(),
        "12"
    );
}

fn exec_process_file_sets_umask_and_rlimits(ctx: &Ctx) {
    // runc of 1.1 takes no umask here, and Go's library may raise the soft limit again.
    sleeper!(ctx, container);
    let file = ctx.dir.join("process.json");
    let process = json!({
        "args": ["sh", "-c", "umask; ulimit -n"], "cwd": "/", "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0, "umask": 0o77}, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
    });
    fs::write(&file, process.to_string()).unwrap();
    assert_eq!(
        ctx.call(&["exec", "--process", file.to_str().unwrap(), &container.id])
            .output()
            .ok()
            .stdout,
        "0077\n77\n"
    );
}

fn exec_follows_an_init_that_left_its_cgroup(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let elsewhere = ctx.cgroup_dir("", &format!("{}/elsewhere", ctx.cgroup_parent()));
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("cgroup.procs"), container.pid().to_string()).unwrap();
    fs::remove_dir(container.cgroup_dir("")).unwrap();
    let out = container.exec(&["cat", "/proc/self/cgroup"]);
    assert!(out.ok().text().ends_with("/elsewhere"), "{out:?}");
    container.kill("KILL").stopped().delete();
    fs::remove_dir(&elsewhere).unwrap();
}
