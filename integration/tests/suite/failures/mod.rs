//! What remains when something goes wrong: commands that are killed, that meet each other, that run out of space.

pub mod exhausted;
pub mod killed;
pub mod refused;
pub mod steps;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use proa_integration::ctx::eventually;
use proa_integration::{Ctx, Kind, tests};
use serde_json::json;

tests! {
    create_killed_at_any_moment_can_be_deleted .seconds(120);
    create_killed_while_a_hook_runs_can_be_deleted .once().not_for(&[(Kind::Runc, "takes it for created")]);
    one_of_many_creates_of_an_id_wins .once();
    one_of_many_starts_wins .once().not_for(&[(Kind::Runc, "hangs at times")]);
    deletes_at_once_end_well .once();
    execs_and_a_delete_at_once_end_well .once();
    run_leaves_a_namesake_alone .once().only_proa();
    start_does_not_mind_a_container_that_was_deleted_meanwhile .once().not_for(&[(Kind::Runc, "runs them at create")]);
    start_leaves_the_socket_of_a_namesake .once().only_proa();
    a_pid_file_that_was_half_written_is_no_obstacle .once().not_for(&[(Kind::Runc, "wants it removed")]);
    a_full_store_leaves_nothing .once().not_for(&[(Kind::Runc, "stores less")]);
    run_with_nowhere_to_write_still_ends .once().only_proa();
    run_ends_though_many_orphans_end_with_the_program .once();
    a_changed_bundle_does_not_change_the_container .once().not_for(&[(Kind::Runc, "its exec reads the bundle again")]);
    ids_of_full_length_work .once();
    warnings_of_init_reach_the_log .once().only_proa();
    arguments_that_are_not_unicode_are_refused .once().only_proa();
}

/// However far `create` came, `delete --force` finds what it left; the harness looks for processes, cgroups and mounts.
fn create_killed_at_any_moment_can_be_deleted(ctx: &Ctx) {
    for step in 0..60 {
        // Each with a cgroup of its own, so that one that is left is not taken up by the next.
        let bundle = ctx.bundle();
        bundle.args(&["sleep", "1000"]);
        let container = ctx.container(&bundle);
        let mut create = ctx.create_call(&bundle, &container.id, &[]).spawn();
        std::thread::sleep(Duration::from_micros(step * 500));
        create.child.kill().unwrap();
        let status = create.child.wait().unwrap();
        assert!(status.success() || status.signal() == Some(9), "{status}");
        container.verb(&["delete", "--force"]).ok();
        container.forget();
        container.verb(&["state"]).refused(&["does not exist"]);
        assert!(!ctx.root.join(&container.id).exists(), "killed after {step} steps");
    }
}

fn create_killed_while_a_hook_runs_can_be_deleted(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let up = ctx.dir.join("up");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000", up.display());
    bundle.set(
        "/hooks/createRuntime",
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]),
    );
    let container = ctx.container(&bundle);
    let mut create = ctx.create_call(&bundle, &container.id, &[]).spawn();
    eventually("the hook", || up.exists().then_some(()));
    container
        .verb(&["delete"])
        .refused(&["being created", "not stopped", "creating", "cannot delete"]);
    create.child.kill().unwrap();
    create.child.wait().unwrap();
    container.verb(&["delete", "--force"]).ok();
    container.forget();
    container.verb(&["state"]).refused(&["does not exist"]);
    // The hook is a program of the host's, which nobody but its own caller ends.
    let hook = fs::read_to_string(&up).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(hook), Signal::SIGKILL).unwrap();
}

fn one_of_many_creates_of_an_id_wins(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.container(&bundle);
    let calls: Vec<_> = (0..6)
        .map(|_| ctx.create_call(&bundle, &container.id, &[]).spawn())
        .collect();
    let won = calls.into_iter().map(|call| call.wait()).filter(|out| out.code == 0);
    assert_eq!(won.count(), 1);
    assert_eq!(container.status(), "created");
    container.start();
}

fn one_of_many_starts_wins(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.create(&bundle);
    let calls: Vec<_> = (0..6).map(|_| ctx.call(&["start", &container.id]).spawn()).collect();
    let outs: Vec<_> = calls.into_iter().map(|call| call.wait()).collect();
    assert_eq!(outs.iter().filter(|out| out.code == 0).count(), 1, "{outs:#?}");
    assert_eq!(container.status(), "running");
}

fn deletes_at_once_end_well(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let calls: Vec<_> = (0..6)
        .map(|_| ctx.call(&["delete", "--force", &container.id]).spawn())
        .collect();
    for call in calls {
        call.wait().ok();
    }
    container.forget();
}

fn execs_and_a_delete_at_once_end_well(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    for _ in 0..5 {
        let container = ctx.start(&bundle);
        let execs: Vec<_> = (0..4)
            .map(|_| container.exec_call(&[], &["sleep", "1000"]).spawn())
            .collect();
        std::thread::sleep(Duration::from_millis(5));
        container.verb(&["delete", "--force"]).ok();
        container.forget();
        for exec in execs {
            // Killed with the container, or refused because it is gone.
            let out = exec.wait();
            assert!([1, 137, 255].contains(&out.code), "{out:#?}");
            assert!(out.stderr.trim() != "proa:", "{out:#?}");
        }
    }
}

