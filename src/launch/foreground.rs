//! `run` and `exec` without `--detach`: signals go to the container, its terminal is shown, its exit status is ours.

use super::create::{self, StartBy};
use super::sdnotify::Listener;
use super::{CreateOptions, Error, RunOptions, start};
use crate::state::{self, Store};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::Pid;
use proa_sys::clone::Child;
use proa_sys::errno::Raw;
use rustix::termios::{OptionalActions, Termios};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Makes, starts and (unless detached) waits for a container; returns its exit status.
pub fn run(store: &Store, options: &CreateOptions, run: RunOptions) -> Result<u8, Error> {
    let signals = (!run.detach).then(Signals::take).transpose()?;
    if !run.detach && !run.no_subreaper {
        become_subreaper()?;
    }
    let mut created = create::create(store, options, StartBy::Channel, run.detach)?;
    let listener = Listener::bind(&store.dir(&options.id)?)?;
    let master = created.offer.take().map(|offer| offer.receive()).transpose()?.flatten();
    if let Err(error) = created.start() {
        return Err(error.seen(|| show(master.as_ref(), created.record.terminal)));
    }
    start::poststart(&created.config, &created.record)?;
    let init = Child {
        pid: created.init.pid,
        pidfd: created.init.pidfd.take(),
    };
    let (record, config) = created.keep();
    let Some(signals) = signals else {
        if let Some(listener) = listener {
            listener.wait(&record);
        }
        return Ok(0);
    };
    let status = supervise(&init, signals, master, listener)?;
    if run.keep {
        // Nothing is to be said of one that somebody has deleted meanwhile.
        if let Ok(container) = store.open(&record.id) {
            super::log_ending(&container);
        }
    } else if delete(store, &record)? {
        start::poststop(&config, &record);
    }
    Ok(status)
}

/// What the container's processes leave behind in a shared pid namespace is ours to reap.
pub fn become_subreaper() -> Result<(), Error> {
    nix::sys::prctl::set_child_subreaper(true).map_err(Error::call("prctl(PR_SET_CHILD_SUBREAPER)"))
}

/// Removes what is left of the container; false if somebody else has done so meanwhile, perhaps even made a new container of
/// the same id, which is none of ours.
pub fn delete(store: &Store, record: &state::Record) -> Result<bool, Error> {
    let locked = match store.open(&record.id).and_then(state::Container::lock) {
        // Busy: a new one that is being created.
        Err(state::Error::NotFound | state::Error::Busy(_)) => return Ok(false),
        other => other?,
    };
    if (locked.record.pid, locked.record.start_time) != (record.pid, record.start_time) {
        return Ok(false);
    }
    super::log_ending(&locked);
    locked.destroy()?;
    Ok(true)
}

/// All signals, taken from their default actions to be read from a descriptor.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks every signal that can be blocked. To be called before the container's process exists, so that none is lost;
    /// that process unblocks them for itself.
    pub fn take() -> Result<Self, Error> {
        let all = SigSet::all();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).map_err(Error::call("sigprocmask(SIG_SETMASK, all)"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(
            SignalFd::with_flags(&all, flags).map_err(Error::call("signalfd"))?,
        ))
    }
}

/// Waits for `init`, a child of this process, and returns its exit status, or 128 and the signal that ended it.
/// `listener` hears when the container is ready; the service's main process is then this one.
pub fn supervise(
    init: &Child,
    signals: Signals,
    master: Option<OwnedFd>,
    mut listener: Option<Listener>,
) -> Result<u8, Error> {
    let pid = init.pid;
    let mut terminal = master.map(Terminal::new).transpose()?;
    // It may have ended before its SIGCHLD could be read.
    let mut status = reap(pid)?;
    while status.is_none() {
        let mut interests = vec![PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)];
        if let Some(terminal) = &terminal {
            terminal.interests(&mut interests);
        }
        interests.extend(listener.iter().map(|one| PollFd::new(one.as_fd(), PollFlags::POLLIN)));
        match poll(&mut interests, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::call("poll")(errno)),
        }
        if let Some(terminal) = &mut terminal {
            terminal.copy();
        }
        listener = listener.filter(listens_on);
        while let Some(info) = signals.0.read_signal().map_err(Error::call("read of the signalfd"))? {
            match info.ssi_signo as i32 {
                libc::SIGCHLD => status = status.or(reap(pid)?),
                _ => deliver(init, status.is_some(), &info, terminal.as_ref()),
            }
        }
    }
    if let Some(mut terminal) = terminal {
        // What the container wrote last.
        terminal.copy_output();
    }
    Ok(status.unwrap_or(255))
}

