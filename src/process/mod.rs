//! The container's process: credentials, limits, confinement (`process` of config.json and the process-wide parts of
//! `linux`: seccomp, personality, memory policy, intelRdt).
//!
//! [`plan`] is pure. [`check_host`], [`filter`] and [`tune`] run in the parent with the host's privileges; everything else
//! runs in the container's init (or in an `exec`), in this order:
//!
//! ```text
//! early      first of all: not dumpable, so that a container's root can't look into it
//!            (namespaces are joined; the file system is made and entered)
//! labels     keyring, AppArmor, no_new_privs, scheduler, I/O priority, personality, memory policy, SELinux
//! confine    umask, stdio's owner, cwd, HOME, bounding set, groups, ids, [seccomp,] capabilities
//! seal       [seccomp]
//! ```
//!
//! An `exec` does all of this before any process of the container can see it; see `launch/init/joining.rs`.
//!
//! Seccomp comes last, so that a profile need not allow what set-up does. Without no_new_privs it takes CAP_SYS_ADMIN, so
//! then it comes just before the capabilities go; after it the profile must allow only what runc also needs: capset(2),
//! prctl(2), and what the caller does from there to execve(2).

mod affinity;
mod cache;
mod capabilities;
mod credentials;
mod environment;
mod keyring;
mod lsm;
pub mod notify;
mod plan;
pub mod rdt;
mod schedule;
mod seccomp;
mod tune;

pub use capabilities::Capabilities;
pub use keyring::Keyring;
pub use lsm::Procfs;
pub use plan::{Affinity, MemoryPolicy, Rlimit, Scheduler, User, plan};
pub use seccomp::{Filter, filter};
pub use tune::{check_host, limit_processes, tune, tune_but_processes};

use nix::errno::Errno;
use proa_executor::Guest;
use proa_sys::errno::words;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What is to be done to the process, resolved and validated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// args, env, cwd: what the handler executes. `env` has no duplicates; [`confine`] adds `HOME` if the config has none.
    pub guest: Guest,
    /// `process.terminal`.
    pub terminal: bool,
    /// `process.consoleSize` as (rows, columns).
    pub console_size: Option<(u16, u16)>,
    /// `process.user`.
    pub user: User,
    /// `process.capabilities`. Without it, as in runc, the process keeps none.
    pub capabilities: Capabilities,
    /// `process.noNewPrivileges`.
    pub no_new_privileges: bool,
    /// `process.rlimits`, each resource at most once.
    pub rlimits: Vec<Rlimit>,
    /// `process.oomScoreAdj`.
    pub oom_score_adj: Option<i32>,
    /// `process.apparmorProfile`.
    pub apparmor_profile: Option<String>,
    /// `process.selinuxLabel`.
    pub selinux_label: Option<String>,
    /// `process.ioPriority` as ioprio_set(2) takes it.
    pub io_priority: Option<i32>,
    /// `process.scheduler`.
    pub scheduler: Option<Scheduler>,
    /// `process.execCPUAffinity`; only for an `exec`.
    pub affinity: Option<Affinity>,
    /// The session keyring; none with `--no-new-keyring`.
    pub keyring: Option<Keyring>,
    /// `linux.personality`: the persona of personality(2).
    pub personality: Option<i32>,
    /// `linux.memoryPolicy`.
    pub memory_policy: Option<MemoryPolicy>,
    /// `linux.intelRdt`; not for an `exec`, which inherits its container's group.
    pub rdt: Option<rdt::Group>,
}

/// What the command line says about the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// The process joins a running container (`exec`).
    pub exec: bool,
    /// The caller isn't root: it has no additional groups to give, and it is no error if it can't drop its own.
    pub unprivileged: bool,
}

