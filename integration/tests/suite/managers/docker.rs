//! Docker: its daemon with a `daemon.json` as the document shows it, and no network.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use proa_integration::ctx::eventually;
use proa_integration::{Ctx, View, host, tests};

use super::{IMAGE, NO_HYBRID, Said, V1, busybox, busybox_with_guest, complaints, documented, say};

tests! {
    docker_runs_execs_updates_and_stops .views(V1).seconds(120).not_for(NO_HYBRID);
    docker_runs_wasm .views(&[View::Hybrid, View::V2]).seconds(120).only_proa();
}

struct Docker<'a> {
    ctx: &'a Ctx,
    daemon: Child,
}

fn docker<'a>(ctx: &'a Ctx, image: &Path) -> Docker<'a> {
    ctx.tmpfs(Path::new("/run"), "mode=755");
    let dir = ctx.mkdir("docker");
    fs::write(dir.join("daemon.json"), documented(ctx, "Docker", "json")).unwrap();
    let log = fs::File::create(dir.join("log")).unwrap();
    let [path, data, exec, pid] = ["daemon.json", "data", "exec", "pid"].map(|name| dir.join(name));
    let daemon = Command::new("dockerd")
        .arg("--config-file")
        .arg(path)
        .arg("--data-root")
        .arg(data)
        .arg("--exec-root")
        .arg(exec)
        .arg("--pidfile")
        .arg(pid)
        .args(["--host", &format!("unix://{}/d.sock", dir.display())])
        .args([
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
            "--storage-driver=vfs",
        ])
        .args(["--cgroup-parent", &ctx.cgroup_parent()])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("dockerd: apt-get install docker.io");
    let it = Docker { ctx, daemon };
    eventually("dockerd", || (it.call(&["version"]).code == 0).then_some(()));
    it.call(&["load", "--input", image.to_str().unwrap()]).ok();
    it
}

impl Docker<'_> {
    fn call(&self, args: &[&str]) -> Said {
        let dir = self.ctx.dir.join("docker");
        let mut command = Command::new("timeout");
        command
            // The client of the daemon's own package.
            .args(["--kill-after=1", "30", "/usr/bin/docker", "--host"])
            .arg(format!("unix://{}/d.sock", dir.display()))
            .args(args)
            .env("HOME", &dir)
            .env("DOCKER_CONFIG", &dir);
        say(&mut command, self.ctx)
    }

    fn run(&self, runtime: &str, flags: &[&str], program: &[&str]) -> Said {
        let run: &[&str] = &["run", "--network", "none", "--runtime", runtime];
        self.call(&[run, flags, &[IMAGE], program].concat())
    }

    fn ended(&self, name: &str) -> String {
        self.call(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name])
            .ok()
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            complaints(&self.ctx.dir.join("docker/log"));
        }
        // The daemon ends its containers and its own containerd.
        let pid = nix::unistd::Pid::from_raw(self.daemon.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("dockerd still runs");
        self.daemon.wait().expect("dockerd");
        // A name for the host's network namespace, once a container has used it, stays for the next daemon.
        let name = self.ctx.dir.join("docker/exec/netns/default");
        if host::mounts().iter().any(|m| Path::new(m) == name) {
            let status = Command::new("umount").arg(&name).status().expect("umount");
            assert!(status.success(), "umount {}: {status}", name.display());
        }
    }
}

fn docker_runs_execs_updates_and_stops(ctx: &Ctx) {
    let docker = docker(ctx, &busybox(ctx));
    let text = docker
        .run("proa", &["--rm"], &["sh", "-c", "echo hello $FROM_IMAGE; exit 42"])
        .code(42);
    assert_eq!(text, "hello yes\n");
    let flags = ["--detach", "--name", "it", "--memory", "64m", "--init", "--read-only"];
    let script = "trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done";
    docker.run("proa", &flags, &["sh", "-c", script]).ok();
    assert_eq!(
        docker.call(&["exec", "--user", "1000", "it", "id", "-u"]).ok(),
        "1000\n"
    );
    docker.call(&["exec", "it", "sh", "-c", "exit 9"]).code(9);
    let limit = || {
        let inside = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
        docker.call(&["exec", "it", "sh", "-c", inside]).ok()
    };
    assert_eq!(limit(), "67108864\n");
    docker
        .call(&["update", "--memory", "32m", "--memory-swap", "-1", "it"])
        .ok();
    assert_eq!(limit(), "33554432\n");
    docker.call(&["pause", "it"]).ok();
    docker.call(&["unpause", "it"]).ok();
    let text = docker.call(&["top", "it"]).ok();
    assert!(text.contains("sh -c"), "{text}");
    docker.call(&["stop", "--time", "10", "it"]).ok();
    assert_eq!(docker.ended("it"), "exited 3\n");
    assert_eq!(docker.call(&["logs", "it"]).ok(), "bye\n");
    docker.call(&["rm", "it"]).ok();

    let said = docker.run("proa", &["--rm"], &["no-such-program"]);
    assert_eq!(said.code, 127, "{said:?}");
    said.refused(&["no-such-program"]);
    assert_eq!(docker.run("proa", &["--rm"], &["/etc/passwd"]).code, 126);
    docker
        .call(&["run", "--rm", "--network", "host", "--runtime", "proa", IMAGE, "true"])
        .ok();
}

fn docker_runs_wasm(ctx: &Ctx) {
    let docker = docker(ctx, &busybox_with_guest(ctx));
    let text = docker
        .run("proa-wasm", &["--rm"], &["/guest.wasm", "one", "two"])
        .code(3);
    assert!(text.contains("wasm two\n"), "{text}");
    docker
        .run("proa-wasm", &["--detach", "--name", "it"], &["/guest.wasm", "loop"])
        .ok();
    assert_eq!(
        docker.call(&["exec", "it", "sh", "-c", "echo $FROM_IMAGE"]).ok(),
        "yes\n"
    );
    docker.call(&["exec", "it", "/guest.wasm", "again"]).code(2);
    docker.call(&["stop", "--time", "10", "it"]).ok();
    assert_eq!(docker.ended("it"), "exited 143\n");
    assert_eq!(docker.call(&["logs", "it"]).ok(), "ready\n");
    docker.call(&["rm", "it"]).ok();
    let said = docker.run("proa-wasm", &["--rm"], &["/component.wasm"]);
    said.refused(&["/component.wasm", "component"]);
}
