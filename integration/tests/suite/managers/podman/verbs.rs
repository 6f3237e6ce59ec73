//! What is done with a container from its start to its end.

use std::fs;

use proa_integration::Ctx;
use proa_integration::ctx::eventually;

use super::super::busybox;
use super::*;

of_both! {
    podman_runs_a_container .views(PODMAN).seconds(120).not_for(NO_HYBRID);
    podman_runs_a_container_on_a_terminal .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_execs_stops_and_removes .views(PODMAN).seconds(120).not_for(NO_HYBRID);
    podman_execs_as_asked .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_stops_with_the_signal_and_the_grace_asked_for .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_restarts_by_policy .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_shows_logs_status_and_health .views(PODMAN).seconds(120).not_for(NO_HYBRID);
    podman_passes_descriptors_the_time_zone_and_runtime_flags .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_runs_oci_hooks .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_runs_a_root_directory .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_copies_commits_and_renames .views(V1).seconds(120).not_for(NO_HYBRID);
}

fn podman_runs_a_container(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let text = podman.shell(
        &["--hostname", "under-podman"],
        "echo hello $FROM_IMAGE from $(hostname)",
    );
    assert!(text.ends_with("hello yes from under-podman\n"), "{text}");
    assert_eq!(podman.run(&["--rm"], &["sh", "-c", "exit 42"]).code, 42);
    let text = podman.shell(&["--init"], "cat /proc/1/comm; echo $$");
    assert!(!text.contains("\n1\n"), "{text}");
}

fn podman_execs_stops_and_removes(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    podman
        .run(
            &["--detach", "--name", "it", "--memory", "64m"],
            &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"],
        )
        .ok();
    assert_eq!(
        podman
            .call(&["exec", "it", "sh", "-c", "cat /proc/1/comm; echo $FROM_IMAGE"])
            .ok(),
        "sh\nyes\n"
    );
    assert_eq!(
        podman.call(&["exec", "--user", "1000", "it", "id", "-u"]).ok(),
        "1000\n"
    );
    assert_eq!(podman.call(&["exec", "it", "sh", "-c", "exit 9"]).code, 9);
    podman.call(&["stop", "--time", "5", "it"]).ok();
    assert_eq!(podman.ended("it"), "exited 3");
    podman.call(&["start", "it"]).ok();
    podman.call(&["pause", "it"]).ok();
    podman.call(&["exec", "it", "true"]).refused(&["running"]);
    podman.call(&["unpause", "it"]).ok();
    podman.call(&["kill", "it"]).ok();
    podman.call(&["wait", "it"]).ok();
    podman.call(&["restart", "it"]).ok();
    podman.call(&["rm", "--force", "--time", "0", "it"]).ok();
    assert_eq!(podman.call(&["ps", "--all", "--quiet"]).ok(), "");
}

fn podman_execs_as_asked(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    podman
        .run(&["--detach", "--name", "it"], &["sh", "-c", "sleep 1000; :"])
        .ok();
    let exec = |flags: &[&str], program: &[&str]| podman.call(&[&["exec"], flags, &["it"], program].concat());
    let flags = ["--user", "1000:2000", "--env", "A=b", "--workdir", "/tmp"];
    let text = exec(&flags, &["sh", "-c", "id -u; id -g; echo $A; pwd"]).ok();
    assert_eq!(text, "1000\n2000\nb\n/tmp\n");
    assert_eq!(exec(&["--user", "user"], &["id", "-un"]).ok(), "user\n");
    let (terminal, mut child) =
        podman.on_terminal(&["exec", "--interactive", "--tty", "it", "sh", "-c", "tty; exit 5"]);
    let text = terminal.rest();
    assert_eq!(child.wait().unwrap().code(), Some(5), "{text}");
    assert!(text.contains("/dev/pts/0"), "{text}");
    exec(&["--detach"], &["touch", "/detached"]).ok();
    eventually("the detached", || {
        (exec(&[], &["ls", "/detached"]).code == 0).then_some(())
    });
    // All that root may have here.
    let bounding = exec(&["--privileged"], &["grep", "CapBnd", "/proc/self/status"]).ok();
    assert!(bounding.trim_end().ends_with("ffff"), "{bounding}");
    let text = podman.call(&["top", "it", "pid", "comm"]).ok();
    assert!(text.contains("sleep"), "{text}");
    podman.call(&["kill", "--signal", "9", "it"]).ok();
    assert_eq!(podman.call(&["wait", "it"]).ok(), "137\n");
}

