//! Symbolic links of an image or of a shared volume, exchanged while the runtime makes mounts.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proa_integration::{Bundle, Container, Ctx, Kind, host, tests};
use serde_json::json;

use super::{arm, at, names, without_dev, withstood};

tests! {
    a_mount_does_not_follow_a_link_that_is_exchanged_meanwhile .once();
    nothing_is_made_on_the_host_through_a_link_that_is_exchanged_meanwhile .once().not_for(&[(Kind::Runc, "CVE-2024-45310")]);
    links_of_the_image_lead_no_mount_to_the_host .once();
    masks_use_the_real_null_device .once();
    masks_use_the_real_null_device_while_it_is_exchanged .once();
    copied_up_links_do_not_reach_the_host .once();
}

/// A volume in which `a`, a directory, and `b`, a link to `outside` on the host, are exchanged all the time by another
/// container that shares it.
struct Exchange<'a> {
    volume: PathBuf,
    outside: PathBuf,
    _attacker: Container<'a>,
}

impl Exchange<'_> {
    fn new(ctx: &Ctx) -> Exchange<'_> {
        let volume = ctx.mkdir("volume");
        let outside = ctx.mkdir("outside");
        fs::create_dir_all(volume.join("a/in")).unwrap();
        // On the host this is the test's own directory; in the container there is nothing of that name.
        symlink(&outside, volume.join("b")).unwrap();
        let bundle = ctx.bundle();
        arm(ctx, &bundle)
            .bind(&volume, "/vol", &["bind"])
            .args(&["attack", "swap", "/vol/a", "/vol/b", "50"]);
        let attacker = ctx.start(&bundle);
        attacker.says("swapping");
        Exchange {
            volume,
            outside,
            _attacker: attacker,
        }
    }
}

/// CVE-2021-30465: a mount point was looked up first and mounted on by its path afterwards, when a directory on the way was a
/// link. Whether the mount is where it should be is seen by a hook, in the container's mount namespace before it leaves the
/// host's root.
fn a_mount_does_not_follow_a_link_that_is_exchanged_meanwhile(ctx: &Ctx) {
    let exchange = Exchange::new(ctx);
    let source = ctx.mkdir("source");
    fs::create_dir(exchange.outside.join("in")).unwrap();
    let escaped = ctx.dir.join("escaped");
    for _ in 0..20 {
        let bundle = ctx.bundle();
        bundle
            .bind(&exchange.volume, "/vol", &["bind"])
            .bind(&source, "/vol/a/in", &["bind"])
            .mount(json!({"destination": "/vol/a/in", "type": "tmpfs", "source": "tmpfs"}));
        let script = format!(
            "if grep -F ' {}/in ' /proc/self/mountinfo; then echo >{}; fi; exit 0",
            exchange.outside.display(),
            escaped.display()
        );
        at(&bundle, "createContainer", &script);
        ctx.run(&bundle);
        withstood!(!escaped.exists(), "a mount was made on a directory of the host");
    }
}

/// CVE-2024-45310: what is missing of a mount point was made by its path, on the host once a directory on the way was a link.
fn nothing_is_made_on_the_host_through_a_link_that_is_exchanged_meanwhile(ctx: &Ctx) {
    let exchange = Exchange::new(ctx);
    let source = ctx.mkdir("source");
    let file = ctx.dir.join("file");
    fs::write(&file, "").unwrap();
    let before = host::mounts();
    for index in 0..20 {
        let bundle = ctx.bundle();
        bundle
            .bind(&exchange.volume, "/vol", &["bind"])
            .bind(&source, &format!("/vol/a/new{index}/below"), &["bind"])
            .bind(&file, &format!("/vol/a/file{index}"), &["bind"]);
        ctx.run(&bundle);
        let made = names(&exchange.outside);
        withstood!(made.is_empty(), "made on the host: {made:?}");
    }
    assert_eq!(host::mounts(), before);
}

