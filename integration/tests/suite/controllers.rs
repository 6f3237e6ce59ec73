//! The controllers of cgroup v2, with either driver: limits that are written and that hold, statistics, out-of-memory events,
//! updates, and who owns the container's cgroup. It wants a machine whose cgroup2 has the controllers, as `make test-vm` has.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use proa_integration::ctx::eventually;
use proa_integration::{Bundle, Container, Ctx, Kind, View, tests};
use serde_json::{Value, json};

const V2: &[View] = &[View::V2, View::SystemdV2];
/// Where the test holds more than runc 1.1 does, which Debian 12 and 13 have.
const OLD_RUNC: &[(Kind, &str)] = &[(Kind::Runc, "1.1 does less")];

tests! {
    memory_limits_are_written .views(V2).controllers(&["memory"]);
    swap_is_written_without_memory .views(V2).controllers(&["memory"]);
    unlimited_is_max .views(V2).controllers(&["memory", "pids", "cpu"]);
    impossible_swap_is_refused .views(V2).controllers(&["memory"]);
    the_greedy_is_killed_and_counted .views(V2).controllers(&["memory"]);
    a_group_dies_together_if_asked .views(V2).controllers(&["memory"]);
    cpu_limits_are_written .views(V2).controllers(&["cpu"]).not_for(OLD_RUNC);
    an_idle_group_is_idle .views(V2).controllers(&["cpu"]).not_for(OLD_RUNC);
    a_quota_throttles .views(V2).controllers(&["cpu"]);
    cpuset_is_written .views(V2).controllers(&["cpuset"]);
    absent_processors_are_refused .views(V2).controllers(&["cpuset"]);
    pids_limit_is_written .views(V2).controllers(&["pids"]);
    pids_limit_stops_forks .views(V2).controllers(&["pids"]);
    io_weight_is_written .views(V2).controllers(&["io"]);
    io_throttles_are_written_and_hold .views(V2).controllers(&["io"]);
    a_throttle_of_no_disk_is_refused .views(V2).controllers(&["io"]);
    hugetlb_limits_are_written .views(V2).controllers(&["hugetlb"]);
    an_unknown_page_size_is_refused .views(V2).controllers(&["hugetlb"]);
    an_unknown_rdma_device_is_refused .views(V2).controllers(&["rdma"]);
    unified_reaches_every_controller .views(V2).controllers(&["memory", "cpu", "cpuset", "pids", "io"]);
    unified_wins_over_the_sections .views(V2).controllers(&["memory", "pids"]);
    unified_nonsense_is_refused .views(V2).controllers(&["memory", "misc"]);
    a_container_without_limits_has_every_controller .views(V2).controllers(&["memory", "cpu", "cpuset", "pids", "io"]);
    a_sample_has_every_figure .views(V2).controllers(&["memory", "cpu", "pids", "io"]);
    events_reports_oom .views(V2).controllers(&["memory"]);
    events_reports_oom_of_a_group_below .views(V2).controllers(&["memory"]);
    update_changes_limits .views(V2).controllers(&["memory", "cpu", "cpuset", "pids", "io"]).not_for(OLD_RUNC);
    update_keeps_what_it_is_not_told .views(V2).controllers(&["memory", "cpu"]).not_for(OLD_RUNC);
    update_moves_memory_and_swap_in_both_directions .views(V2).controllers(&["memory"]);
    update_reads_unified .views(V2).controllers(&["memory", "pids"]);
    a_memory_limit_below_the_use_is_refused .views(V2).controllers(&["memory"]).not_for(OLD_RUNC);
    a_refused_update_changes_nothing_else .views(V2).controllers(&["cpuset", "cpu", "pids"]);
    a_parent_with_processes_gives_no_controllers .views(&[View::V2]).controllers(&["memory"]);
    a_limit_in_an_invalid_cgroup_is_refused .views(&[View::V2]).controllers(&["memory"]);
    // Where systemd is the test's own its /proc is not whole, and a user namespace in it gets none.
    the_cgroup_is_the_users_where_it_may_write .views(V2).controllers(&["pids"]).not_for(&[(Kind::Runc, "with systemd only")]);
    the_cgroup_stays_roots_where_it_may_not_write .views(V2).controllers(&["pids"]);
    a_users_own_groups_get_controllers .views(V2).controllers(&["memory", "pids"]).not_for(&[(Kind::Runc, "with systemd only")]);
}

