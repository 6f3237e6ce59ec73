//! umask, stdio's owner, the working directory, and the change of user.

use super::{Error, User, lsm};
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{Gid, Uid, chdir, fchown, setgid, setgroups, setuid};
use pathrs::flags::OpenFlags;
use pathrs::procfs::ProcfsBase;
use proa_sys::errno::Raw;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

pub(super) fn set_umask(user: &User) {
    if let Some(mask) = user.umask {
        umask(Mode::from_bits_truncate(mask as nix::libc::mode_t));
    }
}

/// Gives stdin, stdout and stderr to `uid`, so that the process may reopen them (`/dev/stderr`) and control its terminal.
pub(super) fn own_stdio(uid: u32) -> Result<(), Error> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let fds: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    for (number, fd) in fds.into_iter().enumerate() {
        let stat = match fstat(fd) {
            Ok(stat) => stat,
            // The caller may have left it closed.
            Err(Errno::EBADF) => continue,
            Err(source) => {
                return Err(Error::Call {
                    call: format!("fstat({number})"),
                    source,
                });
            }
        };
        let is_device = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFCHR;
        // /dev/null may be the host's own, which must not change hands (CVE-2016-9962's neighbour, runc#4487).
        let is_null = is_device && stat.st_rdev == nix::sys::stat::makedev(1, 3);
        if stat.st_uid == uid || is_null {
            continue;
        }
        match fchown(fd, Some(Uid::from_raw(uid)), None) {
            // The present owner isn't mapped into the user namespace, or the file system is read-only: the process will do
            // without. The group is left alone, a devpts mount may have chosen it. That `uid` is not mapped (EINVAL) setuid(2)
            // says.
            Ok(()) | Err(Errno::EPERM | Errno::EROFS | Errno::EINVAL) => {}
            Err(source) => {
                return Err(Error::Call {
                    call: format!("fchown({number}, {uid}, -1)"),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Enters `cwd`. `false` if permission is lacking, which the user may have.
pub(super) fn enter_cwd(cwd: &str) -> Result<bool, Error> {
    match chdir(cwd) {
        Ok(()) => Ok(true),
        Err(Errno::EACCES | Errno::EPERM) => Ok(false),
        Err(source) => Err(Error::Cwd {
            cwd: cwd.to_owned(),
            source,
        }),
    }
}

pub(super) fn enter_cwd_as_user(cwd: &str) -> Result<(), Error> {
    chdir(cwd).map_err(|source| Error::Cwd {
        cwd: cwd.to_owned(),
        source,
    })
}

/// A path like `/proc/self/fd/7` enters a directory of the host through a leaked descriptor. getcwd(2) tells: it has no
/// path from the process's root to there and says `(unreachable)`, for which the C library says `ENOENT` (CVE-2024-21626).
pub(super) fn verify_cwd() -> Result<(), Error> {
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        Ok(_) | Err(rustix::io::Errno::NOENT) => Err(Error::Breakout),
        Err(errno) => {
            let call = "failed to verify if current working directory is safe: getcwd()".to_owned();
            Err(Error::Call {
                call,
                source: errno.raw(),
            })
        }
    }
}

/// Changes groups, gid and uid to those of `user`. A process that leaves uid 0 keeps its permitted capabilities, to give up
/// by itself.
pub(super) fn become_user(user: &User, procfs: Option<&lsm::Procfs>) -> Result<(), Error> {
    if user.uid != 0 {
        nix::sys::prctl::set_keepcaps(true)
            .map_err(Error::call("unable to set keep caps: prctl(PR_SET_KEEPCAPS, 1)"))?;
    }
    let gids: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    match setgroups(&gids) {
        Ok(()) => {}
        // Denied to unprivileged users' namespaces (user_namespaces(7)), or not mapped: nothing is gained by a group.
        Err(Errno::EPERM | Errno::EINVAL) if user.groups_optional => {}
        Err(Errno::EPERM) if setgroups_denied(procfs) => {}
        Err(source) => {
            let call = format!("unable to setup user: setgroups({:?})", user.groups);
            return Err(Error::Call { call, source });
        }
    }
    let unmapped = |call, what, id| {
        move |source| match source {
            Errno::EINVAL => Error::Unmapped { call, what, id },
            source => Error::Call {
                call: format!("unable to setup user: {call}({id})"),
                source,
            },
        }
    };
    setgid(Gid::from_raw(user.gid)).map_err(unmapped("setgid", "gid", user.gid))?;
    setuid(Uid::from_raw(user.uid)).map_err(unmapped("setuid", "uid", user.uid))
}

/// Whether the user namespace has setgroups(2) switched off. If that can't be told, it hasn't.
fn setgroups_denied(procfs: Option<&lsm::Procfs>) -> bool {
    let read = |procfs: &lsm::Procfs| {
        let mut text = String::new();
        procfs
            .file(ProcfsBase::ProcSelf, "setgroups", OpenFlags::O_RDONLY)?
            .read_to_string(&mut text)?;
        Ok(text)
    };
    lsm::with(procfs, read).is_ok_and(|text| text.trim() == "deny")
}

/// Undoes what [`become_user`] did to keep capabilities; a process that never calls execve(2) would have it for ever.
pub(super) fn forget_keeping() -> Result<(), Error> {
    nix::sys::prctl::set_keepcaps(false).map_err(Error::call("unable to clear keep caps: prctl(PR_SET_KEEPCAPS, 0)"))
}
