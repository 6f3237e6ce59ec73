//! The process in the middle: where the kernel puts only the *children* of a process into a namespace, it enters, clones
//! the container's init as its own sibling, reports its pid, and ends.

use super::report::Report;
use super::{Error, failed, inherit};
use crate::launch::handover::{Handover, Middle};
use crate::launch::spawn;
use crate::namespace::{Kind, enter};
use proa_sys::clone::{Clone, Side};
use std::os::fd::AsFd;

/// Returns in the container's init; the process in the middle itself ends here.
pub fn run(middle: &Middle, handover: &Handover, report: &mut Report) -> Result<(), Error> {
    if let Some(join) = handover
        .join_process
        .as_ref()
        .filter(|join| !join.middle_kinds.is_empty())
    {
        match join.pidfd {
            Some(fd) => {
                // A second one: the container's init takes the first.
                let pidfd = proa_sys::fd::duplicate(fd).map_err(failed(format!("fcntl({fd}, F_DUPFD_CLOEXEC)")))?;
                enter::join_process(pidfd.as_fd(), join.pid, &join.middle_kinds)?;
            }
            None => enter::join_process_each(join.pid, &join.middle_kinds)?,
        }
        if join.middle_kinds.contains(&Kind::User) {
            enter::become_root()?;
        }
    }
    if let Some(fd) = middle.join_user {
        enter::join(Kind::User, inherit(fd)?.as_fd())?;
        enter::become_root()?;
    }
    if middle.new_user {
        enter::unshare(Kind::User)?;
        report.need_maps()?;
        enter::become_root()?;
    }
    if let Some(offsets) = &middle.time {
        enter::unshare(Kind::Time)?;
        // A process that can't be looked into doesn't own its own /proc files. No process of a container sees this one yet.
        let dumpable = |on| nix::sys::prctl::set_dumpable(on).map_err(failed(format!("prctl(PR_SET_DUMPABLE, {on})")));
        dumpable(true)?;
        enter::write_time_offsets(offsets)?;
        dumpable(false)?;
    }
    if let Some(fd) = middle.join_pid {
        enter::join(Kind::Pid, inherit(fd)?.as_fd())?;
    }
    make_init(middle, handover, report)
}

fn make_init(middle: &Middle, handover: &Handover, report: &mut Report) -> Result<(), Error> {
    let into = middle.into_cgroup.map(inherit).transpose()?;
    let fallback = middle.into_fallback.map(inherit).transpose()?;
    let files = handover
        .enter_cgroup
        .iter()
        .map(|fd| inherit(*fd))
        .collect::<Result<Vec<_>, _>>()?;
    let flags = middle
        .new
        .iter()
        .fold(libc::CLONE_PARENT as u64, |flags, kind| flags | kind.flag());
    let what = Clone {
        flags,
        into_cgroup: into.as_ref().map(AsFd::as_fd),
    };
    let side = proa_sys::clone::clone(&what).map_err(|errno| spawn::Error::Clone {
        namespaces: middle.new.clone(),
        errno,
    })?;
    let in_cgroup = match side {
        Side::Parent(child) => {
            report.child(child.pid)?;
            proa_sys::exec::exit_now(0)
        }
        Side::Child { in_cgroup } => in_cgroup,
    };
    for file in files.iter().chain(fallback.iter().filter(|_| !in_cgroup)) {
        spawn::enter_cgroup(file)?;
    }
    if middle.wait { report.wait_go() } else { Ok(()) }
}
