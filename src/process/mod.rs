//! The container's process: credentials, limits, confinement (`process` of config.json and the process-wide parts of
//! `linux`: seccomp, personality, memory policy, intelRdt refusal).
//!
//! [`plan`] is pure. [`tune`] runs in the parent with the host's privileges; everything else runs in the container's
//! init, in this order: [`early`], (file system), [`labels`], [`confine`], and [`seal`] as the very last step.

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use proa_executor::Guest;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::Path;

/// What is to be done to the process, resolved and validated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// args, env, cwd: what the handler executes. `env` has `HOME` added if the config has none (looked up by uid in the
    /// container's /etc/passwd by [`confine`]).
    pub guest: Guest,
    /// `process.terminal`.
    pub terminal: bool,
    /// `process.consoleSize` as (rows, columns).
    pub console_size: Option<(u16, u16)>,
}

/// What the command line says about the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// The process joins a running container (`exec`): no personality or memory policy of `linux`, exec's CPU affinity.
    pub exec: bool,
}

/// Why the process can't be set up; names the field and the value, or the call and its arguments.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// A compiled seccomp filter as the container's init receives it.
#[derive(Debug)]
pub struct Filter {
    /// What to install.
    pub program: proa_seccomp::Program,
    /// `linux.seccomp.listenerPath`, where the parent sends the listener descriptor.
    pub listener: Option<(std::path::PathBuf, String)>,
}

/// Resolves `process` (of the container, or of an `exec`), and what `spec.linux` says process-wide, for container `id`.
pub fn plan(process: &Process, spec: &Spec, id: &str, options: Options) -> Result<Plan, Error> {
    let _ = (process, spec, id, options);
    todo!()
}

/// In the parent: the compiled filter of `profile`, from the cache directory `cache` (made 0700 if missing, keyed by the
/// profile's content and proa's version; an entry that is not ours is ignored) or compiled now.
pub fn filter(profile: &LinuxSeccomp, cache: &Path) -> Result<Filter, Error> {
    let _ = (profile, cache);
    todo!()
}

/// In the parent, once `pid` exists and before it may go on: what needs the host's privileges even if the container has
/// a user namespace (resource limits by prlimit(2), oom_score_adj, exec's initial CPU affinity).
pub fn tune(plan: &Plan, pid: Pid) -> Result<(), Error> {
    let _ = (plan, pid);
    todo!()
}

/// First in init: the session keyring, scheduler, I/O priority, memory policy, dumpability.
pub fn early(plan: &Plan) -> Result<(), Error> {
    let _ = plan;
    todo!()
}

/// After the file system is done: AppArmor, SELinux (for the next execve if `native`, for this process from now on if
/// not), personality, no_new_privs.
pub fn labels(plan: &Plan, native: bool) -> Result<(), Error> {
    let _ = (plan, native);
    todo!()
}

/// Gives up privileges: seccomp first if no_new_privs is off, bounding set, groups, ids, capabilities, umask, cwd, `HOME`.
/// Returns the seccomp listener if one was made. Updates `plan.guest.env`.
pub fn confine(plan: &mut Plan, filter: Option<&Filter>) -> Result<Option<OwnedFd>, Error> {
    let _ = (plan, filter);
    todo!()
}

/// The very last step: seccomp if no_new_privs is on. Returns the listener if one was made.
pub fn seal(plan: &Plan, filter: Option<&Filter>) -> Result<Option<OwnedFd>, Error> {
    let _ = (plan, filter);
    todo!()
}

/// Sending a seccomp listener to its agent.
pub mod notify {
    use super::Error;
    use std::os::fd::OwnedFd;
    use std::path::Path;

    /// Sends `listener` with the container's state to the agent at `path`.
    pub fn send(path: &Path, metadata: &str, listener: OwnedFd, state: &serde_json::Value) -> Result<(), Error> {
        let _ = (path, metadata, listener, state);
        todo!()
    }
}
