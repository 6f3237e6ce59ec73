//! `update` and `events`: every limit changed while the container runs, and what is told about it.

use std::fs;

use proa_integration::ctx::eventually;
use proa_integration::{Container, Ctx, Kind, View, tests};
use serde_json::{Value, json};

const ALL: &[View] = &View::ALL;
const CGROUPFS: &[View] = &[View::Hybrid, View::V1];

tests! {
    a_paused_container_is_updated .views(CGROUPFS);
    a_created_container_is_updated .views(CGROUPFS);
    a_stopped_container_is_not_updated .views(ALL);
    a_refused_update_puts_the_limits_back .views(CGROUPFS);
    burst_and_idle_are_updated .views(CGROUPFS).since_runc(1, 2).not_for(&[(Kind::Crun, "has no such flags")]);
    realtime_limits_follow_the_parents .views(CGROUPFS);
    reservation_is_updated .views(CGROUPFS);
    an_update_to_no_pids_means_one .views(CGROUPFS).only_proa();
    updated_limits_are_stored .views(CGROUPFS).only_proa();
    wrong_values_are_refused_by_flag .once().only_proa();
    wrong_resources_are_refused_by_field .once().only_proa();
    cache_and_bandwidth_schemas_need_resctrl .once();
    intel_rdt_needs_resctrl .once();
    events_end_with_the_container .views(ALL).not_for(&[(Kind::Crun, "has no events")]);
    events_of_a_stopped_container_are_refused .once().not_for(&[(Kind::Crun, "has no events")]);
    an_interval_of_nothing_is_refused .once().not_for(&[(Kind::Crun, "has no events")]);
}

fn limited<'a>(ctx: &'a Ctx, resources: Value) -> Container<'a> {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]).edit(|s| {
        for (key, value) in resources.as_object().unwrap() {
            s["linux"]["resources"][key] = value.clone();
        }
    });
    ctx.start(&bundle)
}

/// Whether this machine has no resctrl; where it has, what asks for it is not refused.
fn without_resctrl() -> bool {
    !std::path::Path::new("/sys/fs/resctrl/schemata").exists()
}

fn a_paused_container_is_updated(ctx: &Ctx) {
    let container = limited(ctx, json!({"pids": {"limit": 20}}));
    container.verb(&["pause"]).ok();
    container
        .verb(&["update", "--pids-limit", "10", "--cpu-share", "200"])
        .ok();
    assert_eq!(container.cgroup_file("pids", "pids.max"), "10");
    assert_eq!(container.cgroup_file("cpu", "cpu.shares"), "200");
    assert_eq!(container.status(), "paused");
    container.verb(&["resume"]).ok();
}

fn a_created_container_is_updated(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.create(&bundle);
    container.verb(&["update", "--memory", "67108864"]).ok();
    assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), "67108864");
    container.start();
    assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), "67108864");
}

fn a_stopped_container_is_not_updated(ctx: &Ctx) {
    let container = limited(ctx, json!({}));
    container.kill("KILL").stopped();
    container
        .verb(&["update", "--pids-limit", "10"])
        .refused(&["not running"]);
}

fn a_refused_update_puts_the_limits_back(ctx: &Ctx) {
    let container = limited(
        ctx,
        json!({"memory": {"limit": 67_108_864}, "cpu": {"shares": 200, "cpus": "0"}, "pids": {"limit": 20}}),
    );
    // The memory limit is written before the shares, which are out of the kernel's bounds.
    container
        .verb(&["update", "--memory", "33554432", "--cpu-share", "1"])
        .refused(&["cpu-shares", "shares"]);
    assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(container.cgroup_file("cpu", "cpu.shares"), "200");
    assert_eq!(container.cgroup_file("pids", "pids.max"), "20");
}

