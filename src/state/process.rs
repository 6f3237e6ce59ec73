//! A container's init as the kernel sees it: alive or not, the very process or one that got its pid since.

use super::Error;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use proa_sys::errno::Raw;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What proc_pid_stat(5) says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Field 3: `R`, `S`, `D`, `Z` (zombie), `X` (dead), …
    pub state: char,
    /// Field 22, in clock ticks since boot.
    pub start_time: u64,
}

impl Stat {
    /// Reads `/proc/PID/stat`; `None` if there is no such process, or none that can be read.
    pub fn read(pid: i32) -> Option<Self> {
        Self::look(pid).ok()?
    }

    /// As [`Stat::read`], but that nothing could be read (no descriptor, no memory left) is an error.
    pub fn look(pid: i32) -> Result<Option<Self>, Error> {
        let path = PathBuf::from(format!("/proc/{pid}/stat"));
        let gone = |error: &std::io::Error| {
            error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if gone(&error) => Ok(None),
            Err(error) => Err(Error::file("read", &path)(error)),
        }
    }

    fn is_of(self, start_time: u64) -> bool {
        self.start_time == start_time && !matches!(self.state, 'Z' | 'X' | 'x')
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        // Field 2, the program's name in parentheses, may itself hold blanks and parentheses.
        let mut fields = line.get(line.rfind(')')? + 1..)?.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self { state, start_time })
    }
}

/// Whether the process that had `pid` and `start_time` still runs. A zombie does not. One that can't be looked at does: what
/// is taken for stopped may be deleted.
pub fn alive(pid: i32, start_time: u64) -> bool {
    looks_alive(pid, start_time).unwrap_or(true)
}

/// As [`alive`], for those to whom it matters that it is that very process.
pub fn looks_alive(pid: i32, start_time: u64) -> Result<bool, Error> {
    if pid <= 0 {
        return Ok(false);
    }
    Ok(Stat::look(pid)?.is_some_and(|stat| stat.is_of(start_time)))
}

/// pidfd_open(2), Linux 5.3.
pub fn pidfd(pid: i32) -> Result<OwnedFd, Errno> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(Errno::ESRCH)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).map_err(|error| error.raw())
}

/// Sends `signal` (a number; 0 only checks) to the process that had `pid` and `start_time`, never to one that has the pid
/// now. A zombie counts as gone.
pub fn signal(pid: i32, start_time: u64, signal: i32) -> Result<(), Error> {
    signal_by(pidfd(pid), pid, start_time, signal)
}

/// [`signal`] with the result of pidfd_open(2) given, so that the way of kernels before 5.3 can be tested.
fn signal_by(pidfd: Result<OwnedFd, Errno>, pid: i32, start_time: u64, signal: i32) -> Result<(), Error> {
    // The pidfd is open before the start time is read: if that is right, the descriptor is of the right process, whatever
    // happens to the pid afterwards.
    if !looks_alive(pid, start_time)? {
        return Err(Error::NotRunning);
    }
    let (call, result) = match pidfd {
        Ok(pidfd) => (
            format!("pidfd_send_signal(pidfd of {pid}, {signal})"),
            proa_sys::signal::pidfd_send(pidfd.as_fd(), signal),
        ),
        Err(Errno::ENOSYS) => (format!("kill({pid}, {signal})"), proa_sys::signal::kill(pid, signal)),
        Err(errno) => (format!("pidfd_open({pid})"), Err(errno)),
    };
    match result {
        Ok(()) => Ok(()),
        Err(Errno::ESRCH) => Err(Error::NotRunning),
        Err(source) => Err(Error::Signal { call, source }),
    }
}

/// Waits until the process that had `pid` and `start_time` has ended; says whether it did within `timeout`.
pub fn wait_gone(pid: i32, start_time: u64, timeout: Duration) -> bool {
    wait_gone_by(pidfd(pid), pid, start_time, timeout)
}

fn wait_gone_by(pidfd: Result<OwnedFd, Errno>, pid: i32, start_time: u64, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if !alive(pid, start_time) {
            return true;
        }
        if left.is_zero() {
            return false;
        }
        // Without pidfds nothing tells of the end of a process that is not a child: then, and only then, look again and
        // again.
        let step = if pidfd.is_ok() {
            left
        } else {
            left.min(Duration::from_millis(10))
        };
        let mut fds: Vec<PollFd> = pidfd
            .iter()
            .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
            .collect();
        let step = PollTimeout::try_from(step.max(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut fds, step) {
            // It was of that process, or of one that has its pid since.
            Ok(1..) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return !alive(pid, start_time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper() -> (Child, i32, u64) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        (child, pid, Stat::read(pid).unwrap().start_time)
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let line = "12 (a) R (b c) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1 1 1";
        assert_eq!(
            Stat::parse(line),
            Some(Stat {
                state: 'S',
                start_time: 987654
            })
        );
        assert_eq!(Stat::parse("12 (a"), None);
    }

    #[test]
    fn signals_reach_only_the_right_process_with_and_without_pidfds() {
        for by_pidfd in [true, false] {
            let (mut child, pid, start) = sleeper();
            let open = || if by_pidfd { pidfd(pid) } else { Err(Errno::ENOSYS) };
            assert!(
                matches!(signal_by(open(), pid, start + 1, 9), Err(Error::NotRunning)),
                "a reused pid"
            );
            signal_by(open(), pid, start, 0).unwrap();
            assert!(!wait_gone_by(open(), pid, start, Duration::from_millis(30)));
            signal_by(open(), pid, start, 9).unwrap();
            // Not reaped: a zombie has ended.
            assert!(wait_gone_by(open(), pid, start, Duration::from_secs(10)));
            assert!(
                matches!(signal_by(open(), pid, start, 9), Err(Error::NotRunning)),
                "a zombie"
            );
            child.wait().unwrap();
            assert!(!alive(pid, start));
        }
    }

    #[test]
    fn a_signal_that_is_none_is_refused_by_the_kernel() {
        let (mut child, pid, start) = sleeper();
        let error = signal(pid, start, 4711).unwrap_err().to_string();
        assert!(error.contains("EINVAL") && error.contains("4711"), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
