//! Older kernels: the same behaviour when newer system calls answer ENOSYS.

use std::fs;

use proa_integration::{Bundle, Container, Ctx, Kind, Output, tests};
use serde_json::json;

tests! {
    without_clone3;
    without_openat2 .once();
    without_the_new_mount_calls .once();
    without_mount_setattr .once();
    without_open_tree .once();
    without_close_range .once();
    without_pidfds .once();
    without_faccessat2 .once();
    without_anything_newer_than_the_floor;
    user_namespaces_without_clone3 .once();
    without_setns_by_pidfd;
    user_namespaces_without_setns_by_pidfd .once();
    without_executable_memfds .once();
    a_terminal_without_anything_newer_than_the_floor .once();
    hook_timeouts_without_pidfds .once();
    readiness_without_pidfds .once();
    a_pidfd_socket_without_pidfds_is_refused .once().only_proa();
    a_listener_without_pidfd_getfd_is_refused .once().only_proa();
    idmapped_mounts_without_mount_setattr_are_refused .once().only_proa();
    recursive_ro_without_mount_setattr_is_refused .once().since_runc(1, 1);
}

/// All that Linux 4.18 lacks of what a runtime may use.
const NEWER: &str = "clone3,openat2,open_tree,move_mount,fsopen,fsconfig,fsmount,mount_setattr,close_range,pidfd_open,\
    pidfd_send_signal,pidfd_getfd,faccessat2,setns-many,memfd-exec";

fn masked(ctx: &Ctx, names: &str, args: &[&str]) -> Output {
    ctx.call(args)
        .under(&[ctx.probe.to_str().unwrap(), "mask", names])
        .output()
}

/// A container with something of everything: mounts of all kinds, masks, a terminal-less program, exec, kill, delete.
fn whole_life(ctx: &Ctx, names: &str, change: impl FnOnce(&Bundle) -> &Bundle) {
    let dir = ctx.mkdir("source");
    fs::write(dir.join("file"), "bound").unwrap();
    let bundle = ctx.bundle();
    bundle
        .bind(&dir, "/mnt", &["rbind", "ro", "nosuid"])
        .file("/secret", "secret")
        .set("/linux/maskedPaths", json!(["/secret"]));
    bundle
        .mount(json!({"destination": "/fresh", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "noexec"]}));
    bundle.sh("cat /mnt/file /secret; touch /mnt/x 2>/dev/null || echo ro; touch /fresh/x && echo up; probe fds; exec sleep 1000");
    change(&bundle);
    let container: Container = ctx.container(&bundle);
    let out = ctx.dir.join("out");
    let create = ctx
        .create_call(&bundle, &container.id, &[])
        .under(&[ctx.probe.to_str().unwrap(), "mask", names]);
    let create = create.stdout_to(&out).output();
    assert_eq!(create.code, 0, "{create:?}");
    masked(ctx, names, &["start", &container.id]).ok();
    let text = proa_integration::ctx::eventually("the program", || {
        Some(fs::read_to_string(&out).unwrap()).filter(|t| t.contains("\n2 "))
    });
    assert!(text.starts_with("boundro\nup\n"), "{text}");
    assert_eq!(text.lines().count(), 5, "descriptors leak: {text}");
    assert_eq!(
        masked(ctx, names, &["exec", &container.id, "sh", "-c", "hostname; exit 7"])
            .code(7)
            .text(),
        "testhost"
    );
    masked(ctx, names, &["kill", &container.id, "KILL"]).ok();
    container.stopped();
    masked(ctx, names, &["delete", &container.id]).ok();
    container.forget();
    bundle.sh("exit 9");
    let id = ctx.id();
    masked(ctx, names, &["run", "--bundle", bundle.dir.to_str().unwrap(), &id]).code(9);
}

fn without_clone3(ctx: &Ctx) {
    whole_life(ctx, "clone3", |b| b);
}

fn without_openat2(ctx: &Ctx) {
    whole_life(ctx, "openat2", |b| b);
}

fn without_the_new_mount_calls(ctx: &Ctx) {
    whole_life(ctx, "fsopen,fsconfig,fsmount,move_mount,open_tree,mount_setattr", |b| b);
}

fn without_mount_setattr(ctx: &Ctx) {
    whole_life(ctx, "mount_setattr", |b| b);
}

fn without_open_tree(ctx: &Ctx) {
    whole_life(ctx, "open_tree", |b| b);
}

fn without_close_range(ctx: &Ctx) {
    whole_life(ctx, "close_range", |b| b);
}

fn without_pidfds(ctx: &Ctx) {
    whole_life(ctx, "pidfd_open,pidfd_send_signal", |b| b);
}

fn without_faccessat2(ctx: &Ctx) {
    whole_life(ctx, "faccessat2", |b| b);
}

fn without_anything_newer_than_the_floor(ctx: &Ctx) {
    whole_life(ctx, NEWER, |b| b);
}

