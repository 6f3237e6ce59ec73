//! Attacks that runtimes of this kind have fallen to; each test is named by what must not happen, with the CVE.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use proa_integration::{Ctx, Kind, tests};
use serde_json::json;

tests! {
    the_runtimes_executable_cannot_be_overwritten_by_a_waiting_process .once();
    the_runtimes_executable_cannot_be_entered_through_proc_self_exe .once();
    the_working_directory_is_no_leaked_descriptor .once();
    exec_working_directory_is_no_leaked_descriptor .once();
    a_proc_that_is_faked_is_refused .once();
    a_mount_inside_proc_is_refused .once();
    a_rootfs_proc_symlink_is_not_followed .once();
    masks_use_the_real_dev_null .once();
    dev_symlinks_do_not_reach_the_host .once().not_for(&[(Kind::Runc, "CVE-2026-41579"), (Kind::Crun, "CVE-2026-47766")]);
    dev_console_symlink_does_not_reach_the_host .once();
    dev_pts_symlink_does_not_reach_the_host .once();
    init_cannot_be_traced_before_it_is_confined .once();
    a_symlink_swapped_in_while_mounting_does_not_escape .once().not_for(&[(Kind::Runc, "CVE-2024-45310")]);
    the_initial_environment_of_init_shows_no_secret_of_the_caller .once();
    devices_of_the_host_are_out_of_reach;
    userns_container_cannot_touch_root_files .once();
    cgroup_release_agent_cannot_be_written;
    exec_user_cannot_get_roots_capabilities .once();
    exec_user_that_overflows_is_not_root .once().not_for(&[(Kind::Runc, "1.1 takes 4294967296 for 0")]);
    passwd_of_the_image_cannot_make_root .once();
}

/// A copy of the runtime with everything beside it: an attack that works hurts only the copy.
fn copy(ctx: &Ctx) -> PathBuf {
    let dir = ctx.mkdir("copy");
    let source = &ctx.subject.path;
    for entry in fs::read_dir(source.parent().unwrap()).unwrap().flatten() {
        let name = entry.file_name();
        if name
            .to_string_lossy()
            .starts_with(&*source.file_name().unwrap().to_string_lossy())
        {
            fs::copy(entry.path(), dir.join(&name)).unwrap();
        }
    }
    dir.join(source.file_name().unwrap())
}

/// CVE-2019-5736: a process of the container waits for the runtime to enter and writes to its executable afterwards.
fn the_runtimes_executable_cannot_be_overwritten_by_a_waiting_process(ctx: &Ctx) {
    let runtime = copy(ctx);
    let before = fs::read(&runtime).unwrap();
    let bundle = ctx.bundle();
    bundle
        .args(&["probe", "overwrite-exe", "3"])
        .caps(&["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]);
    let container = ctx.start(&bundle);
    container.says("watching");
    for _ in 0..20 {
        container.exec_call(&[], &["/bin/true"]).program(&runtime).output().ok();
    }
    container.says("done");
    assert!(!container.stdout().contains("WROTE"), "{}", container.stdout());
    assert!(
        fs::read(&runtime).unwrap() == before,
        "the runtime's executable was changed"
    );
}

/// CVE-2019-5736, the other way: the program to run *is* the runtime, through /proc/self/exe.
fn the_runtimes_executable_cannot_be_entered_through_proc_self_exe(ctx: &Ctx) {
    let runtime = copy(ctx);
    let before = fs::read(&runtime).unwrap();
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]).writable();
    symlink("/proc/self/exe", bundle.path("/bin/me")).unwrap();
    let container = ctx.start(&bundle);
    for _ in 0..3 {
        let out = container
            .exec_call(&[], &["/bin/me", "--version"])
            .program(&runtime)
            .output();
        assert!(out.code < 1000);
    }
    assert!(fs::read(&runtime).unwrap() == before);
    // And not the original either.
    bundle.args(&["/proc/self/exe", "--version"]);
    ctx.run(&bundle);
    assert!(fs::read(&ctx.subject.path).unwrap() == before);
}

/// CVE-2024-21626: a working directory that is a descriptor which the runtime left open.
fn the_working_directory_is_no_leaked_descriptor(ctx: &Ctx) {
    for fd in 3..20 {
        let bundle = ctx.bundle();
        bundle
            .set("/process/cwd", json!(format!("/proc/self/fd/{fd}")))
            .sh("pwd");

        let out = ctx.run(&bundle);
        assert_ne!(out.code, 0, "cwd /proc/self/fd/{fd} was entered: {out:?}");
    }
}

fn exec_working_directory_is_no_leaked_descriptor(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    for fd in 3..20 {
        let out = container.exec_with(
            &["--cwd", &format!("/proc/self/fd/{fd}")],
            &["sh", "-c", "pwd; exit 77"],
        );
        assert_ne!(out.code, 77, "cwd /proc/self/fd/{fd} was entered: {out:?}");
    }
}

