//! How the kernel schedules the process: scheduling policy, I/O priority, personality, NUMA memory policy.

use super::{Error, Plan, Scheduler};
use nix::errno::Errno;
use nix::sys::personality::{self, Persona};
use proa_sys::security::{self, SchedAttr};

/// Applies what `plan` has of it to the calling process.
pub(super) fn apply(plan: &Plan) -> Result<(), Error> {
    if let Some(scheduler) = &plan.scheduler {
        set_scheduler(scheduler)?;
    }
    if let Some(priority) = plan.io_priority {
        let call = format!("failed to set io priority: ioprio_set(IOPRIO_WHO_PROCESS, 0, {priority:#x})");
        security::ioprio_set(priority).map_err(Error::call(call))?;
    }
    if let Some(domain) = plan.personality {
        let call = format!("personality({domain:#x})");
        personality::set(Persona::from_bits_retain(domain)).map_err(Error::call(call))?;
    }
    if let Some(policy) = &plan.memory_policy {
        let call = format!("set_mempolicy({:#x}, nodes {:?})", policy.mode, policy.nodes);
        security::set_mempolicy(policy.mode, &policy.nodes).map_err(Error::call(call))?;
    }
    Ok(())
}

fn set_scheduler(scheduler: &Scheduler) -> Result<(), Error> {
    let mut attr = SchedAttr::default();
    attr.policy = scheduler.policy;
    attr.flags = scheduler.flags;
    attr.nice = scheduler.nice;
    attr.priority = scheduler.priority;
    attr.runtime = scheduler.runtime;
    attr.deadline = scheduler.deadline;
    attr.period = scheduler.period;
    match security::sched_setattr(&attr) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) if scheduler.has_cpuset => Err(Error::field(
            "process.scheduler",
            "process scheduler can't be used together with AllowedCPUs",
        )),
        Err(source) => {
            let call = format!(
                "error setting scheduler: sched_setattr(0, policy {}, flags {:#x})",
                attr.policy, attr.flags
            );
            Err(Error::Call { call, source })
        }
    }
}
