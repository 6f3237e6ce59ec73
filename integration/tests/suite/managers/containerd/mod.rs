//! containerd, the distribution's and a later one: the daemon, and its own client, which has the shim, the runtime and nothing
//! else between it and a container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proa_integration::console::Terminal;
use proa_integration::ctx::eventually;
use proa_integration::{Ctx, Test};

pub use super::later::Release;
use super::{IMAGE, Said, complaints, say};

mod checkpoint;
mod daemon;
mod refusals;
mod tasks;
mod wasm;

/// The tests by containerd's own client.
pub fn tests() -> Vec<Test> {
    [
        tasks::tests(),
        checkpoint::tests(),
        daemon::tests(),
        refusals::tests(),
        wasm::tests(),
    ]
    .concat()
}

impl Release {
    /// Where its programs are, if not in the `PATH`: they use the system's C library, of which they need little.
    fn bin(self) -> Option<PathBuf> {
        self.usr().map(|usr| usr.join("bin"))
    }

    /// The path of one of its programs.
    fn program(self, name: &str) -> PathBuf {
        self.bin().map_or_else(|| name.into(), |bin| bin.join(name))
    }

    /// `PATH` with its programs first: the daemon finds its shim there.
    pub fn path(self) -> String {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        self.bin()
            .map_or_else(|| path.clone(), |bin| format!("{}:{path}", bin.display()))
    }
}

/// A configuration without the CRI plugin.
const NO_CRI: &str = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";

pub struct Containerd<'a> {
    ctx: &'a Ctx,
    pub release: Release,
    daemon: Child,
    env: Vec<(String, String)>,
    pub socket: PathBuf,
    namespace: String,
}

/// A containerd without CRI, with that image.
fn containerd<'a>(ctx: &'a Ctx, release: Release, image: &Path) -> Containerd<'a> {
    let it = start(ctx, release, NO_CRI, &[]);
    it.import(image);
    it
}

/// A containerd with this configuration, to which the test's directories are added.
pub fn start<'a>(ctx: &'a Ctx, release: Release, config: &str, env: &[(&str, &str)]) -> Containerd<'a> {
    // A systemd of the view lives in /run.
    if !ctx.view.has_systemd() {
        ctx.tmpfs(Path::new("/run"), "mode=755");
    }
    let dir = ctx.mkdir("containerd");
    let socket = dir.join("c.sock");
    let (version, rest) = config.trim_start().split_once('\n').expect("lines");
    assert!(version.starts_with("version = "), "{config}");
    let config = format!(
        "{version}\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n{rest}\n[grpc]\naddress = \"{1}\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{0}/opt\"\n",
        dir.display(),
        socket.display(),
    );
    fs::write(dir.join("config.toml"), config).unwrap();
    // The daemon's TMPDIR is the shim's, which writes there what is to be executed; not every view has a /tmp for that.
    let own = [("PATH", release.path()), ("TMPDIR", dir.display().to_string())];
    let env = own
        .into_iter()
        .chain(env.iter().map(|(key, value)| (*key, (*value).to_owned())));
    let env: Vec<_> = env.map(|(key, value)| (key.to_owned(), value)).collect();
    let it = Containerd {
        ctx,
        release,
        daemon: launch(ctx, release, &env),
        env,
        socket,
        namespace: ctx.cgroup_parent().trim_start_matches('/').to_owned(),
    };
    it.answers();
    it
}

