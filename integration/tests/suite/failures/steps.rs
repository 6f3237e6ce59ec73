//! The steps of a call of the runtime: its system calls one by one, at each of which something can go wrong (helpers/fault.c),
//! and what has to be as before once that was cleaned up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use proa_integration::ctx::{Call, eventually};
use proa_integration::{Container, Ctx, Output, host, vars};

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

/// Whether every step is to be tried.
pub fn all() -> bool {
    std::env::var(vars::STEPS).is_ok_and(|which| which == "all")
}

/// How long a test of many steps may take.
pub fn seconds() -> u64 {
    if all() { 3600 } else { 180 }
}

/// Makes the call, which must succeed and be one that was made before (what is computed once is cached), and tells its steps of these kinds: all, or of each process's calls of a name the
/// first and the last, and some in between.
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
    if all() {
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

/// Makes the call and lets something happen at a step: `kill-runtime`, `kill-self`, or an errno's number. `None` if that
/// step did not come: processes wait for each other in more than one order.
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