/// CVE-2019-19921 and its kin: a /proc that is not procfs lets the container fake what the runtime writes there.
fn a_proc_that_is_faked_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let fake = ctx.mkdir("fakeproc");
    fs::create_dir_all(fake.join("self/attr")).unwrap();
    fs::write(fake.join("self/attr/exec"), "").unwrap();
    bundle.bind(&fake, "/proc", &["bind"]);
    ctx.run(&bundle).refused(&["/proc"]);
    let bundle = ctx.bundle();
    bundle.mount(json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}));
    ctx.run(&bundle).refused(&["/proc"]);
}

fn a_mount_inside_proc_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let fake = ctx.mkdir("fake");
    bundle.bind(&fake, "/proc/self/attr", &["bind"]);
    ctx.run(&bundle).refused(&["/proc"]);
}

/// CVE-2019-19921, CVE-2023-27561: /proc of the image is a symlink to a directory that an earlier mount controls.
fn a_rootfs_proc_symlink_is_not_followed(ctx: &Ctx) {
    let bundle = ctx.bundle();
    fs::remove_dir(bundle.path("/proc")).unwrap();
    fs::create_dir(bundle.path("/evil")).unwrap();
    symlink("/evil", bundle.path("/proc")).unwrap();
    bundle.args(&["sh", "-c", "ls /evil | head -3; echo ran"]);
    let out = ctx.run(&bundle);
    if out.code == 0 {
        // Then procfs is what lies there, not what the image put there.
        assert!(out.stdout.contains('1'), "{out:?}");
    } else {
        out.refused(&["proc"]);
    }
}

/// CVE-2025-31133: /dev/null of the image is a symlink, and masking binds its target over the masked file.
fn masks_use_the_real_dev_null(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.edit(|s| {
        s["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"))
    });
    bundle.writable().file("/secret", "secret").file("/etc/other", "other");
    symlink("/etc/other", bundle.path("/dev/null")).unwrap();
    bundle
        .set("/linux/maskedPaths", json!(["/secret"]))
        .args(&["cat", "/secret"]);
    let out = ctx.run(&bundle);
    assert!(
        !out.stdout.contains("other") && !out.stdout.contains("secret"),
        "{out:?}"
    );
}

/// CVE-2026-41579 (runc), CVE-2026-47766 (crun): device nodes and links made through symlinks of the image.
fn dev_symlinks_do_not_reach_the_host(ctx: &Ctx) {
    let outside = ctx.mkdir("outside");
    let bundle = ctx.bundle();
    bundle.edit(|s| {
        s["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"))
    });
    fs::remove_dir(bundle.path("/dev")).unwrap();
    symlink(&outside, bundle.path("/dev")).unwrap();
    bundle.writable();
    ctx.run(&bundle);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

/// CVE-2025-52565: /dev/console of the image is a symlink and the terminal is bound over its target.
fn dev_console_symlink_does_not_reach_the_host(ctx: &Ctx) {
    let victim = ctx.dir.join("victim");
    fs::write(&victim, "untouched").unwrap();
    let bundle = ctx.bundle();
    bundle.edit(|s| {
        s["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"))
    });
    bundle.set("/process/terminal", json!(true)).writable();
    symlink(&victim, bundle.path("/dev/console")).unwrap();
    let socket = proa_integration::console::ConsoleSocket::new(&ctx.dir);
    let container = ctx.container(&bundle);
    ctx.create_call(
        &bundle,
        &container.id,
        &["--console-socket", socket.path.to_str().unwrap()],
    )
    .output();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert!(!proa_integration::host::mounts().iter().any(|m| m.contains("victim")));
}

