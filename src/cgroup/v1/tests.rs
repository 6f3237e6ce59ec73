//! The limits on files that take everything, for what few kernels still have.

use super::*;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// A directory of plain files that is every controller's.
struct Fake(PathBuf);

impl Fake {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let dir = std::env::temp_dir().join(format!("proa-cgroup-v1-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        for (file, text) in files {
            fs::write(dir.join(file), text).unwrap();
        }
        Self(dir)
    }

    fn apply(&self, json: Value) -> Result<(), Error> {
        let controllers = [
            "cpuset", "memory", "cpu", "pids", "blkio", "hugetlb", "net_cls", "net_prio", "rdma",
        ];
        let node = Node {
            controllers: controllers.map(str::to_owned).to_vec(),
            path: self.0.clone(),
        };
        let limits = Limits::new(&serde_json::from_value::<LinuxResources>(json).unwrap());
        super::apply(&[node], None, &limits)
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// What is in a file before: the shares are read back, as the kernel clamps them in silence, and the memory limit is looked
/// at first.
fn start<'a>(file: &str, text: &'a str) -> &'a str {
    match file {
        "cpu.shares" => text,
        "memory.limit_in_bytes" => "0",
        _ => "",
    }
}

#[test]
fn every_limit_goes_to_its_file() {
    let files = [
        ("memory.use_hierarchy", "1"),
        ("memory.limit_in_bytes", "67108864"),
        ("memory.memsw.limit_in_bytes", "100663296"),
        ("memory.soft_limit_in_bytes", "1048576"),
        ("memory.kmem.tcp.limit_in_bytes", "2097152"),
        ("memory.oom_control", "1"),
        ("memory.swappiness", "30"),
        ("cpu.shares", "512"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_burst_us", "20000"),
        ("cpu.rt_runtime_us", "900"),
        ("cpu.rt_period_us", "1000"),
        ("cpu.idle", "1"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("pids.max", "7"),
        ("blkio.weight", "500"),
        ("blkio.leaf_weight", "400"),
        ("blkio.weight_device", "8:0 300"),
        ("blkio.leaf_weight_device", "8:0 200"),
        ("blkio.throttle.read_bps_device", "8:0 1"),
        ("blkio.throttle.write_bps_device", "8:0 2"),
        ("blkio.throttle.read_iops_device", "8:0 3"),
        ("blkio.throttle.write_iops_device", "8:0 4"),
        ("hugetlb.2MB.limit_in_bytes", "4194304"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
        ("net_cls.classid", "1048577"),
        ("net_prio.ifpriomap", "lo 10"),
        ("rdma.max", "mlx5_1 hca_handle=3"),
    ];
    let fake = Fake::new("all", &files.map(|(file, text)| (file, start(file, text))));
    let device = |rate: u64| json!([{"major": 8, "minor": 0, "rate": rate}]);
    fake.apply(json!({
        "memory": {"limit": 67_108_864, "swap": 100_663_296, "reservation": 1_048_576, "kernelTCP": 2_097_152,
            "disableOOMKiller": true, "swappiness": 30, "useHierarchy": true},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "burst": 20_000, "realtimeRuntime": 900,
            "realtimePeriod": 1000, "idle": 1, "cpus": "0-1", "mems": "0"},
        "pids": {"limit": 7},
        "blockIO": {"weight": 500, "leafWeight": 400,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 300, "leafWeight": 200}],
            "throttleReadBpsDevice": device(1), "throttleWriteBpsDevice": device(2),
            "throttleReadIOPSDevice": device(3), "throttleWriteIOPSDevice": device(4)},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}],
        "network": {"classID": 1_048_577, "priorities": [{"name": "lo", "priority": 10}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3}}
    }))
    .unwrap();
    for (file, text) in files {
        assert_eq!(fake.text(file), text, "{file}");
    }
}

#[test]
fn bfq_has_the_weights_of_newer_kernels() {
    let fake = Fake::new("bfq", &[("blkio.bfq.weight", ""), ("blkio.bfq.weight_device", "")]);
    let device = json!([{"major": 8, "minor": 0, "weight": 300}]);
    fake.apply(json!({"blockIO": {"weight": 500, "weightDevice": device}}))
        .unwrap();
    assert_eq!(fake.text("blkio.bfq.weight"), "500");
    assert_eq!(fake.text("blkio.bfq.weight_device"), "8:0 300");
}

#[test]
fn a_swappiness_beyond_the_kernels_is_refused() {
    let fake = Fake::new("swappiness", &[("memory.swappiness", "")]);
    let error = fake
        .apply(json!({"memory": {"swappiness": 101}}))
        .unwrap_err()
        .to_string();
    assert!(error.contains("invalid memory swappiness value: 101"), "{error}");
    fake.apply(json!({"memory": {"swappiness": u64::MAX}})).unwrap();
    assert_eq!(fake.text("memory.swappiness"), "");
}
