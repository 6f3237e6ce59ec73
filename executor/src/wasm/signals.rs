//! Signals of a guest that is a container's first process.
//!
//! The kernel drops a signal to the first process of a pid namespace unless that process handles it (pid_namespaces(7)),
//! and a guest has no way to handle any: without this, `SIGTERM` to a Wasm container would do nothing.
#![allow(unsafe_code)]

use nix::errno::Errno;
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
pub fn install() -> Result<(), Errno> {
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
