//! What a test works with: its directory, its runtime, and calls of it with everything they say.

use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Bundle, Subject, View, host, stage};

/// A test's own world.
pub struct Ctx {
    /// An empty directory (a tmpfs) that vanishes with the test.
    pub dir: PathBuf,
    /// The runtime's `--root`.
    pub root: PathBuf,
    /// How this process sees cgroups.
    pub view: View,
    /// The runtime under test.
    pub subject: Subject,
    /// The static helper program, for use on the host's side.
    pub probe: PathBuf,
    /// The static program that attackers run, beside the probe.
    pub attack: PathBuf,
    tag: String,
    count: Cell<u32>,
    mounts_before: Vec<String>,
    mounts_own: RefCell<Vec<String>>,
}

impl Ctx {
    /// The world of the test with that tag, in the namespaces that its stage has made.
    pub fn new(tag: String, view: View, subject: Subject, probe: PathBuf) -> Result<Ctx, String> {
        let dir = stage::directory(&tag);
        let root = dir.join("root");
        fs::create_dir(&root).map_err(|e| format!("{}: {e}", root.display()))?;
        let mut ctx = Ctx {
            root,
            dir,
            view,
            subject,
            attack: probe.with_file_name("attack"),
            probe,
            tag,
            count: Cell::new(0),
            mounts_before: host::mounts(),
            mounts_own: RefCell::new(Vec::new()),
        };
        ctx.make_reachable();
        Ok(ctx)
    }

