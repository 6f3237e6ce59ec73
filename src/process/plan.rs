//! From `process` and `linux` of config.json to a [`Plan`]: pure, no system call.

use super::{Capabilities, Error, Keyring, Options, Plan, affinity, environment, rdt};
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, LinuxSeccomp, MemoryPolicyFlagType, MemoryPolicyModeType, PosixRlimit, PosixRlimitType,
    Process, Spec,
};
use proa_executor::Guest;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `process.user`, ids as seen inside the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// `uid`.
    pub uid: u32,
    /// `gid`.
    pub gid: u32,
    /// `umask`; without it a container has 022 and an `exec` its caller's.
    pub umask: Option<u32>,
    /// `additionalGids`.
    pub groups: Vec<u32>,
    /// Whether it is put up with that `groups` can't be set: the caller is rootless, and as with runc stays in its own.
    pub groups_optional: bool,
}

/// One of `process.rlimits`; `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The resource.
    pub resource: PosixRlimitType,
    /// In the resource's unit (getrlimit(2)).
    pub soft: u64,
    /// In the resource's unit (getrlimit(2)).
    pub hard: u64,
}

/// `process.scheduler`, for sched_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub runtime: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub deadline: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub period: u64,
    /// `linux.resources.cpu.cpus` is set, with which the kernel doesn't take every policy.
    pub has_cpuset: bool,
}

/// `process.execCPUAffinity`: CPU numbers; an empty list where the field is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affinity {
    /// Until the process is in the container's cgroup.
    pub initial: Vec<u32>,
    /// From then on.
    pub last: Vec<u32>,
}

/// `linux.memoryPolicy`, for set_mempolicy(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*` with the `MPOL_F_*` flags.
    pub mode: i32,
    /// NUMA nodes.
    pub nodes: Vec<u32>,
}

/// Resolves `process` (of the container, or of an `exec`), and what `spec.linux` says process-wide, for container `id`.
pub fn plan(process: &Process, spec: &Spec, id: &str, options: Options) -> Result<Plan, Error> {
    let linux = spec.linux().as_ref();
    if let Some(profile) = linux.and_then(|linux| linux.seccomp().as_ref()) {
        check_listener(profile)?;
    }
    let cpuset = linux.and_then(|linux| linux.resources().as_ref()?.cpu().as_ref()?.cpus().as_deref());
    // runc has the container's value for an exec whose process document leaves it out.
    let container_oom = spec.process().as_ref().and_then(Process::oom_score_adj);
    Ok(Plan {
        guest: guest(process, spec)?,
        terminal: process.terminal().unwrap_or(false),
        console_size: process
            .console_size()
            .map(|size| (narrow(size.height()), narrow(size.width()))),
        user: user(process, options)?,
        capabilities: process
            .capabilities()
            .as_ref()
            .map(Capabilities::new)
            .transpose()?
            .unwrap_or_default(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
        oom_score_adj: oom_score_adj(process.oom_score_adj().or(container_oom))?,
        apparmor_profile: text("process.apparmorProfile", process.apparmor_profile())?,
        selinux_label: text("process.selinuxLabel", process.selinux_label())?,
        io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
        scheduler: process
            .scheduler()
            .as_ref()
            .map(|it| scheduler(it, cpuset.is_some_and(|c| !c.is_empty())))
            .transpose()?,
        affinity: if options.exec { exec_affinity(process)? } else { None },
        keyring: (!options.no_new_keyring).then(|| Keyring::new(id, spec, options.exec)),
        personality: linux.and_then(|linux| linux.personality().as_ref()).map(personality),
        memory_policy: linux
            .and_then(|linux| linux.memory_policy().as_ref())
            .map(memory_policy)
            .transpose()?,
        rdt: match linux.and_then(|linux| linux.intel_rdt().as_ref()) {
            Some(group) if options.exec => Some(rdt::Group::of_running(group, id)?),
            Some(group) => Some(rdt::Group::new(group, id)?),
            None => None,
        },
    })
}

fn guest(process: &Process, spec: &Spec) -> Result<Guest, Error> {
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(Error::field("process.args", "args must not be empty"));
    }
    if let Some(index) = args.iter().position(|arg| arg.contains('\0')) {
        return Err(Error::field(
            format!("process.args[{index}]"),
            "contains nul byte (\\x00)",
        ));
    }
    let cwd = process.cwd();
    if cwd.as_os_str().is_empty() {
        return Err(Error::field("process.cwd", "Cwd property must not be empty"));
    }
    if !cwd.is_absolute() {
        return Err(Error::field("process.cwd", "Cwd must be an absolute path"));
    }
    let cwd = cwd.to_str().filter(|cwd| !cwd.contains('\0'));
    let cwd = cwd.ok_or_else(|| Error::field("process.cwd", "contains nul byte (\\x00)"))?;
    let memory = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref()?.memory().as_ref()?.limit());
    Ok(Guest {
        args,
        env: environment::resolve(process.env().as_deref().unwrap_or_default())?,
        cwd: cwd.to_owned(),
        memory_limit: memory
            .and_then(|limit| u64::try_from(limit).ok())
            .filter(|&limit| limit > 0),
        ..Guest::default()
    })
}

