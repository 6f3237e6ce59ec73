//! mount_setattr(2) and the parts of the new mount API that rustix lacks.

use crate::{Errno, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct mount_attr` of mount_setattr(2), Linux 5.12.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
    /// `MS_PRIVATE` and its like, or 0.
    pub propagation: u64,
    /// A user namespace for `MOUNT_ATTR_IDMAP`.
    pub userns_fd: u64,
}

/// mount_setattr(2) on the mount open as `mount`, with all mounts below it if `recursive`.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attributes: &Attributes) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and the kernel reads `size_of::<Attributes>()` bytes of a live struct.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const *attributes,
            size_of::<Attributes>(),
        )
    })
    .map(drop)
}

/// Makes one mount read-only.
pub fn set_read_only(mount: BorrowedFd<'_>) -> Result<()> {
    mount_setattr(
        mount,
        false,
        &Attributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..Attributes::default()
        },
    )
}