/// Passes on what the container has said; false if no more is to come.
fn listens_on(listener: &Listener) -> bool {
    let ready = listener.is_ready().and_then(|ready| match ready {
        true => listener.pass_on(std::process::id() as i32).map(|_| true),
        false => Ok(false),
    });
    match ready {
        Ok(ready) => !ready,
        Err(error) => {
            tracing::warn!("NOTIFY_SOCKET: {error}");
            false
        }
    }
}

/// Passes a signal that this process got on to the container's, with the value that sigqueue(3) gave it. Of several that came
/// at once the real-time ones follow SIGCHLD, which may have told of the process's end: a pidfd is of that process for ever,
/// a number that is `reaped` may be somebody else's.
fn deliver(init: &Child, reaped: bool, info: &siginfo, terminal: Option<&Terminal>) {
    let (pid, signal) = (init.pid, info.ssi_signo as i32);
    let send = || match (&init.pidfd, info.ssi_code) {
        (Some(pidfd), libc::SI_QUEUE) => proa_sys::signal::pidfd_queue(pidfd.as_fd(), signal, info.ssi_ptr as usize),
        (Some(pidfd), _) => proa_sys::signal::pidfd_send(pidfd.as_fd(), signal),
        (None, _) if reaped => Err(Errno::ESRCH),
        // Before Linux 5.3. Until it is reaped the number is its own.
        (None, _) => proa_sys::signal::kill(pid.as_raw(), signal),
    };
    match (signal, terminal) {
        (libc::SIGWINCH, Some(terminal)) => terminal.resize(),
        // Ours: a reader of our output is gone, or we may not use our own terminal just now.
        (libc::SIGPIPE | libc::SIGTTIN | libc::SIGTTOU, _) => {}
        _ => match send() {
            // ESRCH: it just ended; SIGCHLD follows.
            Ok(()) | Err(Errno::ESRCH) => {}
            // A rootless container's process may have become somebody else; it goes on, and so does who waits for it.
            Err(errno) => tracing::warn!("signal {signal} to {pid}: {errno}"),
        },
    }
}

/// Reaps every child that ended; returns the status of `pid` if it is among them.
fn reap(pid: Pid) -> Result<Option<u8>, Error> {
    let mut status = None;
    loop {
        // Not nix's: its type has no room for the real-time signals.
        match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            Ok(Some((ended, how))) if ended.as_raw_nonzero().get() == pid.as_raw() => {
                let code = how
                    .exit_status()
                    .or(how.terminating_signal().map(|signal| 128 + signal));
                status = status.or(code.map(|code| code as u8));
            }
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(status),
            Err(errno) => {
                return Err(Error::call("waitpid(-1, WNOHANG)")(Errno::from_raw(
                    errno.raw_os_error(),
                )));
            }
        }
    }
}

/// The container's terminal, joined to this process's. Nothing that is wrong with our own stdin and stdout, or with the
/// terminal itself, ends the wait for the container: it would be left behind.
struct Terminal {
    master: OwnedFd,
    before: Option<Termios>,
    input: Input,
    output_ended: bool,
    /// Nobody takes what is shown; it is read all the same, or the container would stop at a full terminal.
    unseen: bool,
}

/// Shows what a process has written that did not get to run its program; false if it had a terminal that is not ours.
pub fn show(master: Option<&OwnedFd>, terminal: bool) -> bool {
    let Some(master) = master.filter(|_| terminal) else {
        return !terminal;
    };
    let Ok(master) = master.try_clone() else { return false };
    if nonblocking(master.as_fd()).is_err() {
        return false;
    }
    let mut terminal = Terminal::over(master);
    terminal.copy_output();
    !terminal.unseen
}