/// The terminal's ioctl has 16 bits.
fn narrow(size: u64) -> u16 {
    u16::try_from(size).unwrap_or(u16::MAX)
}

fn user(process: &Process, options: Options) -> Result<User, Error> {
    let user = process.user();
    if options.unprivileged && user.additional_gids().as_ref().is_some_and(|gids| !gids.is_empty()) {
        let problem = "cannot set any additional groups in a rootless container";
        return Err(Error::field("process.user.additionalGids", problem.to_owned()));
    }
    Ok(User {
        uid: user.uid(),
        gid: user.gid(),
        umask: user.umask().or(if options.exec { None } else { Some(0o022) }),
        groups: user.additional_gids().clone().unwrap_or_default(),
        groups_optional: options.unprivileged,
    })
}

/// A string for the kernel; empty is as good as left out.
fn text(field: &str, value: &Option<String>) -> Result<Option<String>, Error> {
    match value.as_deref() {
        None | Some("") => Ok(None),
        Some(value) if value.contains('\0') || value.contains('\n') => {
            Err(Error::field(field, format!("invalid: {value:?}")))
        }
        Some(value) => Ok(Some(value.to_owned())),
    }
}

/// The specification has an error for a resource that is given twice (config.md, "POSIX process").
fn rlimits(limits: &[PosixRlimit]) -> Result<Vec<Rlimit>, Error> {
    let mut resolved: Vec<Rlimit> = Vec::with_capacity(limits.len());
    for (index, limit) in limits.iter().enumerate() {
        let (resource, soft, hard) = (limit.typ(), limit.soft(), limit.hard());
        if resolved.iter().any(|other| other.resource == resource) {
            let problem = format!("rlimit type {resource} is specified more than once");
            return Err(Error::field(format!("process.rlimits[{index}]"), problem));
        }
        if soft > hard {
            let problem = format!("{resource}: soft limit {soft} is larger than hard limit {hard}");
            return Err(Error::field(format!("process.rlimits[{index}]"), problem));
        }
        resolved.push(Rlimit { resource, soft, hard });
    }
    Ok(resolved)
}

fn oom_score_adj(value: Option<i32>) -> Result<Option<i32>, Error> {
    match value {
        Some(value) if !(-1000..=1000).contains(&value) => Err(Error::field(
            "process.oomScoreAdj",
            format!("{value} is not between -1000 and 1000"),
        )),
        value => Ok(value),
    }
}

/// `IOPRIO_PRIO_VALUE` of linux/ioprio.h.
fn io_priority(value: &LinuxIOPriority) -> Result<i32, Error> {
    let class = match value.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match value.priority() {
        priority @ 0..=7 => Ok(class << 13 | priority as i32),
        priority => Err(Error::field(
            "process.ioPriority.priority",
            format!("invalid ioPriority.Priority: {priority}"),
        )),
    }
}

