//! Mount sources that the container's init could not open: done in the parent, with the host's privileges.

use super::error::{Error, Named};
use super::mounts::Scene;
use super::options::{REC, SHARED, SLAVE};
use super::tree::{self, Source};
use super::{Idmap, Kind, Mount, Plan};
use proa_sys::Errno;
use proa_sys::mount::{Attributes, MOUNT_ATTR_IDMAP, mount_setattr, user_namespace};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::MountFlags as Flag;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// What the parent has opened for init.
#[derive(Debug, Default)]
pub struct Sources {
    opened: Vec<OwnedFd>,
    late: Vec<Late>,
}

/// The id map of a mount whose source only init can open, and only the parent can map.
#[derive(Debug)]
struct Late {
    index: usize,
    source: PathBuf,
    recursive: bool,
    userns: OwnedFd,
}

impl Sources {
    /// The descriptors that init has to inherit under the same numbers. They must stay open until it is cloned; here they
    /// are close-on-exec, so that no hook keeps a file system busy.
    pub fn inherited(&self) -> impl Iterator<Item = RawFd> {
        self.opened.iter().map(AsRawFd::as_raw_fd)
    }

    /// Leaves them to an init that is this very process.
    #[cfg(test)]
    pub(super) fn deposit(self) {
        for fd in self.opened {
            proa_sys::fd::deposit(fd);
        }
    }

    /// Answers init's question for the id map of `mounts[index]`, on the detached mount `tree`.
    pub fn map(&self, index: usize, tree: BorrowedFd<'_>) -> Result<(), Error> {
        let Some(late) = self.late.iter().find(|late| late.index == index) else {
            return Err(Error::Field {
                field: format!("mounts[{index}]"),
                problem: "is not one whose id map is set by the parent".into(),
            });
        };
        set_map(tree, &late.source, late.recursive, late.userns.as_fd())
    }
}

/// In the parent, before the clone: opens the mount sources that the container's init could not open or clone itself
/// (bind sources under a user namespace, id-mapped mounts) as detached mounts, and notes their descriptor numbers in
/// `plan`.
pub fn open_sources(plan: &mut Plan) -> Result<Sources, Error> {
    let mut sources = Sources::default();
    let (userns, keep_shared) = (plan.userns, !plan.userns && plan.propagation & SHARED != 0);
    for mount in &mut plan.mounts {
        if mount.kind != Kind::Bind || !(userns || mount.idmap.is_some()) {
            continue;
        }
        let field = format!("mounts[{}]", mount.index);
        let what = mount.source.display().to_string();
        let destination = mount.destination.clone();
        // What the mounts before this one put below the root is only seen by init.
        let late = mount.source.starts_with(&plan.root);
        let fd = if late {
            prepare(mount, userns, &mut sources.late)
        } else {
            open_early(mount, userns, keep_shared)
        };
        let fd = fd.map_err(|cause| Error::Mount {
            field,
            what,
            destination,
            cause: Box::new(cause),
        })?;
        sources.opened.extend(fd);
    }
    Ok(sources)
}

/// What init needs to open the source by itself: the user namespace of its id map, which can't be made in a pid namespace
/// whose `/proc` is not there yet. From within a user namespace it may not set the map either.
fn prepare(mount: &mut Mount, userns: bool, late: &mut Vec<Late>) -> Result<Option<OwnedFd>, Error> {
    let Some(idmap) = &mut mount.idmap else {
        return Ok(None);
    };
    let Some(map) = mapped(idmap)? else {
        return Ok(None);
    };
    if userns {
        idmap.by_parent = true;
        late.push(Late {
            index: mount.index,
            source: mount.source.clone(),
            recursive: idmap.recursive,
            userns: map,
        });
        return Ok(None);
    }
    idmap.opened = Some(map.as_raw_fd());
    Ok(Some(map))
}

