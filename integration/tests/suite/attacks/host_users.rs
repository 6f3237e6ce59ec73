//! What other users of the host, and their processes, may get from what proa does: files that it makes, descriptors that it was
//! given, signals that it passes on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::Signal;
use proa_integration::ctx::eventually;
use proa_integration::{Ctx, tests};

use super::withstood;

tests! {
    nobody_else_writes_to_what_is_made_without_a_umask .once();
    a_descriptor_of_proas_own_is_not_taken_for_an_inherited_one .once().only_proa();
    signals_do_not_go_by_a_number_that_may_be_reused .once().only_proa();
}

/// Who writes to the pid file has a manager send its signals elsewhere; who writes to the log, believe what it likes.
fn nobody_else_writes_to_what_is_made_without_a_umask(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.container(&bundle);
    let dir = ctx.mkdir("made");
    let (log, pid) = (dir.join("log"), dir.join("pid"));
    let root = ctx.root.to_str().unwrap();
    let mut args = vec!["--debug", "--root", root, "--log", log.to_str().unwrap()];
    if ctx.view.has_systemd() {
        args.push("--systemd-cgroup");
    }
    args.extend(["create", "--bundle", bundle.dir.to_str().unwrap()]);
    args.extend(["--pid-file", pid.to_str().unwrap(), &container.id]);
    ctx.bare_call(&args)
        .under(&["sh", "-c", "umask 0 && exec \"$@\"", "sh"])
        .output()
        .ok();
    for made in [&log, &pid] {
        let mode = fs::metadata(made).unwrap().mode() & 0o7777;
        withstood!(mode & 0o022 == 0, "{} has mode {mode:o}", made.display());
        // Managers read them as whatever user they are.
        assert_eq!(mode, 0o644, "{}", made.display());
    }
    let others = writable_by_others(&ctx.root);
    withstood!(others.is_empty(), "others may write to {others:?}");
    // What is there already keeps its mode: it is the caller's.
    container.kill("KILL").stopped();
}

/// All below `dir` that is not its owner's alone to change. A socket's mode is no matter in a directory that is closed.
fn writable_by_others(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let facts = entry.metadata().unwrap();
        if !facts.is_symlink() && facts.mode() & 0o022 != 0 {
            found.push(format!("{} ({:o})", entry.path().display(), facts.mode() & 0o7777));
        }
        if facts.is_dir() {
            found.extend(writable_by_others(&entry.path()));
        }
    }
    found
}

/// `--status-fd` with the number of a descriptor that proa has opened itself: two owners, of which one writes a status into the
/// log, or closes it so that what is opened next gets the log's lines.
fn a_descriptor_of_proas_own_is_not_taken_for_an_inherited_one(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let images = ctx.dir.join("images");
    for number in ["3", "4", "5"] {
        let mut args = vec!["checkpoint", "--lazy-pages", "--page-server", "127.0.0.1:1"];
        args.extend(["--status-fd", number, "--image-path", images.to_str().unwrap()]);
        args.push(&container.id);
        // The log is the first that is opened.
        let out = ctx.call(&args).env("PATH", "/nowhere").output();
        let refused = format!("invalid --status-fd argument {number}: ");
        withstood!(
            out.stderr.contains(&refused),
            "descriptor {number}, which was not inherited, was taken: {}",
            out.stderr
        );
        out.refused(&["bad file number", "not one that was open when proa was started"]);
    }
    assert_eq!(container.status(), "running");
}

/// `run` passes its signals on. Several are read at once, and SIGCHLD, by which the number of the container's process may
/// become somebody else's, comes before the real-time ones. With kill(2) out of reach it shows that no number is used.
fn signals_do_not_go_by_a_number_that_may_be_reused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("trap 'echo got; exit 7' 40; echo up; while :; do sleep 1000 & wait; done");
    let id = ctx.id();
    let args = ["run", "--bundle", bundle.dir.to_str().unwrap(), &id];
    let running = ctx
        .call(&args)
        .under(&[ctx.probe.to_str().unwrap(), "mask", "kill"])
        .spawn();
    eventually("the program", || (running.stdout() == "up\n").then_some(()));
    // Not Signal: that has no real-time ones.
    let signalled = std::process::Command::new("kill")
        .args(["-40", &running.child.id().to_string()])
        .status()
        .unwrap();
    assert!(signalled.success());
    let log = || {
        fs::read_dir(&ctx.dir).unwrap().flatten().any(|entry| {
            entry.file_name().to_string_lossy().starts_with("log")
                && fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("signal 40 to"))
        })
    };
    let arrived = eventually("the signal, or a complaint", || match running.stdout().as_str() {
        "up\ngot\n" => Some(true),
        _ => log().then_some(false),
    });
    if !arrived {
        // It is nobody's child of ours.
        running.signal(Signal::SIGKILL);
        ctx.call(&["delete", "--force", &id]).output();
    }
    withstood!(arrived, "a signal went by the number of a process");
    running.wait().code(7);
}
