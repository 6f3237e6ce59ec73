//! Control groups: limits of every kind, devices, freezer, statistics, updates, and what delete takes away.

use std::fs;
use std::process::Command;

use proa_integration::ctx::eventually;
use proa_integration::{Bundle, Container, Ctx, Kind, View, tests};
use serde_json::{Value, json};

const ALL: &[View] = &View::ALL;
const V1: &[View] = &[View::Hybrid, View::V1, View::Systemd];
const V2: &[View] = &[View::V2, View::SystemdV2];

const CRUN: &[(Kind, &str)] = &[(Kind::Crun, "has its own ideas")];

tests! {
    the_first_process_is_in_its_cgroup .views(ALL);
    children_are_born_in_the_cgroup .views(ALL);
    delete_removes_the_cgroup .views(ALL);
    delete_removes_nested_cgroups .views(ALL);
    run_removes_the_cgroup .views(ALL);
    a_path_is_chosen_when_none_is_given;
    a_relative_path_is_taken_below_some_parent;
    a_path_cannot_climb_out .once();
    two_containers_share_a_parent .views(ALL);
    memory_limits_are_written .views(V1);
    memory_limit_kills_the_greedy .views(V1);
    pids_limit_is_written .views(V1);
    pids_limit_stops_forks .views(V1);
    cpu_limits_are_written .views(V1);
    cpuset_is_written .views(V1);
    blkio_limits_are_written .views(V1);
    unlimited_is_minus_one .views(V1);
    a_nonsense_limit_is_refused .views(ALL);
    v2_unified_values_are_written .views(V2);
    v2_a_limit_without_its_controller_is_refused .views(V2);
    devices_not_allowed_cannot_be_opened .views(ALL);
    devices_allowed_can_be_opened .views(ALL);
    device_access_is_told_apart .views(ALL);
    later_device_rules_win .views(ALL);
    default_devices_work_under_deny_all .views(ALL);
    freezer_state_is_where_the_kernel_has_it .views(V1);
    v2_freezer_state_is_where_the_kernel_has_it .views(V2);
    update_changes_limits .views(V1);
    update_reads_a_file .views(V1);
    update_reads_stdin .views(V1);
    update_of_device_rules_keeps_them .views(ALL);
    update_of_an_absent_container_is_refused .once();
    update_survives_a_state_call .views(V1);
    events_stats_shows_one_sample .views(V1);
    v2_events_stats_shows_one_sample .views(V2);
    events_repeats_at_the_interval .views(V1);
    events_reports_oom .views(V1).not_for(&[(Kind::Crun, "has no events")]);
    kill_all_works_in_a_shared_pid_namespace .views(ALL);
    processes_of_a_shared_pid_namespace_die_at_delete .views(V1);
    v2_processes_of_a_shared_pid_namespace_die_at_delete .views(V2).not_for(&[(Kind::Runc, "1.1 leaves them")]);
    exec_processes_are_counted .views(ALL);
    a_cgroup_in_use_by_others_is_not_emptied;
    a_cgroup_that_cannot_be_made_is_refused .once();
    a_deny_list_denies_only_that .views(ALL);
    a_paused_container_is_deleted_by_force .views(ALL);
    pause_stops_a_forking_container .views(ALL);
    v2_threaded_cgroups_are_removed .views(V2);
    a_non_empty_cgroup_is_refused .since_runc(1, 2).not_for(CRUN);
    a_frozen_cgroup_is_refused .since_runc(1, 2).not_for(CRUN);
    an_empty_cgroup_is_used;
    v2_missing_controllers_are_named .views(V2).only_proa();
    v1_missing_controllers_are_named .views(&[View::V1]).only_proa();
    unified_is_refused_on_v1 .views(V1).not_for(CRUN);
    memory_and_swap_are_updated_in_both_directions .views(V1);
    a_period_is_updated_alone .views(V1);
    quota_and_period_are_updated_together .views(V1);
    cpuset_and_pids_are_updated .views(V1);
    a_memory_limit_too_low_for_init_is_the_cause_told .views(V1).only_proa();
    a_disabled_cgroup_manager_makes_no_cgroup .views(ALL).only_proa();
    limits_are_refused_with_a_disabled_cgroup_manager .views(ALL).only_proa();
    a_memory_limit_below_the_use_is_refused .views(V1).since_runc(1, 2).not_for(CRUN);
    a_refused_update_changes_nothing .views(V1).only_proa();
    a_pids_section_without_a_limit_is_no_limit .views(V1);
    exec_enters_a_sub_cgroup .views(ALL).since_runc(1, 2).not_for(CRUN);
    exec_enters_sub_cgroups_by_controller .views(V1).since_runc(1, 2).not_for(CRUN);
    exec_cannot_leave_the_cgroup .views(ALL).since_runc(1, 2).not_for(CRUN);
    v2_exec_follows_an_init_that_has_moved .views(V2);
    events_have_runcs_shape .views(&[View::Hybrid, View::V1, View::V2]).only_proa();
    hugetlb_limit_is_written_on_a_hybrid_host .views(&[View::Hybrid]).only_proa();
    device_rules_are_in_the_listed_order .views(&[View::Hybrid, View::V1]).only_proa();
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

fn a_deny_list_denies_only_that(ctx: &Ctx) {
    let rules = json!([{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rw"}]);
    assert_eq!(open(ctx, rules.clone(), "r"), "errno 1");
    let others = ctx.shell(
        "for d in null zero full random urandom; do probe open /dev/$d rw; done; probe open /dev/ptmx rw",
        |b| b.set("/linux/resources/devices", rules),
    );
    assert_eq!(others, "ok\n".repeat(6));
}

fn a_paused_container_is_deleted_by_force(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("sleep 1000 & sleep 1000 & echo up; wait");
    let container = ctx.start(&bundle);
    container.says("up").verb(&["pause"]).ok();
    container.verb(&["delete"]).refused(&["paused", "not stopped"]);
    container.verb(&["delete", "--force"]).ok();
    container.forget();
    assert!(!container.cgroup_dir("freezer").exists());
}

fn pause_stops_a_forking_container(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("while :; do (:); (:); echo . ; done");
    let container = ctx.start(&bundle);
    container.says(".");
    for _ in 0..5 {
        container.verb(&["pause"]).ok();
        assert_eq!(container.status(), "paused");
        let (before, processes) = (container.stdout().len(), procs(&container));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!((container.stdout().len(), procs(&container)), (before, processes));
        container.verb(&["resume"]).ok();
        eventually("more output", || (container.stdout().len() > before).then_some(()));
    }
    container.kill("KILL").stopped().delete();
}

fn v2_threaded_cgroups_are_removed(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    let threads = container.cgroup_dir("").join("threads");
    fs::create_dir_all(threads.join("more")).unwrap();
    fs::write(threads.join("cgroup.type"), "threaded").unwrap();
    fs::write(threads.join("more/cgroup.type"), "threaded").unwrap();
    fs::write(threads.join("more/cgroup.threads"), container.pid().to_string()).unwrap();
    container.verb(&["delete", "--force"]).ok();
    container.forget();
    assert!(!container.cgroup_dir("").exists());
}

/// A cgroup that is there before the container, in every hierarchy; removed by the caller.
fn existing(ctx: &Ctx) -> (String, Vec<std::path::PathBuf>) {
    let path = format!("{}/before", ctx.cgroup_parent());
    let controllers: &[&str] = if ctx.view.has_v1() {
        &["cpu", "cpuacct", "memory", "devices", "freezer", "blkio", "pids"]
    } else {
        &[""]
    };
    let dirs: Vec<_> = controllers.iter().map(|c| ctx.cgroup_dir(c, &path)).collect();
    for dir in &dirs {
        fs::create_dir_all(dir).unwrap();
    }
    (path, dirs)
}

fn remove(dirs: &[std::path::PathBuf]) {
    for dir in dirs {
        fs::remove_dir(dir).unwrap();
    }
}

fn a_non_empty_cgroup_is_refused(ctx: &Ctx) {
    let (path, dirs) = existing(ctx);
    let devices = ctx.cgroup_dir("devices", &path);
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(devices.join("cgroup.procs"), other.id().to_string()).unwrap();
    let bundle = ctx.bundle();
    bundle.set("/linux/cgroupsPath", json!(path));
    ctx.run(&bundle)
        .refused(&["container's cgroup is not empty: 1 process(es) found"]);
    assert!(other.try_wait().unwrap().is_none(), "the stranger was killed");
    other.kill().unwrap();
    other.wait().unwrap();
    remove(&dirs);
}

fn a_frozen_cgroup_is_refused(ctx: &Ctx) {
    let (path, dirs) = existing(ctx);
    let (file, value) = if ctx.view.has_v1() {
        ("freezer.state", "FROZEN")
    } else {
        ("cgroup.freeze", "1")
    };
    fs::write(ctx.cgroup_dir("freezer", &path).join(file), value).unwrap();
    let bundle = ctx.bundle();
    bundle.set("/linux/cgroupsPath", json!(path));
    ctx.run(&bundle).refused(&["container's cgroup unexpectedly frozen"]);
    remove(&dirs);
}

fn an_empty_cgroup_is_used(ctx: &Ctx) {
    let (path, dirs) = existing(ctx);
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]).set("/linux/cgroupsPath", json!(path));
    let container = ctx.start(&bundle);
    assert_eq!(procs(&container), [container.pid().to_string()]);
    container.kill("KILL").stopped().delete();
    assert!(dirs.iter().all(|d| !d.exists()), "{dirs:?}");
}

fn missing(ctx: &Ctx, cases: &[(&str, Value, &str)]) {
    for (section, value, file) in cases {
        let bundle = ctx.bundle();
        bundle.set(&format!("/linux/resources/{section}"), value.clone());
        let out = ctx.run(&bundle);
        let field = format!(
            "linux.resources.{section}.{}",
            value.as_object().unwrap().keys().next().unwrap()
        );
        out.refused(&["cannot set"]).refused(&[&field]).refused(&[file]);
    }
}

fn v2_missing_controllers_are_named(ctx: &Ctx) {
    let cases = [
        ("memory", json!({"limit": 33_554_432}), "memory.max"),
        ("memory", json!({"reservation": 33_554_432}), "memory.low"),
        ("cpu", json!({"shares": 100}), "cpu.weight"),
        ("cpu", json!({"quota": 10_000}), "cpu.max"),
        ("cpu", json!({"cpus": "0"}), "cpuset.cpus"),
        ("pids", json!({"limit": 10}), "pids.max"),
    ];
    missing(ctx, &cases);
}

fn v1_missing_controllers_are_named(ctx: &Ctx) {
    let unmount = |controller: &str| {
        let status = Command::new("umount")
            .arg(ctx.cgroup_dir(controller, ""))
            .status()
            .unwrap();
        assert!(status.success());
    };
    unmount("pids");
    unmount("cpuset");
    let cases = [
        ("pids", json!({"limit": 10}), "pids.max"),
        ("cpu", json!({"cpus": "0"}), "cpuset.cpus"),
    ];
    missing(ctx, &cases);
    // What is not asked for is not missed.
    ctx.run(&ctx.bundle()).ok();
}

fn unified_is_refused_on_v1(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/linux/resources/unified", json!({"cgroup.max.depth": "3"}));
    ctx.run(&bundle).refused(&["cannot use unified on cgroup v1"]);
}

fn memory_and_swap_are_updated_in_both_directions(ctx: &Ctx) {
    let swap = ctx
        .cgroup_dir("memory", "")
        .join("memory.memsw.limit_in_bytes")
        .exists();
    let container = limited(ctx, json!({"memory": {"limit": 67_108_864}}));
    let check = |memory: &str, memsw: &str| {
        let mut args = vec!["update", "--memory", memory];
        if swap {
            args.extend(["--memory-swap", memsw]);
        }
        container.verb(&args).ok();
        assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), memory);
        if swap {
            assert_eq!(container.cgroup_file("memory", "memory.memsw.limit_in_bytes"), memsw);
        }
    };
    check("67108864", "134217728");
    check("33554432", "50331648");
    check("201326592", "268435456");
    check("50331648", "50331648");
    container.verb(&["update", "--memory", "-1"]).ok();
    for file in ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        .iter()
        .take(1 + usize::from(swap))
    {
        let limit: u64 = container.cgroup_file("memory", file).parse().unwrap();
        assert!(limit > 1 << 60, "{file}: {limit}");
    }
}