    /// Gives runtime and probe a place that every user can get to, if they are below root's home directory, say: the tests
    /// also run them as somebody else.
    fn make_reachable(&mut self) {
        let searchable = |dir: &Path| fs::metadata(dir).is_ok_and(|it| it.permissions().mode() & 0o001 != 0);
        let reachable = |path: &Path| path.ancestors().skip(1).all(searchable);
        let installation = self.subject.path.parent().and_then(Path::parent).map(Path::to_owned);
        if let Some(installation) = installation.filter(|_| !reachable(&self.subject.path)) {
            // Whole: the engine lies beside the programs' directory.
            let here = self.mkdir("installation");
            self.host_mount(&["--bind", installation.to_str().expect("UTF-8")], &here);
            let inside = self.subject.path.strip_prefix(&installation).expect("its own ancestor");
            self.subject.path = here.join(inside);
        }
        if !reachable(&self.probe) {
            let copy = self.dir.join("probe");
            fs::copy(&self.probe, &copy).expect("copy the probe");
            self.probe = copy;
        }
        // The tests' own directory is where they are run from.
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o755)).expect("chmod the test's directory");
    }

    fn next(&self) -> u32 {
        self.count.replace(self.count.get() + 1)
    }

    /// A container id that nothing else on the machine has.
    pub fn id(&self) -> String {
        format!("{}{}", self.tag, self.next())
    }

    /// The cgroup path under which this test's containers live, as config.json writes it.
    pub fn cgroup_parent(&self) -> String {
        format!("/proa-test-{}", self.tag)
    }

    /// The directory of a cgroup path, as config.json writes it, in the hierarchy of `controller` (v1) or the cgroup2 mount.
    pub fn cgroup_dir(&self, controller: &str, path: &str) -> PathBuf {
        let base = Path::new("/sys/fs/cgroup");
        let base = if self.view.has_v1() {
            base.join(controller)
        } else {
            base.to_owned()
        };
        match path.split(':').collect::<Vec<_>>()[..] {
            [slice, prefix, name] if self.view.has_systemd() => {
                base.join(slice_path(slice)).join(format!("{prefix}-{name}.scope"))
            }
            _ => base.join(path.trim_start_matches('/')),
        }
    }

    /// A new bundle whose container runs `true`.
    pub fn bundle(&self) -> Bundle {
        let n = self.next();
        let dir = self.dir.join(format!("bundle{n}"));
        fs::create_dir(&dir).expect("bundle directory");
        let cgroup = if self.view.has_systemd() {
            format!("machine.slice:proa:{}b{n}", self.tag)
        } else {
            format!("{}/b{n}", self.cgroup_parent())
        };
        Bundle::new(&dir, &cgroup, self.view, &self.probe)
    }

    /// A new directory.
    pub fn mkdir(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).expect("directory");
        dir
    }

    /// Mounts a tmpfs for the test's use; not counted as a leak.
    pub fn tmpfs(&self, at: &Path, options: &str) {
        self.host_mount(&["-t", "tmpfs", "-o", options, "tmpfs"], at);
    }

    /// `mount ARGS AT` for the test's own use; not counted as a leak.
    pub fn host_mount(&self, args: &[&str], at: &Path) {
        let status = Command::new("mount").args(args).arg(at).status().expect("mount");
        assert!(status.success(), "mount {args:?} {}: {status}", at.display());
        self.mounts_own.borrow_mut().push(at.display().to_string());
    }

    /// A call of the runtime with its global options.
    pub fn call<S: AsRef<OsStr>>(&self, args: &[S]) -> Call {
        let log = self.dir.join(format!("log{}", self.count.get()));
        let mut all: Vec<OsString> = vec!["--root".into(), self.root.clone().into(), "--log".into(), log.into()];
        all.extend(["--log-format".into(), "json".into()]);
        if self.view.has_systemd() {
            all.push("--systemd-cgroup".into());
        }
        all.extend(args.iter().map(|a| a.as_ref().to_owned()));
        self.bare_call(&all)
    }

    /// A call of the runtime with these arguments only.
    pub fn bare_call<S: AsRef<OsStr>>(&self, args: &[S]) -> Call {
        let n = self.next();
        let log = self.dir.join(format!("log{n}"));
        let mut all: Vec<OsString> = self.subject.args.iter().map(OsString::from).collect();
        all.extend(args.iter().map(|a| a.as_ref().to_owned()));
        Call {
            program: self.subject.path.clone(),
            args: all,
            prefix: Vec::new(),
            env: Vec::new(),
            cwd: None,
            stdin: None,
            stdio: None,
            uid: None,
            out: self.dir.join(format!("out{n}")),
            err: self.dir.join(format!("err{n}")),
            log,
        }
    }

    /// Runs a bundle to its end in the foreground.
    pub fn run(&self, bundle: &Bundle) -> Output {
        self.run_with(bundle, &[])
    }

    /// Runs a bundle to its end with further flags.
    pub fn run_with(&self, bundle: &Bundle, flags: &[&str]) -> Output {
        let id = self.id();
        let mut args = vec!["run", "--bundle", bundle.dir.to_str().expect("UTF-8")];
        args.extend(flags);
        args.push(&id);
        self.call(&args).output()
    }

    /// Runs a shell script in a fresh bundle that `change` has edited, to success; its stdout.
    pub fn shell(&self, script: &str, change: impl FnOnce(&Bundle) -> &Bundle) -> String {
        let bundle = self.bundle();
        bundle.sh(script);
        change(&bundle);
        self.run(&bundle).ok().stdout.clone()
    }

    /// Creates a container, which must succeed.
    pub fn create(&self, bundle: &Bundle) -> Container<'_> {
        self.create_with(bundle, &[])
    }

    /// Creates a container with further flags, which must succeed.
    pub fn create_with(&self, bundle: &Bundle, flags: &[&str]) -> Container<'_> {
        let mut container = self.container(bundle);
        let output = self.create_call(bundle, &container.id, flags).output();
        output.ok();
        container.stdio = Some((output.out.clone(), output.err.clone()));
        container
    }

    /// The call that creates a container.
    pub fn create_call(&self, bundle: &Bundle, id: &str, flags: &[&str]) -> Call {
        let mut args = vec!["create", "--bundle", bundle.dir.to_str().expect("UTF-8")];
        args.extend(flags);
        args.push(id);
        self.call(&args)
    }

    /// Creates and starts a container that runs in the background.
    pub fn start(&self, bundle: &Bundle) -> Container<'_> {
        let container = self.create(bundle);
        container.start();
        container
    }

    /// A container that does not exist yet, deleted by force when the value is dropped.
    pub fn container(&self, bundle: &Bundle) -> Container<'_> {
        let cgroup = bundle.spec()["linux"]["cgroupsPath"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        Container {
            ctx: self,
            id: self.id(),
            cgroup,
            stdio: None,
            gone: Cell::new(false),
        }
    }

    /// `systemctl ARGS`, which must succeed; what it prints.
    #[track_caller]
    pub fn systemctl(&self, args: &[&str]) -> String {
        let out = Command::new("systemctl")
            .arg("--no-pager")
            .args(args)
            .output()
            .expect("systemctl");
        assert!(out.status.success(), "systemctl {args:?}: {out:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// State and mounts left in the test's namespace; with systemd cgroups and units as well.
    pub fn leaks(&self) -> Vec<String> {
        let mut left: Vec<String> = fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
            // Locks and caches of the runtime as a whole are not a container's.
            .filter(|e| e.file_name().to_string_lossy().contains(&self.tag))
            .map(|e| format!("state {}", e.path().display()))
            .collect();
        let mut expected = self.mounts_before.clone();
        expected.extend(self.mounts_own.borrow().iter().cloned());
        for mount in host::mounts() {
            match expected.iter().position(|m| *m == mount) {
                Some(at) => drop(expected.swap_remove(at)),
                None => left.push(format!("mount {mount}")),
            }
        }
        if self.view.has_systemd() {
            left.extend(
                host::cgroups_with(&self.tag)
                    .iter()
                    .filter(|g| !g.ends_with(stage::own_cgroup_name(&self.tag)))
                    .map(|g| format!("cgroup {}", g.display())),
            );
            let units = self.systemctl(&[
                "list-units",
                "--all",
                "--plain",
                "--no-legend",
                &format!("*{}*", self.tag),
            ]);
            left.extend(units.lines().map(|unit| format!("unit {unit}")));
        }
        left
    }
}

/// A slice's cgroup, from the top: `a-b.slice` lies in `a.slice`. Without a name it is the system's.
fn slice_path(slice: &str) -> PathBuf {
    let name = slice.strip_suffix(".slice").unwrap_or("system");
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| format!("{}.slice", &name[..end])).collect()
}

