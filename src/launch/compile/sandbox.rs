//! What a compiler is confined to, as the configuration of a container.

use super::{Error, Job};
use crate::config::Config;
use crate::host::Host;
use crate::launch::spawn;
use serde_json::{Value, json};
use std::path::Path;

/// Nobody, on the host.
const NOBODY: u32 = 65534;
/// Address space beside what is counted as memory: the engine's libraries, and the stacks of the linker's threads.
const LIBRARIES: u64 = 1 << 30;

/// All that the engine's compiler and linker, their C++ library and this hull call once they are loaded. Nothing by which a
/// file is found, a process made (a thread may be), or another one reached: there is none.
const CALLS: [&str; 62] = [
    "access",
    "brk",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "copy_file_range",
    "dup",
    "exit",
    "exit_group",
    "fallocate",
    "faccessat",
    "faccessat2",
    "fchmod",
    "fcntl",
    "fstat",
    "fstatfs",
    "ftruncate",
    "futex",
    "getcwd",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getrandom",
    "getrusage",
    "gettid",
    "getuid",
    "lseek",
    "lstat",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "pwrite64",
    "read",
    "readlink",
    "readlinkat",
    "readv",
    "rename",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "sendfile",
    "set_robust_list",
    "sigaltstack",
    "stat",
    "statfs",
    "statx",
];
const MORE_CALLS: [&str; 9] = [
    "sysinfo",
    "umask",
    "uname",
    "unlink",
    "unlinkat",
    "write",
    "writev",
    "gettimeofday",
    "renameat",
];

/// How much of the confinement this host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// A user namespace; else, for root only, nobody's uid as it is.
    user_namespace: bool,
    /// The cgroup's limits; resource limits hold in any case.
    limits: bool,
    root: bool,
}

impl Shape {
    /// All of it.
    pub fn new(host: &Host) -> Self {
        Self {
            user_namespace: true,
            limits: true,
            root: host.euid == 0,
        }
    }

    /// Without what has failed for `error`; `None` if that can't be done without.
    pub fn without(self, error: &Error) -> Option<Self> {
        let less = match error {
            Error::Cgroup(_) if self.limits => Self { limits: false, ..self },
            Error::Spawn(spawn::Error::Clone { .. }) if self.user_namespace && self.root => Self {
                user_namespace: false,
                ..self
            },
            _ => return None,
        };
        tracing::debug!("a compiler's confinement: {error}; trying {less:?}");
        Some(less)
    }
}

/// The configuration.
pub fn config(job: &Job, shape: Shape, host: &Host) -> Result<Config, Error> {
    let raw = serde_json::to_vec(&document(job, shape, host)).map_err(super::super::handover::Error::Json)?;
    Ok(Config::parse(raw, Path::new("the compiler's configuration"))?)
}

fn document(job: &Job, shape: Shape, host: &Host) -> Value {
    let memory = job.limits.memory;
    let seconds = job.limits.time.as_secs().max(1);
    let limit = |name: &str, value: u64| json!({"type": format!("RLIMIT_{name}"), "soft": value, "hard": value});
    let (own_uid, own_gid) = match host.euid {
        0 => (NOBODY, NOBODY),
        _ => (host.euid, host.egid),
    };
    let mut namespaces = vec!["pid", "mount", "network", "ipc", "uts"];
    let mut linux = json!({"seccomp": seccomp()});
    let mut user = NOBODY;
    if shape.user_namespace {
        namespaces.push("user");
        // One id, so that nothing but nobody can be reached from within.
        let map = |id| json!([{"containerID": 0, "hostID": id, "size": 1}]);
        linux["uidMappings"] = map(own_uid);
        linux["gidMappings"] = map(own_gid);
        user = 0;
    }
    linux["namespaces"] = namespaces.iter().map(|kind| json!({"type": kind})).collect();
    if shape.limits {
        let shares = if job.background { 102 } else { 1024 };
        linux["resources"] = json!({
            "memory": {"limit": memory, "swap": memory},
            "cpu": {"shares": shares, "quota": 100_000, "period": 100_000},
            "pids": {"limit": 64},
        });
    }
    let mut process = json!({
        "args": ["compile"],
        "cwd": "/",
        "user": {"uid": user, "gid": user},
        "capabilities": {},
        "noNewPrivileges": true,
        // Before anything else, if there is too little memory.
        "oomScoreAdj": 900,
        "rlimits": [
            limit("AS", memory + LIBRARIES),
            limit("FSIZE", memory / 2),
            limit("CPU", seconds),
            limit("CORE", 0),
            limit("NOFILE", 64),
        ],
    });
    if job.background {
        process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 10});
    }
    json!({
        "ociVersion": "1.0.2",
        "process": process,
        // Always there, and covered.
        "root": {"path": "/sys"},
        "linux": linux,
    })
}

/// What is not listed is not there: the C library has other ways for most, and says so for the rest. A thread is made with
/// clone(2), whose flags can be looked at.
fn seccomp() -> Value {
    const CLONE_THREAD: u64 = 0x1_0000;
    let names: Vec<&str> = CALLS.into_iter().chain(MORE_CALLS).collect();
    let thread = json!([{"index": 0, "value": CLONE_THREAD, "valueTwo": CLONE_THREAD, "op": "SCMP_CMP_MASKED_EQ"}]);
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": thread},
        ],
    })
}
