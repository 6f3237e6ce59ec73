//! The directories of a cgroup and the processes in them: making, listing, signalling, removing.

use super::Error;
use super::file::Dir;
use super::walk::{self, Found};
use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkdir};
use proa_sys::errno::Raw;
use std::path::{Path, PathBuf};

/// Makes `path` and what is missing above it, and notes what was made. True if `path` itself is new.
pub(super) fn make(path: &Path, made: &mut Vec<PathBuf>) -> Result<bool, Error> {
    let mode = Mode::from_bits_truncate(0o755);
    match mkdir(path, mode) {
        Ok(()) => {
            made.push(path.to_owned());
            return Ok(true);
        }
        Err(Errno::EEXIST) => return Ok(false),
        Err(Errno::ENOENT) => {}
        // A read-only mount says so even of a directory that is there.
        Err(Errno::EROFS) if path.is_dir() => return Ok(false),
        Err(errno) => {
            return Err(Error::Make {
                path: path.to_owned(),
                errno,
            });
        }
    }
    let Some(parent) = path.parent() else {
        return Err(Error::Make {
            path: path.to_owned(),
            errno: Errno::ENOENT,
        });
    };
    make(parent, made)?;
    match mkdir(path, mode) {
        Ok(()) => {
            made.push(path.to_owned());
            Ok(true)
        }
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(Error::Make {
            path: path.to_owned(),
            errno,
        }),
    }
}

/// Removes what [`make`] made, the deepest first. Used when creating failed for a reason that is reported already.
pub(super) fn unmake(made: &[PathBuf]) {
    for path in made.iter().rev() {
        if let Err(error) = std::fs::remove_dir(path) {
            tracing::warn!("rmdir {}: {error}", path.display());
        }
    }
}

/// The pids in `path` and below, whoever has made it.
pub(super) fn pids(path: &Path) -> Result<Vec<Pid>, Error> {
    match walk::find(path, None)? {
        Found::Ours(walk) => walk.pids(),
        Found::Another | Found::Nothing => Ok(Vec::new()),
    }
}

/// Removes a cgroup with those below it, waiting for processes that are about to leave.
pub(super) fn remove(path: &Path, unified: bool) -> Result<(), Error> {
    match rmdir(path) {
        Ok(()) => return Ok(()),
        Err(Errno::EBUSY | Errno::EROFS | Errno::EACCES | Errno::EPERM) => {}
        Err(errno) => {
            return Err(Error::Remove {
                path: path.to_owned(),
                errno,
            });
        }
    }
    match walk::find(path, None)? {
        Found::Ours(walk) => walk.remove(unified),
        Found::Another | Found::Nothing => Ok(()),
    }
}

/// Removes a cgroup that this container may have made, and in which none of its processes can be, unless somebody else uses
/// it by now.
pub(super) fn remove_unused(path: &Path) -> Result<(), Error> {
    match rmdir(path) {
        Ok(()) | Err(Errno::EBUSY | Errno::EROFS | Errno::EACCES | Errno::EPERM) => Ok(()),
        Err(errno) => Err(Error::Remove {
            path: path.to_owned(),
            errno,
        }),
    }
}

/// rmdir(2); what is gone already is removed.
fn rmdir(path: &Path) -> Result<(), Errno> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) => match error.raw() {
            Errno::ENOENT => Ok(()),
            errno => Err(errno),
        },
    }
}

/// Whether there is a cgroup directory at `path`.
pub(super) fn exists(path: &Path) -> bool {
    Dir(path).has("cgroup.procs")
}
