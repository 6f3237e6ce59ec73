//! The limits on cgroup v2: which file gets what, in which order; and enabling controllers on the way down.

use super::devices::{Emulator, Rule};
use super::file::{self, Dir};
use super::limits::{Limits, THROTTLES, blkio_to_io_weight};
use super::v1::{check_usage, hugetlb, rdma};
use super::{Error, filter};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use proa_sys::bpf;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

#[cfg(test)]
mod tests;

/// Applies every limit but the device rules. runc's order: first what is least likely to fail for lack of a controller.
pub(super) fn apply(path: &Path, limits: &Limits) -> Result<(), Error> {
    let dir = Dir(path);
    if let Some(max) = limits.pids_max() {
        dir.set("pids", "linux.resources.pids.limit", "pids.max", max)?;
    }
    memory(dir, limits)?;
    io(dir, limits)?;
    cpu(dir, limits)?;
    if !limits.cpus.is_empty() {
        dir.set("cpuset", "linux.resources.cpu.cpus", "cpuset.cpus", &limits.cpus)?;
    }
    if !limits.mems.is_empty() {
        dir.set("cpuset", "linux.resources.cpu.mems", "cpuset.mems", &limits.mems)?;
    }
    hugetlb(dir, ".max", limits)?;
    rdma(dir, limits)?;
    unified(dir, limits)
}

fn memory(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    if !limits.memory_is_set() {
        return Ok(());
    }
    if limits.check_before_update {
        check_usage(dir, limits.memory, limits.swap, "memory.current")?;
    }
    let text = |value: i64| {
        if value == -1 {
            "max".to_owned()
        } else {
            value.to_string()
        }
    };
    // Swap before memory: shrinking memory first could push out to swap what is no longer allowed there.
    if let Some(swap) = limits.swap_max()? {
        match dir.set("memory", "linux.resources.memory.swap", "memory.swap.max", text(swap)) {
            // No swap accounting: "as much as you like" and "none" are then true already.
            Err(Error::NoController { .. }) if swap <= 0 && dir.has("memory.max") => {}
            result => result?,
        }
    }
    if limits.memory != 0 {
        dir.set(
            "memory",
            "linux.resources.memory.limit",
            "memory.max",
            text(limits.memory),
        )?;
    }
    if limits.reservation != 0 {
        dir.set(
            "memory",
            "linux.resources.memory.reservation",
            "memory.low",
            text(limits.reservation),
        )?;
    }
    Ok(())
}

fn io(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    let io = &limits.blkio;
    let bfq = (io.weight != 0 || !io.weight_devices.is_empty())
        .then(|| dir.text_if_any("io.bfq.weight"))
        .transpose()?
        .flatten();
    if io.weight != 0 {
        let field = "linux.resources.blockIO.weight";
        match bfq {
            Some(_) => dir.set("io", field, "io.bfq.weight", io.weight)?,
            None => dir.set("io", field, "io.weight", blkio_to_io_weight(io.weight))?,
        }
    }
    // Before Linux 5.4 BFQ has one weight for all devices, and shows it as a bare number.
    if bfq.is_some_and(|text| text.parse::<u64>().is_err()) {
        for device in &io.weight_devices {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.weight().unwrap_or(0));
            dir.set("io", "linux.resources.blockIO.weightDevice", "io.bfq.weight", line)?;
        }
    }
    for ((field, _, key), devices) in THROTTLES.into_iter().zip(&io.throttles) {
        for device in devices {
            let rate = if device.rate() == 0 {
                "max".to_owned()
            } else {
                device.rate().to_string()
            };
            dir.set(
                "io",
                field,
                "io.max",
                format!("{}:{} {key}={rate}", device.major(), device.minor()),
            )?;
        }
    }
    Ok(())
}

fn cpu(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    if let Some(idle) = limits.idle {
        dir.set("cpu", "linux.resources.cpu.idle", "cpu.idle", idle)?;
    }
    if limits.weight() != 0 {
        dir.set("cpu", "linux.resources.cpu.shares", "cpu.weight", limits.weight())?;
    }
    let set_burst = |burst: u64| dir.set("cpu", "linux.resources.cpu.burst", "cpu.max.burst", burst);
    let mut burst_later = false;
    if let Some(burst) = limits.burst {
        match set_burst(burst) {
            // More than the old quota allows; the new one may allow it.
            Err(Error::Write {
                errno: Errno::EINVAL, ..
            }) if limits.quota != 0 => burst_later = true,
            result => result?,
        }
    }
    if limits.quota != 0 || limits.period != 0 {
        let quota = if limits.quota > 0 {
            limits.quota.to_string()
        } else {
            "max".to_owned()
        };
        let period = if limits.period == 0 {
            DEFAULT_PERIOD
        } else {
            limits.period
        };
        let field = if limits.quota != 0 {
            "linux.resources.cpu.quota"
        } else {
            "linux.resources.cpu.period"
        };
        dir.set("cpu", field, "cpu.max", format!("{quota} {period}"))?;
        if let Some(burst) = limits.burst.filter(|_| burst_later) {
            set_burst(burst)?;
        }
    }
    Ok(())
}

