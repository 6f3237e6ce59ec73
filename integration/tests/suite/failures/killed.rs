//! The runtime, or the process it is setting up, killed at each step: `delete --force` removes what there is, nothing is left,
//! another container is not touched, and the id is free again.

use std::fs;

use proa_integration::{Bundle, Container, Ctx, Output, tests};
use serde_json::json;

use super::steps::{self, Step, Subject, reach_init, rich, rich_in_a_user_namespace};

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

/// Kills at every step of the call; `holds` looks at the container before it is deleted by force.
fn sweep(ctx: &Ctx, bundle: &Bundle, subject: &Subject<'_>, holds: impl Fn(&Container<'_>, &Output)) -> Vec<Step> {
    let container = ctx.container(bundle);
    let (world, steps) = subject.steps(ctx, &container, &CHANGES);
    let (mut tried, mut happened) = (0, 0);
    for step in &steps {
        for action in ["kill-runtime", "kill-self", "kill-child"] {
            // The calling process is the runtime, or is the child.
            if action == if step.is_runtimes() { "kill-self" } else { "kill-child" } {
                continue;
            }
            tried += 1;
            let output = subject.at(ctx, &container, step, action);
            let after = format!("{action} at {step}");
            eprintln!("{after}");
            if let Some(output) = &output {
                happened += 1;
                holds(&container, output);
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
    reach_init(&sweep(ctx, &bundle, &Subject::create(ctx, &bundle, &flags), |_, _| {}));
    fs::remove_file(pid_file).unwrap();
}

fn create_in_a_user_namespace_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich_in_a_user_namespace(ctx);
    reach_init(&sweep(ctx, &bundle, &Subject::create(ctx, &bundle, &[]), |_, _| {}));
}

fn start_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich(ctx);
    bundle.set("/hooks/poststart", json!([{"path": "/bin/true"}]));
    sweep(ctx, &bundle, &Subject::start(ctx, &bundle), |container, output| {
        // A poststart hook that fails ends the container.
        let expected = [if output.code == 1 { "stopped" } else { "created" }, "running"];
        let status = container.status();
        assert!(expected.contains(&status.as_str()), "{status}");
    });
}

fn run_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich(ctx);
    bundle.args(&["true"]);
    reach_init(&sweep(ctx, &bundle, &Subject::run(ctx, &bundle), |_, _| {}));
}

fn exec_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich(ctx);
    sweep(ctx, &bundle, &Subject::exec(ctx, &bundle), |container, _| {
        assert_eq!(container.status(), "running");
        container.exec(&["true"]).ok();
    });
}

fn delete_killed_at_each_step(ctx: &Ctx) {
    let bundle = rich(ctx);
    bundle.set("/hooks/poststop", json!([{"path": "/bin/true"}]));
    sweep(ctx, &bundle, &Subject::delete(ctx, &bundle), |_, _| {});
}