fn limited_to<'a>(ctx: &'a Ctx, resources: &Value, script: &str) -> Container<'a> {
    let bundle = ctx.bundle();
    bundle.sh(script);
    set(&bundle, resources);
    ctx.start(&bundle)
}

fn limited<'a>(ctx: &'a Ctx, resources: &Value) -> Container<'a> {
    limited_to(ctx, resources, "exec sleep 1000")
}

fn set(bundle: &Bundle, resources: &Value) {
    for (key, value) in resources.as_object().unwrap() {
        bundle.set(&format!("/linux/resources/{key}"), value.clone());
    }
}

fn refused(ctx: &Ctx, resources: &Value, texts: &[&str]) {
    let bundle = ctx.bundle();
    set(&bundle, resources);
    let out = ctx.run(&bundle);
    for text in texts {
        out.refused(&[text]);
    }
    assert_eq!(ctx.leaks(), Vec::<String>::new());
}

#[track_caller]
fn files(container: &Container, wanted: &[(&str, &str)]) {
    for (file, value) in wanted {
        assert_eq!(container.cgroup_file("", file), *value, "{file}");
    }
}

fn update(ctx: &Ctx, container: &Container, resources: &Value) -> proa_integration::Output {
    let call = ctx.call(&["update", "--resources", "-", &container.id]);
    call.stdin(resources.to_string().as_bytes()).output()
}

const MIB: i64 = 1 << 20;

fn memory_limits_are_written(ctx: &Ctx) {
    let container = limited(ctx, &json!({"memory": {"limit": 64 * MIB, "reservation": 32 * MIB}}));
    files(
        &container,
        &[
            ("memory.max", "67108864"),
            ("memory.low", "33554432"),
            ("memory.swap.max", "max"),
        ],
    );
}

fn swap_is_written_without_memory(ctx: &Ctx) {
    for (swap, written) in [(192 * MIB, "134217728"), (64 * MIB, "0"), (-1, "max")] {
        let container = limited(ctx, &json!({"memory": {"limit": 64 * MIB, "swap": swap}}));
        files(&container, &[("memory.max", "67108864"), ("memory.swap.max", written)]);
    }
}

fn unlimited_is_max(ctx: &Ctx) {
    let container = limited(
        ctx,
        &json!({"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}),
    );
    files(
        &container,
        &[
            ("memory.max", "max"),
            ("memory.swap.max", "max"),
            ("pids.max", "max"),
            ("cpu.max", "max 100000"),
        ],
    );
}

fn impossible_swap_is_refused(ctx: &Ctx) {
    let less = json!({"memory": {"limit": 64 * MIB, "swap": 32 * MIB}});
    refused(ctx, &less, &["memory+swap limit should be >= memory limit"]);
    let alone = json!({"memory": {"swap": 32 * MIB}});
    refused(ctx, &alone, &["unable to set swap limit without memory limit"]);
}

fn the_greedy_is_killed_and_counted(ctx: &Ctx) {
    let limit = json!({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}});
    let container = limited_to(ctx, &limit, "probe eat 4; probe eat 64; echo status $?; sleep 1000");
    container.says("status 137");
    assert!(container.stdout().contains("ate 4") && !container.stdout().contains("ate 64"));
    let events = container.cgroup_file("", "memory.events");
    assert!(events.lines().any(|l| l == "oom_kill 1"), "{events}");
    assert_eq!(container.status(), "running");
}

fn a_group_dies_together_if_asked(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("sleep 1000 & probe eat 64; echo survived; sleep 1000");
    set(
        &bundle,
        &json!({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}, "unified": {"memory.oom.group": "1"}}),
    );
    let out = ctx.run(&bundle);
    out.code(137);
    assert_eq!(out.stdout, "");
}

