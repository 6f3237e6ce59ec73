//! [`Stats`] from the files of cgroup v1.

use super::file::{Dir, number};
use super::stats::{BlkioEntry, CpuUsage, Hugetlb, MemoryEntry, Pids, Stats, Throttling, flat, huge_page_sizes};
use super::{Cgroup, Error};

/// `cpuacct.stat` counts in USER_HZ, which is 100 on every architecture that Linux runs containers on.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// Reads all controllers that the container has.
pub(super) fn read(cgroup: &Cgroup) -> Result<Stats, Error> {
    let mut stats = Stats::default();
    let dir = |controller: &str| cgroup.node(controller).filter(|path| path.exists()).map(Dir);
    if let Some(dir) = dir("cpuset") {
        cpuset(dir, &mut stats)?;
    }
    if let Some(dir) = dir("memory") {
        memory(dir, &mut stats)?;
    }
    if let Some(dir) = dir("cpu") {
        let text = dir.text_if_any("cpu.stat")?.unwrap_or_default();
        stats.cpu.throttling = Throttling::parse(&text);
    }
    if let Some(dir) = dir("cpuacct") {
        stats.cpu.usage = cpuacct(dir)?;
    }
    if let Some(dir) = dir("pids") {
        stats.pids = Pids::read(dir)?.unwrap_or_default();
    }
    if let Some(dir) = dir("blkio") {
        blkio(dir, &mut stats)?;
    }
    if let Some(dir) = dir("hugetlb") {
        hugetlb(dir, &mut stats)?;
    }
    Ok(stats)
}

fn malformed(dir: Dir<'_>, file: &str, content: &str) -> Error {
    Error::Malformed {
        path: dir.0.join(file),
        content: content.to_owned(),
    }
}

fn cpuset(dir: Dir<'_>, stats: &mut Stats) -> Result<(), Error> {
    let get = |name: &str| {
        dir.number_if_any(&format!("cpuset.{name}"))
            .map(|value| value.unwrap_or(0))
    };
    let list = |name: &str| {
        let file = format!("cpuset.{name}");
        let text = dir.text_if_any(&file)?.unwrap_or_default();
        ranges(&text).ok_or_else(|| malformed(dir, &file, &text))
    };
    let set = &mut stats.cpuset;
    set.cpus = list("cpus")?;
    set.mems = list("mems")?;
    set.cpu_exclusive = get("cpu_exclusive")?;
    set.mem_hardwall = get("mem_hardwall")?;
    set.mem_exclusive = get("mem_exclusive")?;
    set.memory_migrate = get("memory_migrate")?;
    set.memory_spread_page = get("memory_spread_page")?;
    set.memory_spread_slab = get("memory_spread_slab")?;
    set.memory_pressure = get("memory_pressure")?;
    set.sched_load_balance = get("sched_load_balance")?;
    let level = dir.text_if_any("cpuset.sched_relax_domain_level")?.unwrap_or_default();
    set.sched_relax_domain_level = level.parse().unwrap_or(0);
    Ok(())
}

/// `0-2,5` as numbers; nothing is no numbers.
pub(super) fn ranges(text: &str) -> Option<Vec<u16>> {
    let mut all = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (from.parse::<u16>().ok()?, to.parse::<u16>().ok()?);
        if from > to {
            return None;
        }
        all.extend(from..=to);
    }
    Some(all)
}

fn memory(dir: Dir<'_>, stats: &mut Stats) -> Result<(), Error> {
    let Some(text) = dir.text_if_any("memory.stat")? else {
        return Ok(());
    };
    let memory = &mut stats.memory;
    memory.raw = flat(&text);
    memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
    let entry = |prefix: &str| -> Result<MemoryEntry, Error> {
        let get = |name: &str| {
            dir.number_if_any(&format!("{prefix}.{name}"))
                .map(|value| value.unwrap_or(0))
        };
        Ok(MemoryEntry {
            usage: get("usage_in_bytes")?,
            max: get("max_usage_in_bytes")?,
            failcnt: get("failcnt")?,
            limit: get("limit_in_bytes")?,
        })
    };
    memory.usage = entry("memory")?;
    memory.swap = entry("memory.memsw")?;
    memory.kernel = entry("memory.kmem")?;
    memory.kernel_tcp = entry("memory.kmem.tcp")?;
    Ok(())
}

fn cpuacct(dir: Dir<'_>) -> Result<CpuUsage, Error> {
    let text = dir.text("cpuacct.stat")?;
    let ticks = |key| super::file::keyed(&text, key).ok_or_else(|| malformed(dir, "cpuacct.stat", &text));
    let mut usage = CpuUsage {
        total: dir.number("cpuacct.usage")?,
        user: ticks("user")? * NANOSECONDS_PER_TICK,
        kernel: ticks("system")? * NANOSECONDS_PER_TICK,
        percpu: dir
            .text("cpuacct.usage_percpu")?
            .split_ascii_whitespace()
            .filter_map(number)
            .collect(),
        ..CpuUsage::default()
    };
    // "cpu user system", a line for each; Linux 4.7.
    for line in dir
        .text_if_any("cpuacct.usage_all")?
        .unwrap_or_default()
        .lines()
        .skip(1)
    {
        let mut fields = line.split(' ').skip(1).filter_map(number);
        if let (Some(user), Some(kernel)) = (fields.next(), fields.next()) {
            usage.percpu_user.push(user);
            usage.percpu_kernel.push(kernel);
        }
    }
    Ok(usage)
}

