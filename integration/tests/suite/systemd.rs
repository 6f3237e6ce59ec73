//! `--systemd-cgroup`, under a systemd of the test's own. What holds for both drivers is tested with the cgroups.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use proa_integration::ctx::eventually;
use proa_integration::{Bundle, Container, Ctx, Kind, View, tests};
use serde_json::{Value, json};

const BOTH: &[View] = &[View::Systemd, View::SystemdV2];
const V1: &[View] = &[View::Systemd];
const V2: &[View] = &[View::SystemdV2];
/// Where the test holds more than Debian 12's runc 1.1 does.
const RUNC: &[(Kind, &str)] = &[(Kind::Runc, "1.1 does less")];
const WITHOUT: &[View] = &[View::Hybrid, View::V1, View::V2];

tests! {
    a_scope_is_made_and_removed .views(BOTH);
    run_leaves_nothing .views(BOTH);
    verbs_know_the_driver_without_the_flag .views(BOTH);
    without_a_path_the_name_is_the_id .views(BOTH);
    an_empty_slice_is_the_systems .views(BOTH);
    slices_are_nested .views(BOTH);
    the_root_slice_is_the_top .views(BOTH);
    a_slice_takes_no_container .views(BOTH);
    bad_paths_are_refused .views(BOTH);
    a_name_that_systemd_refuses_is_refused .views(BOTH);
    two_containers_share_a_slice .views(BOTH);
    a_taken_name_is_refused .views(BOTH).not_for(RUNC);
    a_name_taken_in_another_slice_is_refused .views(BOTH).not_for(RUNC);
    a_failed_unit_of_that_name_is_no_obstacle .views(BOTH).not_for(RUNC);
    limits_are_properties .views(V1);
    v2_files_that_systemd_does_not_know_are_written .views(V2).not_for(RUNC);
    v2_a_limit_without_its_controller_is_refused .views(V2).without_controllers(&["pids"]).not_for(RUNC);
    v2_limits_are_properties .views(V2).controllers(&["memory", "cpu", "cpuset", "pids"]).not_for(RUNC);
    v2_unified_values_are_properties .views(V2).controllers(&["memory", "cpu", "cpuset", "pids", "io"]).not_for(RUNC);
    v2_update_changes_properties_and_files .views(V2).controllers(&["memory", "cpu", "cpuset", "pids"]).not_for(RUNC);
    v2_limits_outlive_a_reload .views(V2).controllers(&["memory", "cpu", "cpuset", "pids", "io"]).not_for(RUNC);
    v2_odd_quotas_are_rounded_up .views(V2).controllers(&["cpu"]);
    v2_the_scope_has_every_controller .views(V2).controllers(&["memory", "cpu", "cpuset", "pids", "io"]);
    v2_an_oom_kill_does_not_fail_the_scope .views(V2).controllers(&["memory"]);
    odd_quotas_are_rounded_up .views(V1).not_for(RUNC);
    devices_are_properties .views(BOTH).not_for(RUNC);
    update_changes_properties_and_files .views(V1);
    limits_outlive_a_reload .views(V1);
    devices_outlive_a_reload .views(BOTH);
    the_container_stays_in_every_hierarchy .views(V1).not_for(RUNC);
    exec_lands_in_the_scope .views(BOTH).not_for(RUNC);
    a_paused_container_can_be_deleted .views(BOTH);
    annotations_are_properties .views(BOTH);
    bad_annotations_are_refused .views(BOTH);
    properties_that_systemd_refuses_are_refused .views(BOTH);
    a_failed_create_leaves_no_unit .views(BOTH);
    a_scope_stopped_by_systemd_is_a_stopped_container .views(BOTH).not_for(RUNC);
    a_cgroup_namespace_begins_at_the_scope .views(BOTH).not_for(RUNC);
    a_bus_that_says_nonsense_is_an_error .views(BOTH).only_proa();
    without_systemd_it_is_an_error .views(WITHOUT).not_for(&[(Kind::Crun, "has other words")]);
    without_systemd_the_format_is_judged_first .views(WITHOUT).only_proa();
}

fn sleeper<'a>(ctx: &'a Ctx, change: impl FnOnce(&Bundle) -> &Bundle) -> Container<'a> {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    change(&bundle);
    ctx.start(&bundle)
}

/// A container with that `slice:prefix:name`.
fn at<'a>(ctx: &'a Ctx, path: &str) -> Container<'a> {
    sleeper(ctx, |b| b.set("/linux/cgroupsPath", json!(path)))
}

