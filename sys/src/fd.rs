//! Descriptors: close_range(2), inheritance, what was inherited.
//!
//! A number that comes from outside (the command line, another process's plan) says nothing about who owns the descriptor: it
//! may be the log's. So what was inherited is listed before this process opens anything, and each is taken once ([`claim`]).

use crate::{Errno, Result};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

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

/// The descriptors that this process was started with and that nobody has claimed; an error if they can't be known, `None`
/// before [`take_stock`].
static INHERITED: Mutex<Option<Result<BTreeSet<RawFd>>>> = Mutex::new(None);

/// Notes which descriptors this process was started with, for [`claim`]: reads `/proc/self/fd`. Called by [`crate::main`].
///
/// # Safety
///
/// Nothing in this process owns a descriptor above 2 yet: whatever is open now is given to the first who claims its number.
pub unsafe fn take_stock() {
    let open = open_numbers();
    if let Ok(mut inherited) = INHERITED.lock() {
        inherited.get_or_insert(open);
    }
}

fn open_numbers() -> Result<BTreeSet<RawFd>> {
    use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
    let raw = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = openat(CWD, "/proc/self/fd", flags, Mode::empty()).map_err(raw)?;
    let own = listing.as_raw_fd();
    let mut numbers = BTreeSet::new();
    for entry in Dir::new(listing).map_err(raw)? {
        let name = entry
            .map_err(raw)?
            .file_name()
            .to_str()
            .ok()
            .and_then(|name| name.parse::<RawFd>().ok());
        numbers.extend(name.filter(|number| *number > 2 && *number != own));
    }
    Ok(numbers)
}

/// Whether this process was started with a descriptor of this number, and nobody has claimed it.
pub fn is_inherited(fd: RawFd) -> bool {
    match INHERITED.lock().as_deref() {
        Ok(Some(Ok(numbers))) => numbers.contains(&fd),
        _ => false,
    }
}

/// Takes possession of a descriptor that this process was started with (or that was [`deposit`]ed), and marks it
/// close-on-exec. Once for each number: EBADF for one that was claimed before, that this process has opened itself, or that
/// is a standard stream's. If `/proc/self/fd` could not be read, the errno of that.
pub fn claim(fd: RawFd) -> Result<OwnedFd> {
    let mut inherited = INHERITED.lock().map_err(|_| Errno::EBADF)?;
    match inherited.as_mut() {
        Some(Ok(numbers)) => numbers.remove(&fd).then_some(()).ok_or(Errno::EBADF)?,
        Some(Err(errno)) => return Err(*errno),
        None => return Err(Errno::EBADF),
    }
    set_close_on_exec(fd, true)?;
    // SAFETY: it is open; it was when nothing in this process owned any, or its owner has given it up; and since it is not
    // in the table any more, this is the only one who takes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives a descriptor up to whoever claims the number next, in this process.
pub fn deposit(fd: OwnedFd) -> RawFd {
    let number = fd.into_raw_fd();
    if let Ok(mut inherited) = INHERITED.lock() {
        match inherited.get_or_insert_with(|| Ok(BTreeSet::new())) {
            Ok(numbers) => drop(numbers.insert(number)),
            unknown => *unknown = Ok(BTreeSet::from([number])),
        }
    }
    number
}

/// Defines `main`, which first of all notes what this process has inherited, and then calls the function that is named:
/// a function without arguments that returns an exit code.
#[macro_export]
macro_rules! main {
    ($function:path) => {
        fn main() -> std::process::ExitCode {
            // SAFETY: nothing has run in this process before, but for Rust's runtime, which owns no descriptors.
            unsafe { $crate::fd::take_stock() };
            $function()
        }
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_claimed_once_and_only_if_it_was_inherited() {
        let own = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(claim(own.as_raw_fd()).unwrap_err(), Errno::EBADF, "it has an owner");
        let number = deposit(own.into());
        assert!(is_inherited(number));
        let claimed = claim(number).unwrap();
        assert_eq!(claimed.as_raw_fd(), number);
        assert!(!is_inheritable(number), "it is close-on-exec");
        assert_eq!(claim(number).unwrap_err(), Errno::EBADF, "it has an owner again");
        for stream in 0..3 {
            assert_eq!(claim(stream).unwrap_err(), Errno::EBADF);
        }
    }
}
