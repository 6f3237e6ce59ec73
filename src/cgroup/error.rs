//! Why a cgroup operation failed.

use super::dbus;
use nix::errno::Errno;
use proa_sys::errno::words;
use std::path::PathBuf;

/// Why a cgroup operation failed; names the file or the D-Bus call and the value.
///
/// Where runc has words that callers match on, they are runc's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither cgroup v1 nor v2 is mounted.
    #[error("no cgroup mount found in /proc/self/mountinfo")]
    NoCgroupMount,
    /// The devices hierarchy is missing on cgroup v1: without it device access could not be confined.
    #[error("cgroup v1: the devices controller is not mounted")]
    NoDevices,
    /// A system call on a cgroup file or directory failed.
    #[error("{call} {path}: {errno}", path = path.display(), errno = words(*errno))]
    Call {
        /// The call, e.g. `mkdir`.
        call: &'static str,
        /// Its object.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// The cgroup's directory can't be made.
    #[error("unable to apply cgroup configuration: mkdir {path}: {errno}", path = path.display(), errno = words(*errno))]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// The kernel refused a value.
    #[error("{field}: failed to write {value:?}: write {path}: {errno}", path = path.display(), errno = words(*errno))]
    Write {
        /// The field of config.json that asked for it.
        field: &'static str,
        /// The cgroup file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why it was refused.
        errno: Errno,
    },
    /// A limit was asked for whose controller this container hasn't got.
    #[error("cannot set {controller} limit: container could not join or create cgroup ({field} needs {file})")]
    NoController {
        /// The controller.
        controller: &'static str,
        /// The field of config.json.
        field: &'static str,
        /// The file that is missing.
        file: String,
    },
    /// A cgroup file does not read as the kernel's documentation says.
    #[error("{path}: unexpected content {content:?}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What could not be understood.
        content: String,
    },
    /// A field of config.json that can't be used.
    #[error("{field}: {problem}")]
    Field {
        /// Where in the document.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// `linux.resources.unified` on cgroup v1.
    #[error("invalid configuration: cannot use unified on cgroup v1")]
    NoUnified,
    /// A key of `linux.resources.unified` whose controller isn't enabled.
    #[error("unified resource {key:?} can't be set: controller {controller:?} not available")]
    UnifiedController {
        /// The key.
        key: String,
        /// The part before the dot.
        controller: String,
    },
    /// A key of `linux.resources.unified` that the kernel refused.
    #[error("unable to set unified resource {key:?}: write {value:?} to {path}: {errno}", path = path.display(), errno = words(*errno))]
    UnifiedWrite {
        /// The key.
        key: String,
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// Why.
        errno: Errno,
    },
    /// The cgroup exists and has processes in it.
    #[error("container's cgroup is not empty: {0} process(es) found")]
    NotEmpty(usize),
    /// The cgroup exists and is frozen.
    #[error("container's cgroup unexpectedly frozen")]
    Frozen,
    /// The kernel did not freeze all processes in time.
    #[error("unable to freeze {path}", path = .0.display())]
    Unfreezable(PathBuf),
    /// The container has no cgroup to freeze.
    #[error("cannot toggle freezer: cgroups not configured for container")]
    NoFreezer,
    /// A cgroup v2 directory whose type excludes the controllers asked for.
    #[error("cannot enter cgroupv2 {path:?} with domain controllers -- it is in {kind}")]
    Threaded {
        /// The directory.
        path: PathBuf,
        /// What `cgroup.type` says, in runc's words.
        kind: String,
    },
    /// The cgroup that `exec --cgroup` names is not there. Words are runc's.
    #[error("error adding pid to cgroup {path}: {errno}", path = path.display(), errno = words(*errno))]
    Join {
        /// The directory.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// `exec --cgroup` left the container's cgroup.
    #[error("bad sub cgroup path: {0}")]
    SubCgroup(String),
    /// `exec --cgroup CONTROLLER:PATH` with a controller that isn't there.
    #[error("unknown controller {0} in SubCgroupPaths")]
    UnknownController(String),
    /// A memory limit below what is in use.
    #[error("unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})")]
    MemoryInUse {
        /// The limit asked for, in bytes.
        limit: i64,
        /// `memory.usage_in_bytes`.
        usage: u64,
        /// `memory.max_usage_in_bytes`.
        peak: u64,
    },
    /// A memory limit below what is in use, found by `checkBeforeUpdate` before anything was changed.
    #[error("rejecting {what} limit {limit} <= usage {usage}")]
    MemoryCheck {
        /// `memory` or `memory+swap`.
        what: &'static str,
        /// The limit asked for, in bytes.
        limit: i64,
        /// The present use, in bytes.
        usage: u64,
    },
    /// The kernel changed a CPU share.
    #[error("the {bound} allowed cpu-shares is {value}")]
    Shares {
        /// `maximum` or `minimum`.
        bound: &'static str,
        /// What the kernel made of it.
        value: u64,
    },
    /// A device rule that cgroup v1's model can't express.
    #[error(
        "linux.resources.devices: requested rule [{rule}] not supported by devices cgroupv1 \
         (cannot punch hole in existing wildcard rule [{wildcard}])"
    )]
    PunchedHole {
        /// The rule.
        rule: String,
        /// The wildcard it would make a hole in.
        wildcard: String,
    },
    /// bpf(2) refused the device program.
    #[error("linux.resources.devices: bpf({call}) for {path}: {errno}", path = path.display(), errno = words(*errno))]
    Bpf {
        /// The bpf(2) command.
        call: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// No permission for cgroups, but limits or a path that need it.
    #[error(
        "unable to apply cgroup configuration: rootless needs no limits + no cgrouppath when no permission is granted for cgroups: mkdir {path}: {errno}",
        path = path.display(), errno = words(*errno)
    )]
    Rootless {
        /// The directory that could not be made.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// `--systemd-cgroup` without systemd.
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NoSystemd,
    /// The systemd driver cannot serve unprivileged callers on cgroup v1.
    #[error("cannot use rootless systemd cgroups manager on cgroup v1")]
    RootlessSystemdV1,
    /// Processes are still in a cgroup that was to be removed.
    #[error("Failed to remove paths: {path}: {errno}", path = path.display(), errno = words(*errno))]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// Talking to systemd failed.
    #[error(transparent)]
    Dbus(#[from] dbus::Error),
    /// systemd's job for the unit did not succeed.
    #[error("error creating systemd unit `{unit}`: got `{result}`")]
    Unit {
        /// The unit.
        unit: String,
        /// The job's result.
        result: String,
    },
}

impl Error {
    /// The errno at the bottom of it, where a system call failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Call { errno, .. }
            | Self::Make { errno, .. }
            | Self::Write { errno, .. }
            | Self::UnifiedWrite { errno, .. }
            | Self::Bpf { errno, .. }
            | Self::Rootless { errno, .. }
            | Self::Remove { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}