fn cpu_limits_are_written(ctx: &Ctx) {
    let container = limited(
        ctx,
        &json!({"cpu": {"shares": 512, "quota": 50_000, "period": 200_000, "burst": 10_000}}),
    );
    files(
        &container,
        &[
            ("cpu.weight", "59"),
            ("cpu.max", "50000 200000"),
            ("cpu.max.burst", "10000"),
        ],
    );
    let container = limited(ctx, &json!({"cpu": {"period": 50_000}}));
    files(&container, &[("cpu.max", "max 50000")]);
    let container = limited(ctx, &json!({"cpu": {"shares": 1024, "quota": 30_000}}));
    files(&container, &[("cpu.weight", "100"), ("cpu.max", "30000 100000")]);
}

fn an_idle_group_is_idle(ctx: &Ctx) {
    let container = limited(ctx, &json!({"cpu": {"idle": 1}}));
    files(&container, &[("cpu.idle", "1")]);
    update(ctx, &container, &json!({"cpu": {"idle": 0}})).ok();
    files(&container, &[("cpu.idle", "0")]);
    update(ctx, &container, &json!({"cpu": {"idle": 1}})).ok();
    files(&container, &[("cpu.idle", "1")]);
    // A weight is none of an idle group's, whose own is 0.
    update(ctx, &container, &json!({"cpu": {"idle": 0, "shares": 1024}})).ok();
    files(&container, &[("cpu.idle", "0"), ("cpu.weight", "100")]);
}

fn a_quota_throttles(ctx: &Ctx) {
    let busy = "while :; do :; done";
    let container = limited_to(ctx, &json!({"cpu": {"quota": 5_000, "period": 50_000}}), busy);
    let data = eventually("throttled periods", || {
        let data = sample(&container);
        (data["cpu"]["throttling"]["throttledPeriods"].as_u64() > Some(2)).then_some(data)
    });
    let throttling = &data["cpu"]["throttling"];
    assert!(throttling["periods"].as_u64() >= throttling["throttledPeriods"].as_u64());
    assert!(throttling["throttledTime"].as_u64() > Some(1_000_000), "{throttling}");
}

fn cpuset_is_written(ctx: &Ctx) {
    let container = limited(ctx, &json!({"cpu": {"cpus": "0", "mems": "0"}}));
    files(
        &container,
        &[
            ("cpuset.cpus", "0"),
            ("cpuset.mems", "0"),
            ("cpuset.cpus.effective", "0"),
        ],
    );
    assert_eq!(container.exec(&["probe", "affinity"]).ok().text(), "0");
}

fn absent_processors_are_refused(ctx: &Ctx) {
    refused(ctx, &json!({"cpu": {"cpus": "70000"}}), &["cpus", "70000"]);
    refused(ctx, &json!({"cpu": {"mems": "1-x"}}), &["mems", "1-x"]);
}

fn pids_limit_is_written(ctx: &Ctx) {
    for (limit, written) in [(17, "17"), (0, "1"), (-1, "max")] {
        // With one task there is no exec; the file can still be read.
        let container = limited(ctx, &json!({"pids": {"limit": limit}}));
        files(&container, &[("pids.max", written)]);
    }
}

fn pids_limit_stops_forks(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("for i in 1 2 3 4 5 6 7 8; do sleep 3 & done; echo all");
    set(&bundle, &json!({"pids": {"limit": 4}}));
    let out = ctx.run(&bundle);
    assert!(
        out.stderr.contains("fork") || out.stderr.contains("temporarily"),
        "{out:?}"
    );
}