/// What was typed and not yet taken.
#[derive(Default)]
struct Input {
    pending: Vec<u8>,
    ended: bool,
}

impl Terminal {
    fn over(master: OwnedFd) -> Self {
        Self {
            master,
            before: None,
            input: Input::default(),
            output_ended: false,
            unseen: false,
        }
    }

    fn new(master: OwnedFd) -> Result<Self, Error> {
        let mut terminal = Self::over(master);
        nonblocking(terminal.master.as_fd())?;
        let stdin = std::io::stdin();
        if rustix::termios::isatty(&stdin) {
            let failed = |errno: rustix::io::Errno| Error::Call {
                call: "tcsetattr(stdin, raw)".into(),
                errno: errno.raw(),
            };
            let before = rustix::termios::tcgetattr(&stdin).map_err(failed)?;
            let mut raw = before.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(failed)?;
            terminal.before = Some(before);
        }
        terminal.resize();
        Ok(terminal)
    }

    /// Gives the container's terminal the size of ours, if ours has one.
    fn resize(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
            // A terminal whose last slave is closed has no size to set; then the container is about to end.
            if let Err(errno) = rustix::termios::tcsetwinsize(&self.master, size) {
                tracing::debug!("ioctl(TIOCSWINSZ): {errno}");
            }
        }
    }

    fn interests<'a>(&'a self, interests: &mut Vec<PollFd<'a>>) {
        let mut master = PollFlags::empty();
        if !self.output_ended {
            master |= PollFlags::POLLIN;
        }
        if !self.input.pending.is_empty() {
            master |= PollFlags::POLLOUT;
        } else if !self.input.ended {
            interests.push(PollFd::new(rustix::stdio::stdin(), PollFlags::POLLIN));
        }
        if !master.is_empty() {
            interests.push(PollFd::new(self.master.as_fd(), master));
        }
    }
}

impl Terminal {
    /// Moves what can be moved without waiting, except that our own stdout is written out in full.
    fn copy(&mut self) {
        self.copy_output();
        if self.input.pending.is_empty() && !self.input.ended && readable(rustix::stdio::stdin()) {
            let mut buffer = [0; 4096];
            match nix::unistd::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(count @ 1..) => self.input.pending.extend_from_slice(&buffer[..count]),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Ok(0) | Err(_) => self.input.ended = true,
            }
        }
        while !self.input.pending.is_empty() {
            match nix::unistd::write(&self.master, &self.input.pending) {
                Ok(count) => drop(self.input.pending.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // EIO: no slave is open, there is nobody to type for.
                Err(_) => {
                    self.input.pending.clear();
                    self.input.ended = true;
                }
            }
        }
    }

    /// Shows what the container wrote, until there is no more for now.
    fn copy_output(&mut self) {
        let mut buffer = [0; 32 * 1024];
        while !self.output_ended {
            match nix::unistd::read(&self.master, &mut buffer) {
                Ok(count @ 1..) => self.show(&buffer[..count]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // EIO: the last slave was closed.
                Ok(0) | Err(_) => self.output_ended = true,
            }
        }
    }

    fn show(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.unseen {
            match nix::unistd::write(rustix::stdio::stdout(), bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EINTR) => {}
                // Our stdout may be somebody's non-blocking pipe.
                Err(Errno::EAGAIN) => self.unseen = !writable(rustix::stdio::stdout()),
                // EPIPE: our reader is gone.
                Err(errno) => {
                    if errno != Errno::EPIPE {
                        tracing::warn!("write(stdout): {errno}: the container's output is not shown any more");
                    }
                    self.unseen = true;
                }
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(errno) = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before)
        {
            tracing::warn!("tcsetattr(stdin, as before): {errno}");
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// Waits until `fd` takes more; false if it never will.
fn writable(fd: BorrowedFd<'_>) -> bool {
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            polled => return polled.is_ok(),
        }
    }
}

fn nonblocking(fd: BorrowedFd<'_>) -> Result<(), Error> {
    let failed = |errno: rustix::io::Errno| Error::Call {
        call: "fcntl(terminal, O_NONBLOCK)".into(),
        errno: errno.raw(),
    };
    let flags = rustix::fs::fcntl_getfl(fd).map_err(failed)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK).map_err(failed)
}
