//! Older kernels: the same behaviour when newer system calls answer ENOSYS.

use std::fs;

use proa_integration::{Bundle, Container, Ctx, Kind, Output, tests};
use serde_json::json;

tests! {
    without_clone3;
    without_openat2 .once();
    without_the_new_mount_calls .once();
    without_mount_setattr .once();
    without_open_tree .once();
    without_close_range .once();
    without_pidfds .once();
    without_faccessat2 .once();
    without_anything_newer_than_the_floor;
    user_namespaces_without_clone3 .once();
    recursive_ro_without_mount_setattr_is_refused .once().since_runc(1, 1);
}

/// All that Linux 4.18 lacks of what a runtime may use.
const NEWER: &str = "clone3,openat2,open_tree,move_mount,fsopen,fsconfig,fsmount,mount_setattr,close_range,pidfd_open,\
    pidfd_send_signal,faccessat2";

fn masked(ctx: &Ctx, names: &str, args: &[&str]) -> Output {
    ctx.call(args)
        .under(&[ctx.probe.to_str().unwrap(), "mask", names])
        .output()
}

/// A container with something of everything: mounts of all kinds, masks, a terminal-less program, exec, kill, delete.
fn whole_life(ctx: &Ctx, names: &str, change: impl FnOnce(&Bundle) -> &Bundle) {
    let dir = ctx.mkdir("source");
    fs::write(dir.join("file"), "bound").unwrap();
    let bundle = ctx.bundle();
    bundle
        .bind(&dir, "/mnt", &["rbind", "ro", "nosuid"])
        .file("/secret", "secret")
        .set("/linux/maskedPaths", json!(["/secret"]));
    bundle
        .mount(json!({"destination": "/fresh", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "noexec"]}));
    bundle.sh("cat /mnt/file /secret; touch /mnt/x 2>/dev/null || echo ro; touch /fresh/x && echo up; probe fds; exec sleep 1000");
    change(&bundle);
    let container: Container = ctx.container(&bundle);
    let out = ctx.dir.join("out");
    let create = ctx
        .create_call(&bundle, &container.id, &[])
        .under(&[ctx.probe.to_str().unwrap(), "mask", names]);
    let create = create.stdout_to(&out).output();
    assert_eq!(create.code, 0, "{create:?}");
    masked(ctx, names, &["start", &container.id]).ok();
    let text = proa_integration::ctx::eventually("the program", || {
        Some(fs::read_to_string(&out).unwrap()).filter(|t| t.contains("\n2 "))
    });
    assert!(text.starts_with("boundro\nup\n"), "{text}");
    assert_eq!(text.lines().count(), 5, "descriptors leak: {text}");
    assert_eq!(
        masked(ctx, names, &["exec", &container.id, "sh", "-c", "hostname; exit 7"])
            .code(7)
            .text(),
        "testhost"
    );
    masked(ctx, names, &["kill", &container.id, "KILL"]).ok();
    container.stopped();
    masked(ctx, names, &["delete", &container.id]).ok();
    container.forget();
    bundle.sh("exit 9");
    let id = ctx.id();
    masked(ctx, names, &["run", "--bundle", bundle.dir.to_str().unwrap(), &id]).code(9);
}

fn without_clone3(ctx: &Ctx) {
    whole_life(ctx, "clone3", |b| b);
}

fn without_openat2(ctx: &Ctx) {
    whole_life(ctx, "openat2", |b| b);
}

fn without_the_new_mount_calls(ctx: &Ctx) {
    whole_life(ctx, "fsopen,fsconfig,fsmount,move_mount,open_tree,mount_setattr", |b| b);
}

fn without_mount_setattr(ctx: &Ctx) {
    whole_life(ctx, "mount_setattr", |b| b);
}

fn without_open_tree(ctx: &Ctx) {
    whole_life(ctx, "open_tree", |b| b);
}

fn without_close_range(ctx: &Ctx) {
    whole_life(ctx, "close_range", |b| b);
}

fn without_pidfds(ctx: &Ctx) {
    whole_life(ctx, "pidfd_open,pidfd_send_signal", |b| b);
}

fn without_faccessat2(ctx: &Ctx) {
    whole_life(ctx, "faccessat2", |b| b);
}

fn without_anything_newer_than_the_floor(ctx: &Ctx) {
    whole_life(ctx, NEWER, |b| b);
}

fn user_namespaces_without_clone3(ctx: &Ctx) {
    whole_life(ctx, NEWER, |b| b.userns(200_000));
}

fn recursive_ro_without_mount_setattr_is_refused(ctx: &Ctx) {
    // A flag that cannot be applied must not be dropped: it protects something.
    let dir = ctx.mkdir("source");
    let bundle = ctx.bundle();
    bundle.bind(&dir, "/mnt", &["rbind", "rro"]);
    let out = masked(
        ctx,
        "mount_setattr",
        &["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()],
    );
    assert!(ctx.subject.kind == Kind::Crun || out.code != 0, "{out:?}");
}
