//! The runner: registers the tests, runs each in a process of its own with a deadline, and looks for what is left.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::subject::{Kind, Subject};
use crate::{Ctx, View, host, stage, systemd, vars};

/// One test: what it is called, what it does, and where it applies.
#[derive(Clone, Copy)]
pub struct Test {
    name: &'static str,
    body: fn(&Ctx),
    newer_than: Option<(u32, u32)>,
    only_proa: bool,
    not_for: &'static [(Kind, &'static str)],
    views: &'static [View],
    once: bool,
    seconds: u64,
    controllers: &'static [&'static str],
    lacking: &'static [&'static str],
    session: bool,
}

/// A test named like its function, with the path of its module below the suite.
#[macro_export]
macro_rules! tests {
    ($($name:ident $(.$method:ident($($arg:expr),*))*;)*) => {
        /// The tests of this module.
        pub fn tests() -> Vec<$crate::Test> {
            vec![$($crate::Test::new(concat!(module_path!(), "::", stringify!($name)), $name)$(.$method($($arg),*))*),*]
        }
    };
}

impl Test {
    /// A test that applies to every subject in every view but systemd's, with a minute to run.
    pub fn new(name: &'static str, body: fn(&Ctx)) -> Test {
        let name = name.split_once("::").map_or(name, |(_, rest)| rest);
        let views = &[View::Hybrid, View::V1, View::V2];
        Test {
            name,
            body,
            newer_than: None,
            only_proa: false,
            not_for: &[],
            views,
            once: false,
            seconds: 60,
            controllers: &[],
            lacking: &[],
            session: false,
        }
    }

    /// Needs what runc has since that version: ignored for older releases of runc, and for crun of that time.
    pub fn since_runc(mut self, major: u32, minor: u32) -> Test {
        self.newer_than = Some((major, minor));
        self
    }

    /// Tests something that only this project promises.
    pub fn only_proa(mut self) -> Test {
        self.only_proa = true;
        self
    }

    /// Ignored for some subjects, each with the reason.
    pub fn not_for(mut self, subjects: &'static [(Kind, &'static str)]) -> Test {
        self.not_for = subjects;
        self
    }

    /// Runs only in these cgroup views.
    pub fn views(mut self, views: &'static [View]) -> Test {
        self.views = views;
        self
    }

    /// Has nothing to do with cgroups: runs only in the first of the views asked for.
    pub fn once(mut self) -> Test {
        self.once = true;
        self
    }

    /// Wants these controllers in a view of cgroup v2; ignored on a machine whose cgroup2 has them not.
    pub fn controllers(mut self, names: &'static [&'static str]) -> Test {
        self.controllers = names;
        self
    }

    /// Is about the absence of these controllers in a view of cgroup v2; ignored where one is there.
    pub fn without_controllers(mut self, names: &'static [&'static str]) -> Test {
        self.lacking = names;
        self
    }

    /// Wants a session of the [`USER`] under the machine's systemd; ignored where there is none.
    pub fn session(mut self) -> Test {
        self.session = true;
        self
    }

    /// May take that long.
    pub fn seconds(mut self, seconds: u64) -> Test {
        self.seconds = seconds;
        self
    }

    /// What the machine lacks (or has too much) for this test in that view.
    fn unfit(&self, view: View, controllers: &[String]) -> Option<String> {
        let has = |name: &&&str| controllers.iter().any(|c| c == **name);
        if self.session && !(view.uses_the_machines_systemd() && user_bus().exists()) {
            return Some(format!("no session of user {USER} under the machine's systemd"));
        }
        if view.has_v1() {
            return None;
        }
        let missing: Vec<&str> = self.controllers.iter().filter(|c| !has(c)).copied().collect();
        let present: Vec<&str> = self.lacking.iter().filter(has).copied().collect();
        if !missing.is_empty() {
            return Some(format!("no v2 controllers {}", missing.join(", ")));
        }
        (!present.is_empty()).then(|| format!("v2 controllers {}", present.join(", ")))
    }

    fn ignored_for(&self, subject: &Subject) -> bool {
        let too_old = self
            .newer_than
            .is_some_and(|(major, minor)| !subject.as_new_as_runc(major, minor));
        let peer = matches!(subject.kind, Kind::Runc | Kind::Crun);
        too_old || (self.only_proa && peer) || self.not_for.iter().any(|(kind, _)| *kind == subject.kind)
    }
}

