//! cgroups: v2, v1 and hybrid; the drivers `cgroupfs` and `systemd`.
//!
//! [`plan`] is pure. [`Cgroup`] is a container's cgroup on the host, made by [`Cgroup::create`], found again by
//! [`Cgroup::open`] from what the state file kept.

use crate::host::Host;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// Who makes the cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// proa writes to the cgroup file system.
    Cgroupfs,
    /// systemd makes a transient scope, asked over D-Bus (`--systemd-cgroup`).
    Systemd,
}

/// Which cgroup a container gets and with which limits.
#[derive(Clone, Debug)]
pub struct Plan {}

/// What the state file keeps of a cgroup, enough to find it again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Saved {}

/// Why a cgroup operation failed; names the file or the D-Bus call and the value.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// How the container's first process gets into its cgroup.
#[derive(Debug, Default)]
pub struct Birth {
    /// A v2 cgroup directory for clone3(2)'s `CLONE_INTO_CGROUP` (Linux 5.7). `None` where there is no v2 cgroup.
    pub into: Option<OwnedFd>,
    /// Files into which the new process itself writes `0` first thing. On v1 these are the hierarchies' `tasks` files:
    /// a single-threaded process that moves *itself* through `tasks` spares the kernel the global
    /// `cgroup_threadgroup_rwsem` (kernel/cgroup/cgroup.c, `cgroup_procs_write_start`), which costs ten milliseconds on a
    /// busy machine.
    pub join: Vec<OwnedFd>,
    /// For a kernel without `CLONE_INTO_CGROUP`: the v2 `cgroup.procs` in which to write `0` instead of using `into`.
    pub into_fallback: Option<OwnedFd>,
    /// Whether [`Cgroup::attach`] has to be called with the new process's pid before it may go on (systemd driver).
    pub by_pid: bool,
}

/// A container's cgroup.
#[derive(Debug)]
pub struct Cgroup {}

/// Resolves `linux.cgroupsPath` and `linux.resources` for container `id`.
pub fn plan(spec: &Spec, id: &str, driver: Driver, host: &Host) -> Result<Plan, Error> {
    let _ = (spec, id, driver, host);
    todo!()
}

impl Cgroup {
    /// Makes the cgroup and applies the limits. With the systemd driver the scope needs a process: it is made by
    /// [`Cgroup::attach`]. Removes what it made if it fails.
    pub fn create(plan: &Plan) -> Result<Self, Error> {
        let _ = plan;
        todo!()
    }

    /// Finds a container's cgroup again.
    pub fn open(saved: &Saved) -> Result<Self, Error> {
        let _ = saved;
        todo!()
    }

    /// What the state file has to keep.
    pub fn save(&self) -> Saved {
        todo!()
    }

    /// How a process starts in this cgroup, or (`exec --cgroup`) in the one at `sub` below it.
    pub fn birth(&self, sub: Option<&str>) -> Result<Birth, Error> {
        let _ = sub;
        todo!()
    }

    /// Makes the systemd scope around `pid`, waits for systemd's job, applies the limits systemd doesn't know.
    pub fn attach(&mut self, pid: Pid) -> Result<(), Error> {
        let _ = pid;
        todo!()
    }

    /// Changes limits (`proa update`).
    pub fn update(&mut self, resources: &LinuxResources) -> Result<(), Error> {
        let _ = resources;
        todo!()
    }

    /// Freezes every process of the cgroup and returns when the kernel says that they are.
    pub fn freeze(&self) -> Result<(), Error> {
        todo!()
    }

    /// Undoes [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<(), Error> {
        todo!()
    }

    /// Whether the cgroup is frozen (`state` says `paused`).
    pub fn is_frozen(&self) -> Result<bool, Error> {
        todo!()
    }

    /// The pids of every process in the cgroup and the cgroups below it.
    pub fn pids(&self) -> Result<Vec<Pid>, Error> {
        todo!()
    }

    /// Sends `signal` to every process in the cgroup and below; SIGKILL by `cgroup.kill` where the kernel has it.
    pub fn signal_all(&self, signal: Signal) -> Result<(), Error> {
        let _ = signal;
        todo!()
    }

    /// Removes the cgroup with all below it; what is gone already is no error. Fails while processes are left.
    pub fn destroy(&self) -> Result<(), Error> {
        todo!()
    }
}

impl Cgroup {
    /// Usage and limits in the shape of runc's `events`.
    pub fn stats(&self) -> Result<serde_json::Value, Error> {
        todo!()
    }

    /// Subscribes to the out-of-memory events of the container.
    pub fn oom_events(&self) -> Result<OomEvents, Error> {
        todo!()
    }
}

/// What [`OomEvents::next`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomEvent {
    /// A process of the container was killed for want of memory.
    Oom,
    /// The cgroup is empty or gone: nothing more will come.
    Ended,
    /// Nothing of note; poll again.
    Nothing,
}

/// A source of events: poll its descriptor for input, then call [`OomEvents::next`].
#[derive(Debug)]
pub struct OomEvents {
    fd: OwnedFd,
}

impl OomEvents {
    /// Reads what made the descriptor ready, without blocking.
    pub fn next(&mut self) -> Result<OomEvent, Error> {
        todo!()
    }
}

impl std::os::fd::AsFd for OomEvents {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