fn limited<'a>(ctx: &'a Ctx, resources: &Value) -> Container<'a> {
    sleeper(ctx, |b| {
        for (key, value) in resources.as_object().unwrap() {
            b.set(&format!("/linux/resources/{key}"), value.clone());
        }
        b
    })
}

/// The unit's name.
fn unit(container: &Container) -> String {
    let parts: Vec<&str> = container.cgroup.split(':').collect();
    format!("{}-{}.scope", parts[1], parts[2])
}

/// A unit's properties.
fn properties(ctx: &Ctx, unit: &str) -> BTreeMap<String, String> {
    let text = ctx.systemctl(&["show", unit]);
    let pairs = text.lines().filter_map(|l| l.split_once('='));
    pairs.fold(BTreeMap::new(), |mut all, (name, value)| {
        // DeviceAllow has a line for each.
        let entry: &mut String = all.entry(name.to_owned()).or_default();
        *entry = format!("{entry}\n{value}").trim().to_owned();
        all
    })
}

#[track_caller]
fn has(properties: &BTreeMap<String, String>, wanted: &[(&str, &str)]) {
    for (name, value) in wanted {
        assert_eq!(properties.get(*name).map(String::as_str), Some(*value), "{name}");
    }
}

/// The path of a process in the hierarchy that systemd keeps, or on v2 in the one there is.
fn cgroup_of(ctx: &Ctx, pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    // The kernel tells of every hierarchy it has, mounted or not.
    let mark = if ctx.view.has_v1() { ":name=systemd:" } else { "0::" };
    let path = text.lines().find_map(|l| l.split_once(mark));
    path.unwrap().1.to_owned()
}

fn a_scope_is_made_and_removed(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.create(&bundle);
    let name = unit(&container);
    let expected = [
        ("ActiveState", "active"),
        ("Slice", "machine.slice"),
        ("Delegate", "yes"),
        ("TasksAccounting", "yes"),
        ("MemoryAccounting", "yes"),
        ("CPUAccounting", "yes"),
        ("DefaultDependencies", "no"),
        ("Transient", "yes"),
    ];
    let all = properties(ctx, &name);
    has(&all, &expected);
    assert_eq!(all["ControlGroup"], format!("/machine.slice/{name}"));
    assert!(all["Description"].contains("container"), "{}", all["Description"]);
    assert_eq!(cgroup_of(ctx, container.pid()), all["ControlGroup"]);
    container.start();
    container.kill("KILL").stopped().delete();
    assert_eq!(properties(ctx, &name)["LoadState"], "not-found");
    assert!(!container.cgroup_dir("devices").exists() && !container.cgroup_dir("memory").exists());
}

fn run_leaves_nothing(ctx: &Ctx) {
    for code in [0, 3] {
        let bundle = ctx.bundle();
        bundle.sh(&format!("exit {code}"));
        ctx.run(&bundle).code(code);
        assert_eq!(ctx.leaks(), Vec::<String>::new());
    }
}

fn verbs_know_the_driver_without_the_flag(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    let root = ctx.root.to_str().unwrap();
    let verb = |args: &[&str]| ctx.bare_call(&[&["--root", root], args].concat()).output();
    verb(&["exec", &container.id, "true"]).ok();
    verb(&["pause", &container.id]).ok();
    verb(&["resume", &container.id]).ok();
    verb(&["delete", "--force", &container.id]).ok();
    container.forget();
    assert_eq!(properties(ctx, &unit(&container))["LoadState"], "not-found");
}

fn without_a_path_the_name_is_the_id(ctx: &Ctx) {
    for empty in [false, true] {
        let container = sleeper(ctx, |b| {
            b.edit(|s| {
                s["linux"].as_object_mut().unwrap().remove("cgroupsPath");
                if empty {
                    s["linux"]["cgroupsPath"] = json!("");
                }
            })
        });
        let prefix = if ctx.subject.kind == Kind::Runc { "runc" } else { "proa" };
        let scope = format!("/system.slice/{prefix}-{}.scope", container.id);
        assert_eq!(cgroup_of(ctx, container.pid()), scope);
    }
}

fn an_empty_slice_is_the_systems(ctx: &Ctx) {
    let container = at(ctx, &format!(":proa:{}", ctx.id()));
    assert_eq!(
        cgroup_of(ctx, container.pid()),
        format!("/system.slice/{}", unit(&container))
    );
    assert_eq!(properties(ctx, &unit(&container))["Slice"], "system.slice");
}

