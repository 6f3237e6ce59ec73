//! The steps of a call of the runtime: its system calls one by one, at each of which something can go wrong (helpers/fault.c),
//! and what has to be as before once that was cleaned up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use proa_integration::ctx::{Call, eventually};
use proa_integration::{Bundle, Container, Ctx, Output, everything, host, vars};
use serde_json::json;

/// One system call of the runtime.
#[derive(Clone, Debug)]
pub struct Step {
    /// Whose: 0 is the process that was called, 1 the first that it made, ….
    process: usize,
    /// e.g. `mkdirat`.
    pub name: String,
    /// Which of its calls of that name, from 1.
    number: usize,
    /// The path it is about, if it is about one.
    pub argument: String,
}

impl Step {
    /// Whether it is the called process's own.
    pub fn is_runtimes(&self) -> bool {
        self.process == 0
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            process,
            name,
            number,
            argument,
        } = self;
        write!(f, "process {process}: {name}({argument}), number {number}")
    }
}

/// A call of the runtime whose steps are tried, and what makes a container ready for it.
pub struct Subject<'a> {
    prepare: Box<dyn Fn(&Container<'_>) + 'a>,
    call: Box<dyn Fn(&Container<'_>) -> Call + 'a>,
}

impl<'a> Subject<'a> {
    fn new(prepare: impl Fn(&Container<'_>) + 'a, call: impl Fn(&Container<'_>) -> Call + 'a) -> Self {
        Self {
            prepare: Box::new(prepare),
            call: Box::new(call),
        }
    }

    pub fn create(ctx: &'a Ctx, bundle: &'a Bundle, flags: &'a [&str]) -> Self {
        Self::new(|_| {}, |container| ctx.create_call(bundle, &container.id, flags))
    }

    pub fn start(ctx: &'a Ctx, bundle: &'a Bundle) -> Self {
        Self::new(
            |container| created(ctx, bundle, container),
            |container| ctx.call(&["start", &container.id]),
        )
    }

    pub fn run(ctx: &'a Ctx, bundle: &'a Bundle) -> Self {
        Self::new(
            |_| {},
            |container| ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &container.id]),
        )
    }

    pub fn exec(ctx: &'a Ctx, bundle: &'a Bundle) -> Self {
        Self::new(
            |container| started(ctx, bundle, container),
            |container| container.exec_call(&[], &["true"]),
        )
    }

    pub fn delete(ctx: &'a Ctx, bundle: &'a Bundle) -> Self {
        Self::new(
            |container| started(ctx, bundle, container),
            |container| ctx.call(&["delete", "--force", &container.id]),
        )
    }

    /// Makes the call without a fault; what its steps are, and the world to compare with.
    pub fn steps<'c>(&self, ctx: &'c Ctx, container: &Container<'_>, kinds: &[&str]) -> (World<'c>, Vec<Step>) {
        let world = World::new(ctx);
        // Once without a look, as the first compiles the filter.
        (self.prepare)(container);
        (self.call)(container).output().ok();
        container.verb(&["delete", "--force"]).ok();
        (self.prepare)(container);
        let steps = of(ctx, (self.call)(container), kinds);
        container.verb(&["delete", "--force"]).ok();
        world.is_as_before("the call without a fault");
        (world, steps)
    }

    /// The same on a container that is made ready for it, with what happens at a step: [`at`].
    pub fn at(&self, ctx: &Ctx, container: &Container<'_>, step: &Step, action: &str) -> Option<Output> {
        (self.prepare)(container);
        at(ctx, (self.call)(container), step, action)
    }
}

fn created(ctx: &Ctx, bundle: &Bundle, container: &Container<'_>) {
    ctx.create_call(bundle, &container.id, &[]).output().ok();
}

fn started(ctx: &Ctx, bundle: &Bundle, container: &Container<'_>) {
    created(ctx, bundle, container);
    container.start();
}

/// Something of everything that a create makes: mounts, a compiled filter, hooks, a cgroup with limits, a pid file.
pub fn rich(ctx: &Ctx) -> Bundle {
    let source = ctx.mkdir("source");
    let bundle = ctx.bundle();
    bundle
        .bind(&source, "/mnt", &["rbind", "ro"])
        .set("/hooks/createRuntime", json!([{"path": "/bin/true"}]))
        .set("/hooks/createContainer", json!([{"path": "/bin/true"}]))
        .set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}),
        )
        .args(&["sleep", "1000"]);
    bundle
}

/// The same, with a process in the middle, which a time namespace needs.
pub fn rich_in_a_user_namespace(ctx: &Ctx) -> Bundle {
    let bundle = rich(ctx);
    bundle.userns(100_000).namespace("time", None);
    bundle
}

/// Whether the steps of the container's init were among those that were tried.
pub fn reach_init(steps: &[Step]) {
    assert!(
        steps
            .iter()
            .any(|step| !step.is_runtimes() && step.name == "pivot_root"),
        "{steps:#?}"
    );
    assert!(
        steps.iter().any(|step| !step.is_runtimes() && step.name == "capset"),
        "{steps:#?}"
    );
}

