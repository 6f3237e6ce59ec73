//! Waiting for a lock of the code cache: not for ever, and not deaf to the signals that are to end this process.
//!
//! flock(2) itself can't be waited for beside signals. But a lock belongs to the open file, which a copy of this process
//! shares: the copy waits for the lock, and this process for the copy.

use super::{Failure, ending};
use crate::launch::{Error, spawn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use proa_sys::clone::{Child, Clone, Side, clone};
use proa_sys::errno::Raw;
use proa_sys::exec::exit_now;
use rustix::fs::{FlockOperation, flock};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Waits until the lock of the open `file` is this process's; false if it is not after `time`. [`Failure::Interrupted`] by a
/// signal that is to end this process.
pub fn lock(file: BorrowedFd<'_>, time: Duration) -> Result<bool, Error> {
    let mask = |how, set: &SigSet| sigprocmask(how, Some(set), None).map_err(Error::call("sigprocmask"));
    let before = SigSet::thread_get_mask().map_err(Error::call("sigprocmask"))?;
    mask(SigmaskHow::SIG_BLOCK, &ending())?;
    let locked = lock_beside_signals(file, time);
    mask(SigmaskHow::SIG_SETMASK, &before)?;
    locked
}

fn lock_beside_signals(file: BorrowedFd<'_>, time: Duration) -> Result<bool, Error> {
    let failed = |source| spawn::Error::Clone {
        namespaces: Vec::new(),
        source,
    };
    let child = match clone(&Clone::default()).map_err(failed)? {
        Side::Parent(child) => child,
        Side::Child { .. } => exit_now(u8::from(wait_as_a_copy(file).is_err())),
    };
    let ended = watch(&child, time);
    if !matches!(ended, Ok(true)) {
        // It is not reaped yet, so that the number is its own.
        kill(child.pid, Signal::SIGKILL).map_err(Error::call(format!("kill({}, SIGKILL)", child.pid)))?;
    }
    let status = waitpid(child.pid, None).map_err(Error::call(format!("waitpid({})", child.pid)))?;
    // Killed at the last moment, it may have got the lock all the same: that goes with the file.
    Ok(ended? && matches!(status, WaitStatus::Exited(_, 0)))
}

/// In the copy, which ends with this process.
fn wait_as_a_copy(file: BorrowedFd<'_>) -> Result<(), Errno> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    flock(file, FlockOperation::LockExclusive).map_err(|errno| errno.raw())
}

/// Whether the copy has ended in time.
fn watch(child: &Child, time: Duration) -> Result<bool, Error> {
    let Some(pidfd) = &child.pidfd else {
        // Before Linux 5.3 nothing tells beside signals: whoever calls does without the lock.
        return Ok(false);
    };
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&ending(), flags).map_err(Error::call("signalfd"))?;
    let began = Instant::now();
    loop {
        let Some(left) = time.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) else {
            return Ok(false);
        };
        let mut interests = [
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        let left = left + Duration::from_millis(1);
        match poll(&mut interests, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::call("poll(lock of the code cache)")(errno)),
        }
        if interests[0].any() == Some(true) {
            return Ok(true);
        }
        if let Some(signal) = signals.read_signal().map_err(Error::call("read of the signalfd"))? {
            return Err(Failure::Interrupted(signal.ssi_signo as i32).into());
        }
    }
}