fn slices_are_nested(ctx: &Ctx) {
    let container = at(ctx, &format!("machine-pods-one.slice:cri:{}", ctx.id()));
    let expected = "/machine.slice/machine-pods.slice/machine-pods-one.slice";
    assert_eq!(
        cgroup_of(ctx, container.pid()),
        format!("{expected}/{}", unit(&container))
    );
    assert!(container.cgroup_dir("devices").exists());
}

fn the_root_slice_is_the_top(ctx: &Ctx) {
    let container = at(ctx, &format!("-.slice:proa:{}", ctx.id()));
    assert_eq!(cgroup_of(ctx, container.pid()), format!("/{}", unit(&container)));
    container.kill("KILL").stopped().delete();
    assert_eq!(ctx.leaks(), Vec::<String>::new());
}

fn refused(ctx: &Ctx, change: impl FnOnce(&Bundle) -> &Bundle, texts: &[&str]) {
    let bundle = ctx.bundle();
    change(&bundle);
    ctx.run(&bundle).refused(texts);
    assert_eq!(ctx.leaks(), Vec::<String>::new());
}

fn bad_paths_are_refused(ctx: &Ctx) {
    let format = "expected cgroupspath to be of format \"slice:prefix:name\" for systemd cgroups, got";
    for path in ["/a/b", "a.slice:b", "a.slice:b:c:d"] {
        refused(
            ctx,
            |b| b.set("/linux/cgroupsPath", json!(path)),
            &[format, "slice:prefix:name"],
        );
    }
    for path in [
        "a--b.slice:p:n",
        "noslice:p:n",
        "-a.slice:p:n",
        ".slice:p:n",
        "a/b.slice:p:n",
    ] {
        refused(
            ctx,
            |b| b.set("/linux/cgroupsPath", json!(path)),
            &["invalid slice name"],
        );
    }
}

fn a_name_that_systemd_refuses_is_refused(ctx: &Ctx) {
    let long = "x".repeat(300);
    for name in ["with space", &long, "../up", "a/b"] {
        let path = format!("machine.slice:proa:{name}");
        refused(
            ctx,
            |b| b.set("/linux/cgroupsPath", json!(path)),
            &["not valid", "invalid", "does not give a unit name"],
        );
    }
}

fn a_slice_takes_no_container(ctx: &Ctx) {
    // systemd would make it and leave the container outside, without its limits.
    refused(
        ctx,
        |b| b.set("/linux/cgroupsPath", json!("machine.slice:proa:machine-pod8.slice")),
        &["names a slice", "property PIDs", "unable to start unit"],
    );
    assert_ne!(properties(ctx, "machine-pod8.slice")["ActiveState"], "active");
}

fn two_containers_share_a_slice(ctx: &Ctx) {
    let slice = "machine-pod7.slice";
    let (one, two) = (
        at(ctx, &format!("{slice}:a:{}", ctx.id())),
        at(ctx, &format!("{slice}:a:{}", ctx.id())),
    );
    one.kill("KILL").stopped().delete();
    assert_eq!(two.status(), "running");
    assert_eq!(properties(ctx, &unit(&two))["ActiveState"], "active");
    two.exec(&["true"]).ok();
}

fn a_taken_name_is_refused(ctx: &Ctx) {
    let one = sleeper(ctx, |b| b);
    let bundle = ctx.bundle();
    bundle.set("/linux/cgroupsPath", json!(one.cgroup));
    ctx.run(&bundle)
        .refused(&["is not empty", "unitexists", "already exists", "already loaded"]);
    assert_eq!(one.status(), "running");
    assert_eq!(properties(ctx, &unit(&one))["ActiveState"], "active");
}

fn a_name_taken_in_another_slice_is_refused(ctx: &Ctx) {
    let id = ctx.id();
    let one = at(ctx, &format!("machine.slice:proa:{id}"));
    let bundle = ctx.bundle();
    bundle.set("/linux/cgroupsPath", json!(format!("other.slice:proa:{id}")));
    ctx.run(&bundle).refused(&["unitexists", "already", "loaded"]);
    // Undoing the second must not end the first.
    assert_eq!(one.status(), "running");
    assert_eq!(properties(ctx, &unit(&one))["ActiveState"], "active");
    one.exec(&["true"]).ok();
}