/// How long a test of many steps may take.
pub fn seconds() -> u64 {
    if everything() { 3600 } else { 180 }
}

/// Makes the call, which must succeed and be one that was made before (what is computed once is cached), and tells its steps
/// of these kinds: all, or of each process's calls of a name the first and the last, and some in between.
pub fn of(ctx: &Ctx, call: Call, kinds: &[&str]) -> Vec<Step> {
    let (output, lines) = faulty(ctx, call, ["0", "none", "0", "0"]);
    output.ok();
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let mut next = || words.next().expect("four words a line");
        Step {
            process: next().parse().expect("a number"),
            name: next().to_owned(),
            number: next().parse().expect("a number"),
            argument: next().to_owned(),
        }
    };
    let steps = lines
        .lines()
        .map(parse)
        .filter(|step| kinds.contains(&step.name.as_str()));
    let steps: Vec<Step> = steps.collect();
    assert!(!steps.is_empty(), "{lines}");
    if everything() {
        return steps;
    }
    let mut ends: BTreeMap<(usize, &str), (usize, usize)> = BTreeMap::new();
    for (at, step) in steps.iter().enumerate() {
        let end = ends.entry((step.process, &step.name)).or_insert((at, at));
        end.1 = at;
    }
    let mut chosen: BTreeSet<usize> = ends.values().flat_map(|(first, last)| [*first, *last]).collect();
    chosen.extend((0..steps.len()).step_by(11));
    chosen.into_iter().map(|at| steps[at].clone()).collect()
}

/// Makes the call and lets something happen at a step: `kill-runtime`, `kill-self`, `kill-child`, or an errno's number.
/// `None` if that step did not come: processes wait for each other in more than one order.
pub fn at(ctx: &Ctx, call: Call, step: &Step, action: &str) -> Option<Output> {
    let (process, number) = (step.process.to_string(), step.number.to_string());
    let (output, lines) = faulty(ctx, call, [&process, &step.name, &number, action]);
    lines.trim_end().ends_with('!').then_some(output)
}

fn faulty(ctx: &Ctx, call: Call, [process, name, number, action]: [&str; 4]) -> (Output, String) {
    let fault = std::env::var(vars::FAULT).expect("the runner sets it");
    let record = ctx.dir.join("record");
    let prefix = [&fault, record.to_str().expect("UTF-8"), process, name, number, action];
    let output = call.under(&prefix).output();
    (output, fs::read_to_string(&record).expect("the record"))
}

/// A test's world with a container that nothing may touch, and as it has to be again.
pub struct World<'a> {
    ctx: &'a Ctx,
    bystander: Container<'a>,
    pid: u32,
    mounts: Vec<String>,
    processes: BTreeSet<u32>,
    cgroups: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl<'a> World<'a> {
    pub fn new(ctx: &'a Ctx) -> Self {
        let bundle = ctx.bundle();
        bundle.args(&["sleep", "10000"]);
        let bystander = ctx.start(&bundle);
        let pid = bystander.pid();
        let mut world = Self {
            ctx,
            bystander,
            pid,
            mounts: host::mounts(),
            processes: processes(),
            cgroups: BTreeSet::new(),
            files: BTreeSet::new(),
        };
        (world.cgroups, world.files) = (world.cgroups(), world.files());
        world
    }

    fn cgroups(&self) -> BTreeSet<PathBuf> {
        let parent = self.ctx.cgroup_parent();
        host::cgroups_with(parent.trim_matches('/')).into_iter().collect()
    }

    /// What lies in the runtime's directory; its cache is not a container's.
    fn files(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut left = vec![self.ctx.root.clone()];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).expect("a directory").flatten() {
                if entry.file_name() == ".cache" {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    left.push(entry.path());
                }
                found.insert(entry.path());
            }
        }
        found
    }

    /// That nothing is left of anything else, and the other container lives.
    #[track_caller]
    pub fn is_as_before(&self, after: &str) {
        eventually(&format!("the processes of before, after {after}"), || {
            let now = processes();
            let more: Vec<_> = now.difference(&self.processes).collect();
            if !more.is_empty() {
                eprintln!("  left: {more:?}");
            }
            more.is_empty().then_some(())
        });
        assert_eq!(host::mounts(), self.mounts, "mounts after {after}");
        assert_eq!(self.cgroups(), self.cgroups, "cgroups after {after}");
        assert_eq!(self.files(), self.files, "state after {after}");
        assert!(
            PathBuf::from(format!("/proc/{}", self.pid)).exists(),
            "the other container's init after {after}"
        );
    }

    /// That the other container can be used, once all is done.
    pub fn ends(self) {
        assert_eq!(self.bystander.status(), "running");
        assert_eq!(self.bystander.pid(), self.pid);
        self.bystander.exec(&["true"]).ok();
    }
}

/// All that run in this pid namespace.
fn processes() -> BTreeSet<u32> {
    let number = |entry: fs::DirEntry| entry.file_name().to_string_lossy().parse().ok();
    fs::read_dir("/proc")
        .expect("procfs")
        .flatten()
        .filter_map(number)
        .collect()
}