/// The unprivileged user of the tests. Only where it has a session need it exist.
pub const USER: u32 = 12_345;

/// The bus of that user's session.
pub fn user_bus() -> PathBuf {
    PathBuf::from(format!("/run/user/{USER}/bus"))
}

/// The entry point of a suite: whichever level this process is.
pub fn main(tests: Vec<Test>) -> ExitCode {
    let done = match std::env::var(vars::LEVEL).as_deref() {
        Ok("stage") => expect_view().and_then(|view| stage::stage(&expect(vars::TAG)?, view)),
        Ok("init") => expect_view().and_then(stage::init),
        Ok("boot") => expect_view().and_then(|view| systemd::boot(&expect(vars::TAG)?, view)),
        Ok("unit") => expect(vars::TAG).and_then(|tag| systemd::unit(&tag)),
        Ok("body") => body(&tests),
        _ => run(&tests),
    };
    done.unwrap_or_else(|e| {
        eprintln!("{e}");
        ExitCode::FAILURE
    })
}

fn run(tests: &[Test]) -> Result<ExitCode, String> {
    let mut args = Arguments::from_args();
    // Two cores are what continuous integration has; a test mostly waits.
    args.test_threads.get_or_insert(2);
    let subject = Subject::from_env()?;
    let views = std::env::var(vars::VIEW).unwrap_or_else(|_| View::ALL.map(View::name).join(","));
    let views: Vec<View> = views
        .split(',')
        .map(|v| View::parse(v).ok_or_else(|| format!("{}: no view is called {v:?}", vars::VIEW)))
        .collect::<Result<_, _>>()?;
    let own = std::env::current_exe().map_err(|e| format!("/proc/self/exe: {e}"))?;
    let helpers = own.with_file_name("helpers");
    let probe = host::compile_helper("probe", &helpers)?;
    let fault = host::compile_helper("fault", &helpers)?;
    host::compile_helper("attack", &helpers)?;
    let controllers = host::v2_controllers();
    let mut unfit = std::collections::BTreeMap::new();
    let mut trials = Vec::new();
    for view in views.iter().copied() {
        let applies = |t: &&Test| t.views.contains(&view) && (!t.once || view == views[0]);
        for test in tests.iter().filter(applies) {
            let (test, path) = (*test, subject.path.clone());
            let (own, probe, fault) = (own.clone(), probe.clone(), fault.clone());
            // crun refuses a hybrid layout altogether.
            let mut ignored = test.ignored_for(&subject) || (subject.kind == Kind::Crun && view == View::Hybrid);
            if let Some(reason) = test.unfit(view, &controllers) {
                *unfit.entry(reason).or_insert(0) += 1;
                ignored = true;
            }
            let trial = Trial::test(format!("{}::{}", view.name(), test.name), move || {
                // Whoever starts the tests may ignore signals, as shells do for what they start in the background.
                let mut stage = Command::new("env");
                stage
                    .arg("--default-signal")
                    .arg(&own)
                    .env(vars::LEVEL, "stage")
                    .env(vars::NAME, test.name)
                    .env(vars::VIEW, view.name());
                stage
                    .env(vars::PROBE, &probe)
                    .env(vars::FAULT, &fault)
                    .env(vars::RUNTIME, &path)
                    .env("PATH", search_path());
                one(stage, view, Duration::from_secs(test.seconds) * crate::patience())
            });
            trials.push(trial.with_ignored_flag(ignored));
        }
    }
    if !args.list {
        eprintln!(
            "subject: {} ({:?} {}.{})",
            subject.path.display(),
            subject.kind,
            subject.version.0,
            subject.version.1
        );
        for (reason, count) in unfit {
            eprintln!("ignored: {count} tests, since the machine has {reason}");
        }
    }
    Ok(libtest_mimic::run(&args, trials).exit_code())
}

