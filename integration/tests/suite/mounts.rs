//! The root file system and what is mounted into it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use proa_integration::{Bundle, Ctx, Kind, View, tests};
use serde_json::json;

tests! {
    root_is_readonly_when_asked .once();
    root_is_writable_when_asked .once();
    root_may_be_an_absolute_path .once();
    bind_mount_shows_the_source .once();
    bind_mount_of_a_file .once();
    bind_mount_source_may_be_relative_to_the_bundle .once();
    flags_of_bind_mounts_apply .once();
    flags_of_tmpfs_apply .once();
    flags_are_undone_by_their_opposites .once();
    rbind_carries_submounts_and_bind_does_not .once();
    ro_of_an_rbind_leaves_submounts_writable .once();
    recursive_ro_reaches_submounts .once().since_runc(1, 1);
    recursive_flags_reach_submounts .once().since_runc(1, 1);
    mount_points_that_are_missing_are_made .once();
    tmpfs_takes_size_and_mode .once();
    tmpcopyup_keeps_the_images_files .once();
    propagation_private_keeps_host_mounts_out .once();
    propagation_slave_lets_host_mounts_in .once();
    propagation_shared_lets_container_mounts_out .once();
    rootfs_is_private_when_asked .once();
    rootfs_propagation_is_applied .once().not_for(&[(Kind::Runc, "applies it to the host's root, not to a root on another mount")]);
    mounts_of_the_container_never_reach_the_host .once();
    without_a_mount_namespace_the_root_is_the_bundles_still .once().only_proa();
    symlink_destination_stays_inside_the_root .once();
    symlinked_parent_of_a_destination_stays_inside_the_root .once();
    dotdot_in_a_destination_stays_inside_the_root .once();
    mounts_follow_their_order .once();
    masked_files_read_empty_and_masked_directories_are_empty .once();
    masked_paths_that_are_absent_are_no_error .once();
    readonly_paths_refuse_writing .once();
    default_devices_and_links_are_there .once();
    listed_devices_are_made;
    listed_fifo_is_made ;
    devices_that_are_symlinked_are_replaced_inside .once();
    a_bound_dev_is_left_alone .once();
    proc_is_of_the_containers_pid_namespace .once();
    no_pivot_changes_the_root_as_well .once();
    the_old_root_is_gone .once();
    cgroup_mount_shows_the_containers_group;
    cgroup_mount_is_readonly_when_asked;
    mqueue_sysfs_devpts_and_shm_are_mounted .once();
    relative_destination_is_taken_from_the_root .once();
    console_is_absent_without_a_terminal .once();
    overlay_is_mounted_with_its_data .once();
    a_mount_over_the_root_is_hidden_or_seen_consistently .once();
    tmpfs_on_a_new_directory_is_for_everybody .once().since_runc(1, 4);
    tmpfs_has_the_mode_of_the_directory_it_hides .once();
    destination_may_be_the_path_on_the_host .once();
    sources_below_the_root_show_the_mounts_before_them .once();
    flags_of_a_source_stay_in_a_user_namespace .once().since_runc(1, 2);
    flags_of_a_source_are_not_taken_off_in_a_user_namespace .once().since_runc(1, 2);
    access_time_mode_stays_unless_another_is_named .once().since_runc(1, 2);
    paths_that_are_named_twice_are_masked_once .once().since_runc(1, 4);
}

fn source(ctx: &Ctx, name: &str) -> std::path::PathBuf {
    let dir = ctx.mkdir(name);
    fs::write(dir.join("file"), "from outside\n").unwrap();
    dir
}

/// The options of the mount at `at` as a container sees them.
fn options(ctx: &Ctx, at: &str, change: impl FnOnce(&Bundle) -> &Bundle) -> String {
    ctx.shell(
        &format!("awk '$5 == \"{at}\" {{print $6}}' /proc/self/mountinfo | tail -1"),
        change,
    )
    .trim()
    .to_owned()
}

fn has(options: &str, wanted: &str) -> bool {
    options.split(',').any(|o| o == wanted)
}

