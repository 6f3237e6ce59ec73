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
//!     | --- Code, Go or Without ------------> |   ... which is in the directory that comes along, may be made, or is not there
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
//! From `Child` on an `exec` may be in the hands of the container, which may trace what it sees; and so may be the init of a
//! container that shares a pid namespace. What it says then decides about itself only, and is bounded. An `exec` therefore
//! says Ready before Child: what takes the host's rights is done to the process in the middle, which nobody sees.
//!
//! The answer to Code alone carries a descriptor (SCM_RIGHTS). Only write(2) and read(2) are used once the process is
//! confined, so that a seccomp profile need not allow, and an agent
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
use proa_executor::aot::{Answer, Key, Target};
use proa_sys::errno::Raw;
use rustix::buffer::spare_capacity;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The longest text a message carries; a longer one is cut.
const TEXT_MAX: usize = 16 * 1024;
/// The most lines for the log that are taken from one process. Init has some dozens to say; a process that others have taken
/// over could go on for ever.
const MOST_LINES: u32 = 10_000;
/// The longest description of what code is for.
const TARGET_MAX: usize = 4096;

/// The tags of what answers a `Code`.
const GO: u8 = b'G';
const WITHOUT: u8 = b'N';
const FOUND: u8 = b'D';
const ON_HOST: u8 = b'H';

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
pub struct Channel {
    fd: OwnedFd,
    /// How many lines for the log have been received.
    lines: Cell<u32>,
}

impl Channel {
    /// A connected pair, both close-on-exec.
    pub fn pair() -> Result<(Self, Self), Error> {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map(|(a, b)| (a.into(), b.into()))
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
            Message::Go => (GO, ""),
            Message::Without => (WITHOUT, ""),
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
        nix::unistd::write(&self.fd, &bytes)
            .map(drop)
            .map_err(|errno| Error::Call { call: "write", errno })
    }

    /// Waits for a message; `None` is end of file.
    pub fn receive(&self) -> Result<Option<Message>, Error> {
        // Not zeroed: nearly every message is one byte, and init's memory is the container's.
        let mut buffer = Vec::with_capacity(TEXT_MAX + 1);
        loop {
            match rustix::io::read(&self.fd, spare_capacity(&mut buffer)) {
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
            b'W' if self.lines.get() == MOST_LINES => {
                return Err(Error::Unexpected(format!("more than {MOST_LINES} lines for the log")));
            }
            b'W' => {
                self.lines.set(self.lines.get() + 1);
                Message::Log(text)
            }
            b'F' => Message::Failed(text),
            b'X' => Message::Unexecutable(text),
            GO => Message::Go,
            WITHOUT => Message::Without,
            b'S' => Message::Start(version(text)?),
            b'A' => Message::Starting(version(text)?),
            _ => return Err(Error::Unexpected(format!("{} {text}", char::from(tag)))),
        }))
    }

    /// Answers a `Code`.
    pub fn answer(&self, answer: &Answer) -> Result<(), Error> {
        let (tag, directory) = match answer {
            Answer::None => return self.send(&Message::Without),
            Answer::Make => return self.send(&Message::Go),
            Answer::In(directory) => (FOUND, [directory.as_fd()]),
            Answer::OnHost(directory) => (ON_HOST, [directory.as_fd()]),
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        // There is room for it: it was made for this.
        attached.push(SendAncillaryMessage::ScmRights(&directory));
        let tag = [tag];
        let text = [IoSlice::new(&tag)];
        sendmsg(&self.fd, &text, &mut attached, SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(failed("sendmsg"))
    }

    /// Waits for what [`Self::answer`] sends; [`Answer::None`] if the other side is gone.
    pub fn wait_answer(&self) -> Result<Answer, Error> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut attached = RecvAncillaryBuffer::new(&mut space);
        let mut tag = [0];
        let received = loop {
            let mut text = [IoSliceMut::new(&mut tag)];
            match recvmsg(&self.fd, &mut text, &mut attached, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(Answer::None),
                other => break other.map_err(failed("recvmsg"))?.bytes,
            }
        };
        let directory = attached.drain().find_map(|one| match one {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        match (&tag[..received], directory) {
            ([], _) | ([WITHOUT], None) => Ok(Answer::None),
            ([GO], None) => Ok(Answer::Make),
            ([FOUND], Some(directory)) => Ok(Answer::In(directory)),
            ([ON_HOST], Some(directory)) => Ok(Answer::OnHost(directory)),
            (other, _) => Err(Error::Unexpected(String::from_utf8_lossy(other).into_owned())),
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
        Self {
            fd,
            lines: Cell::new(0),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn failed(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |errno| Error::Call {
        call,
        errno: errno.raw(),
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
    fn nobody_fills_the_log() {
        let (a, b) = Channel::pair().unwrap();
        for _ in 0..MOST_LINES {
            a.send(&Message::Log(String::new())).unwrap();
            assert!(matches!(b.receive(), Ok(Some(Message::Log(_)))));
        }
        a.send(&Message::Log(String::new())).unwrap();
        assert!(matches!(b.receive(), Err(Error::Unexpected(_))));
    }

    #[test]
    fn a_directory_comes_along_with_the_answer() {
        let (a, b) = Channel::pair().unwrap();
        a.answer(&Answer::None).unwrap();
        a.answer(&Answer::Make).unwrap();
        let directory = std::fs::File::open(env!("CARGO_MANIFEST_DIR")).unwrap();
        a.answer(&Answer::In(directory.into())).unwrap();
        a.send(&Message::Start(0)).unwrap();
        drop(a);
        assert!(matches!(b.wait_answer(), Ok(Answer::None)));
        assert!(matches!(b.wait_answer(), Ok(Answer::Make)));
        let Ok(Answer::In(directory)) = b.wait_answer() else {
            panic!("no directory")
        };
        assert!(rustix::fs::statat(&directory, "Cargo.toml", rustix::fs::AtFlags::empty()).is_ok());
        let flags = rustix::io::fcntl_getfd(&directory).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert!(matches!(b.wait_answer(), Err(Error::Unexpected(_))));
        assert!(matches!(b.wait_answer(), Ok(Answer::None)));
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