/// `PATH`, with the CRIU that set-up fetched (`scripts/setup-criu`) before one that the system may have.
fn search_path() -> std::ffi::OsString {
    let mut path = std::ffi::OsString::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/criu/bin:"));
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

/// Runs one test to its end or its deadline, and looks at what it left on the host.
fn one(mut stage: Command, view: View, limit: Duration) -> Result<(), Failed> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let tag = format!("pt{}-{}x", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    stage
        .env(vars::TAG, &tag)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    let verbose = std::env::var_os(vars::VERBOSE).is_some();
    let (mut reader, writer) = std::io::pipe()?;
    if verbose {
        drop(writer);
    } else {
        stage.stdout(writer.try_clone()?).stderr(writer);
    }
    let mut child = stage.spawn()?;
    drop(stage);
    // Everything that the test starts may hold the pipe, so its end means that all of that is gone.
    let output = std::thread::spawn(move || {
        let mut text = Vec::new();
        reader
            .read_to_end(&mut text)
            .map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let in_time = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))? > 0;
    let mut faults = Vec::new();
    if !in_time {
        faults.push(format!("did not end within {} s", limit.tv_sec));
        host::thaw(&host::cgroups_with(&tag));
        pidfd_send_signal(&pidfd, Signal::KILL)?;
    }
    let status = child.wait()?;
    if view.uses_the_machines_systemd() {
        host::kill(&host::cgroups_with(&tag));
    }
    if in_time && !status.success() {
        faults.push(match status.code() {
            Some(3) => "left processes behind".to_owned(),
            Some(4) => "left state or mounts behind".to_owned(),
            _ => format!("ended with {status}"),
        });
    }
    let text = output.join().map_err(|_| "the output's reader panicked")??;
    faults.extend(leaks(&tag, view));
    if faults.is_empty() {
        Ok(())
    } else {
        Err(format!("{}\n{}", tail(&text), faults.join("\n")).into())
    }
}

/// The last lines of a test's output: what it waited for may have filled pages.
fn tail(text: &str) -> String {
    const LINES: usize = 100;
    let lines: Vec<&str> = text.trim_end().lines().collect();
    match lines.len().checked_sub(LINES) {
        Some(more) if more > 0 => format!("({more} lines before)\n{}", lines[more..].join("\n")),
        _ => lines.join("\n"),
    }
}

/// What a test left on the host, each removed so that it cannot disturb another.
fn leaks(tag: &str, view: View) -> Vec<String> {
    let mut found = Vec::new();
    let groups = host::cgroups_with(tag);
    host::thaw(&groups);
    for group in groups {
        // The parent that all containers of a test share is the test's own; what lies in it is not.
        // A systemd that was killed leaves the units it has made; the test itself has looked for containers' among them.
        let name = group.file_name().unwrap_or_default().to_string_lossy();
        let own = name == format!("proa-test-{tag}")
            || name == stage::own_cgroup_name(tag)
            || (view.has_systemd() && !view.uses_the_machines_systemd());
        if !own {
            found.push(format!("leak: cgroup {}", group.display()));
        }
        for process in fs::read_to_string(group.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            found.push(format!("leak: process {process} in {}", group.display()));
        }
        if let Err(e) = fs::remove_dir(&group) {
            found.push(format!("leak: cgroup {} cannot be removed: {e}", group.display()));
        }
    }
    found.extend(
        host::mounts()
            .into_iter()
            .filter(|m| m.contains(tag))
            .map(|m| format!("leak: mount {m} on the host")),
    );
    let dir = stage::directory(tag);
    if let Err(e) = fs::remove_dir(&dir) {
        found.push(format!("leak: {}: {e}", dir.display()));
    }
    found
}

fn body(tests: &[Test]) -> Result<ExitCode, String> {
    let name = expect(vars::NAME)?;
    let test = tests
        .iter()
        .find(|t| t.name == name)
        .ok_or_else(|| format!("no test is called {name}"))?;
    let ctx = Ctx::new(
        expect(vars::TAG)?,
        expect_view()?,
        Subject::from_env()?,
        expect(vars::PROBE)?.into(),
    )?;
    (test.body)(&ctx);
    let left = ctx.leaks();
    for leak in &left {
        eprintln!("leak: {leak}");
    }
    Ok(if left.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(4)
    })
}

fn expect(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|e| format!("{name}: {e}"))
}

fn expect_view() -> Result<View, String> {
    let name = expect(vars::VIEW)?;
    View::parse(&name).ok_or_else(|| format!("{}: {name:?}", vars::VIEW))
}