fn a_failed_unit_of_that_name_is_no_obstacle(ctx: &Ctx) {
    let id = ctx.id();
    let scope = format!("proa-{id}.scope");
    // A scope whose time is up and whose process had to be killed has failed.
    let script = format!(
        "systemd-run -q --scope --unit={scope} --slice=machine -p RuntimeMaxSec=100ms -p TimeoutStopSec=1 sleep 1000"
    );
    let status = std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
    assert!(!status.success());
    eventually("a failed unit", || {
        (properties(ctx, &scope)["ActiveState"] == "failed").then_some(())
    });
    let container = at(ctx, &format!("machine.slice:proa:{id}"));
    assert_eq!(properties(ctx, &unit(&container))["ActiveState"], "active");
}

fn limits_are_properties(ctx: &Ctx) {
    let resources = json!({
        "memory": {"limit": 33_554_432}, "pids": {"limit": 20}, "blockIO": {"weight": 300},
        "cpu": {"shares": 512, "quota": 50_000, "period": 200_000, "cpus": "0"}
    });
    let container = limited(ctx, &resources);
    let all = properties(ctx, &unit(&container));
    let expected = [
        ("MemoryLimit", "33554432"),
        ("CPUShares", "512"),
        ("CPUQuotaPerSecUSec", "250ms"),
        ("CPUQuotaPeriodUSec", "200ms"),
        ("TasksMax", "20"),
        ("BlockIOWeight", "300"),
        ("AllowedCPUs", "0"),
    ];
    has(&all, &expected);
    for (controller, file, value) in [
        ("memory", "memory.limit_in_bytes", "33554432"),
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "200000"),
        ("pids", "pids.max", "20"),
        ("cpuset", "cpuset.cpus", "0"),
    ] {
        assert_eq!(container.cgroup_file(controller, file), value, "{file}");
    }
}

fn v2_files_that_systemd_does_not_know_are_written(ctx: &Ctx) {
    let container = sleeper(ctx, |b| {
        b.set(
            "/linux/resources/unified",
            json!({"cgroup.max.depth": "3", "cgroup.max.descendants": "7"}),
        )
    });
    assert_eq!(container.cgroup_file("", "cgroup.max.depth"), "3");
    assert_eq!(container.cgroup_file("", "cgroup.max.descendants"), "7");
}

fn v2_a_limit_without_its_controller_is_refused(ctx: &Ctx) {
    refused(
        ctx,
        |b| b.set("/linux/resources/pids", json!({"limit": 20})),
        &["cannot set pids limit"],
    );
}

#[track_caller]
fn files(container: &Container, wanted: &[(&str, &str)]) {
    for (file, value) in wanted {
        assert_eq!(container.cgroup_file("", file), *value, "{file}");
    }
}

fn v2_limits_are_properties(ctx: &Ctx) {
    let resources = json!({
        "memory": {"limit": 67_108_864, "reservation": 33_554_432, "swap": 100_663_296}, "pids": {"limit": 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 200_000, "cpus": "0", "mems": "0"}
    });
    let container = limited(ctx, &resources);
    let expected = [
        ("MemoryMax", "67108864"),
        ("MemoryLow", "33554432"),
        ("MemorySwapMax", "33554432"),
        ("CPUWeight", "59"),
        ("CPUQuotaPerSecUSec", "250ms"),
        ("CPUQuotaPeriodUSec", "200ms"),
        ("TasksMax", "20"),
        ("AllowedCPUs", "0"),
        ("AllowedMemoryNodes", "0"),
    ];
    has(&properties(ctx, &unit(&container)), &expected);
    files(
        &container,
        &[
            ("memory.max", "67108864"),
            ("memory.low", "33554432"),
            ("memory.swap.max", "33554432"),
            ("cpu.weight", "59"),
            ("cpu.max", "50000 200000"),
            ("pids.max", "20"),
            ("cpuset.cpus", "0"),
            ("cpuset.mems", "0"),
        ],
    );
    let idle = limited(ctx, &json!({"cpu": {"idle": 1}}));
    // The word is of systemd 254 or so; 0 before.
    let weight = properties(ctx, &unit(&idle))["CPUWeight"].clone();
    assert!(weight == "idle" || weight == "0", "{weight}");
    files(&idle, &[("cpu.idle", "1")]);
}

