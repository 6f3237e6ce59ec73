//! Containers of an unprivileged user and cgroups: none, or such as somebody has delegated.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use proa_integration::ctx::eventually;
use proa_integration::{Call, Ctx, Kind, View, tests};
use serde_json::json;

use crate::rootless::{USER, World, as_root_of_a_user_namespace, world};

tests! {
    rootless_without_access_to_cgroups_goes_without .not_for(&[(Kind::Crun, "1.8 needs a user session")]);
    rootless_limits_without_access_to_cgroups_are_refused .not_for(&[(Kind::Crun, "1.8 needs a user session")]);
    rootless_cgroup_that_is_not_its_own_is_refused .not_for(&[(Kind::Crun, "1.8 needs a user session")]);
    rootless_pause_without_a_cgroup_is_refused .not_for(&[(Kind::Crun, "1.8 needs a user session")]);
    rootless_flag_says_whether_cgroups_are_needed .not_for(&[(Kind::Crun, "has no such flag")]);
    rootless_flag_of_host_root_is_about_cgroups_only .once().not_for(&[(Kind::Crun, "has no such flag")]);
    rootless_delegated_cgroup_has_every_verb .not_for(&[(Kind::Crun, "1.8 needs a user session")]);
    rootless_container_sees_its_own_cgroup_only .views(&[View::V2]).not_for(&[(Kind::Crun, "1.8 needs a user session")]);
    rootless_container_without_a_cgroup_sees_none .views(&[View::V2]).not_for(&[(Kind::Crun, "1.8 needs a user session")]);
    rootless_delegated_cgroup_is_used_from_outside .not_for(&[(Kind::Crun, "1.8 needs a user session")]);
    rootless_hybrid_host_that_delegates_v1_only .views(&[View::Hybrid]).not_for(&[(Kind::Crun, "refuses hybrid")]);
    rootless_systemd_cgroup_without_a_bus_is_refused .views(&[View::V2]).only_proa();
    root_of_a_user_namespace_asks_the_systemd_of_its_session_or_its_own .views(&[View::V2]).only_proa();
    rootless_without_cgroup_and_pid_namespace_is_warned_of .once().only_proa();
}

/// The hierarchies of the view, each with the directory of the cgroup `path` in it.
fn hierarchies(ctx: &Ctx, path: &str) -> Vec<PathBuf> {
    let names: &[&str] = match ctx.view {
        View::V2 | View::SystemdV2 => &[""],
        _ => &[
            "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd",
        ],
    };
    let mut found: Vec<PathBuf> = names
        .iter()
        .map(|name| Path::new("/sys/fs/cgroup").join(name))
        .filter(|top| top.join("cgroup.procs").exists())
        .collect();
    if ctx.view == View::Hybrid {
        found.push("/sys/fs/cgroup/unified".into());
    }
    found.iter().map(|top| top.join(path.trim_start_matches('/'))).collect()
}

fn is_v2(dir: &Path) -> bool {
    dir.join("cgroup.type").exists()
}

/// The test's parent cgroup, given to the user in all hierarchies of the view that `wanted` picks: the directory and what it
/// takes to move processes into it and to cgroups below. On v2 its own processes go to a cgroup below.
fn delegate(ctx: &Ctx, wanted: impl Fn(&Path) -> bool) -> String {
    let parent = ctx.cgroup_parent();
    for dir in hierarchies(ctx, &parent) {
        fs::create_dir(&dir).unwrap();
        // v1's takes no process before it is told.
        if !is_v2(&dir) && dir.join("cpuset.cpus").exists() {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(dir.join(file), fs::read(dir.with_file_name(file)).unwrap()).unwrap();
            }
        }
        if !wanted(&dir) {
            continue;
        }
        for name in ["", "cgroup.procs", "tasks", "cgroup.subtree_control", "cgroup.threads"] {
            let path = dir.join(name);
            if path.exists() {
                chown(&path, Some(USER), Some(USER)).unwrap();
            }
        }
    }
    parent
}

