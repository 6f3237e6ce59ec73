//! A container's terminal, on the parent's side: where init sends the master.

use super::{Error, parent};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair};
use proa_sys::errno::Raw;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The two ends of what a terminal's master travels over.
#[derive(Debug, Default)]
pub struct Offer {
    /// For init: the console socket, or one end of a pair.
    pub for_init: Option<OwnedFd>,
    /// The other end, if this process shows the terminal.
    ours: Option<OwnedFd>,
}

/// Decides by runc's rules, in runc's words.
pub fn offer(detach: bool, terminal: bool, socket: Option<&Path>) -> Result<Offer, Error> {
    match (terminal, detach, socket) {
        (true, true, None) => Err(Error::TerminalNeedsSocket),
        (true, true, Some(path)) => Ok(Offer {
            for_init: Some(parent::console_socket(path)?),
            ours: None,
        }),
        (_, _, Some(_)) => Err(Error::SocketWithoutTerminal),
        (false, _, None) => Ok(Offer::default()),
        (true, false, None) => {
            let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|errno| Error::Call {
                    call: "socketpair".into(),
                    errno,
                })?;
            Ok(Offer {
                for_init: Some(theirs),
                ours: Some(ours),
            })
        }
    }
}

impl Offer {
    /// The master, which init sends before it reports that it is ready. To be taken before the program runs, which may
    /// print at once.
    pub fn receive(self) -> Result<Option<OwnedFd>, Error> {
        let Some(ours) = self.ours else {
            return Ok(None);
        };
        // Else its end would stay open here, and a missing master would be waited for.
        drop(self.for_init);
        let failed = |errno| Error::Call {
            call: "recvmsg of the terminal's master".into(),
            errno,
        };
        let mut name = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut name)];
        rustix::net::recvmsg(&ours, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|errno| failed(errno.raw()))?;
        let received = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let master = received.ok_or(Error::InitGone)?;
        keep_newlines(master.as_fd())?;
        Ok(Some(master))
    }

    /// Gives `master` to whoever shows the terminal; returns it if that is this process.
    pub fn deliver(self, master: OwnedFd) -> Result<Option<OwnedFd>, Error> {
        if self.ours.is_some() {
            return Ok(Some(master));
        }
        if let Some(socket) = self.for_init {
            send_master(&socket, &master).map_err(Error::call("sendmsg of the terminal's master"))?;
        }
        Ok(None)
    }
}

/// Sends a terminal's master over `socket`, as runc does: one message, the terminal's name with the descriptor.
pub fn send_master(socket: &OwnedFd, master: &OwnedFd) -> Result<(), nix::errno::Errno> {
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"/dev/ptmx")],
        &[ControlMessage::ScmRights(&[master.as_raw_fd()])],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map(drop)
}

/// What the container prints passes our own terminal too, which makes a newline a new line; and where stdout is a pipe or a
/// file, it gets what the program wrote. So the container's terminal leaves newlines alone, as with runc.
pub fn keep_newlines(master: BorrowedFd<'_>) -> Result<(), Error> {
    let failed = |errno: rustix::io::Errno| Error::Call {
        call: "tcsetattr(terminal, -ONLCR)".into(),
        errno: errno.raw(),
    };
    let mut modes = rustix::termios::tcgetattr(master).map_err(failed)?;
    modes.output_modes.remove(rustix::termios::OutputModes::ONLCR);
    rustix::termios::tcsetattr(master, rustix::termios::OptionalActions::Now, &modes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_goes_where_somebody_shows_it() {
        assert!(matches!(offer(true, true, None), Err(Error::TerminalNeedsSocket)));
        let path = Path::new("/nowhere/console.sock");
        assert!(matches!(
            offer(false, true, Some(path)),
            Err(Error::SocketWithoutTerminal)
        ));
        assert!(matches!(
            offer(true, false, Some(path)),
            Err(Error::SocketWithoutTerminal)
        ));
        assert!(matches!(
            offer(true, true, Some(path)),
            Err(Error::Path { call: "connect", .. })
        ));
        assert!(offer(true, false, None).unwrap().for_init.is_none());
        assert!(offer(false, true, None).unwrap().for_init.is_some());
    }
}
