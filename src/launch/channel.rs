//! The messages between the parent and the container's init.
//!
//! One SOCK_SEQPACKET pair: a message is a tag byte and a text, with at most one descriptor, and arrives whole. End of
//! file says that the other side is gone, or (to the parent) that init executed the program, since init's end is
//! close-on-exec.
//!
//! ```text
//!   parent                                  init
//!     | --- clone3, execveat ---------------> |
//!     | <-- NeedMaps ------------------------ |   only a process in the middle that makes a user namespace
//!     | --- Go -----------------------------> |   user namespace mapped, systemd scope made (only if one is asked for)
//!     | <-- Child(pid) ---------------------- |   only from a process in the middle, which then ends
//!     | <-- Warning(text) ------------------- |   at any time
//!     | <-- Mounted ------------------------- |   only if there are prestart or createRuntime hooks
//!     | --- Go -----------------------------> |   ... which have run
//!     | <-- Listener + descriptor ----------- |   only if the seccomp filter notifies, here or after Start
//!     | --- Go -----------------------------> |
//!     | <-- Created ------------------------- |
//!     | --- Start --------------------------> |   `run` and `exec`; after `create` it comes over start.sock
//!     | <-- end of file --------------------- |   the program runs
//! ```
//!
//! Wherever a report is due, `Failed(text)` may come instead, after which init ends.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg,
    socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The longest text a message carries; a longer one is cut.
const TEXT_MAX: usize = 16 * 1024;

/// A message, either way.
#[derive(Debug)]
pub enum Message {
    /// Init asks for the id maps of its new user namespace.
    NeedMaps,
    /// The process in the middle made the container's init with this pid, in the parent's pid namespace.
    Child(i32),
    /// All mounts are made; the parent's hooks are due.
    Mounted,
    /// The seccomp listener, to be sent where `listenerPath` says.
    Listener(OwnedFd),
    /// Init waits for `start`.
    Created,
    /// Something to be logged.
    Warning(String),
    /// Init failed and ends.
    Failed(String),
    /// Go on.
    Go,
    /// Execute the program.
    Start,
    /// A `start` arrived over start.sock and is being carried out.
    Starting,
}

/// Why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call failed.
    #[error("{call} between proa and the container's init: {errno}")]
    Call {
        /// sendmsg or recvmsg.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// Not of this protocol.
    #[error("unexpected message {0:?} between proa and the container's init")]
    Unexpected(String),
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// A connected pair, both close-on-exec.
    pub fn pair() -> Result<(Self, Self), Error> {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map(|(a, b)| (Self(a), Self(b)))
            .map_err(|errno| Error::Call {
                call: "socketpair",
                errno,
            })
    }

    /// Sends a message.
    pub fn send(&self, message: &Message) -> Result<(), Error> {
        let pid;
        let (tag, text): (u8, &str) = match message {
            Message::NeedMaps => (b'U', ""),
            Message::Child(child) => {
                pid = child.to_string();
                (b'C', &pid)
            }
            Message::Mounted => (b'M', ""),
            Message::Listener(_) => (b'L', ""),
            Message::Created => (b'R', ""),
            Message::Warning(text) => (b'W', text),
            Message::Failed(text) => (b'F', text),
            Message::Go => (b'G', ""),
            Message::Start => (b'S', ""),
            Message::Starting => (b'A', ""),
        };
        let text = &text[..text.floor_char_boundary(TEXT_MAX)];
        let parts = [IoSlice::new(std::slice::from_ref(&tag)), IoSlice::new(text.as_bytes())];
        let descriptors: [RawFd; 1];
        let control: &[ControlMessage<'_>] = if let Message::Listener(fd) = message {
            descriptors = [fd.as_raw_fd()];
            &[ControlMessage::ScmRights(&descriptors)]
        } else {
            &[]
        };
        sendmsg::<UnixAddr>(self.0.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)
            .map(drop)
            .map_err(|errno| Error::Call { call: "sendmsg", errno })
    }

    /// Waits for a message; `None` is end of file.
    pub fn receive(&self) -> Result<Option<Message>, Error> {
        let mut buffer = vec![0; TEXT_MAX + 1];
        let mut control = nix::cmsg_space!(RawFd);
        let (length, descriptor) = loop {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(message) => {
                    let mut descriptor = None;
                    for part in message
                        .cmsgs()
                        .map_err(|errno| Error::Call { call: "recvmsg", errno })?
                    {
                        if let ControlMessageOwned::ScmRights(fds) = part {
                            descriptor = fds.first().copied();
                        }
                    }
                    break (message.bytes, descriptor);
                }
                Err(Errno::EINTR) => {}
                // The other side ended with something of ours unread.
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(Error::Call { call: "recvmsg", errno }),
            }
        };
        let descriptor = match descriptor.map(proa_sys::fd::inherit).transpose() {
            Ok(descriptor) => descriptor,
            Err(errno) => {
                return Err(Error::Call {
                    call: "recvmsg(SCM_RIGHTS)",
                    errno,
                });
            }
        };
        let Some((&tag, text)) = buffer[..length].split_first() else {
            return Ok(None);
        };
        let text = || String::from_utf8_lossy(text).into_owned();
        Ok(Some(match (tag, descriptor) {
            (b'U', None) => Message::NeedMaps,
            (b'C', None) => match text().parse() {
                Ok(pid) => Message::Child(pid),
                Err(_) => return Err(Error::Unexpected(text())),
            },
            (b'M', None) => Message::Mounted,
            (b'L', Some(fd)) => Message::Listener(fd),
            (b'R', None) => Message::Created,
            (b'W', None) => Message::Warning(text()),
            (b'F', None) => Message::Failed(text()),
            (b'G', None) => Message::Go,
            (b'S', None) => Message::Start,
            (b'A', None) => Message::Starting,
            _ => return Err(Error::Unexpected(format!("{} {}", char::from(tag), text()))),
        }))
    }

    /// Waits for `Go`; false if the other side is gone.
    pub fn wait_go(&self) -> Result<bool, Error> {
        match self.receive()? {
            Some(Message::Go) => Ok(true),
            Some(other) => Err(Error::Unexpected(format!("{other:?}"))),
            None => Ok(false),
        }
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_with_their_descriptor() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::Child(42)).unwrap();
        let (read, _write) = nix::unistd::pipe().unwrap();
        a.send(&Message::Listener(read)).unwrap();
        a.send(&Message::Failed("€".repeat(TEXT_MAX))).unwrap();
        drop(a);
        assert!(matches!(b.receive().unwrap(), Some(Message::Child(42))));
        assert!(matches!(b.receive().unwrap(), Some(Message::Listener(_))));
        match b.receive().unwrap() {
            Some(Message::Failed(text)) => assert!(text.len() <= TEXT_MAX && text.ends_with('€')),
            other => panic!("{other:?}"),
        }
        assert!(b.receive().unwrap().is_none());
    }

    #[test]
    fn what_is_not_of_the_protocol_is_refused() {
        let (a, b) = Channel::pair().unwrap();
        nix::unistd::write(&a, b"Cx").unwrap();
        nix::unistd::write(&a, b"?").unwrap();
        assert!(matches!(b.receive(), Err(Error::Unexpected(_))));
        assert!(matches!(b.receive(), Err(Error::Unexpected(_))));
    }
}
