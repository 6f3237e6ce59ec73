//! Control groups: limits of every kind, devices, freezer, statistics, updates, and what delete takes away.

use std::fs;
use std::process::Command;

use proa_integration::ctx::eventually;
use proa_integration::{Bundle, Container, Ctx, Kind, View, tests};
use serde_json::{Value, json};

const V1: &[View] = &[View::Hybrid, View::V1];
const V2: &[View] = &[View::V2];

tests! {
    the_first_process_is_in_its_cgroup;
    children_are_born_in_the_cgroup;
    delete_removes_the_cgroup;
    delete_removes_nested_cgroups;
    run_removes_the_cgroup;
    a_path_is_chosen_when_none_is_given;
    a_relative_path_is_taken_below_some_parent;
    a_path_cannot_climb_out .once();
    two_containers_share_a_parent;
    memory_limits_are_written .views(V1);
    memory_limit_kills_the_greedy .views(V1);
    pids_limit_is_written .views(V1);
    pids_limit_stops_forks .views(V1);
    cpu_limits_are_written .views(V1);
    cpuset_is_written .views(V1);
    blkio_limits_are_written .views(V1);
    unlimited_is_minus_one .views(V1);
    a_nonsense_limit_is_refused;
    v2_unified_values_are_written .views(V2);
    v2_a_limit_without_its_controller_is_refused .views(V2);
    devices_not_allowed_cannot_be_opened;
    devices_allowed_can_be_opened;
    device_access_is_told_apart;
    later_device_rules_win;
    default_devices_work_under_deny_all;
    freezer_state_is_where_the_kernel_has_it .views(V1);
    v2_freezer_state_is_where_the_kernel_has_it .views(V2);
    update_changes_limits .views(V1);
    update_reads_a_file .views(V1);
    update_reads_stdin .views(V1);
    update_of_device_rules_keeps_them;
    update_of_an_absent_container_is_refused .once();
    update_survives_a_state_call .views(V1);
    events_stats_shows_one_sample .views(V1);
    v2_events_stats_shows_one_sample .views(V2);
    events_repeats_at_the_interval .views(V1);
    events_reports_oom .views(V1).not_for(&[(Kind::Crun, "has no events")]);
    kill_all_works_in_a_shared_pid_namespace;
    processes_of_a_shared_pid_namespace_die_at_delete .views(V1);
    v2_processes_of_a_shared_pid_namespace_die_at_delete .views(V2).not_for(&[(Kind::Runc, "1.1 leaves them")]);
    exec_processes_are_counted;
    a_cgroup_in_use_by_others_is_not_emptied;
    a_cgroup_that_cannot_be_made_is_refused .once();
    hugetlb_limit_is_written .views(V2).not_for(&[(Kind::Runc, "the kernel's controller needs delegation"), (Kind::Crun, "the same")]);
    v2_cgroup_namespace_root_is_the_containers_group .views(V2);
    letters_that_are_no_device_access_are_ignored .once();
}

fn sleeper<'a>(ctx: &'a Ctx, change: impl FnOnce(&Bundle) -> &Bundle) -> Container<'a> {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    change(&bundle);
    ctx.start(&bundle)
}

