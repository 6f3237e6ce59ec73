//! The limits on files that take everything, for the controllers that few machines have in their v2 hierarchy.

use super::super::{stats, stats_v2};
use super::*;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// A directory of plain files. As with those of a cgroup a write begins at the start; but what was longer keeps its end.
struct Fake(PathBuf);

impl Fake {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let dir = std::env::temp_dir().join(format!("proa-cgroup-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        for (file, text) in files {
            fs::write(dir.join(file), text).unwrap();
        }
        Self(dir)
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

fn limits(json: Value) -> Limits {
    Limits::new(&serde_json::from_value::<LinuxResources>(json).unwrap())
}

#[test]
fn every_limit_goes_to_its_file() {
    let files = [
        ("pids.max", "7"),
        ("memory.max", "67108864"),
        ("memory.swap.max", "33554432"),
        ("memory.low", "1048576"),
        ("io.weight", "4950"),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "20000"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=100"),
        ("memory.high", "50331648"),
        ("io.max", "8:0 rbps=1048576"),
    ];
    let fake = Fake::new("all", &files.map(|(file, _)| (file, "")));
    let wanted = limits(json!({
        "pids": {"limit": 7},
        "memory": {"limit": 67_108_864, "swap": 100_663_296, "reservation": 1_048_576},
        "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1_048_576}]},
        "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000, "burst": 20_000, "cpus": "0-1", "mems": "0"},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}],
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 100}},
        "unified": {"memory.high": "50331648"}
    }));
    apply(&fake.0, &wanted).unwrap();
    for (file, text) in files {
        assert_eq!(fake.text(file), text, "{file}");
    }
}

#[test]
fn no_limit_is_max() {
    let files = ["pids.max", "memory.max", "memory.swap.max", "cpu.max", "io.max"];
    let fake = Fake::new("max", &files.map(|file| (file, "")));
    let device = json!([{"major": 8, "minor": 0, "rate": 0}]);
    let wanted = limits(
        json!({"pids": {"limit": -1}, "memory": {"limit": -1}, "cpu": {"quota": -1, "period": 200_000},
        "blockIO": {"throttleWriteIOPSDevice": device}}),
    );
    apply(&fake.0, &wanted).unwrap();
    let expected = ["max", "max", "max", "max 200000", "8:0 wiops=max"];
    assert_eq!(files.map(|file| fake.text(file)), expected);
}

#[test]
fn bfq_takes_the_weight_unscaled_and_by_device() {
    let fake = Fake::new("bfq", &[("io.bfq.weight", "default 100")]);
    let device = json!([{"major": 8, "minor": 0, "weight": 300}]);
    apply(&fake.0, &limits(json!({"blockIO": {"weightDevice": device}}))).unwrap();
    assert_eq!(fake.text("io.bfq.weight"), "8:0 300 100");
    let fake = Fake::new("bfq-old", &[("io.bfq.weight", "100")]);
    apply(
        &fake.0,
        &limits(json!({"blockIO": {"weight": 500, "weightDevice": device}})),
    )
    .unwrap();
    assert_eq!(fake.text("io.bfq.weight"), "500");
}

#[test]
fn a_controller_that_is_missing_is_named() {
    let fake = Fake::new("missing", &[]);
    for (wanted, file) in [
        (json!({"pids": {"limit": 7}}), "pids.max"),
        (json!({"memory": {"limit": 1_048_576}}), "memory.max"),
        (json!({"cpu": {"quota": 1000}}), "cpu.max"),
        (json!({"cpu": {"idle": 1}}), "cpu.idle"),
        (json!({"cpu": {"cpus": "0"}}), "cpuset.cpus"),
        (json!({"blockIO": {"weight": 500}}), "io.weight"),
        (
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}),
            "hugetlb.2MB.max",
        ),
        (json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}), "rdma.max"),
    ] {
        let error = apply(&fake.0, &limits(wanted)).unwrap_err().to_string();
        assert!(error.contains(file), "{file}: {error}");
    }
}

