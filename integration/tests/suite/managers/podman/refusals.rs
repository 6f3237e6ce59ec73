//! What podman shows its user when something cannot be had. It looks for causes in what the runtime says: 127 is what is not
//! there, 126 what may not be executed.

use std::os::unix::fs::PermissionsExt;

use proa_integration::{Ctx, Kind};

use super::super::{busybox, odd_programs};
use super::*;

of_both! {
    podman_shows_why_a_container_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_shows_why_an_exec_failed .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_shows_what_of_a_configuration_was_refused .views(V1).seconds(120).only_proa();
}

fn podman_shows_why_a_container_did_not_start(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let refused = |program: &[&str], code: i32, texts: &[&str]| {
        let said = podman.run(&["--rm"], program);
        assert_eq!(said.code, code, "{said:?}");
        said.refused(texts);
        // One error, not the runtime's log around it.
        assert!(!said.text.contains("level=error msg=\"proa create"), "{said:?}");
    };
    let not_found = "executable file not found in $PATH";
    let cause = "OCI runtime attempted to invoke a command that was not found";
    match ctx.subject.kind {
        Kind::Crun => refused(&["no-such-program"], 127, &["no-such-program", cause]),
        _ => refused(&["no-such-program"], 127, &["\"no-such-program\"", not_found, cause]),
    }
    refused(&["/no/such"], 127, &["/no/such", cause]);
    refused(&["/etc/passwd"], 126, &["OCI permission denied"]);
    refused(&["/etc"], 126, &[]);
}

fn podman_shows_why_an_exec_failed(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    podman.run(&["--detach", "--name", "it"], &["sleep", "1000"]).ok();
    let exec = |flags: &[&str], program: &str| podman.call(&[&["exec"], flags, &["it", program]].concat());
    let said = exec(&[], "no-such-program");
    assert_eq!(said.code, 127, "{said:?}");
    said.refused(&["no-such-program"]);
    let said = exec(&[], "/etc/passwd");
    assert_eq!(said.code, 126, "{said:?}");
    exec(&["--workdir", "/no/such"], "true").refused(&["/no/such"]);
    exec(&["--workdir", "/etc/passwd"], "true").refused(&["/etc/passwd", "ot a directory"]);
    exec(&["--user", "nobody-there"], "true").refused(&["nobody-there"]);
    podman.call(&["pause", "it"]).ok();
    exec(&[], "true").refused(&["running"]);
}

fn podman_shows_what_of_a_configuration_was_refused(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &odd_programs(ctx));
    let run = |flags: &[&str], program: &str| podman.run(&[&["--rm"], flags].concat(), &[program]);
    run(&[], "/bin/garbage").refused(&["/bin/garbage", "exec format error"]);
    run(&[], "/bin/lost").refused(&["/bin/lost", "no such file or directory"]);
    let profile = podman.dir.join("profile.json");
    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_NONSENSE"}"#).unwrap();
    fs::set_permissions(&profile, fs::Permissions::from_mode(0o644)).unwrap();
    let option = format!("--security-opt=seccomp={}", profile.display());
    run(&[&option], "true").refused(&["linux.seccomp.defaultAction", "SCMP_ACT_NONSENSE"]);
    run(&["--memory=4k"], "true").refused(&["container init was OOM-killed (memory limit too low?)"]);
    let refused = ["net.foo=1", "no such file or directory"];
    run(&["--sysctl=net.foo=1"], "true").refused(&refused);
    run(&["--sysctl=kernel.msgmax=abc"], "true").refused(&["kernel.msgmax=abc", "invalid argument"]);
    run(&["--volume=/no/such:/x"], "true").refused(&["/no/such"]);
    // Each left nothing.
    assert_eq!(podman.call(&["ps", "--all", "--quiet"]).ok(), "");
    let states = fs::read_dir("/run/proa").map_or(0, |all| {
        all.flatten()
            .filter(|it| !it.file_name().to_string_lossy().starts_with('.'))
            .count()
    });
    assert_eq!(states, 0);
}