fn io_weight_is_written(ctx: &Ctx) {
    let container = limited(ctx, &json!({"blockIO": {"weight": 300}}));
    // Which of the two there is depends on the kernel and the disks' scheduler.
    let bfq = container.cgroup_dir("").join("io.bfq.weight").exists();
    let (file, written) = if bfq {
        ("io.bfq.weight", "default 300")
    } else {
        ("io.weight", "default 2930")
    };
    files(&container, &[(file, written)]);
}

/// A file that lies on a disk, and the disk's number; `None` where the root is none.
fn on_disk() -> Option<(&'static str, u64, u64)> {
    let file = "/bin/busybox";
    let device = fs::metadata(file).ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    fs::exists(format!("/sys/dev/block/{major}:{minor}/queue"))
        .ok()?
        .then_some((file, major, minor))
}

fn io_throttles_are_written_and_hold(ctx: &Ctx) {
    let Some((file, major, minor)) = on_disk() else {
        return println!("no whole disk under / to throttle");
    };
    let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let bundle = ctx.bundle();
    bundle
        .sh("exec sleep 1000")
        .bind(file.as_ref(), "/file", &["bind", "ro"]);
    set(
        &bundle,
        &json!({"blockIO": {"throttleReadBpsDevice": rate(512 << 10), "throttleWriteIOPSDevice": rate(100)}}),
    );
    let container = ctx.start(&bundle);
    let line = |text: &str| format!("{major}:{minor} {text}");
    files(
        &container,
        &[("io.max", &line("rbps=524288 wbps=max riops=max wiops=100"))],
    );
    let read = || -> u64 {
        container
            .exec(&["probe", "read-disk", "/file", "512"])
            .ok()
            .text()
            .parse()
            .unwrap()
    };
    let slow = read();
    assert!(
        slow >= 500,
        "half a megabyte at half a megabyte a second took {slow} ms"
    );
    // 0 is no limit.
    let none = json!({"blockIO": {"throttleReadBpsDevice": rate(0)}});
    update(ctx, &container, &none).ok();
    files(
        &container,
        &[("io.max", &line("rbps=max wbps=max riops=max wiops=100"))],
    );
    let fast = read();
    assert!(fast < slow, "without a limit {fast} ms, with one {slow} ms");
}

fn a_throttle_of_no_disk_is_refused(ctx: &Ctx) {
    let rate = json!([{"major": 4000, "minor": 1, "rate": 1}]);
    refused(
        ctx,
        &json!({"blockIO": {"throttleReadBpsDevice": rate}}),
        &["io.max", "4000:1"],
    );
}

fn hugetlb_limits_are_written(ctx: &Ctx) {
    let container = limited(ctx, &json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}]}));
    files(
        &container,
        &[("hugetlb.2MB.max", "4194304"), ("hugetlb.2MB.rsvd.max", "4194304")],
    );
    if ctx.subject.as_new_as_runc(1, 2) {
        let data = sample(&container);
        assert!(data["hugetlb"]["2MB"].is_object(), "{data}");
    }
}

fn an_unknown_page_size_is_refused(ctx: &Ctx) {
    let limits = json!([{"pageSize": "3MB", "limit": MIB}]);
    refused(ctx, &json!({"hugepageLimits": limits}), &["3MB"]);
}

fn an_unknown_rdma_device_is_refused(ctx: &Ctx) {
    let limits = json!({"nodevice0": {"hcaHandles": 3, "hcaObjects": 10000}});
    refused(ctx, &json!({"rdma": limits}), &["rdma.max"]);
}