/// A directory that every engine mounts on or makes files in is a link of the image to a directory of the host.
fn links_of_the_image_lead_no_mount_to_the_host(ctx: &Ctx) {
    let file = ctx.dir.join("hosts");
    fs::write(&file, "").unwrap();
    let links = ["/etc", "/dev/pts", "/dev/shm", "/dev/mqueue", "/tmp", "/var", "/run"];
    let chain = |bundle: &Bundle, link: &str, outside: &Path| {
        let at = bundle.path(link);
        if at.is_dir() {
            fs::remove_dir_all(&at).unwrap();
        }
        symlink(outside, at).unwrap();
    };
    for link in links {
        let outside = ctx.mkdir("outside");
        let bundle = ctx.bundle();
        chain(&bundle, link, &outside);
        without_dev(&bundle, &["/dev/pts", "/dev/shm", "/dev/mqueue"]);
        bundle
            .bind(&file, "/etc/hosts", &["bind"])
            .mount(json!({"destination": "/tmp/a", "type": "tmpfs", "source": "tmpfs"}))
            .mount(json!({"destination": "/var/run/secrets", "type": "tmpfs", "source": "tmpfs"}))
            .mount(json!({"destination": "/run/lock", "type": "tmpfs", "source": "tmpfs"}));
        let escaped = ctx.dir.join("escaped");
        let script = format!(
            "if grep -F ' {}' /proc/self/mountinfo; then echo >{}; fi; exit 0",
            outside.display(),
            escaped.display()
        );
        at(&bundle, "createContainer", &script);
        ctx.run(&bundle);
        let made = names(&outside);
        withstood!(made.is_empty(), "{link}: made on the host: {made:?}");
        withstood!(!escaped.exists(), "{link}: a mount was made on a directory of the host");
    }
}

/// CVE-2025-31133: `/dev/null` of the image is a link, and what it leads to is bound over the masked file: the attacker
/// chooses what is seen there, and where that can be written to, such as a file of /proc/sys that should be read-only.
fn masks_use_the_real_null_device(ctx: &Ctx) {
    let bundle = ctx.bundle();
    without_dev(&bundle, &[])
        .file("/secret", "secret")
        .file("/etc/chosen", "chosen")
        .set("/linux/maskedPaths", json!(["/secret"]))
        .args(&["cat", "/secret"]);
    symlink("/etc/chosen", bundle.path("/dev/null")).unwrap();
    let out = ctx.run(&bundle);
    withstood!(
        !out.stdout.contains("chosen"),
        "the mask is a file of the attacker's choice"
    );
    withstood!(!out.stdout.contains("secret"), "the file is not masked");
}

/// The same as a race: `/dev` is a volume in which the device and a link are exchanged all the time.
fn masks_use_the_real_null_device_while_it_is_exchanged(ctx: &Ctx) {
    let volume = ctx.mkdir("volume");
    let real = ["c", "1", "3"];
    let null = volume.join("null");
    let made = std::process::Command::new("mknod").arg(&null).args(real).status();
    assert!(made.unwrap().success());
    symlink("/etc/chosen", volume.join("other")).unwrap();
    let bundle = ctx.bundle();
    arm(ctx, &bundle)
        .bind(&volume, "/vol", &["bind"])
        .args(&["attack", "swap", "/vol/null", "/vol/other", "50"]);
    let attacker = ctx.start(&bundle);
    attacker.says("swapping");
    for _ in 0..20 {
        let bundle = ctx.bundle();
        without_dev(&bundle, &[])
            .bind(&volume, "/dev", &["bind"])
            .file("/secret", "secret")
            .file("/etc/chosen", "chosen")
            .set("/linux/maskedPaths", json!(["/secret"]))
            .args(&["cat", "/secret"]);
        let out = ctx.run(&bundle);
        withstood!(
            !out.stdout.contains("chosen"),
            "the mask is a file of the attacker's choice"
        );
        withstood!(!out.stdout.contains("secret"), "the file is not masked");
    }
}

/// `tmpcopyup` of a directory whose entries are links to the host's files copies the links.
fn copied_up_links_do_not_reach_the_host(ctx: &Ctx) {
    let marker = super::marker(ctx);
    let bundle = ctx.bundle();
    fs::create_dir(bundle.path("/data")).unwrap();
    symlink(&marker, bundle.path("/data/file")).unwrap();
    symlink(&ctx.dir, bundle.path("/data/dir")).unwrap();
    bundle
        .mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}))
        .sh("cat /data/file /data/dir/marker 2>/dev/null; true");
    let out = ctx.run(&bundle);
    withstood!(!out.stdout.contains("of the host"), "a file of the host was copied");
}
