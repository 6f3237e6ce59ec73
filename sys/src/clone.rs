//! clone3(2) with a fall-back to clone(2).

use crate::{Errno, Result, threads};
use nix::unistd::Pid;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the new process is to be.
#[derive(Debug, Default)]
pub struct Clone<'a> {
    /// `CLONE_NEW*` bits and `CLONE_PARENT`.
    pub flags: u64,
    /// A cgroup v2 directory in which the process is born (`CLONE_INTO_CGROUP`, Linux 5.7).
    pub into_cgroup: Option<BorrowedFd<'a>>,
}

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Side {
    /// The caller's.
    Parent(Child),
    /// The new process's.
    Child {
        /// Whether the process was born in the cgroup that was asked for.
        in_cgroup: bool,
    },
}

/// The parent's view of a new process.
#[derive(Debug)]
pub struct Child {
    /// The process id in the caller's pid namespace.
    pub pid: Pid,
    /// A pidfd (Linux 5.2); `None` where the kernel has none.
    pub pidfd: Option<OwnedFd>,
}

/// Why there is no new process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another thread uses the caller's memory.
    #[error("this process has other threads, and a copy of it would wait for ever for what they hold locked")]
    Threads,
    /// The kernel refused, or does not tell whether there are other threads.
    #[error(transparent)]
    Call(#[from] Errno),
}

/// clone3(2) wants its size as an argument; this is `struct clone_args` of Linux 5.7 (`CLONE_ARGS_SIZE_VER2`).
#[repr(C, align(8))]
#[derive(Default)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_NEWTIME` (Linux 5.6) shares a bit with clone(2)'s exit signal, so only clone3(2) and unshare(2) take it.
pub const CLONE_NEWTIME: u64 = 0x80;

/// Makes a process that goes on in a copy of the caller's memory, as fork(2) does: returns on both sides.
///
/// [`Error::Threads`] if the caller is not single-threaded, as proa is whenever it makes a process: a lock held by another
/// thread (the allocator's, say) would stay locked in the child for ever. Falls back from clone3(2) to clone(2) on kernels before 5.3 or where a seccomp filter answers
/// ENOSYS, and from `CLONE_INTO_CGROUP` to a plain clone where the kernel is older than 5.7; [`Side::Child`] tells.
pub fn clone(what: &Clone<'_>) -> std::result::Result<Side, Error> {
    clone_alone(what, &alone()?)
}

/// That the thread which asked is its process's only one, as [`clone_alone`] wants to know: it must not have started another
/// since. It stays in that thread.
#[derive(Debug)]
pub struct Alone(PhantomData<*const ()>);

/// Asks the kernel, which a filter may refuse to answer later.
pub fn alone() -> std::result::Result<Alone, Error> {
    match threads::is_alone()? {
        true => Ok(Alone(PhantomData)),
        false => Err(Error::Threads),
    }
}

/// As [`clone`], for who has asked before.
pub fn clone_alone(what: &Clone<'_>, _: &Alone) -> std::result::Result<Side, Error> {
    let mut pidfd: libc::c_int = -1;
    let mut in_cgroup = what.into_cgroup.is_some();
    // With CLONE_PARENT the child sends its new parent what the caller would have sent: the kernel insists on 0 here.
    let exit_signal = if what.flags & libc::CLONE_PARENT as u64 != 0 {
        0
    } else {
        libc::SIGCHLD as u64
    };
    let mut arguments = Arguments {
        flags: what.flags | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal,
        ..Default::default()
    };
    let mut size = size_of::<Arguments>();
    if let Some(cgroup) = what.into_cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    } else {
        // CLONE_ARGS_SIZE_VER0, which Linux 5.3 to 5.6 know.
        size = 64;
    }
    let mut result = raw_clone3(&arguments, size);
    if in_cgroup && matches!(result, Err(Errno::E2BIG | Errno::EINVAL)) {
        in_cgroup = false;
        arguments.flags &= !CLONE_INTO_CGROUP;
        arguments.cgroup = 0;
        result = raw_clone3(&arguments, 64);
    }
    if result == Err(Errno::ENOSYS) && what.flags & CLONE_NEWTIME == 0 {
        in_cgroup = false;
        result = raw_clone(what.flags | exit_signal);
    }
    match result? {
        0 => Ok(Side::Child { in_cgroup }),
        pid => Ok(Side::Parent(Child {
            pid: Pid::from_raw(pid),
            pidfd: (pidfd >= 0).then(|| {
                // SAFETY: the kernel stored a new descriptor there, which nobody else knows of.
                unsafe { OwnedFd::from_raw_fd(pidfd) }
            }),
        })),
    }
}

fn raw_clone3(arguments: &Arguments, size: usize) -> Result<i32> {
    // SAFETY: `arguments` is a valid clone_args of `size` bytes; no stack and no CLONE_VM are asked for, so the child has
    // its own copy of this one's memory and returns here on its own stack, as after fork(2).
    Errno::result(unsafe { libc::syscall(libc::SYS_clone3, arguments, size) }).map(|pid| pid as i32)
}

fn raw_clone(flags: u64) -> Result<i32> {
    // SAFETY: as above: a null stack without CLONE_VM is fork(2) with namespace flags.
    #[cfg(target_arch = "s390x")]
    let result = unsafe { libc::syscall(libc::SYS_clone, 0, flags, 0, 0, 0) };
    // SAFETY: as above; s390x alone has the stack first.
    #[cfg(not(target_arch = "s390x"))]
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    Errno::result(result).map(|pid| pid as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};

    #[test]
    fn a_process_with_threads_is_not_cloned() {
        std::thread::scope(|scope| {
            let (end, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            assert_eq!(clone(&Clone::default()).map(drop), Err(Error::Threads));
            drop(end);
        });
    }

    /// The copy has the calling thread alone, and is one that may be cloned.
    #[test]
    fn a_process_without_threads_is_cloned() {
        let status = crate::threads::tests::in_a_copy(|| match clone(&Clone::default()) {
            Ok(Side::Child { .. }) => crate::exec::exit_now(7),
            Ok(Side::Parent(child)) => match waitpid(child.pid, None) {
                Ok(WaitStatus::Exited(_, 7)) => 0,
                _ => 1,
            },
            Err(_) => 2,
        });
        assert_eq!(status, 0);
    }
}
