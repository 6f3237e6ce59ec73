//! Descriptors: close_range(2), inheritance, what was inherited.

use crate::{Errno, Result};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// Marks every descriptor from `first` on close-on-exec: close_range(2) with `CLOSE_RANGE_CLOEXEC` (Linux 5.11), else one
/// fcntl(2) for each entry of `/proc/self/fd`.
pub fn close_on_exec_from(first: RawFd) -> Result<()> {
    // SAFETY: no memory is involved, and marking descriptors close-on-exec invalidates none of them.
    let result = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as libc::c_uint,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    });
    match result {
        Ok(_) => Ok(()),
        Err(Errno::ENOSYS | Errno::EINVAL) => close_on_exec_each(first),
        Err(errno) => Err(errno),
    }
}

/// The way of kernels before 5.11: reads `/proc/self/fd`.
pub fn close_on_exec_each(first: RawFd) -> Result<()> {
    let open = std::fs::read_dir("/proc/self/fd").map_err(errno_of)?;
    for entry in open {
        let name = entry.map_err(errno_of)?.file_name();
        match name.to_str().and_then(|name| name.parse::<RawFd>().ok()) {
            Some(fd) if fd >= first => match set_close_on_exec(fd, true) {
                // The descriptor of this very directory listing is gone by the time it is reached again.
                Ok(()) | Err(Errno::EBADF) => {}
                Err(errno) => return Err(errno),
            },
            _ => {}
        }
    }
    Ok(())
}

/// Sets or clears a descriptor's close-on-exec flag. A number that is not open gives EBADF.
pub fn set_close_on_exec(fd: RawFd, on: bool) -> Result<()> {
    // SAFETY: fcntl(F_SETFD) touches only the flag of a descriptor, open or not.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, if on { libc::FD_CLOEXEC } else { 0 }) }).map(drop)
}

/// Closes a number's descriptor without asking who owns it: for a fresh copy of a process that does nothing with its owner
/// any more, but executes another program. A number that is not open is no error.
pub fn abandon(fd: RawFd) {
    // SAFETY: closing touches no memory; that nobody uses the descriptor afterwards is the caller's promise, and its misuse
    // would be an EBADF.
    unsafe { libc::close(fd) };
}

/// Whether the number names an open descriptor.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl(F_GETFD) reads a flag.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Whether the number names an open descriptor that is not close-on-exec.
pub fn is_inheritable(fd: RawFd) -> bool {
    // SAFETY: fcntl(F_GETFD) reads a flag.
    unsafe { libc::fcntl(fd, libc::F_GETFD) == 0 }
}

/// Takes possession of a descriptor that this process inherited by number.
///
/// Called once for each number, by the process that was handed it; EBADF if the number is not open.
pub fn inherit(fd: RawFd) -> Result<OwnedFd> {
    if fd < 3 || !is_open(fd) {
        return Err(Errno::EBADF);
    }
    // SAFETY: it is open, was handed to this process by number, and (see above) taken only once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A second descriptor, close-on-exec, for what `fd` refers to.
pub fn duplicate(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: fcntl(F_DUPFD_CLOEXEC) reads a number, open or not.
    let new = Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel just made it for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
