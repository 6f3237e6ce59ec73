//! execveat(2).

use crate::{Errno, Result};
use std::convert::Infallible;
use std::ffi::{CString, c_char};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Replaces this process by the program open as `program` (`AT_EMPTY_PATH`, so that no name is looked up again).
pub fn execveat(program: BorrowedFd<'_>, argv: &[CString], envp: &[CString]) -> Result<Infallible> {
    let argv = pointers(argv);
    let envp = pointers(envp);
    // SAFETY: both arrays are null-terminated and point to null-terminated strings that outlive the call.
    Err(Errno::result(unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    })
    .expect_err("execveat returns only to fail"))
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Ends this process at once, without running destructors or flushing anything: for a forked child that shares its
/// parent's buffers.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(status.into()) }
}

/// Has `command` start its program with no signal blocked, whatever this process has blocked.
pub fn unblock_signals(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure runs between fork(2) and execve(2); it calls only sigemptyset(3) and sigprocmask(2), which are
    // async-signal-safe, on memory of its own.
    unsafe {
        command.pre_exec(|| {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            Errno::result(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))?;
            Ok(())
        });
    }
}

/// Has `command` start its program with stdin, stdout and stderr only: whatever else is open here, close-on-exec or not, is
/// closed by its execve(2).
pub fn keep_only_stdio(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure runs between fork(2) and execve(2). On Linux 5.11 it makes one system call. Before that it lists a
    // directory, which allocates: that is sound as proa has one thread, so that no lock of the allocator is held meanwhile.
    unsafe {
        command.pre_exec(|| Ok(crate::fd::close_on_exec_from(3)?));
    }
}

/// Gives SIGPIPE its default action back, which Rust's runtime takes at the start of every program.
///
/// From then on a write(2) to a pipe or socket without a reader ends the process: only execve(2) is to follow, and
/// [`ignore_sigpipe`] if that fails.
pub fn default_sigpipe() -> Result<()> {
    // SAFETY: SIG_DFL is no handler of ours, so nothing can run at a bad moment.
    Errno::result(unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) as isize }).map(drop)
}

/// Has such writes fail with EPIPE again.
pub fn ignore_sigpipe() -> Result<()> {
    // SAFETY: SIG_IGN is no handler of ours, so nothing can run at a bad moment.
    Errno::result(unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) as isize }).map(drop)
}
