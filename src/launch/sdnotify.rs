//! `NOTIFY_SOCKET`: that a container is ready is passed on to the service manager that started proa, sd_notify(3).
//!
//! As with runc, the container finds a socket of its own at `/run/notify/notify.sock`, and of what it says only `READY=1`
//! goes further: a container must not be able to tell the manager which process to watch or how long to wait.

use super::Error;
use crate::state::{Record, process};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, recv, send, sendmsg, socket,
};
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{MountBuilder, Spec};
use std::ffi::OsString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Below the container's state directory.
const DIRECTORY: &str = "notify";
const SOCKET: &str = "notify.sock";
/// Where the container sees the directory.
const INSIDE: &str = "/run/notify";
/// How long a manager may take to acknowledge: as long as runc gives it.
const BARRIER_TIMEOUT: u16 = 30_000;

/// Where the service manager listens, if one wants to hear.
fn manager() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())
}

/// Adds to `spec` what lets the container speak; its state directory will be `dir`.
pub fn offer(spec: &mut Spec, dir: &Path) -> Result<(), Error> {
    if manager().is_none() {
        return Ok(());
    }
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned);
    let mount = MountBuilder::default()
        .destination(INSIDE)
        .source(dir.join(DIRECTORY))
        .options(options)
        .build()?;
    spec.mounts_mut().get_or_insert_default().push(mount);
    if let Some(process) = spec.process_mut() {
        let variable = format!("NOTIFY_SOCKET={INSIDE}/{SOCKET}");
        process.env_mut().get_or_insert_default().push(variable);
    }
    Ok(())
}

/// Makes the directory that [`offer`] promised.
pub fn make_directory(dir: &Path) -> Result<(), Error> {
    if manager().is_none() {
        return Ok(());
    }
    let dir = dir.join(DIRECTORY);
    std::fs::create_dir(&dir)
        // Whoever the container's user is, whatever the caller's umask.
        .and_then(|()| std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)))
        .map_err(Error::path("mkdir", &dir))
}

/// Where the container with the state directory `dir` sees its socket, if it was created so that it can speak.
pub fn mounted(dir: &Path) -> Option<PathBuf> {
    dir.join(DIRECTORY).is_dir().then(|| INSIDE.into())
}

/// Listens to a container.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    manager: OsString,
}

impl Listener {
    /// Listens to the container with the state directory `dir`, if somebody wants to hear, and it was created so that it can
    /// speak.
    pub fn bind(dir: &Path) -> Result<Option<Self>, Error> {
        let Some(manager) = manager() else { return Ok(None) };
        let path = dir.join(DIRECTORY);
        let failed = |call| {
            let path = path.clone();
            move |errno: Errno| Error::path(call, path)(errno.into())
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = match nix::fcntl::open(&path, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            opened => opened.map_err(failed("open"))?,
        };
        // Through the descriptor: a socket's address has room for 107 bytes.
        let address = UnixAddr::new(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()).as_str());
        let socket =
            socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(failed("socket"))?;
        // Born with its mode: whoever the container's user is, it may write to it.
        let mask = umask(Mode::empty());
        let bound = address.and_then(|address| bind(socket.as_raw_fd(), &address));
        umask(mask);
        bound.map_err(failed("bind a socket in"))?;
        Ok(Some(Self { socket, manager }))
    }

    /// Whether the container has said by now that it is ready.
    pub fn is_ready(&self) -> Result<bool, Error> {
        let mut buffer = [0; 4096];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length)
                    if buffer[..length]
                        .split(|byte| *byte == b'\n')
                        .any(|line| line == b"READY=1") =>
                {
                    return Ok(true);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(Error::call("recv(notify.sock)")(errno)),
            }
        }
    }

    /// Waits until the container is ready, and passes that on; returns also when its init has ended. The container runs by
    /// now, so nothing that goes wrong is a reason to say that it doesn't.
    pub fn wait(&self, container: &Record) {
        if let Err(error) = self.try_wait(container) {
            tracing::warn!("NOTIFY_SOCKET: {error}");
        }
    }

    fn try_wait(&self, container: &Record) -> Result<(), Error> {
        // Whatever is wrong with it: whether the container lives is looked at each time.
        let pidfd = process::pidfd(container.pid).ok();
        loop {
            let alive = process::alive(container.pid, container.start_time);
            // It may have left its word and ended.
            if self.is_ready()? {
                let host = self.pass_on(container.pid)?;
                return barrier(&host);
            }
            if !alive {
                return Ok(());
            }
            let mut interests = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            interests.extend(pidfd.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            // Before Linux 5.3 nothing tells of the end of a process that is not a child.
            let timeout = match pidfd {
                Some(_) => PollTimeout::NONE,
                None => PollTimeout::from(100u8),
            };
            match poll(&mut interests, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::call("poll")(errno)),
            }
        }
    }

    /// Tells the manager that the service is ready and which process it is; returns the connection.
    pub fn pass_on(&self, main: i32) -> Result<OwnedFd, Error> {
        let failed = |call: &str| Error::call(format!("{call}(NOTIFY_SOCKET={:?})", self.manager));
        let address = match self.manager.as_bytes() {
            [b'@', name @ ..] => UnixAddr::new_abstract(name),
            path => UnixAddr::new(path),
        };
        let host =
            socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(failed("socket"))?;
        address
            .and_then(|address| connect(host.as_raw_fd(), &address))
            .map_err(failed("connect"))?;
        for text in ["READY=1\n".to_owned(), format!("MAINPID={main}\n")] {
            send(host.as_raw_fd(), text.as_bytes(), MsgFlags::MSG_NOSIGNAL).map_err(failed("send"))?;
        }
        Ok(host)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// sd_notify_barrier(3): a process that ends as soon as it has spoken could be gone before the manager has found out whose
/// process it is, and its word would be dropped. The manager closes the pipe when it has read everything before.
fn barrier(host: &OwnedFd) -> Result<(), Error> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(Error::call("pipe2"))?;
    let fds = [theirs.as_raw_fd()];
    sendmsg::<UnixAddr>(
        host.as_raw_fd(),
        &[IoSlice::new(b"BARRIER=1")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(Error::call("sendmsg(BARRIER=1)"))?;
    drop(theirs);
    match poll(
        &mut [PollFd::new(ours.as_fd(), PollFlags::POLLIN)],
        PollTimeout::from(BARRIER_TIMEOUT),
    ) {
        Ok(0) => {
            let seconds = Duration::from_millis(BARRIER_TIMEOUT.into()).as_secs();
            tracing::warn!("NOTIFY_SOCKET: no answer to BARRIER=1 for {seconds} s");
            Ok(())
        }
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(Error::call("poll")(errno)),
    }
}