/// The kernel's default for `cpu.max`'s period, in microseconds (Documentation/admin-guide/cgroup-v2.rst).
pub(super) const DEFAULT_PERIOD: u64 = 100_000;

/// Fills in what `update` was not told but v2's files need to know together: quota with period, swap with memory.
pub(super) fn complete(path: &Path, limits: &mut Limits) -> Result<(), Error> {
    let dir = Dir(path);
    if (limits.quota == 0) != (limits.period == 0)
        && let Some(text) = dir.text_if_any("cpu.max")?
        && let Some((quota, period)) = text.split_once(' ')
    {
        if limits.quota == 0 {
            limits.quota = quota.parse().unwrap_or(-1);
        } else {
            limits.period = period.parse().unwrap_or(DEFAULT_PERIOD);
        }
    }
    let number = |file| {
        dir.number_if_any(file)
            .map(|value| value.and_then(|value| i64::try_from(value).ok()))
    };
    if limits.swap != 0 && limits.memory == 0 {
        // Unlimited (or unknown) memory is -1 to `swap_max`, if the controller is there.
        limits.memory = number("memory.max")?.unwrap_or(if dir.has("memory.max") { -1 } else { 0 });
    } else if limits.memory > 0
        && limits.swap == 0
        && let (Some(memory), Some(swap)) = (number("memory.max")?, number("memory.swap.max")?)
    {
        // config.json's figure was memory and swap together, and stays that.
        limits.swap = memory + swap;
    }
    Ok(())
}

fn unified(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    for (key, value) in &limits.unified {
        let field = || format!("linux.resources.unified[{key:?}]");
        if key.contains('/') {
            let problem = format!("unified resource {key:?} must be a file name (no slashes)");
            return Err(Error::Field {
                field: field(),
                problem,
            });
        }
        let path = dir.0.join(key);
        // Some files (io.max, rdma.max) take one line a write.
        for line in value.lines().filter(|line| !line.trim().is_empty()) {
            let Err(errno) = file::write(&path, line) else { continue };
            let Some((controller, _)) = key.split_once('.') else {
                let problem = format!("unified resource {key:?} must be in the form CONTROLLER.PARAMETER");
                return Err(Error::Field {
                    field: field(),
                    problem,
                });
            };
            let known = dir.text_if_any("cgroup.controllers")?.unwrap_or_default();
            let missing = controller != "cgroup" && !known.split(' ').any(|name| name == controller);
            if missing && matches!(errno, Errno::ENOENT | Errno::EPERM | Errno::EACCES) {
                return Err(Error::UnifiedController {
                    key: key.clone(),
                    controller: controller.to_owned(),
                });
            }
            return Err(Error::UnifiedWrite {
                key: key.clone(),
                path,
                value: line.to_owned(),
                errno,
            });
        }
    }
    Ok(())
}

/// Enables all controllers of the hierarchy mounted at `top` in the cgroups from there down to `leaf`'s parent.
///
/// What can't be enabled (no permission, processes in between) is no error here: a limit that needs it fails by name.
pub(super) fn enable_controllers(top: &Path, leaf: &Path) -> Result<(), Error> {
    let wanted = Dir(top).text("cgroup.controllers")?;
    let missing = |dir: &Path| -> Result<Vec<String>, Error> {
        let have = Dir(dir).text("cgroup.controllers")?;
        let lacking = wanted
            .split(' ')
            .filter(|name| !name.is_empty() && !have.split(' ').any(|has| has == *name));
        Ok(lacking.map(str::to_owned).collect())
    };
    if wanted.is_empty() || missing(leaf)?.is_empty() {
        return Ok(());
    }
    let Ok(below) = leaf.strip_prefix(top) else {
        return Ok(());
    };
    let mut parent = top.to_owned();
    for part in below {
        let child = parent.join(part);
        let lacking = missing(&child)?;
        let file = parent.join("cgroup.subtree_control");
        let all: Vec<String> = lacking.iter().map(|name| format!("+{name}")).collect();
        // All or nothing is the kernel's way, so one that can't be had must not cost the others.
        if !all.is_empty() && file::write(&file, &all.join(" ")).is_err() && all.len() > 1 {
            for one in &all {
                if let Err(errno) = file::write(&file, one) {
                    tracing::debug!("{one} > {}: {errno}", file.display());
                }
            }
        }
        parent = child;
    }
    Ok(())
}

