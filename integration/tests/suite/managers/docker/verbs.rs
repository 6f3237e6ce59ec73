//! What is done with a container from its start to its end.

use std::time::{SystemTime, UNIX_EPOCH};

use proa_integration::console::Terminal;

use super::super::{busybox, busybox_with_guest};
use super::*;

of_both! {
    docker_runs_execs_updates_and_stops .views(V1).seconds(120).not_for(NO_HYBRID);
    docker_execs_as_asked .views(V1).seconds(120).not_for(NO_HYBRID);
    docker_restarts_by_policy_and_tells_events .views(V1).seconds(120).not_for(NO_HYBRID);
    docker_keeps_containers_over_a_restart_of_the_daemon .views(V1).seconds(120).not_for(NO_HYBRID);
    docker_copies_and_commits .views(V1).seconds(120).not_for(NO_HYBRID);
    docker_runs_wasm .views(&[View::Hybrid, View::V2]).seconds(120).only_proa();
}

const LOOP: &str = "trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done";

fn docker_runs_execs_updates_and_stops(ctx: &Ctx, release: Release) {
    let docker = docker(ctx, release, &busybox(ctx));
    let text = docker
        .run("proa", &["--rm"], &["sh", "-c", "echo hello $FROM_IMAGE; exit 42"])
        .code(42);
    assert_eq!(text, "hello yes\n");
    let flags = [
        "--detach",
        "--name=it",
        "--memory=64m",
        "--cpus=0.5",
        "--pids-limit=50",
        "--init",
        "--read-only",
    ];
    docker.run("proa", &flags, &["sh", "-c", LOOP]).ok();
    let limits = || {
        let inside = "cd /sys/fs/cgroup; \
            cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares pids/pids.max cpuset/cpuset.cpus";
        let text = docker.exec(&[], &["sh", "-c", inside]).ok();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limits()[..4], ["67108864", "50000", "1024", "50"]);
    let update = |flags: &[&str]| docker.call(&[&["update"], flags, &["it"]].concat());
    update(&["--memory=32m", "--memory-swap=-1"]).ok();
    update(&["--cpus=0.25", "--pids-limit=40", "--cpu-shares=512", "--cpuset-cpus=0"]).ok();
    assert_eq!(limits(), ["33554432", "25000", "512", "40", "0"]);
    update(&["--cpuset-cpus=99"]).refused(&["99"]);
    docker.call(&["pause", "it"]).ok();
    assert_eq!(docker.inspect("it", ".State.Status"), "paused");
    docker.exec(&[], &["true"]).refused(&["paused"]);
    docker.call(&["unpause", "it"]).ok();
    let text = docker.call(&["top", "it"]).ok();
    assert!(text.contains("sh -c"), "{text}");
    let text = docker
        .call(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "it"])
        .ok();
    assert!(text.ends_with("/ 32MiB\n"), "{text}");
    docker.call(&["stop", "--time", "10", "it"]).ok();
    assert_eq!(docker.ended("it"), "exited 3");
    assert_eq!(docker.call(&["logs", "it"]).ok(), "bye\n");
    docker.call(&["start", "it"]).ok();
    docker.call(&["kill", "--signal", "KILL", "it"]).ok();
    assert_eq!(docker.call(&["wait", "it"]).ok(), "137\n");
    docker.call(&["rm", "it"]).ok();
}

fn docker_execs_as_asked(ctx: &Ctx, release: Release) {
    let docker = docker(ctx, release, &busybox(ctx));
    docker.run("proa", &["--detach", "--name=it"], &["sh", "-c", LOOP]).ok();
    let flags = ["--user=1000:2000", "--env=A=b", "--workdir=/tmp"];
    let text = docker.exec(&flags, &["sh", "-c", "id -u; id -g; echo $A; pwd"]).ok();
    assert_eq!(text, "1000\n2000\nb\n/tmp\n");
    docker.exec(&[], &["sh", "-c", "exit 9"]).code(9);
    docker.exec(&["--detach"], &["touch", "/detached"]).ok();
    eventually("the detached", || {
        (docker.exec(&[], &["ls", "/detached"]).code == 0).then_some(())
    });
    let (mut terminal, slave) = Terminal::open();
    let mut command = docker.command(&["exec", "--interactive", "--tty", "it", "sh"]);
    let again = || slave.try_clone().unwrap();
    let mut child = command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
    drop((slave, command));
    terminal.expect("# ");
    terminal.type_in("tty; exit 5\n");
    let text = terminal.rest();
    assert_eq!(child.wait().unwrap().code(), Some(5), "{text}");
    assert!(text.contains("/dev/pts/0"), "{text}");
}

