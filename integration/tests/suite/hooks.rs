//! The six kinds of hooks: when, where and with what they run, and what their failure means.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use proa_integration::{Bundle, Ctx, Kind, tests};
use serde_json::{Value, json};

tests! {
    all_kinds_run_in_order;
    poststart_hooks_run_at_start .once().not_for(&[(Kind::Runc, "runs them at create")]);
    several_hooks_of_a_kind_run_in_their_order .once();
    hooks_get_the_state_on_stdin .once();
    statuses_on_stdin_are_those_of_the_moment .once().since_runc(1, 2);
    hooks_get_their_arguments_and_only_their_environment .once();
    hooks_have_no_signal_blocked .once();
    early_hooks_run_in_the_runtimes_namespaces .once();
    create_container_hooks_run_in_the_containers_namespaces .once();
    start_container_hooks_run_in_the_containers_root .once();
    create_runtime_hooks_see_the_new_network_namespace .once();
    a_failing_prestart_hook_stops_the_creation;
    a_failing_create_runtime_hook_stops_the_creation;
    a_failing_create_container_hook_stops_the_creation;
    a_failing_start_container_hook_stops_the_start .once();
    a_failing_poststart_hook_does_not_go_unnoticed .once().not_for(&[(Kind::Runc, "runs them at create")]);
    a_failing_poststop_hook_is_logged_and_delete_goes_on .once();
    a_failing_hook_shows_its_stderr .once();
    a_hook_past_its_timeout_is_killed .once();
    a_hook_that_does_not_exist_is_refused .once();
    a_hook_path_must_be_absolute .once();
    poststop_hooks_run_after_delete_of_a_created_container .once();
    hooks_of_exec_do_not_run_again .once();
    poststop_hooks_follow_every_failed_creation .once();
    poststop_hooks_follow_a_run_that_failed_at_start .once().not_for(&[(Kind::Runc, "stops at the first that fails")]);
    a_hook_is_not_looked_for_in_path .once();
    start_container_hooks_are_under_the_seccomp_profile .once();
    start_container_hooks_have_the_programs_environment .once();
    a_failing_poststart_hook_is_reported_for_a_program_that_ended .once();
}

const HOST_KINDS: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

fn log(ctx: &Ctx) -> PathBuf {
    ctx.dir.join("hooks.log")
}

fn said(ctx: &Ctx) -> String {
    fs::read_to_string(log(ctx)).unwrap_or_default()
}

/// A hook that runs a script of the host's shell, or of the container's for `startContainer`.
fn script(text: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/usr/bin:/bin"]})
}

fn note(ctx: &Ctx, word: &str) -> Value {
    script(&format!("echo {word} >> {}", log(ctx).display()))
}

/// The log, bound into the container at its own path, so that hooks inside can write to it.
fn with_log(ctx: &Ctx, bundle: &Bundle) {
    fs::write(log(ctx), "").unwrap();
    bundle.bind(&log(ctx), log(ctx).to_str().unwrap(), &["bind", "rw"]);
}

fn all_kinds_run_in_order(ctx: &Ctx) {
    let bundle = ctx.bundle();
    with_log(ctx, &bundle);
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststop",
    ] {
        bundle.set(&format!("/hooks/{kind}"), json!([note(ctx, kind)]));
    }
    bundle.args(&["sleep", "1000"]);
    let container = ctx.create(&bundle);
    assert_eq!(said(ctx), "prestart\ncreateRuntime\ncreateContainer\n");
    container.start();
    let before_poststop = "prestart\ncreateRuntime\ncreateContainer\nstartContainer\n";
    proa_integration::ctx::eventually("startContainer", || (said(ctx) == before_poststop).then_some(()));
    container.kill("KILL").stopped().delete();
    assert_eq!(said(ctx), format!("{before_poststop}poststop\n"));
}

fn poststart_hooks_run_at_start(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/hooks/poststart", json!([note(ctx, "poststart")]))
        .args(&["sleep", "1000"]);
    let container = ctx.create(&bundle);
    assert_eq!(said(ctx), "");
    container.start();
    assert_eq!(said(ctx), "poststart\n");
}

