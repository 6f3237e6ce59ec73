//! The limits on cgroup v1: which file gets what, in which order.

use super::devices::{Emulator, Rule};
use super::file::{self, Dir};
use super::limits::{Limits, THROTTLES};
use super::{Error, Node};
use nix::errno::Errno;
use std::path::Path;

const MEMORY_LIMIT: &str = "memory.limit_in_bytes";
const MEMSW_LIMIT: &str = "memory.memsw.limit_in_bytes";
const NO_DIR: &str = "";

/// Applies every limit but the device rules. `unified` is the cgroup in the v2 hierarchy of a hybrid host.
pub(super) fn apply(nodes: &[Node], unified: Option<&Path>, limits: &Limits) -> Result<(), Error> {
    if !limits.unified.is_empty() {
        return Err(Error::NoUnified);
    }
    // A controller that isn't there gives a directory in which no file exists: what needs it then fails by name.
    let dir = |controller: &str| {
        let node = nodes.iter().find(|node| node.has(controller));
        Dir(node.map_or(Path::new(NO_DIR), |node| node.path.as_path()))
    };
    cpuset(dir("cpuset"), limits)?;
    memory(dir("memory"), limits)?;
    cpu(dir("cpu"), limits)?;
    if let Some(max) = limits.pids_max() {
        dir("pids").set("pids", "linux.resources.pids.limit", "pids.max", max)?;
    }
    blkio(dir("blkio"), limits)?;
    match unified.filter(|_| !nodes.iter().any(|node| node.has("hugetlb")) && !limits.hugepages.is_empty()) {
        Some(unified) => super::v2::hybrid_hugetlb(unified, limits)?,
        None => hugetlb(dir("hugetlb"), ".limit_in_bytes", limits)?,
    }
    if limits.class_id != 0 {
        dir("net_cls").set(
            "net_cls",
            "linux.resources.network.classID",
            "net_cls.classid",
            limits.class_id,
        )?;
    }
    for (name, priority) in &limits.priorities {
        let value = format!("{name} {priority}");
        dir("net_prio").set(
            "net_prio",
            "linux.resources.network.priorities",
            "net_prio.ifpriomap",
            value,
        )?;
    }
    rdma(dir("rdma"), limits)
}

/// The CPUs and memory nodes that are asked for.
fn cpuset(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    if !limits.cpus.is_empty() {
        dir.set("cpuset", "linux.resources.cpu.cpus", "cpuset.cpus", &limits.cpus)?;
    }
    if !limits.mems.is_empty() {
        dir.set("cpuset", "linux.resources.cpu.mems", "cpuset.mems", &limits.mems)?;
    }
    Ok(())
}

/// Gives the cpuset `dir` the CPUs and memory nodes that are asked for, or else those of the one above: a v1 cpuset
/// starts empty and takes no process in that state. `top` is the hierarchy's mount point; `fresh`: `dir` is new.
///
/// What is asked for goes before what is inherited: beside an exclusive sibling the parent's own set would be refused.
pub(super) fn fill_cpuset(dir: &Path, top: &Path, limits: &Limits, fresh: bool) -> Result<(), Error> {
    let Some(above) = dir.parent().filter(|above| dir != top && above.starts_with(top)) else {
        return Ok(());
    };
    for (file, asked) in [("cpuset.cpus", &limits.cpus), ("cpuset.mems", &limits.mems)] {
        let value = inherit(above, top, file)?;
        if asked.is_empty() && (fresh || Dir(dir).text(file)?.is_empty()) {
            put_inherited(dir, file, value)?;
        }
    }
    cpuset(Dir(dir), limits)
}

/// The set in `file` of `dir`, which is filled from above if it is empty.
fn inherit(dir: &Path, top: &Path, file: &str) -> Result<String, Error> {
    let own = Dir(dir).text(file)?;
    match dir
        .parent()
        .filter(|above| own.is_empty() && dir != top && above.starts_with(top))
    {
        Some(above) => put_inherited(dir, file, inherit(above, top, file)?),
        None => Ok(own),
    }
}

fn put_inherited(dir: &Path, file: &str, value: String) -> Result<String, Error> {
    let path = dir.join(file);
    match file::write(&path, &value) {
        Ok(()) => Ok(value),
        Err(errno) => Err(Error::Write {
            field: "linux.resources.cpu (inherited cpuset)",
            path,
            value,
            errno,
        }),
    }
}

fn memory(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    if limits.use_hierarchy {
        let field = "linux.resources.memory.useHierarchy";
        dir.set("memory", field, "memory.use_hierarchy", 1)?;
    }
    memory_and_swap(dir, limits)?;
    if limits.reservation != 0 {
        let field = "linux.resources.memory.reservation";
        dir.set("memory", field, "memory.soft_limit_in_bytes", limits.reservation)?;
    }
    if limits.kernel_tcp != 0 {
        let field = "linux.resources.memory.kernelTCP";
        dir.set("memory", field, "memory.kmem.tcp.limit_in_bytes", limits.kernel_tcp)?;
    }
    if limits.disable_oom_killer {
        dir.set(
            "memory",
            "linux.resources.memory.disableOOMKiller",
            "memory.oom_control",
            1,
        )?;
    }
    match limits.swappiness {
        // runc's callers pass -1 as an unsigned number for "leave it".
        None | Some(u64::MAX) => Ok(()),
        Some(value @ 0..=100) => dir.set(
            "memory",
            "linux.resources.memory.swappiness",
            "memory.swappiness",
            value,
        ),
        Some(value) => Err(Error::Field {
            field: "linux.resources.memory.swappiness".into(),
            problem: format!("invalid memory swappiness value: {value} (valid range is 0-100)"),
        }),
    }
}

