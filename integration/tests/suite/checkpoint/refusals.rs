//! What cannot be checkpointed or restored: why, and that nothing is half made or half gone.

use std::fs;

use proa_integration::ctx::eventually;
use proa_integration::{Ctx, Kind, tests};
use serde_json::json;

use super::{IGNORE, ask, bundle, checkpoint, images, null, restore, start};

tests! {
    only_running_containers_are_checkpointed .once();
    rootless_containers_are_refused .once().only_proa();
    wasm_containers_are_refused .once().only_proa();
    id_mapped_volumes_are_refused .once().only_proa();
    a_missing_criu_is_named .once();
    a_failed_checkpoint_leaves_the_container_running .once().not_for(&[(Kind::Runc, "does not name the log")]);
    restore_without_images_is_refused .once().not_for(&[(Kind::Runc, "makes the directory")]);
    a_failed_restore_leaves_nothing .not_for(&[(Kind::Runc, "does not name the log")]);
    a_killed_restore_can_be_deleted .not_for(&[(Kind::Runc, "leaves the cgroup")]);
    an_id_in_use_is_refused .once();
    a_namespace_that_is_gone_is_refused .once();
    logs_go_to_the_work_path .once();
    criu_is_configured_by_the_annotation .once();
}

fn only_running_containers_are_checkpointed(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = ctx.create(&bundle);
    let refused = "Container cannot be checkpointed in created state";
    checkpoint(ctx, &container, &[]).refused(&[refused]);
    assert!(!images(ctx).exists(), "refused before anything is made");
    container.kill("KILL").stopped();
    checkpoint(ctx, &container, &[]).refused(&["Container cannot be checkpointed in stopped state"]);
    container.delete();
    checkpoint(ctx, &container, &[]).refused(&["container does not exist"]);
}

fn rootless_containers_are_refused(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let call = ctx.call(&["--rootless", "true", "checkpoint", &container.id]);
    let refused = "checkpoint is not possible for rootless containers: CRIU needs the host's root";
    call.output().refused(&[refused]);
    assert_eq!(container.status(), "running");
    let dir = bundle.dir.to_str().unwrap();
    let call = ctx.call(&["--rootless", "true", "restore", "-b", dir, "other"]);
    call.output()
        .refused(&["restore is not possible for rootless containers"]);
}

fn wasm_containers_are_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let source = "#include <unistd.h>\nint main(void) { for (;;) usleep(10000); }";
    let module = fs::read(proa_integration::wasm::compile(&ctx.dir, "loop", source, &[])).unwrap();
    fs::write(bundle.path("/loop.wasm"), module).unwrap();
    bundle
        .args(&["/loop.wasm"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    let container = ctx.start(&bundle);
    checkpoint(ctx, &container, &[]).refused(&["checkpoint is not possible for a Wasm container"]);
    assert_eq!(container.status(), "running");
    fs::create_dir(images(ctx)).unwrap();
    let other = ctx.container(&bundle);
    restore(ctx, &other, &bundle, &[]).refused(&["restore is not possible for a Wasm container"]);
    other.forget();
}

fn id_mapped_volumes_are_refused(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 65536}]);
    bundle.mount(
        json!({"destination": "/volume", "type": "bind", "source": ctx.mkdir("volume"),
                        "options": ["bind"], "uidMappings": map, "gidMappings": map}),
    );
    let container = start(ctx, &bundle);
    let refused = "an id-mapped mount can't be checkpointed";
    checkpoint(ctx, &container, &[]).refused(&[refused]);
    assert_eq!(container.status(), "running");
}

fn a_missing_criu_is_named(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let images = images(ctx);
    let images = images.to_str().unwrap();
    let call = ctx.call(&["checkpoint", "--image-path", images, &container.id]);
    let said = call.env("PATH", "/nowhere").output();
    said.refused(&["CRIU version check failed: exec: \"criu\": executable file not found in $PATH"]);
    assert_eq!(container.status(), "running");
    checkpoint(ctx, &container, &[]).ok();
    let dir = bundle.dir.to_str().unwrap();
    let call = ctx.call(&["restore", "-d", "--image-path", images, "-b", dir, &container.id]);
    call.env("PATH", "/nowhere")
        .output()
        .refused(&["executable file not found in $PATH"]);
    super::gone(&container);
    container.forget();
}

