//! Checkpoints, through a real CRIU.

use proa_integration::Ctx;

use super::super::busybox;
use super::super::checkpoint::{PROGRAM, ask};
use super::*;

of_both! {
    podman_checkpoints_and_restores .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_exports_and_imports_a_checkpoint .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_saves_memory_in_steps .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_shows_why_a_checkpoint_failed .views(V1).seconds(120).not_for(NO_HYBRID);
}

/// The word that the program of container `name` remembers.
fn said(podman: &Podman<'_>, name: &str) -> String {
    ask(
        |args| podman.call(&[&["exec", name], args].concat()),
        || podman.call(&["kill", "--signal", "USR1", name]).ok(),
    )
}

fn podman_checkpoints_and_restores(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let said = || said(&podman, "it");
    podman.run(&["--detach", "--name", "it"], &["sh", "-c", PROGRAM]).ok();
    let word = said();
    podman.call(&["container", "checkpoint", "--leave-running", "it"]).ok();
    assert_eq!(said(), word);
    for _ in 0..2 {
        podman.call(&["container", "checkpoint", "it"]).ok();
        let state = podman
            .call(&["inspect", "--format", "{{.State.Status}} {{.State.Checkpointed}}", "it"])
            .ok();
        assert_eq!(state, "exited true\n");
        podman.call(&["container", "restore", "it"]).ok();
        assert_eq!(said(), word);
    }
    podman.call(&["stop", "--time", "0", "it"]).ok();
    podman.call(&["rm", "it"]).ok();
}

fn podman_exports_and_imports_a_checkpoint(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let said = |name| said(&podman, name);
    podman.run(&["--detach", "--name", "it"], &["sh", "-c", PROGRAM]).ok();
    let word = said("it");
    let archive = ctx.dir.join("checkpoint.tar.gz");
    let file = archive.to_str().unwrap();
    let stats = podman
        .call(&["container", "checkpoint", "--compress", "gzip", "--export", file, "it"])
        .ok();
    assert!(fs::metadata(&archive).unwrap().len() > 0, "{stats}");
    podman.call(&["rm", "it"]).ok();
    podman.call(&["container", "restore", "--import", file]).ok();
    assert_eq!(said("it"), word);
    podman
        .call(&["container", "restore", "--import", file, "--name", "copy"])
        .ok();
    assert_eq!(said("copy"), word);
    let logs = podman.call(&["exec", "copy", "cat", "/up"]).ok();
    assert_eq!(logs, "up\n", "what it had written is there");
}

fn podman_shows_why_a_checkpoint_failed(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    // CRIU does not save a connected socket unless it is told to.
    let program = "has() { until grep -q \":004D .* $1 \" /proc/net/tcp*; do sleep 0.05; done; }; \
                   tail -f /dev/null | nc -l -p 77 & has 0A; tail -f /dev/null | nc 127.0.0.1 77 & has 01; echo up > /up; wait";
    podman.run(&["--detach", "--name", "it"], &["sh", "-c", program]).ok();
    eventually("the connection", || {
        (podman.call(&["exec", "it", "cat", "/up"]).code == 0).then_some(())
    });
    podman
        .call(&["container", "checkpoint", "it"])
        .refused(&["criu failed: type DUMP", "Connected TCP socket"]);
    let state = podman.call(&["inspect", "--format", "{{.State.Status}}", "it"]).ok();
    assert_eq!(state, "running\n");
    podman
        .call(&["container", "checkpoint", "--tcp-established", "it"])
        .ok();
    podman.call(&["container", "restore", "--tcp-established", "it"]).ok();
}

fn podman_saves_memory_in_steps(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let said = |name| said(&podman, name);
    podman.run(&["--detach", "--name", "it"], &["sh", "-c", PROGRAM]).ok();
    let word = said("it");
    let (before, after) = (ctx.dir.join("before.tar.gz"), ctx.dir.join("after.tar.gz"));
    let (before, after) = (before.to_str().unwrap(), after.to_str().unwrap());
    let first = podman.call(&["container", "checkpoint", "--pre-checkpoint", "--export", before, "it"]);
    if !crate::checkpoint::has_feature("mem_dirty_track") {
        // Later releases of podman look for themselves.
        let mine = first.text.contains("criu is missing features: [MemTrack]");
        assert!(
            first.code != 0 && (mine || first.text.contains("memory tracking")),
            "{first:?}"
        );
        return;
    }
    first.ok();
    assert_eq!(said("it"), word);
    let second = ["container", "checkpoint", "--with-previous", "--export", after, "it"];
    podman.call(&second).ok();
    podman.call(&["rm", "it"]).ok();
    let both = ["container", "restore", "--import-previous", before, "--import", after];
    podman.call(&both).ok();
    assert_eq!(said("it"), word);
}
