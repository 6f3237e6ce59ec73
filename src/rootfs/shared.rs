//! A container without a mount namespace of its own: its mounts are made among the caller's, and outlive it.

use super::error::{Error, Named};
use super::resolve::open_dir;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where such a container's mounts are. All of them are below its root, which is made a mount point for it: taking that one
/// away takes away all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedRoot {
    path: PathBuf,
    /// The inode of the mount namespace: in another one the same path may be a mount of somebody else's.
    namespace: u64,
    /// The mount that the directory was on before (`mnt_id` of proc_pid_fdinfo(5)).
    below: u64,
}

impl SharedRoot {
    /// Notes how things are before anything is mounted on `root`.
    pub fn note(root: &Path) -> Result<Self, Error> {
        Ok(Self {
            path: root.to_owned(),
            namespace: namespace()?,
            below: mount_id(root)?,
        })
    }

    /// Takes the container's mounts away, if they came to be.
    pub fn detach(&self) -> Result<(), Error> {
        let gone = !self.path.is_dir();
        if gone || namespace()? != self.namespace || mount_id(&self.path)? == self.below {
            return Ok(());
        }
        unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .call(|| format!("umount2({:?}, MNT_DETACH|UMOUNT_NOFOLLOW)", self.path))
    }
}

fn namespace() -> Result<u64, Error> {
    let path = "/proc/self/ns/mnt";
    std::fs::metadata(path)
        .map(|meta| meta.ino())
        .call(|| format!("stat({path:?})"))
}

fn mount_id(path: &Path) -> Result<u64, Error> {
    let dir = open_dir(path)?;
    super::tree::mount_id(dir.as_fd())
}
