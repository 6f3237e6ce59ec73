//! Mounts through descriptors: the new mount API, and mount(2) where the kernel has only that.

use super::error::{Error, Named};
use super::procfs::Procfs;
use super::resolve::{Root, is_dir};
use proa_sys::Errno;
use proa_sys::errno::Raw;
use proa_sys::mount::{Attributes, mount_setattr};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxFlags, fstat, fstatvfs, openat, openat2, statx,
};
use rustix::mount::{
    MountAttrFlags as Attr, MountFlags as Flag, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount,
    mount_change, move_mount, open_tree,
};
use rustix::process::{chroot, fchdir};
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

/// The magic link of a descriptor, through the host's `/proc`: before pivot_root.
pub(super) fn magic(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The magic link of a descriptor, where `/proc` may be the container's by now: an image without a procfs could have a link of
/// its own there. Only kernels without the new mount API come here.
fn checked_magic(fd: BorrowedFd<'_>) -> Result<String, Errno> {
    match Procfs::host() {
        Ok(_) => Ok(magic(fd)),
        Err(error) => Err(error.errno().unwrap_or(Errno::EXDEV)),
    }
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

/// Before Linux 5.2. mount(2) returns no descriptor of what it made. A directory's is found by [`top`]; over a file no call leads
/// but one by a name, and what that finds has to be the mount that has just come to be.
pub(super) fn bind_classic(
    source: Source<'_>,
    recursive: bool,
    place: BorrowedFd<'_>,
    path: &Path,
    root: &Root,
) -> Result<OwnedFd, Error> {
    let proc = || "open(\"/proc\")";
    let from = match source {
        Source::Path { path, nofollow: false } => path.to_path_buf(),
        Source::Path { nofollow: true, .. } => return Err(Errno::ENOSYS).call(|| format!("open_tree({source:?})")),
        Source::Fd(fd) => checked_magic(fd).call(proc)?.into(),
    };
    let flags = if recursive { Flag::BIND | Flag::REC } else { Flag::BIND };
    let call = || format!("mount({from:?}, {path:?}, NULL, {flags:?})");
    let at = checked_magic(place).call(proc)?;
    if dir(place)? {
        mount(&from, at, "", flags, None).call(call)?;
        return top(place).call(|| format!("openat2({path:?}, \"..\", RESOLVE_IN_ROOT)"));
    }
    let wanted = rustix::fs::stat(&from).call(|| format!("stat({from:?})"))?;
    let before = mounts()?;
    mount(&from, at, "", flags, None).call(call)?;
    let exchanged = || Error::refuse(path, "was exchanged while it was mounted upon");
    let found = root.lookup(path, false)?.ok_or_else(exchanged)?.fd;
    let stat = fstat(&found).call(|| format!("fstat({path:?})"))?;
    let same = (stat.st_dev, stat.st_ino) == (wanted.st_dev, wanted.st_ino);
    if same && !before.contains(&mount_id(found.as_fd())?) {
        Ok(found)
    } else {
        Err(exchanged())
    }
}

/// The root of what is mounted on the very directory that `place` is, topmost if that is more than one; `place` itself if it is
/// nothing. No name is looked up that somebody could exchange: at the root of a lookup `..` stays where it is, and steps onto
/// what is mounted there (fs/namei.c, follow_dotdot and step_into).
pub(super) fn top(place: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for _ in 0..super::resolve::MAX_RETRIES {
        return match openat2(place, "..", flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Err(rustix::io::Errno::AGAIN) => continue,
            Err(errno) if unsupported(errno.raw()) => top_classic(place),
            other => other.map_err(|errno| errno.raw()),
        };
    }
    Err(Errno::EAGAIN)
}

/// Before Linux 5.6: `place` is the root of a lookup while it is the process's. Leaves the process in its root.
fn top_classic(place: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let find = || -> rustix::io::Result<OwnedFd> {
        let root = openat(CWD, "/", flags, Mode::empty())?;
        fchdir(place)?;
        chroot(".")?;
        let found = openat(CWD, "..", flags, Mode::empty());
        fchdir(&root)?;
        chroot(".")?;
        found
    };
    find().map_err(|errno| errno.raw())
}

/// The id of the mount that `fd` is on: `stx_mnt_id` of statx(2) (Linux 5.8), before that `mnt_id` of proc_pid_fdinfo(5).
pub(super) fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Error> {
    if let Ok(facts) = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        && StatxFlags::from_bits_retain(facts.stx_mask).contains(StatxFlags::MNT_ID)
    {
        return Ok(facts.stx_mnt_id);
    }
    mount_id_classic(fd)
}

pub(super) fn mount_id_classic(fd: BorrowedFd<'_>) -> Result<u64, Error> {
    Procfs::host()?;
    let info = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = std::fs::read_to_string(&info).call(|| format!("read({info:?})"))?;
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| Error::refuse(Path::new(&info), "has no mnt_id"))
}

/// The ids of all mounts of this namespace (proc_pid_mountinfo(5)).
fn mounts() -> Result<Vec<u64>, Error> {
    let path = "/proc/thread-self/mountinfo";
    let text = std::fs::read_to_string(path).call(|| format!("open({path:?})"))?;
    let id = |line: &str| line.split(' ').next()?.parse().ok();
    Ok(text.lines().filter_map(id).collect())
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
    match fchdir(place) {
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
    mount("", checked_magic(tree)?, "", flags, None).map_err(|errno| errno.raw())
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
            mount_change(checked_magic(tree)?, flags).map_err(|errno| errno.raw())
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