fn unified_reaches_every_controller(ctx: &Ctx) {
    let wanted = [
        ("memory.min", "4194304"),
        ("memory.low", "8388608"),
        ("memory.high", "50331648"),
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("cpu.weight", "123"),
        ("cpu.max", "20000 100000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "99"),
    ];
    let container = limited(
        ctx,
        &json!({"unified": wanted.iter().copied().collect::<std::collections::BTreeMap<_, _>>()}),
    );
    files(&container, &wanted);
    if let Some((_, major, minor)) = on_disk() {
        let lines = format!("{major}:{minor} rbps=1048576\n{major}:{minor} wiops=10\n");
        let container = limited(ctx, &json!({"unified": {"io.max": lines}}));
        let all = format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=10");
        files(&container, &[("io.max", &all)]);
    }
}

fn unified_wins_over_the_sections(ctx: &Ctx) {
    let container = limited(
        ctx,
        &json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 20},
            "unified": {"memory.max": "33554432", "pids.max": "9"}}),
    );
    files(&container, &[("memory.max", "33554432"), ("pids.max", "9")]);
}

fn unified_nonsense_is_refused(ctx: &Ctx) {
    let unified = |key: &str, value: &str| json!({"unified": {key: value}});
    refused(
        ctx,
        &unified("nonesuch.max", "1"),
        &["nonesuch.max", "controller \"nonesuch\" not available"],
    );
    refused(ctx, &unified("memory.nonesuch", "1"), &["memory.nonesuch"]);
    refused(ctx, &unified("memory.max", "plenty"), &["memory.max", "plenty"]);
    refused(ctx, &unified("misc.max", "sevs 1"), &["misc.max"]);
    refused(
        ctx,
        &unified("../memory.max", "1"),
        &["must be a file name (no slashes)"],
    );
    refused(
        ctx,
        &unified("memory", "1"),
        &["must be in the form CONTROLLER.PARAMETER"],
    );
}

fn a_container_without_limits_has_every_controller(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let have = container.cgroup_file("", "cgroup.controllers");
    let have: Vec<&str> = have.split(' ').collect();
    for controller in proa_integration::host::v2_controllers() {
        assert!(have.contains(&controller.as_str()), "no {controller} in {have:?}");
    }
}

fn sample(container: &Container) -> Value {
    let event = container.verb(&["events", "--stats"]).ok().json();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(container.id)));
    event["data"].clone()
}

fn a_sample_has_every_figure(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let reads = on_disk().is_some();
    if let Some((file, ..)) = on_disk() {
        bundle.bind(file.as_ref(), "/file", &["bind", "ro"]);
    }
    bundle.sh(
        "head -c 8000000 /dev/zero >/dev/shm/eaten; [ ! -e /file ] || probe read-disk /file 256 >/dev/null; \
               echo done; exec sleep 1000",
    );
    set(
        &bundle,
        &json!({"memory": {"limit": 64 * MIB, "swap": 96 * MIB}, "pids": {"limit": 30}}),
    );
    let container = ctx.start(&bundle);
    container.says("done");
    let data = eventually("one process", || {
        Some(sample(&container)).filter(|d| d["pids"]["current"] == 1)
    });
    let memory = &data["memory"];
    assert!(memory["usage"]["usage"].as_u64() > Some(8_000_000), "{memory}");
    assert_eq!(
        (&memory["usage"]["limit"], &data["pids"]["limit"]),
        (&json!(64 * MIB), &json!(30))
    );
    assert_eq!(memory["swap"]["limit"], 96 * MIB, "memory and swap together, as on v1");
    assert!(
        memory["raw"]["shmem"].as_u64() > Some(7_900_000) && memory["raw"]["anon"].is_u64(),
        "{memory}"
    );
    assert!(memory["cache"].as_u64() > Some(7_900_000), "{memory}");
    let usage = &data["cpu"]["usage"];
    assert!(usage["total"].as_u64() > Some(0), "{usage}");
    assert!(usage["total"].as_u64() >= usage["user"].as_u64(), "{usage}");
    if reads {
        let all = data["blkio"]["ioServiceBytesRecursive"]
            .as_array()
            .expect("I/O")
            .clone();
        let read: u64 = all
            .iter()
            .filter(|e| e["op"] == "Read")
            .filter_map(|e| e["value"].as_u64())
            .sum();
        assert!(read >= 256 << 10, "{all:?}");
        assert!(data["blkio"]["ioServicedRecursive"].is_array());
    }
    if ctx.subject.as_new_as_runc(1, 2) && fs::exists("/sys/fs/cgroup/cpu.pressure").unwrap() {
        for section in ["cpu", "memory", "blkio"] {
            assert!(data[section]["psi"]["some"]["total"].is_u64(), "{section}: {data}");
        }
    }
    let container = limited(ctx, &json!({}));
    assert_eq!(sample(&container)["memory"]["usage"]["limit"], u64::MAX);
}