fn procs(container: &Container) -> Vec<String> {
    fs::read_to_string(container.cgroup_dir("devices").join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn the_first_process_is_in_its_cgroup(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    assert_eq!(procs(&container), [container.pid().to_string()]);
    if ctx.view.has_v1() {
        for controller in ["memory", "pids", "cpu", "cpuset", "freezer", "blkio", "devices"] {
            assert_eq!(
                container.cgroup_file(controller, "cgroup.procs"),
                container.pid().to_string(),
                "{controller}"
            );
        }
    }
}

fn children_are_born_in_the_cgroup(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("sleep 1000 & sleep 1000 & echo up; wait");
    let container = ctx.start(&bundle);
    container.says("up");
    assert_eq!(procs(&container).len(), 3);
}

fn delete_removes_the_cgroup(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    assert!(container.cgroup_dir("devices").exists());
    container.kill("KILL").stopped().delete();
    assert!(!container.cgroup_dir("devices").exists() && !container.cgroup_dir("memory").exists());
}

fn delete_removes_nested_cgroups(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    let deep = container.cgroup_dir("devices").join("one/two");
    fs::create_dir_all(&deep).unwrap();
    container.kill("KILL").stopped().delete();
    assert!(!container.cgroup_dir("devices").exists());
}

fn run_removes_the_cgroup(ctx: &Ctx) {
    let bundle = ctx.bundle();
    ctx.run(&bundle).ok();
    let path = bundle.spec()["linux"]["cgroupsPath"].as_str().unwrap().to_owned();
    assert!(!ctx.cgroup_dir("devices", &path).exists());
}

fn a_path_is_chosen_when_none_is_given(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .args(&["sleep", "1000"])
        .edit(|s| drop(s["linux"].as_object_mut().unwrap().remove("cgroupsPath")));
    let container = ctx.start(&bundle);
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    assert!(groups.lines().any(|l| l.contains(&container.id)), "{groups}");
}

fn a_relative_path_is_taken_below_some_parent(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let name = format!("{}rel/inner", ctx.cgroup_parent().trim_start_matches('/'));
    bundle.args(&["sleep", "1000"]).set("/linux/cgroupsPath", json!(name));
    let container = ctx.start(&bundle);
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    assert!(groups.lines().any(|l| l.ends_with(&name)), "{groups}");
    container.verb(&["delete", "--force"]).ok();
    container.forget();
    // What lies above the container's own group is the caller's.
    for group in proa_integration::host::cgroups_with(name.split('/').next().unwrap()) {
        fs::remove_dir(&group).unwrap();
    }
}

fn a_path_cannot_climb_out(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["cat", "/proc/self/cgroup"]).set(
        "/linux/cgroupsPath",
        json!(format!("/../../../{}/up", ctx.cgroup_parent())),
    );
    let out = ctx.run(&bundle);
    if out.code == 0 {
        assert!(!out.stdout.contains(".."), "{out:?}");
    }
}

fn two_containers_share_a_parent(ctx: &Ctx) {
    let one = sleeper(ctx, |b| b);
    let two = sleeper(ctx, |b| b);
    one.verb(&["delete", "--force"]).ok();
    one.forget();
    assert_eq!(two.status(), "running");
    assert!(two.cgroup_dir("devices").exists());
}

fn limited<'a>(ctx: &'a Ctx, resources: Value) -> Container<'a> {
    sleeper(ctx, |b| {
        b.edit(|s| {
            for (key, value) in resources.as_object().unwrap() {
                s["linux"]["resources"][key] = value.clone();
            }
        })
    })
}

fn memory_limits_are_written(ctx: &Ctx) {
    let container = limited(ctx, json!({"memory": {"limit": 33_554_432, "reservation": 16_777_216}}));
    assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), "33554432");
    assert_eq!(
        container.cgroup_file("memory", "memory.soft_limit_in_bytes"),
        "16777216"
    );
}

fn memory_limit_kills_the_greedy(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/linux/resources/memory", json!({"limit": 16_777_216}))
        .sh("probe eat 8; probe eat 64; echo status $?");
    let out = ctx.run(&bundle);
    assert!(
        out.stdout.contains("ate 8") && !out.stdout.contains("ate 64"),
        "{out:?}"
    );
}

fn pids_limit_is_written(ctx: &Ctx) {
    assert_eq!(
        limited(ctx, json!({"pids": {"limit": 17}})).cgroup_file("pids", "pids.max"),
        "17"
    );
}

fn pids_limit_stops_forks(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/linux/resources/pids", json!({"limit": 4}))
        .sh("for i in 1 2 3 4 5 6 7 8; do sleep 3 & done; echo all");
    let out = ctx.run(&bundle);
    assert!(
        out.stderr.contains("fork") || out.stderr.contains("temporarily"),
        "{out:?}"
    );
}

fn cpu_limits_are_written(ctx: &Ctx) {
    let container = limited(ctx, json!({"cpu": {"shares": 512, "quota": 50_000, "period": 200_000}}));
    assert_eq!(container.cgroup_file("cpu", "cpu.shares"), "512");
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_quota_us"), "50000");
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_period_us"), "200000");
}

fn cpuset_is_written(ctx: &Ctx) {
    let container = limited(ctx, json!({"cpu": {"cpus": "0", "mems": "0"}}));
    assert_eq!(container.cgroup_file("cpuset", "cpuset.cpus"), "0");
    assert_eq!(container.exec(&["probe", "affinity"]).ok().text(), "0");
}