fn several_hooks_of_a_kind_run_in_their_order(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set(
        "/hooks/createRuntime",
        json!([note(ctx, "1"), note(ctx, "2"), note(ctx, "3")]),
    );
    ctx.run(&bundle).ok();
    assert_eq!(said(ctx), "1\n2\n3\n");
}

fn states(ctx: &Ctx, container: impl Fn(&Bundle)) -> Vec<Value> {
    let bundle = ctx.bundle();
    for kind in HOST_KINDS {
        bundle.set(
            &format!("/hooks/{kind}"),
            json!([script(&format!("cat > {}/{kind}.json", ctx.dir.display()))]),
        );
    }
    bundle.set("/annotations", json!({"a": "b"}));
    container(&bundle);
    HOST_KINDS
        .iter()
        .map(|kind| serde_json::from_slice(&fs::read(ctx.dir.join(format!("{kind}.json"))).unwrap()).unwrap())
        .collect()
}

fn hooks_get_the_state_on_stdin(ctx: &Ctx) {
    let bundle_dir = std::cell::RefCell::new(PathBuf::new());
    let states = states(ctx, |bundle| {
        bundle_dir.replace(bundle.dir.clone());
        ctx.run(bundle).ok();
    });
    for (kind, state) in HOST_KINDS.iter().zip(states) {
        assert!(state["ociVersion"].is_string(), "{kind}: {state}");
        assert!(state["id"].as_str().unwrap().starts_with("pt"), "{kind}: {state}");
        assert_eq!(state["bundle"], bundle_dir.borrow().to_str().unwrap(), "{kind}");
        assert_eq!(state["annotations"], json!({"a": "b"}), "{kind}");
        if *kind != "poststop" {
            assert!(state["pid"].as_u64().unwrap() > 0, "{kind}: {state}");
        }
    }
}

fn statuses_on_stdin_are_those_of_the_moment(ctx: &Ctx) {
    let states = states(ctx, |bundle| drop(ctx.run(bundle)));
    let statuses: Vec<&str> = states.iter().map(|s| s["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["creating", "creating", "running", "stopped"]);
}

fn hooks_have_no_signal_blocked(ctx: &Ctx) {
    let bundle = ctx.bundle();
    // In the foreground the runtime itself blocks all of them. No shell: some unblock them for their children.
    let looks = json!([{"path": "/bin/grep", "args": ["grep", "-q", "^SigBlk:.0*$", "/proc/self/status"]}]);
    for kind in ["prestart", "createRuntime", "poststart"] {
        bundle.set(&format!("/hooks/{kind}"), looks.clone());
    }
    ctx.run(&bundle).ok();
}

fn hooks_get_their_arguments_and_only_their_environment(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let text = format!("{{ echo \"$0 $*\"; env; }} > {}", log(ctx).display());
    bundle.set(
        "/hooks/createRuntime",
        json!([{"path": "/bin/sh", "args": ["odd-name", "-c", text, "zero", "one", "two"], "env": ["ONLY=this"]}]),
    );
    let id = ctx.id();
    ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id])
        .env("LEAKED", "yes")
        .output()
        .ok();
    let said = said(ctx);
    assert!(
        said.starts_with("zero one two\n") && said.contains("ONLY=this") && !said.contains("LEAKED"),
        "{said}"
    );
}

fn early_hooks_run_in_the_runtimes_namespaces(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let text = format!(
        "readlink /proc/self/ns/mnt /proc/self/ns/pid /proc/self/ns/net >> {}",
        log(ctx).display()
    );
    bundle
        .set("/hooks/createRuntime", json!([script(&text)]))
        .set("/hooks/prestart", json!([script(&text)]));
    ctx.run(&bundle).ok();
    let own = |kind: &str| {
        fs::read_link(format!("/proc/self/ns/{kind}"))
            .unwrap()
            .display()
            .to_string()
    };
    let expected = [own("mnt"), own("pid"), own("net")].join("\n") + "\n";
    assert_eq!(said(ctx), expected.repeat(2));
}