/// Waits for the word of a kill that the container starts when it is told to.
fn oom(ctx: &Ctx, container: &Container) {
    let mut running = ctx.call(&["events", "--interval", "200ms", &container.id]).spawn();
    eventually("a sample", || running.stdout().contains("stats").then_some(()));
    assert!(!running.stdout().contains("\"type\":\"oom\""));
    container.exec(&["touch", "/dev/shm/go"]).ok();
    eventually("the oom event", || {
        running.stdout().contains("\"type\":\"oom\"").then_some(())
    });
    running.child.kill().unwrap();
    running.child.wait().unwrap();
}

fn events_reports_oom(ctx: &Ctx) {
    let limit = json!({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}});
    let script = "until [ -e /dev/shm/go ]; do sleep 0.1; done; probe eat 64; sleep 1000";
    oom(ctx, &limited_to(ctx, &limit, script));
}

/// The container's own init system may have put the greedy into a cgroup below.
fn events_reports_oom_of_a_group_below(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}))
        .sh(
            "cd /sys/fs/cgroup && mkdir one && echo 1 >one/cgroup.procs && echo +memory >cgroup.subtree_control && \
             echo 16777216 >one/memory.max && echo 0 >one/memory.swap.max && echo ready; \
             until [ -e /dev/shm/go ]; do sleep 0.1; done; probe eat 64; sleep 1000",
        );
    let container = ctx.start(&bundle);
    container.says("ready");
    oom(ctx, &container);
}

fn update_changes_limits(ctx: &Ctx) {
    let container = limited(ctx, &json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 20}}));
    let flags = [
        ["--memory", "50331648"],
        ["--memory-reservation", "16777216"],
        ["--memory-swap", "67108864"],
        ["--pids-limit", "10"],
        ["--cpu-share", "512"],
        ["--cpu-quota", "60000"],
        ["--cpu-period", "100000"],
        ["--cpu-burst", "5000"],
        ["--cpuset-cpus", "0"],
        ["--cpuset-mems", "0"],
        ["--blkio-weight", "300"],
    ];
    container.verb(&[&["update"], flags.as_flattened()].concat()).ok();
    files(
        &container,
        &[
            ("memory.max", "50331648"),
            ("memory.low", "16777216"),
            ("memory.swap.max", "16777216"),
            ("pids.max", "10"),
            ("cpu.weight", "59"),
            ("cpu.max", "60000 100000"),
            ("cpu.max.burst", "5000"),
            ("cpuset.cpus", "0"),
            ("cpuset.mems", "0"),
        ],
    );
    let bfq = container.cgroup_dir("").join("io.bfq.weight").exists();
    let (file, written) = if bfq {
        ("io.bfq.weight", "default 300")
    } else {
        ("io.weight", "default 2930")
    };
    files(&container, &[(file, written)]);
    container.verb(&["update", "--cpu-idle", "1"]).ok();
    files(&container, &[("cpu.idle", "1")]);
}

fn update_keeps_what_it_is_not_told(ctx: &Ctx) {
    let container = limited(
        ctx,
        &json!({"memory": {"limit": 64 * MIB, "swap": 96 * MIB}, "cpu": {"quota": 50_000, "period": 100_000, "shares": 512}}),
    );
    container.verb(&["update", "--cpu-period", "200000"]).ok();
    files(&container, &[("cpu.max", "50000 200000"), ("cpu.weight", "59")]);
    container.verb(&["update", "--cpu-quota", "70000"]).ok();
    files(&container, &[("cpu.max", "70000 200000"), ("memory.max", "67108864")]);
    container.verb(&["update", "--cpu-quota", "-1"]).ok();
    files(
        &container,
        &[("cpu.max", "max 200000"), ("memory.swap.max", "33554432")],
    );
}

