//! Containers of an unprivileged user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proa_integration::runner::USER;
use proa_integration::{Bundle, Call, Ctx, Kind, tests};
use serde_json::json;

tests! {
    rootless_runs_with_only_its_own_id_mapped .once();
    rootless_maps_a_range_with_newuidmap .once().not_for(&[(Kind::Crun, "1.8 needs a user session")]);
    rootless_maps_foreign_ids_only_by_subuid .once();
    rootless_create_start_exec_delete .once();
    rootless_exec_without_pidfds .once().only_proa();
    rootless_root_inside_is_the_user_outside .once();
    rootless_spec_runs .once();
    rootless_cannot_join_a_cgroup_that_is_not_its_own .once();
    rootless_runtime_directory_comes_from_xdg .once().only_proa();
}

/// What an unprivileged user has to work with.
pub struct World<'a> {
    /// The test's.
    pub ctx: &'a Ctx,
    /// A bundle that an unprivileged user can run.
    pub bundle: Bundle,
    /// The user's `--root`.
    pub root: PathBuf,
}

fn give(path: &Path) {
    assert!(
        Command::new("chown")
            .arg("-R")
            .arg(format!("{USER}:{USER}"))
            .arg(path)
            .status()
            .unwrap()
            .success()
    );
}

/// A bundle and a state directory of an unprivileged user who may map 65536 further ids.
pub fn world(ctx: &Ctx) -> World<'_> {
    let bundle = ctx.bundle();
    bundle.without_namespaces(&["network"]).namespace("user", None).edit(|s| {
        s["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        s["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        for key in ["cgroupsPath", "resources"] {
            s["linux"].as_object_mut().unwrap().remove(key);
        }
        for mount in s["mounts"].as_array_mut().unwrap() {
            // Only one group is mapped; and sysfs belongs to a network namespace that is not the user's.
            if mount["destination"] == "/dev/pts" {
                mount["options"] = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
            }
            if mount["destination"] == "/sys" {
                *mount = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
            }
        }
    });
    let root = ctx.mkdir("user-root");
    give(&bundle.dir);
    give(&root);
    fs::set_permissions(&ctx.dir, fs::Permissions::from_mode(0o777)).unwrap();
    // Private copies: the host's own are not touched.
    for (file, text) in [
        ("/etc/subuid", format!("{USER}:300000:65536\n")),
        ("/etc/subgid", format!("{USER}:300000:65536\n")),
        (
            "/etc/passwd",
            format!("root:x:0:0::/root:/bin/sh\nproa-tester:x:{USER}:{USER}::/tmp:/bin/sh\n"),
        ),
    ] {
        let copy = ctx.dir.join(file.rsplit('/').next().unwrap());
        fs::write(&copy, text).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).unwrap();
        if !fs::exists(file).unwrap() {
            continue;
        }
        ctx.host_mount(&["--bind", copy.to_str().unwrap()], Path::new(file));
    }
    World { ctx, bundle, root }
}

impl World<'_> {
    fn call(&self, args: &[&str]) -> Call {
        let mut all = vec!["--root", self.root.to_str().unwrap()];
        all.extend(args);
        self.ctx
            .bare_call(&all)
            .uid(USER)
            .env("XDG_RUNTIME_DIR", self.root.to_str().unwrap())
            .env("HOME", "/tmp")
            .env("USER", "proa-tester")
            .env("DBUS_SESSION_BUS_ADDRESS", "")
    }

    fn run(&self) -> proa_integration::Output {
        self.call(&["run", "--bundle", self.bundle.dir.to_str().unwrap(), &self.ctx.id()])
            .output()
    }

    fn map(&self, map: serde_json::Value) -> &Self {
        self.bundle
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map);
        self
    }
}

fn rootless_runs_with_only_its_own_id_mapped(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.sh("id -u; cat /proc/self/uid_map; hostname");
    let out = world.run();
    assert_eq!(
        out.ok().stdout.split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "12345", "1", "testhost"]
    );
}

fn rootless_maps_a_range_with_newuidmap(ctx: &Ctx) {
    let world = world(ctx);
    world.map(
        json!([{"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": 300_000, "size": 65535}]),
    );
    world
        .bundle
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .sh("id -u; id -g; cat /proc/self/uid_map | wc -l");
    assert_eq!(world.run().ok().stdout, "1000\n1000\n2\n");
}

