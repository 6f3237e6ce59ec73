//! What the parent hands to the container's init: the plan as JSON and the seccomp program, in a sealed memfd, and
//! descriptors by number.

use crate::namespace::enter::Opened;
use crate::namespace::{Kind, TimeOffset};
use crate::{process, rootfs};
use nix::errno::Errno;
use oci_spec::runtime::Hook;
use proa_seccomp::Program;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// The version of proa that this executable belongs to.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What every version of the plan has.
#[derive(Deserialize)]
struct Form {
    proa: String,
}

/// Everything init needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handover {
    /// The version of proa. The Wasm hull is a file of its own, and may be another version's for a moment while both are
    /// being replaced.
    pub proa: String,
    /// What the init image was loaded from, to be closed once the engine is loaded: these lead to the host.
    pub image: Vec<RawFd>,
    /// Set if this process can't be the container's init yet (see [`crate::namespace::Plan::needs_middle`]).
    pub middle: Option<Middle>,
    /// The namespaces to join one by one.
    pub join: Vec<Opened>,
    /// The namespaces of a process to join at once (`exec`).
    pub join_process: Option<JoinProcess>,
    /// Whether to make the cgroup namespace, whose root is the cgroup of the process at that moment.
    pub new_cgroup_namespace: bool,
    /// Whether the network namespace is new, so that `lo` is down.
    pub loopback: bool,
    /// Sets the host name.
    pub hostname: Option<String>,
    /// Sets the NIS domain name.
    pub domainname: Option<String>,
    /// The file system to make; `None` for `exec`, which joins one.
    pub rootfs: Option<rootfs::Plan>,
    /// The process to become.
    pub process: process::Plan,
    /// Whether the parent has hooks to run once the mounts are made.
    pub parent_hooks: bool,
    /// The `createContainer` hooks.
    pub create_container: Vec<Hook>,
    /// The `startContainer` hooks.
    pub start_container: Vec<Hook>,
    /// The container's state as hooks read it; `pid` and `status` are filled in.
    pub state: Option<serde_json::Value>,
    /// A connected socket for the pseudo-terminal's master.
    pub console: Option<RawFd>,
    /// The listening start.sock; `None` if the start comes over the channel.
    pub start_socket: Option<RawFd>,
    /// How many descriptors after stdio the program inherits.
    pub preserve: u32,
    /// `--debug`.
    pub debug: bool,
}

/// What the process in the middle does before it makes the container's init.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Middle {
    /// Joins this user namespace.
    pub join_user: Option<RawFd>,
    /// Joins this pid namespace, for the child.
    pub join_pid: Option<RawFd>,
    /// Makes a user namespace, which the parent maps.
    pub new_user: bool,
    /// Makes a time namespace with these offsets, for the child.
    pub time: Option<Vec<TimeOffset>>,
    /// The namespaces the child is cloned into.
    pub new: Vec<Kind>,
    /// Whether the child waits for `Go`.
    pub wait: bool,
    /// Whether the child is in a user namespace, whose root it becomes (which an `exec` has become already).
    pub in_user_namespace: bool,
}

/// The namespaces of a running container.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinProcess {
    /// A pidfd of its init.
    pub pidfd: Option<RawFd>,
    /// Its pid, for kernels on which setns(2) takes no pidfd.
    pub pid: i32,
    /// Its start time, by which a reused pid is told there.
    pub start_time: u64,
    /// Which of them.
    pub kinds: Vec<Kind>,
}

/// Why a handover failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The memfd can't be made or used.
    #[error("{call} of the init's plan: {source}")]
    Call {
        /// Which call.
        call: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It is neither of a container nor of a process that joins one.
    #[error("the init's plan has no root file system")]
    NoRoot,
    /// The executable belongs to another proa.
    #[error(
        "the init's plan is of proa {0}, and this executable of proa {VERSION}: both have to be of one release (is one being \
         installed just now?)"
    )]
    Version(String),
    /// The JSON can't be written or read.
    #[error("the init's plan: {0}")]
    Json(#[from] serde_json::Error),
}

fn call(call: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Call { call, source }
}

impl Handover {
    /// Writes the plan and the seccomp `program` into a memfd.
    pub fn write(&self, program: Option<&Program>) -> Result<OwnedFd, Error> {
        let json = serde_json::to_vec(self)?;
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let memfd = nix::sys::memfd::memfd_create(c"proa-init", flags)
            .map_err(|errno: Errno| call("memfd_create")(errno.into()))?;
        let mut file = File::from(memfd);
        let mut bytes = (json.len() as u64).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&json);
        if let Some(program) = program {
            bytes.extend_from_slice(&program.encode());
        }
        file.write_all(&bytes).map_err(call("write"))?;
        Ok(file.into())
    }

    /// Reads what [`Handover::write`] wrote.
    pub fn read(memfd: OwnedFd) -> Result<(Self, Option<Program>), Error> {
        let mut file = File::from(memfd);
        let size = rustix::fs::fstat(file.as_fd())
            .map_err(|errno| call("fstat")(errno.into()))?
            .st_size;
        let mut bytes = Vec::with_capacity(size as usize);
        file.seek(SeekFrom::Start(0)).map_err(call("lseek"))?;
        file.read_to_end(&mut bytes).map_err(call("read"))?;
        let short = || call("read")(std::io::ErrorKind::UnexpectedEof.into());
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let length = u64::from_ne_bytes(*length) as usize;
        if length > rest.len() {
            return Err(short());
        }
        let (json, program) = rest.split_at(length);
        let refuse = |proa: String| (proa != VERSION).then_some(Error::Version(proa));
        let plan = serde_json::from_slice::<Self>(json).map_err(|error| {
            // What it lacks or has too much may be what another version wrote.
            let form = serde_json::from_slice::<Form>(json).ok();
            form.and_then(|form| refuse(form.proa)).unwrap_or(error.into())
        })?;
        if let Some(error) = refuse(plan.proa.clone()) {
            return Err(error);
        }
        let program = match program {
            [] => None,
            bytes => Some(Program::decode(bytes).ok_or_else(short)?),
        };
        Ok((plan, program))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(document: &serde_json::Value) -> Result<(Handover, Option<Program>), Error> {
        let json = document.to_string().into_bytes();
        let memfd = nix::sys::memfd::memfd_create(c"test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let mut file = File::from(memfd);
        file.write_all(&(json.len() as u64).to_ne_bytes()).unwrap();
        file.write_all(&json).unwrap();
        Handover::read(file.into())
    }

    #[test]
    fn a_plan_of_another_version_is_refused_by_name() {
        let mut document: serde_json::Value = serde_json::from_str(include_str!("../fuzz/handover.json")).unwrap();
        document["proa"] = VERSION.into();
        read(&document).unwrap();
        document["proa"] = "9.9.9".into();
        let words = format!("the init's plan is of proa 9.9.9, and this executable of proa {VERSION}");
        for _ in 0..2 {
            let error = read(&document).unwrap_err().to_string();
            assert!(error.starts_with(&words), "{error}");
            document["preserve"] = "of another type".into();
        }
        document["proa"] = VERSION.into();
        assert!(matches!(read(&document), Err(Error::Json(_))));
    }
}
