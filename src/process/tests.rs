//! The plan, without root; and the steps of init in threads of their own, whose credentials are theirs alone.

use super::*;
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

/// `process` with `changes` on top of the least that is valid.
fn process(changes: Value) -> Process {
    let mut it = json!({"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"});
    for (key, value) in changes.as_object().unwrap() {
        it[key] = value.clone();
    }
    serde_json::from_value(it).expect("a process")
}

fn spec(linux: Value) -> Spec {
    serde_json::from_value(json!({"ociVersion": "1.3.0", "root": {"path": "rootfs"}, "linux": linux})).expect("a spec")
}

fn planned(changes: Value) -> Result<Plan, Error> {
    plan(&process(changes), &spec(json!({})), "c1", Options::default())
}

fn refused(changes: Value) -> String {
    planned(changes).expect_err("refused").to_string()
}

fn linux(value: Value) -> Result<Plan, Error> {
    plan(&process(json!({})), &spec(value), "c1", Options::default())
}

#[test]
fn a_process_has_args_and_an_absolute_cwd() {
    assert_eq!(refused(json!({"args": []})), "process.args: args must not be empty");
    assert_eq!(refused(json!({"args": null})), "process.args: args must not be empty");
    assert_eq!(
        refused(json!({"args": ["a", "b\0"]})),
        "process.args[1]: contains nul byte (\\x00)"
    );
    assert_eq!(
        refused(json!({"cwd": ""})),
        "process.cwd: Cwd property must not be empty"
    );
    assert_eq!(
        refused(json!({"cwd": "tmp"})),
        "process.cwd: Cwd must be an absolute path"
    );
}

#[test]
fn the_guest_has_what_the_process_says() {
    let spec = spec(json!({"resources": {"memory": {"limit": 4096}}}));
    let process = process(json!({"env": ["A=1", "A=2"], "cwd": "/w", "terminal": true,
        "consoleSize": {"height": 24, "width": 80}}));
    let it = plan(&process, &spec, "c1", Options::default()).unwrap();
    assert_eq!(
        (it.guest.args, it.guest.env, it.guest.cwd),
        (vec!["/bin/true".into()], vec!["A=2".into()], "/w".into())
    );
    assert_eq!(it.guest.memory_limit, Some(4096));
    assert_eq!((it.terminal, it.console_size), (true, Some((24, 80))));
    // Unlimited.
    let spec = self::spec(json!({"resources": {"memory": {"limit": -1}}}));
    assert_eq!(
        plan(&process, &spec, "c1", Options::default())
            .unwrap()
            .guest
            .memory_limit,
        None
    );
}

#[test]
fn the_user_has_a_umask_in_a_container_and_its_callers_in_an_exec() {
    let process = process(json!({"user": {"uid": 1, "gid": 2, "additionalGids": [3]}}));
    let user = |options| plan(&process, &spec(json!({})), "c1", options).unwrap().user;
    assert_eq!(
        user(Options::default()),
        User {
            uid: 1,
            gid: 2,
            umask: Some(0o022),
            groups: vec![3],
            groups_optional: false
        }
    );
    assert_eq!(
        user(Options {
            exec: true,
            ..Default::default()
        })
        .umask,
        None
    );
    let unprivileged = Options {
        unprivileged: true,
        ..Default::default()
    };
    let error = plan(&process, &spec(json!({})), "c1", unprivileged).unwrap_err();
    assert_eq!(
        error.to_string(),
        "process.user.additionalGids: cannot set any additional groups in a rootless container"
    );
    let alone = self::process(json!({"user": {"uid": 1, "gid": 2}}));
    assert!(
        plan(&alone, &spec(json!({})), "c1", unprivileged)
            .unwrap()
            .user
            .groups_optional
    );
    assert_eq!(
        planned(json!({"user": {"uid": 0, "gid": 0, "umask": 63}}))
            .unwrap()
            .user
            .umask,
        Some(0o077)
    );
}