fn root_is_readonly_when_asked(ctx: &Ctx) {
    let text = ctx.shell("touch /tmp/x 2>&1; true", |b| b);
    assert!(text.contains("Read-only file system"), "{text}");
}

fn root_is_writable_when_asked(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.writable().sh("echo made > /tmp/x");
    ctx.run(&bundle).ok();
    assert_eq!(fs::read_to_string(bundle.path("/tmp/x")).unwrap(), "made\n");
}

fn root_may_be_an_absolute_path(ctx: &Ctx) {
    let other = ctx.bundle();
    other.file("/etc/mark", "the other root");
    let text = ctx.shell("cat /etc/mark", |b| b.set("/root/path", json!(other.rootfs())));
    assert_eq!(text, "the other root");
}

fn bind_mount_shows_the_source(ctx: &Ctx) {
    let dir = source(ctx, "src");
    let text = ctx.shell("cat /mnt/file; echo back > /mnt/made", |b| {
        b.bind(&dir, "/mnt", &["bind"])
    });
    assert_eq!(text, "from outside\n");
    assert_eq!(fs::read_to_string(dir.join("made")).unwrap(), "back\n");
}

fn bind_mount_of_a_file(ctx: &Ctx) {
    let dir = source(ctx, "src");
    let text = ctx.shell("cat /etc/passwd", |b| {
        b.bind(&dir.join("file"), "/etc/passwd", &["bind", "ro"])
    });
    assert_eq!(text, "from outside\n");
}

fn bind_mount_source_may_be_relative_to_the_bundle(ctx: &Ctx) {
    let text = ctx.shell("cat /mnt/file", |b| {
        fs::create_dir(b.dir.join("near")).unwrap();
        fs::write(b.dir.join("near/file"), "near").unwrap();
        b.bind("near".as_ref(), "/mnt", &["bind"])
    });
    assert_eq!(text, "near");
}

fn flags_of_bind_mounts_apply(ctx: &Ctx) {
    let dir = source(ctx, "src");
    for (given, seen) in [
        ("ro", "ro"),
        ("nosuid", "nosuid"),
        ("nodev", "nodev"),
        ("noexec", "noexec"),
        ("noatime", "noatime"),
        ("nodiratime", "nodiratime"),
    ] {
        let got = options(ctx, "/mnt", |b| b.bind(&dir, "/mnt", &["rbind", given]));
        assert!(has(&got, seen), "{given} gives {got}");
    }
    let got = options(ctx, "/mnt", |b| b.bind(&dir, "/mnt", &["bind"]));
    assert!(has(&got, "rw") && !has(&got, "nosuid"), "{got}");
}

fn flags_of_tmpfs_apply(ctx: &Ctx) {
    let mount =
        |options: &[&str]| json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": options});
    let got = options(ctx, "/mnt", |b| {
        b.mount(mount(&["ro", "nosuid", "nodev", "noexec", "strictatime"]))
    });
    for flag in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(has(&got, flag), "{flag} in {got}");
    }
    assert!(!has(&got, "relatime") && !has(&got, "noatime"), "{got}");
    let text = ctx.shell(
        "cp /bin/busybox /mnt/ls && /mnt/ls / 2>&1; touch /dev/shm/x && echo written",
        |b| b.mount(mount(&["noexec"])),
    );
    assert!(text.contains("Permission denied") && text.contains("written"), "{text}");
}

fn flags_are_undone_by_their_opposites(ctx: &Ctx) {
    let dir = source(ctx, "src");
    let got = options(ctx, "/mnt", |b| {
        b.bind(
            &dir,
            "/mnt",
            &["bind", "ro", "nosuid", "noexec", "nodev", "rw", "suid", "exec", "dev"],
        )
    });
    for flag in ["ro", "nosuid", "noexec", "nodev"] {
        assert!(!has(&got, flag), "{flag} in {got}");
    }
}

