//! A system call of the runtime that fails, one after the other, with what can happen to it on a machine: the runtime says
//! which and why, and leaves nothing; or it has another way.

use proa_integration::{Bundle, Container, Ctx, Output, everything, tests};

use serde_json::json;

use super::steps::{self, Step, Subject, reach_init, rich, rich_in_a_user_namespace};

tests! {
    create_with_a_call_that_fails .seconds(steps::seconds()).only_proa();
    create_in_a_user_namespace_with_a_call_that_fails .seconds(steps::seconds()).once().only_proa();
    start_with_a_call_that_fails .seconds(steps::seconds()).once().only_proa();
    run_with_a_call_that_fails .seconds(steps::seconds()).once().only_proa();
    exec_with_a_call_that_fails .seconds(steps::seconds()).once().only_proa();
    a_node_that_can_not_be_had_in_either_way_tells_both .once().only_proa();
    delete_with_a_call_that_fails .seconds(steps::seconds()).only_proa();
}

/// An errno, and the names by which a message may call it.
type Errno = (i32, [&'static str; 2]);

/// What is tried on a call: errnos that it can return.
fn errnos(name: &str) -> &'static [Errno] {
    const FULL: Errno = (28, ["enospc", "no space left on device"]);
    const IO: Errno = (5, ["eio", "input/output error"]);
    const FILES: Errno = (24, ["emfile", "too many open files"]);
    const MEMORY: Errno = (12, ["enomem", "cannot allocate memory"]);
    const PERMISSION: Errno = (1, ["eperm", "operation not permitted"]);
    const AGAIN: Errno = (11, ["eagain", "resource temporarily unavailable"]);
    match name {
        "mkdir" | "mkdirat" | "symlink" | "symlinkat" | "rename" | "renameat" | "write" | "mknodat" => {
            &[FULL, IO, PERMISSION]
        }
        "openat" | "openat2" | "socket" | "socketpair" | "memfd_create" | "open_tree" | "accept4" => &[FILES, MEMORY],
        "clone3" | "clone" | "fork" | "vfork" => &[AGAIN, MEMORY],
        "unlink" | "unlinkat" | "rmdir" => &[IO, PERMISSION],
        "mount" | "move_mount" | "mount_setattr" | "pivot_root" | "umount2" | "unshare" | "setns" | "seccomp"
        | "bpf" | "keyctl" => &[MEMORY, PERMISSION],
        _ => &[MEMORY],
    }
}

const CALLS: [&str; 40] = [
    "clone",
    "clone3",
    "fork",
    "vfork",
    "execveat",
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
    "fchownat",
    "flock",
    "write",
    "socket",
    "socketpair",
    "connect",
    "bind",
    "listen",
    "setuid",
    "setgid",
    "setgroups",
    "capset",
    "seccomp",
    "openat",
    "memfd_create",
];

fn sweep(ctx: &Ctx, bundle: &Bundle, subject: &Subject<'_>, holds: impl Fn(&Container<'_>, &Output)) -> Vec<Step> {
    let container = ctx.container(bundle);
    let (world, steps) = subject.steps(ctx, &container, &CALLS);
    let (mut tried, mut happened) = (0, 0);
    let mut forgiven = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let all = errnos(&step.name);
        let some = if everything() { all } else { &all[at % all.len()..][..1] };
        for (errno, words) in some {
            tried += 1;
            let output = subject.at(ctx, &container, step, &errno.to_string());
            let after = format!("errno {errno} at {step}");
            eprintln!("{after}");
            if let Some(output) = &output {
                happened += 1;
                holds(&container, output);
                let said = output.stderr.to_lowercase();
                match output.code {
                    0 => forgiven.push(after.clone()),
                    1 | 255 => assert!(words.iter().any(|word| said.contains(word)), "{after}: {output:#?}"),
                    _ => panic!("{after}: {output:#?}"),
                }
            }
            container.verb(&["delete", "--force"]).ok();
            container.verb(&["state"]).refused(&["does not exist"]);
            world.is_as_before(&after);
        }
    }
    eprintln!("forgiven:\n{}", forgiven.join("\n"));
    assert!(happened * 3 > tried * 2, "{happened} of {tried} steps came");
    container.forget();
    world.ends();
    steps
}

/// A create that failed left nothing, not even for `delete --force`.
fn nothing_is_left(container: &Container<'_>, output: &Output) {
    if output.code != 0 {
        container.verb(&["state"]).refused(&["does not exist"]);
    }
}

fn create_with_a_call_that_fails(ctx: &Ctx) {
    let bundle = rich(ctx);
    reach_init(&sweep(
        ctx,
        &bundle,
        &Subject::create(ctx, &bundle, &[]),
        nothing_is_left,
    ));
}

fn create_in_a_user_namespace_with_a_call_that_fails(ctx: &Ctx) {
    let bundle = rich_in_a_user_namespace(ctx);
    reach_init(&sweep(
        ctx,
        &bundle,
        &Subject::create(ctx, &bundle, &[]),
        nothing_is_left,
    ));
}

fn start_with_a_call_that_fails(ctx: &Ctx) {
    let bundle = rich(ctx);
    sweep(ctx, &bundle, &Subject::start(ctx, &bundle), |_, _| {});
}

fn run_with_a_call_that_fails(ctx: &Ctx) {
    let bundle = rich(ctx);
    bundle.args(&["true"]);
    reach_init(&sweep(ctx, &bundle, &Subject::run(ctx, &bundle), |_, _| {}));
}

fn exec_with_a_call_that_fails(ctx: &Ctx) {
    let bundle = rich(ctx);
    sweep(ctx, &bundle, &Subject::exec(ctx, &bundle), |container, _| {
        assert_eq!(container.status(), "running");
        container.exec(&["true"]).ok();
    });
}

fn delete_with_a_call_that_fails(ctx: &Ctx) {
    let bundle = rich(ctx);
    sweep(ctx, &bundle, &Subject::delete(ctx, &bundle), |_, _| {});
}

/// Where mknod(2) is not permitted the host's node is shown, if it has one.
fn a_node_that_can_not_be_had_in_either_way_tells_both(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]).set(
        "/linux/devices",
        json!([{"path": "/dev/nowhere", "type": "c", "major": 1, "minor": 3}]),
    );
    let container = ctx.container(&bundle);
    let call = || ctx.create_call(&bundle, &container.id, &[]);
    let steps = steps::of(ctx, call(), &["mknodat"]);
    container.verb(&["delete", "--force"]).ok();
    let step = steps
        .iter()
        .find(|step| step.argument == "nowhere")
        .expect("mknod(nowhere)");
    let output = steps::at(ctx, call(), step, "1").expect("it comes again");
    for words in [
        "mknod(\"/dev/nowhere\", Char, 1:3): operation not permitted",
        "open(\"/dev/nowhere\", O_PATH)",
    ] {
        output.refused(&[words]);
    }
    container.forget();
}