fn rootless_maps_foreign_ids_only_by_subuid(ctx: &Ctx) {
    let world = world(ctx);
    world.map(json!([{"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": 1, "size": 10}]));
    world.run().refused(&["newuidmap", "newgidmap", "mapping"]);
    world.map(json!([{"containerID": 0, "hostID": 0, "size": 1}]));
    world
        .run()
        .refused(&["newuidmap", "newgidmap", "mapping", "not permitted"]);
}

fn rootless_create_start_exec_delete(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.args(&["sleep", "1000"]);
    let id = ctx.id();
    world
        .call(&["create", "--bundle", world.bundle.dir.to_str().unwrap(), &id])
        .output()
        .ok();
    world.call(&["start", &id]).output().ok();
    assert_eq!(world.call(&["exec", &id, "id", "-u"]).output().ok().text(), "0");
    assert_eq!(world.call(&["state", &id]).output().ok().json()["status"], "running");
    world.call(&["kill", &id, "KILL"]).output().ok();
    proa_integration::ctx::eventually("stopped", || {
        (world.call(&["state", &id]).output().ok().json()["status"] == "stopped").then_some(())
    });
    world.call(&["delete", &id]).output().ok();
    assert!(!world.root.join(&id).exists());
}

/// The user namespace, last in the configuration, gives the rights to join the others.
fn rootless_exec_without_pidfds(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.args(&["sleep", "1000"]);
    let id = ctx.id();
    let bundle = world.bundle.dir.to_str().unwrap();
    world.call(&["run", "--detach", "--bundle", bundle, &id]).output().ok();
    for names in ["pidfd_open", "setns-many"] {
        let exec = world.call(&["exec", &id, "id", "-u"]);
        let out = exec.under(&[ctx.probe.to_str().unwrap(), "mask", names]).output();
        assert_eq!(out.ok().text(), "0", "{names}");
    }
    world.call(&["delete", "--force", &id]).output().ok();
}

fn rootless_root_inside_is_the_user_outside(ctx: &Ctx) {
    use std::os::unix::fs::MetadataExt;
    let world = world(ctx);
    world.bundle.writable().sh("touch /tmp/mine");
    world.run().ok();
    assert_eq!(fs::metadata(world.bundle.path("/tmp/mine")).unwrap().uid(), USER);
}

fn rootless_spec_runs(ctx: &Ctx) {
    let world = world(ctx);
    fs::remove_file(world.bundle.dir.join("config.json")).unwrap();
    world.call(&["spec", "--rootless"]).cwd(&world.bundle.dir).output().ok();
    let path = world.bundle.dir.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["id", "-u"]);
    fs::write(&path, spec.to_string()).unwrap();
    assert_eq!(world.run().ok().text(), "0");
}

fn rootless_cannot_join_a_cgroup_that_is_not_its_own(ctx: &Ctx) {
    let world = world(ctx);
    world
        .bundle
        .set("/linux/cgroupsPath", json!(format!("{}/mine", ctx.cgroup_parent())))
        .set("/linux/resources/pids", json!({"limit": 5}));
    let out = world.run();
    if out.code != 0 {
        out.refused(&["cgroup", "permission"]);
    }
    assert!(!ctx.cgroup_dir("pids", &ctx.cgroup_parent()).exists());
}

fn rootless_runtime_directory_comes_from_xdg(ctx: &Ctx) {
    let world = world(ctx);
    let call = ctx
        .bare_call(&["list", "--quiet"])
        .uid(USER)
        .env("XDG_RUNTIME_DIR", world.root.to_str().unwrap());
    call.output().ok();
    world.bundle.args(&["sleep", "1000"]);
    let id = ctx.id();
    let user = |args: &[&str]| {
        ctx.bare_call(args)
            .uid(USER)
            .env("XDG_RUNTIME_DIR", world.root.to_str().unwrap())
            .output()
    };
    user(&["run", "--detach", "--bundle", world.bundle.dir.to_str().unwrap(), &id]).ok();
    assert_eq!(user(&["list", "--quiet"]).ok().text(), id);
    user(&["delete", "--force", &id]).ok();
}
