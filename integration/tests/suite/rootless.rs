//! Containers of an unprivileged user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proa_integration::{Bundle, Call, Ctx, Kind, tests};
use serde_json::json;

tests! {
    rootless_runs_with_only_its_own_id_mapped .once();
    rootless_maps_a_range_with_newuidmap .once().not_for(&[(Kind::Crun, "1.8 needs a user session")]);
    rootless_maps_foreign_ids_only_by_subuid .once();
    rootless_without_newuidmap_has_its_own_id .once();
    rootless_create_start_exec_delete .once();
    rootless_exec_without_pidfds .once().only_proa();
    rootless_root_inside_is_the_user_outside .once();
    rootless_spec_runs .once();
    rootless_runtime_directory_comes_from_xdg .once().only_proa();
    rootless_groups_are_denied_to_a_single_id_and_allowed_to_a_range .once();
    rootless_ids_beyond_the_mapping_are_refused .once();
    rootless_additional_groups_are_refused .once().not_for(&[(Kind::Crun, "ignores them")]);
    rootless_needs_a_user_namespace .once().not_for(&[(Kind::Crun, "makes one")]);
    rootless_sysfs_without_a_network_namespace_is_the_hosts .once();
    rootless_devpts_of_an_unmapped_group_is_refused .once().not_for(&[(Kind::Crun, "leaves the option out")]);
    rootless_devices_are_the_hosts .once();
    rootless_time_namespace .once().since_runc(1, 2);
    root_of_a_user_namespace_maps_without_help .once();
}

/// Its id, and its group's.
pub const USER: u32 = 12_345;

/// A bundle and a state directory of an unprivileged user.
pub struct World<'a> {
    ctx: &'a Ctx,
    pub bundle: Bundle,
    root: PathBuf,
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
    pub fn call(&self, args: &[&str]) -> Call {
        self.bare(args).uid(USER)
    }

    /// A call as whoever the test runs as.
    pub fn bare(&self, args: &[&str]) -> Call {
        let mut all = vec!["--root", self.root.to_str().unwrap()];
        all.extend(args);
        self.ctx
            .bare_call(&all)
            .env("XDG_RUNTIME_DIR", self.root.to_str().unwrap())
            .env("HOME", "/tmp")
            .env("USER", "proa-tester")
            .env("DBUS_SESSION_BUS_ADDRESS", "")
    }

    pub fn run(&self) -> proa_integration::Output {
        self.run_with(&[])
    }

    /// `run` with these global flags.
    pub fn run_with(&self, flags: &[&str]) -> proa_integration::Output {
        let id = self.ctx.id();
        let verb = ["run", "--bundle", self.bundle.dir.to_str().unwrap(), &id];
        self.call(&[flags, &verb].concat()).output()
    }

    pub fn map(&self, map: serde_json::Value) -> &Self {
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

fn rootless_without_newuidmap_has_its_own_id(ctx: &Ctx) {
    let world = world(ctx);
    let bundle = world.bundle.dir.to_str().unwrap();
    world.bundle.sh("id -u");
    let run = || {
        let call = world.call(&["run", "--bundle", bundle, &ctx.id()]);
        call.env("PATH", "/nonexistent").output()
    };
    assert_eq!(run().ok().text(), "0");
    world.map(
        json!([{"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": 300_000, "size": 65535}]),
    );
    run().refused(&["newuidmap"]).code(1);
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

fn rootless_groups_are_denied_to_a_single_id_and_allowed_to_a_range(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.sh("cat /proc/self/setgroups");
    assert_eq!(world.run().ok().text(), "deny");
    world.map(
        json!([{"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": 300_000, "size": 65535}]),
    );
    assert_eq!(world.run().ok().text(), "allow");
}

fn rootless_ids_beyond_the_mapping_are_refused(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.set("/process/user", json!({"uid": 5000, "gid": 0}));
    world
        .run()
        .refused(&["cannot setuid to unmapped uid 5000 in user namespace", "setresuid"])
        .code(1);
    world.bundle.set("/process/user", json!({"uid": 0, "gid": 5000}));
    world
        .run()
        .refused(&["cannot setgid to unmapped gid 5000 in user namespace", "setresgid"])
        .code(1);
}

fn rootless_additional_groups_are_refused(ctx: &Ctx) {
    let world = world(ctx);
    world
        .bundle
        .set("/process/user", json!({"uid": 0, "gid": 0, "additionalGids": [5]}));
    world
        .run()
        .refused(&["cannot set any additional groups in a rootless container"])
        .code(1);
}

fn rootless_needs_a_user_namespace(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.without_namespaces(&["user"]).edit(|s| {
        for key in ["uidMappings", "gidMappings"] {
            s["linux"].as_object_mut().unwrap().remove(key);
        }
    });
    world
        .run()
        .refused(&["rootless container requires user namespaces"])
        .code(1);
}

/// A sysfs of its own shows the network namespace's devices, which are not the user's to show.
fn rootless_sysfs_without_a_network_namespace_is_the_hosts(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.edit(|s| {
        for mount in s["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/sys" {
                *mount = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]});
            }
        }
    });
    world
        .bundle
        .sh("test -d /sys/kernel && awk '$5 == \"/sys\" {print $6}' /proc/self/mountinfo");
    let out = world.run();
    let text = out.ok().text();
    assert!(text.split(',').any(|option| option == "ro"), "{text}");
}