fn with_submount(ctx: &Ctx) -> std::path::PathBuf {
    let dir = source(ctx, "src");
    fs::create_dir(dir.join("sub")).unwrap();
    ctx.tmpfs(&dir.join("sub"), "mode=777");
    fs::write(dir.join("sub/deep"), "deep").unwrap();
    dir
}

fn rbind_carries_submounts_and_bind_does_not(ctx: &Ctx) {
    let dir = with_submount(ctx);
    assert_eq!(
        ctx.shell("cat /mnt/sub/deep", |b| b.bind(&dir, "/mnt", &["rbind"])),
        "deep"
    );
    assert_eq!(ctx.shell("ls /mnt/sub", |b| b.bind(&dir, "/mnt", &["bind"])), "");
}

fn ro_of_an_rbind_leaves_submounts_writable(ctx: &Ctx) {
    let dir = with_submount(ctx);
    let text = ctx.shell("touch /mnt/x 2>&1; touch /mnt/sub/x && echo sub written", |b| {
        b.bind(&dir, "/mnt", &["rbind", "ro"])
    });
    assert!(text.contains("Read-only") && text.contains("sub written"), "{text}");
}

fn recursive_ro_reaches_submounts(ctx: &Ctx) {
    let dir = with_submount(ctx);
    let text = ctx.shell("touch /mnt/x 2>&1; touch /mnt/sub/x 2>&1; true", |b| {
        b.bind(&dir, "/mnt", &["rbind", "rro"])
    });
    assert_eq!(text.matches("Read-only").count(), 2, "{text}");
}

fn recursive_flags_reach_submounts(ctx: &Ctx) {
    let dir = with_submount(ctx);
    let all = ["rbind", "rnosuid", "rnodev", "rnoexec", "rnoatime"];
    let got = options(ctx, "/mnt/sub", |b| b.bind(&dir, "/mnt", &all));
    for flag in ["nosuid", "nodev", "noexec", "noatime"] {
        assert!(has(&got, flag), "{flag} in {got}");
    }
}

fn mount_points_that_are_missing_are_made(ctx: &Ctx) {
    let dir = source(ctx, "src");
    let text = ctx.shell("cat /a/b/c/file /a/b/one", |b| {
        b.bind(&dir, "/a/b/c", &["bind"])
            .bind(&dir.join("file"), "/a/b/one", &["bind"])
    });
    assert_eq!(text, "from outside\nfrom outside\n");
}

fn tmpfs_takes_size_and_mode(ctx: &Ctx) {
    let text = ctx.shell("stat -c %a /fresh; df -k /fresh | awk 'NR==2{print $2}'", |b| {
        b.mount(
            json!({"destination": "/fresh", "type": "tmpfs", "source": "tmpfs", "options": ["mode=711", "size=4096k"]}),
        )
    });
    assert_eq!(text, "711\n4096\n");
    // Without a mode: that of the directory it hides, or everybody's when there was none.
    let text = ctx.shell("stat -c %a /home/user /new", |b| {
        fs::set_permissions(b.path("/home/user"), fs::Permissions::from_mode(0o751)).unwrap();
        for at in ["/home/user", "/new"] {
            b.mount(json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "tmpcopyup"]}));
        }
        b
    });
    assert_eq!(text, "751\n1777\n");
}