fn a_failed_checkpoint_leaves_the_container_running(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = ctx.container(&bundle);
    let dir = bundle.dir.to_str().unwrap();
    // Its stdout is a file of the host's, on a file system that is not mounted in the container.
    ctx.call(&["run", "-d", "-b", dir, &container.id]).output().ok();
    eventually("the program", || bundle.path("/up").exists().then_some(()));
    let word = ask(&container, &bundle);
    let said = checkpoint(ctx, &container, &[]);
    said.refused(&["criu failed: type DUMP"]);
    // The cause, from CRIU's log, and where that is.
    said.refused(&["Can't lookup mount"]);
    said.refused(&[&format!("log file: {}", images(ctx).join("dump.log").display())]);
    assert_eq!(container.status(), "running");
    assert_eq!(ask(&container, &bundle), word);
}

fn restore_without_images_is_refused(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = ctx.container(&bundle);
    let path = images(ctx);
    restore(ctx, &container, &bundle, &[]).refused(&[&format!("open {}", path.display())]);
    fs::create_dir(&path).unwrap();
    restore(ctx, &container, &bundle, &[]).refused(&[&format!("open {}", path.join("descriptors.json").display())]);
    super::gone(&container);
    container.forget();
}

fn a_failed_restore_leaves_nothing(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    let images = images(ctx);
    for entry in fs::read_dir(&images).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("mm-") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    let said = restore(ctx, &container, &bundle, &[]);
    said.refused(&["criu failed: type RESTORE"]);
    said.refused(&[&format!("log file: {}", images.join("restore.log").display())]);
    super::gone(&container);
    container.forget();
    assert!(!ctx.root.join(&container.id).exists());
    assert!(!container.cgroup_dir("devices").exists());
}

fn a_killed_restore_can_be_deleted(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    let hooks = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID; sleep 0.1"]}]});
    bundle.set("/hooks", hooks);
    restore(ctx, &container, &bundle, &[]).code(1009);
    // CRIU finds out that nobody listens any more, and ends what it has made.
    eventually("the end of CRIU", || {
        let procs = container.cgroup_dir("devices").join("cgroup.procs");
        fs::read_to_string(procs).unwrap_or_default().is_empty().then_some(())
    });
    container.verb(&["delete", "--force"]).ok();
    super::gone(&container);
    assert!(!container.cgroup_dir("devices").exists());
    assert!(bundle.path("/bin/busybox").exists(), "the root is untouched");
    bundle.set("/hooks", json!({}));
    restore(ctx, &container, &bundle, &[]).ok();
    assert_eq!(ask(&container, &bundle), word);
}

fn an_id_in_use_is_refused(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    checkpoint(ctx, &container, &["--leave-running"]).ok();
    restore(ctx, &container, &bundle, &[]).refused(&["container with given ID already exists"]);
    assert_eq!(ask(&container, &bundle), word);
    // Nor is the cgroup of one that runs taken.
    let other = ctx.container(&bundle);
    assert_ne!(restore(ctx, &other, &bundle, &[]).code, 0);
    super::gone(&other);
    other.forget();
    assert_eq!(ask(&container, &bundle), word);
}

fn a_namespace_that_is_gone_is_refused(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    bundle.namespace("network", Some("/nowhere/net"));
    restore(ctx, &container, &bundle, &[]).refused(&["/nowhere/net does not exist"]);
    bundle
        .namespace("network", None)
        .namespace("cgroup", Some("/proc/1/ns/cgroup"));
    restore(ctx, &container, &bundle, &[]).refused(&[
        "the cgroup namespace /proc/1/ns/cgroup can't be joined",
        "Do not know how to handle namespace",
    ]);
    super::gone(&container);
    container.forget();
}

fn logs_go_to_the_work_path(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let work = ctx.dir.join("work");
    let flags = ["--work-path", work.to_str().unwrap()];
    checkpoint(ctx, &container, &flags).ok();
    restore(ctx, &container, &bundle, &flags).ok();
    for log in ["dump.log", "restore.log"] {
        assert!(work.join(log).exists() && !images(ctx).join(log).exists(), "{log}");
    }
}

fn criu_is_configured_by_the_annotation(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let config = ctx.dir.join("criu.conf");
    fs::write(&config, "log-file=other.log\n").unwrap();
    bundle.set("/annotations", json!({"org.criu.config": config}));
    let container = start(ctx, &bundle);
    let (images, work) = (images(ctx), ctx.mkdir("work"));
    let mut args = vec![
        "checkpoint",
        "--image-path",
        images.to_str().unwrap(),
        "--work-path",
        work.to_str().unwrap(),
    ];
    args.extend(IGNORE);
    container.verb(&args).ok();
    assert!(work.join("other.log").exists() && !work.join("dump.log").exists());
    fs::remove_file(work.join("other.log")).unwrap();
    let dir = bundle.dir.to_str().unwrap();
    args[0] = "restore";
    args.extend(["-d", "-b", dir, &container.id]);
    ctx.call(&args).stdio(null()).output().ok();
    assert!(work.join("other.log").exists() && !work.join("restore.log").exists());
}
