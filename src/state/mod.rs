//! What proa remembers of a container, under `--root` (default `/run/proa`): one directory a container, with
//! `state.json` (written atomically), `config.json` (the bundle's as it was at create, with the limits as updated since),
//! `start.sock` (on which init listens until it is started) and, of a Wasm container, `guest.page` ([`guest`]).
//!
//! ```text
//!   mkdir(2) is the reservation of an id        flock(2) of the directory is the lock of a container
//!
//!   create:   Store::reserve -> Reservation --save--> Creating ----commit----> Created
//!                                  |drop                |drop
//!                                  +--> removed <-------+
//!   start, pause, resume, update, delete:  Store::open -> Container::lock -> require(action, status) -> change
//!   state, list, ps, kill, events, exec:   Store::open -> require(action, status)
//! ```
//!
//! A lock is released with its descriptor, so also when its holder dies; a `Creating` container whose lock is free is what
//! a killed `create` left behind.

mod container;
pub mod guest;
mod lock;
pub mod process;
mod status;

pub use container::{Container, Locked, Reservation, START_SOCKET};
pub use status::{Action, Refused, Status, require};

use crate::cgroup;
use crate::config;
use crate::rootfs::SharedRoot;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The name under the root that no container can have.
const CACHE: &str = ".cache";

/// The version of the form of `state.json` that this proa writes, and of the language that an init of its speaks on `start.sock`.
///
/// ```text
///   0  nothing says so: what was written before there were versions
///   1  as 0, and says so
/// ```
///
/// It is raised with every change that a proa of before would misread: a field of [`Record`] that must not be ignored, is
/// left out or means something else, and a message of `start.sock` that is new. What a proa of before may ignore (a field
/// with `#[serde(default)]`) needs no new version. Older versions are read for ever.
pub const VERSION: u32 = 1;

/// The facts written at create; what changes (status) is computed from the kernel each time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The [`VERSION`] of the proa that wrote it.
    #[serde(default)]
    pub version: u32,
    /// The runtime-spec version of the bundle's configuration, as `state` prints it.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Init's pid in the caller's pid namespace. 0 while the container is being created.
    pub pid: i32,
    /// Who is creating the container, or was killed at it.
    pub creator: Option<Creator>,
    /// Init's start time, field 22 of proc_pid_stat(5), in clock ticks since boot: tells a reused pid.
    pub start_time: u64,
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// Where its mounts are, if it has no mount namespace of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_root: Option<SharedRoot>,
    /// When it was created, RFC 3339 in UTC with nanoseconds, as runc prints it.
    pub created: String,
    /// The configuration's annotations.
    pub annotations: HashMap<String, String>,
    /// The uid of the caller who created it (`owner` of `list`).
    pub owner: u32,
    /// Its cgroup.
    pub cgroup: cgroup::Saved,
    /// By what its first process runs: until that is known, the hull that was given the entrypoint.
    pub hull: proa_executor::Hull,
    /// `process.noNewPrivileges`, capabilities and the like for `exec` are read from the stored `config.json`.
    pub terminal: bool,
    /// `--no-new-keyring`, which holds for `exec` as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_keyring: bool,
}

/// A process that creates a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Creator {
    pid: i32,
    start_time: u64,
    /// Whether the container is complete: `run` is on its way to start it.
    complete: bool,
}

impl Creator {
    /// The calling process.
    pub fn this_process() -> Result<Self, Error> {
        let pid = std::process::id() as i32;
        let stat = process::Stat::look(pid)?.ok_or(Error::NoProc)?;
        Ok(Self {
            pid,
            start_time: stat.start_time,
            complete: false,
        })
    }

    fn lives(self) -> bool {
        process::alive(self.pid, self.start_time)
    }
}