/// `call`, made by the user from a cgroup of its own below `parent`: where that is not so, the kernel does not let it move a
/// process in (cgroups(7), delegation containment).
fn inside(ctx: &Ctx, parent: &str, call: Call) -> Call {
    let mut script = String::new();
    for dir in hierarchies(ctx, parent).iter().filter(|dir| is_v2(dir)) {
        script += &format!("mkdir -p {0}/caller; echo 0 > {0}/caller/cgroup.procs; ", dir.display());
    }
    script += &format!("exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"");
    call.under(&["sh", "-c", &script, "sh"])
}

fn leave(ctx: &Ctx, parent: &str) {
    for dir in hierarchies(ctx, parent).iter().filter(|dir| is_v2(dir)) {
        eventually("the caller's cgroup is empty", || {
            fs::remove_dir(dir.join("caller")).ok()
        });
    }
}

/// A created and started container that sleeps.
fn sleeping(world: &World<'_>, ctx: &Ctx, parent: &str) -> String {
    let id = ctx.id();
    world.bundle.args(&["sleep", "1000"]);
    let flags = ["run", "--detach", "--bundle", world.bundle.dir.to_str().unwrap(), &id];
    inside(ctx, parent, world.bare(&flags)).output().ok();
    id
}

fn rootless_without_access_to_cgroups_goes_without(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.sh("cat /proc/self/cgroup");
    let out = world.run();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    // With a cgroup namespace every path is its top.
    let same = |line: &&str| {
        !out.stdout
            .lines()
            .any(|other| other == *line || ctx.view == View::V2 && other.ends_with(":/"))
    };
    assert_eq!((out.ok().stderr.as_str(), own.lines().find(same)), ("", None));
}

fn rootless_limits_without_access_to_cgroups_are_refused(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.set("/linux/resources", json!({"pids": {"limit": 5}}));
    world
        .run()
        .refused(match ctx.view {
            View::V2 => &["rootless needs no limits + no cgrouppath when no permission is granted for cgroups"],
            _ => &["cannot set pids limit: container could not join or create cgroup"],
        })
        .code(1);
}

fn rootless_cgroup_that_is_not_its_own_is_refused(ctx: &Ctx) {
    let world = world(ctx);
    world
        .bundle
        .set("/linux/cgroupsPath", json!(format!("{}/mine", ctx.cgroup_parent())));
    let out = world.run();
    out.refused(&["unable to apply cgroup configuration: mkdir "]).code(1);
    out.refused(&["permission denied"]);
    for dir in hierarchies(ctx, &ctx.cgroup_parent()) {
        assert!(!dir.exists(), "{}", dir.display());
    }
}

fn rootless_pause_without_a_cgroup_is_refused(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.args(&["sleep", "1000"]);
    let id = ctx.id();
    let bundle = world.bundle.dir.to_str().unwrap();
    world.call(&["run", "--detach", "--bundle", bundle, &id]).output().ok();
    world
        .call(&["pause", &id])
        .output()
        .refused(&["cannot toggle freezer: cgroups not configured for container"])
        .code(1);
    assert_eq!(world.call(&["exec", &id, "id", "-u"]).output().ok().text(), "0");
    world
        .call(&["update", "--pids-limit", "10", &id])
        .output()
        .refused(&["cgroup"])
        .code(1);
    world.call(&["delete", "--force", &id]).output().ok();
}

fn rootless_flag_says_whether_cgroups_are_needed(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.args(&["true"]);
    for flag in ["--rootless=true", "--rootless=auto"] {
        world.run_with(&[flag]).ok();
    }
    world
        .run_with(&["--rootless=false"])
        .refused(&["permission denied"])
        .code(1);
    world.run_with(&["--rootless=perhaps"]).refused(&["perhaps"]).code(1);
}

/// It still may map what it likes, and mounts id-mapped.
fn rootless_flag_of_host_root_is_about_cgroups_only(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let map =
        json!([{"containerID": 0, "hostID": 100_000, "size": 1}, {"containerID": 1, "hostID": 200_000, "size": 9}]);
    bundle
        .userns(100_000)
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .sh("cat /proc/self/uid_map | wc -l; cat /proc/self/setgroups");
    let id = ctx.id();
    let out = ctx.call(&["--rootless=true", "run", "--bundle", bundle.dir.to_str().unwrap(), &id]);
    assert_eq!(out.output().ok().stdout, "2\nallow\n");
}

fn rootless_delegated_cgroup_has_every_verb(ctx: &Ctx) {
    let world = world(ctx);
    let parent = delegate(ctx, |_| true);
    let path = format!("{parent}/c");
    world.bundle.set("/linux/cgroupsPath", json!(path));
    if ctx.view != View::V2 {
        world.bundle.set("/linux/resources", json!({"pids": {"limit": 50}}));
    }
    let id = sleeping(&world, ctx, &parent);
    let call = |args: &[&str]| inside(ctx, &parent, world.bare(args)).output();
    let dirs = hierarchies(ctx, &path);
    let pid = call(&["state", &id]).ok().json()["pid"].to_string();
    for dir in &dirs {
        assert_eq!(
            fs::read_to_string(dir.join("cgroup.procs")).unwrap().trim(),
            pid,
            "{}",
            dir.display()
        );
    }
    let own = call(&["exec", &id, "cat", "/proc/self/cgroup"]).ok().stdout.clone();
    assert!(
        own.lines().all(|line| line.ends_with(&path) || line.ends_with(":/")),
        "{own}"
    );
    if ctx.view == View::V2 {
        assert!(own.contains("0::/\n") || own.contains(&path), "{own}");
    } else {
        let limit = || fs::read_to_string(ctx.cgroup_dir("pids", &path).join("pids.max")).unwrap();
        assert_eq!(limit(), "50\n");
        call(&["update", "--pids-limit", "20", &id]).ok();
        assert_eq!(limit(), "20\n");
    }
    call(&["pause", &id]).ok();
    assert_eq!(call(&["state", &id]).ok().json()["status"], "paused");
    call(&["resume", &id]).ok();
    assert!(call(&["ps", "--format", "json", &id]).ok().stdout.contains(&pid));
    assert_eq!(call(&["events", "--stats", &id]).ok().json()["type"], "stats");
    call(&["kill", &id, "KILL"]).ok();
    eventually("stopped", || {
        (call(&["state", &id]).ok().json()["status"] == "stopped").then_some(())
    });
    call(&["delete", &id]).ok();
    assert!(dirs.iter().all(|dir| !dir.exists()));
    leave(ctx, &parent);
}

fn with_cgroups_mounted(world: &World<'_>) {
    world.bundle.mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]
    }));
}

