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