fn blkio_limits_are_written(ctx: &Ctx) {
    let weight = ctx.cgroup_dir("blkio", "").join("blkio.bfq.weight").exists();
    let resources = if weight {
        json!({"blockIO": {"weight": 300}})
    } else {
        json!({"blockIO": {}})
    };
    let container = limited(ctx, resources);
    if weight {
        assert_eq!(container.cgroup_file("blkio", "blkio.bfq.weight"), "300");
    }
}

fn unlimited_is_minus_one(ctx: &Ctx) {
    let container = limited(
        ctx,
        json!({"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}),
    );
    assert!(
        container
            .cgroup_file("memory", "memory.limit_in_bytes")
            .parse::<u64>()
            .unwrap()
            > 1 << 60
    );
    assert_eq!(container.cgroup_file("pids", "pids.max"), "max");
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_quota_us"), "-1");
}

fn a_nonsense_limit_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/linux/resources/cpu", json!({"cpus": "not-a-list"}));
    ctx.run(&bundle).refused(&["cpuset", "cpus"]);
}

fn v2_unified_values_are_written(ctx: &Ctx) {
    let container = limited(ctx, json!({"unified": {"cgroup.max.depth": "3"}}));
    assert_eq!(container.cgroup_file("", "cgroup.max.depth"), "3");
}

fn v2_a_limit_without_its_controller_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/linux/resources/memory", json!({"limit": 33_554_432}));
    ctx.run(&bundle).refused(&["memory"]);
}

fn open(ctx: &Ctx, rules: Value, how: &str) -> String {
    let bundle = ctx.bundle();
    // The device of /dev/fuse: harmless to open, needs no capability, and is in nobody's defaults.
    bundle.set(
        "/linux/devices",
        json!([{"path": "/dev/tested", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}]),
    );
    bundle
        .set("/linux/resources/devices", rules)
        .args(&["probe", "open", "/dev/tested", how]);
    ctx.run(&bundle).ok().text().to_owned()
}

fn devices_not_allowed_cannot_be_opened(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .caps(&["CAP_MKNOD"])
        .sh("probe open /tmp/node r; probe open /dev/null rw")
        .writable();
    let made = Command::new("mknod")
        .arg(bundle.path("/tmp/node"))
        .args(["c", "10", "229"])
        .status()
        .unwrap();
    assert!(made.success());
    assert_eq!(ctx.run(&bundle).ok().stdout, "errno 1\nok\n");
}

fn devices_allowed_can_be_opened(ctx: &Ctx) {
    let rules = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]);
    assert_eq!(open(ctx, rules, "r"), "ok");
}

fn device_access_is_told_apart(ctx: &Ctx) {
    let rules = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]);
    assert_eq!(open(ctx, rules.clone(), "r"), "ok");
    assert_eq!(open(ctx, rules, "w"), "errno 1");
}

fn later_device_rules_win(ctx: &Ctx) {
    let rules = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "access": "rw"},
        {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "w"}]);
    // v1 cannot take one out of many again: runtimes refuse that or do it; none may allow the write.
    let bundle = ctx.bundle();
    bundle.set(
        "/linux/devices",
        json!([{"path": "/dev/tested", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}]),
    );
    bundle
        .set("/linux/resources/devices", rules)
        .args(&["probe", "open", "/dev/tested", "w"]);
    let out = ctx.run(&bundle);
    assert!(out.code != 0 || out.text() == "errno 1", "{out:?}");
}

fn default_devices_work_under_deny_all(ctx: &Ctx) {
    let text = ctx.shell(
        "for d in null zero full random urandom; do probe open /dev/$d r; done; probe open /dev/ptmx rw",
        |b| b,
    );
    assert_eq!(text, "ok\n".repeat(6));
}

fn freezer_state_is_where_the_kernel_has_it(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    container.verb(&["pause"]).ok();
    assert_eq!(container.cgroup_file("freezer", "freezer.state"), "FROZEN");
    container.verb(&["resume"]).ok();
    assert_eq!(container.cgroup_file("freezer", "freezer.state"), "THAWED");
}

