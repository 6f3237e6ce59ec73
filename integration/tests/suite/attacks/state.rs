//! What the runtime remembers: reached by others, or by names and numbers that mean something else.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use proa_integration::{Ctx, tests};
use serde_json::json;

use super::withstood;

tests! {
    an_id_is_no_path .once();
    a_link_is_no_container .once();
    a_pid_that_was_reused_is_left_alone .once().only_proa();
    others_can_read_nothing_of_a_container .once().only_proa();
    others_cannot_start_a_container .once().only_proa();
    a_pid_file_is_not_written_through_a_link .once();
}

/// An id that is a path would let whoever chooses ids remove directories: `delete --force ../x`.
fn an_id_is_no_path(ctx: &Ctx) {
    let victim = ctx.mkdir("victim");
    fs::write(victim.join("file"), "").unwrap();
    for id in ["../victim", victim.to_str().unwrap(), "..", "x/../../victim"] {
        for verb in [&["delete", "--force"][..], &["state"], &["start"]] {
            let out = ctx.call(&[verb, &[id]].concat()).output();
            withstood!(
                victim.join("file").exists(),
                "{verb:?} {id} removed a directory of the host"
            );
            out.refused(&["invalid container id", "does not exist"]);
        }
        let bundle = ctx.bundle();
        let out = ctx.create_call(&bundle, id, &[]).output();
        withstood!(
            !victim.join("state.json").exists(),
            "a container was made of a directory of the host"
        );
        out.refused(&["invalid container id"]);
    }
}

/// A container's directory that is a link to another directory.
fn a_link_is_no_container(ctx: &Ctx) {
    let victim = ctx.mkdir("victim");
    fs::write(victim.join("file"), "").unwrap();
    let id = ctx.id();
    symlink(&victim, ctx.root.join(&id)).unwrap();
    ctx.call(&["delete", "--force", &id]).output();
    withstood!(victim.join("file").exists(), "what a link leads to was removed");
    ctx.call(&["kill", &id, "KILL"]).output().refused(&[""]);
    fs::remove_file(ctx.root.join(&id)).unwrap();
}

/// A container's init has ended, and its pid belongs to somebody else by now: neither `kill`, `exec` nor `delete --force` may
/// touch that process.
fn a_pid_that_was_reused_is_left_alone(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    container.kill("KILL").stopped();
    let mut other = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let path = ctx.root.join(&container.id).join("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    state["pid"] = json!(other.id());
    fs::write(&path, state.to_string()).unwrap();
    let executed = ctx.dir.join("executed");
    let touch = ["touch", executed.to_str().unwrap()];
    container.exec_call(&[], &touch).output();
    let killed = ctx.call(&["kill", &container.id, "KILL"]).output();
    let deleted = container.verb(&["delete", "--force"]);
    let lives = other.try_wait().unwrap().is_none();
    other.kill().unwrap();
    other.wait().unwrap();
    withstood!(
        !executed.exists(),
        "a program was executed in somebody else's namespaces"
    );
    withstood!(lives, "somebody else's process was killed");
    killed.refused(&["container not running"]);
    deleted.ok();
    container.forget();
}

/// The configuration that is kept has the environment, and with it secrets.
fn others_can_read_nothing_of_a_container(ctx: &Ctx) {
    fs::set_permissions(&ctx.root, fs::Permissions::from_mode(0o755)).unwrap();
    let bundle = ctx.bundle();
    bundle
        .set("/process/env", json!(["PATH=/bin", "TOKEN=hunter2"]))
        .args(&["sleep", "1000"]);
    let container = ctx.container(&bundle);
    ctx.create_call(&bundle, &container.id, &[])
        .under(&["sh", "-c", "umask 0 && exec \"$@\"", "sh"])
        .output()
        .ok();
    let dir = ctx.root.join(&container.id);
    let script = format!(
        "cd {0} && cat config.json state.json; echo x >{0}/new && echo WROTE",
        dir.display()
    );
    let out = as_somebody(&["sh", "-c", &script]);
    withstood!(
        !out.contains("hunter2"),
        "somebody else read the container's environment"
    );
    withstood!(!out.contains("WROTE"), "somebody else wrote to the container's state");
}

/// Who connects to the start socket starts the container, and keeps the one from it who should.
fn others_cannot_start_a_container(ctx: &Ctx) {
    fs::set_permissions(&ctx.root, fs::Permissions::from_mode(0o755)).unwrap();
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.container(&bundle);
    ctx.create_call(&bundle, &container.id, &[])
        .under(&["sh", "-c", "umask 0 && exec \"$@\"", "sh"])
        .output()
        .ok();
    let attack = ctx.dir.join("attack");
    fs::copy(&ctx.attack, &attack).unwrap();
    let socket = ctx.root.join(&container.id).join("start.sock");
    let out = as_somebody(&[attack.to_str().unwrap(), "connect", socket.to_str().unwrap()]);
    withstood!(
        !out.contains("CONNECTED"),
        "somebody else connected to the start socket"
    );
    container.start();
}

/// What another user gets to see of a command; nothing else may stand in its way.
fn as_somebody(command: &[&str]) -> String {
    let out = Command::new("setpriv")
        .args(["--reuid", "12345", "--regid", "12345", "--clear-groups", "--"])
        .args(command)
        .output()
        .unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// `--pid-file` in a directory that others can write to: a link there is replaced, not followed.
fn a_pid_file_is_not_written_through_a_link(ctx: &Ctx) {
    let victim = ctx.dir.join("victim");
    fs::write(&victim, "untouched").unwrap();
    let file = ctx.dir.join("pid");
    symlink(&victim, &file).unwrap();
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.create_with(&bundle, &["--pid-file", file.to_str().unwrap()]);
    withstood!(
        fs::read_to_string(&victim).unwrap() == "untouched",
        "the pid was written through a link"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), container.pid().to_string());
}