fn burst_and_idle_are_updated(ctx: &Ctx) {
    let container = limited(ctx, json!({"cpu": {"quota": 50_000, "period": 100_000}}));
    container.verb(&["update", "--cpu-burst", "40000"]).ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_burst_us"), "40000");
    // Less than the burst: both have to change, and the kernel would refuse either alone.
    container
        .verb(&["update", "--cpu-quota", "20000", "--cpu-burst", "10000"])
        .ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_burst_us"), "10000");
    container
        .verb(&["update", "--cpu-quota", "60000", "--cpu-burst", "60000"])
        .ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_burst_us"), "60000");
    container.verb(&["update", "--cpu-idle", "1"]).ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.idle"), "1");
    container.verb(&["update", "--cpu-idle", "0"]).ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.idle"), "0");
}

fn realtime_limits_follow_the_parents(ctx: &Ctx) {
    let container = limited(ctx, json!({}));
    let parent = ctx.cgroup_dir("cpu", &ctx.cgroup_parent());
    if !parent.join("cpu.rt_runtime_us").exists() {
        // CONFIG_RT_GROUP_SCHED is off in many kernels.
        let call = container.verb(&["update", "--cpu-rt-runtime", "1000"]);
        call.refused(&["cpu.rt_runtime_us"]);
        return;
    }
    container
        .verb(&["update", "--cpu-rt-runtime", "1000"])
        .refused(&["cpu.rt_runtime_us", "realtimeRuntime"]);
    fs::write(parent.join("cpu.rt_runtime_us"), "5000").unwrap();
    container
        .verb(&["update", "--cpu-rt-period", "500000", "--cpu-rt-runtime", "1000"])
        .ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.rt_period_us"), "500000");
    assert_eq!(container.cgroup_file("cpu", "cpu.rt_runtime_us"), "1000");
    // More than half of the new period: runtime before period would be refused, and the other way round back.
    container
        .verb(&["update", "--cpu-rt-period", "1000000", "--cpu-rt-runtime", "4000"])
        .ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.rt_runtime_us"), "4000");
}

fn reservation_is_updated(ctx: &Ctx) {
    let container = limited(ctx, json!({"memory": {"limit": 67_108_864}}));
    container.verb(&["update", "--memory-reservation", "32M"]).ok();
    assert_eq!(
        container.cgroup_file("memory", "memory.soft_limit_in_bytes"),
        "33554432"
    );
    assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), "67108864");
}

/// systemd knows no limit of 0, and none forks either way.
fn an_update_to_no_pids_means_one(ctx: &Ctx) {
    let container = limited(ctx, json!({"pids": {"limit": 20}}));
    container.verb(&["update", "--pids-limit", "0"]).ok();
    assert_eq!(container.cgroup_file("pids", "pids.max"), "1");
}

fn updated_limits_are_stored(ctx: &Ctx) {
    let device = |rate: u64| json!({"major": 7, "minor": 0, "rate": rate});
    let container = limited(
        ctx,
        json!({"devices": [{"allow": false, "access": "rwm"}], "blockIO": {"throttleReadBpsDevice": []}}),
    );
    let update = |resources: Value| {
        let call = ctx.call(&["update", "--resources", "-", &container.id]);
        call.stdin(resources.to_string().as_bytes()).output().ok();
    };
    update(json!({"pids": {"limit": 12}, "cpu": {"quota": 50_000, "period": 100_000}}));
    update(json!({"cpu": {"quota": 0, "shares": 300}, "blockIO": {"throttleReadBpsDevice": [device(1_000_000)]}}));
    update(json!({"blockIO": {"throttleReadBpsDevice": [device(2_000_000)]}}));
    let stored = fs::read(ctx.root.join(&container.id).join("config.json")).unwrap();
    let stored: Value = serde_json::from_slice(&stored).unwrap();
    let resources = &stored["linux"]["resources"];
    assert_eq!(resources["pids"]["limit"], 12);
    assert_eq!(
        resources["cpu"],
        json!({"quota": 50_000, "period": 100_000, "shares": 300})
    );
    assert_eq!(
        resources["blockIO"]["throttleReadBpsDevice"],
        json!([device(2_000_000)])
    );
    assert_eq!(resources["devices"], json!([{"allow": false, "access": "rwm"}]));
    let throttle = container.cgroup_file("blkio", "blkio.throttle.read_bps_device");
    assert_eq!(throttle, "7:0 2000000");
}

