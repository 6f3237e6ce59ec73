//! Containers as services of systemd, and what they tell it.

use std::os::unix::net::UnixDatagram;

use proa_integration::Ctx;
use proa_integration::ctx::eventually;

use super::super::busybox;
use super::*;

of_both! {
    podman_tells_systemd_of_readiness .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_generates_units_that_run .views(&[View::Systemd]).seconds(120).not_for(NO_HYBRID);
    podman_makes_units_of_quadlets .views(&[View::Systemd]).seconds(120).not_for(NO_HYBRID);
}

fn podman_tells_systemd_of_readiness(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    for (mode, told) in [
        ("conmon", &["MAINPID", "READY"][..]),
        ("container", &["MAINPID"]),
        ("ignore", &[]),
    ] {
        let path = podman.dir.join(mode);
        let socket = UnixDatagram::bind(&path).unwrap();
        let flags = ["--detach", &format!("--name={mode}"), &format!("--sdnotify={mode}")];
        let args = podman.run_args(&flags, &[IMAGE, "sh", "-c", "echo at $NOTIFY_SOCKET.; sleep 1000"]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        say(podman.command("proa", &args).env("NOTIFY_SOCKET", &path), ctx).ok();
        socket.set_nonblocking(true).unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        // All of it has been sent when `run --detach` returns.
        while let Ok(size) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..size]).into_owned();
            heard.extend(text.lines().map(|line| line.split('=').next().unwrap().to_owned()));
        }
        heard.sort();
        heard.dedup();
        assert_eq!(heard, told, "{mode}");
        if mode == "container" {
            let text = eventually("the program's word", || {
                let text = podman.call(&["logs", mode]).ok();
                text.ends_with(".\n").then_some(text)
            });
            assert!(text.contains("notify"), "{text}");
            let said = "[ -S $NOTIFY_SOCKET ] && echo socket";
            assert_eq!(podman.call(&["exec", mode, "sh", "-c", said]).ok(), "socket\n");
        }
    }
}

/// Puts a unit where the view's systemd looks, with what podman needs in its environment, and starts it.
fn start(podman: &Podman, name: &str, text: &str) {
    let ctx = podman.ctx;
    fs::write(ctx.dir.join("units").join(name), text).unwrap();
    let drop_in = ctx.mkdir(&format!("units/{name}.d"));
    let mut more = "[Unit]\nDefaultDependencies=no\n[Service]\n".to_owned();
    for (key, value) in podman.environment() {
        more += &format!("Environment={key}={value}\n");
    }
    fs::write(drop_in.join("environment.conf"), more).unwrap();
    ctx.systemctl(&["daemon-reload"]);
    ctx.systemctl(&["start", name]);
    assert_eq!(
        ctx.systemctl(&["show", "--property=ActiveState", name]),
        "ActiveState=active\n"
    );
}

fn stop(podman: &Podman, name: &str) {
    podman.ctx.systemctl(&["stop", name]);
    assert_eq!(podman.call(&["ps", "--quiet"]).ok(), "");
}

fn podman_generates_units_that_run(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let args = [
        "create",
        "--name=it",
        "--network=none",
        "--ulimit=host",
        IMAGE,
        "sh",
        "-c",
        script,
    ];
    podman.call(&args).ok();
    for (name, flags) in [("container-it.service", &[][..]), ("new.service", &["--new"])] {
        let mut text = podman
            .call(&[&["generate", "systemd", "--name"], flags, &["it"]].concat())
            .ok();
        let at = text.find("# container-it.service").expect("a unit");
        text.drain(..at);
        if !flags.is_empty() {
            // Its own container, whose name must be free.
            podman.call(&["rm", "it"]).ok();
        }
        start(&podman, name, &text);
        assert_eq!(podman.call(&["exec", "it", "echo", "hi"]).ok(), "hi\n");
        let main = ctx.systemctl(&["show", "--property=MainPID", "--value", name]);
        let name_of = fs::read_to_string(format!("/proc/{}/comm", main.trim())).unwrap();
        assert_eq!(name_of, "conmon\n");
        stop(&podman, name);
    }
}

fn podman_makes_units_of_quadlets(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    // Of podman 4.4.
    if release == Release::System {
        return;
    }
    let dir = ctx.mkdir("quadlets");
    let quadlet = format!(
        "[Container]\nImage={IMAGE}\nContainerName=it\nNetwork=none\nUlimit=host\nReadOnly=true\nUser=1000\n\
         PodmanArgs=--cgroups=enabled\nExec=sh -c \"trap 'exit 0' TERM; while :; do sleep 0.1; done\"\n"
    );
    fs::write(dir.join("it.container"), quadlet).unwrap();
    let out = ctx.mkdir("generated");
    let mut generator = podman.program(&["/usr/libexec/podman/quadlet", "--no-kmsg-log", out.to_str().unwrap()]);
    say(generator.env("QUADLET_UNIT_DIRS", &dir), ctx).ok();
    let text = fs::read_to_string(out.join("it.service")).unwrap();
    start(&podman, "it.service", &text);
    assert_eq!(podman.call(&["exec", "it", "id", "-u"]).ok(), "1000\n");
    stop(&podman, "it.service");
}