/// In init: a source that the parent left to it.
pub(super) fn open_late(scene: &Scene<'_>) -> Result<Option<OwnedFd>, Error> {
    let tree = open(scene.mount, false)?;
    if let Some(tree) = &tree
        && scene.mount.idmap.as_ref().is_some_and(|idmap| idmap.by_parent)
        && !(scene.ask)(scene.mount.index, tree.as_fd())
    {
        return Err(Error::refuse(
            &scene.mount.source,
            "can't have its ids mapped: proa ended meanwhile",
        ));
    }
    Ok(tree)
}

fn open_early(mount: &mut Mount, userns: bool, keep_shared: bool) -> Result<Option<OwnedFd>, Error> {
    let Some(tree) = open(mount, keep_shared)? else {
        return Ok(None);
    };
    if userns {
        let flags = tree::flags_of(tree.as_fd()).call(|| format!("fstatvfs({:?})", mount.source))?;
        mount.locked = Some(flags);
    }
    mount.opened = Some(tree.as_raw_fd());
    Ok(Some(tree))
}

/// A detached copy of the source, with the mount's id map. `None` if it can be had only by mount(2).
pub(super) fn open(mount: &Mount, keep_shared: bool) -> Result<Option<OwnedFd>, Error> {
    let source = &mount.source;
    let recursive = mount.options.has(Flag::REC);
    let from = Source::Path {
        path: source,
        nofollow: mount.options.source_nofollow,
    };
    let tree = match tree::detached(from, recursive) {
        Ok(tree) => tree,
        // Before Linux 5.2 init has to find the source itself; and a rootless caller may clone nothing here, but its
        // init may.
        Err(errno) if tree::unsupported(errno) && mount.idmap.is_none() => return Ok(None),
        Err(errno) => return Err(errno).call(|| format!("open_tree({source:?}, OPEN_TREE_CLONE)")),
    };
    if !keep_shared {
        // init cuts its namespace off from the host's only after this copy was made.
        let attributes = Attributes {
            propagation: SLAVE.into(),
            ..Attributes::default()
        };
        match mount_setattr(tree.as_fd(), true, &attributes) {
            Ok(()) => {}
            Err(Errno::ENOSYS) if mount.idmap.is_none() => return Ok(None),
            Err(errno) => return Err(errno).call(|| format!("mount_setattr({source:?}, {:#x})", SLAVE | REC)),
        }
    }
    if let Some(idmap) = mount.idmap.as_ref().filter(|idmap| !idmap.by_parent) {
        map(&tree, mount, idmap)?;
    }
    Ok(Some(tree))
}

/// The user namespace that has the id map.
fn mapped(idmap: &Idmap) -> Result<Option<OwnedFd>, Error> {
    Ok(Some(match (idmap.opened, &idmap.maps, &idmap.path) {
        (Some(fd), ..) => proa_sys::fd::claim(fd).call(|| format!("fcntl({fd}, F_GETFD)"))?,
        (None, Some((uids, gids)), _) => {
            user_namespace(uids, gids).call(|| format!("clone(CLONE_NEWUSER) with maps {uids:?} and {gids:?}"))?
        }
        (None, None, Some(path)) => {
            openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).call(|| format!("open({path:?})"))?
        }
        (None, None, None) => return Ok(None),
    }))
}

fn map(tree: &OwnedFd, mount: &Mount, idmap: &Idmap) -> Result<(), Error> {
    let Some(userns) = mapped(idmap)? else {
        return Ok(());
    };
    set_map(tree.as_fd(), &mount.source, idmap.recursive, userns.as_fd())
}

fn set_map(tree: BorrowedFd<'_>, source: &Path, recursive: bool, userns: BorrowedFd<'_>) -> Result<(), Error> {
    let attributes = Attributes {
        set: MOUNT_ATTR_IDMAP,
        userns: Some(userns),
        ..Attributes::default()
    };
    mount_setattr(tree, recursive, &attributes).call(|| {
        format!(
            "failed to set MOUNT_ATTR_IDMAP on {source:?} (maybe the filesystem used doesn't support idmap mounts on \
             this kernel?)"
        )
    })
}
