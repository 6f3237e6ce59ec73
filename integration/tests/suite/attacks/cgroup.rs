//! Control groups of the host, written to from inside or by a path that leads elsewhere.

use std::fs;
use std::path::Path;

use proa_integration::{Bundle, Ctx, Kind, View, tests};
use serde_json::json;

use super::withstood;

tests! {
    a_readonly_cgroup_mount_of_the_hosts_hierarchy_is_readonly .views(&[View::V2]).not_for(&[(Kind::Crun, "CVE-2023-25809")]);
    a_readonly_sysfs_of_the_host_has_no_writable_cgroups .views(&[View::V2]).only_proa();
    cgroup_release_agent_cannot_be_written;
    a_cgroups_path_leads_nowhere_else .views(&[View::Hybrid, View::V2]);
}

/// A container of a user namespace that shares the host's network and cgroup namespaces, as rootless ones do, and whose root
/// owns a cgroup of the host, as a user's session delegates it. It tries to make another one in there.
fn delegated<'a>(ctx: &Ctx, bundle: &'a Bundle) -> (&'a Bundle, std::path::PathBuf) {
    const ROOT: u32 = 200_000;
    let top = ctx.cgroup_dir("", &format!("{}/delegated", ctx.cgroup_parent()));
    fs::create_dir_all(&top).unwrap();
    std::os::unix::fs::chown(&top, Some(ROOT), Some(ROOT)).unwrap();
    let inside = Path::new("/sys/fs/cgroup").join(top.strip_prefix("/sys/fs/cgroup").unwrap());
    let script = format!(
        "test -d {0} && echo seen; mkdir {0}/evil && echo WRITTEN",
        inside.display()
    );
    bundle
        .without_namespaces(&["network", "cgroup"])
        .userns(ROOT)
        .sh(&format!("{script}; true"));
    (bundle, top)
}

fn tried(ctx: &Ctx, bundle: &Bundle, top: &Path) {
    let out = ctx.run(bundle);
    // The test's own, whatever comes of it.
    drop(fs::remove_dir(top.join("evil")));
    fs::remove_dir(top).unwrap();
    withstood!(
        !out.stdout.contains("WRITTEN"),
        "a cgroup of the host was made through a read-only mount"
    );
    assert!(out.ok().stdout.contains("seen"), "{out:?}");
}

/// CVE-2023-25809: without a cgroup namespace a rootless container gets the host's `/sys/fs/cgroup`, and the `ro` of its mount
/// was lost.
fn a_readonly_cgroup_mount_of_the_hosts_hierarchy_is_readonly(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let (bundle, top) = delegated(ctx, &bundle);
    bundle.edit(|s| {
        let mounts = s["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/sys");
        let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
        mounts.push(json!({"destination": "/sys", "type": "none", "source": "/sys", "options": options}));
        let options = ["ro", "nosuid", "noexec", "nodev"];
        mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}));
    });
    tried(ctx, bundle, &top);
}

/// CVE-2023-25809's neighbour: a sysfs that the kernel refuses, as the network namespace is the host's, is replaced by the
/// host's /sys with all that is mounted below it.
fn a_readonly_sysfs_of_the_host_has_no_writable_cgroups(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let (bundle, top) = delegated(ctx, &bundle);
    tried(ctx, bundle, &top);
}

/// CVE-2022-0492: a container that can write release_agent is root on the host.
fn cgroup_release_agent_cannot_be_written(ctx: &Ctx) {
    let script =
        "find /sys/fs/cgroup -name release_agent | while read f; do echo x > $f && echo WROTE; done 2>/dev/null; true";
    let options = ["ro", "nosuid", "noexec", "nodev"];
    let text = ctx.shell(script, |b| {
        b.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}))
    });
    withstood!(!text.contains("WROTE"), "release_agent was written to");
}

/// `..` in `linux.cgroupsPath` would make directories anywhere on the host, and `delete` would remove them.
fn a_cgroups_path_leads_nowhere_else(ctx: &Ctx) {
    // Where `..` is taken by its letters this is the test's own parent; else a directory of the host.
    let outside = ctx.cgroup_parent();
    let up = "/../../../../../../../../../../..".to_owned() + &outside;
    for path in [up.clone() + "/made", up.trim_start_matches('/').to_owned() + "/made"] {
        let bundle = ctx.bundle();
        bundle.set("/linux/cgroupsPath", json!(path));
        let seen = ctx.dir.join("seen");
        let script = format!("if test -e {outside}; then echo >{}; fi", seen.display());
        super::at(&bundle, "createRuntime", &script);
        ctx.run(&bundle);
        let made = seen.exists() || Path::new(&outside).exists();
        if Path::new(&outside).exists() {
            fs::remove_dir_all(&outside).unwrap();
        }
        withstood!(!made, "{path}: a directory was made outside of the cgroup file system");
    }
}
