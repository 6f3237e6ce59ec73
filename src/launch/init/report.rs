//! To whom init reports: the parent, and after `create` whoever calls `start`.

use super::{Error, failed, inherit};
use crate::launch::channel::{self, Channel, Message};
use crate::launch::sealed;
use nix::errno::Errno;
use nix::unistd::Pid;
use proa_executor::Hull;
use proa_executor::aot::{Answer, Key, Source, Target};
use proa_sys::errno::Raw;
use rustix::net::{SocketFlags, accept_with};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The line to the process that waits for this one; `None` once nobody does.
#[derive(Debug)]
pub struct Report(Option<Channel>);

impl Report {
    pub fn new(channel: Channel) -> Self {
        Self(Some(channel))
    }

    fn channel(&self) -> Result<&Channel, Error> {
        self.0.as_ref().ok_or(Error::Orphaned)
    }

    /// Sends a message, after what was logged before it.
    fn say(&self, message: &Message) -> Result<(), Error> {
        self.flush()?;
        Ok(self.channel()?.send(message)?)
    }

    /// Hands the log's lines to the parent.
    pub fn flush(&self) -> Result<(), Error> {
        for line in crate::logging::take() {
            self.channel()?.send(&Message::Log(line))?;
        }
        Ok(())
    }

    /// As [`Report::flush`], just before the program. A parent that was killed meanwhile has told this process to start it,
    /// and whether there are lines for the log decides nothing.
    pub fn flush_last(&self) -> Result<(), Error> {
        match self.flush() {
            Err(Error::Channel(channel::Error::Call {
                errno: Errno::EPIPE, ..
            })) => Ok(()),
            flushed => flushed,
        }
    }

    pub fn wait_go(&self) -> Result<(), Error> {
        if self.channel()?.wait_go()? {
            Ok(())
        } else {
            Err(Error::Orphaned)
        }
    }

    pub fn need_maps(&self) -> Result<(), Error> {
        self.say(&Message::NeedMaps)?;
        self.wait_go()
    }

    pub fn child(&self, pid: Pid) -> Result<(), Error> {
        self.say(&Message::Child(pid.as_raw()))
    }

    pub fn mounted(&self) -> Result<(), Error> {
        self.say(&Message::Mounted)?;
        self.wait_go()
    }

    /// Asks for the id map of the mount at this place of the configuration, on its detached mount.
    pub fn map_ids(&self, mount: usize, tree: BorrowedFd<'_>) -> Result<(), Error> {
        self.say(&Message::MapIds(mount, tree.as_raw_fd()))?;
        self.wait_go()
    }

    /// Asks for compiled code.
    fn code(&self, module: BorrowedFd<'_>, key: &Key, target: &Target) -> Result<Answer, Error> {
        self.say(&Message::Code(module.as_raw_fd(), *key, target.clone()))?;
        Ok(self.channel()?.wait_answer()?)
    }

    /// Says that the next step gives up rights, and waits until the parent has done what takes the host's.
    pub fn ready(&self) -> Result<(), Error> {
        self.say(&Message::Ready)?;
        self.wait_go()
    }

    /// Hands the seccomp listener over, and waits until whoever watches has it: the next system call may need it.
    pub fn listener(&self, listener: Option<OwnedFd>) -> Result<(), Error> {
        let Some(listener) = listener else {
            return Ok(());
        };
        self.say(&Message::Listener(listener.as_raw_fd()))?;
        self.wait_go()
    }

    /// Reports that the container is created, and returns when it is to be started: over the channel for `run` and
    /// `exec`; after `create`, over a connection to `socket`, which is then whom init reports to. `idle` is called before
    /// each wait for one, which may be long.
    pub fn created(&mut self, hull: Hull, socket: Option<RawFd>, idle: impl Fn(BorrowedFd<'_>)) -> Result<(), Error> {
        self.say(&Message::Created(hull))?;
        let Some(socket) = socket else {
            return match self.channel()?.receive()? {
                Some(Message::Start(_)) => Ok(()),
                Some(other) => Err(crate::launch::channel::Error::Unexpected(format!("{other:?}")).into()),
                None => Err(Error::Orphaned),
            };
        };
        // The parent reads end of file, so that it knows that nobody else will answer.
        self.0 = None;
        let socket = inherit(socket)?;
        loop {
            idle(socket.as_fd());
            let accepted = accept_with(&socket, SocketFlags::CLOEXEC);
            let connection = Channel::from(accepted.map_err(|errno| failed("accept4(start.sock)")(errno.raw()))?);
            // A connection without a word is a question after the container's status; the fact that it succeeded is the
            // answer.
            match connection.receive() {
                Ok(Some(Message::Start(theirs))) => {
                    connection.send(&Message::Starting(theirs.min(crate::state::VERSION)))?;
                    self.0 = Some(connection);
                    return Ok(());
                }
                // What a newer proa may ask: it learns from the end of file that it got no answer.
                Ok(_) | Err(channel::Error::Unexpected(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A guest runs in this process from now on: end of file tells whoever waits. What was logged until then goes before;
    /// if nobody takes it, the guest runs all the same.
    pub fn started(&mut self) {
        if let Err(error) = self.flush() {
            complain(&format!("proa: {error}\n"));
        }
        self.0 = None;
    }

    /// The last word.
    pub fn failed(&self, error: &Error) {
        let message = match error {
            Error::Executor(proa_executor::Error::Exec { .. }) => {
                // It would be the program's own log by now, and there the cause is looked for, as with runc.
                complain(&format!("{error}\n"));
                Message::Unexecutable(error.to_string())
            }
            // Callers know these by their beginning, `exec: "x": …`.
            Error::Executor(_) => Message::Failed(error.to_string()),
            _ => Message::Failed(format!("error during container init: {error}")),
        };
        let told = self.say(&message).is_ok();
        // A parent that is gone is the parent's to explain.
        let orphaned = match error {
            Error::Orphaned => true,
            Error::Channel(channel::Error::Call { errno, .. }) => matches!(errno, Errno::EPIPE | Errno::ECONNRESET),
            _ => false,
        };
        if !told && !orphaned {
            complain(&format!("proa: {error}\n"));
        }
    }
}

/// The parent, as who has the compiled code.
#[derive(Debug)]
pub struct Code<'a>(pub &'a Report);

impl Source for Code<'_> {
    fn find(&mut self, key: &Key, target: &Target, module: BorrowedFd<'_>) -> Answer {
        match self.0.code(module, key, target) {
            // Before a container's process sees this one: its user namespace may be able to what the caller is not.
            Ok(Answer::OnHost(directory)) => match sealed::directory(directory.as_fd()) {
                Ok(directory) => Answer::In(directory),
                Err(errno) => {
                    tracing::warn!(
                        "the cache of compiled code can't be shown alone: overlay: {errno}; the module is interpreted"
                    );
                    Answer::None
                }
            },
            Ok(answer) => answer,
            // Without it the module runs as well; a parent that is gone is noticed at the next step.
            Err(error) => {
                tracing::debug!("compiled code {key}: {error}");
                Answer::None
            }
        }
    }
}

/// One write(2) to stderr: the parent may be killing this process just now.
fn complain(line: &str) {
    use std::io::Write;
    let line = proa_executor::text::lines(line);
    // There is nobody left to tell that this failed, too.
    std::io::stderr().write_all(line.as_bytes()).ok();
}
