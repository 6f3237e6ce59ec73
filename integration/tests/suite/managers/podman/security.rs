//! What a container is kept from, and given.

use proa_integration::Ctx;

use super::super::{busybox, own_namespaces, show_namespaces};
use super::*;

of_both! {
    podman_opens_and_closes_what_the_host_has .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_applies_a_seccomp_profile .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_masks_and_unmasks .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_gives_every_privilege .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_shares_namespaces .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_maps_users .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_sets_limits_of_processes_and_sysctls .views(V1).seconds(120).not_for(NO_HYBRID);
}

fn podman_opens_and_closes_what_the_host_has(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let script = "(: < /dev/ff && echo read) 2>&1; (: > /dev/ff && echo written) 2>&1; :";
    let text = podman.shell(&["--device=/dev/fuse:/dev/ff"], script);
    assert_eq!(text, "read\nwritten\n");
    let text = podman.shell(&["--device=/dev/fuse:/dev/ff:r"], script);
    assert!(
        text.starts_with("read\n") && text.contains("Operation not permitted"),
        "{text}"
    );
    let text = podman.shell(
        &["--cap-add=NET_ADMIN", "--cap-drop=CHOWN"],
        "grep CapEff /proc/self/status",
    );
    let effective = u64::from_str_radix(text.trim_end().trim_start_matches("CapEff:\t"), 16).unwrap();
    assert_eq!(effective & (1 | 1 << 12), 1 << 12, "{text}");
    // The capability is in the ambient set, or it would be gone for such a user.
    let text = podman.shell(
        &["--user=1000", "--cap-add=NET_RAW"],
        "grep -E 'CapEff|CapAmb' /proc/self/status",
    );
    has_lines(&text, &["CapEff:\t0000000000002000", "CapAmb:\t0000000000002000"]);
    let text = podman.shell(
        &["--read-only"],
        "(touch /x) 2>&1; touch /tmp/x /run/x /dev/shm/x && echo ok",
    );
    assert_eq!(text, "touch: /x: Read-only file system\nok\n");
}

fn podman_applies_a_seccomp_profile(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let profile = podman.dir.join("profile.json");
    let rules = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
    fs::write(&profile, rules).unwrap();
    let option = format!("--security-opt=seccomp={}", profile.display());
    let said = podman.run(&["--rm", &option], &["mkdir", "/tmp/a"]);
    said.refused(&["Function not implemented"]);
    let status = "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status";
    let text = podman.shell(&["--security-opt=seccomp=unconfined"], status);
    has_lines(&text, &["NoNewPrivs:\t0", "Seccomp:\t0"]);
    let text = podman.shell(
        &["--security-opt=no-new-privileges", "--security-opt=label=disable"],
        status,
    );
    has_lines(&text, &["NoNewPrivs:\t1", "Seccomp:\t2"]);
}

fn podman_masks_and_unmasks(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let count = "grep -c ' /proc/' /proc/mounts || :";
    assert_ne!(podman.shell(&[], count), "0\n");
    assert_eq!(podman.shell(&["--security-opt=unmask=ALL"], count), "0\n");
    let text = podman.shell(
        &["--security-opt=mask=/etc/passwd:/var"],
        "touch /tmp/x; cat /etc/passwd; ls /var; echo end",
    );
    assert_eq!(text, "end\n");
    let text = podman.shell(
        &["--security-opt=proc-opts=hidepid=2"],
        "grep ' /proc proc' /proc/mounts",
    );
    assert!(text.contains("hidepid"), "{text}");
}

fn podman_gives_every_privilege(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let script =
        "grep -E 'CapEff|Seccomp:' /proc/self/status; grep -c ' /proc/' /proc/mounts; test -w /proc/sys && echo yes";
    let text = podman.shell(&["--privileged"], script);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find(|line| line.starts_with("CapBnd")).unwrap();
    has_lines(&text, &["Seccomp:\t0", "0", "yes", &own.replace("CapBnd", "CapEff")]);
}

fn podman_shares_namespaces(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let names = ["pid", "ipc", "uts", "net"];
    let show = show_namespaces(&names);
    let text = podman.shell(&["--pid=host", "--ipc=host", "--uts=host", "--network=host"], &show);
    assert_eq!(text.lines().collect::<Vec<_>>(), own_namespaces(&names));
    podman.run(&["--detach", "--name=it"], &["sleep", "1000"]).ok();
    let others = podman.call(&["exec", "it", "sh", "-c", &show]).ok();
    let joined = [
        "--pid=container:it",
        "--ipc=container:it",
        "--uts=container:it",
        "--network=container:it",
    ];
    assert_eq!(podman.shell(&joined, &show), others);
    assert!(
        own_namespaces(&names).iter().all(|own| !others.contains(own)),
        "{others}"
    );
}

fn podman_maps_users(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    add_user(ctx, "containers", 4711, &[]);
    let show = "id -u; tr -s ' ' < /proc/self/uid_map";
    let text = podman.shell(&["--uidmap=0:100000:5000", "--gidmap=0:100000:5000"], show);
    assert_eq!(text, "0\n 0 100000 5000\n");
    assert_eq!(podman.shell(&["--userns=auto:size=2000"], show), "0\n 0 300000 2000\n");
}

fn podman_sets_limits_of_processes_and_sysctls(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let args = [
        "run",
        "--rm",
        "--network=none",
        "--ulimit=nofile=77:88",
        "--ulimit=core=0",
        "--ulimit=nproc=99:99",
        IMAGE,
    ];
    let script = "ulimit -n; ulimit -Hn; ulimit -c";
    let text = podman.call(&[&args[..], &["sh", "-c", script]].concat()).ok();
    assert_eq!(text, "77\n88\n0\n");
    let flags = ["--sysctl=net.ipv4.ip_forward=1", "--sysctl=kernel.shmmax=12345"];
    let text = podman.shell(&flags, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax");
    assert_eq!(text, "1\n12345\n");
}