fn create_container_hooks_run_in_the_containers_namespaces(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.file("/etc/mark", "");
    // Inside the namespaces, but before pivot_root: the host's files are still to be seen.
    let text = format!(
        "{{ hostname; readlink /proc/self/ns/net; [ -e /etc/mark ] || echo host files; }} > {}",
        log(ctx).display()
    );
    bundle.set("/hooks/createContainer", json!([script(&text)]));
    ctx.run(&bundle).ok();
    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert!(
        said(ctx).contains("host files") && !said(ctx).contains(&own),
        "{}",
        said(ctx)
    );
}

fn start_container_hooks_run_in_the_containers_root(ctx: &Ctx) {
    let bundle = ctx.bundle();
    with_log(ctx, &bundle);
    bundle.file("/etc/mark", "inside");
    bundle.set(
        "/hooks/startContainer",
        json!([script(&format!(
            "cat /etc/mark > {}; echo $$ >> {}",
            log(ctx).display(),
            log(ctx).display()
        ))]),
    );
    ctx.run(&bundle).ok();
    assert!(said(ctx).starts_with("inside"), "{}", said(ctx));
}

fn create_runtime_hooks_see_the_new_network_namespace(ctx: &Ctx) {
    // What a CNI caller does: take the pid of the state and work on its network.
    let bundle = ctx.bundle();
    let text = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); nsenter -t $pid -n sysctl -qw net.ipv4.ip_forward=1";
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]});
    bundle
        .set("/hooks/createRuntime", json!([hook]))
        .sh("cat /proc/sys/net/ipv4/ip_forward");
    assert_eq!(ctx.run(&bundle).ok().text(), "1");
}

fn failing(ctx: &Ctx, kind: &str) {
    let bundle = ctx.bundle();
    bundle
        .set(
            &format!("/hooks/{kind}"),
            json!([script("echo went wrong >&2; exit 3")]),
        )
        .set("/hooks/poststop", json!([note(ctx, "poststop")]));
    let container = ctx.container(&bundle);
    ctx.create_call(&bundle, &container.id, &[]).output().refused(&["hook"]);
    container.verb(&["state"]).refused(&["does not exist"]);
    container.forget();
}

fn a_failing_prestart_hook_stops_the_creation(ctx: &Ctx) {
    failing(ctx, "prestart");
}

fn a_failing_create_runtime_hook_stops_the_creation(ctx: &Ctx) {
    failing(ctx, "createRuntime");
}

fn a_failing_create_container_hook_stops_the_creation(ctx: &Ctx) {
    failing(ctx, "createContainer");
}

fn a_failing_start_container_hook_stops_the_start(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/hooks/startContainer", json!([script("exit 3")]))
        .sh("echo ran");
    let container = ctx.create(&bundle);
    container.verb(&["start"]);
    container.stopped();
    assert_eq!(container.stdout(), "", "the program ran although its hook failed");
}

fn a_failing_poststart_hook_does_not_go_unnoticed(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/hooks/poststart", json!([script("exit 3")]))
        .args(&["sleep", "1000"]);
    let container = ctx.create(&bundle);
    let out = container.verb(&["start"]);
    assert!((out.log + &out.stderr).contains("hook"));
}

fn a_failing_poststop_hook_is_logged_and_delete_goes_on(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/hooks/poststop", json!([script("exit 3"), note(ctx, "second")]));
    let container = ctx.start(&bundle);
    container.stopped();
    let out = container.verb(&["delete"]);
    container.forget();
    assert!((out.log + &out.stderr).contains("hook"));
    container.verb(&["state"]).refused(&["does not exist"]);
}

fn a_failing_hook_shows_its_stderr(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/hooks/createRuntime", json!([script("echo the reason >&2; exit 3")]));
    ctx.run(&bundle).refused(&["the reason"]);
}

fn a_hook_past_its_timeout_is_killed(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let mut hook = json!({"path": "/bin/sleep", "args": ["sleep", "1000"]});
    hook["timeout"] = json!(1);
    bundle.set("/hooks/createRuntime", json!([hook]));
    let before = std::time::Instant::now();
    ctx.run(&bundle).refused(&["hook", "timed out", "timeout"]);
    assert!(before.elapsed().as_secs() < 10);
}

fn a_hook_that_does_not_exist_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/hooks/createRuntime", json!([{"path": "/no/such/hook"}]));
    ctx.run(&bundle).refused(&["/no/such/hook"]);
}