fn a_period_is_updated_alone(ctx: &Ctx) {
    let container = limited(ctx, json!({"cpu": {"quota": 50_000, "period": 100_000}}));
    container.verb(&["update", "--cpu-period", "200000"]).ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_period_us"), "200000");
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_quota_us"), "50000");
    container.verb(&["update", "--cpu-quota", "70000"]).ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_period_us"), "200000");
    assert_eq!(container.cgroup_file("cpu", "cpu.cfs_quota_us"), "70000");
}

fn quota_and_period_are_updated_together(ctx: &Ctx) {
    // Of each step the kernel would refuse one half, were it written before the other.
    let container = limited(ctx, json!({"cpu": {"quota": 1000, "period": 1000}}));
    for (quota, period) in [("900000", "1000000"), ("1000", "1000"), ("-1", "500000")] {
        container
            .verb(&["update", "--cpu-quota", quota, "--cpu-period", period])
            .ok();
        assert_eq!(container.cgroup_file("cpu", "cpu.cfs_quota_us"), quota);
        assert_eq!(container.cgroup_file("cpu", "cpu.cfs_period_us"), period);
    }
}

fn cpuset_and_pids_are_updated(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    let all = container.cgroup_file("cpuset", "cpuset.cpus");
    container
        .verb(&[
            "update",
            "--cpuset-cpus",
            "0",
            "--cpuset-mems",
            "0",
            "--pids-limit",
            "9",
        ])
        .ok();
    assert_eq!(container.cgroup_file("cpuset", "cpuset.cpus"), "0");
    assert_eq!(container.cgroup_file("cpuset", "cpuset.mems"), "0");
    assert_eq!(container.cgroup_file("pids", "pids.max"), "9");
    container
        .verb(&["update", "--cpuset-cpus", &all, "--pids-limit", "-1"])
        .ok();
    assert_eq!(container.cgroup_file("cpuset", "cpuset.cpus"), all);
    assert_eq!(container.cgroup_file("pids", "pids.max"), "max");
}