fn dev_pts_symlink_does_not_reach_the_host(ctx: &Ctx) {
    let outside = ctx.mkdir("outside");
    fs::write(outside.join("keep"), "").unwrap();
    let bundle = ctx.bundle();
    bundle.edit(|s| {
        s["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|m| m["destination"] != "/dev")
    });
    symlink(&outside, bundle.path("/dev/pts")).unwrap();
    bundle.writable();
    ctx.run(&bundle);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

/// CVE-2016-9962: the container's other processes trace init while it still holds the host's descriptors. The files by which
/// it enters the container's own cgroup lead nowhere else.
fn init_cannot_be_traced_before_it_is_confined(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.caps(&["CAP_SYS_PTRACE"]).sh(
        "echo up; while :; do for p in /proc/[0-9]*; do \
         case $p in /proc/1|/proc/$$) continue;; esac; \
         for f in $p/fd/*; do l=$(readlink $f 2>/dev/null) || continue; \
         case $l in /|/memfd:*|/dev/null|pipe:*|/bin*|/proc*|/tmp/proa-test-*/out*|/tmp/proa-test-*/err*|*/tasks|*/cgroup.procs|'') ;; /*) echo \"LEAK $p $f $l\";; esac; done; done; done");
    let container = ctx.start(&bundle);
    container.says("up");
    for _ in 0..10 {
        container.exec(&["true"]).ok();
    }
    assert!(!container.stdout().contains("LEAK"), "{}", container.stdout());
}

/// CVE-2021-30465: a directory of a volume, shared between two containers, is exchanged for a symlink during the mount.
fn a_symlink_swapped_in_while_mounting_does_not_escape(ctx: &Ctx) {
    let shared = ctx.mkdir("shared");
    let source = ctx.mkdir("source");
    fs::write(source.join("payload"), "").unwrap();
    fs::create_dir(shared.join("a")).unwrap();
    // On the host, this path is the test's own directory; in the container there is none.
    let outside = ctx.mkdir("outside");
    symlink(&outside, shared.join("b")).unwrap();
    let swapper = ctx.bundle();
    swapper
        .bind(&shared, "/vol", &["bind"])
        .sh("echo up; cd /vol; while :; do mv -T a c; mv -T b a; mv -T c b; done 2>/dev/null");
    let attacker = ctx.start(&swapper);
    attacker.says("up");
    let before = proa_integration::host::mounts();
    for _ in 0..20 {
        let bundle = ctx.bundle();
        bundle
            .bind(&shared, "/vol", &["bind"])
            .bind(&source, "/vol/a/proa-swap", &["bind"]);
        ctx.run(&bundle);
        assert!(
            fs::read_dir(&outside).unwrap().next().is_none(),
            "a mount point was made on the host"
        );
    }
    drop(attacker);
    assert_eq!(proa_integration::host::mounts(), before);
}

fn the_initial_environment_of_init_shows_no_secret_of_the_caller(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.container(&bundle);
    ctx.create_call(&bundle, &container.id, &[])
        .env("SECRET_TOKEN", "hunter2")
        .output()
        .ok();
    container.start();
    let text = container
        .exec(&["sh", "-c", "tr '\\0' '\\n' < /proc/1/environ"])
        .ok()
        .stdout
        .clone();
    assert!(!text.contains("hunter2"), "{text}");
}

fn devices_of_the_host_are_out_of_reach(ctx: &Ctx) {
    let text = ctx.shell("mknod /tmp/d b 7 0 && probe open /tmp/d r || echo no node", |b| {
        b.writable().caps(&["CAP_MKNOD", "CAP_DAC_OVERRIDE"])
    });
    assert!(text.contains("no node") || text.contains("errno"), "{text}");
    assert!(!text.contains("ok"), "{text}");
}

fn userns_container_cannot_touch_root_files(ctx: &Ctx) {
    let dir = ctx.mkdir("rootonly");
    fs::write(dir.join("file"), "secret").unwrap();
    fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    let text = ctx.shell("cat /mnt/file 2>&1; echo x > /mnt/file; true", |b| {
        b.userns(200_000).bind(&dir, "/mnt", &["bind"])
    });
    assert!(text.contains("ermission denied"), "{text}");
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "secret");
}

/// CVE-2022-0492: a container that can write release_agent is root on the host.
fn cgroup_release_agent_cannot_be_written(ctx: &Ctx) {
    let text = ctx.shell("find /sys/fs/cgroup -name release_agent | while read f; do echo x > $f && echo WROTE; done 2>/dev/null; true", |b| {
        b.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]}))
    });
    assert!(!text.contains("WROTE"), "{text}");
}

/// crun CVE-2026-30892: `exec -u` parses the user so that capabilities of root stay.
fn exec_user_cannot_get_roots_capabilities(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    for user in ["1000", "1000:1000"] {
        let text = container
            .exec_with(&["--user", user], &["cat", "/proc/self/status"])
            .ok()
            .stdout
            .clone();
        assert!(text.contains("Uid:\t1000\t1000\t1000\t1000"), "{text}");
        assert!(
            text.contains("CapEff:\t0000000000000000") && text.contains("CapPrm:\t0000000000000000"),
            "{text}"
        );
    }
}

fn exec_user_that_overflows_is_not_root(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    for user in ["-1", ":", "4294967296", "1000:4294967296", "1000:1000:1000", " 0"] {
        let out = container.exec_with(&["--user", user], &["sh", "-c", "exit 77"]);
        assert_ne!(out.code, 77, "{user:?}: {out:?}");
    }
}

/// CVE-2016-3697: a numeric user name in the image's passwd that maps to root.
fn passwd_of_the_image_cannot_make_root(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .file("/etc/passwd", "1000:x:0:0:fake:/root:/bin/sh\n")
        .args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    assert_eq!(
        container.exec_with(&["--user", "1000"], &["id", "-u"]).ok().text(),
        "1000"
    );
}
