//! flock(2) of a container's directory.

use nix::errno::Errno;
use proa_sys::errno::Raw;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

/// A lock that is held; given back when dropped.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Waits for the lock of what is open.
    pub fn wait(file: File) -> Result<Self, Errno> {
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.raw()),
            }
        }
    }

    /// Takes the lock if it is free; EWOULDBLOCK if it is not.
    pub fn try_take(file: File) -> Result<Self, (File, Errno)> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(errno) => Err((file, errno.raw())),
        }
    }

    /// What is locked.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl AsRawFd for Lock {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // To close it would do, but for copies of the descriptor that a child has not closed yet. On a file system that
        // can't do it, they will have to.
        if let Err(errno) = flock(&self.0, FlockOperation::Unlock) {
            tracing::debug!("flock(LOCK_UN): {errno}");
        }
    }
}