fn a_hook_path_must_be_absolute(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let hook = bundle.dir.join("hook");
    fs::write(&hook, "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    bundle.set("/hooks/createRuntime", json!([{"path": "no-such-relative-hook"}]));
    ctx.run(&bundle).refused(&["no-such-relative-hook"]);
}

fn poststop_hooks_run_after_delete_of_a_created_container(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/hooks/poststop", json!([note(ctx, "poststop")]));
    let container = ctx.create(&bundle);
    container.verb(&["delete", "--force"]).ok();
    container.forget();
    assert_eq!(said(ctx), "poststop\n");
}

fn hooks_of_exec_do_not_run_again(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/hooks/prestart", json!([note(ctx, "x")]))
        .args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    container.exec(&["true"]).ok();
    assert_eq!(said(ctx), "x\n");
}

/// runtime.md#lifecycle: a failing hook leads to step 12, the destruction, which step 13, the poststop hooks, follows.
fn poststop_hooks_follow_every_failed_creation(ctx: &Ctx) {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = ctx.bundle();
        bundle
            .set(&format!("/hooks/{kind}"), json!([script("exit 3")]))
            .set("/hooks/poststop", json!([note(ctx, kind)]));
        let container = ctx.container(&bundle);
        ctx.create_call(&bundle, &container.id, &[]).output().refused(&["hook"]);
        container.forget();
    }
    assert_eq!(said(ctx), "prestart\ncreateRuntime\ncreateContainer\n");
}

fn poststop_hooks_follow_a_run_that_failed_at_start(ctx: &Ctx) {
    for kind in ["startContainer", "poststart"] {
        let bundle = ctx.bundle();
        bundle
            .set(&format!("/hooks/{kind}"), json!([script("exit 3")]))
            // That one fails keeps none of the others from running.
            .set("/hooks/poststop", json!([script("exit 3"), note(ctx, kind)]))
            .args(&["sleep", "1000"]);
        ctx.run(&bundle).refused(&["hook"]);
    }
    assert_eq!(said(ctx), "startContainer\npoststart\n");
}

/// config.md#posix-platform-hooks: `path` MUST be absolute.
fn a_hook_is_not_looked_for_in_path(ctx: &Ctx) {
    for kind in ["createRuntime", "startContainer"] {
        let bundle = ctx.bundle();
        bundle.set(&format!("/hooks/{kind}"), json!([{"path": "true"}]));
        ctx.run(&bundle).refused(&["hook", "absolute"]);
    }
}

/// The program of a startContainer hook is the image's: it must be held as the container's own is.
fn start_container_hooks_are_under_the_seccomp_profile(ctx: &Ctx) {
    for no_new_privileges in [true, false] {
        let bundle = ctx.bundle();
        with_log(ctx, &bundle);
        let try_it = format!(
            "mkdir /tmp/made && echo MADE >> {0} || echo refused >> {0}",
            log(ctx).display()
        );
        bundle
            .writable()
            .set("/process/noNewPrivileges", json!(no_new_privileges))
            .set("/hooks/startContainer", json!([script(&try_it)]))
            .set(
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}),
            );
        ctx.run(&bundle).ok();
        assert_eq!(said(ctx), "refused\n", "noNewPrivileges: {no_new_privileges}");
    }
}

fn start_container_hooks_have_the_programs_environment(ctx: &Ctx) {
    let bundle = ctx.bundle();
    with_log(ctx, &bundle);
    let mut hook = script(&format!("echo $ONE $HOME > {}", log(ctx).display()));
    hook.as_object_mut().unwrap().remove("env");
    bundle
        .set("/process/env", json!(["PATH=/bin", "ONE=two"]))
        .set("/hooks/startContainer", json!([hook]));
    ctx.run(&bundle).ok();
    assert_eq!(said(ctx), "two /root\n");
}

fn a_failing_poststart_hook_is_reported_for_a_program_that_ended(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/hooks/poststart", json!([script("sleep 0.2; exit 3")]))
        .args(&["true"]);
    ctx.run(&bundle).refused(&["poststart hook"]);
}
