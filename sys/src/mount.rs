//! mount_setattr(2) and the parts of the new mount API that rustix lacks.

use crate::errno::Raw;
use crate::{Errno, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// `MOUNT_ATTR_IDMAP`: the mount shows the owners of its files through a user namespace (Linux 5.12).
pub const MOUNT_ATTR_IDMAP: u64 = libc::MOUNT_ATTR_IDMAP;

/// What mount_setattr(2) changes on a mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear; a change of the access-time mode needs all of `MOUNT_ATTR__ATIME` here.
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 to leave the propagation alone.
    pub propagation: u64,
    /// The user namespace for `MOUNT_ATTR_IDMAP`.
    pub userns: Option<BorrowedFd<'a>>,
}

/// mount_setattr(2) on the mount whose root `mount` is, with `recursive` on every mount below as well (Linux 5.12).
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attributes: &Attributes<'_>) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: attributes.userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `attr` is a live `mount_attr` whose size is passed, and the kernel
    // only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Whether the directory `fd` is the root of a mount (Linux 5.8; `ENOSYS` before that).
pub fn is_mount_root(fd: BorrowedFd<'_>) -> Result<bool> {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    let facts = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map_err(|errno| errno.raw())?;
    match facts.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        true => Ok(facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        false => Err(Errno::ENOSYS),
    }
}

/// Makes one mount read-only.
pub fn set_read_only(mount: BorrowedFd<'_>) -> Result<()> {
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    };
    mount_setattr(mount, false, &attributes)
}

/// Makes a user namespace with the given contents of `uid_map` and `gid_map` (user_namespaces(7)) and returns a
/// descriptor of it. Nothing lives in it: the process that the kernel needs to make one is gone on return.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> std::io::Result<OwnedFd> {
    let (held, hold) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: a fork-like clone (no CLONE_VM, no stack): the child runs on its own copy of this memory.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })? as libc::pid_t;
    if pid == 0 {
        let mut byte = 0u8;
        // SAFETY: the child makes only async-signal-safe calls: it drops its copy of the write end so that it sees the
        // parent's end close, waits for that, and ends without running destructors.
        unsafe {
            libc::close(hold.as_raw_fd());
            libc::read(held.as_raw_fd(), (&raw mut byte).cast(), 1);
            libc::_exit(0)
        }
    }
    let made = map_and_open(pid, uid_map, gid_map);
    drop(hold);
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)?;
    made
}

/// Writes the maps of the child `pid` and opens its user namespace.
fn map_and_open(pid: libc::pid_t, uid_map: &str, gid_map: &str) -> std::io::Result<OwnedFd> {
    for (file, map) in [("uid_map", uid_map), ("gid_map", gid_map)] {
        OpenOptions::new()
            .write(true)
            .open(format!("/proc/{pid}/{file}"))?
            .write_all(map.as_bytes())?;
    }
    File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from)
}
