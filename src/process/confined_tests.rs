//! The steps of init for real, as root: each in a process of its own (this test program again), since credentials and
//! filters can't be taken back.

use super::*;
use oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use serde_json::{Value, json};
use std::process::Command;

/// Runs `body` in a new process, which is this program asked for the one test `name`.
fn in_child(name: &str, body: impl FnOnce()) {
    const CHILD: &str = "PROA_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "credentials can be changed by root only"
    );
    let name = format!("process::confined_tests::{name}");
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args(["--exact", &name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn planned(changes: Value) -> Plan {
    let mut it = json!({"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/", "noNewPrivileges": true});
    for (key, value) in changes.as_object().unwrap() {
        it[key] = value.clone();
    }
    let process: Process = serde_json::from_value(it).unwrap();
    let spec: Spec = serde_json::from_value(json!({"ociVersion": "1.3.0", "root": {"path": "r"}})).unwrap();
    let id = format!("proa-test-{}", std::process::id());
    plan(&process, &spec, &id, Options::default()).unwrap()
}

/// The field `name` of this thread's /proc status.
fn status(name: &str) -> String {
    let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
}

fn mask(name: &str) -> u64 {
    u64::from_str_radix(&status(name), 16).unwrap()
}

fn compiled(profile: Value) -> Filter {
    let profile: LinuxSeccomp = serde_json::from_value(profile).unwrap();
    Filter {
        program: proa_seccomp::compile(&profile).unwrap().program,
        listener: None,
    }
}

const KILL: u64 = 1 << 5;
const NET_BIND: u64 = 1 << 10;

#[test]
fn a_user_keeps_exactly_the_capabilities_of_the_config() {
    in_child("a_user_keeps_exactly_the_capabilities_of_the_config", || {
        let mut plan = planned(json!({
            "user": {"uid": 54321, "gid": 1001, "additionalGids": [7, 8], "umask": 0o027}, "cwd": "/usr",
            "capabilities": {"bounding": ["CAP_KILL", "CAP_NET_BIND_SERVICE"], "permitted": ["CAP_KILL"],
                "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL", "CAP_NET_RAW"]},
        }));
        labels(&plan, true, None).unwrap();
        assert!(confine(&mut plan, None, true).unwrap().is_none());
        assert_eq!(status("Uid"), "54321\t54321\t54321\t54321");
        assert_eq!(status("Gid"), "1001\t1001\t1001\t1001");
        assert_eq!(status("Groups"), "7 8");
        assert_eq!(status("Umask"), "0027");
        assert_eq!(mask("CapBnd"), KILL | NET_BIND);
        // CAP_NET_RAW can't be ambient, being neither permitted nor inheritable: a warning.
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(mask(set), KILL, "{set}");
        }
        assert_eq!(status("NoNewPrivs"), "1");
        assert!(!nix::sys::prctl::get_keepcaps().unwrap());
        assert_eq!(std::env::current_dir().unwrap(), std::path::Path::new("/usr"));
        assert_eq!(plan.guest.env, ["HOME=/"]);
    });
}

#[test]
fn a_user_without_capabilities_in_the_config_has_none() {
    in_child("a_user_without_capabilities_in_the_config_has_none", || {
        let mut plan = planned(json!({"user": {"uid": 1000, "gid": 1000}}));
        confine(&mut plan, None, false).unwrap();
        assert_eq!((mask("CapPrm"), mask("CapEff"), mask("CapAmb")), (0, 0, 0));
    });
}

#[test]
fn an_empty_set_of_capabilities_leaves_root_none() {
    in_child("an_empty_set_of_capabilities_leaves_root_none", || {
        let mut plan = planned(json!({"capabilities": {}}));
        confine(&mut plan, None, true).unwrap();
        for set in ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(mask(set), 0, "{set}");
        }
        assert_eq!(plan.guest.env, ["HOME=/root"]);
    });
}

