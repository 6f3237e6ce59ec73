//! `start.sock` in a container's state directory: init listens on it from `create` until the program is executed, so
//! that a connection proves that the container is created and not yet running, whatever a file says.

use super::channel::Channel;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect as connect_to, listen, socket};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file's name.
const NAME: &str = "start.sock";

/// Makes the socket in the state directory `dir`, for init to inherit.
pub fn make(dir: &Path) -> Result<OwnedFd, Errno> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let (_dir, path) = short(dir)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
    listen(&socket, Backlog::new(16)?)?;
    Ok(socket)
}

/// Connects to the init of a created container; `None` if it listens no more, or never did.
pub fn connect(dir: &Path) -> Result<Option<Channel>, Errno> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let (_dir, path) = match short(dir) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other?,
    };
    match connect_to(socket.as_raw_fd(), &UnixAddr::new(&path)?) {
        Ok(()) => Ok(Some(Channel::from(socket))),
        Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A name for the socket that fits into the 108 bytes of a sockaddr_un, however deep the state directory is.
fn short(dir: &Path) -> Result<(File, PathBuf), Errno> {
    let dir = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(dir)
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()));
    Ok((dir, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::channel::Message;

    #[test]
    fn a_listener_is_found_below_a_long_path_and_gone_when_closed() {
        let dir = std::env::temp_dir().join(format!("proa-start-{}", std::process::id())).join("d".repeat(120));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(connect(&dir).unwrap().is_none());
        let socket = make(&dir).unwrap();
        connect(&dir).unwrap().unwrap().send(&Message::Start).unwrap();
        drop(socket);
        assert!(connect(&dir).unwrap().is_none());
        std::fs::remove_dir_all(dir.parent().unwrap()).unwrap();
    }
}
