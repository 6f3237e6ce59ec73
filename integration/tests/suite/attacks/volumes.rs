//! Volumes that somebody else shares, and links of an image that lead the runtime's own steps into them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proa_integration::{Bundle, Container, Ctx, Kind, Output, tests};
use serde_json::{Value, json};

use super::{arm, at, names, withstood};

tests! {
    a_copy_does_not_follow_a_volume_that_is_exchanged_meanwhile .once();
    a_tmpfs_becomes_read_only_where_it_was_mounted .once();
    a_mount_is_changed_where_it_was_mounted .once();
    what_is_copied_has_the_owner_of_its_contents .once().only_proa();
    a_volume_that_a_link_leads_to_dev_gets_no_devices .once()
        .not_for(&[(Kind::Runc, "makes devices in it"), (Kind::Crun, "makes devices in it")]);
    a_device_is_not_made_in_a_volume_that_a_link_leads_to .once()
        .not_for(&[(Kind::Runc, "makes them there"), (Kind::Crun, "makes them there")]);
    a_cover_is_not_led_out_of_a_volume .once()
        .not_for(&[(Kind::Runc, "covers what the link leads to"), (Kind::Crun, "covers what the link leads to")]);
    links_of_the_image_that_lead_to_no_device_are_followed .once();
}

/// A container that shares `volume` and exchanges `a` and `b` in it all the time.
fn exchange<'a>(ctx: &'a Ctx, volume: &Path) -> Container<'a> {
    let bundle = ctx.bundle();
    arm(ctx, &bundle)
        .bind(volume, "/vol", &["bind"])
        .args(&["attack", "swap", "/vol/a", "/vol/b", "100"]);
    let attacker = ctx.start(&bundle);
    attacker.says("swapping");
    attacker
}

