//! What a container is kept from, and given.

use super::super::podman::add_user;
use super::super::{busybox, own_namespaces, show_namespaces};
use super::*;

of_both! {
    docker_opens_and_closes_what_the_host_has .views(V1).seconds(120).not_for(NO_HYBRID);
    docker_shares_namespaces .views(V1).seconds(120).not_for(NO_HYBRID);
    docker_mounts .views(V1).seconds(120).not_for(NO_HYBRID);
    docker_remaps_users .views(V1).seconds(120).not_for(NO_HYBRID);
}

#[track_caller]
fn has_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|l| l == *line), "no {line:?} in {text}");
    }
}

fn docker_opens_and_closes_what_the_host_has(ctx: &Ctx, release: Release) {
    let docker = docker(ctx, release, &busybox(ctx));
    let flags = [
        "--cap-drop=ALL",
        "--cap-add=NET_ADMIN",
        "--security-opt=no-new-privileges",
        "--security-opt=apparmor=unconfined",
        "--ulimit=nofile=100:200",
        "--sysctl=kernel.msgmax=4096",
        "--oom-score-adj=300",
        "--shm-size=1m",
        "--hostname=here",
        "--group-add=77",
    ];
    let script = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; ulimit -n; cat /proc/sys/kernel/msgmax; \
        echo $(cat /proc/self/oom_score_adj) $(df -k /dev/shm | tail -n 1 | awk '{print $2}') $(hostname) $(id -G)";
    let text = docker.shell(&flags, script);
    let expected = [
        "CapEff:\t0000000000001000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "100",
        "4096",
    ];
    has_lines(&text, &expected);
    assert!(text.contains("300 1024 here 0 ") && text.ends_with("77\n"), "{text}");
    let profile = docker.dir.join("profile.json");
    let rules = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
    fs::write(&profile, rules).unwrap();
    let option = format!("--security-opt=seccomp={}", profile.display());
    let said = docker.run("proa", &["--rm", &option], &["mkdir", "/tmp/a"]);
    said.refused(&["Function not implemented"]);
    let text = docker.shell(
        &["--security-opt=seccomp=unconfined"],
        "grep Seccomp: /proc/self/status",
    );
    assert_eq!(text, "Seccomp:\t0\n");
    // Docker 20.10 asks for every capability there is, also for those that its own root has not.
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let complete = own.contains("CapBnd:\t000001ffffffffff");
    if complete || release == Release::Newer {
        let script = "grep Seccomp: /proc/self/status; grep -c ' /proc/' /proc/mounts; test -w /proc/sys && echo yes";
        has_lines(&docker.shell(&["--privileged"], script), &["Seccomp:\t0", "0", "yes"]);
    }
}

fn docker_shares_namespaces(ctx: &Ctx, release: Release) {
    let docker = docker(ctx, release, &busybox(ctx));
    let names = ["pid", "ipc", "uts", "net"];
    let show = show_namespaces(&names);
    let text = docker.shell(&["--pid=host", "--ipc=host", "--uts=host", "--network=host"], &show);
    assert_eq!(text.lines().collect::<Vec<_>>(), own_namespaces(&names));
    docker
        .run(
            "proa",
            &["--detach", "--name=it", "--ipc=shareable"],
            &["sleep", "1000"],
        )
        .ok();
    let show = show_namespaces(&["pid", "ipc", "net"]);
    let others = docker.exec(&[], &["sh", "-c", &show]).ok();
    let joined = ["--pid=container:it", "--ipc=container:it", "--network=container:it"];
    // The client may warn of what a network would lack.
    let text = docker.shell(&joined, &show);
    assert!(text.ends_with(&others), "{text} and {others}");
    let count = "grep -c proa-test /proc/self/cgroup || :";
    assert_eq!(docker.shell(&["--cgroupns=private"], count), "0\n");
    assert_ne!(docker.shell(&["--cgroupns=host"], count), "0\n");
}

fn docker_mounts(ctx: &Ctx, release: Release) {
    let docker = docker(ctx, release, &busybox(ctx));
    let dir = ctx.mkdir("volume");
    fs::write(dir.join("file"), "of the host\n").unwrap();
    let bind = format!("--mount=type=bind,src={},dst=/v,readonly", dir.display());
    let flags = [
        "--read-only",
        "--tmpfs=/t:size=1m,mode=700",
        "--mount=type=tmpfs,dst=/u,tmpfs-size=1m",
        "--volume=named:/n",
        &bind,
        "--workdir=/made",
    ];
    let script = "touch /t/x /u/x /n/x && stat -c %a /t; cat /v/file; (touch /v/x) 2>&1; (touch /x) 2>&1; pwd";
    let text = docker.shell(&flags[..5], script);
    let read_only = ["touch: /v/x: Read-only file system", "touch: /x: Read-only file system"];
    has_lines(&text, &[&["700", "of the host", "/"], &read_only[..]].concat());
    assert_eq!(docker.shell(&flags[3..], "ls /n; pwd"), "x\n/made\n");
}

fn docker_remaps_users(ctx: &Ctx, release: Release) {
    add_user(ctx, "remap", 4711, &[]);
    let docker = docker_with(ctx, release, &busybox(ctx), &["--userns-remap=remap"]);
    let show = "id -u; tr -s ' ' < /proc/self/uid_map";
    assert_eq!(docker.shell(&[], show), "0\n 0 300000 65536\n");
    assert_eq!(docker.shell(&["--userns=host"], show), "0\n 0 0 4294967295\n");
    let text = docker.shell(
        &["--user=1000", "--volume=named:/n", "--sysctl=net.ipv4.ip_forward=1"],
        "id -u; stat -c %u /n",
    );
    assert_eq!(text, "1000\n0\n");
    docker
        .run("proa", &["--detach", "--name=it", "--memory=64m"], &["sleep", "1000"])
        .ok();
    assert_eq!(
        docker.exec(&["--user=1000"], &["sh", "-c", show]).ok(),
        "1000\n 0 300000 65536\n"
    );
    docker.call(&["stop", "--time", "0", "it"]).ok();
}
