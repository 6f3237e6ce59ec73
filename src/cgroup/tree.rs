//! The directories of a cgroup and the processes in them: making, listing, signalling, removing.

use super::file::{self, Dir};
use super::{Error, freezer};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkdir};
use proa_sys::errno::Raw;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long processes that were killed may take to leave. A process in the middle of a large exit can need seconds.
const PATIENCE: Duration = Duration::from_secs(5);

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

/// The pids in `path` and below.
pub(super) fn pids(path: &Path) -> Result<Vec<Pid>, Error> {
    let mut all = BTreeSet::new();
    walk(path, &mut |dir| {
        all.extend(own_pids(dir)?);
        Ok(())
    })?;
    Ok(all.into_iter().map(Pid::from_raw).collect())
}

/// The pids in `path` itself.
fn own_pids(path: &Path) -> Result<Vec<i32>, Error> {
    // A threaded cgroup refuses `cgroup.procs`: its threads belong to processes of the domain above.
    let text = match file::read(&path.join("cgroup.procs")) {
        Err(Errno::EOPNOTSUPP) => file::read(&path.join("cgroup.threads")),
        result => result,
    };
    let text = file::if_any(text.map_err(|errno| Error::Call {
        call: "read",
        path: path.join("cgroup.procs"),
        errno,
    }))?;
    // 0 is a process of another pid namespace: nothing that a signal could reach.
    Ok(text
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .collect())
}

/// Calls `visit` for `path` and every cgroup below; what vanishes meanwhile is left out.
fn walk(path: &Path, visit: &mut impl FnMut(&Path) -> Result<(), Error>) -> Result<(), Error> {
    visit(path)?;
    for child in children(path)? {
        walk(&child, visit)?;
    }
    Ok(())
}

fn children(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => {
            let errno = error.raw();
            let failed = Err(Error::Call {
                call: "readdir",
                path: path.to_owned(),
                errno,
            });
            return file::if_any(failed).map(Option::unwrap_or_default);
        }
    };
    let entries = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(entries.map(|entry| entry.path()).collect())
}

/// Kills everything in a v2 cgroup and below at once. False where the kernel (before 5.14) has no `cgroup.kill`.
pub(super) fn kill_v2(path: &Path) -> Result<bool, Error> {
    let file = path.join("cgroup.kill");
    match file::write(&file, "1") {
        Ok(()) => Ok(true),
        // ENOENT also if the cgroup is gone; EOPNOTSUPP in a threaded one.
        Err(Errno::ENOENT | Errno::EOPNOTSUPP) => Ok(false),
        Err(Errno::ENODEV) => Ok(true),
        Err(errno) => Err(Error::Call {
            call: "write 1 to",
            path: file,
            errno,
        }),
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
    if !path.exists() {
        return Ok(());
    }
    for child in children(path)? {
        remove(&child, unified)?;
    }
    let give_up = Instant::now() + PATIENCE;
    let mut round = 0u32;
    loop {
        match rmdir(path) {
            Ok(()) => return Ok(()),
            Err(Errno::EBUSY) if Instant::now() < give_up => {}
            Err(errno) => {
                return Err(Error::Remove {
                    path: path.to_owned(),
                    errno,
                });
            }
        }
        let left = give_up.saturating_duration_since(Instant::now());
        if unified && !freezer::wait_for_event(path, "populated", 0, left)? {
            return Err(Error::Remove {
                path: path.to_owned(),
                errno: Errno::EBUSY,
            });
        }
        if unified || !wait_for_exits(path, left)? {
            // No process to wait for: the kernel is still letting go of the last one, for which it has no sign.
            freezer::pause(round);
            round += 1;
        }
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

/// Waits until one of the processes of a v1 cgroup has ended. False if there are none.
fn wait_for_exits(path: &Path, patience: Duration) -> Result<bool, Error> {
    for pid in own_pids(path)? {
        let Some(pid) = rustix::process::Pid::from_raw(pid) else {
            continue;
        };
        match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(fd) => {
                let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
                // A zombie's descriptor is ready at once though its cgroup may still be busy.
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                let was_ready = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
                if !was_ready {
                    // However the wait ended, the caller looks at the cgroup again.
                    poll(&mut fds, timeout).ok();
                    return Ok(true);
                }
            }
            // Gone by now; or Linux before 5.3, which has none: then the caller waits in small steps.
            Err(_) => continue,
        }
    }
    Ok(false)
}

/// Whether there is a cgroup directory at `path`.
pub(super) fn exists(path: &Path) -> bool {
    Dir(path).has("cgroup.procs")
}
