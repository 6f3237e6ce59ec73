//! The seccomp filter: compiled (or found in the cache) by the parent, installed by init.

use super::{Error, cache};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use oci_spec::runtime::LinuxSeccomp;
use proa_seccomp::{Program, Verdict};
use proa_sys::security;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A compiled seccomp filter as the container's init receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// What to install. [`Program::encode`] and [`Program::decode`] take it from process to process.
    pub program: Program,
    /// `linux.seccomp.listenerPath` and `listenerMetadata`, where the parent sends the listener descriptor
    /// ([`super::notify::send`]). Only if the program notifies.
    pub listener: Option<(PathBuf, Option<String>)>,
}

/// In the parent: the compiled filter of `profile`, from the cache directory `cache` (made 0700 if missing, keyed by the
/// profile's content and the versions of proa and libseccomp; an entry that is not ours is ignored) or compiled now. A
/// cache that can't be used costs time, nothing else.
pub fn filter(profile: &LinuxSeccomp, cache: &Path) -> Result<Filter, Error> {
    let key = cache::key(profile).map_err(|error| Error::field("linux.seccomp", error.to_string()))?;
    let program = match cache::load(cache, &key) {
        Some(program) => program,
        None => {
            let compiled = interruptible(|| proa_seccomp::compile(profile))??;
            for name in &compiled.unknown {
                tracing::debug!("unknown seccomp syscall {name:?} ignored");
            }
            if let Err(error) = cache::store(cache, &key, &compiled.program) {
                tracing::debug!("seccomp cache {}: {error}", cache.display());
            }
            compiled.program
        }
    };
    // Callers' tests look for this line (runc's seccomp.bats).
    tracing::debug!("seccomp filter flags: {}", program.flags);
    let listener = match (program.notify, profile.listener_path()) {
        (true, Some(path)) => Some((path.clone(), profile.listener_metadata().clone())),
        _ => None,
    };
    Ok(Filter { program, listener })
}

/// Whether a process may go on under this filter that is still to make the one which others see: what is called from there to
/// execve(2), as the C library and Rust's have it, beside what a profile has to allow in any case.
pub(super) fn allows_entry(program: &Program) -> bool {
    use nix::libc;
    // Under an agent that has not got its listener every call might wait for ever.
    if program.notify {
        return false;
    }
    let allowed = |number: libc::c_long, args: &[u64]| {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        program.verdict(number as u32, all)
    };
    let is_allowed = |number: &libc::c_long| allowed(*number, &[]) == Verdict::Allowed;
    let clones = match allowed(libc::SYS_clone3, &[]) {
        Verdict::Allowed => true,
        // clone(2) is the fall-back (sys/src/clone.rs).
        Verdict::Errno(errno) if i32::from(errno) == libc::ENOSYS => {
            allowed(libc::SYS_clone, &[libc::CLONE_PARENT as u64]) == Verdict::Allowed
        }
        _ => false,
    };
    #[allow(clippy::unnecessary_cast, reason = "its type is another one with musl")]
    let terminal = [0, libc::TIOCSCTTY as u64];
    clones && allowed(libc::SYS_ioctl, &terminal) == Verdict::Allowed && AFTER_ENTRY.iter().all(is_allowed)
}

/// The calls between the clone and execve(2).
const AFTER_ENTRY: [nix::libc::c_long; 21] = {
    use nix::libc::*;
    [
        SYS_prlimit64,
        SYS_setsid,
        SYS_read,
        SYS_write,
        SYS_close,
        SYS_fcntl,
        SYS_exit_group,
        SYS_prctl,
        SYS_capset,
        SYS_capget,
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_newfstatat,
        SYS_faccessat,
        SYS_mmap,
        SYS_mremap,
        SYS_munmap,
        SYS_brk,
        SYS_getpid,
        SYS_clock_gettime,
        SYS_execve,
    ]
};

/// Lets the signals that ask this process to end do so while it computes, which may take seconds: whoever waits in the
/// foreground has blocked them, to pass them on to a container that does not exist yet.
fn interruptible<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    let failed = |source| Error::Call {
        call: "sigprocmask(SIG_UNBLOCK, [HUP INT QUIT TERM])".into(),
        source,
    };
    let ends = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
    let before = SigSet::from_iter(ends)
        .thread_swap_mask(SigmaskHow::SIG_UNBLOCK)
        .map_err(failed)?;
    let done = work();
    before.thread_set_mask().map_err(failed)?;
    Ok(done)
}

/// Installs `filter` for the process. An init that becomes a native program has one thread; an engine may have started
/// more, and a filter that misses one is no filter.
pub(super) fn install(filter: &Filter, native: bool) -> Result<Option<OwnedFd>, Error> {
    let program = &filter.program;
    let threads = match (native, program.notify) {
        (true, _) => 0,
        (false, false) => security::SECCOMP_TSYNC,
        (false, true) => security::SECCOMP_TSYNC | security::SECCOMP_TSYNC_ESRCH,
    };
    let flags = program.flags | threads;
    security::seccomp_install(flags, &program.instructions).map_err(|source| {
        let length = program.instructions.len() / 8;
        let hint = if source == Errno::EINVAL {
            " (a flag or action that this kernel lacks)"
        } else {
            ""
        };
        let call =
            format!("error loading seccomp filter into kernel: seccomp({flags:#x}, {length} instructions){hint}");
        Error::Call { call, source }
    })
}
