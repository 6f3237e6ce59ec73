//! [`Stats`] from the files of cgroup v2, in v1's terms, as callers of runc expect.

use super::Error;
use super::file::{Dir, keyed};
use super::stats::{BlkioEntry, Hugetlb, MemoryEntry, Pids, Psi, PsiData, Stats, Throttling, flat, huge_page_sizes};
use std::path::Path;

/// Reads all controllers that the container has.
pub(super) fn read(path: &Path) -> Result<Stats, Error> {
    let dir = Dir(path);
    let mut stats = Stats::default();
    pids(dir, &mut stats)?;
    memory(dir, &mut stats)?;
    io(dir, &mut stats)?;
    cpu(dir, &mut stats)?;
    hugetlb(dir, &mut stats)?;
    stats.memory.psi = pressure(dir, "memory.pressure")?;
    stats.blkio.psi = pressure(dir, "io.pressure")?;
    stats.cpu.psi = pressure(dir, "cpu.pressure")?;
    Ok(stats)
}

fn pids(dir: Dir<'_>, stats: &mut Stats) -> Result<(), Error> {
    if let Some(pids) = Pids::read(dir)? {
        stats.pids = pids;
        return Ok(());
    }
    // Without the controller processes are counted, not tasks.
    let procs = match dir.text_if_any("cgroup.procs")? {
        Some(procs) => procs,
        None => dir.text_if_any("cgroup.threads")?.unwrap_or_default(),
    };
    stats.pids.current = procs.lines().count() as u64;
    Ok(())
}

fn memory(dir: Dir<'_>, stats: &mut Stats) -> Result<(), Error> {
    let Some(text) = dir.text_if_any("memory.stat")? else {
        return Ok(());
    };
    let memory = &mut stats.memory;
    memory.raw = flat(&text);
    memory.cache = memory.raw.get("file").copied().unwrap_or(0);
    let entry = |prefix: &str| -> Result<Option<MemoryEntry>, Error> {
        let get = |name: &str| dir.number_if_any(&format!("{prefix}.{name}"));
        let Some(usage) = get("current")? else { return Ok(None) };
        // The peaks are of Linux 5.19 and 6.5.
        let (limit, max) = (get("max")?.unwrap_or(0), get("peak")?.unwrap_or(0));
        Ok(Some(MemoryEntry {
            limit,
            usage,
            max,
            failcnt: 0,
        }))
    };
    memory.usage = entry("memory")?.unwrap_or_default();
    let swap = entry("memory.swap")?.unwrap_or_default();
    // v1 counts memory and swap together; peaks can't be added.
    memory.swap = MemoryEntry {
        usage: swap.usage + memory.usage.usage,
        limit: swap
            .limit
            .saturating_add(if swap.limit == u64::MAX { 0 } else { memory.usage.limit }),
        max: 0,
        failcnt: 0,
    };
    Ok(())
}

fn cpu(dir: Dir<'_>, stats: &mut Stats) -> Result<(), Error> {
    let Some(text) = dir.text_if_any("cpu.stat")? else {
        return Ok(());
    };
    let get = |key| keyed(&text, key).unwrap_or(0);
    let usage = &mut stats.cpu.usage;
    usage.total = get("usage_usec") * 1000;
    usage.user = get("user_usec") * 1000;
    usage.kernel = get("system_usec") * 1000;
    stats.cpu.throttling = Throttling::parse(&text);
    Ok(())
}

fn io(dir: Dir<'_>, stats: &mut Stats) -> Result<(), Error> {
    for line in dir.text_if_any("io.stat")?.unwrap_or_default().lines() {
        io_line(line, stats);
    }
    Ok(())
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`
pub(super) fn io_line(line: &str, stats: &mut Stats) -> Option<()> {
    let (device, figures) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    for figure in figures.split(' ') {
        let Some((key, value)) = figure.split_once('=') else {
            continue;
        };
        let (list, op) = match key {
            "rbytes" => (&mut stats.blkio.io_service_bytes_recursive, "Read"),
            "wbytes" => (&mut stats.blkio.io_service_bytes_recursive, "Write"),
            "rios" => (&mut stats.blkio.io_serviced_recursive, "Read"),
            "wios" => (&mut stats.blkio.io_serviced_recursive, "Write"),
            _ => continue,
        };
        list.push(BlkioEntry {
            major,
            minor,
            op: op.to_owned(),
            value: value.parse().ok()?,
        });
    }
    Some(())
}

fn hugetlb(dir: Dir<'_>, stats: &mut Stats) -> Result<(), Error> {
    for size in huge_page_sizes() {
        // Reservations are of Linux 5.7.
        let reserved = dir.number_if_any(&format!("hugetlb.{size}.rsvd.current"))?;
        let usage = match reserved {
            Some(usage) => usage,
            None => match dir.number_if_any(&format!("hugetlb.{size}.current"))? {
                Some(usage) => usage,
                None => return Ok(()),
            },
        };
        let events = dir.text_if_any(&format!("hugetlb.{size}.events"))?.unwrap_or_default();
        stats.hugetlb.insert(
            size,
            Hugetlb {
                usage,
                max: 0,
                failcnt: keyed(&events, "max").unwrap_or(0),
            },
        );
    }
    Ok(())
}

/// `None` where the kernel has no PSI, or it is switched off for the cgroup.
fn pressure(dir: Dir<'_>, file: &str) -> Result<Option<Psi>, Error> {
    let Some(text) = dir.text_if_any(file)? else {
        return Ok(None);
    };
    parse_pressure(&text).map(Some).ok_or_else(|| Error::Malformed {
        path: dir.0.join(file),
        content: text,
    })
}

pub(super) fn parse_pressure(text: &str) -> Option<Psi> {
    let mut psi = Psi::default();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let data = match fields.next()? {
            "some" => &mut psi.some,
            "full" => &mut psi.full,
            _ => continue,
        };
        *data = PsiData::default();
        for field in fields {
            match field.split_once('=')? {
                ("avg10", value) => data.avg10 = value.parse().ok()?,
                ("avg60", value) => data.avg60 = value.parse().ok()?,
                ("avg300", value) => data.avg300 = value.parse().ok()?,
                ("total", value) => data.total = value.parse().ok()?,
                _ => {}
            }
        }
    }
    Some(psi)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_lines() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.25 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let psi = parse_pressure(text).unwrap();
        assert_eq!(
            (psi.some.avg10, psi.some.avg300, psi.some.total, psi.full.total),
            (1.5, 0.25, 12, 7)
        );
        assert!(parse_pressure("some avg10=x\n").is_none());
    }

    #[test]
    fn io_lines() {
        let mut stats = Stats::default();
        io_line("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0", &mut stats);
        io_line("nonsense", &mut stats);
        let bytes = &stats.blkio.io_service_bytes_recursive;
        assert_eq!(
            (bytes.len(), bytes[1].op.as_str(), bytes[1].value, bytes[0].minor),
            (2, "Write", 2, 16)
        );
        assert_eq!(stats.blkio.io_serviced_recursive[0].value, 3);
    }
}
