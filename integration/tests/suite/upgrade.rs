//! Two versions of proa and one container: what the one has left, the other finds.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use proa_integration::{Container, Ctx, tests};
use serde_json::{Map, Value, json};

tests! {
    containers_of_before_are_served .only_proa();
    a_start_of_before_starts_a_container .once().only_proa();
    an_init_of_before_is_started .once().only_proa();
    an_init_that_came_later_is_refused_by_name .once().only_proa();
    containers_of_a_newer_proa_are_refused_by_name .only_proa();
    a_newer_record_that_cannot_be_read_stops_nobody_else .once().only_proa();
    a_wasm_container_of_before_is_served .once().only_proa();
}

fn path(ctx: &Ctx, container: &Container) -> PathBuf {
    ctx.root.join(&container.id).join("state.json")
}

/// Writes the record as another version would have.
fn record(ctx: &Ctx, container: &Container, change: impl FnOnce(&mut Map<String, Value>)) {
    let path = path(ctx, container);
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(state["version"], json!(1), "what this version writes");
    change(state.as_object_mut().unwrap());
    fs::write(path, state.to_string()).unwrap();
}

/// What was written before there were versions.
fn of_before(ctx: &Ctx, container: &Container) {
    record(ctx, container, |state| drop(state.remove("version")));
}

fn containers_of_before_are_served(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("echo up; exec sleep 1000");
    let container = ctx.create(&bundle);
    of_before(ctx, &container);
    assert_eq!(container.status(), "created");
    container.start().says("up");
    // An exec that runs while the version changes.
    let exec = container.exec_call(&[], &["sh", "-c", "echo in; read x; echo $x"]);
    exec.stdin(b"word\n").output().ok();
    assert_eq!(container.exec(&["echo", "executed"]).ok().text(), "executed");
    if container.verb(&["pause"]).code == 0 {
        assert_eq!(container.status(), "paused");
        container.verb(&["resume"]).ok();
    }
    let ids = ctx.call(&["list", "--quiet"]).output();
    assert!(ids.stdout.contains(&container.id));
    container.kill("KILL").stopped();
    container.delete();
}

fn start_address(ctx: &Ctx, container: &Container) -> UnixAddr {
    let path = ctx.root.join(&container.id).join("start.sock");
    UnixAddr::new(&path).expect("a path that is short enough")
}

