//! The harness itself: a fault in a test is found, named, and harms no other test.

use std::fs;
use std::process::{Command, Stdio};

use proa_integration::{Ctx, Test, tests, vars};

/// Set for a nested run of tests that are faulty on purpose.
pub const FAULTY: &str = "PROA_TEST_FAULTY";

tests! {
    faults_are_found_and_do_not_spread .once();
    the_hosts_devices_are_not_the_tests .once();
}

fn faults_are_found_and_do_not_spread(ctx: &Ctx) {
    let mut nested = Command::new("/proc/self/exe");
    for internal in [vars::LEVEL, vars::NAME, vars::TAG, vars::PROBE] {
        nested.env_remove(internal);
    }
    let out = nested
        .env(FAULTY, "1")
        .env(vars::VIEW, ctx.view.name())
        .env_remove(vars::PATIENCE)
        .arg("--test-threads=1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!out.status.success());
    for expected in [
        "leak: process",
        "leak: state",
        "leak: mount",
        "leak: cgroup",
        "did not end within 1 s",
        "on purpose",
        "test result: FAILED. 2 passed; 6 failed",
    ] {
        assert!(
            text.contains(expected),
            "no {expected:?} in {text}\n{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    assert!(proa_integration::host::cgroups_with("leaked-by-a-test").is_empty());
}

fn the_hosts_devices_are_not_the_tests(_: &Ctx) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        mounts.lines().any(|l| l.contains(" /dev ") && l.contains("tmpfs")),
        "{mounts}"
    );
    fs::remove_file("/dev/full").unwrap();
}

/// Tests that are faulty on purpose, between two that are not.
pub fn faulty() -> Vec<Test> {
    vec![
        Test::new("suite::a_fine", |_| ()),
        Test::new("suite::b_leaves_a_process", |_| drop(sleep())),
        Test::new("suite::c_leaves_state", |ctx| {
            fs::create_dir(ctx.root.join(ctx.id())).unwrap()
        }),
        Test::new("suite::d_leaves_a_mount", |ctx| {
            let at = ctx.mkdir("at");
            assert!(
                Command::new("mount")
                    .args(["-t", "tmpfs", "tmpfs"])
                    .arg(at)
                    .status()
                    .unwrap()
                    .success()
            );
        }),
        Test::new("suite::e_leaves_a_cgroup", |ctx| {
            let path = format!("{}/leaked-by-a-test", ctx.cgroup_parent());
            fs::create_dir_all(ctx.cgroup_dir("freezer", &path)).unwrap();
        }),
        Test::new("suite::f_hangs", |_| drop(sleep().wait())).seconds(1),
        Test::new("suite::g_panics", |_| panic!("on purpose")),
        Test::new("suite::h_fine", |_| ()),
    ]
}

fn sleep() -> std::process::Child {
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
}