fn v2_freezer_state_is_where_the_kernel_has_it(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    container.verb(&["pause"]).ok();
    assert!(container.cgroup_file("", "cgroup.events").contains("frozen 1"));
    container.verb(&["resume"]).ok();
    assert!(container.cgroup_file("", "cgroup.events").contains("frozen 0"));
}

fn update_changes_limits(ctx: &Ctx) {
    let container = limited(
        ctx,
        json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 20}, "cpu": {"shares": 100}}),
    );
    container
        .verb(&[
            "update",
            "--memory",
            "33554432",
            "--pids-limit",
            "10",
            "--cpu-share",
            "200",
            "--cpu-quota",
            "60000",
            "--cpu-period",
            "100000",
        ])
        .ok();
    assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), "33554432");
    assert_eq!(container.cgroup_file("pids", "pids.max"), "10");
    assert_eq!(container.cgroup_file("cpu", "cpu.shares"), "200");
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_quota_us"), "60000");
    container.verb(&["update", "--cpuset-cpus", "0"]).ok();
    assert_eq!(container.cgroup_file("cpuset", "cpuset.cpus"), "0");
    // What was not mentioned stays.
    assert_eq!(container.cgroup_file("pids", "pids.max"), "10");
}

const RESOURCES: &str = r#"{"memory": {"limit": 50331648}, "pids": {"limit": 33}, "cpu": {"shares": 300}}"#;

fn update_reads_a_file(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    let file = ctx.dir.join("resources.json");
    fs::write(&file, RESOURCES).unwrap();
    container.verb(&["update", "--resources", file.to_str().unwrap()]).ok();
    assert_eq!(container.cgroup_file("pids", "pids.max"), "33");
    assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), "50331648");
}

fn update_reads_stdin(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    ctx.call(&["update", "--resources", "-", &container.id])
        .stdin(RESOURCES.as_bytes())
        .output()
        .ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.shares"), "300");
}

fn update_of_device_rules_keeps_them(ctx: &Ctx) {
    // An update of something else must not open the devices for a moment, nor for good.
    let container = sleeper(ctx, |b| {
        b.set(
            "/linux/devices",
            json!([{"path": "/dev/tested", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}]),
        )
        .set("/linux/resources/devices", json!([{"allow": false, "access": "rwm"}]))
    });
    ctx.call(&["update", "--resources", "-", &container.id])
        .stdin(b"{}")
        .output()
        .ok();
    assert_eq!(container.exec(&["probe", "open", "/dev/null", "rw"]).ok().text(), "ok");
    assert_eq!(container.exec(&["probe", "open", "/dev/full", "r"]).ok().text(), "ok");
}

fn update_of_an_absent_container_is_refused(ctx: &Ctx) {
    ctx.call(&["update", "--pids-limit", "5", "nobody"])
        .output()
        .refused(&["does not exist"]);
}

fn update_survives_a_state_call(ctx: &Ctx) {
    let container = limited(ctx, json!({"pids": {"limit": 20}}));
    container.verb(&["update", "--pids-limit", "11"]).ok();
    container.verb(&["update", "--cpu-share", "111"]).ok();
    assert_eq!(container.status(), "running");
    assert_eq!(container.cgroup_file("pids", "pids.max"), "11");
}

fn sample(container: &Container) -> Value {
    let event = container.verb(&["events", "--stats"]).ok().json();
    assert_eq!(event["type"], "stats");
    assert_eq!(event["id"], container.id.as_str());
    event["data"].clone()
}

fn events_stats_shows_one_sample(ctx: &Ctx) {
    let container = limited(ctx, json!({"memory": {"limit": 33_554_432}, "pids": {"limit": 30}}));
    // Until the program is executed, the threads of the runtime's init count as well.
    let data = eventually("one process", || {
        Some(sample(&container)).filter(|d| d["pids"]["current"] == 1)
    });
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{data}");
    assert_eq!(data["memory"]["usage"]["limit"], 33_554_432, "{data}");
    assert_eq!(data["pids"]["current"], 1, "{data}");
    assert_eq!(data["pids"]["limit"], 30, "{data}");
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{data}");
}

fn v2_events_stats_shows_one_sample(ctx: &Ctx) {
    let data = sample(&sleeper(ctx, |b| b));
    assert!(
        data["cpu"].is_object() && data["memory"].is_object() && data["pids"].is_object(),
        "{data}"
    );
}