fn a_memory_limit_below_the_use_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set(
            "/linux/resources/memory",
            json!({"limit": 67_108_864, "checkBeforeUpdate": true}),
        )
        .mount(json!({"destination": "/eaten", "type": "tmpfs", "source": "tmpfs"}))
        .sh("head -c 16000000 /dev/zero > /eaten/all; echo full; sleep 1000");
    let container = ctx.start(&bundle);
    container.says("full");
    let resources = br#"{"memory": {"limit": 8388608, "checkBeforeUpdate": true}}"#;
    ctx.call(&["update", "--resources", "-", &container.id])
        .stdin(resources)
        .output()
        .refused(&["rejecting memory", "limit 8388608 <= usage"]);
    assert_eq!(container.status(), "running");
    assert_eq!(container.cgroup_file("memory", "memory.limit_in_bytes"), "67108864");
}

fn a_refused_update_changes_nothing(ctx: &Ctx) {
    let container = limited(ctx, json!({"pids": {"limit": 20}}));
    container
        .verb(&["update", "--cpuset-cpus", "4000"])
        .refused(&["cpuset"]);
    container.verb(&["update", "--cpu-share", "200"]).ok();
    assert_eq!(container.cgroup_file("cpu", "cpu.shares"), "200");
    assert_eq!(container.cgroup_file("pids", "pids.max"), "20");
}

