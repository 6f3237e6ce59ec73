//! The messages between the parent and the container's init.
//!
//! One SOCK_SEQPACKET pair: a message is a tag byte and a text, sent by one write(2), and arrives whole. End of file says that the other side is gone, or (to the parent) that init executed the program, since init's end is
//! close-on-exec.
//!
//! ```text
//!   parent                                  init
//!     | --- clone3, execveat ---------------> |
//!     | <-- NeedMaps ------------------------ |   only a process in the middle that makes a user namespace
//!     | --- Go -----------------------------> |   user namespace mapped, systemd scope made (only if one is asked for)
//!     | <-- Child(pid) ---------------------- |   only from a process in the middle, which then ends
//!     | <-- Log(line) ----------------------- |   at any time
//!     | <-- MapIds(mount, number) ----------- |   for a mount whose source init opened, and only the parent may map
//!     | --- Go -----------------------------> |
//!     | <-- Mounted ------------------------- |   only if there are prestart or createRuntime hooks
//!     | --- Go -----------------------------> |   ... which have run
//!     | <-- Code(number, key, target) ------- |   only a hull that found a module: may it use compiled code?
//!     | --- Go or Without ------------------> |   ... of which there is some by now, or none
//!     | <-- Ready --------------------------- |   next come the user and the capabilities
//!     | --- Go -----------------------------> |   resource limits and the like are set, which takes the host's rights
//!     | <-- Listener(number) ---------------- |   only if the seccomp filter notifies
//!     | --- Go -----------------------------> |   ... and the agent has the listener
//!     | <-- Created(hull) ------------------- |   and by what its program is going to run
//!     | --- Start --------------------------> |   `run` and `exec`; after `create` it comes over start.sock
//!     | <-- end of file --------------------- |   the program runs
//! ```
//!
//! Init says Child, and what its child says first, at the same time: either may arrive before the other.
//!
//! Only write(2) and read(2) are used once the process is confined, so that a seccomp profile need not allow, and an agent
//! need not answer, more than with runc.
//!
//! After `create`, start.sock takes the channel's place, and whoever connects may be a proa of another version: one came in place
//! of the other meanwhile. It is the one place where two versions talk; everything else is between a proa and the executable
//! that it has just started ([`super::handover`] refuses one of another version).
//!
//! ```text
//!   start                                   init
//!     | --- Start(version) -----------------> |   the newest that start speaks
//!     | <-- Starting(version) --------------- |   the lower one of that and init's own; both go on in it
//!     | <-- Log, Listener, Failed, … -------- |
//! ```
//!
//! The versions are those of [`crate::state::VERSION`]; of version 0 both messages have no number.
//!
//! Wherever a report is due, `Failed(text)` may come instead, after which init ends; instead of the end of file,
//! `Unexecutable(text)`.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proa_executor::Hull;
use proa_executor::aot::{Key, Target};
use proa_sys::errno::Raw;
use rustix::buffer::spare_capacity;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The longest text a message carries; a longer one is cut.
const TEXT_MAX: usize = 16 * 1024;
/// The longest description of what code is for.
const TARGET_MAX: usize = 4096;

/// A message, either way.
#[derive(Debug)]
pub enum Message {
    /// Init asks for the id maps of its new user namespace.
    NeedMaps,
    /// The process in the middle made the container's init with this pid, in the parent's pid namespace.
    Child(i32),
    /// The place of a mount in the configuration, and the number of its detached mount among the sender's descriptors,
    /// whose id map is to be set.
    MapIds(usize, RawFd),
    /// All mounts are made; the parent's hooks are due.
    Mounted,
    /// Namespaces and file system are done, and the process still has all its rights.
    Ready,
    /// The number of an open module among the sender's descriptors, the key of the code that is wanted for it, and what that
    /// code is to be made for.
    Code(RawFd, Key, Target),
    /// The number of the seccomp listener among the sender's descriptors; it is to be sent where `listenerPath` says.
    Listener(RawFd),
    /// Init waits for `start`; what was given to the Wasm hull may have turned out to be a Linux program.
    Created(Hull),
    /// A line for the log, see [`crate::logging::forward`].
    Log(String),
    /// Init failed and ends.
    Failed(String),
    /// execve(2) refused the program, which init has said on its stderr; it ends.
    Unexecutable(String),
    /// Go on.
    Go,
    /// Go on without what was asked for.
    Without,
    /// Execute the program. Over start.sock, the newest version of this language that the sender speaks.
    Start(u32),
    /// A `start` arrived over start.sock and is being carried out; what follows is of this version.
    Starting(u32),
}

