//! What others get hold of while a process is on its way into a container, or a container on its way out: rights and
//! descriptors that were meant for neither them nor hooks, and control groups that are theirs by now.

use std::fs;
use std::path::Path;
use std::process::Command;

use proa_integration::console::ConsoleSocket;
use proa_integration::{Bundle, Container, Ctx, View, tests, wasm};
use serde_json::{Value, json};

use super::{arm, gained, withstood};
use crate::failures::steps::{Subject, rich};

tests! {
    a_process_that_enters_holds_no_more_than_the_container .views(&[View::Hybrid, View::V2]).seconds(60).only_proa();
    a_process_that_enters_is_under_the_filter_from_the_start .once().seconds(60).only_proa();
    nested_cgroups_do_not_outlast_their_container .views(&[View::Hybrid, View::V2]).only_proa();
    no_hook_inherits_a_descriptor .once().only_proa();
    no_hook_of_a_wasm_container_inherits_a_descriptor .once().only_proa();
    a_create_that_was_killed_takes_nobody_else_along .views(&[View::Hybrid, View::V2]).seconds(180).only_proa();
}

/// Executes until the container's first process has watched long enough; what it gained.
fn entered_while_watched(container: &Container<'_>, flags: &[&str]) {
    container.says("watching");
    while !container.stdout().contains("done") {
        // The last one may come when the container has ended.
        container.exec_with(flags, &["true"]);
        let said = container.stdout();
        withstood!(gained(&said).is_none(), "{:?}", gained(&said));
    }
    assert!(
        container.stdout().contains("caught"),
        "nothing came: {}",
        container.stdout()
    );
}

/// A container's root with CAP_SYS_PTRACE stops whatever becomes visible in its pid namespace, and looks for capabilities, open
/// files, resource limits or an oom_score_adj that it has not got itself. runc's and crun's `exec` is caught with all of root's.
fn a_process_that_enters_holds_no_more_than_the_container(ctx: &Ctx) {
    let caps = ["CAP_SYS_PTRACE", "CAP_KILL"];
    for flags in [&[][..], &["--user", "1000:1000"]] {
        let bundle = ctx.bundle();
        arm(ctx, &bundle)
            .caps(&caps)
            .set("/process/oomScoreAdj", json!(77))
            .args(&["attack", "seize", "4", "0"]);
        entered_while_watched(&ctx.start(&bundle), flags);
    }
}

/// With a seccomp filter: also without no_new_privs, where to install it takes CAP_SYS_ADMIN.
fn a_process_that_enters_is_under_the_filter_from_the_start(ctx: &Ctx) {
    for no_new_privileges in [true, false] {
        let bundle = ctx.bundle();
        let rules = json!([
            {"names": ["mount", "swapon"], "action": "SCMP_ACT_ERRNO"},
            // As the usual profiles have it.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
        ]);
        arm(ctx, &bundle)
            .caps(&["CAP_SYS_PTRACE"])
            .set("/process/noNewPrivileges", json!(no_new_privileges))
            .set("/process/oomScoreAdj", json!(0))
            .set(
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}),
            )
            .args(&["attack", "seize", "4", "2"]);
        entered_while_watched(&ctx.start(&bundle), &[]);
    }
}

/// A writable cgroup mount, in which the container's program nests cgroups more deeply than any path is long. Their names are as long
/// as they may be.
fn nested_cgroups_do_not_outlast_their_container(ctx: &Ctx) {
    for shared in [&[][..], &["pid"]] {
        let bundle = ctx.bundle();
        let top = if ctx.view.has_v1() {
            "/sys/fs/cgroup/devices"
        } else {
            "/sys/fs/cgroup"
        };
        arm(ctx, &bundle)
            .without_namespaces(shared)
            .args(&["attack", "nest", top, "700"]);
        let options = ["nosuid", "noexec", "nodev"];
        bundle
            .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}));
        let container = ctx.start(&bundle);
        container.says("nested");
        // One in the first cgroup, and one at the very end.
        let listed = container.verb(&["ps", "--format", "json"]);
        let deleted = container.verb(&["delete", "--force"]);
        if deleted.code != 0 {
            // Not to leave it to the next test.
            let dir = container.cgroup_dir(if ctx.view.has_v1() { "devices" } else { "" });
            Command::new(&ctx.attack).arg("unnest").arg(dir).status().unwrap();
            container.verb(&["delete", "--force"]);
        }
        withstood!(deleted.code == 0, "the container can't be deleted: {}", deleted.stderr);
        container.verb(&["state"]).refused(&["does not exist"]);
        container.forget();
        let pids = listed.ok().json();
        assert_eq!(pids.as_array().map(Vec::len), Some(2), "{pids}");
    }
}

const KINDS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// Has hooks of every kind write down what they have open.
fn watched_hooks(ctx: &Ctx, bundle: &Bundle) {
    let log = ctx.dir.join("hooks.log");
    fs::write(&log, "").unwrap();
    bundle.bind(&log, log.to_str().unwrap(), &["bind", "rw"]);
    for kind in KINDS {
        let inside = kind == "startContainer";
        let probe = if inside { Path::new("/bin/probe") } else { &ctx.probe };
        let script = format!("{} fds | sed 's/^/{kind} /' >> {}", probe.display(), log.display());
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]});
        bundle.set(&format!("/hooks/{kind}"), json!([hook]));
    }
}