fn v2_unified_values_are_properties(ctx: &Ctx) {
    let unified = json!({
        "memory.min": "4194304", "memory.low": "8388608", "memory.high": "50331648", "memory.max": "67108864",
        "memory.swap.max": "0", "io.weight": "default 200", "cpu.weight": "123", "cpu.max": "20000 100000", "cpuset.cpus": "0-1", "pids.max": "99"
    });
    let container = limited(ctx, &json!({"unified": unified}));
    let expected = [
        ("MemoryMin", "4194304"),
        ("MemoryLow", "8388608"),
        ("MemoryHigh", "50331648"),
        ("MemoryMax", "67108864"),
        ("MemorySwapMax", "0"),
        ("IOWeight", "200"),
        ("CPUWeight", "123"),
        ("CPUQuotaPerSecUSec", "200ms"),
        ("AllowedCPUs", "0-1"),
        ("TasksMax", "99"),
    ];
    has(&properties(ctx, &unit(&container)), &expected);
    for (file, value) in unified.as_object().unwrap() {
        files(&container, &[(file, value.as_str().unwrap())]);
    }
}

fn v2_update_changes_properties_and_files(ctx: &Ctx) {
    let container = limited(ctx, &json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 20}}));
    let flags = [
        ["--memory", "50331648"],
        ["--memory-swap", "83886080"],
        ["--pids-limit", "10"],
        ["--cpu-share", "512"],
        ["--cpu-quota", "60000"],
        ["--cpu-period", "100000"],
        ["--cpuset-cpus", "0"],
    ];
    container.verb(&[&["update"], flags.as_flattened()].concat()).ok();
    let expected = [
        ("MemoryMax", "50331648"),
        ("MemorySwapMax", "33554432"),
        ("TasksMax", "10"),
        ("CPUWeight", "59"),
        ("CPUQuotaPerSecUSec", "600ms"),
        ("AllowedCPUs", "0"),
    ];
    has(&properties(ctx, &unit(&container)), &expected);
    let written = [
        ("memory.max", "50331648"),
        ("memory.swap.max", "33554432"),
        ("pids.max", "10"),
        ("cpu.weight", "59"),
        ("cpu.max", "60000 100000"),
        ("cpuset.cpus", "0"),
    ];
    files(&container, &written);
    // systemd writes what it remembers.
    ctx.systemctl(&["set-property", "--runtime", &unit(&container), "MemoryHigh=40M"]);
    files(&container, &written);
    container
        .verb(&["update", "--pids-limit", "-1", "--cpu-quota", "-1", "--memory", "-1"])
        .ok();
    let expected = [
        ("TasksMax", "infinity"),
        ("CPUQuotaPerSecUSec", "infinity"),
        ("MemoryMax", "infinity"),
        ("MemorySwapMax", "infinity"),
    ];
    has(&properties(ctx, &unit(&container)), &expected);
    files(
        &container,
        &[("pids.max", "max"), ("cpu.max", "max 100000"), ("memory.max", "max")],
    );
}

fn v2_limits_outlive_a_reload(ctx: &Ctx) {
    let resources = json!({
        "memory": {"limit": 67_108_864, "reservation": 33_554_432}, "pids": {"limit": 20}, "blockIO": {"weight": 300},
        "cpu": {"shares": 512, "quota": 50_000, "period": 200_000, "burst": 10_000, "cpus": "0"},
        "unified": {"memory.high": "50331648"}
    });
    let container = limited(ctx, &resources);
    container.verb(&["update", "--pids-limit", "11"]).ok();
    let mut written = vec![
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.high", "50331648"),
        ("pids.max", "11"),
        ("cpu.weight", "59"),
        ("cpu.max", "50000 200000"),
        ("cpu.max.burst", "10000"),
        ("cpuset.cpus", "0"),
    ];
    // systemd has a scale of its own for BFQ's weight.
    if !container.cgroup_dir("").join("io.bfq.weight").exists() {
        written.push(("io.weight", "default 2930"));
    }
    files(&container, &written);
    ctx.systemctl(&["daemon-reload"]);
    files(&container, &written);
    // Another scope in the slice has systemd look at the slice again.
    let another = sleeper(ctx, |b| b);
    files(&container, &written);
    another.kill("KILL").stopped().delete();
    ctx.systemctl(&["set-property", "--runtime", &unit(&container), "MemorySwapMax=1M"]);
    files(&container, &written);
}

fn v2_odd_quotas_are_rounded_up(ctx: &Ctx) {
    let container = limited(ctx, &json!({"cpu": {"quota": 33_333, "period": 100_000}}));
    has(&properties(ctx, &unit(&container)), &[("CPUQuotaPerSecUSec", "340ms")]);
    files(&container, &[("cpu.max", "34000 100000")]);
}