/// Waits for something that another process does; gives up, loudly, after ten seconds (on a slow machine later).
#[track_caller]
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    eventually_within(10, what, probe)
}

/// The same, with this many seconds.
#[track_caller]
pub fn eventually_within<T>(seconds: u64, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds) * crate::patience();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a call reads from.
enum Stdin {
    Bytes(Vec<u8>),
    File(File),
}

/// A call of the runtime, not made yet.
pub struct Call {
    program: PathBuf,
    args: Vec<OsString>,
    prefix: Vec<OsString>,
    env: Vec<(String, String)>,
    cwd: Option<PathBuf>,
    stdin: Option<Stdin>,
    stdio: Option<File>,
    uid: Option<u32>,
    out: PathBuf,
    err: PathBuf,
    log: PathBuf,
}

impl Call {
    /// Puts a program in front, as `env` or `setsid` are used.
    pub fn under<S: AsRef<OsStr>>(mut self, prefix: &[S]) -> Call {
        self.prefix = prefix.iter().map(|s| s.as_ref().to_owned()).collect();
        self
    }

    /// Uses another executable.
    pub fn program(mut self, path: &Path) -> Call {
        path.clone_into(&mut self.program);
        self
    }

    /// Sets an environment variable of the runtime.
    pub fn env(mut self, key: &str, value: &str) -> Call {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets the runtime's directory.
    pub fn cwd(mut self, dir: &Path) -> Call {
        self.cwd = Some(dir.to_owned());
        self
    }

    /// What the runtime reads from stdin; /dev/null otherwise.
    pub fn stdin(mut self, bytes: &[u8]) -> Call {
        self.stdin = Some(Stdin::Bytes(bytes.to_owned()));
        self
    }

    /// What the runtime has as stdin.
    pub fn stdin_from(mut self, file: File) -> Call {
        self.stdin = Some(Stdin::File(file));
        self
    }

    /// The same open file (a terminal) as stdin, stdout and stderr.
    pub fn stdio(mut self, file: File) -> Call {
        self.stdio = Some(file);
        self
    }

    /// Writes stdout to this file.
    pub fn stdout_to(mut self, path: &Path) -> Call {
        path.clone_into(&mut self.out);
        self
    }

    /// Runs as this unprivileged user.
    pub fn uid(mut self, uid: u32) -> Call {
        self.uid = Some(uid);
        self
    }

    fn command(&self) -> Command {
        let mut line = self.prefix.clone();
        line.push(self.program.clone().into());
        line.extend(self.args.iter().cloned());
        eprintln!(
            "+ {}",
            line.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
        );
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).envs(self.env.iter().cloned());
        if let Some(dir) = &self.cwd {
            command.current_dir(dir);
        }
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        if let Some(file) = &self.stdio {
            let again = || file.try_clone().expect("dup");
            command.stdin(again()).stdout(again()).stderr(again());
            return command;
        }
        // Files, not pipes: a container that keeps them open must not keep the caller waiting.
        let create = |path: &Path| File::create(path).expect("output file");
        command.stdout(create(&self.out)).stderr(create(&self.err));
        match &self.stdin {
            None => command.stdin(Stdio::null()),
            Some(Stdin::File(file)) => command.stdin(file.try_clone().expect("dup")),
            Some(Stdin::Bytes(bytes)) => {
                let path = self.out.with_extension("in");
                fs::write(&path, bytes).expect("input file");
                command.stdin(File::open(&path).expect("input file"))
            }
        };
        command
    }