fn podman_stops_with_the_signal_and_the_grace_asked_for(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let script = "trap 'exit 8' INT; trap '' TERM; echo ready; while :; do sleep 0.1; done";
    for (name, signal, status) in [("obeys", "INT", "8\n"), ("ignores", "TERM", "137\n")] {
        let flags = ["--detach", "--name", name, "--stop-signal", signal];
        podman.run(&flags, &["sh", "-c", script]).ok();
        eventually("the traps", || {
            podman.call(&["logs", name]).text.contains("ready").then_some(())
        });
        podman.call(&["stop", "--time", "1", name]).ok();
        assert_eq!(podman.call(&["wait", name]).ok(), status);
    }
}

fn podman_restarts_by_policy(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let flags = ["--detach", "--name", "it", "--restart", "on-failure:2"];
    podman.run(&flags, &["sh", "-c", "echo again; exit 4"]).ok();
    eventually("two restarts", || {
        (podman.inspect("it", ".RestartCount") == "2" && podman.ended("it") == "exited 4").then_some(())
    });
    assert_eq!(podman.call(&["logs", "it"]).ok(), "again\nagain\nagain\n");
}

fn podman_shows_logs_status_and_health(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let script = "echo to stdout; echo to stderr >&2; exit 5";
    podman
        .run(
            &["--detach", "--name", "it", "--annotation", "a.b/c=d"],
            &["sh", "-c", script],
        )
        .ok();
    assert_eq!(podman.call(&["wait", "it"]).ok(), "5\n");
    let text = podman.call(&["logs", "it"]).ok();
    assert!(text.contains("to stdout\n") && text.contains("to stderr\n"), "{text}");
    assert_eq!(podman.ended("it"), "exited 5");
    let text = podman.inspect("it", "json .Config.Annotations");
    assert!(text.contains("\"a.b/c\":\"d\""), "{text}");

    let flags = [
        "--detach",
        "--name",
        "ill",
        "--health-cmd",
        "test -e /well",
        "--health-retries",
        "1",
        "--health-interval",
        "disable",
    ];
    podman.run(&flags, &["sleep", "1000"]).ok();
    podman.call(&["healthcheck", "run", "ill"]).code(1);
    assert_eq!(podman.inspect("ill", ".State.Health.Status"), "unhealthy");
    podman.call(&["exec", "ill", "touch", "/well"]).ok();
    podman.call(&["healthcheck", "run", "ill"]).ok();
    assert_eq!(podman.inspect("ill", ".State.Health.Status"), "healthy");
    let text = podman
        .call(&["stats", "--no-stream", "--format", "{{.PIDs}}", "ill"])
        .ok();
    assert_eq!(text, "1\n");
    let text = podman.call(&["top", "ill", "comm"]).ok();
    assert!(text.contains("sleep"), "{text}");
}

fn podman_runs_a_container_on_a_terminal(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let flags = ["--rm", "--interactive", "--tty", "--init"];
    let (mut terminal, mut child) = podman.run_on_terminal(&flags, &[IMAGE, "sh"]);
    terminal.expect("# ");
    terminal.type_in("tty; stty rows 33 cols 99; stty size; echo $$; cat /proc/1/comm; exit 9\n");
    let text = terminal.rest();
    assert_eq!(child.wait().unwrap().code(), Some(9), "{text}");
    assert!(text.contains("/dev/pts/0") && text.contains("33 99"), "{text}");
    // Not the shell but the init that podman puts in front.
    assert!(!text.contains("\r\n1\r\n"), "{text}");
}