/// Whether or not the kernel lets the user namespace mount them: where the host has put something over its own, it does not.
fn rootless_container_sees_its_own_cgroup_only(ctx: &Ctx) {
    let world = world(ctx);
    let parent = delegate(ctx, |_| true);
    world.bundle.set("/linux/cgroupsPath", json!(format!("{parent}/c")));
    with_cgroups_mounted(&world);
    let id = sleeping(&world, ctx, &parent);
    let exec = |args: &[&str]| {
        let call = [&["exec", &id], args].concat();
        inside(ctx, &parent, world.bare(&call)).output().ok().stdout.clone()
    };
    assert_eq!(exec(&["find", "/sys/fs/cgroup", "-type", "d"]), "/sys/fs/cgroup\n");
    assert!(
        exec(&["cat", "/sys/fs/cgroup/cgroup.procs"])
            .lines()
            .any(|pid| pid == "1")
    );
    let options = exec(&["awk", "$5 == \"/sys/fs/cgroup\" {print $6}", "/proc/self/mountinfo"]);
    for option in ["ro", "nosuid", "noexec", "nodev"] {
        assert!(
            options.lines().last().unwrap().split(',').any(|found| found == option),
            "{options}"
        );
    }
    world.call(&["delete", "--force", &id]).output().ok();
    leave(ctx, &parent);
}

fn rootless_container_without_a_cgroup_sees_none(ctx: &Ctx) {
    let world = world(ctx);
    with_cgroups_mounted(&world);
    // Something over a part of it: the kernel then lets no user namespace mount what it would uncover.
    let covered = ctx.cgroup_dir("", &ctx.cgroup_parent());
    fs::create_dir(&covered).unwrap();
    ctx.host_mount(&["-t", "tmpfs", "tmpfs"], &covered);
    world
        .bundle
        .sh("find /sys/fs/cgroup | wc -l; touch /sys/fs/cgroup/x 2>/dev/null || echo refused");
    assert_eq!(world.run().ok().stdout, "1\nrefused\n");
}

