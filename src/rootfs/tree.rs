//! Mounts through descriptors: the new mount API, and mount(2) where the kernel has only that.

use super::error::{Error, Named};
use super::resolve::{Root, is_dir};
use proa_sys::Errno;
use proa_sys::errno::Raw;
use proa_sys::mount::{Attributes, mount_setattr};
use rustix::fs::{CWD, StatVfsMountFlags, fstat, fstatvfs};
use rustix::mount::{
    MountAttrFlags as Attr, MountFlags as Flag, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount,
    mount_change, move_mount, open_tree,
};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What a bind mount shows.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// A path of the host.
    Path { path: &'a Path, nofollow: bool },
    /// A file or directory that is open already.
    Fd(BorrowedFd<'a>),
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Path { path, .. } => write!(f, "{path:?}"),
            Source::Fd(fd) => write!(f, "<{}>", fd.as_raw_fd()),
        }
    }
}

/// A change of a mount's attributes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    pub set: u32,
    pub clear: u32,
    pub recursive: bool,
}

/// The magic link of a descriptor. The `/proc` it goes through is the host's before pivot_root; after it only kernels
/// without the new mount API come here.
pub(super) fn magic(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Whether to try mount(2) instead: the call is unknown, to the kernel or to a seccomp filter around us.
pub(super) fn unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::EPERM)
}

/// A copy of the mount that `source` is on, from there down, attached to nothing (Linux 5.2).
pub(super) fn detached(source: Source<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = match source {
        Source::Path { path, nofollow } => {
            if nofollow {
                flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            }
            open_tree(CWD, path, flags)
        }
        Source::Fd(fd) => open_tree(fd, "", flags | OpenTreeFlags::AT_EMPTY_PATH),
    };
    tree.map_err(|errno| errno.raw())
}

/// Attaches a detached mount on top of whatever `place` is.
pub(super) fn attach(tree: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", place, "", flags).map_err(|errno| errno.raw())
}

/// Bind-mounts `source` on `place`, which is `path` below `root`. Returns a descriptor of the new mount's root.
pub(super) fn bind(
    source: Source<'_>,
    recursive: bool,
    place: BorrowedFd<'_>,
    path: &Path,
    root: &Root,
) -> Result<OwnedFd, Error> {
    match detached(source, recursive) {
        Ok(tree) => {
            attach(tree.as_fd(), place).call(|| format!("move_mount(<{source:?}>, {path:?})"))?;
            Ok(tree)
        }
        Err(errno) if unsupported(errno) => bind_classic(source, recursive, place, path, root),
        Err(errno) => Err(errno).call(|| format!("open_tree({source:?}, OPEN_TREE_CLONE)")),
    }
}

