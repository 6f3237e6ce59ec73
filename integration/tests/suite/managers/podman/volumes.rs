//! Volumes and other mounts.

use std::os::unix::fs::MetadataExt;

use proa_integration::Ctx;

use super::super::busybox;
use super::*;

of_both! {
    podman_mounts_volumes .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_changes_the_owner_of_volumes .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_maps_the_owners_of_volumes .views(V1).seconds(120).only_proa();
    podman_mounts_file_systems .views(V1).seconds(120).not_for(NO_HYBRID);
}

/// A directory of the host with a file in it.
fn volume(ctx: &Ctx) -> PathBuf {
    let dir = ctx.mkdir("volume");
    fs::write(dir.join("file"), "of the host\n").unwrap();
    dir
}

fn podman_mounts_volumes(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let dir = volume(ctx);
    let with = |options: &str| format!("--volume={}:/v{options}", dir.display());
    for options in [":z", ":Z"] {
        assert_eq!(podman.shell(&[&with(options)], "cat /v/file"), "of the host\n");
    }
    let text = podman.shell(&[&with(":ro")], "cat /v/file; touch /v/x 2>&1; :");
    assert_eq!(text, "of the host\ntouch: /v/x: Read-only file system\n");
    // An overlay: the container's writing stays its own.
    let text = podman.shell(&[&with(":O")], "touch /v/x; ls /v");
    assert_eq!(text, "file\nx\n");
    assert!(!dir.join("x").exists());
    let text = podman.shell(
        &[&with(":rshared")],
        "grep ' /v ' /proc/self/mountinfo | cut -d ' ' -f 7",
    );
    assert!(text.starts_with("shared:"), "{text}");
    let mount = format!("--mount=type=bind,src={}/file,dst=/a/b/file,ro", dir.display());
    assert_eq!(podman.shell(&[&mount], "cat /a/b/file"), "of the host\n");
    assert_eq!(podman.shell(&["--volume=named:/n"], "touch /n/x; ls /n"), "x\n");
    assert_eq!(podman.shell(&["--volume=named:/n:nocopy"], "ls /n"), "x\n");
}

fn podman_changes_the_owner_of_volumes(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let dir = volume(ctx);
    let option = format!("--volume={}:/v:U", dir.display());
    let owner = || fs::metadata(dir.join("file")).unwrap().uid();
    let text = podman.shell(&[&option, "--user=1000"], "stat -c %u /v/file");
    assert_eq!((text.as_str(), owner()), ("1000\n", 1000));
    let flags = [&option, "--uidmap=0:100000:5000", "--gidmap=0:100000:5000"];
    assert_eq!(podman.shell(&flags, "stat -c %u /v/file; touch /v/made"), "0\n");
    assert_eq!(owner(), 100_000);
    assert_eq!(fs::metadata(dir.join("made")).unwrap().uid(), 100_000);
}

fn podman_maps_the_owners_of_volumes(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let dir = volume(ctx);
    let option = format!("--volume={}:/v:idmap", dir.display());
    let flags = [&option, "--uidmap=0:100000:5000", "--gidmap=0:100000:5000"];
    assert_eq!(podman.shell(&flags, "stat -c %u /v/file; touch /v/made"), "0\n");
    assert_eq!(fs::metadata(dir.join("made")).unwrap().uid(), 0);
}

fn podman_mounts_file_systems(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let flags = [
        "--mount=type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1750",
        "--tmpfs=/u:size=1m,mode=700,noexec",
        "--mount=type=devpts,destination=/dev/other",
        &format!("--mount=type=image,source={IMAGE},destination=/img"),
    ];
    let script = "stat -c %a /t /u; df -k /t | tail -n 1 | awk '{print $2}'; grep ' /u ' /proc/mounts; ls /dev/other; \
        cat /img/etc/hostname /img/etc/passwd | grep -c root";
    let text = podman.shell(&flags, script);
    has_lines(&text, &["1750", "700", "1024", "ptmx", "1"]);
    assert!(text.contains("noexec"), "{text}");
}