fn a_pids_section_without_a_limit_is_no_limit(ctx: &Ctx) {
    let container = limited(ctx, json!({"pids": {}}));
    let limit = container.cgroup_file("pids", "pids.max");
    // systemd has a default of its own.
    assert!(
        limit == "max" || (ctx.view.has_systemd() && limit.parse::<u64>().unwrap() > 100),
        "{limit}"
    );
    container.verb(&["update", "--pids-limit", "7"]).ok();
    let call = ctx.call(&["update", "--resources", "-", &container.id]);
    call.stdin(br#"{"pids": {}, "cpu": {"shares": 200}}"#).output().ok();
    assert_eq!(container.cgroup_file("pids", "pids.max"), "7");
    assert_eq!(container.cgroup_file("cpu", "cpu.shares"), "200");
}

/// The path of this line of /proc/self/cgroup below the container's cgroup, as an exec with these flags sees it.
fn sub_cgroup(container: &Container, controller: &str, flags: &[&str]) -> String {
    let own = container.cgroup_dir(controller);
    let out = container.exec_with(flags, &["sh", "-c", "echo $$ in; cat /proc/self/cgroup; sleep 0.05"]);
    let mark = if controller.is_empty() {
        "0::".to_owned()
    } else {
        format!(":{controller}:")
    };
    let line = out
        .ok()
        .stdout
        .lines()
        .find_map(|l| l.split_once(&mark))
        .unwrap()
        .1
        .to_owned();
    let top = own.file_name().unwrap().to_str().unwrap();
    match line.split_once(top) {
        Some((_, below)) => below.to_owned(),
        // Seen from a cgroup namespace.
        None => line.trim_end_matches('/').to_owned(),
    }
}

fn exec_enters_a_sub_cgroup(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    let controllers: &[&str] = if ctx.view.has_v1() {
        &[
            "pids", "memory", "devices", "cpu", "cpuset", "freezer", "blkio", "cpuacct", "systemd",
        ]
    } else {
        &[""]
    };
    for controller in controllers {
        let sub = container.cgroup_dir(controller).join("sub");
        // A hierarchy that the view or the driver leaves alone has none.
        if let (Err(e), true) = (fs::create_dir(&sub), *controller != "systemd") {
            panic!("{}: {e}", sub.display());
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(container.cgroup_dir(controller).join(file)) {
                fs::write(sub.join(file), value.trim()).unwrap();
            }
        }
    }
    let controller = controllers[0];
    assert_eq!(sub_cgroup(&container, controller, &[]), "");
    assert_eq!(sub_cgroup(&container, controller, &["--cgroup", "sub"]), "/sub");
    assert_eq!(sub_cgroup(&container, controller, &["--cgroup", "/sub"]), "/sub");
    container
        .exec_with(&["--cgroup", "absent"], &["true"])
        .refused(&["absent"]);
}

fn exec_enters_sub_cgroups_by_controller(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    fs::create_dir(container.cgroup_dir("memory").join("sub")).unwrap();
    fs::create_dir(container.cgroup_dir("pids").join("sub")).unwrap();
    let flags = ["--cgroup", "memory,pids:sub"];
    assert_eq!(sub_cgroup(&container, "memory", &flags), "/sub");
    assert_eq!(sub_cgroup(&container, "pids", &flags), "/sub");
    assert_eq!(sub_cgroup(&container, "cpu", &flags), "");
    let flags = ["--cgroup", "memory:sub", "--cgroup", "pids:sub"];
    assert_eq!(sub_cgroup(&container, "pids", &flags), "/sub");
    container
        .exec_with(&["--cgroup", "nonsense:sub"], &["true"])
        .refused(&["unknown controller nonsense"]);
}

fn exec_cannot_leave_the_cgroup(ctx: &Ctx) {
    let container = sleeper(ctx, |b| b);
    for path in ["../x", "..", "a/../../x", "/../x"] {
        container
            .exec_with(&["--cgroup", path], &["true"])
            .refused(&["bad sub cgroup path"]);
    }
    if ctx.view.has_v1() {
        container
            .exec_with(&["--cgroup", "pids:../x"], &["true"])
            .refused(&["bad sub cgroup path"]);
    }
}

fn v2_exec_follows_an_init_that_has_moved(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .namespace("cgroup", None)
        .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}))
        // The one controller that the machine's cgroup2 has must be handed down to here.
        .set(
            "/linux/resources/hugepageLimits",
            json!([{"pageSize": "2MB", "limit": 4_194_304}]),
        )
        .sh("cd /sys/fs/cgroup && mkdir init && echo 1 > init/cgroup.procs && \
             echo +hugetlb > cgroup.subtree_control && echo moved; sleep 1000");
    let container = ctx.start(&bundle);
    container.says("moved");
    for _ in 0..2 {
        let text = container.exec(&["cat", "/proc/self/cgroup"]).ok().stdout.clone();
        assert!(text.lines().any(|l| l == "0::/init"), "{text}");
    }
    container.verb(&["pause"]).ok();
    container.verb(&["resume"]).ok();
    container.kill("KILL").stopped().delete();
    assert!(!container.cgroup_dir("").exists());
}