#[test]
fn an_update_keeps_the_other_half() {
    let files = [
        ("cpu.max", "50000 100000\n"),
        ("memory.max", "67108864\n"),
        ("memory.swap.max", "33554432\n"),
    ];
    let fake = Fake::new("half", &files);
    let completed = |json| {
        let mut wanted = limits(json);
        complete(&fake.0, &mut wanted).unwrap();
        wanted
    };
    let it = completed(json!({"cpu": {"quota": 20_000}}));
    assert_eq!((it.quota, it.period), (20_000, 100_000));
    let it = completed(json!({"cpu": {"period": 200_000}}));
    assert_eq!((it.quota, it.period), (50_000, 200_000));
    // What memory and swap are allowed together stays as it is.
    let it = completed(json!({"memory": {"limit": 83_886_080}}));
    assert_eq!(it.swap_max().unwrap(), Some(16_777_216));
    let it = completed(json!({"memory": {"swap": 134_217_728}}));
    assert_eq!((it.memory, it.swap_max().unwrap()), (67_108_864, Some(67_108_864)));
}

#[test]
fn statistics_are_in_v1s_terms() {
    let pressure = "some avg10=1.50 avg60=0.00 avg300=0.25 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
    let psi = json!({"some": {"avg10": 1.5, "avg60": 0.0, "avg300": 0.25, "total": 12},
        "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 7}});
    let fake = Fake::new(
        "stats",
        &[
            ("pids.current", "3\n"),
            ("pids.max", "20\n"),
            ("memory.stat", "anon 100\nfile 4096\n"),
            ("memory.current", "8192\n"),
            ("memory.max", "67108864\n"),
            ("memory.peak", "9000\n"),
            ("memory.swap.current", "1000\n"),
            ("memory.swap.max", "max\n"),
            ("memory.swap.peak", "2000\n"),
            (
                "cpu.stat",
                "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 5\nnr_throttled 2\nthrottled_usec 8\n",
            ),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
            ("memory.pressure", pressure),
            ("cpu.pressure", pressure),
            ("io.pressure", pressure),
        ],
    );
    let mut stats = serde_json::to_value(stats_v2::read(&fake.0).unwrap()).unwrap();
    let part = |stats: &mut Value, name: &str| stats[name].take();
    assert_eq!(part(&mut stats, "pids"), json!({"current": 3, "limit": 20}));
    assert_eq!(
        part(&mut stats, "cpu"),
        json!({"usage": {"total": 10_000, "kernel": 4000, "user": 6000},
            "throttling": {"periods": 5, "throttledPeriods": 2, "throttledTime": 8000}, "psi": psi})
    );
    assert_eq!(
        part(&mut stats, "memory"),
        json!({"cache": 4096, "usage": {"limit": 67_108_864, "usage": 8192, "max": 9000, "failcnt": 0},
            "swap": {"limit": u64::MAX, "usage": 9192, "failcnt": 0}, "kernel": {"limit": 0, "failcnt": 0},
            "kernelTCP": {"limit": 0, "failcnt": 0}, "raw": {"anon": 100, "file": 4096}, "psi": psi})
    );
    let entry = |op: &str, value: u64| json!({"major": 8, "op": op, "value": value});
    assert_eq!(
        part(&mut stats, "blkio"),
        json!({"ioServiceBytesRecursive": [entry("Read", 1), entry("Write", 2)],
            "ioServicedRecursive": [entry("Read", 3), entry("Write", 4)], "psi": psi})
    );
}

#[test]
fn huge_pages_are_counted_by_reservation_where_the_kernel_can() {
    let Some(size) = stats::huge_page_sizes().into_iter().next() else {
        return;
    };
    let (current, reserved, events) = (
        format!("hugetlb.{size}.current"),
        format!("hugetlb.{size}.rsvd.current"),
        format!("hugetlb.{size}.events"),
    );
    let fake = Fake::new("huge", &[(&current, "100\n"), (&events, "max 4\n")]);
    let usage = || stats_v2::read(&fake.0).unwrap().hugetlb[&size].clone();
    assert_eq!((usage().usage, usage().failcnt), (100, 4));
    fs::write(fake.0.join(&reserved), "300\n").unwrap();
    assert_eq!(usage().usage, 300);
}