/// A volume in which `a` is a directory with a set-id file and `b` a link to `/other`, where another volume is mounted; and that
/// other one, which is on another file system.
fn two_volumes(ctx: &Ctx) -> (PathBuf, PathBuf) {
    let (volume, other) = (ctx.mkdir("volume"), ctx.mkdir("other"));
    ctx.tmpfs(&other, "mode=755");
    fs::create_dir(volume.join("a")).unwrap();
    fs::write(volume.join("a/planted"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(volume.join("a/planted"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("/other", volume.join("b")).unwrap();
    (volume, other)
}

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

/// `tmpcopyup` copied into what was found at the mount's path, looked up a second time: into another volume, once the directory
/// had become a link to it.
fn a_copy_does_not_follow_a_volume_that_is_exchanged_meanwhile(ctx: &Ctx) {
    let (volume, other) = two_volumes(ctx);
    let _attacker = exchange(ctx, &volume);
    for _ in 0..20 {
        let bundle = ctx.bundle();
        bundle
            .bind(&volume, "/vol", &["bind"])
            .bind(&other, "/other", &["bind"]);
        // Each is a chance of its own.
        for _ in 0..10 {
            bundle.mount(tmpfs("/vol/a", &["tmpcopyup"]));
        }
        let out = ctx.run(&bundle);
        let made = names(&other);
        withstood!(made.is_empty(), "copied into another volume: {made:?}");
        out.ok();
    }
}

/// A read-only tmpfs is written to by the runtime at first. What was at its path when that was over became read-only.
fn a_tmpfs_becomes_read_only_where_it_was_mounted(ctx: &Ctx) {
    let (volume, other) = two_volumes(ctx);
    let bundle = ctx.bundle();
    bundle
        .bind(&volume, "/vol", &["bind"])
        .bind(&other, "/other", &["bind"])
        .mount(tmpfs("/vol/a", &["ro"]))
        .sh("touch /vol/away/x && echo written; touch /other/x || echo diverted; true");
    // What the attacker does between the mounts and the end, without having to hit that moment.
    at(
        &bundle,
        "createRuntime",
        &format!("cd {} && mv a away && mv b a", volume.display()),
    );
    let out = ctx.run(&bundle);
    withstood!(!out.stdout.contains("written"), "the tmpfs is writable");
    withstood!(!out.stdout.contains("diverted"), "another volume became read-only");
    out.ok();
}

/// Propagation and recursive flags were given to what a second look-up of the path found.
fn a_mount_is_changed_where_it_was_mounted(ctx: &Ctx) {
    let (volume, other) = two_volumes(ctx);
    let _attacker = exchange(ctx, &volume);
    let mut failed = Vec::new();
    for _ in 0..20 {
        let bundle = ctx.bundle();
        bundle
            .bind(&volume, "/vol", &["bind"])
            .bind(&other, "/other", &["bind"]);
        for _ in 0..10 {
            bundle.mount(json!({"destination": "/vol/a", "type": "tmpfs", "source": "changed", "options": ["rro"]}));
        }
        bundle.sh("awk '/ - tmpfs changed / && $6 !~ /^ro/' /proc/self/mountinfo");
        let out = ctx.run(&bundle);
        withstood!(out.stdout.is_empty(), "a mount is without its flags: {}", out.stdout);
        if out.code != 0 {
            failed.push(out);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// Owner and mode of a file were those that it had at a first look, its contents those of a second: what a user without
/// privileges had put there became a set-id file of root's. The attacker exchanges the two all the time.
fn what_is_copied_has_the_owner_of_its_contents(ctx: &Ctx) {
    let volume = ctx.mkdir("volume");
    let dir = volume.join("dir");
    fs::create_dir(&dir).unwrap();
    for (name, text, mode) in [("a", "of root's", 0o4755), ("b", "planted", 0o644)] {
        fs::write(dir.join(name), text).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let bundle = ctx.bundle();
    arm(ctx, &bundle)
        .bind(&volume, "/vol", &["bind"])
        .args(&["attack", "swap", "/vol/dir/a", "/vol/dir/b", "100"]);
    let attacker = ctx.start(&bundle);
    attacker.says("swapping");
    for _ in 0..20 {
        let bundle = ctx.bundle();
        bundle.bind(&volume, "/vol", &["bind"]);
        for index in 0..40 {
            fs::create_dir(bundle.path(&format!("/mnt/{index}"))).unwrap();
            // A bind mount for the copy to be made of, and the copy over it.
            bundle
                .bind(&dir, &format!("/mnt/{index}"), &["bind"])
                .mount(tmpfs(&format!("/mnt/{index}"), &["tmpcopyup"]));
        }
        bundle.sh("find /mnt -type f -perm -4000 -exec grep -l planted {} +; true");
        let out = ctx.run(&bundle);
        withstood!(
            out.stdout.is_empty(),
            "root's set-id bit is on what somebody else wrote: {}",
            out.stdout
        );
        out.ok();
    }
}

/// A bundle whose image has a link from `/data` to `target`, and a volume for `/data` with a file of its own in it.
fn led(ctx: &Ctx, target: &str) -> (Bundle, PathBuf) {
    let volume = ctx.mkdir("volume");
    fs::write(volume.join("ptmx"), "of the host").unwrap();
    let bundle = ctx.bundle();
    symlink(target, bundle.path("/data")).unwrap();
    bundle.writable().bind(&volume, "/data", &["bind"]);
    (bundle, volume)
}

fn untouched(volume: &Path, out: &Output) {
    let kept = fs::read_to_string(volume.join("ptmx")).unwrap_or_default();
    withstood!(kept == "of the host", "a file of a volume was removed: {out:?}");
    withstood!(names(volume) == ["ptmx"], "made in a volume: {:?}", names(volume));
}

/// The image has a link to `/dev` where a volume is to be: devices were made in the volume, and its file `ptmx` deleted.
fn a_volume_that_a_link_leads_to_dev_gets_no_devices(ctx: &Ctx) {
    for target in ["/dev", "dev", "/etc/../dev/.", "/mnt/there"] {
        let (bundle, volume) = led(ctx, target);
        symlink("../../dev", bundle.path("/mnt/there")).unwrap();
        let out = ctx.run(&bundle);
        untouched(&volume, &out);
        out.refused(&["\"/data\" leads to \"/dev\" by a symbolic link", "mounts[6]"]);
    }
    // Also where the image's own /dev is used.
    let (bundle, volume) = led(ctx, "/dev");
    super::without_dev(&bundle, &[]);
    let out = ctx.run(&bundle);
    untouched(&volume, &out);
    out.refused(&["\"/data\" leads to \"/dev\" by a symbolic link"]);
}

/// The same for a node that the bundle lists: its directory is a link of the image to a volume, or has become a volume by one.
fn a_device_is_not_made_in_a_volume_that_a_link_leads_to(ctx: &Ctx) {
    let device = |path: &str| json!([{"path": path, "type": "c", "major": 1, "minor": 5}]);
    let (bundle, volume) = led(ctx, "/dev/sub");
    bundle.set("/linux/devices", device("/dev/sub/made"));
    let out = ctx.run(&bundle);
    untouched(&volume, &out);
    out.refused(&["/dev/sub/made", "mounts[6]", "symbolic link"]);

    let volume = ctx.mkdir("other");
    fs::write(volume.join("ptmx"), "of the host").unwrap();
    let bundle = ctx.bundle();
    symlink("/vol", bundle.path("/link")).unwrap();
    bundle
        .writable()
        .bind(&volume, "/vol", &["bind"])
        .set("/linux/devices", device("/link/made"));
    let out = ctx.run(&bundle);
    untouched(&volume, &out);
    out.refused(&["/link/made", "mounts[6]", "symbolic link"]);

    // What the bundle itself wants in a volume is made there.
    bundle.set("/linux/devices", device("/vol/made"));
    ctx.run(&bundle).ok();
    let made = fs::symlink_metadata(volume.join("made")).unwrap();
    assert!(made.file_type().is_char_device());
    bundle.set("/linux/devices", json!([]));
}

/// What is to be masked or read-only in a shared volume has become a link to something else of the container, which is covered in
/// its place.
fn a_cover_is_not_led_out_of_a_volume(ctx: &Ctx) {
    let volume = ctx.mkdir("volume");
    fs::create_dir(volume.join("dir")).unwrap();
    fs::write(volume.join("dir/secret"), "secret").unwrap();
    symlink("/etc/passwd", volume.join("file")).unwrap();
    symlink("../home", volume.join("home")).unwrap();
    symlink("dir", volume.join("inside")).unwrap();
    let bundle = ctx.bundle();
    bundle.writable().bind(&volume, "/vol", &["bind"]).sh(
        "test -s /etc/passwd || echo masked; touch /home/x 2>/dev/null || echo read-only; cat /vol/dir/secret; touch /vol/dir/x",
    );
    let own = bundle.spec()["linux"].clone();
    for (field, path) in [("maskedPaths", "/vol/file"), ("readonlyPaths", "/vol/home")] {
        bundle
            .set("/linux", own.clone())
            .set(&format!("/linux/{field}"), json!([path]));
        let out = ctx.run(&bundle);
        withstood!(
            !out.stdout.contains("masked") && !out.stdout.contains("read-only"),
            "another path of the container is covered: {}",
            out.stdout
        );
        out.refused(&[field, path, "led out of a volume"]);
    }
    // Links that stay in the volume, and those of the image, lead where they say.
    symlink("/vol", bundle.path("/link")).unwrap();
    bundle
        .set("/linux", own)
        .set("/linux/maskedPaths", json!(["/link/inside/secret", "/vol/nothing"]));
    assert_eq!(ctx.run(&bundle).ok().stdout, "");
}

/// What images have: `/var/run`, `/var/lock` and `/run/shm` as links.
fn links_of_the_image_that_lead_to_no_device_are_followed(ctx: &Ctx) {
    let source = ctx.mkdir("source");
    fs::write(source.join("file"), "found\n").unwrap();
    let text = ctx.shell(
        "cat /run/secrets/x/file /dev/shm/file /run/lock/file; test -c /dev/null && echo null",
        |b| {
            for dir in ["/run", "/run/lock"] {
                fs::create_dir(b.path(dir)).unwrap();
            }
            symlink("/run", b.path("/var/run")).unwrap();
            symlink("../run/lock", b.path("/var/lock")).unwrap();
            symlink("/dev/shm", b.path("/run/shm")).unwrap();
            b.bind(&source, "/var/run/secrets/x", &["bind"])
                .bind(&source, "/run/shm", &["bind"])
                .bind(&source, "/var/lock", &["bind"])
        },
    );
    assert_eq!(text, "found\nfound\nfound\nnull\n");
}