fn events_repeats_at_the_interval(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    let mut running = ctx.call(&["events", "--interval", "100ms", &container.id]).spawn();
    eventually("three samples", || {
        (running.stdout().lines().count() >= 3).then_some(())
    });
    running.child.kill().unwrap();
    running.child.wait().unwrap();
}

fn events_reports_oom(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/linux/resources/memory", json!({"limit": 16_777_216}))
        .sh("read go; probe eat 64; sleep 1000");
    let fifo = ctx.dir.join("go");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    bundle
        .bind(&fifo, "/go", &["bind"])
        .sh("read go < /go; probe eat 64; sleep 1000");
    let container = ctx.start(&bundle);
    let mut running = ctx.call(&["events", "--interval", "100ms", &container.id]).spawn();
    eventually("a sample", || running.stdout().contains("stats").then_some(()));
    fs::write(&fifo, "go\n").unwrap();
    eventually("the oom event", || {
        running.stdout().contains("\"type\":\"oom\"").then_some(())
    });
    running.child.kill().unwrap();
    running.child.wait().unwrap();
}

fn family<'a>(ctx: &'a Ctx) -> Container<'a> {
    let bundle = ctx.bundle();
    bundle
        .sh("sleep 1000 & sleep 1000 & echo up; wait")
        .without_namespaces(&["pid"]);
    let container = ctx.start(&bundle);
    container.says("up");
    assert_eq!(procs(&container).len(), 3);
    container
}

fn kill_all_works_in_a_shared_pid_namespace(ctx: &Ctx) {
    let container = family(ctx);
    ctx.call(&["kill", "--all", &container.id, "KILL"]).output().ok();
    eventually("an empty cgroup", || procs(&container).is_empty().then_some(()));
}

fn processes_of_a_shared_pid_namespace_die_at_delete(ctx: &Ctx) {
    let container = family(ctx);
    container.verb(&["delete", "--force"]).ok();
    container.forget();
    assert!(procs(&container).is_empty());
}

fn v2_processes_of_a_shared_pid_namespace_die_at_delete(ctx: &Ctx) {
    processes_of_a_shared_pid_namespace_die_at_delete(ctx);
}

fn exec_processes_are_counted(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    container.exec_with(&["--detach"], &["sleep", "1000"]).ok();
    eventually("two processes", || (procs(&container).len() == 2).then_some(()));
}

fn a_cgroup_in_use_by_others_is_not_emptied(ctx: &Ctx) {
    let path = format!("{}/taken", ctx.cgroup_parent());
    let dir = ctx.cgroup_dir("devices", &path);
    fs::create_dir_all(&dir).unwrap();
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(dir.join("cgroup.procs"), other.id().to_string()).unwrap();
    let bundle = ctx.bundle();
    bundle.set("/linux/cgroupsPath", json!(path));
    // Used or refused: newer runtimes refuse a group with processes. The stranger must live.
    ctx.run(&bundle);
    assert!(other.try_wait().unwrap().is_none(), "the stranger was killed");
    other.kill().unwrap();
    other.wait().unwrap();
    for group in proa_integration::host::cgroups_with("taken") {
        if group.ends_with(path.trim_start_matches('/')) {
            fs::remove_dir(&group).unwrap();
        }
    }
}

fn a_cgroup_that_cannot_be_made_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    // The kernel takes no newline in a cgroup's name.
    bundle.set(
        "/linux/cgroupsPath",
        json!(format!("{}/two\nlines", ctx.cgroup_parent())),
    );
    ctx.run(&bundle).refused(&["lines", "invalid argument"]);
}

fn hugetlb_limit_is_written(ctx: &Ctx) {
    let container = limited(
        ctx,
        json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]}),
    );
    assert_eq!(container.cgroup_file("", "hugetlb.2MB.max"), "4194304");
}

fn v2_cgroup_namespace_root_is_the_containers_group(ctx: &Ctx) {
    assert_eq!(ctx.shell("grep ^0:: /proc/self/cgroup", |b| b), "0::/\n");
}

fn letters_that_are_no_device_access_are_ignored(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let rules = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwa"}]);
    bundle
        .set("/linux/resources/devices", rules)
        .sh("head -c 1 /dev/zero | wc -c");
    assert_eq!(ctx.run(&bundle).ok().text(), "1");
}
