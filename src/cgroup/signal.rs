//! Signals to all processes of a cgroup.

use super::Error;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use proa_sys::signal;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// How many processes are held at once: far from what a process may have open.
const AT_ONCE: usize = 128;

/// Sends `signal` to each process that `pids` lists; who is gone needs none.
///
/// A number that was read may be another process's by the time of the signal. So each is held by a pidfd, and gets the signal
/// only if the number is still listed then: either the pidfd is of a process of the cgroup, or of one that has ended.
pub(super) fn send(pids: impl Fn() -> Result<Vec<Pid>, Error>, signal: Signal) -> Result<(), Error> {
    for some in pids()?.chunks(AT_ONCE) {
        let held: Vec<(Pid, Result<OwnedFd, Errno>)> = some.iter().map(|pid| (*pid, hold(*pid))).collect();
        let listed: HashSet<Pid> = pids()?.into_iter().collect();
        for (pid, pidfd) in held.iter().filter(|(pid, _)| listed.contains(pid)) {
            let (call, sent) = match pidfd {
                Ok(pidfd) => ("pidfd_send_signal", signal::pidfd_send(pidfd.as_fd(), signal as i32)),
                // Before Linux 5.3.
                Err(Errno::ENOSYS) => ("kill", signal::kill(pid.as_raw(), signal as i32)),
                Err(errno) => ("pidfd_open", Err(*errno)),
            };
            match sent {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    let path = PathBuf::from(format!("{signal} {pid}"));
                    return Err(Error::Call { call, path, errno });
                }
            }
        }
    }
    Ok(())
}

fn hold(pid: Pid) -> Result<OwnedFd, Errno> {
    crate::state::process::pidfd(pid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::process::{Child, Command};

    fn sleeper() -> (Child, Pid) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        (child, pid)
    }

    #[test]
    fn only_those_that_are_still_listed_get_the_signal() {
        let ((mut inside, there), (mut outside, left)) = (sleeper(), sleeper());
        let read = Cell::new(0);
        let pids = || {
            read.set(read.get() + 1);
            Ok(match read.get() {
                1 => vec![there, left],
                // Its number is somebody else's now.
                _ => vec![there],
            })
        };
        send(pids, Signal::SIGKILL).unwrap();
        assert!(!inside.wait().unwrap().success());
        assert!(outside.try_wait().unwrap().is_none(), "another process was killed");
        outside.kill().unwrap();
        outside.wait().unwrap();
        // Who is gone needs none.
        send(|| Ok(vec![there]), Signal::SIGKILL).unwrap();
    }
}
