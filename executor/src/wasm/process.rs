//! What execve(2) would do for a program and has to be done for a guest in this process: signals and descriptors.
//!
//! The kernel drops a signal to the first process of a pid namespace unless that process handles it (pid_namespaces(7)),
//! and a guest has no way to handle any: without this, `SIGTERM` to a Wasm container would do nothing.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Those whose default is to end a process and that somebody sends on purpose; and `SIGABRT`, with which the C++ library
/// ends the engine when there is no memory.
const ENDING: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGABRT,
    Signal::SIGALRM,
    Signal::SIGTERM,
];

/// Ends the process as a shell would report it.
extern "C" fn end(signal: i32) {
    exit_now(128 + signal)
}

/// Ends this process without running destructors: those of a C++ library whose objects are still in use are among them.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) is async-signal-safe and touches nothing of this process.
    unsafe { libc::_exit(status) }
}

/// From now on `SIGTERM` and its kind end this process with status 128 + n, a write to a closed pipe fails with `EPIPE`
/// (which WASI can express), children that were left to this process are reaped by the kernel, and nothing is blocked.
pub fn take_signals() -> Result<(), Errno> {
    let ending = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    let actions = ENDING.map(|signal| (signal, &ending));
    for (signal, action) in actions
        .into_iter()
        .chain([(Signal::SIGPIPE, &ignore), (Signal::SIGCHLD, &ignore)])
    {
        // SAFETY: the handler only calls _exit(2); the process has no other handlers for these.
        unsafe { sigaction(signal, action) }?;
    }
    SigSet::empty().thread_set_mask()
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