/// exec by a caller whose own cgroup is not below what was delegated: on v2 the kernel keeps its process out of the
/// container's, and as with runc it runs where the caller is.
fn rootless_delegated_cgroup_is_used_from_outside(ctx: &Ctx) {
    let world = world(ctx);
    let parent = delegate(ctx, |_| true);
    let path = format!("{parent}/c");
    world.bundle.set("/linux/cgroupsPath", json!(path));
    let id = sleeping(&world, ctx, &parent);
    assert_eq!(world.call(&["exec", &id, "id", "-u"]).output().ok().text(), "0");
    // Named, it has to be had.
    let named = world.call(&["exec", "--cgroup", "/", &id, "true"]).output();
    assert_eq!(named.code == 0, ctx.view == View::V1, "{named:?}");
    world.call(&["delete", "--force", &id]).output().ok();
    assert!(hierarchies(ctx, &path).iter().all(|dir| !dir.exists()));
    leave(ctx, &parent);
}

/// runc leaves the v2 hierarchy of such a host alone; what can't be entered there must not keep a container from running.
fn rootless_hybrid_host_that_delegates_v1_only(ctx: &Ctx) {
    let world = world(ctx);
    let parent = delegate(ctx, |dir| !is_v2(dir));
    let path = format!("{parent}/c");
    world
        .bundle
        .set("/linux/cgroupsPath", json!(path))
        .set("/linux/resources", json!({"pids": {"limit": 50}}))
        .sh("cat /proc/self/cgroup");
    let text = world.run().ok().stdout.clone();
    assert!(
        text.lines().any(|line| line.ends_with(&format!(":pids:{path}"))),
        "{text}"
    );
    // Nor does it where the directory could be made, but its processes come from elsewhere.
    for dir in hierarchies(ctx, &parent).iter().filter(|dir| is_v2(dir)) {
        chown(dir, Some(USER), Some(USER)).unwrap();
    }
    world.run().ok();
}

fn rootless_systemd_cgroup_without_a_bus_is_refused(ctx: &Ctx) {
    let world = world(ctx);
    ctx.tmpfs(Path::new("/run"), "mode=755");
    world
        .run_with(&["--systemd-cgroup"])
        .refused(&["systemd not running on this host, cannot use systemd cgroups manager"])
        .code(1);
    fs::create_dir_all("/run/systemd/system").unwrap();
    world
        .run_with(&["--systemd-cgroup"])
        .refused(&["could not detect DBUS_SESSION_BUS_ADDRESS from the environment"])
        .code(1);
}

/// A user namespace may play a whole machine, with a systemd of its own.
fn root_of_a_user_namespace_asks_the_systemd_of_its_session_or_its_own(ctx: &Ctx) {
    let world = world(ctx);
    ctx.tmpfs(Path::new("/run"), "mode=755");
    fs::create_dir_all("/run/systemd/system").unwrap();
    let bundle = world.bundle.dir.to_str().unwrap();
    let run = |bus: &str| {
        let call = world.bare(&["--systemd-cgroup", "run", "--bundle", bundle, &ctx.id()]);
        as_root_of_a_user_namespace(call.env("DBUS_SESSION_BUS_ADDRESS", bus).env("XDG_RUNTIME_DIR", ""))
    };
    run("").refused(&["/run/dbus/system_bus_socket"]).code(1);
    run("unix:path=/run/user/0/bus")
        .refused(&["/run/dbus/system_bus_socket"])
        .code(1);
    run("unix:path=/run/user/12345/bus")
        .refused(&["/run/user/12345/bus"])
        .code(1);
}

fn rootless_without_cgroup_and_pid_namespace_is_warned_of(ctx: &Ctx) {
    let world = world(ctx);
    world.bundle.without_namespaces(&["pid"]).edit(|s| {
        for mount in s["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/proc" {
                *mount = json!({"destination": "/proc", "type": "none", "source": "/proc", "options": ["rbind"]});
            }
        }
    });
    let out = world.run();
    assert!(
        out.ok().stderr.contains("Such configuration is strongly discouraged"),
        "{out:?}"
    );
}
