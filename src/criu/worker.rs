//! One CRIU process, serving one request.

use super::Error;
use super::rpc::{Features, Notify, Options, Request, RequestType, Response};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, send, shutdown, socketpair};
use nix::unistd::Pid;
use proa_sys::errno::Raw;
use prost::Message;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, ExitStatus, Stdio};

/// As long as CRIU's own answers get (`criu/cr-service.c`).
const ANSWER: usize = 10 * 4096;

/// `criu swrk`. When it is dropped before its end, it notices, gives up what it does, and is waited for.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    socket: Option<OwnedFd>,
}

impl Worker {
    /// Starts it. Of this process's descriptors it inherits those in `keep` and, with `stdio`, the standard streams.
    pub fn start(stdio: bool, keep: &[RawFd]) -> Result<Self, Error> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(Error::call("socketpair(SOCK_SEQPACKET)"))?;
        // What the caller of proa left open is not for CRIU: it would come to be open in the container.
        proa_sys::fd::close_on_exec_from(3).map_err(Error::call("close_range(3, CLOSE_RANGE_CLOEXEC)"))?;
        for fd in keep.iter().copied().chain([theirs.as_raw_fd()]) {
            proa_sys::fd::set_close_on_exec(fd, false).map_err(Error::call("fcntl(F_SETFD)"))?;
        }
        let stream = || if stdio { Stdio::inherit() } else { Stdio::null() };
        let mut command = Command::new("criu");
        command
            .args(["swrk", &theirs.as_raw_fd().to_string()])
            .stdin(stream())
            .stdout(stream())
            .stderr(stream());
        // Whoever waits in the foreground has blocked every signal; CRIU waits for SIGCHLD.
        proa_sys::exec::unblock_signals(&mut command);
        let child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::Missing,
            _ => Error::Start(error),
        })?;
        Ok(Self {
            child,
            socket: Some(ours),
        })
    }

    /// Its pid.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends `request` and serves `notify` until the answer, which is a success.
    ///
    /// A notification may come with a descriptor. CRIU goes on when `notify` has returned without an error.
    pub fn request<E: From<Error>>(
        &mut self,
        request: &Request,
        mut notify: impl FnMut(&Notify, Option<OwnedFd>) -> Result<(), E>,
    ) -> Result<Response, E> {
        self.send(request)?;
        loop {
            let (response, descriptor) = self.receive()?;
            if response.r#type() != RequestType::Notify {
                return Ok(response);
            }
            let what = response.notify.unwrap_or_default();
            tracing::debug!("notify: {}", what.script());
            notify(&what, descriptor)?;
            self.send(&Request {
                r#type: RequestType::Notify.into(),
                notify_success: Some(true),
                ..Request::default()
            })?;
        }
    }

    fn socket(&self) -> RawFd {
        self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    fn send(&mut self, request: &Request) -> Result<(), Error> {
        match send(self.socket(), &request.encode_to_vec(), MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(()),
            // How it ended tells more.
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(Error::Gone(self.end()?)),
            Err(errno) => Err(Error::call("send(criu)")(errno)),
        }
    }

    fn receive(&mut self) -> Result<(Response, Option<OwnedFd>), Error> {
        let mut buffer = vec![0; ANSWER];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let (length, descriptor) = loop {
            let Some(socket) = &self.socket else {
                return Err(Error::Gone(self.end()?));
            };
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let message = match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => message,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::CONNRESET) => return Err(Error::Gone(self.end()?)),
                Err(errno) => return Err(Error::call("recvmsg(criu)")(errno.raw())),
            };
            let descriptor = control.drain().find_map(|part| match part {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            if message.flags.contains(ReturnFlags::TRUNC) {
                return Err(Error::Response(format!("it is longer than {ANSWER} bytes")));
            }
            break (message.bytes, descriptor);
        };
        if length == 0 {
            return Err(Error::Gone(self.end()?));
        }
        let response = Response::decode(&buffer[..length]).map_err(|error| Error::Response(error.to_string()))?;
        if response.success {
            return Ok((response, descriptor));
        }
        let message = response.cr_errmsg.as_deref().unwrap_or_default().trim_end();
        Err(Error::Failed {
            request: response.r#type(),
            errno: response.cr_errno(),
            message: Some(message.to_owned()).filter(|text| !text.is_empty()),
        })
    }

    /// Tells it that nothing more will come, and waits for it.
    pub fn finish(mut self) -> Result<ExitStatus, Error> {
        if let Some(socket) = &self.socket {
            match shutdown(socket.as_raw_fd(), Shutdown::Write) {
                // It may be gone already.
                Ok(()) | Err(Errno::ENOTCONN) => {}
                Err(errno) => return Err(Error::call("shutdown(criu, SHUT_WR)")(errno)),
            }
        }
        self.wait()
    }

    fn end(&mut self) -> Result<ExitStatus, Error> {
        self.socket = None;
        self.wait()
    }

    fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.child.wait().map_err(|error| Error::Call {
            call: "waitpid(criu)",
            errno: error.raw(),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("{error}");
        }
    }
}

/// Asks a CRIU of its own, which has nothing to be notified of.
fn ask(request: &Request) -> Result<Response, Error> {
    let mut worker = Worker::start(false, &[])?;
    let response = worker.request(request, |_, _| Ok::<(), Error>(()))?;
    worker.finish()?;
    Ok(response)
}

/// CRIU's version as a number: 31701 is 3.17.1. A build from a development branch counts as the release to come, as with
/// go-criu.
pub fn version() -> Result<u32, Error> {
    let request = Request {
        r#type: RequestType::Version.into(),
        ..Request::default()
    };
    let response = ask(&request).map_err(|error| Error::VersionCheck(Box::new(error)))?;
    let missing = || Error::VersionCheck(Box::new(Error::Response("it has no version".into())));
    let version = response.version.ok_or_else(missing)?;
    let number = |part: i32| u32::try_from(part).unwrap_or(0);
    let release = number(version.major_number) * 10_000 + number(version.minor_number) * 100;
    let version = match version.gitid {
        Some(_) => release + 100,
        None => release + number(version.sublevel.unwrap_or(0)),
    };
    tracing::debug!("Using CRIU {version}");
    Ok(version)
}

/// Makes sure that CRIU and the kernel have what `wanted` names; `name` is what runc calls it.
pub fn require_feature(wanted: Features, name: &'static str) -> Result<(), Error> {
    let request = Request {
        r#type: RequestType::FeatureCheck.into(),
        // Old releases want options, however empty.
        opts: Some(Options {
            images_dir_fd: -1,
            ..Options::default()
        }),
        features: Some(wanted),
        ..Request::default()
    };
    let response = ask(&request).map_err(|error| Error::FeatureCheck(Box::new(error)))?;
    let has = response.features.unwrap_or_default();
    // What is not answered is not known to be missing.
    let lacks = |wanted: Option<bool>, has: Option<bool>| wanted == Some(true) && has == Some(false);
    if lacks(wanted.mem_track, has.mem_track) || lacks(wanted.lazy_pages, has.lazy_pages) {
        return Err(Error::MissingFeature(name));
    }
    Ok(())
}
