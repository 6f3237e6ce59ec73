//! The process in the middle: where the kernel puts only the *children* of a process into a namespace, it enters, clones
//! the container's init as its own sibling, reports its pid, and ends.

use super::report::Report;
use super::{Error, failed, inherit};
use crate::launch::handover::{Handover, Middle};
use crate::launch::spawn;
use crate::namespace::{self, Kind, enter};
use crate::process;
use nix::errno::Errno;
use proa_sys::clone::{self, Alone, Clone, Side, alone, clone_alone};
use std::os::fd::AsFd;

/// Returns in the container's init; the process in the middle itself ends here.
pub fn run(middle: &Middle, handover: &mut Handover, report: &mut Report) -> Result<(), Error> {
    if let Some(fd) = middle.join_user {
        join_foreign(handover)?;
        enter::join(Kind::User, inherit(fd)?.as_fd())?;
    }
    // The files in /proc of a process that is not dumpable are root's, so an unprivileged caller could write neither the
    // maps nor the offsets. Whoever may trace this process meanwhile may trace that caller as well: no pid namespace of the
    // container is joined yet.
    let unprivileged = middle.new_user && !nix::unistd::geteuid().is_root();
    if unprivileged {
        process::traceable(true)?;
    }
    if middle.new_user {
        enter::unshare(Kind::User)?;
        report.need_maps()?;
    }
    if let Some(offsets) = &middle.time {
        enter::unshare(Kind::Time)?;
        enter::write_time_offsets(offsets)?;
    }
    if unprivileged {
        process::traceable(false)?;
    }
    if let Some(fd) = middle.join_pid {
        enter::join(Kind::Pid, inherit(fd)?.as_fd())?;
    }
    let alone = alone().map_err(|source| refused(middle, source))?;
    make_init(middle, &alone, report)
}

/// A namespace that the user namespace to be joined does not own can only be joined before, with the caller's rights; what
/// those don't allow is left for the user namespace's root. Not the others: with a mount namespace the files change, with
/// a cgroup namespace the cgroup could not be entered any more.
fn join_foreign(handover: &mut Handover) -> Result<(), Error> {
    let mut left = Vec::new();
    for join in std::mem::take(&mut handover.join) {
        if !matches!(join.kind, Kind::Network | Kind::Ipc | Kind::Uts) {
            left.push(join);
            continue;
        }
        let fd = proa_sys::fd::duplicate(join.fd).map_err(failed("fcntl(namespace, F_DUPFD_CLOEXEC)"))?;
        match enter::join(join.kind, fd.as_fd()) {
            Ok(()) => {}
            Err(namespace::Error::Join {
                errno: Errno::EPERM, ..
            }) => left.push(join),
            Err(error) => return Err(error.into()),
        }
    }
    handover.join = left;
    Ok(())
}

/// Clones the process that becomes the container's, and returns in that one.
pub fn make_init(middle: &Middle, alone: &Alone, report: &mut Report) -> Result<(), Error> {
    let flags = middle
        .new
        .iter()
        .fold(libc::CLONE_PARENT as u64, |flags, kind| flags | kind.flag());
    // Or the child would have the same lines to tell.
    report.flush()?;
    let what = Clone {
        flags,
        into_cgroup: None,
    };
    let side = clone_alone(&what, alone).map_err(|source| refused(middle, source))?;
    if let Side::Parent(child) = side {
        report.child(child.pid)?;
        proa_sys::exec::exit_now(0)
    }
    if middle.wait {
        report.wait_go()?;
    }
    if middle.in_user_namespace {
        // Not before: with the caller's own uid it may write to its own files in /proc, which the new namespace's root,
        // somebody else on the host, may not.
        enter::become_root()?;
    }
    Ok(())
}

/// Why there is no process from the one in the middle.
pub fn refused(middle: &Middle, source: clone::Error) -> spawn::Error {
    spawn::Error::Clone {
        namespaces: middle.new.clone(),
        source,
    }
}