fn blkio(dir: Dir<'_>, stats: &mut Stats) -> Result<(), Error> {
    let list = |file: String| -> Result<Option<Vec<BlkioEntry>>, Error> {
        let Some(text) = dir.text_if_any(&file)? else {
            return Ok(None);
        };
        Ok(Some(blkio_entries(&text).ok_or_else(|| malformed(dir, &file, &text))?))
    };
    let io = &mut stats.blkio;
    // The I/O schedulers of three eras, the richest first; a scheduler that isn't there has no files.
    for prefix in ["blkio.bfq.", "blkio."] {
        // A scheduler that has seen no I/O has nothing to say either.
        let Some(sectors) = list(format!("{prefix}sectors_recursive"))?.filter(|list| !list.is_empty()) else {
            continue;
        };
        let get = |name: &str| list(format!("{prefix}{name}")).map(Option::unwrap_or_default);
        io.sectors_recursive = sectors;
        io.io_service_time_recursive = get("io_service_time_recursive")?;
        io.io_wait_time_recursive = get("io_wait_time_recursive")?;
        io.io_merged_recursive = get("io_merged_recursive")?;
        io.io_queued_recursive = get("io_queued_recursive")?;
        io.io_time_recursive = get("time_recursive")?;
        io.io_serviced_recursive = get("io_serviced_recursive")?;
        io.io_service_bytes_recursive = get("io_service_bytes_recursive")?;
        return Ok(());
    }
    let variants = [
        ("blkio.bfq.", "_recursive"),
        ("blkio.throttle.", "_recursive"),
        ("blkio.throttle.", ""),
    ];
    for (prefix, suffix) in variants {
        let Some(serviced) = list(format!("{prefix}io_serviced{suffix}"))? else {
            continue;
        };
        // BFQ without any I/O of its own leaves the figures to the throttling layer.
        if serviced.is_empty() && suffix == "_recursive" {
            continue;
        }
        io.io_serviced_recursive = serviced;
        io.io_service_bytes_recursive = list(format!("{prefix}io_service_bytes{suffix}"))?.unwrap_or_default();
        return Ok(());
    }
    Ok(())
}

/// Lines `MAJOR:MINOR [OPERATION] VALUE`; the total over all devices is left out.
pub(super) fn blkio_entries(text: &str) -> Option<Vec<BlkioEntry>> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split([' ', ':']).filter(|field| !field.is_empty()).collect();
        let (major, minor, op, value) = match fields[..] {
            ["Total", _] => continue,
            [major, minor, value] => (major, minor, "", value),
            [major, minor, op, value] => (major, minor, op, value),
            _ => return None,
        };
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        entries.push(BlkioEntry {
            major,
            minor,
            op: op.to_owned(),
            value: value.parse().ok()?,
        });
    }
    Some(entries)
}

fn hugetlb(dir: Dir<'_>, stats: &mut Stats) -> Result<(), Error> {
    for size in huge_page_sizes() {
        // Reservations (Linux 5.7) are what limits count first.
        let reserved = format!("hugetlb.{size}.rsvd");
        let prefix = if dir.has(&format!("{reserved}.usage_in_bytes")) {
            reserved
        } else {
            format!("hugetlb.{size}")
        };
        let get = |name: &str| {
            dir.number_if_any(&format!("{prefix}.{name}"))
                .map(|value| value.unwrap_or(0))
        };
        let page = Hugetlb {
            usage: get("usage_in_bytes")?,
            max: get("max_usage_in_bytes")?,
            failcnt: get("failcnt")?,
        };
        stats.hugetlb.insert(size, page);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<(u64, String, u64)> {
        let entries = blkio_entries(text).unwrap();
        entries
            .into_iter()
            .map(|entry| (entry.major, entry.op, entry.value))
            .collect()
    }

    #[test]
    fn blkio_lines() {
        let text = "8:0 Read 128\n8:0 Total 200\nTotal 200\n";
        assert_eq!(
            entries(text),
            [(8, "Read".to_owned(), 128), (8, "Total".to_owned(), 200)]
        );
        assert_eq!(entries("8:0 6792\n"), [(8, String::new(), 6792)]);
        assert!(blkio_entries("nonsense\n").is_none());
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(ranges("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(ranges(""), Some(vec![]));
        assert_eq!(ranges("3-1"), None);
        assert_eq!(ranges("x"), None);
    }
}
