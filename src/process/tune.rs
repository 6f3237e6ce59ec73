//! What the parent does to the container's process from outside, with the host's privileges.

use super::rdt::Resctrl;
use super::{Affinity, Error, Plan, Rlimit, affinity, lsm};
use nix::unistd::Pid;
use oci_spec::runtime::PosixRlimitType;
use proa_sys::errno::Raw;
use proa_sys::security;
use rustix::process::Resource;
use std::io;
use std::path::PathBuf;

/// In the parent, before anything is made: whether the host has what `plan` asks for (AppArmor, SELinux, resctrl).
/// [`tune`] asks again.
pub fn check_host(plan: &Plan) -> Result<(), Error> {
    if let Some(profile) = plan.apparmor_profile.as_ref().filter(|_| !lsm::has_apparmor()) {
        return Err(Error::NoAppArmor {
            profile: profile.clone(),
        });
    }
    if plan.selinux_label.is_some() && !lsm::has_selinux() {
        return Err(Error::NoSelinux);
    }
    if let Some(group) = &plan.rdt {
        Resctrl::find()?.check(group)?;
    }
    Ok(())
}

/// In the parent, once `pid` is in its cgroup and before it may start the guest: what needs the host's privileges even if
/// the container has a user namespace (oom_score_adj, CPU affinity, resctrl group, resource limits). Best called late, when
/// init has reported that it is ready: the limits hold for what remains of set-up, too.
pub fn tune(plan: &Plan, pid: Pid) -> Result<(), Error> {
    tune_but_processes(plan, pid)?;
    of_processes(plan).try_for_each(|limit| set_limit(limit, pid))
}

/// As [`tune`], of a process that is going to make the one that it is for, which inherits all of it. But for RLIMIT_NPROC,
/// within which there might be no room for both: the other one lowers it for itself, by [`limit_processes`], from what it is
/// or, if that is too low, is raised to here.
pub fn tune_but_processes(plan: &Plan, pid: Pid) -> Result<(), Error> {
    check_host(plan)?;
    if let Some(score) = plan.oom_score_adj {
        set_oom_score(score, pid)?;
    }
    set_affinity(plan.affinity.as_ref(), pid)?;
    if let Some(group) = &plan.rdt {
        Resctrl::find()?.join(group, pid)?;
    }
    let others = plan.rlimits.iter();
    others
        .filter(|limit| limit.resource != PosixRlimitType::RlimitNproc)
        .try_for_each(|limit| set_limit(limit, pid))?;
    // The process has this one's, as yet.
    let own = rustix::process::getrlimit(Resource::Nproc);
    let most = own.maximum.unwrap_or(u64::MAX);
    for limit in of_processes(plan).filter(|limit| limit.hard > most) {
        let soft = own.current.unwrap_or(u64::MAX);
        set_limit(&Rlimit { soft, ..*limit }, pid)?;
    }
    Ok(())
}

/// Sets RLIMIT_NPROC of this process, if it is to have one.
pub fn limit_processes(plan: &Plan) -> Result<(), Error> {
    of_processes(plan).try_for_each(|limit| set_limit(limit, Pid::this()))
}

fn of_processes(plan: &Plan) -> impl Iterator<Item = &Rlimit> {
    let limits = plan.rlimits.iter();
    limits.filter(|limit| limit.resource == PosixRlimitType::RlimitNproc)
}

fn set_oom_score(score: i32, pid: Pid) -> Result<(), Error> {
    let path = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
    let Err(source) = std::fs::write(&path, score.to_string()) else {
        return Ok(());
    };
    // Less than its own takes CAP_SYS_RESOURCE; an unprivileged caller may well ask for what is so already.
    let denied = source.kind() == io::ErrorKind::PermissionDenied;
    if denied && std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == score.to_string()) {
        return Ok(());
    }
    Err(Error::File {
        action: format!("write {score} to"),
        path,
        source,
    })
}

/// The process must not inherit its caller's affinity: without one of its own it gets every CPU of its cpuset.
fn set_affinity(wanted: Option<&Affinity>, pid: Pid) -> Result<(), Error> {
    let Some(wanted) = wanted else {
        // Only less than all CPUs is lost if this fails.
        if let Err(errno) = security::sched_reset_affinity(pid.as_raw()) {
            tracing::warn!("resetting the CPU affinity of pid {pid} failed: {errno}");
        }
        return Ok(());
    };
    for (which, cpus) in [("initial", &wanted.initial), ("final", &wanted.last)] {
        if !cpus.is_empty() {
            tracing::debug!("nsexec[{pid}]: affinity: {}", affinity::mask(cpus));
            let call = format!("error setting {which} CPU affinity: sched_setaffinity({pid}, {cpus:?})");
            security::sched_setaffinity(pid.as_raw(), cpus).map_err(Error::call(call))?;
        }
    }
    Ok(())
}

fn set_limit(limit: &Rlimit, pid: Pid) -> Result<(), Error> {
    let finite = |value: u64| (value != u64::MAX).then_some(value);
    let new = rustix::process::Rlimit {
        current: finite(limit.soft),
        maximum: finite(limit.hard),
    };
    match rustix::process::prlimit(
        rustix::process::Pid::from_raw(pid.as_raw()),
        resource(limit.resource),
        new,
    ) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::Call {
            call: format!(
                "error setting rlimits for ready process: error setting rlimit type {}: prlimit({pid}, {}, soft {}, hard {})",
                resource(limit.resource) as u32,
                limit.resource,
                limit.soft,
                limit.hard
            ),
            source: errno.raw(),
        }),
    }
}

fn resource(name: PosixRlimitType) -> Resource {
    match name {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}