fn scheduler(value: &oci_spec::runtime::Scheduler, has_cpuset: bool) -> Result<Scheduler, Error> {
    use LinuxSchedulerPolicy as Policy;
    let policy = *value.policy();
    let number = match policy {
        Policy::SchedOther => 0,
        Policy::SchedFifo => 1,
        Policy::SchedRr => 2,
        Policy::SchedBatch => 3,
        Policy::SchedIso => 4,
        Policy::SchedIdle => 5,
        Policy::SchedDeadline => 6,
    };
    let nice = value.nice().unwrap_or(0);
    if matches!(policy, Policy::SchedOther | Policy::SchedBatch) && !(-20..=19).contains(&nice) {
        let problem = format!("invalid scheduler.nice: {nice} when scheduler.policy is {policy}");
        return Err(Error::field("process.scheduler.nice", problem));
    }
    let priority = value.priority().unwrap_or(0);
    if priority != 0 && !matches!(policy, Policy::SchedFifo | Policy::SchedRr) {
        let problem = "scheduler.priority can only be specified for SchedFIFO or SchedRR policy";
        return Err(Error::field("process.scheduler.priority", problem));
    }
    let [runtime, deadline, period] = [value.runtime(), value.deadline(), value.period()].map(|it| it.unwrap_or(0));
    if policy != Policy::SchedDeadline && (runtime, deadline, period) != (0, 0, 0) {
        let problem = "scheduler runtime/deadline/period can only be specified for SchedDeadline policy";
        return Err(Error::field("process.scheduler", problem));
    }
    let priority = u32::try_from(priority)
        .map_err(|_| Error::field("process.scheduler.priority", format!("{priority} is negative")))?;
    let flags = value.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    });
    Ok(Scheduler {
        policy: number,
        flags,
        nice,
        priority,
        runtime,
        deadline,
        period,
        has_cpuset,
    })
}

fn exec_affinity(process: &Process) -> Result<Option<Affinity>, Error> {
    let Some(value) = process.exec_cpu_affinity() else {
        return Ok(None);
    };
    let list = |field: &str, list: &Option<String>| {
        affinity::parse_list(list.as_deref().unwrap_or_default())
            .map_err(|problem| Error::field(format!("process.execCPUAffinity.{field}"), problem))
    };
    let it = Affinity {
        initial: list("initial", value.initial())?,
        last: list("final", value.cpu_affinity_final())?,
    };
    Ok((it != Affinity::default()).then_some(it))
}

/// The domains of personality(2). The specification has no flags yet; runc ignores them with a warning.
fn personality(value: &LinuxPersonality) -> i32 {
    if let Some(flags) = value.flags().as_ref().filter(|flags| !flags.is_empty()) {
        tracing::warn!("ignoring unsupported personality flags: {flags:?}");
    }
    match value.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }
}

/// Modes and flags of linux/mempolicy.h.
fn memory_policy(value: &LinuxMemoryPolicy) -> Result<MemoryPolicy, Error> {
    use MemoryPolicyModeType as Mode;
    let nodes = affinity::parse_list(value.nodes().as_deref().unwrap_or_default()).map_err(|problem| {
        let nodes = value.nodes().as_deref().unwrap_or_default();
        Error::field(
            "linux.memoryPolicy.nodes",
            format!("invalid memory policy nodes {nodes:?}: {problem}"),
        )
    })?;
    let mode = match value.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    match value.mode() {
        Mode::MpolDefault | Mode::MpolLocal if !nodes.is_empty() => {
            let problem = format!("memory policy mode requires 0 nodes but got {}", nodes.len());
            return Err(Error::field("linux.memoryPolicy", problem));
        }
        Mode::MpolBind | Mode::MpolInterleave | Mode::MpolPreferredMany | Mode::MpolWeightedInterleave
            if nodes.is_empty() =>
        {
            let problem = "memory policy mode requires at least one node but got 0";
            return Err(Error::field("linux.memoryPolicy", problem));
        }
        _ => {}
    }
    let flags = value.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            }
    });
    Ok(MemoryPolicy {
        mode: mode | flags,
        nodes,
    })
}

/// A notification that nobody can receive would block the process for ever.
fn check_listener(profile: &LinuxSeccomp) -> Result<(), Error> {
    let path = profile.listener_path().as_deref().unwrap_or(Path::new(""));
    if path.as_os_str().is_empty() && proa_seccomp::uses_notify(profile) {
        return Err(Error::field(
            "linux.seccomp.listenerPath",
            "seccomp listenerPath is not set",
        ));
    }
    Ok(())
}
