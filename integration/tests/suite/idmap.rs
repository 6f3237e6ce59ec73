//! Id-mapped mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proa_integration::{Bundle, Ctx, tests};
use serde_json::json;

tests! {
    idmapped_bind_mount .once().since_runc(1, 2);
    idmapped_source_made_by_an_earlier_mount .once().since_runc(1, 2);
    idmapped_source_made_by_an_earlier_mount_in_a_user_namespace .once().since_runc(1, 2);
    idmapped_source_below_a_symbolic_link_in_a_user_namespace .once().since_runc(1, 2);
    idmapped_file_system_that_cannot_be_mapped_in_a_user_namespace .once().since_runc(1, 2);
}

/// A directory with a file of user 1000.
fn source(ctx: &Ctx, name: &str) -> PathBuf {
    let dir = ctx.mkdir(name);
    fs::write(dir.join("file"), "data").unwrap();
    own(&dir.join("file"), 1000);
    dir
}

fn own(path: &Path, id: u32) {
    let done = Command::new("chown").arg(format!("{id}:{id}")).arg(path).status();
    assert!(done.unwrap().success());
}

fn idmapped(bundle: &Bundle, source: &Path, destination: &str) {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    bundle.mount(json!({
        "destination": destination, "type": "bind", "source": source, "options": ["rbind"],
        "uidMappings": map, "gidMappings": map
    }));
}

fn idmapped_bind_mount(ctx: &Ctx) {
    let dir = source(ctx, "src");
    let text = ctx.shell("stat -c '%u %g' /mnt/file", |b| {
        idmapped(b, &dir, "/mnt");
        b
    });
    assert_eq!(text, "101000 101000\n");
}

/// `/mnt`, and `/home` with an id map from what is seen at `/mnt` then.
fn chained(ctx: &Ctx, bundle: &Bundle) {
    let dir = source(ctx, "src");
    bundle.bind(&dir, "/mnt", &["rbind"]);
    idmapped(bundle, &bundle.path("/mnt"), "/home");
    bundle.sh("stat -c '%u %g' /mnt/file /home/file");
}

fn idmapped_source_made_by_an_earlier_mount(ctx: &Ctx) {
    let bundle = ctx.bundle();
    chained(ctx, &bundle);
    assert_eq!(ctx.run(&bundle).ok().stdout, "1000 1000\n101000 101000\n");
}

/// Only the container's init sees the source, and only the parent may map it.
fn idmapped_source_made_by_an_earlier_mount_in_a_user_namespace(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.userns(100_000);
    chained(ctx, &bundle);
    assert_eq!(ctx.run(&bundle).ok().stdout, "65534 65534\n1000 1000\n");
}

/// Outside of the root file system the parent opens it, with the host's rights, wherever links lead.
fn idmapped_source_below_a_symbolic_link_in_a_user_namespace(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.userns(100_000);
    let dir = source(ctx, "src");
    std::os::unix::fs::symlink(&dir, ctx.dir.join("link")).unwrap();
    idmapped(&bundle, &ctx.dir.join("link"), "/mnt");
    bundle.sh("stat -c '%u %g' /mnt/file");
    assert_eq!(ctx.run(&bundle).ok().stdout, "1000 1000\n");
}

/// What the parent can't map for init is the parent's to explain, and nothing is left.
fn idmapped_file_system_that_cannot_be_mapped_in_a_user_namespace(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.userns(100_000).bind(Path::new("/proc"), "/mnt", &["rbind"]);
    idmapped(&bundle, &bundle.path("/mnt"), "/home");
    ctx.run(&bundle).refused(&["failed to set MOUNT_ATTR_IDMAP on"]).code(1);
}
