//! The process that becomes the container's, or enters it: seen and stopped by those inside, with descriptors, groups and
//! capabilities that were not meant for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proa_integration::{Bundle, Call, Ctx, Kind, Output, View, tests};
use rustix::fs::XattrFlags;
use serde_json::json;

use super::{arm, marker, withstood};

tests! {
    a_process_that_enters_cannot_be_traced .once();
    a_process_that_enters_leads_to_nothing_of_the_host .views(&[View::Hybrid, View::V2]);
    a_descriptor_that_the_caller_left_open_is_not_inherited .once();
    the_working_directory_is_not_on_the_host .once();
    the_working_directory_is_no_leaked_descriptor .once();
    exec_working_directory_is_no_leaked_descriptor .once();
    the_initial_environment_of_init_shows_no_secret_of_the_caller .once();
    userns_container_cannot_touch_root_files .once();
    an_added_capability_is_not_inheritable .once();
    the_default_configuration_has_no_inheritable_capabilities .once();
    exec_user_is_the_one_that_was_asked_for .once();
    exec_user_cannot_get_roots_capabilities .once();
    exec_user_that_overflows_is_not_root .once().not_for(&[(Kind::Runc, "1.1 takes 4294967296 for 0")]);
    the_callers_groups_stay_outside .once();
    passwd_of_the_image_cannot_make_root .once();
}

/// CVE-2016-9962: the container's other processes trace an `exec` while it still is the runtime, with the host's descriptors
/// open. Once it has given up its capabilities nothing but its not being dumpable keeps the container's root out.
fn a_process_that_enters_cannot_be_traced(ctx: &Ctx) {
    let bundle = ctx.bundle();
    arm(ctx, &bundle).args(&["attack", "trace", "5"]);
    let container = ctx.start(&bundle);
    container.says("watching");
    while !container.stdout().contains("done") {
        // An attack may well break it.
        container.exec(&["true"]);
        withstood!(!container.stdout().contains("TRACED"), "{}", container.stdout());
    }
}

/// CVE-2016-9962 where the container may trace anything: nothing that it finds open in an `exec` leads further than it gets by
/// itself. (A process enters a v2 cgroup by a descriptor of its directory.)
fn a_process_that_enters_leads_to_nothing_of_the_host(ctx: &Ctx) {
    let bundle = ctx.bundle();
    arm(ctx, &bundle)
        .caps(&["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"])
        .args(&["attack", "descend", "5", "made-by-an-attacker"]);
    let container = ctx.start(&bundle);
    container.says("watching");
    while !container.stdout().contains("done") {
        container.exec(&["true"]);
    }
    let said = container.stdout();
    let way = said
        .lines()
        .find(|line| line.contains("MADE") || line.contains("REACHED"));
    withstood!(way.is_none(), "{way:?}");
}

/// A call whose caller has a directory of the host open as descriptor 3.
fn leaking(call: Call) -> Call {
    call.under(&["sh", "-c", "exec 3</ && exec \"$@\"", "sh"])
}

/// The program looks for a way to the host by its working directory and its descriptors.
fn climber<'a>(ctx: &Ctx, bundle: &'a Bundle) -> &'a Bundle {
    arm(ctx, bundle).args(&["attack", "climb", marker(ctx).to_str().unwrap()])
}

fn found_no_way(out: &Output) {
    withstood!(!out.stdout.contains("REACHED"), "{}", out.stdout);
}

/// CVE-2024-21626: what the runtime (or its caller) has open is open in the container, too.
fn a_descriptor_that_the_caller_left_open_is_not_inherited(ctx: &Ctx) {
    let bundle = ctx.bundle();
    climber(ctx, &bundle);
    let id = ctx.id();
    let dir = bundle.dir.to_str().unwrap();
    let out = leaking(ctx.call(&["run", "--bundle", dir, &id])).output();
    found_no_way(out.ok());
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let marker = marker(ctx);
    let climb = ["attack", "climb", marker.to_str().unwrap()];
    found_no_way(leaking(container.exec_call(&[], &climb)).output().ok());
}