fn update_moves_memory_and_swap_in_both_directions(ctx: &Ctx) {
    let container = limited(ctx, &json!({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}));
    for (memory, swap, max, swap_max) in [
        ("134217728", "201326592", "134217728", "67108864"),
        ("33554432", "33554432", "33554432", "0"),
        ("50331648", "-1", "50331648", "max"),
    ] {
        container
            .verb(&["update", "--memory", memory, "--memory-swap", swap])
            .ok();
        files(&container, &[("memory.max", max), ("memory.swap.max", swap_max)]);
    }
    container.verb(&["update", "--memory", "-1"]).ok();
    files(&container, &[("memory.max", "max"), ("memory.swap.max", "max")]);
    container
        .verb(&["update", "--memory", "67108864", "--memory-swap", "33554432"])
        .refused(&["memory+swap limit should be >= memory limit"]);
}

fn update_reads_unified(ctx: &Ctx) {
    let container = limited(ctx, &json!({"memory": {"limit": 64 * MIB}}));
    update(
        ctx,
        &container,
        &json!({"unified": {"memory.high": "40000000", "pids.max": "12"}}),
    )
    .ok();
    // The kernel rounds to pages.
    files(
        &container,
        &[
            ("memory.high", "39997440"),
            ("pids.max", "12"),
            ("memory.max", "67108864"),
        ],
    );
}

fn a_memory_limit_below_the_use_is_refused(ctx: &Ctx) {
    let limit = json!({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}});
    let container = limited_to(
        ctx,
        &limit,
        "head -c 16000000 /dev/zero >/dev/shm/all; echo full; exec sleep 1000",
    );
    container.says("full");
    let less = json!({"memory": {"limit": 8 * MIB, "swap": 8 * MIB, "checkBeforeUpdate": true}});
    update(ctx, &container, &less).refused(&["rejecting memory", "limit 8388608"]);
    assert_eq!(container.status(), "running");
    files(&container, &[("memory.max", "67108864"), ("memory.swap.max", "0")]);
}

fn a_refused_update_changes_nothing_else(ctx: &Ctx) {
    let container = limited(ctx, &json!({"pids": {"limit": 20}}));
    container.verb(&["update", "--cpuset-cpus", "70000"]).refused(&["cpus"]);
    container.verb(&["update", "--cpu-share", "512"]).ok();
    files(&container, &[("cpu.weight", "59"), ("pids.max", "20")]);
}

fn a_parent_with_processes_gives_no_controllers(ctx: &Ctx) {
    let path = format!("{}/busy", ctx.cgroup_parent());
    let dir = ctx.cgroup_dir("", &path);
    fs::create_dir_all(&dir).unwrap();
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(dir.join("cgroup.procs"), other.id().to_string()).unwrap();
    let bundle = ctx.bundle();
    bundle.set("/linux/cgroupsPath", json!(format!("{path}/inner")));
    ctx.run(&bundle).ok();
    set(&bundle, &json!({"memory": {"limit": 64 * MIB}}));
    ctx.run(&bundle)
        .refused(&["memory", "with domain controllers -- it is in an invalid state"]);
    assert!(!dir.join("inner").exists());
    other.kill().unwrap();
    other.wait().unwrap();
    fs::remove_dir(&dir).unwrap();
}

