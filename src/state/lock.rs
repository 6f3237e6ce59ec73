//! flock(2) of a container's directory.

use nix::errno::Errno;
use proa_sys::errno::Raw;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;

/// A lock that is held; given back when dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    unlock: bool,
}

impl Lock {
    fn of(file: File) -> Self {
        Self { file, unlock: true }
    }

    /// Closes this process's descriptor of it and leaves it held by those of others.
    pub fn abandon(mut self) {
        self.unlock = false;
    }

    /// Waits for the lock of what is open.
    pub fn wait(file: File) -> Result<Self, Errno> {
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self::of(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.raw()),
            }
        }
    }

    /// Takes the lock if it is free; EWOULDBLOCK if it is not.
    pub fn try_take(file: File) -> Result<Self, (File, Errno)> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self::of(file)),
            Err(errno) => Err((file, errno.raw())),
        }
    }

    /// What is locked.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // To close it would do, but for copies of the descriptor that a child has not closed yet. On a file system that
        // can't do it, they will have to.
        if self.unlock
            && let Err(errno) = flock(&self.file, FlockOperation::Unlock)
        {
            tracing::debug!("flock(LOCK_UN): {errno}");
        }
    }
}