/// CVE-2024-21626: the working directory is reached through a descriptor, from which `..` leads through all of the host. Here
/// the caller even meant it to be inherited.
fn the_working_directory_is_not_on_the_host(ctx: &Ctx) {
    let bundle = ctx.bundle();
    climber(ctx, &bundle).set("/process/cwd", json!("/proc/self/fd/3"));
    let id = ctx.id();
    let run = [
        "run",
        "--preserve-fds",
        "1",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &id,
    ];
    let out = leaking(ctx.call(&run)).output();
    withstood!(
        !out.stdout.contains("by the working directory"),
        "the container was started in a directory of the host"
    );
    out.refused(&["/proc/self/fd/3"]);
    bundle.set("/process/cwd", json!("/")).args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let marker = marker(ctx);
    let flags = ["--preserve-fds", "1", "--cwd", "/proc/self/fd/3"];
    let climb = ["attack", "climb", marker.to_str().unwrap()];
    let out = leaking(container.exec_call(&flags, &climb)).output();
    withstood!(
        !out.stdout.contains("by the working directory"),
        "a process was started in a directory of the host"
    );
    out.refused(&[
        "cwd",
        "current working directory is outside of container mount namespace root",
    ]);
}

/// CVE-2024-21626 as it was: any descriptor that the runtime itself might have left open.
fn the_working_directory_is_no_leaked_descriptor(ctx: &Ctx) {
    for fd in 3..20 {
        let bundle = ctx.bundle();
        climber(ctx, &bundle).set("/process/cwd", json!(format!("/proc/self/fd/{fd}")));
        let out = ctx.run(&bundle);
        found_no_way(&out);
        assert_ne!(out.code, 0, "cwd /proc/self/fd/{fd} was entered: {out:?}");
    }
}

fn exec_working_directory_is_no_leaked_descriptor(ctx: &Ctx) {
    let bundle = ctx.bundle();
    arm(ctx, &bundle).args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let marker = marker(ctx);
    for fd in 3..20 {
        let climb = ["attack", "climb", marker.to_str().unwrap()];
        let out = container.exec_with(&["--cwd", &format!("/proc/self/fd/{fd}")], &climb);
        found_no_way(&out);
        assert_ne!(out.code, 0, "cwd /proc/self/fd/{fd} was entered: {out:?}");
    }
}

