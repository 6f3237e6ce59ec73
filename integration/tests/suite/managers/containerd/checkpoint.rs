//! Checkpoints of tasks and containers, through a real CRIU.

use proa_integration::Ctx;
use proa_integration::ctx::eventually;

use super::super::checkpoint::{PROGRAM, ask};
use super::super::{NO_HYBRID, V1, busybox};
use super::{Containerd, Release, containerd};

of_both! {
    a_task_is_checkpointed .views(V1).seconds(120).not_for(NO_HYBRID);
    a_container_is_restored .views(V1).seconds(120).not_for(NO_HYBRID);
}

/// The program's word.
fn said(containerd: &Containerd, id: &str) -> String {
    let exec = |program: &[&str]| {
        let name = containerd.ctx.id();
        containerd.ctr(&[&["task", "exec", "--exec-id", &name, id], program].concat())
    };
    let signal = || containerd.ctr(&["task", "kill", "--signal", "USR1", id]).ok();
    ask(exec, signal)
}

fn a_task_is_checkpointed(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    let id = ctx.id();
    let said = |id: &str| said(&containerd, id);
    containerd
        .run(&["--detach", "--null-io"], &id, &["sh", "-c", PROGRAM])
        .ok();
    let word = said(&id);
    let images = ctx.dir.join("images");
    let flags = ["task", "checkpoint", "--image-path", images.to_str().unwrap(), &id];
    containerd.ctr(&flags).ok();
    assert!(images.join("inventory.img").exists());
    assert_eq!(said(&id), word, "it goes on");
    let flags = [
        "task",
        "checkpoint",
        "--exit",
        "--image-path",
        images.to_str().unwrap(),
        &id,
    ];
    containerd.ctr(&flags).ok();
    eventually("the task's end", || containerd.is(&id, "STOPPED").then_some(()));
    containerd.remove(&id);
}

fn a_container_is_restored(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    let (id, again) = (ctx.id(), ctx.id());
    let said = |id: &str| said(&containerd, id);
    containerd
        .run(&["--detach", "--null-io"], &id, &["sh", "-c", PROGRAM])
        .ok();
    let word = said(&id);
    let reference = "example.test/checkpoint:1";
    containerd
        .ctr(&["containers", "checkpoint", "--rw", "--image", "--task", &id, reference])
        .ok();
    containerd.kill("KILL", &id);
    containerd.remove(&id);

    // ctr stays with the task that it restores.
    let mut restoring = containerd
        .command(&["containers", "restore", "--rw", "--live", &again, reference])
        .spawn()
        .unwrap();
    eventually("the restored task", || containerd.is(&again, "RUNNING").then_some(()));
    assert_eq!(said(&again), word);
    containerd.kill("KILL", &again);
    restoring.wait().unwrap();
    containerd.ctr(&["task", "rm", &again]);
    containerd.ctr(&["container", "rm", &again]);
}