/// Why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call failed.
    #[error("{call} between proa and the container's init: {errno}")]
    Call {
        /// read or write.
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
        let number;
        let (tag, text): (u8, &str) = match message {
            Message::NeedMaps => (b'U', ""),
            Message::Child(of) => {
                number = of.to_string();
                (b'C', &number)
            }
            Message::MapIds(mount, of) => {
                number = format!("{mount} {of}");
                (b'I', &number)
            }
            Message::Mounted => (b'M', ""),
            Message::Code(of, key, target) => {
                number = format!("{of} {key} {}", target.as_str());
                (b'K', &number)
            }
            Message::Ready => (b'Y', ""),
            Message::Listener(of) => {
                number = of.to_string();
                (b'L', &number)
            }
            Message::Created(Hull::Native) => (b'R', ""),
            Message::Created(Hull::Wasm) => (b'R', "wasm"),
            Message::Log(text) => (b'W', text),
            Message::Failed(text) => (b'F', text),
            Message::Unexecutable(text) => (b'X', text),
            Message::Go => (b'G', ""),
            Message::Without => (b'N', ""),
            Message::Start(version) => {
                number = version.to_string();
                (b'S', &number)
            }
            Message::Starting(version) => {
                number = version.to_string();
                (b'A', &number)
            }
        };
        let mut bytes = vec![tag];
        bytes.extend_from_slice(cut(text).as_bytes());
        nix::unistd::write(&self.0, &bytes)
            .map(drop)
            .map_err(|errno| Error::Call { call: "write", errno })
    }

    /// Waits for a message; `None` is end of file.
    pub fn receive(&self) -> Result<Option<Message>, Error> {
        // Not zeroed: nearly every message is one byte, and init's memory is the container's.
        let mut buffer = Vec::with_capacity(TEXT_MAX + 1);
        loop {
            match rustix::io::read(&self.0, spare_capacity(&mut buffer)) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                // The other side ended with something of ours unread.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                Err(errno) => {
                    let errno = errno.raw();
                    return Err(Error::Call { call: "read", errno });
                }
            }
        }
        let Some((&tag, text)) = buffer.split_first() else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(text).into_owned();
        let number = |text: String| text.parse().map_err(|_| Error::Unexpected(text));
        Ok(Some(match tag {
            b'U' => Message::NeedMaps,
            b'C' => Message::Child(number(text)?),
            b'I' => {
                let numbers = text
                    .split_once(' ')
                    .and_then(|(mount, of)| Some((mount.parse().ok()?, of.parse().ok()?)));
                let (mount, of) = numbers.ok_or(Error::Unexpected(text))?;
                Message::MapIds(mount, of)
            }
            b'M' => Message::Mounted,
            b'K' => code(&text).ok_or(Error::Unexpected(text))?,
            b'Y' => Message::Ready,
            b'L' => Message::Listener(number(text)?),
            b'R' if text.is_empty() => Message::Created(Hull::Native),
            b'R' => Message::Created(Hull::Wasm),
            b'W' => Message::Log(text),
            b'F' => Message::Failed(text),
            b'X' => Message::Unexecutable(text),
            b'G' => Message::Go,
            b'N' => Message::Without,
            b'S' => Message::Start(version(text)?),
            b'A' => Message::Starting(version(text)?),
            _ => return Err(Error::Unexpected(format!("{} {text}", char::from(tag)))),
        }))
    }

    /// Waits for `Go` or `Without`: whether it was the former.
    pub fn wait_answer(&self) -> Result<bool, Error> {
        match self.receive()? {
            Some(Message::Go) => Ok(true),
            Some(Message::Without) | None => Ok(false),
            Some(other) => Err(Error::Unexpected(format!("{other:?}"))),
        }
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

/// Before there were versions, nothing stood there.
fn version(text: String) -> Result<u32, Error> {
    match text.as_str() {
        "" => Ok(0),
        number => number.parse().map_err(|_| Error::Unexpected(text)),
    }
}

/// `NUMBER KEY TARGET`
fn code(text: &str) -> Option<Message> {
    let mut parts = text.splitn(3, ' ');
    let (number, key) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let target = parts.next().filter(|target| target.len() <= TARGET_MAX)?;
    Some(Message::Code(number, key, Target::from_text(target)))
}

/// At most [`TEXT_MAX`] bytes of `text`, whole characters.
fn cut(text: &str) -> &str {
    let end = (0..=TEXT_MAX.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::Child(42)).unwrap();
        a.send(&Message::Listener(7)).unwrap();
        a.send(&Message::MapIds(3, 9)).unwrap();
        a.send(&Message::Start(7)).unwrap();
        nix::unistd::write(&a, b"A").unwrap();
        let target = Target::from_text("engine x\ncpu y z\n");
        let key = Key::new([7; 32], &target);
        a.send(&Message::Code(4, key, target.clone())).unwrap();
        a.send(&Message::Failed("€".repeat(TEXT_MAX))).unwrap();
        drop(a);
        assert!(matches!(b.receive().unwrap(), Some(Message::Child(42))));
        assert!(matches!(b.receive().unwrap(), Some(Message::Listener(7))));
        assert!(matches!(b.receive().unwrap(), Some(Message::MapIds(3, 9))));
        assert!(matches!(b.receive().unwrap(), Some(Message::Start(7))));
        assert!(
            matches!(b.receive().unwrap(), Some(Message::Starting(0))),
            "of before there were versions"
        );
        match b.receive().unwrap() {
            Some(Message::Code(4, other, same)) => assert_eq!((other, same), (key, target)),
            other => panic!("{other:?}"),
        }
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
        nix::unistd::write(&a, b"I7").unwrap();
        nix::unistd::write(&a, b"K4 ../../etc/passwd x").unwrap();
        nix::unistd::write(&a, b"S-1").unwrap();
        nix::unistd::write(&a, b"?").unwrap();
        for _ in 0..5 {
            assert!(matches!(b.receive(), Err(Error::Unexpected(_))));
        }
    }
}