fn seqpacket() -> OwnedFd {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

fn receive(fd: &OwnedFd) -> String {
    let mut bytes = [0; 256];
    let length = nix::unistd::read(fd, &mut bytes).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

/// A `start` that knows of no versions says `S`, looks at the first byte of what it gets, and then waits for the end.
fn a_start_of_before_starts_a_container(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("echo up; exec sleep 1000");
    let container = ctx.create(&bundle);
    // What a version that is yet to come might ask is no reason to end.
    for unknown in [&b"?"[..], b"S?", b"Zmore"] {
        let asking = seqpacket();
        connect(asking.as_raw_fd(), &start_address(ctx, &container)).unwrap();
        nix::unistd::write(&asking, unknown).unwrap();
        assert_eq!(receive(&asking), "", "no answer");
    }
    assert_eq!(container.status(), "created");
    let asking = seqpacket();
    connect(asking.as_raw_fd(), &start_address(ctx, &container)).unwrap();
    nix::unistd::write(&asking, b"S").unwrap();
    assert_eq!(receive(&asking), "A0", "it goes on in the version that was asked for");
    assert_eq!(receive(&asking), "", "the program runs");
    container.says("up");
    assert_eq!(container.status(), "running");
}

/// Puts a listener of the test's in the place of init's; it hears one start, and answers. Returns what it heard and what
/// became of the call.
fn answer(ctx: &Ctx, container: &Container, with: &str) -> (String, proa_integration::Output) {
    let path = ctx.root.join(&container.id).join("start.sock");
    fs::remove_file(&path).unwrap();
    let listener = seqpacket();
    bind(listener.as_raw_fd(), &start_address(ctx, container)).unwrap();
    listen(&listener, Backlog::new(4).unwrap()).unwrap();
    let start = ctx.call(&["start", &container.id]).spawn();
    loop {
        let connection = rustix::net::accept(&listener).unwrap();
        let heard = receive(&connection);
        // A connection without a word asks for the status.
        if heard.is_empty() {
            continue;
        }
        nix::unistd::write(&connection, with.as_bytes()).unwrap();
        drop((connection, listener));
        return (heard, start.wait());
    }
}

fn an_init_of_before_is_started(ctx: &Ctx) {
    let container = ctx.create(&ctx.bundle());
    of_before(ctx, &container);
    let (heard, out) = answer(ctx, &container, "A");
    // It looks at the first byte only.
    assert_eq!(heard, "S1");
    out.ok();
}

fn an_init_that_came_later_is_refused_by_name(ctx: &Ctx) {
    let container = ctx.create(&ctx.bundle());
    let (_, out) = answer(ctx, &container, "A7");
    out.refused(&["was made by a newer proa (state version 7, this one knows 1 and older)"]);
}

fn containers_of_a_newer_proa_are_refused_by_name(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.create(&bundle);
    let words = format!("container {} was made by a newer proa (state version 7", container.id);
    let newer = |state: &mut Map<String, Value>| {
        state.insert("version".into(), json!(7));
        state.insert("more".into(), json!({"that": "is new"}));
    };
    record(ctx, &container, newer);
    for verb in [
        &["start"][..],
        &["pause"],
        &["resume"],
        &["update", "--pids-limit", "9"],
        &["events", "--stats"],
    ] {
        container.verb(verb).refused(&[&words]);
    }
    container.exec(&["true"]).refused(&[&words]);
    ctx.call(&["checkpoint", &container.id]).output().refused(&[&words]);
    // What can be told, is, and what has to work, does.
    assert_eq!(container.status(), "created");
    let list = ctx.call(&["list"]).output();
    assert!(list.ok().stdout.contains(&container.id), "{list:?}");
    container.kill("KILL").stopped();
    container.verb(&["delete"]).refused(&[&words]);
    let deleted = container.verb(&["delete", "--force"]);
    deleted.ok();
    assert!(
        deleted.log.contains(&words) || deleted.stderr.contains(&words),
        "{deleted:?}"
    );
    assert!(!path(ctx, &container).exists());
    container.forget();
}

fn a_newer_record_that_cannot_be_read_stops_nobody_else(ctx: &Ctx) {
    let (known, other) = (ctx.create(&ctx.bundle()), ctx.create(&ctx.bundle()));
    let before = fs::read(path(ctx, &other)).unwrap();
    record(ctx, &other, |state| {
        state.insert("version".into(), json!(7));
        state.remove("startTime");
    });
    let list = ctx.call(&["list"]).output();
    list.ok();
    let words = format!("container {} was made by a newer proa", other.id);
    assert!(
        list.stdout.contains(&known.id) && list.stderr.contains(&words),
        "{list:?}"
    );
    other.verb(&["state"]).refused(&[&words]);
    other.verb(&["delete", "--force"]).refused(&[&words]);
    // Whoever has that other proa deletes it.
    fs::write(path(ctx, &other), before).unwrap();
}

/// The hull that waits for `start` is of before, and so is the page on which it tells of the guest.
fn a_wasm_container_of_before_is_served(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let source = "#include <unistd.h>\n#include <stdio.h>\nint main(void) { puts(\"up\"); fflush(stdout); for (;;) usleep(10000); }";
    let module = fs::read(proa_integration::wasm::compile(&ctx.dir, "loop", source, &[])).unwrap();
    fs::write(bundle.path("/loop.wasm"), module).unwrap();
    bundle
        .args(&["/loop.wasm"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    let container = ctx.create(&bundle);
    of_before(ctx, &container);
    container.start().says("up");
    container.exec(&["/bin/busybox", "true"]).ok();
    container.kill("KILL").stopped();
    container.delete();
}