/// The paths of all that is in a document, lists by their first element.
fn shape(value: &Value, at: &str, into: &mut std::collections::BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            into.insert(format!("{at}{{}}"));
            for (name, member) in members {
                shape(member, &format!("{at}.{name}"), into);
            }
        }
        Value::Array(items) => {
            into.insert(format!("{at}[]"));
            for item in items.iter().take(1) {
                shape(item, &format!("{at}[]"), into);
            }
        }
        _ => {
            into.insert(at.to_owned());
        }
    }
}

fn events_have_runcs_shape(ctx: &Ctx) {
    let runc = ["/usr/sbin/runc", "/usr/bin/runc"].map(std::path::PathBuf::from);
    let runc = runc.iter().find(|p| p.exists()).expect("runc, which containerd needs");
    let shapes = [&ctx.subject.path, runc].map(|program| {
        let bundle = ctx.bundle();
        bundle.sh("head -c 1000000 /dev/zero > /dev/shm/x; touch /dev/shm/done; sleep 1000");
        if ctx.view.has_v1() {
            bundle.set("/linux/resources/memory", json!({"limit": 67_108_864}));
        }
        let (id, root) = (ctx.id(), ctx.mkdir("roots"));
        let call = |args: &[&str]| {
            let all = [&["--root", root.to_str().unwrap()], args].concat();
            ctx.bare_call(&all).program(program).output()
        };
        call(&["run", "--detach", "--bundle", bundle.dir.to_str().unwrap(), &id]).ok();
        eventually("something to count", || {
            (call(&["exec", &id, "test", "-e", "/dev/shm/done"]).code == 0).then_some(())
        });
        let event = call(&["events", "--stats", &id]).ok().json();
        call(&["delete", "--force", &id]).ok();
        let mut all = std::collections::BTreeSet::new();
        shape(&event, "", &mut all);
        all
    });
    let missing: Vec<&String> = shapes[1].difference(&shapes[0]).collect();
    let more: Vec<&String> = shapes[0].difference(&shapes[1]).collect();
    assert!(
        missing.is_empty(),
        "runc has {missing:?}; besides runc's there are {more:?}"
    );
}

