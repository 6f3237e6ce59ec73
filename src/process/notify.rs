//! Tells the agent of `linux.seccomp.listenerPath` about a container's listener (runtime-spec config-linux.md, "The
//! Container Process State").

use super::Error;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket};
use serde::Serialize;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The message, with runc's names.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerProcessState<'a, S> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: &'a S,
}

/// Whether a descriptor is a seccomp listener, and no file that somebody in the container would like the agent to have.
pub fn is_listener(fd: BorrowedFd<'_>) -> bool {
    // As the kernel calls it since there is one, Linux 5.0 (kernel/seccomp.c, `init_listener`).
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    name.is_ok_and(|name| name == Path::new("anon_inode:seccomp notify"))
}

/// Sends `listener` to the agent that listens on the stream socket `path`. `pid` is the process that the filter holds, as
/// the caller sees it; `state` is the container's state as the `state` command prints it; `oci_version` is the
/// specification's version. Called by the parent: the process itself may be stopped by its filter at any call.
pub fn send<S: Serialize>(
    path: &Path,
    metadata: Option<&str>,
    listener: BorrowedFd<'_>,
    oci_version: &str,
    pid: i32,
    state: &S,
) -> Result<(), Error> {
    let metadata = metadata.filter(|metadata| !metadata.is_empty());
    let message = ContainerProcessState {
        oci_version,
        fds: ["seccompFd"],
        pid,
        metadata,
        state,
    };
    let sent = serde_json::to_vec(&message)
        .map_err(io::Error::from)
        .and_then(|json| send_bytes(path, &json, listener));
    sent.map_err(|source| Error::Agent {
        path: path.to_owned(),
        source,
    })
}

/// How long somebody who listens on a socket may take to accept, and to read.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connects to the socket at `path`, whose owner is another program: with a full queue it would keep the caller for ever. The
/// error is then EAGAIN (unix(7), `SO_SNDTIMEO`).
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    connect_within(path, PATIENCE)
}

fn connect_within(path: &Path, time: Duration) -> io::Result<UnixStream> {
    let socket = UnixStream::from(socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?);
    socket.set_write_timeout(Some(time))?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

fn send_bytes(path: &Path, json: &[u8], listener: BorrowedFd<'_>) -> io::Result<()> {
    let mut agent = connect(path)?;
    let fds = [listener.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(agent.as_raw_fd(), &[IoSlice::new(json)], &control, flags, None)?;
    // The descriptor travels with the first byte; a state larger than the socket's buffer may need more than one call.
    agent.write_all(&json[sent..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::cmsg_space;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use std::io::{IoSliceMut, Read};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    #[test]
    fn who_does_not_accept_is_not_waited_for_without_an_end() {
        let path = std::env::temp_dir().join(format!("proa-full-{}", std::process::id()));
        let _queue = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut queued = Vec::new();
        let error = loop {
            match connect_within(&path, Duration::from_millis(20)) {
                Ok(socket) => queued.push(socket),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_agent_gets_the_state_and_the_descriptor() {
        let path = std::env::temp_dir().join(format!("proa-agent-{}", std::process::id()));
        let socket = UnixListener::bind(&path).unwrap();
        let state = serde_json::json!({"id": "c1", "status": "creating"});
        let null = std::fs::File::open("/dev/null").unwrap();
        send(&path, Some("m"), null.as_fd(), "1.3.0", 42, &state).unwrap();
        let (mut agent, _) = socket.accept().unwrap();
        std::fs::remove_file(&path).unwrap();

        let mut buffer = [0u8; 4096];
        let mut space = cmsg_space!([i32; 1]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(
            agent.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .unwrap();
        let count = message
            .cmsgs()
            .unwrap()
            .filter(|c| matches!(c, ControlMessageOwned::ScmRights(fds) if fds.len() == 1));
        assert_eq!(count.count(), 1);
        let length = message.bytes;
        let mut json = buffer[..length].to_vec();
        agent.read_to_end(&mut json).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"ociVersion": "1.3.0", "fds": ["seccompFd"], "pid": 42, "metadata": "m", "state": state})
        );
    }

    #[test]
    fn an_agent_that_is_not_there_is_an_error_that_names_it() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = send(Path::new("/nonexistent/agent"), None, null.as_fd(), "1.3.0", 1, &())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("failed to connect with seccomp agent") && error.contains("/nonexistent/agent"),
            "{error}"
        );
    }
}
