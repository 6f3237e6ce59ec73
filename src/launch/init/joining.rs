//! `exec`: from the host into a running container.
//!
//! The container's processes see this one only once it is in their pid namespace, in which the kernel puts the children of
//! the process that joins it. One with CAP_SYS_PTRACE may then trace it, whether it is dumpable or not, and do with it what it
//! is allowed to. So the process in the middle, which they can't see, joins the namespaces, opens what is needed, gives up
//! rights, and only then clones: what they see has no more than the program is going to have.
//!
//! ```text
//!   in the middle: [engine and module opened] -> namespaces -> terminal -> labels -> limits, by the parent
//!                  -> user, bounding set, [seccomp,] capabilities -> clone
//!   seen         : session, [seccomp, where the profile does not allow the clone] -> created, start -> execve | engine
//! ```

use super::report::Report;
use super::{Error, failed, inherit, middle, prepare, terminal};
use crate::launch::handover::{Handover, JoinProcess};
use crate::namespace::{Kind, enter};
use crate::process::{self, Filter, Procfs, Rest};
use crate::{rootfs, state};
use proa_executor::Handler;
use proa_sys::clone;
use proa_sys::errno::Raw;
use std::os::fd::AsFd;

/// Returns in the process that becomes the program, confined: whether the seccomp filter is installed, too.
pub fn enter(
    join: &JoinProcess,
    handover: &mut Handover,
    filter: Option<&Filter>,
    handler: &mut dyn Handler,
    report: &mut Report,
) -> Result<bool, Error> {
    let procfs = procfs(&handover.process)?;
    let in_user_namespace = join.kinds.contains(&Kind::User);
    // Its file in procfs is in sight here only.
    handover.process.user.groups_optional |= in_user_namespace && denies_groups(join.pid);
    namespaces(join, handover, handler, report)?;
    if in_user_namespace {
        enter::become_root()?;
    }
    let console = handover.console.map(inherit).transpose()?;
    if let Some(socket) = &console {
        terminal::attach(rootfs::console_of_running()?, socket, handover.process.console_size)?;
    }
    let native = !handler.in_process();
    process::labels(&handover.process, native, procfs.as_ref())?;
    if !native {
        rootfs::interfaces_of_running()?.protect()?;
    }
    // While no filter refuses the question.
    let middle = handover.middle.take().map(|middle| match clone::alone() {
        Ok(alone) => Ok((middle, alone)),
        Err(error) => Err(middle::refused(&middle, error)),
    });
    let middle = middle.transpose()?;
    report.ready()?;
    let rest = process::confine_before_entry(&mut handover.process, filter, native, procfs.as_ref())?;
    // It shows the host's processes.
    drop(procfs);
    let has_terminal = console.is_some();
    drop(console);
    if let Some((middle, alone)) = middle {
        middle::make_init(&middle, &alone, report)?;
        process::limit_processes(&handover.process)?;
    }
    tracing::debug!("child process in init()");
    // A session of its own: a terminal's signals, and a kill of the caller's process group, are not for the container.
    nix::unistd::setsid().map_err(failed("setsid()"))?;
    if has_terminal {
        terminal::control()?;
    }
    let listener = process::confine_after_entry(&handover.process, filter, native, &rest)?;
    report.listener(listener)?;
    Ok(matches!(rest, Rest::Nothing))
}

/// The host's procfs, if it is needed to set a label: the container's does not show this process.
fn procfs(process: &process::Plan) -> Result<Option<Procfs>, Error> {
    let labelled = process.apparmor_profile.is_some() || process.selinux_label.is_some();
    let opened = labelled.then(Procfs::open).transpose();
    opened.map_err(|error| failed("open a procfs")(error.raw()))
}

/// Whether the user namespace of `pid` has setgroups(2) switched off (user_namespaces(7)). If that can't be told, it hasn't.
fn denies_groups(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/setgroups")).is_ok_and(|text| text.trim() == "deny")
}

/// What is needed of the host (the module, the engine, the container's namespaces in procfs) is opened while it is in sight,
/// and then the host is left.
fn namespaces(
    join: &JoinProcess,
    handover: &Handover,
    handler: &mut dyn Handler,
    report: &Report,
) -> Result<(), Error> {
    let root = format!("/proc/{}/root", join.pid);
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let root = rustix::fs::open(&root, flags, rustix::fs::Mode::empty())
        .map_err(|errno| failed(format!("open {root}"))(errno.raw()))?;
    prepare(handover, handler, root.as_fd(), report)?;
    // Last: that it succeeds tells that the process lived until now, so that what was opened by its pid is its own.
    let lives = || state::process::looks_alive(join.pid, join.start_time).unwrap_or(false);
    match join.pidfd {
        Some(fd) => enter::join_process(inherit(fd)?.as_fd(), join.pid, &join.kinds, lives)?,
        None => enter::join_process_each(join.pid, &join.kinds, lives)?,
    }
    if !join.kinds.contains(&Kind::Mount) {
        // setns(2) would have changed the root; without a mount namespace only init's own root leads there.
        enter::change_root(root.as_fd())?;
    }
    Ok(())
}
