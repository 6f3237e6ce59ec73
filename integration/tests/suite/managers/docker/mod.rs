//! Docker: its daemon with a `daemon.json` as the document shows it, and no bridge.

mod refusals;
mod security;
mod setup;
mod verbs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proa_integration::ctx::eventually;
use proa_integration::{Ctx, Test, View, host};

use super::later::Release;
use super::{IMAGE, Inspect, NO_HYBRID, Said, V1, complaints, documented, say};

/// The tests of these modules.
pub fn tests() -> Vec<Test> {
    [verbs::tests(), security::tests(), refusals::tests(), setup::tests()].concat()
}

struct Docker<'a> {
    ctx: &'a Ctx,
    dir: PathBuf,
    daemon: Child,
}

/// The daemon of that release, with that image.
fn docker<'a>(ctx: &'a Ctx, release: Release, image: &Path) -> Docker<'a> {
    docker_with(ctx, release, image, &[])
}

/// The same with further flags.
fn docker_with<'a>(ctx: &'a Ctx, release: Release, image: &Path, flags: &[&str]) -> Docker<'a> {
    ctx.tmpfs(Path::new("/run"), "mode=755");
    release.enter(ctx);
    let config = documented(ctx, "Docker", "json");
    configured(ctx, image, &config, flags)
}

/// The daemon of the release that was entered, with that `daemon.json`.
fn configured<'a>(ctx: &'a Ctx, image: &Path, config: &str, flags: &[&str]) -> Docker<'a> {
    let dir = ctx.mkdir("docker");
    fs::write(dir.join("daemon.json"), config).unwrap();
    let daemon = start(ctx, &dir, flags);
    let it = Docker { ctx, dir, daemon };
    it.is_up();
    it.call(&["load", "--input", image.to_str().unwrap()]).ok();
    it
}

fn start(ctx: &Ctx, dir: &Path, flags: &[&str]) -> Child {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let [path, data, exec, pid] = ["daemon.json", "data", "exec", "pid"].map(|name| dir.join(name));
    Command::new("dockerd")
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
        .args(flags)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("dockerd: apt-get install docker.io")
}

impl Docker<'_> {
    /// A call of the client of the daemon's own package.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=1", "40", "/usr/bin/docker", "--host"])
            .arg(format!("unix://{}/d.sock", self.dir.display()))
            .args(args)
            .env("HOME", &self.dir)
            .env("DOCKER_CONFIG", &self.dir);
        command
    }

    fn call(&self, args: &[&str]) -> Said {
        say(&mut self.command(args), self.ctx)
    }

    fn is_up(&self) {
        eventually("dockerd", || (self.call(&["version"]).code == 0).then_some(()));
    }

    /// Ends the daemon and starts it again with the same flags.
    fn restart(&mut self, flags: &[&str]) {
        self.stop();
        self.daemon = start(self.ctx, &self.dir, flags);
        self.is_up();
    }

    fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.daemon.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("dockerd still runs");
        self.daemon.wait().expect("dockerd");
    }

    fn run(&self, runtime: &str, flags: &[&str], program: &[&str]) -> Said {
        let mut run = vec!["run", "--runtime", runtime];
        if !flags.iter().any(|flag| flag.starts_with("--network")) {
            run.push("--network=none");
        }
        self.call(&[&run, flags, &[IMAGE], program].concat())
    }

    /// Runs a script to success; what it prints.
    ///
    /// The container outlives its script a little: on a busy machine dockerd may open the fifo of its output only when a short
    /// one is over, and what it printed is lost ("copy stream failed: reading from a closed fifo").
    #[track_caller]
    fn shell(&self, flags: &[&str], script: &str) -> String {
        let script = format!("{script}\nstatus=$?; sleep 0.2; exit $status");
        self.run("proa", &[&["--rm"], flags].concat(), &["sh", "-c", &script])
            .ok()
    }

    fn exec(&self, flags: &[&str], program: &[&str]) -> Said {
        self.call(&[&["exec"], flags, &["it"], program].concat())
    }
}

impl Inspect for Docker<'_> {
    fn inspect_with(&self, args: &[&str]) -> Said {
        self.call(args)
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            complaints(&self.dir.join("log"));
        }
        // Containers outlive a daemon with live-restore.
        let left = self.call(&["ps", "--all", "--quiet"]).text;
        for id in left.split_whitespace() {
            self.call(&["rm", "--force", id]);
        }
        // The daemon ends its own containerd.
        self.stop();
        // Its mount of its own directory, and a name for the host's network namespace, stay for the next daemon.
        for mount in host::mounts().iter().rev() {
            if Path::new(mount).starts_with(&self.dir) {
                let status = Command::new("umount").arg(mount).status().expect("umount");
                assert!(status.success(), "umount {mount}: {status}");
            }
        }
    }
}