fn tmpcopyup_keeps_the_images_files(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .file("/var/data/deep/file", "kept")
        .sh("cat /var/data/deep/file; echo changed > /var/data/deep/file; stat -c %a /var/data/deep/file");
    fs::set_permissions(bundle.path("/var/data/deep/file"), fs::Permissions::from_mode(0o640)).unwrap();
    bundle.mount(json!({"destination": "/var/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}));
    assert_eq!(ctx.run(&bundle).ok().text(), "kept640");
    assert_eq!(fs::read_to_string(bundle.path("/var/data/deep/file")).unwrap(), "kept");
}

/// Runs a container with `/mnt` bound with `options` and mounts something into the source while it runs.
fn host_mount_arrives(ctx: &Ctx, options: &[&str]) -> bool {
    let dir = ctx.mkdir("shared");
    ctx.host_mount(&["--bind", dir.to_str().unwrap()], &dir);
    assert!(
        Command::new("mount")
            .arg("--make-shared")
            .arg(&dir)
            .status()
            .unwrap()
            .success()
    );
    fs::create_dir(dir.join("late")).unwrap();
    let bundle = ctx.bundle();
    bundle.bind(&dir, "/mnt", options).args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    ctx.tmpfs(&dir.join("late"), "mode=755");
    fs::write(dir.join("late/news"), "news").unwrap();
    container.exec(&["cat", "/mnt/late/news"]).code == 0
}

fn propagation_private_keeps_host_mounts_out(ctx: &Ctx) {
    assert!(!host_mount_arrives(ctx, &["rbind", "rprivate"]));
}

fn propagation_slave_lets_host_mounts_in(ctx: &Ctx) {
    assert!(host_mount_arrives(ctx, &["rbind", "rslave"]));
}

fn propagation_shared_lets_container_mounts_out(ctx: &Ctx) {
    let dir = ctx.mkdir("shared");
    ctx.host_mount(&["--bind", dir.to_str().unwrap()], &dir);
    assert!(
        Command::new("mount")
            .arg("--make-shared")
            .arg(&dir)
            .status()
            .unwrap()
            .success()
    );
    fs::create_dir(dir.join("late")).unwrap();
    let bundle = ctx.bundle();
    bundle
        .bind(&dir, "/mnt", &["rbind", "rshared"])
        .set("/linux/rootfsPropagation", json!("shared"))
        .caps(&["CAP_SYS_ADMIN"]);
    bundle.sh("mount -t tmpfs tmpfs /mnt/late && echo inner > /mnt/late/file && echo up && exec sleep 1000");
    let container = ctx.start(&bundle);
    container.says("up");
    let text = fs::read_to_string(dir.join("late/file"));
    assert!(Command::new("umount").arg(dir.join("late")).status().unwrap().success());
    assert_eq!(text.unwrap(), "inner\n");
}

/// The propagation fields of the container's root, as mountinfo shows them.
fn root_propagation(ctx: &Ctx, value: &str) -> String {
    let script = "awk '$5 == \"/\" {print $7}' /proc/self/mountinfo";
    ctx.shell(script, |b| b.set("/linux/rootfsPropagation", json!(value)))
        .trim()
        .to_owned()
}

fn rootfs_is_private_when_asked(ctx: &Ctx) {
    assert_eq!(root_propagation(ctx, "private"), "-");
}

fn rootfs_propagation_is_applied(ctx: &Ctx) {
    assert!(root_propagation(ctx, "shared").starts_with("shared:"));
    assert_eq!(root_propagation(ctx, "unbindable"), "unbindable");
}

/// runc runs such a container, too, but leaves its mounts behind.
fn without_a_mount_namespace_the_root_is_the_bundles_still(ctx: &Ctx) {
    let before = proa_integration::host::mounts();
    let bundle = ctx.bundle();
    bundle
        .without_namespaces(&["mount"])
        .set("/linux/maskedPaths", json!([]))
        .set("/linux/readonlyPaths", json!([]))
        .mount(json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs"}))
        .file("/marker", "of the bundle\n")
        .sh("touch /mnt/here && cat /marker && exec sleep 1000");
    let container = ctx.start(&bundle);
    container.says("of the bundle");
    assert_eq!(container.exec(&["cat", "/marker"]).ok().stdout, "of the bundle\n");
    assert!(bundle.path("/mnt/here").exists(), "the mounts are among the caller's");
    container.kill("KILL").stopped().delete();
    assert_eq!(proa_integration::host::mounts(), before);

    bundle.args(&["/no/such/program"]);
    ctx.create_call(&bundle, &ctx.id(), &[])
        .output()
        .refused(&["/no/such/program"]);
    assert_eq!(
        proa_integration::host::mounts(),
        before,
        "a create that fails takes its mounts away"
    );
    bundle.args(&["true"]).set("/linux/rootfsPropagation", json!("shared"));
    ctx.create_call(&bundle, &ctx.id(), &[])
        .output()
        .refused(&["linux.rootfsPropagation"]);
}

fn mounts_of_the_container_never_reach_the_host(ctx: &Ctx) {
    let before = proa_integration::host::mounts();
    assert!(
        Command::new("mount")
            .args(["--make-rshared", "/"])
            .status()
            .unwrap()
            .success()
    );
    let bundle = ctx.bundle();
    bundle
        .mount(json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs"}))
        .args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    assert_eq!(proa_integration::host::mounts(), before);
    drop(container);
    assert!(
        Command::new("mount")
            .args(["--make-rprivate", "/"])
            .status()
            .unwrap()
            .success()
    );
}

fn symlink_destination_stays_inside_the_root(ctx: &Ctx) {
    let dir = source(ctx, "src");
    let outside = ctx.mkdir("outside");
    let bundle = ctx.bundle();
    symlink(&outside, bundle.path("/link")).unwrap();
    bundle
        .bind(&dir, "/link", &["bind"])
        .sh(&format!("cat {}/file", outside.display()));
    let out = ctx.run(&bundle);
    if out.code == 0 {
        assert_eq!(out.text(), "from outside");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

fn symlinked_parent_of_a_destination_stays_inside_the_root(ctx: &Ctx) {
    let dir = source(ctx, "src");
    let bundle = ctx.bundle();
    // CVE-2021-30465 in its static form: a parent that leads out of the root. On the host the path below it is the
    // test's own directory.
    let outside = ctx.mkdir("outside");
    symlink("../../../../../../../../..", bundle.path("/up")).unwrap();
    symlink(&outside, bundle.path("/away")).unwrap();
    let up = format!("/up{}", outside.display());
    bundle
        .bind(&dir, &format!("{up}/inner"), &["bind"])
        .bind(&dir, "/away/other", &["bind"]);
    bundle.sh(&format!("cat {0}/inner/file {0}/other/file", outside.display()));
    let out = ctx.run(&bundle);
    assert!(
        fs::read_dir(&outside).unwrap().next().is_none(),
        "a mount point was made on the host"
    );
    if out.code == 0 {
        assert_eq!(out.stdout, "from outside\nfrom outside\n");
    }
}

fn dotdot_in_a_destination_stays_inside_the_root(ctx: &Ctx) {
    let dir = source(ctx, "src");
    let outside = ctx.mkdir("outside");
    let bundle = ctx.bundle();
    let climb = format!("/mnt/../../../..{}/inner", outside.display());
    bundle
        .bind(&dir, &climb, &["bind"])
        .sh(&format!("cat {}/inner/file", outside.display()));
    let out = ctx.run(&bundle);
    assert!(
        fs::read_dir(&outside).unwrap().next().is_none(),
        "a mount point was made on the host"
    );
    if out.code == 0 {
        assert_eq!(out.text(), "from outside");
    }
}

fn mounts_follow_their_order(ctx: &Ctx) {
    let (one, two) = (source(ctx, "one"), source(ctx, "two"));
    fs::write(two.join("file"), "second\n").unwrap();
    let text = ctx.shell("cat /mnt/file", |b| {
        b.bind(&one, "/mnt", &["bind"]).bind(&two, "/mnt", &["bind"])
    });
    assert_eq!(text, "second\n");
}

fn masked_files_read_empty_and_masked_directories_are_empty(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.file("/secret", "secret").file("/secrets/file", "secret");
    bundle.set("/linux/maskedPaths", json!(["/secret", "/secrets", "/proc/version"]));
    bundle.sh("wc -c < /secret; ls /secrets | wc -l; wc -c < /proc/version; touch /secrets/x 2>/dev/null || echo ro");
    assert_eq!(
        ctx.run(&bundle).ok().text().split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "0", "ro"]
    );
}

fn masked_paths_that_are_absent_are_no_error(ctx: &Ctx) {
    ctx.shell("true", |b| {
        b.set("/linux/maskedPaths", json!(["/no/such", "/proc/none"]))
            .set("/linux/readonlyPaths", json!(["/no/such"]))
    });
}

fn readonly_paths_refuse_writing(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .writable()
        .file("/kept/file", "kept")
        .file("/free/file", "free")
        .set("/linux/readonlyPaths", json!(["/kept", "/proc/sys"]));
    bundle.sh("echo x > /kept/file 2>/dev/null; echo 1 > /proc/sys/kernel/domainname 2>&1; echo x > /free/file; cat /kept/file /free/file");
    let out = ctx.run(&bundle);
    assert!(out.ok().stdout.ends_with("keptx\n"), "{out:?}");
    assert!(
        out.stdout.contains("Read-only") || out.stderr.contains("Read-only"),
        "{out:?}"
    );
}

fn default_devices_and_links_are_there(ctx: &Ctx) {
    let text = ctx.shell(
        "cd /dev; for d in null zero full random urandom tty; do stat -c '%n %a %t:%T' $d; done; \
        for l in fd stdin stdout stderr ptmx; do echo $l $(readlink $l); done",
        |b| b,
    );
    let expected = [
        "null 666 1:3",
        "zero 666 1:5",
        "full 666 1:7",
        "random 666 1:8",
        "urandom 666 1:9",
        "tty 666 5:0",
        "fd /proc/self/fd",
        "stdin /proc/self/fd/0",
        "stdout /proc/self/fd/1",
        "stderr /proc/self/fd/2",
    ];
    for line in expected {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    assert!(
        text.contains("ptmx pts/ptmx") || text.contains("ptmx /dev/pts/ptmx"),
        "{text}"
    );
}

fn listed_devices_are_made(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set(
        "/linux/devices",
        json!([
            {"path": "/dev/mine", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "uid": 5, "gid": 6},
            {"path": "/dev/sub/block", "type": "b", "major": 7, "minor": 99, "fileMode": 0o600}
        ]),
    );
    bundle.sh("cd /dev; stat -c '%F %a %u:%g %t:%T' mine sub/block");
    assert_eq!(
        ctx.run(&bundle).ok().stdout,
        "character special file 640 5:6 a:c8\nblock special file 600 0:0 7:63\n"
    );
}

fn listed_fifo_is_made(ctx: &Ctx) {
    let text = ctx.shell("stat -c '%F %a' /dev/sub/pipe", |b| {
        b.set(
            "/linux/devices",
            json!([{"path": "/dev/sub/pipe", "type": "p", "fileMode": 0o600}]),
        )
    });
    assert_eq!(text, "fifo 600\n");
}

fn devices_that_are_symlinked_are_replaced_inside(ctx: &Ctx) {
    // A /dev of the image (no tmpfs over it) whose entries lead out.
    let bundle = ctx.bundle();
    let victim = ctx.dir.join("victim");
    fs::write(&victim, "untouched").unwrap();
    symlink(&victim, bundle.path("/dev/null")).unwrap();
    symlink(&victim, bundle.path("/dev/zero")).unwrap();
    bundle.writable().edit(|s| {
        s["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"))
    });
    let before = fs::metadata(&victim).unwrap();
    ctx.run(&bundle);
    let after = fs::symlink_metadata(&victim).unwrap();
    assert_eq!(
        (before.mode(), before.ino(), before.uid()),
        (after.mode(), after.ino(), after.uid())
    );
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
}

fn a_bound_dev_is_left_alone(ctx: &Ctx) {
    let text = ctx.shell("ls /dev", |b| {
        b.edit(|s| {
            s["mounts"]
                .as_array_mut()
                .unwrap()
                .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"))
        });
        b.bind("/dev".as_ref(), "/dev", &["rbind"])
    });
    assert!(text.contains("null") && text.contains("mqueue"), "{text}");
    assert!(fs::metadata("/dev/null").is_ok());
}

fn proc_is_of_the_containers_pid_namespace(ctx: &Ctx) {
    assert_eq!(ctx.shell("cat /proc/1/comm; true", |b| b), "sh\n");
}

fn no_pivot_changes_the_root_as_well(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.file("/etc/mark", "inside").sh("cat /etc/mark; ls /");
    let out = ctx.run_with(&bundle, &["--no-pivot"]);
    assert!(out.ok().stdout.starts_with("inside"));
    assert!(!out.stdout.contains("lib64"));
}

fn the_old_root_is_gone(ctx: &Ctx) {
    let text = ctx.shell("awk '{print $5}' /proc/self/mountinfo; ls -a /", |b| b);
    assert!(!text.contains("pivot") && !text.contains("oldroot"), "{text}");
    // Only the root and what the configuration lists (masks included).
    for line in text.lines().filter(|l| l.starts_with('/')) {
        assert!(
            line == "/" || ["/proc", "/dev", "/sys"].iter().any(|p| line.starts_with(p)),
            "{line}"
        );
    }
}

fn cgroup_mount_shows_the_containers_group(ctx: &Ctx) {
    let v1 = ctx.view.has_v1();
    let script = if v1 {
        "cat /sys/fs/cgroup/devices/cgroup.procs; ls /sys/fs/cgroup"
    } else {
        "cat /sys/fs/cgroup/cgroup.procs"
    };
    let text = ctx.shell(script, |b| {
        b.namespace("cgroup", None);
        b.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}))
});
    assert!(text.lines().any(|l| l == "1"), "{text}");
    assert!(!v1 || text.contains("memory"), "{text}");
}

fn cgroup_mount_is_readonly_when_asked(ctx: &Ctx) {
    let dir = if ctx.view.has_v1() {
        "/sys/fs/cgroup/devices"
    } else {
        "/sys/fs/cgroup"
    };
    let text = ctx.shell(&format!("mkdir {dir}/sub 2>&1; true"), |b| {
        b.mount(
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}),
        )
    });
    assert!(text.contains("Read-only"), "{text}");
}

fn mqueue_sysfs_devpts_and_shm_are_mounted(ctx: &Ctx) {
    let text = ctx.shell("awk '{print $2, $3}' /proc/mounts", |b| b);
    for line in [
        "/dev/mqueue mqueue",
        "/sys sysfs",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/proc proc",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}

fn relative_destination_is_taken_from_the_root(ctx: &Ctx) {
    // The specification demands absolute paths; runc warns and takes the root. Either is safe, other places are not.
    let dir = source(ctx, "src");
    let bundle = ctx.bundle();
    bundle.bind(&dir, "mnt/rel", &["bind"]).sh("cat /mnt/rel/file");
    let out = ctx.run(&bundle);
    if out.code == 0 {
        assert_eq!(out.text(), "from outside")
    } else {
        let _ = out.refused(&["mnt/rel"]);
    }
}

fn console_is_absent_without_a_terminal(ctx: &Ctx) {
    assert_eq!(
        ctx.shell("[ -e /dev/console ] && echo there; tty", |b| b
            .sh("[ -e /dev/console ] && echo there; true")),
        ""
    );
}

fn overlay_is_mounted_with_its_data(ctx: &Ctx) {
    let (lower, upper, work) = (source(ctx, "lower"), ctx.mkdir("upper"), ctx.mkdir("work"));
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    ctx.shell("cat /mnt/file && echo new > /mnt/new", |b| {
        b.mount(json!({"destination": "/mnt", "type": "overlay", "source": "overlay", "options": [data]}))
    });
    assert_eq!(fs::read_to_string(upper.join("new")).unwrap(), "new\n");
}

fn a_mount_over_the_root_is_hidden_or_seen_consistently(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.mount(json!({"destination": "/", "type": "tmpfs", "source": "tmpfs"}));
    // Whatever a runtime makes of it, it must neither hang nor leave anything; and never the host's root.
    let out = ctx.run(&bundle);
    assert!(out.code < 1000, "{out:?}");
    assert!(ctx.view != View::V2 || out.code < 1000);
}

fn tmpfs_on_a_new_directory_is_for_everybody(ctx: &Ctx) {
    let mount = json!({"destination": "/not/there", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]});
    assert_eq!(ctx.shell("stat -c %a /not/there", |b| b.mount(mount)), "1777\n");
}

fn tmpfs_has_the_mode_of_the_directory_it_hides(ctx: &Ctx) {
    let mount = json!({"destination": "/hidden", "type": "tmpfs", "source": "tmpfs"});
    let mode = ctx.shell("stat -c %a /hidden", |b| {
        fs::create_dir(b.path("/hidden")).unwrap();
        fs::set_permissions(b.path("/hidden"), fs::Permissions::from_mode(0o710)).unwrap();
        b.mount(mount)
    });
    assert_eq!(mode, "710\n");
}

fn destination_may_be_the_path_on_the_host(ctx: &Ctx) {
    let source = source(ctx, "source");
    let text = ctx.shell("cat /in/file", |b| {
        let destination = b.path("/in");
        b.bind(&source, destination.to_str().unwrap(), &["bind"])
    });
    assert_eq!(text, "from outside\n");
}

fn sources_below_the_root_show_the_mounts_before_them(ctx: &Ctx) {
    let source = source(ctx, "source");
    let prepared = |b: &Bundle| {
        for dir in ["/in", "/out"] {
            fs::create_dir(b.path(dir)).unwrap();
        }
        b.bind(&source, "/in", &["bind"]);
        b.bind(&b.path("/in"), "/out", &["bind"]);
    };
    let plain = ctx.shell("cat /out/file", |b| {
        prepared(b);
        b
    });
    assert_eq!(plain, "from outside\n");
    let in_userns = ctx.shell("cat /out/file", |b| {
        prepared(b);
        b.userns(100_000)
    });
    assert_eq!(in_userns, "from outside\n");
}

/// The mount options, in the container, of a bind mount of something that is mounted `ro,nosuid,nodev,noexec,noatime`.
fn options_in_a_user_namespace(ctx: &Ctx, options: &[&str]) -> proa_integration::Output {
    let source = ctx.mkdir("restricted");
    ctx.tmpfs(&source, "mode=755");
    ctx.host_mount(&["-o", "remount,bind,ro,nosuid,nodev,noexec,noatime"], &source);
    let bundle = ctx.bundle();
    bundle
        .bind(&source, "/mnt", options)
        .userns(100_000)
        .sh("grep ' /mnt ' /proc/self/mounts | cut -d' ' -f4");
    ctx.run(&bundle)
}

fn flags_of_a_source_stay_in_a_user_namespace(ctx: &Ctx) {
    let out = options_in_a_user_namespace(ctx, &["bind", "nosymfollow"]);
    let options: Vec<&str> = out.ok().text().split(',').collect();
    for flag in ["ro", "nosuid", "nodev", "noexec", "noatime", "nosymfollow"] {
        assert!(options.contains(&flag), "{flag}: {options:?}");
    }
}

fn flags_of_a_source_are_not_taken_off_in_a_user_namespace(ctx: &Ctx) {
    options_in_a_user_namespace(ctx, &["bind", "rw"]).refused(&["operation not permitted"]);
}

fn access_time_mode_stays_unless_another_is_named(ctx: &Ctx) {
    for (option, expected) in [
        ("norelatime", "noatime"),
        ("atime", "noatime"),
        ("relatime", "relatime"),
    ] {
        let source = ctx.mkdir(option);
        ctx.tmpfs(&source, "mode=755");
        ctx.host_mount(&["-o", "remount,bind,noatime"], &source);
        let text = ctx.shell("grep ' /mnt ' /proc/self/mounts", |b| {
            b.bind(&source, "/mnt", &["bind", option])
        });
        assert!(text.contains(expected), "{option}: {text}");
    }
}

fn paths_that_are_named_twice_are_masked_once(ctx: &Ctx) {
    let text = ctx.shell("grep -c ' /twice ' /proc/self/mounts", |b| {
        fs::create_dir(b.path("/twice")).unwrap();
        b.set("/linux/maskedPaths", json!(["/twice", "/twice"]))
    });
    assert_eq!(text, "1\n");
}