/// The kernel demands limit <= memory+swap limit at every moment, so the order depends on where one comes from.
fn memory_and_swap(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    let mut swap = limits.swap;
    if limits.memory == -1 && swap == 0 && dir.has(MEMSW_LIMIT) {
        // Lifting the one means lifting both.
        swap = -1;
    }
    if limits.check_before_update {
        check_usage(dir, limits.memory, limits.swap, "memory.usage_in_bytes")?;
    }
    let swap_first = limits.memory != 0
        && swap != 0
        && (swap == -1
            || dir
                .number_if_any(MEMORY_LIMIT)?
                .is_some_and(|current| current < swap.cast_unsigned()));
    if swap_first {
        set_swap(dir, swap)?;
        return set_memory(dir, limits.memory);
    }
    set_memory(dir, limits.memory)?;
    set_swap(dir, swap)
}

fn set_memory(dir: Dir<'_>, limit: i64) -> Result<(), Error> {
    if limit == 0 {
        return Ok(());
    }
    match dir.set("memory", "linux.resources.memory.limit", MEMORY_LIMIT, limit) {
        Err(Error::Write {
            errno: Errno::EBUSY, ..
        }) => Err(Error::MemoryInUse {
            limit,
            usage: dir.number("memory.usage_in_bytes")?,
            peak: dir.number("memory.max_usage_in_bytes")?,
        }),
        result => result,
    }
}

fn set_swap(dir: Dir<'_>, limit: i64) -> Result<(), Error> {
    if limit == 0 {
        return Ok(());
    }
    dir.set("memory", "linux.resources.memory.swap", MEMSW_LIMIT, limit)
}

/// `checkBeforeUpdate`: refuses limits below what is in use, before the kernel would kill for them.
pub(super) fn check_usage(dir: Dir<'_>, memory: i64, swap: i64, file: &str) -> Result<(), Error> {
    if memory <= 0 && swap <= 0 {
        return Ok(());
    }
    // Best effort by the spec's words: a cgroup without the file has no use to speak of.
    let Some(usage) = dir.number_if_any(file)? else {
        return Ok(());
    };
    for (what, limit) in [("memory+swap", swap), ("memory", memory)] {
        if limit > 0 && limit.cast_unsigned() <= usage {
            return Err(Error::MemoryCheck { what, limit, usage });
        }
    }
    Ok(())
}

fn cpu(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    if limits.shares != 0 {
        dir.set("cpu", "linux.resources.cpu.shares", "cpu.shares", limits.shares)?;
        // The kernel clamps in silence.
        let value = dir.number("cpu.shares")?;
        if value != limits.shares {
            let bound = if limits.shares > value { "maximum" } else { "minimum" };
            return Err(Error::Shares { bound, value });
        }
    }
    let set_period = || dir.set("cpu", "linux.resources.cpu.period", "cpu.cfs_period_us", limits.period);
    let set_burst = |burst: u64| dir.set("cpu", "linux.resources.cpu.burst", "cpu.cfs_burst_us", burst);
    // Old quota with new period (or burst) may be out of bounds where new with new is not: then try again after the quota.
    let later = |error: Error| match error {
        Error::Write {
            errno: Errno::EINVAL, ..
        } if limits.quota != 0 => Ok(true),
        error => Err(error),
    };
    let period_later = if limits.period != 0 {
        set_period().map(|()| false).or_else(later)?
    } else {
        false
    };
    let burst_later = match limits.burst.map(set_burst) {
        // A kernel before 5.14 has no burst; as runc, not an error.
        None | Some(Ok(()) | Err(Error::NoController { .. })) => false,
        Some(Err(error)) => later(error)?,
    };
    if limits.quota != 0 {
        dir.set("cpu", "linux.resources.cpu.quota", "cpu.cfs_quota_us", limits.quota)?;
        if period_later {
            set_period()?;
        }
        if let Some(burst) = limits.burst.filter(|_| burst_later) {
            set_burst(burst)?;
        }
    }
    if let Some(idle) = limits.idle {
        dir.set("cpu", "linux.resources.cpu.idle", "cpu.idle", idle)?;
    }
    realtime(dir, limits)
}