/// That hooks of all kinds ran, and had their standard streams only.
fn had_stdio_only(ctx: &Ctx, of: &str) {
    let said = fs::read_to_string(ctx.dir.join("hooks.log")).unwrap();
    for kind in KINDS {
        let numbers: Vec<&str> = said
            .lines()
            .filter_map(|line| line.strip_prefix(kind)?.split_whitespace().next())
            .collect();
        let more: Vec<&&str> = numbers
            .iter()
            .filter(|number| !["0", "1", "2"].contains(number))
            .collect();
        withstood!(more.is_empty(), "{of}: a {kind} hook has open {more:?}: {said}");
        assert_eq!(numbers, ["0", "1", "2"], "{of}, {kind}: {said}");
    }
}

/// A hook that leaves a process behind keeps what it inherited open, and a file system of a volume busy. Nothing that is open for
/// the container, or was left open by the caller, is a hook's.
fn no_hook_inherits_a_descriptor(ctx: &Ctx) {
    let volume = ctx.mkdir("volume");
    let run = |bundle: &Bundle, flags: &[&str]| {
        let id = ctx.id();
        let dir = bundle.dir.to_str().unwrap();
        let args: Vec<&str> = ["run"]
            .iter()
            .chain(flags)
            .copied()
            .chain(["--bundle", dir, &id])
            .collect();
        // Two of the caller's, which the container is given or not.
        let with_open = ["sh", "-c", "exec 3</ 4</etc/passwd; exec \"$@\"", "sh"];
        ctx.call(&args).under(&with_open).output().ok();
    };
    for (of, flags) in [
        ("a plain container", &[][..]),
        ("preserved descriptors", &["--preserve-fds", "2"]),
    ] {
        let bundle = ctx.bundle();
        watched_hooks(ctx, &bundle);
        run(&bundle, flags);
        had_stdio_only(ctx, of);
    }
    let bundle = ctx.bundle();
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    bundle.userns(100_000).mount(json!({
        "destination": "/mnt", "type": "bind", "source": volume, "options": ["rbind"],
        "uidMappings": map, "gidMappings": map
    }));
    watched_hooks(ctx, &bundle);
    fs::set_permissions(
        ctx.dir.join("hooks.log"),
        std::os::unix::fs::PermissionsExt::from_mode(0o666),
    )
    .unwrap();
    run(&bundle, &[]);
    had_stdio_only(ctx, "volumes of a user namespace");

    let bundle = ctx.bundle();
    bundle.set("/process/terminal", json!(true));
    watched_hooks(ctx, &bundle);
    let socket = ConsoleSocket::new(&ctx.dir);
    let container = ctx.container(&bundle);
    let flags = ["--console-socket", socket.path.to_str().unwrap()];
    let creating = ctx.create_call(&bundle, &container.id, &flags).spawn();
    let _terminal = socket.terminal();
    creating.wait().ok();
    container.start().stopped().delete();
    had_stdio_only(ctx, "a terminal");
}

fn no_hook_of_a_wasm_container_inherits_a_descriptor(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let module = wasm::compile(&ctx.dir, "nothing", "int main(void) { return 0; }", &[]);
    fs::copy(module, bundle.path("/module.wasm")).unwrap();
    bundle
        .args(&["/module.wasm"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    watched_hooks(ctx, &bundle);
    ctx.run(&bundle).ok();
    had_stdio_only(ctx, "a module");
}

/// Whoever deletes a container whose `create` was killed ends what that create made, and not another container that has got a
/// cgroup of the same path since.
fn a_create_that_was_killed_takes_nobody_else_along(ctx: &Ctx) {
    let bundle = rich(ctx);
    let container = ctx.container(&bundle);
    let subject = Subject::create(ctx, &bundle, &[]);
    let (world, steps) = subject.steps(ctx, &container, &["mkdir", "rename", "write", "clone3", "setxattr"]);
    let mut others = 0;
    for step in steps.iter().filter(|step| step.is_runtimes()) {
        if subject.at(ctx, &container, step, "kill-runtime").is_none() {
            continue;
        }
        let after = format!("killed at {step}");
        eprintln!("{after}");
        let other = ctx.bundle();
        let path: Value = bundle.spec()["linux"]["cgroupsPath"].clone();
        other.set("/linux/cgroupsPath", path).args(&["sleep", "1000"]);
        let other_container = ctx.container(&other);
        // It is refused while a process of the first one is there still.
        let made = ctx.create_call(&other, &other_container.id, &[]).output().code == 0;
        container.verb(&["delete", "--force"]).ok();
        if made {
            others += 1;
            let lives = other_container.status() == "created";
            withstood!(
                lives,
                "another container was killed by the deletion of one that was {after}"
            );
            other_container.start();
            other_container.exec(&["true"]).ok();
        }
        other_container.verb(&["delete", "--force"]).ok();
        other_container.forget();
        world.is_as_before(&after);
    }
    container.forget();
    assert!(others > 3, "{others} other containers");
    world.ends();
}
