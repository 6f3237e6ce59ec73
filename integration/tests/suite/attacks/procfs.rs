//! A /proc that is not what it seems: labels, sysctls and masks that are written to or laid over the attacker's files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use proa_integration::{Ctx, tests};
use serde_json::json;

use super::{at, withstood};

tests! {
    a_proc_that_is_faked_is_refused .once();
    a_mount_inside_proc_is_refused .once();
    a_mount_that_links_lead_into_proc_is_refused .once();
    proc_behind_a_link_of_the_image_is_refused .once();
    sys_behind_a_link_of_the_image_is_refused .once();
    a_sysctl_is_not_written_to_a_file_over_it .once();
    a_label_is_not_written_to_a_file_over_its_attribute .once().only_proa();
}

/// CVE-2019-16884, CVE-2019-19921 and their kin: a /proc that is no procfs lets the container fake what the runtime writes
/// there, such as its AppArmor profile.
fn a_proc_that_is_faked_is_refused(ctx: &Ctx) {
    let fake = ctx.mkdir("fakeproc");
    fs::create_dir_all(fake.join("self/attr")).unwrap();
    fs::write(fake.join("self/attr/exec"), "").unwrap();
    let mounts = [
        json!({"destination": "/proc", "type": "bind", "source": fake, "options": ["bind"]}),
        json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}),
    ];
    for mount in mounts {
        let bundle = ctx.bundle();
        bundle.mount(mount).sh("test -d /proc/1/ns || echo faked");
        let out = ctx.run(&bundle);
        withstood!(
            !out.stdout.contains("faked"),
            "the container runs with a /proc of the attacker's"
        );
        out.refused(&["/proc"]);
    }
}

/// The same for a part of it.
fn a_mount_inside_proc_is_refused(ctx: &Ctx) {
    let fake = ctx.mkdir("fake");
    fs::write(fake.join("exec"), "faked").unwrap();
    for inside in ["/proc/self/attr", "/proc/thread-self/attr", "/proc/sys"] {
        let bundle = ctx.bundle();
        bundle
            .bind(&fake, inside, &["bind"])
            .args(&["cat", &format!("{inside}/exec")]);
        let out = ctx.run(&bundle);
        withstood!(!out.stdout.contains("faked"), "{inside} is the attacker's");
        out.refused(&["/proc"]);
    }
}

/// The plan's look at the destination as it is written does not see where a link of the image leads.
fn a_mount_that_links_lead_into_proc_is_refused(ctx: &Ctx) {
    let fake = ctx.mkdir("fake");
    fs::write(fake.join("exec"), "faked").unwrap();
    for (link, target, destination) in [("/p", "/proc", "/p/sys"), ("/q", "proc/sys", "/q")] {
        let bundle = ctx.bundle();
        symlink(target, bundle.path(link)).unwrap();
        bundle
            .bind(&fake, destination, &["bind"])
            .args(&["cat", "/proc/sys/exec"]);
        let out = ctx.run(&bundle);
        withstood!(!out.stdout.contains("faked"), "/proc/sys is the attacker's");
        out.refused(&["/proc"]);
    }
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: `/proc` of the image is a link into a volume, so that procfs is mounted
/// there; another container that shares the volume puts something else at that name before the runtime has used it.
fn proc_behind_a_link_of_the_image_is_refused(ctx: &Ctx) {
    behind_a_link(ctx, "/proc");
}

fn sys_behind_a_link_of_the_image_is_refused(ctx: &Ctx) {
    behind_a_link(ctx, "/sys");
}

fn behind_a_link(ctx: &Ctx, path: &str) {
    let volume = ctx.mkdir("volume");
    fs::create_dir(volume.join("real")).unwrap();
    fs::create_dir(volume.join("fake")).unwrap();
    fs::write(volume.join("fake/whose"), "faked").unwrap();
    let bundle = ctx.bundle();
    fs::remove_dir(bundle.path(path)).unwrap();
    symlink("/vol/real", bundle.path(path)).unwrap();
    bundle.edit(|s| {
        let mounts = s["mounts"].as_array_mut().unwrap();
        mounts.insert(
            0,
            json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["bind"]}),
        );
    });
    bundle.args(&["cat", &format!("{path}/whose")]);
    // All mounts are made: the attacker, who sees none of them, exchanges the directory below one for another.
    at(
        &bundle,
        "createRuntime",
        &format!("cd {} && mv real away && mv fake real", volume.display()),
    );
    let out = ctx.run(&bundle);
    withstood!(
        !out.stdout.contains("faked"),
        "{path} of the container is the attacker's"
    );
    out.refused(&["must be mounted on ordinary directory", path]);
}

/// CVE-2025-52881: something is mounted over the file that the runtime writes a setting to.
fn a_sysctl_is_not_written_to_a_file_over_it(ctx: &Ctx) {
    let fake = ctx.dir.join("fake");
    fs::write(&fake, "").unwrap();
    let bundle = ctx.bundle();
    bundle
        .bind(&fake, "/proc/sys/net/ipv4/ip_unprivileged_port_start", &["bind"])
        .set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start": "81"}));
    ctx.run(&bundle);
    withstood!(
        fs::read_to_string(&fake).unwrap().is_empty(),
        "the sysctl went into the attacker's file"
    );
}

/// CVE-2025-52881, CVE-2019-16884: something is mounted over the attribute that the runtime writes the process's label to, and
/// the container runs unconfined. The host is made to look as if it had AppArmor; that the kernel refuses the profile does not
/// matter here, only where it is asked.
fn a_label_is_not_written_to_a_file_over_its_attribute(ctx: &Ctx) {
    ctx.tmpfs(Path::new("/sys/module"), "mode=755");
    let parameters = Path::new("/sys/module/apparmor/parameters");
    fs::create_dir_all(parameters).unwrap();
    fs::write(parameters.join("enabled"), "Y\n").unwrap();
    ctx.tmpfs(Path::new("/sys/kernel/security"), "mode=755");
    fs::create_dir(Path::new("/sys/kernel/security/apparmor")).unwrap();
    let fake = ctx.dir.join("fake");
    fs::write(&fake, "").unwrap();
    let bundle = ctx.bundle();
    bundle
        .bind(&fake, "/proc/thread-self/attr/exec", &["bind"])
        .set("/process/apparmorProfile", json!("strict"));
    ctx.run(&bundle);
    withstood!(
        fs::read_to_string(&fake).unwrap().is_empty(),
        "the AppArmor profile went into the attacker's file"
    );
    // Without the fake it goes to the kernel, which knows no such profile.
    let bundle = ctx.bundle();
    bundle.set("/process/apparmorProfile", json!("no-such-profile"));
    ctx.run(&bundle).refused(&["apparmor failed to apply profile"]);
}