fn v2_the_scope_has_every_controller(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    let have = container.cgroup_file("", "cgroup.controllers");
    for controller in ["memory", "cpu", "cpuset", "pids", "io"] {
        assert!(have.split(' ').any(|c| c == controller), "no {controller} in {have:?}");
    }
    let all = properties(ctx, &unit(&container));
    has(
        &all,
        &[
            ("Delegate", "yes"),
            ("MemoryAccounting", "yes"),
            ("IOAccounting", "yes"),
        ],
    );
}

fn v2_an_oom_kill_does_not_fail_the_scope(ctx: &Ctx) {
    let container = sleeper(ctx, |b| {
        b.sh("probe eat 64; echo status $?; sleep 1000").set(
            "/linux/resources/memory",
            json!({"limit": 16_777_216, "swap": 16_777_216}),
        )
    });
    container.says("status 137");
    assert_eq!(container.status(), "running");
    assert_eq!(properties(ctx, &unit(&container))["ActiveState"], "active");
    container.exec(&["true"]).ok();
}

fn odd_quotas_are_rounded_up(ctx: &Ctx) {
    let container = limited(ctx, &json!({"cpu": {"quota": 33_333, "period": 100_000}}));
    has(&properties(ctx, &unit(&container)), &[("CPUQuotaPerSecUSec", "340ms")]);
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_quota_us"), "34000");
    container.verb(&["update", "--cpu-quota", "-1"]).ok();
    has(
        &properties(ctx, &unit(&container)),
        &[("CPUQuotaPerSecUSec", "infinity")],
    );
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_quota_us"), "-1");
}

fn devices_are_properties(ctx: &Ctx) {
    let all = properties(ctx, &unit(&sleeper(ctx, |b| b)));
    assert_eq!(all["DevicePolicy"], "strict");
    for entry in [
        "/dev/char/1:3 rwm",
        "/dev/char/5:2 rwm",
        "char-136 rwm",
        "char-* m",
        "block-* m",
    ] {
        assert!(
            all["DeviceAllow"].lines().any(|l| l == entry),
            "no {entry}: {}",
            all["DeviceAllow"]
        );
    }
    let open = limited(ctx, &json!({"devices": [{"allow": true, "access": "rwm"}]}));
    let all = properties(ctx, &unit(&open));
    has(&all, &[("DevicePolicy", "auto")]);
    assert_eq!(all.get("DeviceAllow").map_or("", String::as_str), "");
}

fn update_changes_properties_and_files(ctx: &Ctx) {
    let container = limited(ctx, &json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 20}}));
    let flags = [
        "update",
        "--memory",
        "50331648",
        "--pids-limit",
        "10",
        "--cpu-share",
        "200",
        "--cpu-quota",
        "60000",
        "--cpu-period",
        "100000",
        "--cpuset-cpus",
        "0",
    ];
    container.verb(&flags).ok();
    let expected = [
        ("MemoryLimit", "50331648"),
        ("TasksMax", "10"),
        ("CPUShares", "200"),
        ("CPUQuotaPerSecUSec", "600ms"),
        ("AllowedCPUs", "0"),
    ];
    has(&properties(ctx, &unit(&container)), &expected);
    assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), "50331648");
    assert_eq!(container.cgroup_file("pids", "pids.max"), "10");
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_quota_us"), "60000");
    container.verb(&["update", "--pids-limit", "-1"]).ok();
    has(&properties(ctx, &unit(&container)), &[("TasksMax", "infinity")]);
    assert_eq!(container.cgroup_file("pids", "pids.max"), "max");
}

fn limits_outlive_a_reload(ctx: &Ctx) {
    let container = limited(ctx, &json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 20}}));
    container
        .verb(&["update", "--pids-limit", "11", "--cpu-share", "200"])
        .ok();
    ctx.systemctl(&["daemon-reload"]);
    assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(container.cgroup_file("pids", "pids.max"), "11");
    assert_eq!(container.cgroup_file("cpu", "cpu.shares"), "200");
}

fn devices_outlive_a_reload(ctx: &Ctx) {
    let container = sleeper(ctx, |b| {
        b.set(
            "/linux/devices",
            json!([{"path": "/dev/tested", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}]),
        )
        .set(
            "/linux/resources/devices",
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]),
        )
    });
    for _ in 0..2 {
        let open = |how: &str| {
            let out = container.exec(&["probe", "open", "/dev/tested", how]);
            out.ok().text().to_owned()
        };
        assert_eq!((open("r").as_str(), open("w").as_str()), ("ok", "errno 1"));
        assert_eq!(container.exec(&["probe", "open", "/dev/null", "rw"]).ok().text(), "ok");
        ctx.systemctl(&["daemon-reload"]);
    }
}