fn podman_passes_descriptors_the_time_zone_and_runtime_flags(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    fs::write(podman.dir.join("file"), "preserved\n").unwrap();
    let args = podman.run_args(&["--rm", "--preserve-fds", "1"], &[IMAGE, "sh", "-c", "cat <&3"]);
    let line = format!("exec 3<file; exec podman --log-level=error {}", shell_words(&args));
    let said = say(&mut podman.program(&["sh", "-c", &line]), ctx);
    assert_eq!(said.ok(), "preserved\n");
    assert_eq!(podman.shell(&["--tz", "local"], "date +%Z | wc -l"), "1\n");
    assert_eq!(podman.shell(&["--umask", "0077"], "umask"), "0077\n");
    // A global flag of the runtime, for a container as long as it lives; its log is podman's.
    podman.run(&["--rm", "--env", "A=b"], &["true"]).ok();
    let args: Vec<String> = podman.run_args(&["--rm"], &[IMAGE, "true"]);
    let mut line = vec!["podman", "--log-level=error", "--runtime-flag", "no-such-flag"];
    line.extend(args.iter().map(String::as_str));
    say(&mut podman.program(&line), ctx).refused(&["flag provided but not defined: -no-such-flag"]);
    line[3] = "debug";
    say(&mut podman.program(&line), ctx).ok();
}

fn shell_words(args: &[String]) -> String {
    args.iter().map(|arg| format!("'{arg}' ")).collect()
}

fn podman_runs_oci_hooks(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let dir = ctx.mkdir("hooks");
    let stages = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    for stage in stages {
        let script = format!("cat > {}/{stage}.state", dir.display());
        let hook = serde_json::json!({
            "version": "1.0.0", "when": {"always": true}, "stages": [stage],
            "hook": {"path": "/bin/sh", "args": ["sh", "-c", script]}
        });
        fs::write(dir.join(format!("{stage}.json")), hook.to_string()).unwrap();
    }
    let hooks = format!("--hooks-dir={}", dir.display());
    let args = podman.run_args(&["--name", "it"], &[IMAGE, "true"]);
    let mut line = vec!["podman", "--log-level=error", &hooks];
    line.extend(args.iter().map(String::as_str));
    say(&mut podman.program(&line), ctx).ok();
    podman.call(&["rm", "it"]).ok();
    for stage in stages {
        let file = dir.join(format!("{stage}.state"));
        let state = eventually(stage, || {
            serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&file).ok()?).ok()
        });
        let expected = match stage {
            "poststart" => "running",
            "poststop" => "stopped",
            _ => "creating",
        };
        if ctx.subject.kind == proa_integration::Kind::Proa {
            assert_eq!(state["status"], expected, "{stage}");
        }
    }
}

fn podman_runs_a_root_directory(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let root = ctx.dir.join("image/rootfs");
    let root = root.to_str().unwrap();
    let overlaid = format!("{root}:O");
    let said = podman.run_with("proa", &["--rm", "--rootfs"], &[root, "echo", "from there"]);
    assert_eq!(said.ok(), "from there\n");
    podman
        .run_with("proa", &["--rm", "--rootfs"], &[&overlaid, "touch", "/overlaid"])
        .ok();
    assert!(!Path::new(root).join("overlaid").exists());
}

fn podman_copies_commits_and_renames(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    podman.run(&["--detach", "--name", "it"], &["sleep", "1000"]).ok();
    fs::write(podman.dir.join("file"), "copied\n").unwrap();
    podman.call(&["cp", "file", "it:/tmp/file"]).ok();
    assert_eq!(podman.call(&["exec", "it", "cat", "/tmp/file"]).ok(), "copied\n");
    let text = podman.call(&["diff", "it"]).ok();
    assert!(text.contains("A /tmp/file"), "{text}");
    podman.call(&["commit", "--quiet", "it", "example.test/made"]).ok();
    podman.call(&["rename", "it", "other"]).ok();
    let said = podman.run_with("proa", &["--rm"], &["example.test/made", "cat", "/tmp/file"]);
    assert_eq!(said.ok(), "copied\n");
    // Ready, and not started.
    podman.call(&["stop", "--time", "0", "other"]).ok();
    podman.call(&["init", "other"]).ok();
    assert_eq!(podman.inspect("other", ".State.Status"), "initialized");
    podman.call(&["start", "other"]).ok();
}
