//! podman with its monitor, configured by a `containers.conf` as the document shows it.

mod checkpoint;
mod limits;
mod pods;
mod refusals;
mod rootless;
mod security;
mod setup;
mod units;
mod verbs;
mod volumes;
mod wasm;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use proa_integration::console::Terminal;
use proa_integration::ctx::eventually;
use proa_integration::{Ctx, Test, View, host};

pub use rootless::add_user;

use super::later::Release;
use super::{IMAGE, Inspect, NO_HYBRID, Said, V1, documented, say};

/// With both of its cgroup managers.
const PODMAN: &[View] = &[View::Hybrid, View::Systemd];

/// The tests of these modules.
pub fn tests() -> Vec<Test> {
    [
        verbs::tests(),
        limits::tests(),
        checkpoint::tests(),
        security::tests(),
        volumes::tests(),
        pods::tests(),
        units::tests(),
        rootless::tests(),
        refusals::tests(),
        setup::tests(),
        wasm::tests(),
    ]
    .concat()
}

struct Podman<'a> {
    ctx: &'a Ctx,
    /// Its storage and configuration.
    dir: PathBuf,
    /// Who calls, if not root.
    user: Option<u32>,
}

/// Where podman's containers and their monitors go.
fn cgroup_parent(ctx: &Ctx) -> String {
    if ctx.view.has_systemd() {
        "machine-podman.slice".to_owned()
    } else {
        ctx.cgroup_parent()
    }
}

/// podman of that release, called by root, with that image.
fn podman<'a>(ctx: &'a Ctx, release: Release, image: &Path) -> Podman<'a> {
    // A systemd of the view lives in /run.
    if !ctx.view.has_systemd() {
        ctx.tmpfs(Path::new("/run"), "mode=755");
    }
    release.enter(ctx);
    let it = Podman {
        ctx,
        dir: ctx.mkdir("podman"),
        user: None,
    };
    it.configure(if ctx.view.has_systemd() { "systemd" } else { "cgroupfs" });
    it.load(image);
    it
}

impl Podman<'_> {
    fn configure(&self, cgroup_manager: &str) {
        let dir = self.dir.display();
        fs::write(
            self.dir.join("policy.json"),
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        )
        .unwrap();
        let storage = format!("[storage]\ndriver = \"vfs\"\nrunroot = \"{dir}/run\"\ngraphroot = \"{dir}/graph\"\n");
        fs::write(self.dir.join("storage.conf"), storage).unwrap();
        let more = format!(
            "[engine]\nevents_logger = \"file\"\ntmp_dir = \"{dir}/tmp\"\ncgroup_manager = \"{cgroup_manager}\"\n\
             runtime = \"proa\"\n"
        );
        let config = documented(self.ctx, "podman", "toml").replacen("[engine]\n", &more, 1);
        // podman's own defaults ask for more than a root without CAP_SYS_RESOURCE may give.
        let containers = "[containers]\nlog_driver = \"k8s-file\"\n\
            default_ulimits = [\"nofile=1000:1000\", \"nproc=1000:1000\"]\n";
        fs::write(self.dir.join("containers.conf"), format!("{containers}{config}")).unwrap();
    }

    fn load(&self, image: &Path) {
        let policy = self.dir.join("policy.json");
        let [policy, image] = [policy.to_str().unwrap(), image.to_str().unwrap()];
        self.call(&["load", "--signature-policy", policy, "--input", image])
            .ok();
    }

    /// What its programs are to find in their environment.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let runtime_dir = self.user.map_or("/run".to_owned(), |user| format!("/run/user/{user}"));
        vec![
            ("CONTAINERS_STORAGE_CONF", at("storage.conf")),
            ("CONTAINERS_CONF", at("containers.conf")),
            ("HOME", at("")),
            ("XDG_RUNTIME_DIR", runtime_dir),
            ("TMPDIR", at("")),
            // podman 5 says on every call that cgroup v1 is going to go.
            ("PODMAN_IGNORE_CGROUPSV1_WARNING", "yes".to_owned()),
        ]
    }

    /// A program with podman's environment and rights.
    fn program(&self, line: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--foreground", "--kill-after=1", "40"]).args(line);
        command.envs(self.environment()).current_dir(&self.dir);
        if let Some(user) = self.user {
            command.uid(user).gid(user).env("USER", "tester");
        }
        command
    }

    fn command(&self, runtime: &str, args: &[&str]) -> Command {
        self.program(&[&["podman", "--log-level=error", "--runtime", runtime], args].concat())
    }

    fn call(&self, args: &[&str]) -> Said {
        say(&mut self.command("proa", args), self.ctx)
    }

    /// What podman is called with to run `program`.
    fn run_args<'s>(&self, flags: &[&'s str], program: &[&'s str]) -> Vec<String> {
        let mut args: Vec<String> = ["run", "--ulimit", "host"].map(str::to_owned).to_vec();
        let chosen = |name: &str| flags.iter().any(|flag| flag.starts_with(name));
        if !["--net", "--pod"].iter().any(|name| chosen(name)) {
            args.extend(["--network=none".to_owned()]);
        }
        // A user has no cgroups on v1.
        if self.user.is_none() && !chosen("--cgroups") && !chosen("--pod") {
            args.extend([format!("--cgroup-parent={}", cgroup_parent(self.ctx))]);
        }
        args.extend(flags.iter().chain(program).map(|arg| (*arg).to_owned()));
        args
    }

    fn run_with(&self, runtime: &str, flags: &[&str], line: &[&str]) -> Said {
        let args = self.run_args(flags, line);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        say(&mut self.command(runtime, &args), self.ctx)
    }

    fn run(&self, flags: &[&str], program: &[&str]) -> Said {
        self.run_with("proa", flags, &[&[IMAGE], program].concat())
    }

    /// Runs a script to success; what it prints.
    #[track_caller]
    fn shell(&self, flags: &[&str], script: &str) -> String {
        self.run(&[&["--rm"], flags].concat(), &["sh", "-c", script]).ok()
    }

    /// Calls podman on a terminal.
    fn on_terminal(&self, args: &[&str]) -> (Terminal, Child) {
        let (terminal, slave) = Terminal::open();
        let mut command = self.command("proa", args);
        let again = || slave.try_clone().unwrap();
        let child = command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
        (terminal, child)
    }

    fn run_on_terminal(&self, flags: &[&str], line: &[&str]) -> (Terminal, Child) {
        let args = self.run_args(flags, line);
        self.on_terminal(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Inspect for Podman<'_> {
    fn inspect_with(&self, args: &[&str]) -> Said {
        self.call(args)
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        self.call(&["pod", "rm", "--all", "--force", "--time", "0"]);
        self.call(&["rm", "--all", "--force", "--time", "0"]);
        if self.user.is_some() {
            // A user's podman keeps a process in its namespaces.
            self.call(&["system", "migrate"]);
        }
        // Below the parent podman leaves the monitor's own group, and a pod's in the hierarchies that it doesn't look at. A
        // container's is the runtime's to remove.
        let parent = self.ctx.cgroup_parent();
        for group in host::cgroups_with(parent.trim_start_matches('/')) {
            let name = group.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("libpod-") || parent.ends_with(&*name) {
                continue;
            }
            eventually("the monitor's end", || match fs::remove_dir(&group) {
                Err(e) if e.kind() != ErrorKind::NotFound => None,
                // Another monitor's cleaning up came first.
                _ => Some(()),
            });
        }
    }
}

/// Demands that each of these is a line of the text.
#[track_caller]
fn has_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|l| l == *line), "no {line:?} in {text}");
    }
}