fn a_limit_in_an_invalid_cgroup_is_refused(ctx: &Ctx) {
    let path = format!("{}/domain", ctx.cgroup_parent());
    let dir = ctx.cgroup_dir("", &path);
    fs::create_dir_all(dir.join("threads")).unwrap();
    fs::write(dir.join("threads/cgroup.type"), "threaded").unwrap();
    let bundle = ctx.bundle();
    bundle.set("/linux/cgroupsPath", json!(format!("{path}/inner")));
    set(&bundle, &json!({"memory": {"limit": 64 * MIB}}));
    ctx.run(&bundle).refused(&["invalid state"]);
    assert!(!dir.join("inner").exists());
    fs::remove_dir(dir.join("threads")).unwrap();
    fs::remove_dir(&dir).unwrap();
}

/// A container in a user namespace and a cgroup namespace of its own, with its cgroup mounted.
fn delegated<'a>(
    ctx: &'a Ctx,
    options: &[&str],
    change: impl FnOnce(&Bundle) -> &Bundle,
    script: &str,
) -> Container<'a> {
    let bundle = ctx.bundle();
    bundle
        .userns(200_000)
        .namespace("cgroup", None)
        .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}))
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .sh(script);
    change(&bundle);
    ctx.start(&bundle)
}

/// The owners of the cgroup and of its files, by name.
fn owners(container: &Container) -> Vec<(String, u32)> {
    let dir = container.cgroup_dir("");
    let mut all: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .filter(|e| e.file_type().unwrap().is_file())
        .map(|e| (e.file_name().to_str().unwrap().to_owned(), e.metadata().unwrap().uid()))
        .collect();
    all.push((".".to_owned(), fs::metadata(&dir).unwrap().uid()));
    all.sort();
    all
}

fn the_cgroup_is_the_users_where_it_may_write(ctx: &Ctx) {
    let list = fs::read_to_string("/sys/kernel/cgroup/delegate")
        .unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned());
    let delegated_files: Vec<&str> = list.lines().collect();
    let container = delegated(
        ctx,
        &["rw"],
        |b| b,
        "mkdir /sys/fs/cgroup/mine && echo $$ >/sys/fs/cgroup/mine/cgroup.procs && cat /proc/self/cgroup; exec sleep 1000",
    );
    container.says("0::/mine");
    for (name, uid) in owners(&container) {
        let expected = if name == "." || delegated_files.contains(&name.as_str()) {
            201_000
        } else {
            0
        };
        assert_eq!(uid, expected, "{name}");
    }
    // An exec lands beside it, and the end takes the user's own groups along.
    container.exec(&["true"]).ok();
    container.kill("KILL").stopped().delete();
    assert!(!container.cgroup_dir("").exists());
}

fn the_cgroup_stays_roots_where_it_may_not_write(ctx: &Ctx) {
    let roots = |container: &Container| owners(container).iter().all(|(_, uid)| *uid == 0);
    let script = "exec sleep 1000";
    assert!(roots(&delegated(ctx, &["ro"], |b| b, script)), "read-only");
    assert!(
        roots(&delegated(ctx, &["nosuid", "ro"], |b| b, script)),
        "read-only among others"
    );
    assert!(
        roots(&delegated(ctx, &["rw"], |b| b.without_namespaces(&["cgroup"]), script)),
        "no cgroup namespace"
    );
    let elsewhere = |b: &Bundle| -> () {
        b.edit(|s| s["mounts"].as_array_mut().unwrap().last_mut().unwrap()["destination"] = json!("/tmp"));
    };
    assert!(
        roots(&delegated(
            ctx,
            &["rw"],
            |b| {
                elsewhere(b);
                b
            },
            script
        )),
        "mounted elsewhere"
    );
}

fn a_users_own_groups_get_controllers(ctx: &Ctx) {
    let container = delegated(
        ctx,
        &["rw"],
        |b| b,
        "cd /sys/fs/cgroup && mkdir init work && echo $$ >init/cgroup.procs && echo '+memory +pids' >cgroup.subtree_control && \
         echo 7 >work/pids.max && cat work/pids.max; exec sleep 1000",
    );
    container.says("7");
}
