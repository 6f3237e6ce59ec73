//! Entering namespaces and what is set up inside them. Runs in the container's init.

use super::{Error, Kind, TimeOffset};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use proa_sys::errno::Raw;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// A namespace to join, opened by the parent: descriptors survive what happens to the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its kind.
    pub kind: Kind,
    /// The descriptor, inherited by number.
    pub fd: RawFd,
}

/// Opens the namespaces of `plan` that exist already.
pub fn open(plan: &super::Plan) -> Result<Vec<(Kind, OwnedFd)>, Error> {
    plan.join
        .iter()
        .map(|join| {
            // What is a fifo is not waited for; setns(2) refuses what is no namespace.
            let mut reading = File::options();
            let opened = reading.read(true).custom_flags(libc::O_NONBLOCK).open(&join.path);
            let file = opened.map_err(|error| Error::Open {
                kind: join.kind,
                path: join.path.clone(),
                errno: error.raw(),
            })?;
            Ok((join.kind, file.into()))
        })
        .collect()
}

/// Joins one namespace.
pub fn join(kind: Kind, fd: BorrowedFd<'_>) -> Result<(), Error> {
    setns(fd, CloneFlags::from_bits_retain(kind.flag() as i32)).map_err(|errno| Error::Join {
        kind,
        // By what name it was opened nobody knows any more. Where even this is not to be seen, the descriptor must do.
        path: std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .unwrap_or_else(|_| PathBuf::from(format!("<descriptor {}>", fd.as_raw_fd()))),
        errno,
    })
}

/// Joins several namespaces of the process that `pidfd` refers to at once (Linux 5.8); before that, each by its file
/// under `/proc/PID/ns`. `lives` tells whether the pid is that process's still.
pub fn join_process(pidfd: BorrowedFd<'_>, pid: i32, kinds: &[Kind], lives: impl Fn() -> bool) -> Result<(), Error> {
    let flags = kinds.iter().fold(0, |flags, kind| flags | kind.flag());
    match setns(pidfd, CloneFlags::from_bits_retain(flags as i32)) {
        Ok(()) => Ok(()),
        // What older kernels answer for a descriptor that is no namespace file.
        Err(Errno::EINVAL) => join_process_each(pid, kinds, lives),
        Err(errno) => Err(Error::Call {
            call: format!("setns(pidfd of {pid}, {kinds:?})"),
            errno,
        }),
    }
}

/// The way of kernels before 5.8. All files are opened before the first is joined: `/proc` is the host's until then.
pub fn join_process_each(pid: i32, kinds: &[Kind], lives: impl Fn() -> bool) -> Result<(), Error> {
    let files = kinds
        .iter()
        .map(|&kind| Ok((kind, open_of(pid, kind)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    // They were opened by number, and are the process's own only if it lived until after that.
    if !lives() {
        return Err(Error::Call {
            call: format!("open the namespaces of {pid}"),
            errno: Errno::ESRCH,
        });
    }
    // What the caller may join it joins with the caller's rights: a network namespace of the host's making, say, which root
    // of the container's user namespace may not. For the rest those of that root are needed: the caller is not root itself.
    let (user, others): (Vec<_>, Vec<_>) = files.iter().partition(|(kind, _)| *kind == Kind::User);
    let mut later = Vec::new();
    for (kind, file) in others {
        match join(*kind, file.as_fd()) {
            Err(Error::Join {
                errno: Errno::EPERM, ..
            }) if !user.is_empty() => later.push((kind, file)),
            other => other?,
        }
    }
    user.into_iter()
        .map(|(kind, file)| (kind, file))
        .chain(later)
        .try_for_each(|(kind, file)| join(*kind, file.as_fd()))
}

/// Makes `root` the process's root and working directory.
pub fn change_root(root: BorrowedFd<'_>) -> Result<(), Error> {
    let failed = |call: &str| {
        let call = call.to_owned();
        move |errno: rustix::io::Errno| Error::Call {
            call,
            errno: errno.raw(),
        }
    };
    rustix::process::fchdir(root).map_err(failed("fchdir(<the container's root>)"))?;
    rustix::process::chroot(".").map_err(failed("chroot(\".\")"))
}

/// A namespace of the process `pid`, opened.
pub fn open_of(pid: i32, kind: Kind) -> Result<OwnedFd, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/{}", kind.file_name()));
    match File::open(&path) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(Error::Open {
            kind,
            path,
            errno: error.raw(),
        }),
    }
}

/// unshare(2) of one kind.
pub fn unshare(kind: Kind) -> Result<(), Error> {
    nix::sched::unshare(CloneFlags::from_bits_retain(kind.flag() as i32)).map_err(|errno| Error::Call {
        call: format!("unshare({kind:?})"),
        errno,
    })
}

/// Writes the clocks' offsets of the time namespace that this process's children will be in, time_namespaces(7).
pub fn write_time_offsets(offsets: &[TimeOffset]) -> Result<(), Error> {
    let text: String = offsets
        .iter()
        .map(|offset| format!("{} {} {}\n", offset.clock, offset.seconds, offset.nanoseconds))
        .collect();
    if text.is_empty() {
        return Ok(());
    }
    let path = PathBuf::from("/proc/self/timens_offsets");
    std::fs::write(&path, &text).map_err(|source| Error::Write { path, text, source })
}

/// Becomes root of the user namespace that was just entered.
pub fn become_root() -> Result<(), Error> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let failed = |call: &str| {
        let call = call.to_owned();
        move |errno| Error::Call { call, errno }
    };
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group).map_err(failed("setresgid(0, 0, 0) in the user namespace"))?;
    setresuid(root, root, root).map_err(failed("setresuid(0, 0, 0) in the user namespace"))?;
    match setgroups(&[]) {
        // Denied by the rootless caller's own `setgroups` file: the groups stay unmapped, and so without effect inside.
        Ok(()) | Err(Errno::EPERM) => Ok(()),
        Err(errno) => Err(failed("setgroups([])")(errno)),
    }
}

/// `hostname` and `domainname`.
pub fn set_names(hostname: Option<&str>, domainname: Option<&str>) -> Result<(), Error> {
    if let Some(name) = hostname.filter(|name| !name.is_empty()) {
        nix::unistd::sethostname(name).map_err(|errno| Error::Call {
            call: format!("sethostname({name:?})"),
            errno,
        })?;
    }
    if let Some(name) = domainname.filter(|name| !name.is_empty()) {
        rustix::system::setdomainname(name.as_bytes()).map_err(|errno| Error::Call {
            call: format!("setdomainname({name:?})"),
            errno: errno.raw(),
        })?;
    }
    Ok(())
}

/// Brings `lo` of a new network namespace up, as every runtime does.
pub fn loopback_up() -> Result<(), Error> {
    proa_sys::net::set_up(c"lo").map_err(|errno| Error::Call {
        call: "ioctl(SIOCSIFFLAGS, \"lo\", IFF_UP)".into(),
        errno,
    })
}
