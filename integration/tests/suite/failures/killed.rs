//! The runtime, or the process it is setting up, killed at each step: `delete --force` removes what there is, nothing is left,
//! another container is not touched, and the id is free again.

use std::fs;

use proa_integration::ctx::Call;
use proa_integration::{Bundle, Container, Ctx, Output, tests};
use serde_json::json;

use super::steps::{self, Step, World};

tests! {
    create_killed_at_each_step .seconds(steps::seconds()).only_proa();
    start_killed_at_each_step .seconds(steps::seconds()).once().only_proa();
    run_killed_at_each_step .seconds(steps::seconds()).once().only_proa();
    exec_killed_at_each_step .seconds(steps::seconds()).once().only_proa();
    delete_killed_at_each_step .seconds(steps::seconds()).only_proa();
    create_in_a_user_namespace_killed_at_each_step .seconds(steps::seconds()).once().only_proa();
}

/// What is seen from outside of the calling process; between two of these a kill is as good as at the next.
const CHANGES: [&str; 52] = [
    "clone",
    "clone3",
    "fork",
    "vfork",
    "execve",
    "execveat",
    "wait4",
    "waitid",
    "kill",
    "pidfd_send_signal",
    "exit_group",
    "setsid",
    "mount",
    "umount2",
    "pivot_root",
    "open_tree",
    "move_mount",
    "mount_setattr",
    "unshare",
    "setns",
    "sethostname",
    "mkdir",
    "mkdirat",
    "mknodat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "rename",
    "renameat",
    "renameat2",
    "fchownat",
    "flock",
    "write",
    "socket",
    "socketpair",
    "connect",
    "bind",
    "listen",
    "accept4",
    "sendmsg",
    "recvmsg",
    "sendto",
    "recvfrom",
    "setuid",
    "setgid",
    "capset",
    "seccomp",
    "bpf",
    "poll",
    "ioctl",
];

/// Whether the steps of the container's init were among those that were tried.
pub(super) fn reaches_init(steps: &[Step]) {
    assert!(
        steps
            .iter()
            .any(|step| !step.is_runtimes() && step.name == "pivot_root"),
        "{steps:#?}"
    );
    assert!(
        steps.iter().any(|step| !step.is_runtimes() && step.name == "capset"),
        "{steps:#?}"
    );
}

/// Something of everything that a create makes: mounts, a compiled filter, hooks, a cgroup with limits, a pid file.
pub(super) fn rich(ctx: &Ctx) -> Bundle {
    let source = ctx.mkdir("source");
    let bundle = ctx.bundle();
    bundle
        .bind(&source, "/mnt", &["rbind", "ro"])
        .set("/hooks/createRuntime", json!([{"path": "/bin/true"}]))
        .set("/hooks/createContainer", json!([{"path": "/bin/true"}]))
        .set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}),
        )
        .args(&["sleep", "1000"]);
    bundle
}

/// Kills at every step of what `call` calls on a container that `prepare` has made ready; `holds` looks at it before it is
/// deleted by force.
fn sweep(
    ctx: &Ctx,
    bundle: &Bundle,
    prepare: impl Fn(&Container<'_>),
    call: impl Fn(&Container<'_>) -> Call,
    holds: impl Fn(&Container<'_>, &Step, &Output),
) -> Vec<Step> {
    let world = World::new(ctx);
    let container = ctx.container(bundle);
    // Once without a look, as the first compiles the filter.
    prepare(&container);
    call(&container).output().ok();
    container.verb(&["delete", "--force"]).ok();
    prepare(&container);
    let steps = steps::of(ctx, call(&container), &CHANGES);
    container.verb(&["delete", "--force"]).ok();
    world.is_as_before("the call without a fault");
    let (mut tried, mut happened) = (0, 0);
    for step in &steps {
        for action in ["kill-runtime", "kill-self", "kill-child"] {
            // The calling process is the runtime, or is the child.
            if action == if step.is_runtimes() { "kill-self" } else { "kill-child" } {
                continue;
            }
            tried += 1;
            prepare(&container);
            let output = steps::at(ctx, call(&container), step, action);
            let after = format!("{action} at {step}");
            eprintln!("{after}");
            if let Some(output) = &output {
                happened += 1;
                holds(&container, step, output);
                if action != "kill-runtime" {
                    // Whoever is left must say something, and not wait for ever; 137 is how a program ended.
                    let silent = output.stderr.trim().is_empty();
                    assert!([0, 137].contains(&output.code) || !silent, "{after}: {output:#?}");
                    assert!(!output.stderr.contains("EPIPE"), "{after}: {output:#?}");
                } else {
                    assert!([0, 137].contains(&output.code), "{after}: {output:#?}");
                }
            }
            container.verb(&["delete", "--force"]).ok();
            container.verb(&["state"]).refused(&["does not exist"]);
            world.is_as_before(&after);
            ctx.create_call(bundle, &container.id, &[]).output().ok();
            container.verb(&["delete", "--force"]).ok();
        }
    }
    // Processes that wait for each other take more than one way.
    assert!(happened * 3 > tried * 2, "{happened} of {tried} steps came");
    container.forget();
    world.is_as_before("all");
    world.ends();
    steps
}

fn create_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich(ctx);
    let pid_file = ctx.dir.join("pid");
    let flags = ["--pid-file", pid_file.to_str().unwrap()];
    let steps = sweep(
        ctx,
        &bundle,
        |_| {},
        |container| ctx.create_call(&bundle, &container.id, &flags),
        |_, _, _| {},
    );
    reaches_init(&steps);
    fs::remove_file(pid_file).unwrap();
}

fn create_in_a_user_namespace_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich(ctx);
    // A time namespace needs a process in the middle.
    bundle.userns(100_000).namespace("time", None);
    let steps = sweep(
        ctx,
        &bundle,
        |_| {},
        |container| ctx.create_call(&bundle, &container.id, &[]),
        |_, _, _| {},
    );
    reaches_init(&steps);
}

fn start_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich(ctx);
    bundle.set("/hooks/poststart", json!([{"path": "/bin/true"}]));
    sweep(
        ctx,
        &bundle,
        |container| {
            ctx.create_call(&bundle, &container.id, &[]).output().ok();
        },
        |container| ctx.call(&["start", &container.id]),
        |container, _, output| {
            // A poststart hook that fails ends the container.
            let expected = [if output.code == 1 { "stopped" } else { "created" }, "running"];
            let status = container.status();
            assert!(expected.contains(&status.as_str()), "{status}");
        },
    );
}

fn run_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich(ctx);
    bundle.args(&["true"]);
    let steps = sweep(
        ctx,
        &bundle,
        |_| {},
        |container| ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &container.id]),
        |_, _, _| {},
    );
    reaches_init(&steps);
}

fn exec_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich(ctx);
    sweep(
        ctx,
        &bundle,
        |container| {
            ctx.create_call(&bundle, &container.id, &[]).output().ok();
            container.start();
        },
        |container| container.exec_call(&[], &["true"]),
        |container, _, _| {
            assert_eq!(container.status(), "running");
            container.exec(&["true"]).ok();
        },
    );
}

fn delete_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich(ctx);
    bundle.set("/hooks/poststop", json!([{"path": "/bin/true"}]));
    sweep(
        ctx,
        &bundle,
        |container| {
            ctx.create_call(&bundle, &container.id, &[]).output().ok();
            container.start();
        },
        |container| ctx.call(&["delete", "--force", &container.id]),
        |_, _, _| {},
    );
}