fn wrong_values_are_refused_by_flag(ctx: &Ctx) {
    let container = limited(ctx, json!({}));
    for (flag, value) in [
        ("--cpu-quota", "much"),
        ("--cpu-period", "-5"),
        ("--cpu-share", "1.5"),
        ("--cpu-burst", "x"),
        ("--cpu-idle", "yes"),
        ("--cpu-rt-runtime", "x"),
        ("--cpu-rt-period", "x"),
        ("--memory", "5q"),
        ("--memory-swap", "x"),
        ("--memory-reservation", "x"),
        ("--pids-limit", "some"),
        ("--blkio-weight", "70000"),
    ] {
        let name = flag.trim_start_matches('-');
        container.verb(&["update", flag, value]).refused(&[name]);
    }
    container
        .verb(&["update", "--resources", "/no/such/file"])
        .refused(&["/no/such/file"]);
}

fn wrong_resources_are_refused_by_field(ctx: &Ctx) {
    let container = limited(ctx, json!({}));
    let update = |text: &str| {
        let call = ctx.call(&["update", "--resources", "-", &container.id]);
        call.stdin(text.as_bytes()).output()
    };
    update(r#"{"memory": {"limit": "much"}}"#).refused(&["expected i64"]);
    update(r#"{"pids""#).refused(&["EOF"]);
    update(r#"{"cpu": {"cpus": "4000"}}"#).refused(&["cpuset.cpus"]);
}

fn cache_and_bandwidth_schemas_need_resctrl(ctx: &Ctx) {
    let container = limited(ctx, json!({}));
    if without_resctrl() {
        container
            .verb(&["update", "--l3-cache-schema", "L3:0=f"])
            .refused(&["Intel RDT/CAT: l3 cache schema is not enabled", "not supported"]);
        container
            .verb(&["update", "--mem-bw-schema", "MB:0=20"])
            .refused(&["Intel RDT/MBA: memory bandwidth schema is not enabled", "not supported"]);
    }
}

fn intel_rdt_needs_resctrl(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set(
        "/linux/intelRdt",
        json!({"schemata": ["L3:0=f"], "enableMonitoring": true}),
    );
    if without_resctrl() {
        ctx.run(&bundle).refused(&["Intel RDT is not enabled", "resctrl"]);
        // Nor is a name taken that would lead out of the file system.
        bundle.set("/linux/intelRdt", json!({"closID": "../x"}));
        ctx.run(&bundle)
            .refused(&["invalid intelRdt.ClosID", "resctrl", "Intel RDT is not enabled"]);
    }
}

fn events_end_with_the_container(ctx: &Ctx) {
    let container = limited(ctx, json!({}));
    let running = ctx.call(&["events", "--interval", "100ms", &container.id]).spawn();
    eventually("a sample", || running.stdout().contains("stats").then_some(()));
    container.kill("KILL").stopped();
    if ctx.subject.kind == Kind::Proa {
        running.wait().ok();
    } else {
        // runc's watcher ends when the cgroup is removed.
        container.delete();
        running.wait();
    }
}

fn events_of_a_stopped_container_are_refused(ctx: &Ctx) {
    let container = limited(ctx, json!({}));
    container.kill("KILL").stopped();
    container.verb(&["events", "--stats"]).refused(&["is not running"]);
}

fn an_interval_of_nothing_is_refused(ctx: &Ctx) {
    let container = limited(ctx, json!({}));
    container
        .verb(&["events", "--interval", "0"])
        .refused(&["duration interval must be greater than 0"]);
    container.verb(&["events", "--interval", "soon"]).refused(&["interval"]);
}