    /// Starts the call and leaves it running.
    pub fn spawn(self) -> Running {
        self.try_spawn().expect("the runtime starts")
    }

    /// The same of a runtime that an attack may have broken.
    pub fn try_spawn(self) -> std::io::Result<Running> {
        let child = self.command().spawn()?;
        Ok(Running { child, call: self })
    }

    /// Makes the call and waits for it.
    pub fn output(self) -> Output {
        self.spawn().wait()
    }
}

/// A call under way.
pub struct Running {
    /// The runtime's process.
    pub child: Child,
    call: Call,
}

impl Running {
    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("the call still runs");
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.call.out).unwrap_or_default()
    }

    /// Waits for it.
    pub fn wait(mut self) -> Output {
        let status = self.child.wait().expect("wait");
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let (out, err) = (self.call.out.clone(), self.call.err.clone());
        let output = Output {
            code: status.code().unwrap_or_else(|| 1000 + status.signal().unwrap_or(0)),
            stdout: text(&out),
            stderr: text(&err),
            log: text(&self.call.log),
            out,
            err,
        };
        if output.code != 0 {
            eprintln!(
                "  status {}\n  stdout {:?}\n  stderr {:?}",
                output.code, output.stdout, output.stderr
            );
        }
        output
    }
}

/// What a call of the runtime gave back.
#[derive(Debug)]
pub struct Output {
    /// The exit status; 1000 + n when a signal killed the runtime itself.
    pub code: i32,
    /// Its stdout (and the container's, in the foreground).
    pub stdout: String,
    /// Its stderr (and the container's).
    pub stderr: String,
    /// Its `--log` file.
    pub log: String,
    out: PathBuf,
    err: PathBuf,
}

impl Output {
    /// Demands success.
    #[track_caller]
    pub fn ok(&self) -> &Output {
        assert_eq!(self.code, 0, "the call should have succeeded: {self:#?}");
        self
    }