/// Another container has got the id while `run` could not look.
fn run_leaves_a_namesake_alone(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("echo up; sleep 1000");
    let container = ctx.container(&bundle);
    let run = ctx
        .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &container.id])
        .spawn();
    eventually("the container runs", || run.stdout().contains("up").then_some(()));
    let (fds, dir) = (format!("/proc/{}/fd", run.child.id()), ctx.root.join(&container.id));
    let holds = |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|path| path == dir);
    eventually("the lock is free", || {
        (!fs::read_dir(&fds).unwrap().flatten().any(holds)).then_some(())
    });
    run.signal(Signal::SIGSTOP);
    container.verb(&["delete", "--force"]).ok();
    ctx.create_call(&bundle, &container.id, &[]).output().ok();
    run.signal(Signal::SIGCONT);
    assert_eq!(run.wait().code, 137);
    assert_eq!(container.status(), "created");
    container.start();
}

fn start_does_not_mind_a_container_that_was_deleted_meanwhile(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("exit 0");
    let container = ctx.container(&bundle);
    let (runtime, root) = (ctx.subject.path.display(), ctx.root.display());
    let script = format!("{runtime} --root {root} delete --force {}", container.id);
    bundle.set(
        "/hooks/poststart",
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]),
    );
    ctx.create_call(&bundle, &container.id, &[]).output().ok();
    container.verb(&["start"]).ok();
    container.verb(&["state"]).refused(&["does not exist"]);
    container.forget();
}

fn start_leaves_the_socket_of_a_namesake(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.container(&bundle);
    let other = ctx.bundle();
    other.args(&["sleep", "1000"]);
    let call = format!("{} --root {}", ctx.subject.path.display(), ctx.root.display());
    let (id, dir) = (&container.id, other.dir.display());
    let script = format!("{call} delete --force {id} && {call} create --bundle {dir} {id} >/dev/null 2>&1 </dev/null");
    bundle.set(
        "/hooks/poststart",
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]),
    );
    ctx.create_call(&bundle, &container.id, &[]).output().ok();
    container.verb(&["start"]).ok();
    assert_eq!(container.status(), "created");
    container.start();
}

/// What a create leaves that was killed just then.
fn a_pid_file_that_was_half_written_is_no_obstacle(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    fs::write(ctx.dir.join(".pid"), "1").unwrap();
    let path = ctx.dir.join("pid");
    let container = ctx.create_with(&bundle, &["--pid-file", path.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&path).unwrap(), container.pid().to_string());
    assert!(!ctx.dir.join(".pid").exists());
}

fn a_full_store_leaves_nothing(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/annotations", json!({"padding": "x".repeat(100_000)}))
        .args(&["sleep", "1000"]);
    let root: PathBuf = ctx.mkdir("small");
    ctx.tmpfs(&root, "size=64k");
    let id = ctx.id();
    let args = [
        "--root",
        root.to_str().unwrap(),
        "create",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &id,
    ];
    ctx.bare_call(&args).output().refused(&["no space left"]);
    assert!(!root.join(&id).exists());
}

/// A terminal whose reader has gone is no reason to leave the container behind.
fn run_with_nowhere_to_write_still_ends(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/terminal", json!(true))
        .sh("echo something; sleep 0.1; echo more; exit 5");
    let id = ctx.id();
    let call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id]);
    call.under(&["sh", "-c", "exec \"$@\" > /dev/full", "sh"])
        .output()
        .code(5);
    ctx.call(&["state", &id]).output().refused(&["does not exist"]);
}

/// Orphans in the host's pid namespace are the runtime's to reap; their ends must not hide that of the program.
fn run_ends_though_many_orphans_end_with_the_program(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .without_namespaces(&["pid"])
        .sh("i=0; while [ $i -lt 40 ]; do (sleep 0.05 & sleep 0.049 &); i=$((i+1)); done; sleep 0.02; exit 5");
    for _ in 0..20 {
        ctx.run(&bundle).code(5);
    }
}

fn a_changed_bundle_does_not_change_the_container(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let log = ctx.dir.join("poststop");
    let hook = |word: &str| {
        let script = format!("echo {word} >> {}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
    };
    bundle.args(&["sleep", "1000"]).set("/hooks/poststop", hook("old"));
    let container = ctx.create(&bundle);
    bundle
        .set("/process/env", json!(["PATH=/bin", "NEW=1"]))
        .set("/hooks/poststop", hook("new"))
        .sh("exit 9");
    container.start();
    let text = container.exec(&["env"]).ok().stdout.clone();
    assert!(!text.contains("NEW"), "{text}");
    fs::remove_file(bundle.dir.join("config.json")).unwrap();
    container.kill("KILL").stopped().delete();
    assert_eq!(fs::read_to_string(&log).unwrap(), "old\n");
}

fn ids_of_full_length_work(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let mut container = ctx.container(&bundle);
    container.id = format!("{}{}", container.id, "x".repeat(250 - container.id.len()));
    ctx.create_call(&bundle, &container.id, &[]).output().ok();
    container.start();
    container.exec(&["true"]).ok();
    container.kill("KILL").stopped().delete();
}

fn warnings_of_init_reach_the_log(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/capabilities/ambient", json!(["CAP_KILL"]))
        .set("/process/capabilities/inheritable", json!([]));
    let words = "can't raise ambient capability CAP_KILL";
    let out = ctx.run(&bundle);
    assert!(out.ok().log.contains(words), "{out:?}");
    let container = ctx.create(&bundle);
    let again = ctx.container(&bundle);
    bundle.set("/linux/cgroupsPath", json!(format!("{}-2", container.cgroup)));
    let out = ctx.create_call(&bundle, &again.id, &[]).output();
    assert!(out.ok().log.contains(words), "{out:?}");
}

fn arguments_that_are_not_unicode_are_refused(ctx: &Ctx) {
    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"c\xff");
    ctx.call(&["state".as_ref(), odd]).output().refused(&["UTF-8"]);
}
