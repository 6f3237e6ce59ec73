//! `/dev` of a hostile image.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};

use proa_integration::{Ctx, Kind, host, tests};
use serde_json::json;

use super::{names, without_dev, withstood};

tests! {
    a_dev_link_of_the_image_removes_and_makes_nothing_on_the_host .once()
        .not_for(&[(Kind::Runc, "CVE-2026-41579"), (Kind::Crun, "CVE-2026-47766")]);
    a_dev_link_of_the_image_puts_no_devices_into_a_volume .once()
        .not_for(&[(Kind::Runc, "CVE-2026-41579"), (Kind::Crun, "CVE-2026-47766")]);
    the_terminal_is_not_mounted_through_a_console_link .once().not_for(&[(Kind::Runc, "CVE-2025-52565")]);
    the_terminal_does_not_come_from_a_faked_multiplexer .once();
    devices_of_the_host_are_out_of_reach;
}

/// CVE-2026-41579 (runc), CVE-2026-47766 (crun): `/dev` of the image is a link, and below it `ptmx` is removed and links are
/// made by path, on the host.
fn a_dev_link_of_the_image_removes_and_makes_nothing_on_the_host(ctx: &Ctx) {
    let outside = ctx.mkdir("outside");
    fs::write(outside.join("ptmx"), "of the host").unwrap();
    let bundle = ctx.bundle();
    fs::remove_dir(bundle.path("/dev")).unwrap();
    symlink(&outside, bundle.path("/dev")).unwrap();
    without_dev(&bundle, &[]);
    ctx.run(&bundle);
    let kept = fs::read_to_string(outside.join("ptmx")).unwrap_or_default();
    withstood!(kept == "of the host", "a file of the host was removed");
    withstood!(names(&outside) == ["ptmx"], "made on the host: {:?}", names(&outside));
}

/// The same with a link to a volume, which a resolver that stays in the container's root takes: device nodes must never appear
/// in a directory of the host, where somebody else may open them.
fn a_dev_link_of_the_image_puts_no_devices_into_a_volume(ctx: &Ctx) {
    let volume = ctx.mkdir("volume");
    let bundle = ctx.bundle();
    fs::remove_dir(bundle.path("/dev")).unwrap();
    symlink("/vol", bundle.path("/dev")).unwrap();
    without_dev(&bundle, &[]).bind(&volume, "/vol", &["bind"]);
    ctx.run(&bundle);
    withstood!(
        names(&volume).is_empty(),
        "devices were made in a volume: {:?}",
        names(&volume)
    );
}

/// CVE-2025-52565: `/dev/console` of the image is a link, and the terminal is mounted over what it leads to, before paths are
/// masked and made read-only: over a file of the attacker's choice.
fn the_terminal_is_not_mounted_through_a_console_link(ctx: &Ctx) {
    let bundle = ctx.bundle();
    without_dev(&bundle, &["/dev/pts"])
        .file("/victim", "untouched")
        .set("/process/terminal", json!(true))
        .sh("if test -c /victim; then touch /covered; fi");
    fs::create_dir(bundle.path("/dev/pts")).unwrap();
    symlink("/victim", bundle.path("/dev/console")).unwrap();
    let socket = proa_integration::console::ConsoleSocket::new(&ctx.dir);
    let container = ctx.container(&bundle);
    let flags = ["--console-socket", socket.path.to_str().unwrap()];
    let out = ctx.create_call(&bundle, &container.id, &flags).output();
    if out.code == 0 {
        container.start().stopped();
    }
    withstood!(
        !bundle.path("/covered").exists(),
        "the terminal covers a file of the attacker's choice"
    );
    out.refused(&["/dev/console"]);
    assert!(!host::mounts().iter().any(|mount| mount.contains("victim")));
}

/// CVE-2025-52565's other half: `/dev/pts/ptmx` of the image is a file that the runtime would open, chown and hand out.
fn the_terminal_does_not_come_from_a_faked_multiplexer(ctx: &Ctx) {
    let bundle = ctx.bundle();
    without_dev(&bundle, &[])
        .file("/dev/pts/ptmx", "faked")
        .set("/process/terminal", json!(true));
    let socket = proa_integration::console::ConsoleSocket::new(&ctx.dir);
    let container = ctx.container(&bundle);
    let flags = ["--console-socket", socket.path.to_str().unwrap()];
    ctx.create_call(&bundle, &container.id, &flags)
        .output()
        .refused(&["ptmx"]);
    container.forget();
    let kind = fs::metadata(bundle.path("/dev/pts/ptmx")).unwrap().file_type();
    assert!(!kind.is_char_device());
}

/// What the image or the container makes by mknod(2) can't be opened.
fn devices_of_the_host_are_out_of_reach(ctx: &Ctx) {
    let text = ctx.shell("mknod /tmp/d b 7 0 && probe open /tmp/d r || echo no node", |b| {
        b.writable().caps(&["CAP_MKNOD", "CAP_DAC_OVERRIDE"])
    });
    withstood!(!text.contains("ok"), "a device of the host was opened");
    assert!(text.contains("no node") || text.contains("errno"), "{text}");
}