fn the_container_stays_in_every_hierarchy(ctx: &Ctx) {
    let container = limited(ctx, &json!({"pids": {"limit": 20}}));
    let check = |after: &str| {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
        let scope = format!("/machine.slice/{}", unit(&container));
        let elsewhere: Vec<&str> = text
            .lines()
            .filter(|l| !l.starts_with("0::") && !l.ends_with(&scope))
            // What is not mounted nobody can be moved in.
            .filter(|l| {
                ctx.cgroup_dir(l.split(':').nth(1).unwrap().trim_start_matches("name="), "")
                    .exists()
            })
            .collect();
        assert!(elsewhere.is_empty(), "after {after}: {elsewhere:?}");
    };
    check("create");
    container.verb(&["update", "--pids-limit", "11"]).ok();
    check("update");
    ctx.systemctl(&["set-property", "--runtime", &unit(&container), "CPUShares=300"]);
    check("set-property");
    let another = sleeper(ctx, |b| b);
    check("another container in the slice");
    another.kill("KILL").stopped().delete();
    check("its end");
    ctx.systemctl(&["daemon-reload"]);
    check("daemon-reload");
}

fn exec_lands_in_the_scope(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    let text = container.exec(&["cat", "/proc/self/cgroup"]).ok().stdout.clone();
    if ctx.view.has_v1() {
        let scope = format!("/machine.slice/{}", unit(&container));
        for line in text.lines().filter(|l| !l.starts_with("0::")) {
            assert!(line.ends_with(&scope), "{line}");
        }
    } else {
        assert!(text.lines().any(|l| l == "0::/"), "{text}");
    }
    let id = container.exec_call(&["--detach"], &["sleep", "1000"]);
    id.output().ok();
    let control = properties(ctx, &unit(&container));
    eventually("two processes", || {
        let procs = fs::read_to_string(container.cgroup_dir("devices").join("cgroup.procs")).unwrap();
        (procs.lines().count() == 2).then_some(())
    });
    assert_eq!(control["ActiveState"], "active");
}

fn a_paused_container_can_be_deleted(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    container.verb(&["pause"]).ok();
    assert_eq!(container.status(), "paused");
    container.verb(&["delete", "--force"]).ok();
    container.forget();
    assert_eq!(properties(ctx, &unit(&container))["LoadState"], "not-found");
}

fn annotated(b: &Bundle, properties: &[(&str, &str)]) {
    b.edit(|s| {
        for (name, value) in properties {
            s["annotations"][format!("org.systemd.property.{name}")] = json!(value);
        }
    });
}

fn annotations_are_properties(ctx: &Ctx) {
    let container = sleeper(ctx, |b| {
        annotated(
            b,
            &[
                ("CollectMode", "'inactive-or-failed'"),
                ("TimeoutStopSec", "7"),
                ("CPUShares", "uint64 300"),
                ("Documentation", "['man:a(1)', \"https://example.org\"]"),
                ("SendSIGHUP", "true"),
            ],
        );
        b
    });
    let expected = [
        ("CollectMode", "inactive-or-failed"),
        ("TimeoutStopUSec", "7s"),
        ("CPUShares", "300"),
        ("Documentation", "\"man:a(1)\" https://example.org"),
        ("SendSIGHUP", "yes"),
    ];
    let all = properties(ctx, &unit(&container));
    has(&all, &expected[..3]);
    assert!(
        all["Documentation"].contains("man:a(1)") && all["Documentation"].contains("https://example.org"),
        "{}",
        all["Documentation"]
    );
    has(&all, &expected[4..]);
}

fn bad_annotations_are_refused(ctx: &Ctx) {
    for (name, value) in [("X", "1"), ("With-Dash", "1"), ("CollectMode", "[")] {
        refused(
            ctx,
            |b| {
                annotated(b, &[(name, value)]);
                b
            },
            &["annotation", "org.systemd.property"],
        );
    }
}

fn properties_that_systemd_refuses_are_refused(ctx: &Ctx) {
    for (name, value) in [
        ("NoSuchProperty", "1"),
        ("CollectMode", "'sometimes'"),
        ("TasksMax", "'x'"),
    ] {
        refused(
            ctx,
            |b| {
                annotated(b, &[(name, value)]);
                b
            },
            &[name, value.trim_matches('\''), "StartTransientUnit"],
        );
    }
}