fn the_initial_environment_of_init_shows_no_secret_of_the_caller(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.container(&bundle);
    ctx.create_call(&bundle, &container.id, &[])
        .env("SECRET_TOKEN", "hunter2")
        .output()
        .ok();
    let initial = fs::read(format!("/proc/{}/environ", container.pid())).unwrap();
    container.start();
    let script = ["sh", "-c", "tr '\\0' '\\n' < /proc/1/environ"];
    let text = container.exec(&script).ok().stdout.clone() + &String::from_utf8_lossy(&initial);
    withstood!(!text.contains("hunter2"), "{text}");
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

/// A program of the image that gets an inheritable CAP_DAC_OVERRIDE if the process that executes it has it as inheritable
/// (capabilities(7): `security.capability` of version 2, its mark for "effective", and the two words of each set).
fn inheriting_cat(bundle: &Bundle) {
    let path = bundle.path("/inherit/cat");
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::copy(bundle.path("/bin/busybox"), &path).unwrap();
    let words: [u32; 5] = [0x0200_0001, 0, 1 << 1, 0, 0];
    let value: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    rustix::fs::setxattr(&path, "security.capability", &value, XattrFlags::empty()).unwrap();
    bundle.file("/rootonly", "secret");
    fs::set_permissions(bundle.path("/rootonly"), fs::Permissions::from_mode(0o600)).unwrap();
}

/// CVE-2022-29162: a capability that `exec --cap` adds is inheritable, so that a program of the image whose file asks for
/// inherited ones gets it even as another user.
fn an_added_capability_is_not_inheritable(ctx: &Ctx) {
    let bundle = ctx.bundle();
    inheriting_cat(&bundle);
    bundle
        .set("/process/noNewPrivileges", json!(false))
        .args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let flags = ["--cap", "CAP_DAC_OVERRIDE", "--user", "1000:1000"];
    let out = container.exec_with(&flags, &["/inherit/cat", "/rootonly"]);
    withstood!(
        !out.stdout.contains("secret"),
        "an unprivileged user inherited CAP_DAC_OVERRIDE"
    );
    let text = container
        .exec_with(&flags, &["cat", "/proc/self/status"])
        .ok()
        .stdout
        .clone();
    assert!(text.contains("CapInh:\t0000000000000000"), "{text}");
}

/// CVE-2022-29162, the other half: what `spec` proposes.
fn the_default_configuration_has_no_inheritable_capabilities(ctx: &Ctx) {
    let dir = ctx.mkdir("spec");
    ctx.call(&["spec", "--bundle", dir.to_str().unwrap()]).output().ok();
    let spec: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    let capabilities = &spec["process"]["capabilities"];
    assert!(capabilities["bounding"].is_array(), "{capabilities}");
    for set in ["inheritable", "ambient"] {
        let none = capabilities[set].as_array().is_none_or(Vec::is_empty);
        withstood!(none, "{set} capabilities by default: {capabilities}");
    }
}

/// crun CVE-2026-30892: `exec -u 1` ran as user 0.
fn exec_user_is_the_one_that_was_asked_for(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    for (user, expected) in [
        ("1", "1 0"),
        ("01", "1 0"),
        ("1:2", "1 2"),
        ("0:7", "0 7"),
        ("65534", "65534 0"),
    ] {
        let out = container.exec_with(&["-u", user], &["sh", "-c", "echo $(id -u) $(id -g)"]);
        withstood!(out.ok().text() == expected, "-u {user} runs as {}", out.text());
    }
}

/// crun CVE-2026-30892: whoever leaves user 0 keeps none of root's capabilities.
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
        withstood!(
            text.contains("Uid:\t1000\t1000\t1000\t1000"),
            "-u {user} is root: {text}"
        );
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            withstood!(
                text.contains(&format!("{set}:\t0000000000000000")),
                "-u {user} keeps capabilities: {text}"
            );
        }
    }
}

fn exec_user_that_overflows_is_not_root(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    for user in [
        "-1",
        ":",
        "4294967296",
        "1000:4294967296",
        "1000:1000:1000",
        " 0",
        "root",
    ] {
        let out = container.exec_with(&["--user", user], &["sh", "-c", "exit 77"]);
        withstood!(out.code != 77, "{user:?} is somebody");
    }
}

/// The groups of whoever calls the runtime would open that one's files to the container.
fn the_callers_groups_stay_outside(ctx: &Ctx) {
    let dir = ctx.mkdir("volume");
    let file = dir.join("file");
    fs::write(&file, "for group 4242").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o040)).unwrap();
    std::os::unix::fs::chown(&file, None, Some(4242)).unwrap();
    let bundle = ctx.bundle();
    bundle
        .bind(&dir, "/mnt", &["bind"])
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .args(&["cat", "/mnt/file"]);
    let as_member = |call: Call| call.under(&["setpriv", "--groups", "4242", "--"]).output();
    let id = ctx.id();
    let run = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id]);
    let out = as_member(run);
    withstood!(
        !out.stdout.contains("for group"),
        "the caller's groups are the container's"
    );
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let out = as_member(container.exec_call(&["--user", "1:1"], &["cat", "/mnt/file"]));
    withstood!(
        !out.stdout.contains("for group"),
        "the caller's groups are the process's"
    );
    assert_eq!(container.exec(&["id", "-G"]).ok().text(), "1000");
}

/// CVE-2016-3697: a numeric user name in the image's passwd that maps to root.
fn passwd_of_the_image_cannot_make_root(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .file("/etc/passwd", "1000:x:0:0:fake:/root:/bin/sh\n")
        .args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let out = container.exec_with(&["--user", "1000"], &["id", "-u"]);
    withstood!(out.ok().text() == "1000", "the image made user 1000 root");
}