fn launch(ctx: &Ctx, release: Release, env: &[(String, String)]) -> Child {
    let dir = ctx.dir.join("containerd");
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    Command::new(release.program("containerd"))
        .arg("--config")
        .arg(dir.join("config.toml"))
        .envs(env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("containerd")
}

impl Containerd<'_> {
    /// Uses another of containerd's namespaces; the CRI plugin's is `k8s.io`.
    pub fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.namespace);
        self
    }

    fn answers(&self) {
        eventually("containerd", || (self.ctr(&["version"]).code == 0).then_some(()));
    }

    /// Ends the daemon, and only it.
    pub fn end(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.daemon.id().cast_signed()), signal).expect("containerd still runs");
        self.daemon.wait().expect("containerd");
    }

    /// Starts the daemon that was ended.
    pub fn again(&mut self) {
        self.daemon = launch(self.ctx, self.release, &self.env);
        self.answers();
    }

    pub fn import(&self, image: &Path) {
        let image = image.to_str().unwrap();
        self.ctr(&["images", "import", "--snapshotter", "overlayfs", image])
            .ok();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=1", "60"])
            .arg(self.release.program("ctr"))
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", &self.namespace])
            .args(args)
            .env("TMPDIR", self.ctx.dir.join("containerd"));
        command
    }

    pub fn ctr(&self, args: &[&str]) -> Said {
        say(&mut self.command(args), self.ctx)
    }

    /// The runtime's `--root`, of which containerd uses a directory for each of its namespaces.
    fn root(&self) -> String {
        self.ctx.dir.join("runc-root").display().to_string()
    }

    fn run_args<'s>(&'s self, root: &'s str, flags: &[&'s str], id: &'s str, program: &[&'s str]) -> Vec<&'s str> {
        let runtime = self.ctx.subject.path.to_str().unwrap();
        let mut args = vec!["run", "--runc-binary", runtime, "--runc-root", root];
        args.extend(flags);
        args.extend([IMAGE, id]);
        args.extend(program);
        args
    }

    fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Said {
        self.ctr(&self.run_args(&self.root(), flags, id, program))
    }

    /// A container in the background; its id.
    fn detached(&self, flags: &[&str], program: &[&str]) -> String {
        let id = self.ctx.id();
        self.run(&[&["--detach"], flags].concat(), &id, program).ok();
        id
    }

    /// Runs `ctr` on a terminal, of which `talk` sees the other side; ctr's exit status and all that was shown.
    fn on_a_terminal(&self, args: &[&str], talk: impl FnOnce(&mut Terminal)) -> Said {
        let (mut terminal, slave) = Terminal::open();
        let mut command = self.command(args);
        eprintln!("+ {command:?} (on a terminal)");
        let again = || slave.try_clone().unwrap();
        let mut child = command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
        drop((slave, command));
        talk(&mut terminal);
        let text = terminal.rest();
        let code = child.wait().unwrap().code().unwrap_or(-1);
        Said { code, text }
    }

    /// The line of `ctr task ls` about it: id, pid, state.
    fn listed(&self, id: &str) -> Option<(u32, String)> {
        let list = self.ctr(&["task", "ls"]).ok();
        let line = list.lines().find(|l| l.split_whitespace().next() == Some(id))?;
        let mut words = line.split_whitespace().skip(1);
        Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
    }

    /// The init's process id.
    fn pid(&self, id: &str) -> u32 {
        self.listed(id).expect("the task").0
    }

    /// Whether the task is in that state.
    fn is(&self, id: &str, state: &str) -> bool {
        self.listed(id).is_some_and(|(_, now)| now == state)
    }

    fn kill(&self, signal: &str, id: &str) {
        self.ctr(&["task", "kill", "--signal", signal, id]).ok();
        eventually("the task's end", || self.is(id, "STOPPED").then_some(()));
    }

    /// Removes a stopped task and its container; the task's exit status.
    fn remove(&self, id: &str) -> i32 {
        let text = self.ctr(&["task", "rm", id]).ok();
        self.ctr(&["container", "rm", id]).ok();
        // Told in a warning only, when it is not 0.
        let status = text.split_once("non-zero exit code ").map_or("0", |(_, rest)| rest);
        status.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    }

    /// What is left of containers: processes, mounts, cgroups, directories of the daemon's, the shims' and the runtime's.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut entries = |dir: &Path| {
            let all = fs::read_dir(dir).into_iter().flatten().flatten();
            left.extend(
                all.filter(|e| !e.file_name().to_string_lossy().starts_with('.'))
                    .map(|e| e.path().display().to_string()),
            );
        };
        let dir = self.ctx.dir.join("containerd");
        for room in ["state", "root"] {
            entries(
                &dir.join(room)
                    .join("io.containerd.runtime.v2.task")
                    .join(&self.namespace),
            );
        }
        entries(&Path::new(&self.root()).join(&self.namespace));
        // The shims' sockets.
        entries(Path::new("/run/containerd/s"));
        for group in proa_integration::host::cgroups_with(self.ctx.cgroup_parent().trim_start_matches('/')) {
            let own = group
                .file_name()
                .is_some_and(|name| name.to_string_lossy() == self.namespace);
            if !own {
                left.push(group.display().to_string());
            }
        }
        let state = dir.join("state");
        let mounts = proa_integration::host::mounts();
        left.extend(
            mounts
                .into_iter()
                .filter(|at| Path::new(at).starts_with(&state) && at.contains("/rootfs")),
        );
        let ours = [std::process::id(), self.daemon.id(), 1];
        left.extend(proa_integration::stage::processes_left(|pid, _| ours.contains(&pid)));
        left
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            complaints(&self.ctx.dir.join("containerd/log"));
        }
        self.daemon.kill().expect("containerd still runs");
        self.daemon.wait().expect("containerd");
    }
}
