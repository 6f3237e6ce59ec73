//! Terminals: the receiving end of a console socket, and a terminal to run the runtime on.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::ctx::eventually;

/// A console socket waiting for its terminal.
pub struct ConsoleSocket {
    /// Where it is.
    pub path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Binds a console socket in `dir`.
    pub fn new(dir: &Path) -> ConsoleSocket {
        let path = dir.join("console.sock");
        let listener = UnixListener::bind(&path).expect("console socket");
        listener.set_nonblocking(true).expect("console socket");
        ConsoleSocket { path, listener }
    }

    /// The terminal's master, once the runtime has sent it.
    #[track_caller]
    pub fn terminal(&self) -> Terminal {
        let (stream, _) = eventually("a caller on the console socket", || self.listener.accept().ok());
        stream.set_nonblocking(false).expect("console socket");
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 4096];
        let got = recvmsg(
            &stream,
            &mut [IoSliceMut::new(&mut name)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .expect("recvmsg on the console socket");
        let mut fds: Vec<OwnedFd> = control
            .drain()
            .flat_map(|m| match m {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(
            fds.len(),
            1,
            "descriptors with the message {:?}",
            String::from_utf8_lossy(&name[..got.bytes])
        );
        Terminal {
            master: fds.remove(0).into(),
            seen: Vec::new(),
        }
    }
}

/// The master of a pseudo terminal.
pub struct Terminal {
    /// The master.
    pub master: File,
    seen: Vec<u8>,
}

impl Terminal {
    /// A new terminal, and its other end.
    pub fn open() -> (Terminal, File) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("posix_openpt");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname(&master, Vec::new()).expect("ptsname");
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("UTF-8"))
            .expect("the terminal");
        (
            Terminal {
                master: master.into(),
                seen: Vec::new(),
            },
            slave,
        )
    }

    /// Types this.
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("write to the terminal");
    }

    /// Reads until `text` has been shown; everything seen so far.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let mut bytes = [0; 4096];
        loop {
            let shown = String::from_utf8_lossy(&self.seen).into_owned();
            if shown.contains(text) {
                return shown;
            }
            match self.master.read(&mut bytes) {
                Ok(n) if n > 0 => self.seen.extend(&bytes[..n]),
                end => panic!("the terminal ended ({end:?}) without {text:?}, after {shown:?}"),
            }
        }
    }

    /// Reads until the other side has closed the terminal; everything seen.
    pub fn rest(mut self) -> String {
        let mut bytes = [0; 4096];
        // A master reads EIO once nothing has the other side open.
        while let Ok(n) = self.master.read(&mut bytes)
            && n > 0
        {
            self.seen.extend(&bytes[..n]);
        }
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}