    /// Demands this exit status.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Output {
        assert_eq!(self.code, code, "exit status of {self:#?}");
        self
    }

    /// Demands a failure whose message contains one of these texts, in any case; as runc, with status 1 and with the message
    /// in the log as well.
    #[track_caller]
    pub fn refused(&self, texts: &[&str]) -> &Output {
        assert!(
            self.code != 0 && self.code < 1000,
            "the call should have failed: {self:#?}"
        );
        let (said, logged) = (self.stderr.to_lowercase(), self.log.to_lowercase());
        let has = |text: &str| texts.iter().any(|t| text.contains(&t.to_lowercase()));
        assert!(has(&said) || has(&logged), "no {texts:?} in the message: {self:#?}");
        self
    }

    /// stdout without surrounding white space.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }

    /// stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in {:?}", self.stdout))
    }
}

/// A container that a test has made.
pub struct Container<'a> {
    ctx: &'a Ctx,
    /// Its id.
    pub id: String,
    /// Its cgroup path as config.json has it: `slice:prefix:name` with systemd.
    pub cgroup: String,
    stdio: Option<(PathBuf, PathBuf)>,
    gone: Cell<bool>,
}

impl Container<'_> {
    /// A call `VERB ARGS… ID`.
    pub fn verb(&self, args: &[&str]) -> Output {
        let mut all = args.to_vec();
        all.push(&self.id);
        self.ctx.call(&all).output()
    }

    /// Starts it, which must succeed.
    #[track_caller]
    pub fn start(&self) -> &Self {
        self.verb(&["start"]).ok();
        self
    }

    /// `exec ID ARGS…` with flags in front.
    pub fn exec_with(&self, flags: &[&str], args: &[&str]) -> Output {
        self.exec_call(flags, args).output()
    }

    /// The call `exec FLAGS ID ARGS…`.
    pub fn exec_call(&self, flags: &[&str], args: &[&str]) -> Call {
        let mut all = vec!["exec"];
        all.extend(flags);
        all.push(&self.id);
        all.extend(args);
        self.ctx.call(&all)
    }

    /// `exec ID ARGS…`.
    pub fn exec(&self, args: &[&str]) -> Output {
        self.exec_with(&[], args)
    }

    /// `kill ID SIGNAL`, which must succeed.
    #[track_caller]
    pub fn kill(&self, signal: &str) -> &Self {
        self.ctx.call(&["kill", &self.id, signal]).output().ok();
        self
    }

    /// `state ID` as JSON.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.verb(&["state"]).ok().json()
    }

    /// Its status.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("status is a string").to_owned()
    }

    /// Its init's process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        u32::try_from(self.state()["pid"].as_u64().expect("pid is a number")).expect("a pid")
    }

    /// Waits until it is stopped.
    #[track_caller]
    pub fn stopped(&self) -> &Self {
        eventually("status stopped", || (self.status() == "stopped").then_some(()));
        self
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        self.stdio
            .as_ref()
            .map(|(out, _)| fs::read_to_string(out).unwrap_or_default())
            .unwrap_or_default()
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        self.stdio
            .as_ref()
            .map(|(_, err)| fs::read_to_string(err).unwrap_or_default())
            .unwrap_or_default()
    }

    /// Waits until its stdout has this text.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        eventually(text, || self.stdout().contains(text).then_some(()));
        self
    }

    /// `delete ID`, which must succeed.
    #[track_caller]
    pub fn delete(&self) {
        self.verb(&["delete"]).ok();
        self.gone.set(true);
    }

    /// The directory of its cgroup in the hierarchy of `controller`.
    pub fn cgroup_dir(&self, controller: &str) -> PathBuf {
        self.ctx.cgroup_dir(controller, &self.cgroup)
    }

    /// A file of its cgroup, trimmed.
    #[track_caller]
    pub fn cgroup_file(&self, controller: &str, file: &str) -> String {
        let path = self.cgroup_dir(controller).join(file);
        fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            .trim()
            .to_owned()
    }

    /// The test has seen to it that the container is gone.
    pub fn forget(&self) {
        self.gone.set(true);
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if !self.gone.get() {
            // A failure shows as a leak.
            self.verb(&["delete", "--force"]);
        }
    }
}