/// Makes `leaf` usable if its parent made it a threaded or an invalid cgroup (cgroups(7), "Thread mode").
pub(super) fn check_type(leaf: &Path, limits: &Limits) -> Result<(), Error> {
    let kind = Dir(leaf).text_if_any("cgroup.type")?.unwrap_or_default();
    match kind.as_str() {
        "domain invalid" | "threaded" | "domain threaded" if limits.needs_domain() => {
            let kind = if kind == "domain invalid" {
                "an invalid state".to_owned()
            } else {
                format!("{kind} mode")
            };
            Err(Error::Threaded {
                path: leaf.to_owned(),
                kind,
            })
        }
        "domain invalid" => {
            let path = leaf.join("cgroup.type");
            file::write(&path, "threaded").map_err(|errno| {
                let (field, value) = ("linux.cgroupsPath", "threaded".to_owned());
                Error::Write {
                    field,
                    path,
                    value,
                    errno,
                }
            })
        }
        _ => Ok(()),
    }
}

/// Huge page limits on a hybrid host whose hugetlb controller is in the v2 hierarchy.
pub(super) fn hybrid_hugetlb(unified: &Path, limits: &Limits) -> Result<(), Error> {
    enable_hugetlb(unified)?;
    hugetlb(Dir(unified), ".max", limits)
}

/// Gives `cgroup` the controller, from the lowest cgroup above it that has it on down.
fn enable_hugetlb(cgroup: &Path) -> Result<(), Error> {
    let has = Dir(cgroup).text("cgroup.controllers")?;
    let above = cgroup.parent().filter(|above| Dir(above).has("cgroup.controllers"));
    // Not even the hierarchy's root has it: then the limit's file is what is missed, by name.
    let Some(above) = above.filter(|_| !has.split(' ').any(|name| name == "hugetlb")) else {
        return Ok(());
    };
    enable_hugetlb(above)?;
    let path = above.join("cgroup.subtree_control");
    file::write(&path, "+hugetlb").map_err(|errno| {
        let (field, value) = ("linux.resources.hugepageLimits", "+hugetlb".to_owned());
        Error::Write {
            field,
            path,
            value,
            errno,
        }
    })
}

/// Loads the device rules as a program and attaches it. `fresh`: the cgroup is new and has none yet.
pub(super) fn devices(path: &Path, rules: &[Rule], fresh: bool, rootless: bool) -> Result<(), Error> {
    let wanted = Emulator::new(rules)?;
    match attach(path, &filter::program(&wanted), fresh) {
        // Without the right to use bpf(2) (a user namespace) the kernel already keeps device nodes out of reach; if all is
        // allowed, nothing is lost. Anything else must not be dropped: rules that only allow deny what they don't name.
        Err(Error::Bpf {
            errno: Errno::EPERM, ..
        }) if rootless || wanted.allows_all() => Ok(()),
        result => result,
    }
}

fn attach(path: &Path, program: &[bpf::Insn], fresh: bool) -> Result<(), Error> {
    let failed = |call: &'static str| {
        move |errno: Errno| Error::Bpf {
            call,
            path: path.to_owned(),
            errno,
        }
    };
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let cgroup = open(path, flags, Mode::empty()).map_err(failed("open"))?;
    let program = load(program).map_err(failed("PROG_LOAD"))?;
    let old: Vec<OwnedFd> = if fresh {
        Vec::new()
    } else {
        let ids = bpf::device_programs(cgroup.as_fd()).map_err(failed("PROG_QUERY"))?;
        ids.into_iter()
            .map(bpf::program_by_id)
            .collect::<Result<_, _>>()
            .map_err(failed("PROG_GET_FD_BY_ID"))?
    };
    if let [only] = &old[..]
        && bpf::attach_device_program(cgroup.as_fd(), program.as_fd(), Some(only.as_fd())).is_ok()
    {
        return Ok(());
    }
    // Before Linux 5.6 there is no replacing, and never of several. New before old: no moment is without a filter.
    bpf::attach_device_program(cgroup.as_fd(), program.as_fd(), None).map_err(failed("PROG_ATTACH"))?;
    for program in &old {
        bpf::detach_device_program(cgroup.as_fd(), program.as_fd()).map_err(failed("PROG_DETACH"))?;
    }
    Ok(())
}

/// Loads a program; before Linux 5.11 its pages count against `RLIMIT_MEMLOCK`, which is then lifted for the moment.
fn load(program: &[bpf::Insn]) -> Result<OwnedFd, Errno> {
    match bpf::load_device_program(program) {
        Err(Errno::EPERM) => {}
        result => return result,
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).map_err(|_| Errno::EPERM)?;
    let loaded = bpf::load_device_program(program);
    // The container inherits this limit, so failing to put it back is a failure.
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
    loaded
}