/// Why the state can't be read or written; names the container and the path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such container. Worded as runc words it.
    #[error("container does not exist")]
    NotFound,
    /// The id is taken. Worded as runc words it.
    #[error("container with given ID already exists")]
    Exists,
    /// Not an id. Worded as runc words it.
    #[error("invalid container ID format: {0:?}")]
    InvalidId(String),
    /// The id is empty. Worded as runc words it.
    #[error("container id cannot be empty")]
    EmptyId,
    /// Another proa is creating this container just now.
    #[error("container {0} is being created by another process")]
    Busy(String),
    /// No procfs on `/proc`.
    #[error("/proc/self/stat can't be read: is procfs mounted?")]
    NoProc,
    /// The container's status forbids it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A file or directory of the store.
    #[error("{call} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// `state.json` is not what proa writes.
    #[error("{path}: {source}", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The container was made by a proa that came later, about which this one can't know what it has to know.
    #[error(
        "container {id} was made by a newer proa (state version {version}, this one knows {VERSION} and older): use that one, \
         or `delete --force`"
    )]
    Newer {
        /// The container.
        id: String,
        /// Its version.
        version: u32,
    },
    /// The stored `config.json`.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The container's init has gone. Worded as runc words it.
    #[error("container not running")]
    NotRunning,
    /// A signal can't be sent.
    #[error("unable to signal init: {call}: {source}")]
    Signal {
        /// The call with its arguments.
        call: String,
        /// Why it failed.
        source: nix::errno::Errno,
    },
    /// SIGKILL has been sent and a process is still there. Worded as runc words it.
    #[error("container init still running")]
    StillRunning,
    /// A container that shares its pid namespace could not be killed.
    #[error("unable to kill all processes: {0}")]
    KillAll(#[source] cgroup::Error),
    /// The cgroup can't be removed.
    #[error("unable to remove container's cgroup: {0}")]
    RemoveCgroup(#[source] cgroup::Error),
    /// The resctrl group can't be removed. Worded as runc words it.
    #[error("unable to remove container's IntelRDT group: {0}")]
    RemoveRdt(#[source] crate::process::Error),
    /// `linux.intelRdt` of the stored configuration.
    #[error(transparent)]
    Rdt(crate::process::Error),
    /// The mounts of a container without a mount namespace can't be taken away.
    #[error("unable to remove container's mounts: {0}")]
    RemoveMounts(#[source] crate::rootfs::Error),
    /// The cgroup can't be found again, or not be read.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
}

impl Error {
    /// For `map_err` of a call on a path.
    fn file(call: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File {
            call,
            path: path.into(),
            source,
        }
    }
}

/// The directory of all containers' states (`--root`).
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store at `root`; nothing is made until a container is.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where what can be computed again is kept: not a container's directory, and [`check_id`] never lets it be one.
    pub fn cache(&self) -> PathBuf {
        self.root.join(CACHE)
    }

    /// Where container `id` is kept. Only for an id that [`check_id`] accepts.
    pub fn dir(&self, id: &str) -> Result<PathBuf, Error> {
        check_id(id)?;
        Ok(self.root.join(id))
    }

    /// Takes the id for a new container, and its lock. mkdir(2) decides between two who try at once.
    pub fn reserve(&self, id: &str) -> Result<Reservation, Error> {
        let dir = self.dir(id)?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(Error::file("mkdir", &self.root))?;
        // 0711: a container's root user that is nobody on the host must be able to reach the notify socket by its path.
        match std::fs::DirBuilder::new().mode(0o711).create(&dir) {
            Ok(()) => Reservation::new(dir),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Error::Exists),
            Err(error) => Err(Error::file("mkdir", &dir)(error)),
        }
    }

    /// Reads what is known of container `id`. Takes no lock.
    pub fn open(&self, id: &str) -> Result<Container, Error> {
        Container::open(self.dir(id)?)
    }

    /// Removes a directory in which there is no `state.json`: what a `create` left that was killed early. Says whether there
    /// was one; fails with [`Error::Busy`] if its creator lives.
    pub fn remove_debris(&self, id: &str) -> Result<bool, Error> {
        container::remove_debris(&self.dir(id)?, id)
    }

    /// The ids of all containers, in order. A store that does not exist is an error of kind `NotFound`.
    pub fn ids(&self) -> Result<Vec<String>, Error> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(Error::file("open", &self.root))? {
            let entry = entry.map_err(Error::file("read", &self.root))?;
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // Whatever else lies there (a cache, a foreign file) can't be a container's.
            if let (true, Ok(name)) = (is_dir, entry.file_name().into_string())
                && check_id(&name).is_ok()
            {
                ids.push(name);
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

/// What runc accepts as an id: ASCII letters, digits, `_`, `+`, `-`, `.`; not `.`, `..` or `.cache`; short enough for a directory's
/// name (NAME_MAX).
pub fn check_id(id: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    match id {
        "" => Err(Error::EmptyId),
        "." | ".." | CACHE => Err(Error::InvalidId(id.into())),
        _ if id.len() > 255 || !id.bytes().all(allowed) => Err(Error::InvalidId(id.into())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["a", "A-b_c+d.e", "...", "0", &"x".repeat(255), "-a"] {
            check_id(good).unwrap();
        }
        for bad in [".", "..", "../x", "a/b", "a b", "ä", "a\n", "a:b", &"x".repeat(256)] {
            assert!(matches!(check_id(bad), Err(Error::InvalidId(_))), "{bad:?}");
        }
        assert_eq!(check_id("").unwrap_err().to_string(), "container id cannot be empty");
    }
}
