//! `NOTIFY_SOCKET`: a container tells its service manager that it is ready (sd_notify(3)), as with runc.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use proa_integration::{Ctx, Kind, tests};

tests! {
    readiness_is_passed_on_at_start .once();
    readiness_is_passed_on_by_a_detached_run .once();
    readiness_is_passed_on_by_a_run_in_the_foreground .once();
    readiness_is_passed_on_from_a_user_namespace .once();
    only_readiness_is_passed_on .once().not_for(&[(Kind::Runc, "looks at the first line only")]);
    an_abstract_socket_is_passed_on_to .once().only_proa();
    without_a_socket_there_is_no_variable .once();
    a_container_that_ends_without_a_word_does_not_hold_up_start .once().not_for(&[(Kind::Runc, "waits for a zombie")]);
}

/// Says `READY=1` and something else from inside.
const SPEAK: &str = "echo $NOTIFY_SOCKET; probe notify \"$NOTIFY_SOCKET\" 'READY=1\nSTATUS=up\n'; exec sleep 1000";

/// A service manager: reads all that comes, and so closes the pipes of barriers.
struct Manager(Receiver<String>);

impl Manager {
    fn new(socket: UnixDatagram) -> Manager {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned();
                if send.send(text).is_err() {
                    break;
                }
            }
        });
        Manager(receive)
    }

    fn hears(&self, text: &str) {
        assert_eq!(self.0.recv_timeout(Duration::from_secs(10)).as_deref(), Ok(text));
    }
}

fn manager(ctx: &Ctx) -> (Manager, PathBuf) {
    let path = ctx.dir.join("host.sock");
    (Manager::new(UnixDatagram::bind(&path).unwrap()), path)
}

fn readiness_is_passed_on_at_start(ctx: &Ctx) {
    let (manager, path) = manager(ctx);
    let bundle = ctx.bundle();
    bundle.sh(SPEAK);
    let pid_file = ctx.dir.join("pid");
    let container = ctx.container(&bundle);
    ctx.create_call(&bundle, &container.id, &["--pid-file", pid_file.to_str().unwrap()])
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .output()
        .ok();
    ctx.call(&["start", &container.id])
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .output()
        .ok();
    manager.hears("READY=1");
    manager.hears(&format!("MAINPID={}", fs::read_to_string(pid_file).unwrap()));
}

fn readiness_is_passed_on_by_a_detached_run(ctx: &Ctx) {
    let (manager, path) = manager(ctx);
    let bundle = ctx.bundle();
    bundle.sh(SPEAK);
    let container = ctx.container(&bundle);
    let call = ctx.call(&[
        "run",
        "--detach",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &container.id,
    ]);
    call.env("NOTIFY_SOCKET", path.to_str().unwrap()).output().ok();
    manager.hears("READY=1");
    manager.hears(&format!("MAINPID={}", container.pid()));
}

fn readiness_is_passed_on_by_a_run_in_the_foreground(ctx: &Ctx) {
    let (manager, path) = manager(ctx);
    let bundle = ctx.bundle();
    bundle.sh(SPEAK);
    let container = ctx.container(&bundle);
    let call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &container.id]);
    let run = call.env("NOTIFY_SOCKET", path.to_str().unwrap()).spawn();
    manager.hears("READY=1");
    container.kill("KILL");
    run.wait().code(137);
    container.forget();
}

fn readiness_is_passed_on_from_a_user_namespace(ctx: &Ctx) {
    let (manager, path) = manager(ctx);
    let bundle = ctx.bundle();
    bundle
        .userns(200_000)
        .set("/process/user", serde_json::json!({"uid": 1000, "gid": 1000}))
        .sh(SPEAK);
    let container = ctx.container(&bundle);
    let args = [
        "run",
        "--detach",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &container.id,
    ];
    ctx.call(&args)
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .output()
        .ok();
    manager.hears("READY=1");
}

/// What else a container says is not for the manager: it could, say, take over its main pid.
fn only_readiness_is_passed_on(ctx: &Ctx) {
    let (manager, path) = manager(ctx);
    let bundle = ctx.bundle();
    bundle.sh("probe notify \"$NOTIFY_SOCKET\" 'MAINPID=1\n'; probe notify \"$NOTIFY_SOCKET\" 'STATUS=x\nREADY=1'; exec sleep 1000");
    let container = ctx.container(&bundle);
    let call = ctx.call(&[
        "run",
        "--detach",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &container.id,
    ]);
    call.env("NOTIFY_SOCKET", path.to_str().unwrap()).output().ok();
    manager.hears("READY=1");
    manager.hears(&format!("MAINPID={}", container.pid()));
}

fn an_abstract_socket_is_passed_on_to(ctx: &Ctx) {
    use std::os::linux::net::SocketAddrExt;
    let name = ctx.id();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let manager = Manager::new(UnixDatagram::bind_addr(&address).unwrap());
    let bundle = ctx.bundle();
    bundle.sh(SPEAK);
    let container = ctx.container(&bundle);
    let call = ctx.call(&[
        "run",
        "--detach",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &container.id,
    ]);
    call.env("NOTIFY_SOCKET", &format!("@{name}")).output().ok();
    manager.hears("READY=1");
}

fn without_a_socket_there_is_no_variable(ctx: &Ctx) {
    let text = ctx.shell("env", |b| b);
    assert!(!text.contains("NOTIFY_SOCKET"), "{text}");
}

fn a_container_that_ends_without_a_word_does_not_hold_up_start(ctx: &Ctx) {
    let (_manager, path) = manager(ctx);
    let bundle = ctx.bundle();
    bundle.sh("exit 0");
    let container = ctx.container(&bundle);
    let call = ctx.call(&[
        "run",
        "--detach",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &container.id,
    ]);
    call.env("NOTIFY_SOCKET", path.to_str().unwrap()).output().ok();
    container.stopped();
}
