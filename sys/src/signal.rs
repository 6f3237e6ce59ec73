//! Signals by number: pidfd_send_signal(2) and kill(2).
//!
//! `nix` and `rustix` only know the named signals; a container may be sent any number, real-time ones and 0 included.

use crate::{Errno, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sends `signal` (0 only checks) to the process that `pidfd` names. pidfd_send_signal(2), Linux 5.1.
pub fn pidfd_send(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: siginfo is null, so the kernel reads no memory of ours; the descriptor is open for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// `siginfo_t` of a signal with a value, as the kernel reads it (asm-generic/siginfo.h): 128 bytes, of which these are the
/// first. Zeroed but for them.
#[repr(C)]
struct Queued {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    sender: Sender,
}

#[repr(C)]
struct Sender {
    pid: libc::pid_t,
    uid: libc::uid_t,
    value: usize,
}

const _: () = assert!(
    size_of::<Queued>() <= size_of::<libc::siginfo_t>() && align_of::<Queued>() <= align_of::<libc::siginfo_t>()
);

/// As [`pidfd_send`], with a value for the process, as sigqueue(3) sends one: this process is the sender.
pub fn pidfd_queue(pidfd: BorrowedFd<'_>, signal: i32, value: usize) -> Result<()> {
    let queued = Queued {
        signal,
        errno: 0,
        code: libc::SI_QUEUE,
        sender: Sender {
            pid: std::process::id() as libc::pid_t,
            uid: nix::unistd::getuid().as_raw(),
            value,
        },
    };
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the place is as large and as aligned as `Queued` at least (a `siginfo_t` has a pointer in the same place), and
    // the kernel, which is the only one to read it, does so as `Queued`. It outlives the call, and the descriptor is open.
    let result = unsafe {
        info.as_mut_ptr().cast::<Queued>().write(queued);
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info.as_ptr(), 0)
    };
    Errno::result(result).map(drop)
}

/// Sends `signal` (0 only checks) to the single process `pid`; 0 and negative pids, which name groups, are refused with
/// EINVAL. kill(2).
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    if pid <= 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: kill(2) involves no memory.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// The range of real-time signals that programs may use, as the C library counts them (signal(7)): `SIGRTMIN`, `SIGRTMAX`.
pub fn realtime() -> (i32, i32) {
    (libc::SIGRTMIN(), libc::SIGRTMAX())
}

/// From now on `SIGHUP`, `SIGINT`, `SIGQUIT` and `SIGTERM` end this process with status 128 + n. For the first process of a
/// pid namespace, on which their default actions have no effect (pid_namespaces(7)); an execve(2) restores those. What the
/// caller ignores (nohup(1)) stays ignored.
pub fn end_on_termination() -> Result<()> {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: _exit(2) is async-signal-safe and has no preconditions.
        unsafe { libc::_exit(128 + signal) }
    }
    let handler = end as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: the handler only calls _exit(2), so it may run at any moment; SIG_IGN is no handler.
        unsafe {
            let before = libc::signal(signal, handler);
            Errno::result(before as isize)?;
            if before == libc::SIG_IGN {
                Errno::result(libc::signal(signal, libc::SIG_IGN) as isize)?;
            }
        }
    }
    Ok(())
}