fn hugetlb_limit_is_written(ctx: &Ctx) {
    let container = limited(
        ctx,
        json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]}),
    );
    assert_eq!(container.cgroup_file("", "hugetlb.2MB.max"), "4194304");
}

/// There the controller is in the v2 hierarchy, and no cgroup on the way has it.
fn hugetlb_limit_is_written_on_a_hybrid_host(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let parent = format!("{}/deep", ctx.cgroup_parent());
    let deep = format!("{parent}/deeper");
    bundle
        .set("/linux/cgroupsPath", json!(deep))
        .set(
            "/linux/resources/hugepageLimits",
            json!([{"pageSize": "2MB", "limit": 4_194_304}]),
        )
        .args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    assert_eq!(container.cgroup_file("unified", "hugetlb.2MB.max"), "4194304");
    container.kill("KILL").stopped().delete();
    // As with runc, what is above the container's own cgroup stays.
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
        let dir = hierarchy.unwrap().path().join(parent.trim_start_matches('/'));
        if dir.exists() {
            fs::remove_dir(dir).unwrap();
        }
    }
}

/// "The runtime MUST apply entries in the listed order" (config-linux.md#allowed-device-list): devices.list shows it.
fn device_rules_are_in_the_listed_order(ctx: &Ctx) {
    let rule = |kind: &str, major: u32, minor: u32, access: &str| json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access});
    let bundle = ctx.bundle();
    bundle
        .set(
            "/linux/resources/devices",
            json!([
                {"allow": false, "access": "rwm"},
                rule("c", 10, 229, "rwm"),
                rule("b", 8, 20, "rw"),
                rule("b", 8, 4, "r"),
            ]),
        )
        .args(&["sleep", "1000"]);
    let list = ctx.start(&bundle).cgroup_file("devices", "devices.list");
    let first: Vec<&str> = list.lines().take(3).collect();
    assert_eq!(first, ["c 10:229 rwm", "b 8:20 rw", "b 8:4 r"]);
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

fn a_memory_limit_too_low_for_init_is_the_cause_told(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/linux/resources/memory", json!({"limit": 4096}));
    ctx.run(&bundle)
        .refused(&["container init was OOM-killed (memory limit too low?)"]);
}

/// crun's option, which podman gives for `--cgroups=disabled`.
fn a_disabled_cgroup_manager_makes_no_cgroup(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let id = ctx.id();
    let dir = bundle.dir.to_str().unwrap();
    let call = |args: &[&str]| ctx.call(&[&["--cgroup-manager", "disabled"], args].concat()).output();
    call(&["run", "--detach", "--bundle", dir, &id]).ok();
    let pid = ctx.call(&["state", &id]).output().ok().json()["pid"].to_string();
    let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(of(&pid), of("self"));
    assert_eq!(ctx.call(&["exec", &id, "echo", "hi"]).output().ok().text(), "hi");
    ctx.call(&["pause", &id]).output().refused(&["freezer"]);
    ctx.call(&["delete", "--force", &id]).output().ok();
    call(&["--cgroup-manager", "none", "state", &id]).refused(&["--cgroup-manager", "\"none\""]);
}

fn limits_are_refused_with_a_disabled_cgroup_manager(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/linux/resources/pids", json!({"limit": 10}));
    let args = [
        "--cgroup-manager",
        "disabled",
        "run",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &ctx.id(),
    ];
    ctx.call(&args).output().refused(&["linux.resources: has limits"]);
}
