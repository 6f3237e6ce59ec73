//! podman of an unprivileged user, who may map 65536 further ids.

use std::os::unix::fs::PermissionsExt;

use proa_integration::Ctx;

use super::super::busybox;
use super::*;

of_both! {
    podman_of_a_user_runs_containers .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_of_a_user_maps_ids .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_of_a_user_confines .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_of_a_user_mounts_volumes .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_of_a_user_runs_a_pod .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_of_a_user_shows_why_a_container_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
}

const USER: u32 = 12_345;

/// Makes an unprivileged user known, in the test's own `/etc` only, with further ids, a runtime directory and what is `own`.
pub fn add_user(ctx: &Ctx, name: &str, user: u32, own: &[&Path]) {
    for (file, line) in [
        ("subuid", format!("{name}:300000:65536")),
        ("subgid", format!("{name}:300000:65536")),
        ("passwd", format!("{name}:x:{user}:{user}::/:/bin/sh")),
        ("group", format!("{name}:x:{user}:")),
    ] {
        let (copy, etc) = (ctx.dir.join(file), Path::new("/etc").join(file));
        let text = fs::read_to_string(&etc).unwrap_or_default();
        fs::write(&copy, format!("{line}\n{text}")).unwrap();
        ctx.host_mount(&["--bind", copy.to_str().unwrap()], &etc);
    }
    let runtime_dir = PathBuf::from(format!("/run/user/{user}"));
    fs::create_dir_all(&runtime_dir).unwrap();
    fs::set_permissions(&runtime_dir, fs::Permissions::from_mode(0o700)).unwrap();
    for own in own.iter().copied().chain([runtime_dir.as_path()]) {
        std::os::unix::fs::chown(own, Some(user), Some(user)).unwrap();
    }
}

/// podman of that release, called by the user, with that image.
pub fn podman_of_a_user<'a>(ctx: &'a Ctx, release: Release, image: &Path) -> Podman<'a> {
    ctx.tmpfs(Path::new("/run"), "mode=755");
    release.enter(ctx);
    let dir = ctx.mkdir("podman");
    add_user(ctx, "tester", USER, &[&dir]);
    let it = Podman {
        ctx,
        dir,
        user: Some(USER),
    };
    it.configure("cgroupfs");
    it.load(image);
    it
}

fn podman_of_a_user_runs_containers(ctx: &Ctx, release: Release) {
    let podman = podman_of_a_user(ctx, release, &busybox(ctx));
    let text = podman.shell(&[], "id -u; tr -s ' ' < /proc/self/uid_map");
    assert_eq!(text, format!("0\n 0 {USER} 1\n 1 300000 65536\n"));
    let script = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
    podman
        .run(&["--detach", "--name=it", "--init"], &["sh", "-c", script])
        .ok();
    assert_eq!(
        podman.call(&["exec", "--user", "1000", "it", "id", "-u"]).ok(),
        "1000\n"
    );
    let (terminal, mut child) = podman.on_terminal(&["exec", "--interactive", "--tty", "it", "tty"]);
    let text = terminal.rest();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{text}");
    assert!(text.contains("/dev/pts/0"), "{text}");
    let text = podman.call(&["top", "it", "user", "huser"]).ok();
    assert!(text.contains(&USER.to_string()), "{text}");
    podman.call(&["stop", "--time", "5", "it"]).ok();
    assert_eq!(podman.ended("it"), "exited 3");
    podman.call(&["start", "it"]).ok();
    podman.call(&["kill", "it"]).ok();
    assert_eq!(podman.call(&["wait", "it"]).ok(), "137\n");
    // The limit cannot be had, and podman says so; the container runs.
    let said = podman.run(&["--rm", "--memory=64m"], &["echo", "ran"]);
    assert!(said.ok().ends_with("ran\n"));
}

/// The runtime is called by root of podman's user namespace, where newuidmap(1) may nothing.
fn podman_of_a_user_maps_ids(ctx: &Ctx, release: Release) {
    let podman = podman_of_a_user(ctx, release, &busybox(ctx));
    let script = "id -u; id -g; touch /tmp/x; stat -c %u /tmp/x";
    let ids = |mode: &str| podman.shell(&[&format!("--userns={mode}")], script);
    assert_eq!(ids("keep-id"), format!("{USER}\n{USER}\n{USER}\n"));
    assert_eq!(ids("keep-id:uid=55,gid=66"), "55\n66\n55\n");
    assert_eq!(ids("nomap"), "0\n0\n0\n");
    assert_eq!(ids("host"), "0\n0\n0\n");
    assert_eq!(
        podman.shell(&["--userns=auto:size=200"], "awk '{print $3}' /proc/self/uid_map"),
        "200\n"
    );
    let text = podman.shell(&["--userns=keep-id", "--group-add=77"], "id -G");
    assert_eq!(text, format!("{USER} 77\n"));
}