fn a_failed_create_leaves_no_unit(ctx: &Ctx) {
    refused(ctx, |b| b.args(&["/no/such/program"]), &["no such file"]);
    refused(
        ctx,
        |b| {
            b.set("/mounts/0/source", json!("/nowhere"))
                .set("/mounts/0/type", json!("ext4"))
        },
        &["/proc"],
    );
    refused(
        ctx,
        |b| b.set("/hooks", json!({"createRuntime": [{"path": "/bin/false"}]})),
        &["hook"],
    );
    if ctx.view.has_v1() {
        refused(
            ctx,
            |b| b.set("/linux/resources/cpu", json!({"cpus": "4000"})),
            &["cpuset", "cpus"],
        );
    }
}

fn a_scope_stopped_by_systemd_is_a_stopped_container(ctx: &Ctx) {
    let container = sleeper(ctx, |b| {
        annotated(b, &[("TimeoutStopSec", "1")]);
        b
    });
    ctx.systemctl(&["kill", "--signal=KILL", &unit(&container)]);
    container.stopped();
    container.delete();
    let container = sleeper(ctx, |b| {
        annotated(b, &[("TimeoutStopUSec", "uint64 100000")]);
        b
    });
    ctx.systemctl(&["stop", &unit(&container)]);
    container.stopped();
    // The unit is gone, and with it its cgroups in the hierarchies that systemd knows.
    container.verb(&["delete"]).ok();
    container.forget();
    assert_eq!(ctx.leaks(), Vec::<String>::new());
}

fn a_cgroup_namespace_begins_at_the_scope(ctx: &Ctx) {
    let text = ctx.shell("cat /proc/self/cgroup", |b| b.namespace("cgroup", None));
    let lines: Vec<&str> = text
        .lines()
        .filter(|l| !l.starts_with("0::") || !ctx.view.has_v1())
        .collect();
    assert!(!lines.is_empty() && lines.iter().all(|l| l.ends_with(":/")), "{text}");
}

/// A bus that answers the authentication, then with `answer` to whatever comes, or hangs up if there is none.
fn fake_bus(at: &Path, answers: Vec<Vec<u8>>) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(at).unwrap();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut some = [0; 4096];
            // "\0AUTH EXTERNAL …", then "BEGIN" with the first call.
            let asked = stream.read(&mut some).unwrap();
            assert!(some[..asked].starts_with(b"\0AUTH EXTERNAL"));
            stream.write_all(b"OK 0123456789abcdef\r\n").unwrap();
            let asked = stream.read(&mut some).unwrap();
            assert!(some[..asked].starts_with(b"BEGIN"));
            stream.write_all(&answer).unwrap();
        }
    })
}

fn a_bus_that_says_nonsense_is_an_error(ctx: &Ctx) {
    // Over the real one, in this test's sight only.
    let real = Path::new("/run/dbus/system_bus_socket");
    let socket = &ctx.dir.join("bus");
    let answers = vec![Vec::new(), vec![0xff; 64], b"l\x02\x00\x01".to_vec(), vec![b'l'; 4096]];
    let count = answers.len();
    let bus = fake_bus(socket, answers);
    ctx.host_mount(&["--bind", socket.to_str().unwrap()], real);
    for _ in 0..count {
        let bundle = ctx.bundle();
        ctx.run(&bundle).refused(&["dbus"]);
    }
    bus.join().unwrap();
    assert!(Command::new("umount").arg(real).status().unwrap().success());
    assert_eq!(ctx.leaks(), Vec::<String>::new());
    ctx.run(&ctx.bundle()).ok();
}

fn systemd_create(ctx: &Ctx, bundle: &Bundle) -> proa_integration::Output {
    let id = ctx.id();
    let bundle = bundle.dir.to_str().unwrap();
    ctx.call(&["--systemd-cgroup", "create", "--bundle", bundle, &id])
        .output()
}

fn without_systemd_it_is_an_error(ctx: &Ctx) {
    // The host may have a bus of its own, of which nothing is wanted here.
    ctx.tmpfs(Path::new("/run"), "mode=755");
    let bundle = ctx.bundle();
    bundle.set("/linux/cgroupsPath", json!(format!("machine.slice:proa:{}", ctx.id())));
    systemd_create(ctx, &bundle).refused(&["systemd not running on this host, cannot use systemd cgroups manager"]);
    // Or one whose bus is not there (yet).
    fs::create_dir_all("/run/systemd/system").unwrap();
    systemd_create(ctx, &bundle).refused(&["failed to connect to dbus"]);
}

fn without_systemd_the_format_is_judged_first(ctx: &Ctx) {
    systemd_create(ctx, &ctx.bundle()).refused(&["slice:prefix:name"]);
}