/// The period and the runtime of real-time tasks depend on each other like period and quota.
fn realtime(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    let set_period = || {
        dir.set(
            "cpu",
            "linux.resources.cpu.realtimePeriod",
            "cpu.rt_period_us",
            limits.rt_period,
        )
    };
    let mut period_later = false;
    if limits.rt_period != 0 {
        match set_period() {
            Err(Error::Write {
                errno: Errno::EINVAL, ..
            }) if limits.rt_runtime != 0 => period_later = true,
            result => result?,
        }
    }
    if limits.rt_runtime != 0 {
        dir.set(
            "cpu",
            "linux.resources.cpu.realtimeRuntime",
            "cpu.rt_runtime_us",
            limits.rt_runtime,
        )?;
        if period_later {
            set_period()?;
        }
    }
    Ok(())
}

fn blkio(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    let io = &limits.blkio;
    let weighted = io.weight != 0 || !io.weight_devices.is_empty();
    // CFQ's names; since Linux 5.0 only BFQ has weights, under its own.
    let (weight, weight_device) = if weighted && !dir.has("blkio.weight") {
        ("blkio.bfq.weight", "blkio.bfq.weight_device")
    } else {
        ("blkio.weight", "blkio.weight_device")
    };
    if io.weight != 0 {
        dir.set("blkio", "linux.resources.blockIO.weight", weight, io.weight)?;
    }
    if io.leaf_weight != 0 {
        dir.set(
            "blkio",
            "linux.resources.blockIO.leafWeight",
            "blkio.leaf_weight",
            io.leaf_weight,
        )?;
    }
    let field = "linux.resources.blockIO.weightDevice";
    for device in &io.weight_devices {
        let line = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(value) = device.weight().filter(|weight| *weight != 0) {
            dir.set("blkio", field, weight_device, line(value))?;
        }
        if let Some(value) = device.leaf_weight().filter(|weight| *weight != 0) {
            dir.set("blkio", field, "blkio.leaf_weight_device", line(value))?;
        }
    }
    for ((field, file, _), devices) in THROTTLES.into_iter().zip(&io.throttles) {
        for device in devices {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            dir.set("blkio", field, file, line)?;
        }
    }
    Ok(())
}

/// Limits of huge pages, of pages in use and (Linux 5.7) of reserved ones; the same on v2 with another suffix.
pub(super) fn hugetlb(dir: Dir<'_>, suffix: &str, limits: &Limits) -> Result<(), Error> {
    let field = "linux.resources.hugepageLimits";
    for page in &limits.hugepages {
        let size = page.page_size();
        dir.set("hugetlb", field, &format!("hugetlb.{size}{suffix}"), page.limit())?;
        match dir.set("hugetlb", field, &format!("hugetlb.{size}.rsvd{suffix}"), page.limit()) {
            Ok(()) | Err(Error::NoController { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// RDMA limits, the same on v1 and v2.
pub(super) fn rdma(dir: Dir<'_>, limits: &Limits) -> Result<(), Error> {
    for (device, limit) in &limits.rdma {
        let mut line = device.clone();
        if let Some(handles) = limit.hca_handles() {
            line += &format!(" hca_handle={handles}");
        }
        if let Some(objects) = limit.hca_objects() {
            line += &format!(" hca_object={objects}");
        }
        dir.set("rdma", "linux.resources.rdma", "rdma.max", line)?;
    }
    Ok(())
}

/// Brings the devices controller of `dir` into the state that `rules` describe. `fresh`: nobody wrote to it before.
pub(super) fn devices(dir: &Path, rules: &[Rule], fresh: bool) -> Result<(), Error> {
    let target = Emulator::new(rules)?;
    let list = dir.join("devices.list");
    // A new cgroup has what its parent has. Starting over from "all" is always right then, and costs less than reading.
    let current = if fresh {
        Emulator {
            default_allow: true,
            ..Emulator::default()
        }
    } else {
        let text = Dir(dir).text("devices.list")?;
        Emulator::parse(&text).ok_or_else(|| Error::Malformed {
            path: list.clone(),
            content: text,
        })?
    };
    let open = |file: &str| {
        let path = dir.join(file);
        file::open_for_write(&path)
            .map(|fd| (fd, path.clone()))
            .map_err(|errno| Error::Call {
                call: "open",
                path,
                errno,
            })
    };
    let mut steps = current.transition(&target);
    // devices.list is then in config.json's order ("The runtime MUST apply entries in the listed order"): the default first,
    // and what no rule names, which can only be taken back.
    steps.sort_by_key(|step| {
        let listed = rules.iter().position(|rule| rule.device == step.device);
        (step.device.is_some(), listed)
    });
    let (allow, deny) = (open("devices.allow")?, open("devices.deny")?);
    for rule in steps {
        let (fd, path) = if rule.allow { &allow } else { &deny };
        let value = rule.to_string();
        file::write_fd(fd, &value).map_err(|errno| {
            let (field, path) = ("linux.resources.devices", path.clone());
            Error::Write {
                field,
                path,
                value,
                errno,
            }
        })?;
    }
    if fresh {
        return Ok(());
    }
    // On a cgroup that others may have written to, what counts is what the kernel now shows.
    let text = Dir(dir).text("devices.list")?;
    let reached = Emulator::parse(&text);
    let exact = reached.as_ref() == Some(&target);
    if exact || reached.is_some_and(|state| state.default_allow && target.default_allow) {
        return Ok(());
    }
    Err(Error::Malformed {
        path: list,
        content: text,
    })
}
