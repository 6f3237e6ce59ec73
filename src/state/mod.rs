//! What proa remembers of a container, under `--root` (default `/run/proa`): one directory a container, with
//! `state.json` (written atomically), `config.json` (the bundle's as it was at create), `start.sock` (while init waits),
//! and a lock file.

use crate::cgroup;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The facts written at create; what changes (status) is computed from the kernel each time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The runtime-spec version of the bundle's configuration, as `state` prints it.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Init's pid in the caller's pid namespace. 0 while the container is being created.
    pub pid: i32,
    /// Init's start time, field 22 of proc_pid_stat(5), in clock ticks since boot: tells a reused pid.
    pub start_time: u64,
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339 in UTC with nanoseconds, as runc prints it.
    pub created: String,
    /// The configuration's annotations.
    pub annotations: HashMap<String, String>,
    /// The uid of the caller who created it (`owner` of `list`).
    pub owner: u32,
    /// Its cgroup.
    pub cgroup: cgroup::Saved,
    /// Whether the entrypoint was given to the Wasm hull.
    pub hull: proa_executor::Hull,
    /// `process.noNewPrivileges`, capabilities and the like for `exec` are read from the stored `config.json`.
    pub terminal: bool,
}

/// A container's status, as the runtime-spec names it, with runc's additional `paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is under way (or died half-way).
    Creating,
    /// Init waits for `start`.
    Created,
    /// The user's program runs.
    Running,
    /// Init is gone, or a zombie.
    Stopped,
    /// The cgroup is frozen.
    Paused,
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
}
