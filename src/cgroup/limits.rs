//! `linux.resources` as the drivers use it: one value a knob, in the kernel's terms.

use super::Error;
use super::devices::Rule;
use oci_spec::runtime::{LinuxHugepageLimit, LinuxRdma, LinuxResources, LinuxThrottleDevice, LinuxWeightDevice};
use std::collections::BTreeMap;

/// The limits asked for. As in runc 0 means "not asked for" where the type has no better way.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    /// Bytes; -1 is no limit.
    pub memory: i64,
    /// Bytes; the soft limit of v1, `memory.low` of v2.
    pub reservation: i64,
    /// Bytes of memory and swap together; -1 is no limit.
    pub swap: i64,
    pub kernel_tcp: i64,
    pub swappiness: Option<u64>,
    pub disable_oom_killer: bool,
    pub use_hierarchy: bool,
    pub check_before_update: bool,
    /// v1's scale, 2 to 262144.
    pub shares: u64,
    /// Microseconds a period; negative is no limit.
    pub quota: i64,
    /// Microseconds.
    pub period: u64,
    /// Microseconds.
    pub burst: Option<u64>,
    pub rt_runtime: i64,
    pub rt_period: u64,
    pub cpus: String,
    pub mems: String,
    pub idle: Option<i64>,
    pub pids: Option<i64>,
    pub blkio: BlockIo,
    pub hugepages: Vec<LinuxHugepageLimit>,
    pub rdma: BTreeMap<String, LinuxRdma>,
    pub class_id: u32,
    pub priorities: Vec<(String, u32)>,
    pub unified: BTreeMap<String, String>,
}

/// The block I/O part of [`Limits`].
#[derive(Clone, Debug, Default)]
pub(super) struct BlockIo {
    /// 10 to 1000.
    pub weight: u16,
    pub leaf_weight: u16,
    pub weight_devices: Vec<LinuxWeightDevice>,
    /// In the order of [`THROTTLES`].
    pub throttles: [Vec<LinuxThrottleDevice>; 4],
}

/// A throttle: the field of config.json, v1's file, the key in v2's `io.max`.
pub(super) const THROTTLES: [(&str, &str, &str); 4] = [
    (
        "linux.resources.blockIO.throttleReadBpsDevice",
        "blkio.throttle.read_bps_device",
        "rbps",
    ),
    (
        "linux.resources.blockIO.throttleWriteBpsDevice",
        "blkio.throttle.write_bps_device",
        "wbps",
    ),
    (
        "linux.resources.blockIO.throttleReadIOPSDevice",
        "blkio.throttle.read_iops_device",
        "riops",
    ),
    (
        "linux.resources.blockIO.throttleWriteIOPSDevice",
        "blkio.throttle.write_iops_device",
        "wiops",
    ),
];

impl Limits {
    /// Takes the limits (not the device rules) from config.json or from `update`.
    pub fn new(resources: &LinuxResources) -> Self {
        let mut limits = Self::default();
        if let Some(memory) = resources.memory() {
            limits.memory = memory.limit().unwrap_or(0);
            limits.reservation = memory.reservation().unwrap_or(0);
            limits.swap = memory.swap().unwrap_or(0);
            limits.kernel_tcp = memory.kernel_tcp().unwrap_or(0);
            limits.swappiness = memory.swappiness();
            limits.disable_oom_killer = memory.disable_oom_killer().unwrap_or(false);
            limits.use_hierarchy = memory.use_hierarchy().unwrap_or(false);
            limits.check_before_update = memory.check_before_update().unwrap_or(false);
            if memory.kernel().is_some() {
                tracing::warn!("Kernel memory settings are ignored and will be removed");
            }
        }
        if let Some(cpu) = resources.cpu() {
            limits.shares = cpu.shares().unwrap_or(0);
            limits.quota = cpu.quota().unwrap_or(0);
            limits.period = cpu.period().unwrap_or(0);
            limits.burst = cpu.burst();
            limits.rt_runtime = cpu.realtime_runtime().unwrap_or(0);
            limits.rt_period = cpu.realtime_period().unwrap_or(0);
            limits.cpus = cpu.cpus().clone().unwrap_or_default();
            limits.mems = cpu.mems().clone().unwrap_or_default();
            limits.idle = cpu.idle();
        }
        limits.pids = resources.pids().as_ref().map(|pids| pids.limit());
        if let Some(io) = resources.block_io() {
            limits.blkio.weight = io.weight().unwrap_or(0);
            limits.blkio.leaf_weight = io.leaf_weight().unwrap_or(0);
            limits.blkio.weight_devices = io.weight_device().clone().unwrap_or_default();
            limits.blkio.throttles = [
                io.throttle_read_bps_device().clone().unwrap_or_default(),
                io.throttle_write_bps_device().clone().unwrap_or_default(),
                io.throttle_read_iops_device().clone().unwrap_or_default(),
                io.throttle_write_iops_device().clone().unwrap_or_default(),
            ];
        }
        limits.hugepages = resources.hugepage_limits().clone().unwrap_or_default();
        limits.rdma = resources
            .rdma()
            .iter()
            .flatten()
            .map(|(name, limit)| (name.clone(), *limit))
            .collect();
        if let Some(network) = resources.network() {
            limits.class_id = network.class_id().unwrap_or(0);
            let priorities = network.priorities().iter().flatten();
            limits.priorities = priorities
                .map(|entry| (entry.name().clone(), entry.priority()))
                .collect();
        }
        limits.unified = resources
            .unified()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        limits
    }