fn user_namespaces_without_clone3(ctx: &Ctx) {
    whole_life(ctx, NEWER, |b| b.userns(200_000));
}

fn recursive_ro_without_mount_setattr_is_refused(ctx: &Ctx) {
    // A flag that cannot be applied must not be dropped: it protects something.
    let dir = ctx.mkdir("source");
    let bundle = ctx.bundle();
    bundle.bind(&dir, "/mnt", &["rbind", "rro"]);
    let out = masked(
        ctx,
        "mount_setattr",
        &["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()],
    );
    assert!(ctx.subject.kind == Kind::Crun || out.code != 0, "{out:?}");
}

/// Linux 5.3 to 5.7 have pidfds, by which no namespace can be joined.
fn without_setns_by_pidfd(ctx: &Ctx) {
    whole_life(ctx, "setns-many", |b| b);
}

fn user_namespaces_without_setns_by_pidfd(ctx: &Ctx) {
    whole_life(ctx, "setns-many", |b| b.userns(200_000));
}

/// Before Linux 6.3: the copy of the executable that is needed where its mount can't be cloned.
fn without_executable_memfds(ctx: &Ctx) {
    whole_life(ctx, "open_tree,memfd-exec", |b| b);
}

fn a_terminal_without_anything_newer_than_the_floor(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/process/terminal", json!(true)).sh("tty; exit 9");
    let id = ctx.id();
    let out = masked(ctx, NEWER, &["run", "--bundle", bundle.dir.to_str().unwrap(), &id]);
    assert!(out.code(9).stdout.contains("/dev/"), "{out:?}");
}

fn hook_timeouts_without_pidfds(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let hook = |seconds: i64, timeout: i64| json!([{"path": "/bin/sleep", "args": ["sleep", seconds.to_string()], "timeout": timeout}]);
    let args = ["run", "--bundle", bundle.dir.to_str().unwrap()];
    for names in ["pidfd_open", "openat2"] {
        bundle.set("/hooks/createRuntime", hook(1000, 1));
        let (id, before) = (ctx.id(), std::time::Instant::now());
        masked(ctx, names, &[args[0], args[1], args[2], &id]).refused(&["timeout"]);
        assert!(before.elapsed().as_secs() < 10);
        bundle.set("/hooks/createRuntime", hook(0, i64::MAX));
        masked(ctx, names, &[args[0], args[1], args[2], &ctx.id()]).ok();
    }
}

fn readiness_without_pidfds(ctx: &Ctx) {
    let socket = std::os::unix::net::UnixDatagram::bind(ctx.dir.join("host.sock")).unwrap();
    let bundle = ctx.bundle();
    let container = ctx.container(&bundle);
    let run = |script: &str| {
        bundle.sh(script);
        let args = [
            "run",
            "--detach",
            "--bundle",
            bundle.dir.to_str().unwrap(),
            &container.id,
        ];
        ctx.call(&args)
            .env("NOTIFY_SOCKET", ctx.dir.join("host.sock").to_str().unwrap())
            .under(&[ctx.probe.to_str().unwrap(), "mask", "pidfd_open"])
            .spawn()
    };
    run("exit 0").wait().ok();
    container.verb(&["delete", "--force"]).ok();
    let running = run("sleep 0.1; probe notify $NOTIFY_SOCKET READY=1; exec sleep 1000");
    let mut buffer = [0; 64];
    for expected in ["READY=1\n", "MAINPID=", "BARRIER=1"] {
        let length = socket.recv(&mut buffer).unwrap();
        assert!(String::from_utf8_lossy(&buffer[..length]).starts_with(expected));
    }
    running.wait().ok();
}

fn a_pidfd_socket_without_pidfds_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let path = ctx.dir.join("pidfd.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (path, bundle) = (path.to_str().unwrap(), bundle.dir.to_str().unwrap());
    let id = ctx.id();
    masked(ctx, NEWER, &["create", "--pidfd-socket", path, "--bundle", bundle, &id]).refused(&["no pidfd"]);
}

fn a_listener_without_pidfd_getfd_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let path = ctx.dir.join("agent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    bundle.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}),
    );
    let id = ctx.id();
    let args = ["run", "--bundle", bundle.dir.to_str().unwrap(), &id];
    masked(ctx, "pidfd_getfd", &args).refused(&["pidfd_getfd"]);
}

fn idmapped_mounts_without_mount_setattr_are_refused(ctx: &Ctx) {
    let source = ctx.mkdir("source");
    let bundle = ctx.bundle();
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    bundle.mount(json!({"destination": "/mnt", "source": source, "options": ["bind"],
        "uidMappings": map, "gidMappings": map}));
    let id = ctx.id();
    let args = ["run", "--bundle", bundle.dir.to_str().unwrap(), &id];
    masked(ctx, "mount_setattr", &args).refused(&["idmap", "mount_setattr"]);
    masked(ctx, "open_tree", &args).refused(&["idmap", "open_tree"]);
}