fn rootless_devpts_of_an_unmapped_group_is_refused(ctx: &Ctx) {
    let world = world(ctx);
    let devpts = |s: &mut serde_json::Value| {
        for mount in s["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/dev/pts" {
                mount["options"] = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]);
            }
        }
    };
    world.bundle.edit(devpts);
    world
        .run()
        .refused(&["cannot specify gid=5 mount option for rootless container"])
        .code(1);
    world.map(
        json!([{"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": 300_000, "size": 65535}]),
    );
    world
        .bundle
        .sh("awk '$5 == \"/dev/pts\" {print $NF}' /proc/self/mountinfo");
    let out = world.run();
    // The kernel shows the id as the reader's namespace has it, or the host's.
    assert!(out.ok().text().contains("gid="), "{out:?}");
}

/// mknod(2) is not for users.
fn rootless_devices_are_the_hosts(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.sh(
        "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; grep -q \" /dev/$d \" \
         /proc/self/mountinfo || echo $d not mounted; done; echo lost > /dev/null; head -c 3 /dev/zero | wc -c",
    );
    assert_eq!(world.run().ok().text(), "3");
}

fn rootless_time_namespace(ctx: &Ctx) {
    let world = world(ctx);
    world
        .bundle
        .namespace("time", None)
        .set(
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 100_000_000, "nanosecs": 0}}),
        )
        .sh("cut -d. -f1 /proc/uptime");
    let uptime = || world.run().ok().text().parse::<u64>().unwrap();
    assert!(uptime() > 100_000_000);
    world.map(
        json!([{"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": 300_000, "size": 65535}]),
    );
    assert!(uptime() > 100_000_000);
}

/// As podman calls its runtime: root of a user namespace has every right over the ids that are mapped there, and newuidmap
/// would look for its uid in vain.
fn root_of_a_user_namespace_maps_without_help(ctx: &Ctx) {
    let world = world(ctx);
    world.map(json!([{"containerID": 0, "hostID": 0, "size": 1}, {"containerID": 1, "hostID": 10, "size": 20}]));
    world.bundle.sh("id -u; cat /proc/self/uid_map | wc -l");
    let id = ctx.id();
    let call = world.bare(&["run", "--bundle", world.bundle.dir.to_str().unwrap(), &id]);
    assert_eq!(as_root_of_a_user_namespace(call).ok().stdout, "0\n2\n");
}

/// Makes `call` as root of a user namespace in which the user and 65535 further ids are mapped.
pub fn as_root_of_a_user_namespace(call: Call) -> proa_integration::Output {
    // Somebody to make the namespace, and to keep it.
    let mut keeper = Command::new("unshare")
        .args(["--user", "sleep", "1000"])
        .spawn()
        .unwrap();
    let proc = PathBuf::from(format!("/proc/{}", keeper.id()));
    proa_integration::ctx::eventually("the user namespace", || {
        let (own, its) = (fs::read_link("/proc/self/ns/user"), fs::read_link(proc.join("ns/user")));
        (own.unwrap() != its.unwrap()).then_some(())
    });
    for map in ["uid_map", "gid_map"] {
        fs::write(proc.join(map), format!("0 {USER} 1\n1 300000 65535\n")).unwrap();
    }
    let namespace = format!("--user={}", proc.join("ns/user").display());
    let out = call
        .under(&["nsenter", &namespace, "--setuid", "0", "--setgid", "0"])
        .output();
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    out
}