/// Why the process can't be set up; names the field and the value, or the call and its arguments. Worded as runc words it
/// where runc has words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field's value can't be used.
    #[error("{field}: {problem}")]
    Field {
        /// Where in config.json, e.g. `process.cwd`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A system call failed.
    #[error("{call}: {source}")]
    Call {
        /// What for, and the call with its arguments.
        call: String,
        /// Why.
        source: Errno,
    },
    /// A file of the host or of procfs can't be read or written.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// e.g. `write -500 to`.
        action: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The seccomp profile can't be compiled.
    #[error("unable to init seccomp: {0}")]
    Seccomp(#[from] proa_seccomp::Error),
    /// `process.cwd` can't be entered.
    #[error("chdir to cwd ({cwd:?}) set in config.json failed: {words}", words = words(*source))]
    Cwd {
        /// `process.cwd`.
        cwd: String,
        /// Why.
        source: Errno,
    },
    /// `process.cwd` led out of the container (CVE-2024-21626).
    #[error(
        "current working directory is outside of container mount namespace root -- possible container breakout detected"
    )]
    Breakout,
    /// `process.user` isn't mapped into the user namespace.
    #[error("cannot {call} to unmapped {what} {id} in user namespace")]
    Unmapped {
        /// `setuid` or `setgid`.
        call: &'static str,
        /// `uid` or `gid`.
        what: &'static str,
        /// As in the config.
        id: u32,
    },
    /// AppArmor is asked for and not there.
    #[error("unable to apply apparmor profile {profile:?}: apparmor: config provided but apparmor not supported")]
    NoAppArmor {
        /// `process.apparmorProfile`.
        profile: String,
    },
    /// AppArmor refuses the profile.
    #[error("unable to apply apparmor profile: apparmor failed to apply profile: {command:?}: {source}")]
    AppArmor {
        /// What was written to the attribute, e.g. `exec docker-default`.
        command: String,
        /// Why.
        source: std::io::Error,
    },
    /// SELinux is asked for and not there.
    #[error("selinux label is specified in config, but selinux is disabled or not supported")]
    NoSelinux,
    /// SELinux refuses the label.
    #[error("can't set process label: write {label:?} to /proc/thread-self/attr/{attribute}: {source}")]
    Selinux {
        /// `exec`, `current` or `keycreate`.
        attribute: &'static str,
        /// `process.selinuxLabel`.
        label: String,
        /// Why.
        source: std::io::Error,
    },
    /// `linux.intelRdt` is asked for and not there.
    #[error("linux.intelRdt: intelRdt is specified in config, but Intel RDT is not enabled: no resctrl at {path}", path = path.display())]
    NoRdt {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The hardware lacks what `linux.intelRdt` asks for. Worded as runc words it.
    #[error("{field} {problem}")]
    Rdt {
        /// The field.
        field: String,
        /// What is missing.
        problem: String,
    },
    /// The agent of `linux.seccomp.listenerPath` can't be reached.
    #[error("failed to connect with seccomp agent specified in the seccomp profile: {path}: {source}", path = path.display())]
    Agent {
        /// `linux.seccomp.listenerPath`.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field {
            field: field.into(),
            problem: problem.into(),
        }
    }

    fn call(call: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        move |source| Self::Call {
            call: call.into(),
            source,
        }
    }
}

/// First in init, before a namespace of the container is joined: makes the process not dumpable, so that no process of the
/// container may trace it or look into `/proc/PID` for descriptors that lead to the host (CVE-2016-9962). execve(2) undoes
/// it; the in-process engine keeps it.
pub fn early() -> Result<(), Error> {
    traceable(false)
}

/// Whether others may trace this process and its files in `/proc` are its user's.
pub fn traceable(yes: bool) -> Result<(), Error> {
    nix::sys::prctl::set_dumpable(yes).map_err(Error::call("prctl(PR_SET_DUMPABLE)"))
}

/// After the file system is done: the session keyring, AppArmor and SELinux (for the next execve if `native`, for this
/// process from now on if not), no_new_privs, scheduler, I/O priority, personality, memory policy. `procfs` is for a process
/// that the container's own does not show.
pub fn labels(plan: &Plan, native: bool, procfs: Option<&Procfs>) -> Result<(), Error> {
    if let Some(keyring) = &plan.keyring {
        keyring::join(keyring, plan.selinux_label.as_deref(), procfs)?;
    }
    // Before no_new_privs, which restricts the profiles that a process may change to.
    if let Some(profile) = &plan.apparmor_profile {
        lsm::apparmor(profile, native, procfs)?;
    }
    if plan.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(Error::call("prctl(PR_SET_NO_NEW_PRIVS, 1)"))?;
    }
    schedule::apply(plan)?;
    // After all else that may execute something on behalf of the runtime: it is for the next execve.
    if let Some(label) = &plan.selinux_label {
        lsm::selinux(if native { "exec" } else { "current" }, label, procfs)?;
    }
    Ok(())
}

/// Gives up privileges: umask, ownership of stdio, cwd, `HOME` (which updates `plan.guest.env`), bounding set, groups, ids,
/// seccomp if no_new_privs is off, capabilities. Returns the seccomp listener if one was made: hand it to the parent with
/// as few kinds of system calls as possible, since from here on each may wait for the agent that has not got it yet.
pub fn confine(plan: &mut Plan, filter: Option<&Filter>, native: bool) -> Result<Option<OwnedFd>, Error> {
    let capabilities = become_user(plan, None)?;
    give_up(plan, capabilities, filter.filter(|_| !plan.no_new_privileges), native)
}