#[test]
fn limits_come_once_each() {
    let one = json!({"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20});
    let it = planned(json!({"rlimits": [one]})).unwrap();
    assert_eq!(it.rlimits.len(), 1);
    let problem = refused(json!({"rlimits": [one, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, one]}));
    assert_eq!(
        problem,
        "process.rlimits[2]: rlimit type RLIMIT_NOFILE is specified more than once"
    );
    let problem = refused(json!({"rlimits": [{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]}));
    assert!(problem.starts_with("process.rlimits[0]: RLIMIT_CORE"), "{problem}");
}

#[test]
fn the_oom_score_is_the_containers_where_an_exec_has_none() {
    let container = serde_json::from_value::<Spec>(json!({"ociVersion": "1.3.0", "root": {"path": "r"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["a"], "cwd": "/", "oomScoreAdj": 100}}))
    .unwrap();
    let score = |changes| {
        plan(&process(changes), &container, "c1", Options::default())
            .unwrap()
            .oom_score_adj
    };
    assert_eq!(score(json!({})), Some(100));
    assert_eq!(score(json!({"oomScoreAdj": -5})), Some(-5));
    assert!(refused(json!({"oomScoreAdj": 1001})).starts_with("process.oomScoreAdj: 1001"));
}

#[test]
fn io_priorities_have_a_class_and_eight_levels() {
    let it = |class: &str, priority: i64| planned(json!({"ioPriority": {"class": class, "priority": priority}}));
    assert_eq!(it("IOPRIO_CLASS_RT", 7).unwrap().io_priority, Some(0x2007));
    assert_eq!(it("IOPRIO_CLASS_BE", 0).unwrap().io_priority, Some(0x4000));
    assert_eq!(it("IOPRIO_CLASS_IDLE", 0).unwrap().io_priority, Some(0x6000));
    for priority in [-1, 8] {
        let problem = it("IOPRIO_CLASS_BE", priority).unwrap_err().to_string();
        assert!(
            problem.contains(&format!("invalid ioPriority.Priority: {priority}")),
            "{problem}"
        );
    }
}

#[test]
fn schedulers_take_the_fields_of_their_policy_only() {
    let it = planned(
        json!({"scheduler": {"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3,
        "flags": ["SCHED_RESET_ON_FORK"]}}),
    )
    .unwrap()
    .scheduler
    .unwrap();
    assert_eq!(
        it,
        Scheduler {
            policy: 6,
            flags: 1,
            runtime: 1,
            deadline: 2,
            period: 3,
            ..Default::default()
        }
    );
    let it = planned(json!({"scheduler": {"policy": "SCHED_FIFO", "priority": 9}}))
        .unwrap()
        .scheduler
        .unwrap();
    assert_eq!((it.policy, it.priority), (1, 9));
    for (scheduler, words) in [
        (
            json!({"policy": "SCHED_OTHER", "nice": 20}),
            "invalid scheduler.nice: 20 when scheduler.policy is SCHED_OTHER",
        ),
        (
            json!({"policy": "SCHED_BATCH", "nice": -21}),
            "invalid scheduler.nice: -21",
        ),
        (
            json!({"policy": "SCHED_OTHER", "priority": 1}),
            "scheduler.priority can only be specified for",
        ),
        (
            json!({"policy": "SCHED_RR", "runtime": 1}),
            "runtime/deadline/period can only be specified for",
        ),
        (json!({"policy": "SCHED_RR", "priority": -1}), "-1 is negative"),
    ] {
        let problem = refused(json!({"scheduler": scheduler}));
        assert!(problem.contains(words), "{problem}");
    }
}

#[test]
fn affinity_is_for_an_exec() {
    let process = process(json!({"execCPUAffinity": {"initial": "0-1", "final": "3"}}));
    let it = |exec| {
        plan(
            &process,
            &spec(json!({})),
            "c1",
            Options {
                exec,
                ..Default::default()
            },
        )
        .unwrap()
        .affinity
    };
    assert_eq!(
        it(true),
        Some(Affinity {
            initial: vec![0, 1],
            last: vec![3]
        })
    );
    assert_eq!(it(false), None);
}

#[test]
fn the_memory_policy_has_nodes_where_its_mode_does() {
    let it = linux(json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0,2", "flags": ["MPOL_F_STATIC_NODES"]}}));
    assert_eq!(
        it.unwrap().memory_policy,
        Some(MemoryPolicy {
            mode: 0x8002,
            nodes: vec![0, 2]
        })
    );
    for (policy, words) in [
        (
            json!({"mode": "MPOL_DEFAULT", "nodes": "0"}),
            "requires 0 nodes but got 1",
        ),
        (
            json!({"mode": "MPOL_INTERLEAVE"}),
            "requires at least one node but got 0",
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "x"}),
            "invalid memory policy nodes \"x\"",
        ),
    ] {
        let problem = linux(json!({"memoryPolicy": policy})).unwrap_err().to_string();
        assert!(problem.contains(words), "{problem}");
    }
}

#[test]
fn notifications_need_somebody_to_receive_them() {
    let profile = |path: Value| {
        linux(
            json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}}),
        )
    };
    assert!(profile(json!("/run/agent.sock")).is_ok());
    for path in [json!(null), json!("")] {
        let problem = profile(path).unwrap_err().to_string();
        assert_eq!(problem, "linux.seccomp.listenerPath: seccomp listenerPath is not set");
    }
}

#[test]
fn the_rest_of_the_plan() {
    let it = plan(
        &process(json!({"apparmorProfile": "", "selinuxLabel": "a:b:c"})),
        &spec(json!({"personality": {"domain": "LINUX32"}, "intelRdt": {"closID": "x"}})),
        "c1",
        Options {
            no_new_keyring: true,
            ..Default::default()
        },
    )
    .unwrap();
    assert_eq!(
        (it.apparmor_profile, it.selinux_label.as_deref()),
        (None, Some("a:b:c"))
    );
    assert_eq!(it.personality, Some(8));
    assert_eq!(it.keyring, None);
    assert_eq!(it.rdt.unwrap().name, "x");
    assert!(refused(json!({"selinuxLabel": "a\nb"})).starts_with("process.selinuxLabel: invalid"));
}

#[test]
fn a_plan_survives_the_way_to_init() {
    let it = planned(
        json!({"rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": u64::MAX}], "scheduler":
        {"policy": "SCHED_IDLE"}, "capabilities": {"bounding": ["CAP_KILL"]}}),
    )
    .unwrap();
    let json = serde_json::to_string(&it).unwrap();
    let back: Plan = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), json);
}
