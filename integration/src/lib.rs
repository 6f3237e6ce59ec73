//! The integration harness: runs any OCI runtime binary, by path, through behavioural tests that cannot hurt the host or
//! each other.
//!
//! ```text
//! runner (host)         one thread a test; timeout by pidfd; looks for cgroups and mounts left on the host
//!   stage (host pids)   new mount, pid, net, uts, ipc namespaces; private /dev; the cgroup view; a tmpfs as directory
//!     init (pid 1)      reaps orphans; looks for processes left
//!       body            the test itself; looks for state and mounts left in the private namespace
//! ```
//!
//! In two of the views pid 1 is a systemd: see [`systemd`]. With [`vars::SYSTEMD`] it is the machine's own in one of them; the
//! test then has no pid namespace but a cgroup, and `init` is a subreaper.
//!
//! Death goes downwards: each level asks the kernel to be killed with its parent, and killing pid 1 ends everything that a
//! test has started, so that a fault in one test cannot reach the next.

pub mod bundle;
pub mod console;
pub mod ctx;
pub mod host;
pub mod image;
pub mod runner;
pub mod stage;
pub mod subject;
pub mod systemd;
pub mod wasm;

pub use bundle::Bundle;
pub use ctx::{Call, Container, Ctx, Output};
pub use runner::{Test, main};
pub use subject::{Kind, Subject};

/// How many times longer than usual everything may take.
pub fn patience() -> u32 {
    let text = std::env::var(vars::PATIENCE).unwrap_or_default();
    text.parse().unwrap_or(1).max(1)
}

/// Whether everything is to be tried, and not only what continuous integration has the time for.
pub fn everything() -> bool {
    std::env::var(vars::STEPS).is_ok_and(|which| which == "all")
}

/// The environment variables by which the levels hand on what they agreed on.
pub mod vars {
    /// The runtime binary under test; the built `proa` when unset.
    pub const RUNTIME: &str = "PROA_TEST_RUNTIME";
    /// Global arguments that every call of the runtime gets, separated by spaces.
    pub const RUNTIME_ARGS: &str = "PROA_TEST_RUNTIME_ARGS";
    /// The cgroup views to run in, separated by commas: `hybrid`, `v1`, `v2`, `systemd`, `systemd-v2`. All when unset.
    pub const VIEW: &str = "PROA_TEST_VIEW";
    /// Set to leave nothing captured: what the tests print goes straight to stderr.
    pub const VERBOSE: &str = "PROA_TEST_VERBOSE";
    /// Set to `machine` where the view `systemd-v2` is to use the machine's own systemd instead of one of the test's: faster
    /// and nearer to what is in use, but tests then make scopes in it. `make test-vm` does so.
    pub const SYSTEMD: &str = "PROA_TEST_SYSTEMD";
    /// How many times longer than usual tests and what they wait for may take: for slow machines. 1 when unset.
    pub const PATIENCE: &str = "PROA_TEST_PATIENCE";
    /// `all` for each step of every call of the runtime, where else a part of them is tried, and for the largest programs.
    pub const STEPS: &str = "PROA_TEST_STEPS";
    /// Internal: which level this process is (`stage`, `init`, `body`; with systemd `boot` and `unit` for `init`).
    pub const LEVEL: &str = "PROA_TEST_LEVEL";
    /// Internal: the test's name.
    pub const NAME: &str = "PROA_TEST_NAME";
    /// Internal: the test's unique tag, part of each container id and cgroup.
    pub const TAG: &str = "PROA_TEST_TAG";
    /// Internal: the static helper program.
    pub const PROBE: &str = "PROA_TEST_PROBE";
    /// Internal: the program that lets things go wrong.
    pub const FAULT: &str = "PROA_TEST_FAULT";
}

/// How the test's process sees control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The machine's own mounts: v1 controllers and, on this kind of host, a cgroup2 under `unified`.
    Hybrid,
    /// v1 controllers only.
    V1,
    /// A cgroup2 over `/sys/fs/cgroup`: core files, freezer, kill and device programs; few controllers.
    V2,
    /// v1 controllers under a systemd of the test's own; every call has `--systemd-cgroup`.
    Systemd,
    /// The same with a cgroup2.
    SystemdV2,
}

impl View {
    /// All of them, in the order in which they are run.
    pub const ALL: [View; 5] = [View::Hybrid, View::V1, View::V2, View::Systemd, View::SystemdV2];

    /// The name used in `PROA_TEST_VIEW` and in front of test names.
    pub fn name(self) -> &'static str {
        match self {
            View::Hybrid => "hybrid",
            View::V1 => "v1",
            View::V2 => "v2",
            View::Systemd => "systemd",
            View::SystemdV2 => "systemd-v2",
        }
    }

    /// The view of that name.
    pub fn parse(name: &str) -> Option<View> {
        View::ALL.into_iter().find(|v| v.name() == name)
    }

    /// Whether the v1 controllers are there.
    pub fn has_v1(self) -> bool {
        !matches!(self, View::V2 | View::SystemdV2)
    }

    /// Whether its manager is the machine's own systemd, by [`vars::SYSTEMD`].
    pub fn uses_the_machines_systemd(self) -> bool {
        self == View::SystemdV2 && std::env::var_os(vars::SYSTEMD).is_some_and(|it| it == "machine")
    }

    /// Whether systemd is pid 1.
    pub fn has_systemd(self) -> bool {
        matches!(self, View::Systemd | View::SystemdV2)
    }
}