#[test]
fn a_capability_that_proa_lacks_is_left_out() {
    in_child("a_capability_that_proa_lacks_is_left_out", || {
        use rustix::thread::CapabilitySet;
        let sets = rustix::thread::CapabilitySets {
            effective: CapabilitySet::SETPCAP,
            permitted: CapabilitySet::SETPCAP,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).unwrap();
        let setpcap = CapabilitySet::SETPCAP.bits();
        let wanted = Capabilities {
            bounding: !0,
            permitted: KILL | setpcap,
            effective: KILL,
            ..Default::default()
        };
        wanted.apply().unwrap();
        assert_eq!((mask("CapPrm"), mask("CapEff")), (setpcap, 0));
        let inconsistent = Capabilities {
            effective: setpcap,
            ..Default::default()
        };
        let problem = inconsistent.apply().unwrap_err().to_string();
        assert!(
            problem.starts_with("unable to apply caps: can't apply capabilities: capset("),
            "{problem}"
        );
    });
}

/// Denies everything that a program under a typical profile may not do, all of set-up included.
fn strict(actions: Value) -> Filter {
    let mut rules = vec![actions];
    rules.push(
        json!({"names": ["setuid", "setgid", "setgroups", "chdir", "getcwd", "fchown", "umask", "keyctl"],
        "action": "SCMP_ACT_ERRNO", "errnoRet": 95}),
    );
    compiled(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
}

#[test]
fn without_no_new_privs_the_filter_comes_before_the_capabilities_go() {
    in_child(
        "without_no_new_privs_the_filter_comes_before_the_capabilities_go",
        || {
            let mut plan = planned(json!({"user": {"uid": 1000, "gid": 1000}, "noNewPrivileges": false,
            "capabilities": {"permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]}}));
            labels(&plan, true, None).unwrap();
            let filter = strict(json!({"names": ["personality"], "action": "SCMP_ACT_NOTIFY"}));
            // Only what comes after the filter would fail under it.
            assert!(confine(&mut plan, Some(&filter), true).unwrap().is_some());
            assert_eq!((status("NoNewPrivs").as_str(), status("Seccomp").as_str()), ("0", "2"));
            assert_eq!(mask("CapEff"), KILL);
            assert!(seal(&plan, Some(&filter), true).unwrap().is_none());
            assert_eq!(status("Seccomp_filters"), "1");
            assert_eq!(nix::unistd::chdir("/").unwrap_err(), Errno::EOPNOTSUPP);
        },
    );
}

#[test]
fn with_no_new_privs_the_filter_comes_last_and_for_all_threads_of_an_engine() {
    in_child(
        "with_no_new_privs_the_filter_comes_last_and_for_all_threads_of_an_engine",
        || {
            let mut plan = planned(json!({"capabilities": {}}));
            labels(&plan, true, None).unwrap();
            let filter = strict(json!({"names": ["personality"], "action": "SCMP_ACT_NOTIFY"}));
            assert!(confine(&mut plan, Some(&filter), false).unwrap().is_none());
            assert_eq!(status("Seccomp"), "0");
            let (ask, asked) = std::sync::mpsc::channel::<()>();
            let older = std::thread::spawn(move || {
                nix::sys::prctl::set_no_new_privs().unwrap();
                asked.recv().unwrap();
                nix::unistd::chdir("/")
            });
            assert!(seal(&plan, Some(&filter), false).unwrap().is_some());
            ask.send(()).unwrap();
            assert_eq!(older.join().unwrap().unwrap_err(), Errno::EOPNOTSUPP);
        },
    );
}

#[test]
fn a_program_that_the_kernel_refuses_is_an_error() {
    in_child("a_program_that_the_kernel_refuses_is_an_error", || {
        let plan = planned(json!({}));
        let mut filter = strict(json!({"names": ["personality"], "action": "SCMP_ACT_LOG"}));
        filter.program.flags = 1 << 20;
        let problem = seal(&plan, Some(&filter), true).unwrap_err().to_string();
        assert!(
            problem.contains("error loading seccomp filter into kernel: seccomp(0x100000"),
            "{problem}"
        );
    });
}

/// Puts the process under a filter that answers `errno` to the calls that `rule` describes. All threads: the C library
/// changes ids in every one and aborts if they differ.
fn mask_calls(mut rule: Value, errno: Errno) {
    rule["action"] = "SCMP_ACT_ERRNO".into();
    rule["errnoRet"] = (errno as i32).into();
    let filter = compiled(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
    assert!(seccomp::install(&filter, false).unwrap().is_none());
}

#[test]
fn a_kernel_without_keyrings_is_put_up_with_and_other_failures_are_not() {
    in_child(
        "a_kernel_without_keyrings_is_put_up_with_and_other_failures_are_not",
        || {
            let plan = planned(json!({}));
            mask_calls(json!({"names": ["keyctl"]}), Errno::ENOSYS);
            labels(&plan, true, None).unwrap();
            // Of several filters' errnos the one installed last is returned.
            for errno in [Errno::EPERM, Errno::EDQUOT] {
                mask_calls(json!({"names": ["keyctl"]}), errno);
                let problem = labels(&plan, true, None).unwrap_err().to_string();
                assert!(
                    problem.starts_with("unable to join session keyring: unable to create session key: "),
                    "{problem}"
                );
            }
        },
    );
}

#[test]
fn a_capability_that_the_kernel_lacks_is_left_out() {
    in_child("a_capability_that_the_kernel_lacks_is_left_out", || {
        // A kernel before 5.8, which knows 0 to 37. PR_CAPBSET_READ is 23.
        mask_calls(
            json!({"names": ["prctl"], "args": [{"index": 0, "value": 23, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": 38, "op": "SCMP_CMP_GE"}]}),
            Errno::EINVAL,
        );
        let all = (1u64 << 41) - 1;
        let asked = Capabilities {
            bounding: all,
            effective: all,
            ..Default::default()
        };
        let it = asked.supported().unwrap();
        assert_eq!((it.bounding, it.effective), ((1 << 38) - 1, (1 << 38) - 1));
    });
}

#[test]
fn a_bounding_set_that_can_not_be_limited_is_an_error() {
    in_child("a_bounding_set_that_can_not_be_limited_is_an_error", || {
        // PR_CAPBSET_DROP is 24.
        mask_calls(
            json!({"names": ["prctl"], "args": [{"index": 0, "value": 24, "op": "SCMP_CMP_EQ"}]}),
            Errno::EPERM,
        );
        let problem = Capabilities::default().limit_bounding().unwrap_err().to_string();
        assert!(
            problem.contains("unable to apply bounding set: prctl(PR_CAPBSET_DROP, CAP_CHOWN)"),
            "{problem}"
        );
    });
}

#[test]
fn groups_that_can_not_be_set_are_an_error_unless_the_namespace_denies_them() {
    in_child(
        "groups_that_can_not_be_set_are_an_error_unless_the_namespace_denies_them",
        || {
            mask_calls(json!({"names": ["setgroups"]}), Errno::EPERM);
            let user = User {
                groups: vec![1],
                ..Default::default()
            };
            let problem = credentials::become_user(&user, None).unwrap_err().to_string();
            assert!(problem.contains("unable to setup user: setgroups([1])"), "{problem}");
            credentials::become_user(
                &User {
                    groups_optional: true,
                    ..user
                },
                None,
            )
            .unwrap();
        },
    );
}

#[test]
fn ids_that_are_not_mapped_have_runcs_words() {
    in_child("ids_that_are_not_mapped_have_runcs_words", || {
        mask_calls(json!({"names": ["setuid"]}), Errno::EINVAL);
        let problem = credentials::become_user(
            &User {
                uid: 7,
                ..Default::default()
            },
            None,
        )
        .unwrap_err()
        .to_string();
        assert_eq!(problem, "cannot setuid to unmapped uid 7 in user namespace");
        mask_calls(json!({"names": ["setgid"]}), Errno::EINVAL);
        let problem = credentials::become_user(
            &User {
                gid: 8,
                ..Default::default()
            },
            None,
        )
        .unwrap_err()
        .to_string();
        assert_eq!(problem, "cannot setgid to unmapped gid 8 in user namespace");
    });
}

#[test]
fn cve_2024_21626_a_cwd_outside_of_the_root_is_noticed() {
    in_child("cve_2024_21626_a_cwd_outside_of_the_root_is_noticed", || {
        let outside = std::fs::File::open("/usr").unwrap();
        nix::unistd::chroot("/var").unwrap();
        nix::unistd::fchdir(&outside).unwrap();
        assert!(matches!(credentials::verify_cwd(), Err(Error::Breakout)));
        nix::unistd::chdir("/").unwrap();
        credentials::verify_cwd().unwrap();
    });
}

#[test]
fn a_cwd_is_entered_and_a_bad_one_is_named() {
    in_child("a_cwd_is_entered_and_a_bad_one_is_named", || {
        let base = std::env::temp_dir().join(format!("proa-cwd-{}", std::process::id()));
        let mut plan = planned(json!({"cwd": base.join("a/b")}));
        std::fs::create_dir_all(base.join("a/b")).unwrap();
        confine(&mut plan, None, true).unwrap();
        nix::unistd::chdir("/").unwrap();
        std::fs::remove_dir_all(&base).unwrap();
        let problem = confine(&mut planned(json!({"cwd": "/dev/null"})), None, true)
            .unwrap_err()
            .to_string();
        assert!(
            problem.starts_with("chdir to cwd (\"/dev/null\") set in config.json failed: "),
            "{problem}"
        );
    });
}

#[test]
fn a_container_has_a_session_keyring_of_its_own() {
    in_child("a_container_has_a_session_keyring_of_its_own", || {
        let plan = planned(json!({}));
        labels(&plan, true, None).unwrap();
        let keyring = plan.keyring.unwrap();
        let description = proa_sys::security::key_describe(keyring::SESSION_KEYRING).unwrap();
        let description = String::from_utf8(description).unwrap();
        let fields: Vec<&str> = description.trim_end_matches('\0').split(';').collect();
        assert_eq!(*fields.last().unwrap(), keyring.name);
        assert_ne!(u32::from_str_radix(fields[3], 16).unwrap() & 0x0008_0000, 0);
    });
}

#[test]
fn the_kernel_takes_scheduler_io_priority_personality_and_memory_policy() {
    in_child(
        "the_kernel_takes_scheduler_io_priority_personality_and_memory_policy",
        || {
            let mut plan = planned(json!({"scheduler": {"policy": "SCHED_BATCH", "nice": 5},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6}}));
            plan.personality = Some(8);
            plan.memory_policy = Some(MemoryPolicy { mode: 4, nodes: vec![] });
            labels(&plan, true, None).unwrap();
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            assert_eq!((fields[16], fields[38]), ("5", "3"), "nice and policy of {stat}");
            assert_eq!(
                std::fs::read_to_string("/proc/thread-self/personality").unwrap().trim(),
                "00000008"
            );
        },
    );
}

#[test]
fn the_parent_tunes_its_child() {
    in_child("the_parent_tunes_its_child", || {
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        let mut plan = planned(json!({"oomScoreAdj": 123, "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 11, "hard": 22}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]}));
        plan.affinity = Some(Affinity {
            initial: vec![0],
            last: vec![0, 1],
        });
        tune(&plan, pid).unwrap();
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        assert_eq!(read("oom_score_adj").trim(), "123");
        let limits = read("limits");
        let files: Vec<&str> = limits
            .lines()
            .find(|l| l.starts_with("Max open files"))
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(files[3..5], ["11", "22"]);
        plan.affinity = None;
        tune(&plan, pid).unwrap();
        assert!(!read("status").contains("Cpus_allowed_list:\t0\n") || num_cpus() == 1);
        plan.apparmor_profile = Some("x".into());
        plan.rdt = None;
        if !lsm::has_apparmor() {
            let problem = tune(&plan, pid).unwrap_err().to_string();
            assert!(
                problem.contains("apparmor: config provided but apparmor not supported"),
                "{problem}"
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

fn num_cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

#[test]
fn what_the_host_lacks_is_refused_by_name() {
    let mut plan = planned(json!({}));
    check_host(&plan).unwrap();
    plan.selinux_label = Some("a:b:c".into());
    if !lsm::has_selinux() {
        let problem = check_host(&plan).unwrap_err().to_string();
        assert!(problem.contains("selinux is disabled or not supported"), "{problem}");
    }
    let mut plan = planned(json!({}));
    plan.rdt = Some(rdt::Group {
        name: "x".into(),
        ..Default::default()
    });
    if rdt::Resctrl::find().is_err() {
        let problem = check_host(&plan).unwrap_err().to_string();
        assert!(problem.contains("Intel RDT is not enabled"), "{problem}");
    }
}