fn podman_of_a_user_confines(ctx: &Ctx, release: Release) {
    let podman = podman_of_a_user(ctx, release, &busybox(ctx));
    let flags = [
        "--read-only",
        "--tmpfs=/t",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--device=/dev/null:/dev/nn",
        "--sysctl=net.ipv4.ip_forward=1",
        "--hostname=here",
    ];
    let script = "touch /t/x; touch /x 2>&1; grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; \
        echo x > /dev/nn && cat /proc/sys/net/ipv4/ip_forward; hostname";
    let text = podman.shell(&flags, script);
    let expected = [
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "1",
        "here",
    ];
    has_lines(&text, &[&expected[..], &["touch: /x: Read-only file system"]].concat());
    let text = podman.shell(&["--privileged"], "grep -E 'Seccomp:' /proc/self/status; ls /dev/null");
    has_lines(&text, &["Seccomp:\t0", "/dev/null"]);
    assert_eq!(
        podman.shell(
            &["--pid=host", "--ipc=host", "--uts=host", "--network=host"],
            "echo ran"
        ),
        "ran\n"
    );
    if ctx.subject.kind == proa_integration::Kind::Proa {
        assert_eq!(podman.shell(&["--cgroups=disabled"], "echo ran"), "ran\n");
    }
}

fn podman_of_a_user_mounts_volumes(ctx: &Ctx, release: Release) {
    use std::os::unix::fs::MetadataExt;
    let podman = podman_of_a_user(ctx, release, &busybox(ctx));
    let dir = podman.dir.join("volume");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "of the user\n").unwrap();
    for own in [dir.clone(), dir.join("file")] {
        std::os::unix::fs::chown(own, Some(USER), Some(USER)).unwrap();
    }
    let with = |options: &str| format!("--volume={}:/v{options}", dir.display());
    assert_eq!(
        podman.shell(&[&with(":z")], "cat /v/file; stat -c %u /v/file"),
        "of the user\n0\n"
    );
    assert_eq!(podman.shell(&[&with(":O")], "touch /v/x; ls /v"), "file\nx\n");
    let text = podman.shell(&["--userns=keep-id", &with("")], "stat -c %u /v/file; touch /v/made");
    assert_eq!(text, format!("{USER}\n"));
    assert_eq!(fs::metadata(dir.join("made")).unwrap().uid(), USER);
    assert_eq!(
        podman.shell(&["--user=1000", &with(":U")], "stat -c %u /v/file"),
        "1000\n"
    );
    assert_eq!(fs::metadata(dir.join("file")).unwrap().uid(), 300_999);
    // A file system of the host's: only its owner may have an id-mapped mount of it. (runc 1.1 knows none and mounts plainly.)
    let said = podman.run(&["--rm", "--userns=keep-id", &with(":idmap")], &["true"]);
    if ctx.subject.kind == proa_integration::Kind::Proa {
        said.refused(&["MOUNT_ATTR_IDMAP", "operation not permitted"]);
    }
}

fn podman_of_a_user_runs_a_pod(ctx: &Ctx, release: Release) {
    let podman = podman_of_a_user(ctx, release, &busybox(ctx));
    podman
        .call(&["pod", "create", "--name=pod", "--network=none", "--share=pid,ipc,net"])
        .ok();
    podman
        .run(&["--pod=pod", "--detach", "--name=one"], &["sleep", "1000"])
        .ok();
    let text = podman.run(&["--pod=pod", "--rm"], &["ps", "-o", "args"]).ok();
    assert!(text.contains("catatonit") && text.contains("sleep 1000"), "{text}");
    podman.call(&["pod", "rm", "--force", "--time", "0", "pod"]).ok();
}

fn podman_of_a_user_shows_why_a_container_did_not_start(ctx: &Ctx, release: Release) {
    let podman = podman_of_a_user(ctx, release, &busybox(ctx));
    let said = podman.run(&["--rm"], &["no-such-program"]);
    assert_eq!(said.code, 127, "{said:?}");
    said.refused(&["no-such-program"]);
    let said = podman.run(&["--rm"], &["/etc/passwd"]);
    assert_eq!(said.code, 126, "{said:?}");
    said.refused(&["/etc/passwd", "permission denied"]);
}