/// What [`confine_before_entry`] could not do yet.
#[derive(Debug)]
pub enum Rest {
    /// Nothing: the filter is installed, if there is one.
    Nothing,
    /// The filter, by [`seal`].
    Seal,
    /// The filter, which takes CAP_SYS_ADMIN, and to give that up.
    Filter(Capabilities),
}

/// As [`confine`], in a process that no other process of the container sees: the one that it is going to make, which they
/// see, then has nothing that they could gain by taking it over (ptrace(2)). The filter is installed as well, if it allows
/// what is still to be done. If it does not, and there is no no_new_privs, CAP_SYS_ADMIN is kept for it.
pub fn confine_before_entry(
    plan: &mut Plan,
    filter: Option<&Filter>,
    native: bool,
    procfs: Option<&Procfs>,
) -> Result<Rest, Error> {
    let capabilities = become_user(plan, procfs)?;
    let now = filter.filter(|filter| seccomp::allows_entry(&filter.program));
    match (filter, now) {
        (Some(_), None) if !plan.no_new_privileges => {
            sets_of(plan, capabilities, native).apply_with(CapabilitySet::SYS_ADMIN)?;
            Ok(Rest::Filter(capabilities))
        }
        (filter, now) => {
            // It does not notify: there is no listener.
            give_up(plan, capabilities, now.filter(|_| !plan.no_new_privileges), native)?;
            seal(plan, now, native)?;
            Ok(if filter.is_some() && now.is_none() {
                Rest::Seal
            } else {
                Rest::Nothing
            })
        }
    }
}

/// Does what [`confine_before_entry`] left, but for [`seal`]. Returns the listener if one was made, see [`confine`].
pub fn confine_after_entry(
    plan: &Plan,
    filter: Option<&Filter>,
    native: bool,
    rest: &Rest,
) -> Result<Option<OwnedFd>, Error> {
    match rest {
        Rest::Nothing | Rest::Seal => Ok(None),
        Rest::Filter(capabilities) => give_up(plan, *capabilities, filter, native),
    }
}

/// Everything that comes before the filter and the capabilities. Returns those that it is to have.
fn become_user(plan: &mut Plan, procfs: Option<&Procfs>) -> Result<Capabilities, Error> {
    credentials::set_umask(&plan.user);
    // While it may still be done: the new owner could not give itself a file of somebody else.
    credentials::own_stdio(plan.user.uid)?;
    // First with root's rights: the directory may be one that only they can enter.
    let entered = credentials::enter_cwd(&plan.guest.cwd)?;
    environment::add_home(&mut plan.guest.env, plan.user.uid);

    let capabilities = plan.capabilities.supported()?;
    // Takes CAP_SETPCAP, so before anything is given up.
    capabilities.limit_bounding()?;
    credentials::become_user(&plan.user, procfs)?;
    if !entered {
        // Then with the user's own rights: root of a user namespace, or of an NFS client, may have less.
        credentials::enter_cwd_as_user(&plan.guest.cwd)?;
    }
    credentials::verify_cwd()?;
    Ok(capabilities)
}

/// Installs the filter, which takes CAP_SYS_ADMIN without no_new_privs, and gives up all capabilities but `capabilities`.
fn give_up(
    plan: &Plan,
    capabilities: Capabilities,
    filter: Option<&Filter>,
    native: bool,
) -> Result<Option<OwnedFd>, Error> {
    let listener = match filter {
        Some(filter) => {
            if plan.user.uid != 0 {
                // Leaving uid 0 emptied the effective set, and this takes CAP_SYS_ADMIN.
                capabilities::regain()?;
            }
            seccomp::install(filter, native)?
        }
        None => None,
    };
    sets_of(plan, capabilities, native).apply()?;
    if plan.user.uid != 0 {
        credentials::forget_keeping()?;
    }
    Ok(listener)
}

/// The sets that the process is to have.
fn sets_of(plan: &Plan, capabilities: Capabilities, native: bool) -> Capabilities {
    match native || plan.user.uid == 0 {
        true => capabilities,
        false => capabilities.after_exec(),
    }
}

/// The very last step: seccomp if no_new_privs is on. Returns the listener if one was made, see [`confine`].
pub fn seal(plan: &Plan, filter: Option<&Filter>, native: bool) -> Result<Option<OwnedFd>, Error> {
    match filter {
        Some(filter) if plan.no_new_privileges => seccomp::install(filter, native),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod confined_tests;
#[cfg(test)]
mod tests;
