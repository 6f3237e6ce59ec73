//! Descriptors: what a container gets, and what it must not get.

use std::fs;

use proa_integration::{Ctx, tests};

tests! {
    only_the_standard_streams_arrive .once();
    descriptors_of_the_caller_are_not_leaked .once();
    exec_gets_only_the_standard_streams .once();
    preserve_fds_passes_the_next_ones .once();
    preserve_fds_passes_no_more_than_asked .once();
    preserve_fds_that_are_closed_are_refused .once().since_runc(1, 2);
    listen_fds_are_passed_with_their_variables .once();
    listen_fds_of_somebody_else_are_not_passed .once();
    exec_passes_no_listen_fds .once();
    absurd_counts_of_descriptors_are_refused .once().only_proa();
    exec_preserve_fds .once();
    standard_streams_can_be_reopened_by_an_unprivileged_user .once();
    closed_standard_streams_do_not_confuse .once();
    descriptors_of_the_caller_do_not_stay_with_a_waiting_init .once().since_runc(1, 2);
}

fn numbers(text: &str) -> Vec<&str> {
    let mut all: Vec<&str> = text.lines().filter_map(|l| l.split(' ').next()).collect();
    all.sort_unstable();
    all
}

fn only_the_standard_streams_arrive(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["probe", "fds"]);
    assert_eq!(numbers(&ctx.run(&bundle).ok().stdout), ["0", "1", "2"]);
    let container = ctx.start(&bundle);
    container.stopped();
    assert_eq!(numbers(&container.stdout()), ["0", "1", "2"]);
}

fn with_open(script: &str) -> [&str; 4] {
    ["sh", "-c", script, "sh"]
}

fn descriptors_of_the_caller_are_not_leaked(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["probe", "fds"]);
    let id = ctx.id();
    let call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id]);
    let out = call
        .under(&with_open("exec 3</ 4</etc/passwd 7</proc 9</dev/null; exec \"$@\""))
        .output();
    assert_eq!(numbers(&out.ok().stdout), ["0", "1", "2"], "{out:?}");
}

fn exec_gets_only_the_standard_streams(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let call = container.exec_call(&[], &["probe", "fds"]);
    let out = call.under(&with_open("exec 3</ 4</etc/passwd; exec \"$@\"")).output();
    assert_eq!(numbers(&out.ok().stdout), ["0", "1", "2"], "{out:?}");
}

fn preserved(ctx: &Ctx, count: &str, open: &str) -> proa_integration::Output {
    let bundle = ctx.bundle();
    bundle.args(&["probe", "fds"]);
    for name in ["three", "four", "five"] {
        fs::write(ctx.dir.join(name), name).unwrap();
    }
    let id = ctx.id();
    let call = ctx.call(&[
        "run",
        "--preserve-fds",
        count,
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &id,
    ]);
    call.under(&with_open(&format!("cd {}; {open}; exec \"$@\"", ctx.dir.display())))
        .output()
}

fn preserve_fds_passes_the_next_ones(ctx: &Ctx) {
    let out = preserved(ctx, "2", "exec 3<three 4<four");
    assert_eq!(numbers(&out.ok().stdout), ["0", "1", "2", "3", "4"], "{out:?}");
    assert!(
        out.stdout.lines().any(|l| l.starts_with("3 ") && l.ends_with("three")),
        "{out:?}"
    );
    assert!(
        out.stdout.lines().any(|l| l.starts_with("4 ") && l.ends_with("four")),
        "{out:?}"
    );
}

fn preserve_fds_passes_no_more_than_asked(ctx: &Ctx) {
    let out = preserved(ctx, "1", "exec 3<three 4<four 5<five");
    assert_eq!(numbers(&out.ok().stdout), ["0", "1", "2", "3"], "{out:?}");
}

fn preserve_fds_that_are_closed_are_refused(ctx: &Ctx) {
    preserved(ctx, "2", "exec 3<three").refused(&["preserve-fds", "fd 4", "descriptor"]);
}