    /// Whether a controller of v2 is needed, the `unified` map aside.
    pub fn is_set(&self) -> bool {
        self.needs_domain() || self.pids.is_some() || !self.cpus.is_empty() || !self.mems.is_empty()
    }

    /// Whether a controller that works only in domain cgroups of v2 is needed (cgroups(7), "Thread mode").
    pub fn needs_domain(&self) -> bool {
        self.memory_is_set() || self.io_is_set() || self.cpu_is_set() || !self.hugepages.is_empty()
    }

    pub fn memory_is_set(&self) -> bool {
        self.memory != 0 || self.reservation != 0 || self.swap != 0
    }

    pub fn cpu_is_set(&self) -> bool {
        self.shares != 0 || self.quota != 0 || self.period != 0 || self.idle.is_some() || self.burst.is_some()
    }

    pub fn io_is_set(&self) -> bool {
        let io = &self.blkio;
        io.weight != 0 || !io.weight_devices.is_empty() || io.throttles.iter().any(|list| !list.is_empty())
    }

    /// The value for `pids.max`. systemd has no 0, and a cgroup with one allowed task behaves the same: nothing forks.
    pub fn pids_max(&self) -> Option<String> {
        self.pids.map(|limit| match limit {
            i64::MIN..=-1 => "max".to_owned(),
            limit => limit.max(1).to_string(),
        })
    }

    /// `cpu.weight` of v2 for v1's `shares`; 0 if none are asked for.
    pub fn weight(&self) -> u64 {
        shares_to_weight(self.shares)
    }

    /// `memory.swap.max` of v2, which counts swap alone. `None`: leave it.
    pub fn swap_max(&self) -> Result<Option<i64>, Error> {
        let problem = |problem: &str| {
            Err(Error::Field {
                field: "linux.resources.memory.swap".into(),
                problem: problem.to_owned(),
            })
        };
        match (self.memory, self.swap) {
            // v1's habit: who lifts the memory limit means memory and swap.
            (-1, 0) => Ok(Some(-1)),
            (_, 0) => Ok(None),
            (_, -1) => Ok(Some(-1)),
            (-1, swap) => Ok(Some(swap)),
            (0, _) => problem("unable to set swap limit without memory limit"),
            (memory, _) if memory < 0 => {
                let problem = format!("invalid memory value: {memory}");
                Err(Error::Field {
                    field: "linux.resources.memory.limit".into(),
                    problem,
                })
            }
            (memory, swap) if swap < memory => problem("memory+swap limit should be >= memory limit"),
            (memory, swap) => Ok(Some(swap - memory)),
        }
    }
}

/// v1's `cpu.shares` on v2's scale. A quadratic through the minima, the defaults (1024 is 100) and the maxima of the
/// two scales, as runc, crun and Kubernetes compute it since 2025.
pub(super) fn shares_to_weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

/// v1's `blkio.weight` (10 to 1000) on the scale of v2's `io.weight` (1 to 10000), linearly.
pub(super) fn blkio_to_io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

/// The device rules: config.json's, then the ones every container gets.
pub(super) fn rules(resources: Option<&LinuxResources>, default: Vec<Rule>) -> Result<Vec<Rule>, Error> {
    let mut rules = Vec::new();
    for (index, device) in resources
        .and_then(|it| it.devices().as_ref())
        .into_iter()
        .flatten()
        .enumerate()
    {
        rules.push(Rule::from_spec(index, device)?);
    }
    rules.extend(default);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(memory: i64, swap: i64) -> Limits {
        Limits {
            memory,
            swap,
            ..Limits::default()
        }
    }

    #[test]
    fn weights() {
        assert_eq!(
            [0, 1, 2, 1024, 262_144, 1 << 40].map(shares_to_weight),
            [0, 1, 1, 100, 10_000, 10_000]
        );
        assert_eq!([10, 500, 1000].map(blkio_to_io_weight), [1, 4950, 10_000]);
    }

    #[test]
    fn swap_is_counted_without_memory_on_v2() {
        assert_eq!(limits(100, 0).swap_max().unwrap(), None);
        assert_eq!(limits(100, 300).swap_max().unwrap(), Some(200));
        assert_eq!(limits(100, 100).swap_max().unwrap(), Some(0));
        assert_eq!(limits(100, -1).swap_max().unwrap(), Some(-1));
        assert_eq!(limits(-1, 0).swap_max().unwrap(), Some(-1));
        assert_eq!(limits(-1, 300).swap_max().unwrap(), Some(300));
        assert!(limits(0, 300).swap_max().is_err());
        assert!(limits(300, 100).swap_max().is_err());
        assert!(limits(-2, 100).swap_max().is_err());
    }

    #[test]
    fn pids() {
        let max = |limit| {
            Limits {
                pids: Some(limit),
                ..Limits::default()
            }
            .pids_max()
            .unwrap()
        };
        assert_eq!([max(-1), max(0), max(7)], ["max", "1", "7"]);
        assert_eq!(Limits::default().pids_max(), None);
    }
}
