//! `checkpoint` and `restore`: the mounts that come from outside the container, which CRIU neither saves nor makes up.

use super::error::Error;
use super::resolve::{Root, is_dir, open_dir};
use super::{Kind, Mount, Plan, mounts, options};
use rustix::mount::{MountPropagationFlags, mount_change};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// A mount from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Where the container sees it, symbolic links of the image taken.
    pub destination: PathBuf,
    /// What of the host it shows.
    pub source: PathBuf,
}

impl Plan {
    /// The container's mounts from outside. `hierarchies` are its cgroups on a v1 host, by name, as
    /// [`crate::cgroup::Cgroup::hierarchies`] tells.
    pub fn external(&self, hierarchies: &[(String, PathBuf)]) -> Result<Vec<External>, Error> {
        let root = Root::new(open_dir(&self.root)?);
        let mut all = Vec::new();
        for mount in &self.mounts {
            match mount.kind {
                Kind::Bind if mount.idmap.is_some() => {
                    return Err(Error::Field {
                        field: format!("mounts[{}]", mount.index),
                        problem: "an id-mapped mount can't be checkpointed: CRIU would restore it without its map"
                            .into(),
                    });
                }
                Kind::Bind => all.push(External {
                    destination: destination(&root, mount)?,
                    source: mount.source.clone(),
                }),
                // With a namespace of their own the hierarchies are mounted anew, which CRIU knows to do.
                Kind::Cgroup if !self.cgroupns => {
                    let at = destination(&root, mount)?;
                    all.extend(hierarchies.iter().map(|(name, directory)| External {
                        destination: at.join(name),
                        source: directory.clone(),
                    }));
                }
                Kind::Cgroup | Kind::Fs(_) => {}
            }
        }
        // Where mknod(2) is not possible they are the host's nodes.
        all.extend(self.devices.iter().map(|device| External {
            destination: device.path.clone(),
            source: device.path.clone(),
        }));
        Ok(all)
    }

    /// Whether paths are masked, which takes a `/dev/null`.
    pub fn masks(&self) -> bool {
        !self.masked.is_empty()
    }

    /// The masked paths of the running container with the init `pid` that are covered with `/dev/null`: those that exist and
    /// are no directories.
    pub fn masked_files(&self, pid: i32) -> Result<Vec<PathBuf>, Error> {
        let root = Root::new(open_dir(Path::new(&format!("/proc/{pid}/root")))?);
        let is_file = |path: &&PathBuf| {
            let found = root.lookup(path, false).ok().flatten();
            // What can't be looked at was not masked either.
            found.is_some_and(|place| is_dir(place.fd.as_fd()).is_ok_and(|dir| !dir))
        };
        Ok(self.masked.iter().filter(is_file).cloned().collect())
    }

    /// Makes the mount points that are missing, as they were made when the container was created; CRIU expects them. To be
    /// called in a mount namespace of its own, where bind mounts are made for the mount points inside them.
    pub fn make_mount_points(&self) -> Result<(), Error> {
        let root = Root::new(open_dir(&self.root)?);
        for mount in &self.mounts {
            // CRIU restores a tmpfs with all that was in it, and cgroups with what they are mounted on.
            if mount.kind == Kind::Cgroup || self.is_on_tmpfs(&mount.destination) {
                continue;
            }
            mounts::make_point(self, &root, mount)?;
        }
        Ok(())
    }

    fn is_on_tmpfs(&self, path: &Path) -> bool {
        let tmpfs = Kind::Fs("tmpfs".into());
        let mut all = self.mounts.iter().filter(|mount| mount.kind == tmpfs);
        all.any(|mount| path != mount.destination && path.starts_with(&mount.destination))
    }
}

/// A mount point's path with the symbolic links that the image has in it taken. What is not there belongs to another mount.
fn destination(root: &Root, mount: &Mount) -> Result<PathBuf, Error> {
    let path = &mount.destination;
    for there in path.ancestors() {
        let nofollow = there == path && mount.options.destination_nofollow;
        if let Some(place) = root.lookup(there, nofollow)? {
            let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
            return Ok(place.real.components().chain(rest.components()).collect());
        }
    }
    Ok(path.clone())
}

/// Makes the mount namespace that this process is in one whose mounts the host never sees.
pub fn keep_mounts_private() -> Result<(), Error> {
    use super::error::Named;
    let flags = options::SLAVE | options::REC;
    mount_change("/", MountPropagationFlags::from_bits_retain(flags))
        .call(|| "mount(NULL, \"/\", NULL, MS_SLAVE|MS_REC)")
}

/// Shows the container's root at `directory`, for CRIU: as a mount point, with nothing over the directories above it.
pub fn show_root(root: &Path, directory: &Path) -> Result<(), Error> {
    use super::error::Named;
    use rustix::mount::{MountFlags, mount};
    let flags = MountFlags::BIND | MountFlags::REC;
    mount(root, directory, "", flags, None).call(|| format!("mount({root:?}, {directory:?}, NULL, MS_BIND|MS_REC)"))
}