fn listen_fds_are_passed_with_their_variables(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("probe fds; env");
    fs::write(ctx.dir.join("three"), "").unwrap();
    let id = ctx.id();
    let call = ctx
        .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id])
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "web");
    let out = call
        .under(&with_open(&format!(
            "exec 3<{}/three; export LISTEN_PID=$$; exec \"$@\"",
            ctx.dir.display()
        )))
        .output();
    assert!(out.ok().stdout.lines().any(|l| l.starts_with("3 ")), "{out:?}");
    assert!(
        out.stdout.contains("LISTEN_FDS=1") && out.stdout.contains("LISTEN_PID=1\n"),
        "{out:?}"
    );
}

/// sd_listen_fds(3): they are for the process whose pid `LISTEN_PID` has, not for whoever inherits the variables.
fn listen_fds_of_somebody_else_are_not_passed(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("probe fds; env");
    for pid in ["1", "", "x"] {
        let id = ctx.id();
        let call = ctx
            .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id])
            .env("LISTEN_FDS", "1")
            .env("LISTEN_PID", pid);
        let out = call.under(&with_open("exec 3</; exec \"$@\"")).output();
        assert!(!out.ok().stdout.lines().any(|l| l.starts_with("3 ")), "{out:?}");
        assert!(!out.stdout.contains("LISTEN_FDS"), "{out:?}");
    }
}

fn exec_passes_no_listen_fds(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let call = container.exec_call(&[], &["probe", "fds"]).env("LISTEN_FDS", "1");
    let out = call
        .under(&with_open("exec 3</; export LISTEN_PID=$$; exec \"$@\""))
        .output();
    assert_eq!(numbers(&out.ok().stdout), ["0", "1", "2"], "{out:?}");
}

fn absurd_counts_of_descriptors_are_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["true"]);
    for (listen, preserve) in [("4294967295", "1"), ("4294967290", "0"), ("1", "2147483647")] {
        let id = ctx.id();
        let bundle = bundle.dir.to_str().unwrap();
        let call = ctx.call(&["run", "--preserve-fds", preserve, "--bundle", bundle, &id]);
        call.env("LISTEN_FDS", listen)
            .under(&["sh", "-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"])
            .output()
            .refused(&["preserved-fd"]);
    }
}

fn exec_preserve_fds(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    fs::write(ctx.dir.join("three"), "the content").unwrap();
    let call = container.exec_call(&["--preserve-fds", "1"], &["sh", "-c", "cat <&3; probe fds"]);
    let out = call
        .under(&with_open(&format!(
            "exec 3<{}/three 4</; exec \"$@\"",
            ctx.dir.display()
        )))
        .output();
    assert!(out.ok().stdout.starts_with("the content"), "{out:?}");
    assert!(!out.stdout.lines().any(|l| l.starts_with("4 ")), "{out:?}");
}

fn standard_streams_can_be_reopened_by_an_unprivileged_user(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/user", serde_json::json!({"uid": 1000, "gid": 1000}))
        .sh("echo reopened > /dev/stdout");
    assert_eq!(ctx.run(&bundle).ok().text(), "reopened");
}

fn closed_standard_streams_do_not_confuse(ctx: &Ctx) {
    // The lowest free numbers are then 0, 1, 2: nothing of the runtime may end up there in the container.
    let bundle = ctx.bundle();
    bundle.sh("probe fds > /tmp/fds").writable();
    let id = ctx.id();
    let call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id]);
    call.under(&with_open("exec \"$@\" 0<&- 1>&- 2>&-")).output();
    let text = fs::read_to_string(bundle.path("/tmp/fds")).unwrap_or_default();
    assert!(
        !text.contains("socket:") && !text.contains("anon_inode") && !text.contains("memfd"),
        "{text}"
    );
}

/// Or whoever reads from the other end of the caller's pipe would wait until the container is started.
fn descriptors_of_the_caller_do_not_stay_with_a_waiting_init(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let container = ctx.container(&bundle);
    ctx.create_call(&bundle, &container.id, &[])
        .under(&with_open("exec 4</etc/passwd 7</proc/self/status; exec \"$@\""))
        .output()
        .ok();
    let open = fs::read_dir(format!("/proc/{}/fd", container.pid())).unwrap();
    let open: Vec<_> = open
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect();
    let leaked = |path: &std::path::PathBuf| path.ends_with("etc/passwd") || path.ends_with("status");
    assert!(!open.iter().any(leaked), "{open:?}");
}