fn docker_restarts_by_policy_and_tells_events(ctx: &Ctx, release: Release) {
    let docker = docker(ctx, release, &busybox(ctx));
    let flags = ["--detach", "--name=it", "--restart=on-failure:2"];
    docker.run("proa", &flags, &["sh", "-c", "echo again; exit 4"]).ok();
    eventually("two restarts", || {
        (docker.inspect("it", ".RestartCount") == "2" && docker.ended("it") == "exited 4").then_some(())
    });
    assert_eq!(docker.call(&["logs", "it"]).ok(), "again\nagain\nagain\n");
    let flags = ["--name=greedy", "--memory=20m", "--memory-swap=20m"];
    let said = docker.run("proa", &flags, &["sh", "-c", "x=a; while :; do x=$x$x; done"]);
    assert_eq!(said.code, 137, "{said:?}");
    eventually("the daemon's word", || {
        (docker.inspect("greedy", ".State.OOMKilled") == "true").then_some(())
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let until = format!("--until={}", now + 1);
    let events = docker.call(&[
        "events",
        "--since=1",
        &until,
        "--filter=container=greedy",
        "--format={{.Action}}",
    ]);
    let text = events.ok();
    for action in ["create", "start", "oom", "die"] {
        assert!(text.lines().any(|line| line == action), "no {action} in {text}");
    }
}

fn docker_keeps_containers_over_a_restart_of_the_daemon(ctx: &Ctx, release: Release) {
    let flags = ["--live-restore"];
    let mut docker = docker_with(ctx, release, &busybox(ctx), &flags);
    docker.run("proa", &["--detach", "--name=it"], &["sh", "-c", LOOP]).ok();
    let pid = docker.inspect("it", ".State.Pid");
    docker.restart(&flags);
    assert_eq!(docker.inspect("it", ".State.Pid"), pid);
    assert_eq!(docker.exec(&[], &["echo", "hi"]).ok(), "hi\n");
    docker.call(&["stop", "--time", "10", "it"]).ok();
    assert_eq!(docker.ended("it"), "exited 3");
    // Started by the new daemon.
    docker.call(&["start", "it"]).ok();
    assert_eq!(docker.exec(&[], &["echo", "hi"]).ok(), "hi\n");
}

fn docker_copies_and_commits(ctx: &Ctx, release: Release) {
    let docker = docker(ctx, release, &busybox(ctx));
    docker.run("proa", &["--detach", "--name=it"], &["sleep", "1000"]).ok();
    let file = docker.dir.join("file");
    fs::write(&file, "copied\n").unwrap();
    docker.call(&["cp", file.to_str().unwrap(), "it:/tmp/file"]).ok();
    assert_eq!(docker.exec(&[], &["cat", "/tmp/file"]).ok(), "copied\n");
    docker.call(&["commit", "it", "example.test/made"]).ok();
    let args = [
        "run",
        "--rm",
        "--runtime=proa",
        "--network=none",
        "example.test/made",
        "cat",
        "/tmp/file",
    ];
    assert_eq!(docker.call(&args).ok(), "copied\n");
    docker.call(&["restart", "--time", "0", "it"]).ok();
    docker.call(&["rm", "--force", "it"]).ok();
}

fn docker_runs_wasm(ctx: &Ctx, release: Release) {
    let docker = docker(ctx, release, &busybox_with_guest(ctx));
    let text = docker
        .run("proa-wasm", &["--rm"], &["/guest.wasm", "one", "two"])
        .code(3);
    assert!(text.contains("wasm two\n"), "{text}");
    docker
        .run("proa-wasm", &["--detach", "--name", "it"], &["/guest.wasm", "loop"])
        .ok();
    assert_eq!(docker.exec(&[], &["sh", "-c", "echo $FROM_IMAGE"]).ok(), "yes\n");
    docker.exec(&[], &["/guest.wasm", "again"]).code(2);
    docker.call(&["stop", "--time", "10", "it"]).ok();
    assert_eq!(docker.ended("it"), "exited 143");
    assert_eq!(docker.call(&["logs", "it"]).ok(), "ready\n");
    docker.call(&["rm", "it"]).ok();
    let said = docker.run("proa-wasm", &["--rm"], &["/component.wasm"]);
    said.refused(&["/component.wasm", "component"]);
}