/// Before Linux 5.2. mount(2) returns no descriptor of what it made: the path is looked up again, and has to lead to
/// the very file that was mounted.
pub(super) fn bind_classic(
    source: Source<'_>,
    recursive: bool,
    place: BorrowedFd<'_>,
    path: &Path,
    root: &Root,
) -> Result<OwnedFd, Error> {
    let from = match source {
        Source::Path { path, nofollow: false } => path.to_path_buf(),
        Source::Path { nofollow: true, .. } => return Err(Errno::ENOSYS).call(|| format!("open_tree({source:?})")),
        Source::Fd(fd) => magic(fd).into(),
    };
    let flags = if recursive { Flag::BIND | Flag::REC } else { Flag::BIND };
    let call = || format!("mount({from:?}, {path:?}, NULL, {flags:?})");
    let wanted = rustix::fs::stat(&from).call(|| format!("stat({from:?})"))?;
    mount(&from, magic(place), "", flags, None).call(call)?;
    reopen(path, root, |found| {
        (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
    })
}

/// Opens what was just mounted at `path`, which `is_it` has to recognise.
pub(super) fn reopen(path: &Path, root: &Root, is_it: impl Fn(&rustix::fs::Stat) -> bool) -> Result<OwnedFd, Error> {
    let gone = || Error::refuse(path, "was exchanged while it was mounted upon");
    let found = root.lookup(path, false)?.ok_or_else(gone)?.fd;
    let stat = fstat(&found).call(|| format!("fstat({path:?})"))?;
    if is_it(&stat) { Ok(found) } else { Err(gone()) }
}

/// Mounts a new file system on `place`. A directory is entered, so that no path has to be looked up again; it stays the
/// process's directory, below the new mount, for the caller to leave.
pub(super) fn mount_new(
    what: &Path,
    place: BorrowedFd<'_>,
    fs: &str,
    flags: u32,
    data: &str,
    path: &Path,
) -> Result<(), Error> {
    let flags = Flag::from_bits_retain(flags);
    let call = || format!("mount({what:?}, {path:?}, {fs:?}, {flags:?}, {data:?})");
    let text = CString::new(data).map_err(|_| Errno::EINVAL).call(call)?;
    let text = (!data.is_empty()).then_some(text.as_c_str());
    match rustix::process::fchdir(place) {
        Ok(()) => mount(what, ".", fs, flags, text).call(call),
        // A file as the mount point of a file system is for the kernel to refuse, or not.
        Err(rustix::io::Errno::NOTDIR) => mount(what, magic(place), fs, flags, text).call(call),
        Err(errno) => Err(errno).call(|| format!("fchdir({path:?})")),
    }
}

/// Changes the attributes of the attached mount whose root `tree` is.
pub(super) fn change(tree: BorrowedFd<'_>, change: Change) -> Result<(), Errno> {
    match change_new(tree, change) {
        Err(Errno::ENOSYS) if !change.recursive => change_classic(tree, change),
        other => other,
    }
}

/// Changes the attributes of a mount, attached or not (Linux 5.12).
pub(super) fn change_new(tree: BorrowedFd<'_>, change: Change) -> Result<(), Errno> {
    let attributes = Attributes {
        set: change.set.into(),
        clear: change.clear.into(),
        ..Attributes::default()
    };
    mount_setattr(tree, change.recursive, &attributes)
}

/// Before Linux 5.12. A remount replaces all flags, so those that the mount has are read first.
pub(super) fn change_classic(tree: BorrowedFd<'_>, change: Change) -> Result<(), Errno> {
    let now = fstatvfs(tree).map_err(|errno| errno.raw())?.f_flag;
    let (set, clear) = (Attr::from_bits_retain(change.set), Attr::from_bits_retain(change.clear));
    let mut flags = Flag::BIND | super::options::REMOUNT;
    for (attr, stat, flag) in SAME {
        if set.contains(attr) || (now.contains(stat) && !clear.contains(attr)) {
            flags |= flag;
        }
    }
    if clear.contains(Attr::MOUNT_ATTR__ATIME) {
        flags |= if set.contains(Attr::MOUNT_ATTR_STRICTATIME) {
            Flag::STRICTATIME
        } else if set.contains(Attr::MOUNT_ATTR_NOATIME) {
            Flag::NOATIME
        } else {
            Flag::RELATIME
        };
    } else if now.contains(StatVfsMountFlags::NOATIME) {
        flags |= Flag::NOATIME;
    } else if now.contains(StatVfsMountFlags::RELATIME) {
        flags |= Flag::RELATIME;
    }
    mount("", magic(tree), "", flags, None).map_err(|errno| errno.raw())
}

/// One flag in the three alphabets in which the kernel spells it.
const SAME: [(Attr, StatVfsMountFlags, Flag); 6] = [
    (Attr::MOUNT_ATTR_RDONLY, StatVfsMountFlags::RDONLY, Flag::RDONLY),
    (Attr::MOUNT_ATTR_NOSUID, StatVfsMountFlags::NOSUID, Flag::NOSUID),
    (Attr::MOUNT_ATTR_NODEV, StatVfsMountFlags::NODEV, Flag::NODEV),
    (Attr::MOUNT_ATTR_NOEXEC, StatVfsMountFlags::NOEXEC, Flag::NOEXEC),
    (
        Attr::MOUNT_ATTR_NODIRATIME,
        StatVfsMountFlags::NODIRATIME,
        Flag::NODIRATIME,
    ),
    // ST_NOSYMFOLLOW, for which rustix has no name.
    (
        Attr::MOUNT_ATTR_NOSYMFOLLOW,
        StatVfsMountFlags::from_bits_retain(0x2000),
        Flag::NOSYMFOLLOW,
    ),
];

/// `MOUNT_ATTR_*` of a mount.
pub(super) fn flags_of(tree: BorrowedFd<'_>) -> Result<u32, Errno> {
    let now = fstatvfs(tree).map_err(|errno| errno.raw())?.f_flag;
    let plain = SAME.into_iter().filter(|(_, stat, _)| now.contains(*stat));
    let mode = if now.contains(StatVfsMountFlags::NOATIME) {
        Attr::MOUNT_ATTR_NOATIME
    } else if now.contains(StatVfsMountFlags::RELATIME) {
        Attr::MOUNT_ATTR_RELATIME
    } else {
        Attr::MOUNT_ATTR_STRICTATIME
    };
    Ok(plain.fold(mode, |all, (attr, _, _)| all | attr).bits())
}

/// Changes the propagation of the mount whose root `tree` is.
pub(super) fn propagate(tree: BorrowedFd<'_>, propagation: u32) -> Result<(), Errno> {
    let recursive = propagation & super::options::REC != 0;
    let kind = propagation & !super::options::REC;
    match mount_setattr(
        tree,
        recursive,
        &Attributes {
            propagation: kind.into(),
            ..Attributes::default()
        },
    ) {
        Err(Errno::ENOSYS) => {
            let flags = MountPropagationFlags::from_bits_retain(propagation);
            mount_change(magic(tree), flags).map_err(|errno| errno.raw())
        }
        other => other,
    }
}

/// `MS_*` of a mount as `MOUNT_ATTR_*`, and the bits of `MOUNT_ATTR_*` that the flags speak of.
pub(super) fn attributes(flags: u32) -> u32 {
    let flags = Flag::from_bits_retain(flags);
    let mut attr = Attr::empty();
    for (same, _, flag) in SAME {
        if flags.contains(flag) {
            attr |= same;
        }
    }
    // The order in which the kernel itself decides (fs/namespace.c, path_mount).
    if flags.contains(Flag::STRICTATIME) {
        attr |= Attr::MOUNT_ATTR_STRICTATIME;
    } else if flags.contains(Flag::NOATIME) {
        attr |= Attr::MOUNT_ATTR_NOATIME;
    }
    attr.bits()
}

/// Whether a descriptor is of a directory.
pub(super) fn dir(fd: BorrowedFd<'_>) -> Result<bool, Error> {
    is_dir(fd).call(|| "fstat(O_PATH)")
}
