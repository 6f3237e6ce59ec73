//! What execve(2) would do for a program and has to be done for a guest in this process; and its end.
#![allow(unsafe_code)]

use nix::sys::resource::{Resource, getrlimit};

/// Ends this process without running destructors: those of a C++ library whose objects are still in use are among them.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) is async-signal-safe and touches nothing of this process.
    unsafe { libc::_exit(status) }
}

/// Closes what close-on-exec would close: init holds directories of the host and sockets to its parent, and a process of the
/// container that may trace this one could go through them (as in CVE-2024-21626). Descriptors that the caller preserved
/// for the guest follow stdio without a gap and without the close-on-exec flag; all from the first that has it, go.
pub fn close_on_exec_now() {
    let mut first = 3;
    // SAFETY: fcntl(F_GETFD) only reads a flag, of any number.
    while unsafe { libc::fcntl(first, libc::F_GETFD) } == 0 {
        first += 1;
    }
    // SAFETY: whoever owns one of these never uses or drops it again: from here the process runs the guest and ends with
    // _exit(2), and the engine opens its own only later.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) };
    if closed != 0 {
        close_each(first);
    }
}

/// The way of kernels before 5.9, or under a filter that doesn't know close_range(2): every number that can be open.
fn close_each(first: i32) {
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(1 << 20, |(_, hard)| hard.min(1 << 20)) as i32;
    for fd in first..most {
        // SAFETY: as above; a number that isn't open gives EBADF.
        unsafe { libc::close(fd) };
    }
}
