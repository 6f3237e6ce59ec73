//! What the program is given: identity, limits, environment, and the locks it starts behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use proa_integration::ctx::eventually;
use proa_integration::{Bundle, Ctx, Kind, tests};
use serde_json::json;

tests! {
    user_and_groups_are_set .once();
    umask_is_set .once();
    capability_sets_are_those_of_the_configuration .once();
    ambient_capabilities_reach_an_unprivileged_user .once();
    inheritable_capabilities_are_empty_unless_listed .once();
    an_unknown_capability_is_warned_of_or_refused .once();
    no_capabilities_field_means_none .once();
    no_new_privileges_is_set .once();
    rlimits_are_lowered .once();
    an_unknown_rlimit_is_refused .once();
    a_doubled_rlimit_is_refused .once().since_runc(1, 2);
    environment_is_exactly_the_given_one .once();
    home_comes_from_passwd_when_unset .once();
    later_environment_entries_win .once();
    path_of_the_environment_finds_the_program .once();
    cwd_is_set_and_made .once();
    cwd_must_be_absolute .once();
    cwd_that_the_user_cannot_enter_is_refused .once();
    arguments_arrive_unchanged .once();
    oom_score_is_set;
    seccomp_errno_is_returned .once();
    seccomp_default_action_and_allow_list .once();
    seccomp_compares_arguments .once();
    seccomp_masked_comparison .once();
    seccomp_kill_process_ends_the_program .once();
    seccomp_trap_is_sigsys .once();
    seccomp_takes_several_architectures .once();
    seccomp_flags_are_taken .once().since_runc(1, 2);
    seccomp_unknown_names_are_ignored .once();
    seccomp_unknown_action_is_refused .once();
    seccomp_notify_hands_over_a_listener .once();
    seccomp_works_without_no_new_privileges .once();
    seccomp_duplicate_rules_are_no_error .once();
    seccomp_with_more_values_than_can_be_loaded_is_refused_at_once .once().only_proa();
    seccomp_with_many_values_is_loaded .once().only_proa();
    seccomp_that_takes_long_to_compile_can_be_interrupted .once().only_proa();
    session_keyring_is_new .once();
    no_new_keyring_keeps_the_callers .once();
    personality_is_set .once().since_runc(1, 2);
    io_priority_is_set .once().since_runc(1, 2);
    scheduler_is_set .once().since_runc(1, 2);
    exec_cpu_affinity_is_set .once().since_runc(1, 3);
    signals_are_at_their_defaults .once();
    program_is_found_in_the_root_only .once();
    a_script_runs_by_its_shebang .once();
    stdin_at_its_end_does_not_hang .once();
    apparmor_profile_without_apparmor_is_refused .once();
    memory_policy_or_a_clear_error .once().since_runc(1, 4);
    user_name_is_not_taken_for_an_id .once().only_proa();
    warnings_of_the_containers_init_reach_the_log .once().only_proa();
    debug_tells_what_the_containers_init_does .once();
}

fn user_and_groups_are_set(ctx: &Ctx) {
    let text = ctx.shell("id -u; id -g; grep Groups /proc/self/status", |b| {
        b.set(
            "/process/user",
            json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 2000]}),
        )
    });
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[..3], ["1000", "1001", "Groups:"]);
    assert!(
        words[3..].contains(&"5") && words[3..].contains(&"2000") && !words[3..].contains(&"0"),
        "{text}"
    );
}

fn umask_is_set(ctx: &Ctx) {
    assert_eq!(
        ctx.shell("umask", |b| b
            .set("/process/user", json!({"uid": 0, "gid": 0, "umask": 0o27}))),
        "0027\n"
    );
    assert_eq!(ctx.shell("umask", |b| b), "0022\n");
}

fn sets(text: &str) -> Vec<u64> {
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
        .iter()
        .map(|n| {
            let line = text.lines().find(|l| l.starts_with(n)).unwrap();
            u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
        })
        .collect()
}

const STATUS: &str = "cat /proc/self/status";
const KILL: u64 = 1 << 5;
const BIND: u64 = 1 << 10;
const RAW: u64 = 1 << 13;

fn capability_sets_are_those_of_the_configuration(ctx: &Ctx) {
    let text = ctx.shell(STATUS, |b| {
        b.set(
            "/process/capabilities",
            json!({
                "bounding": ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"],
                "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"], "effective": ["CAP_KILL"],
                "inheritable": ["CAP_NET_BIND_SERVICE"], "ambient": ["CAP_NET_BIND_SERVICE"]
            }),
        )
    });
    // Root's execve would raise permitted and effective to the bounding set, were it not for no-new-privileges.
    assert_eq!(
        sets(&text),
        [BIND, KILL | BIND, KILL | BIND, KILL | BIND | RAW, BIND],
        "{text}"
    );
}

fn ambient_capabilities_reach_an_unprivileged_user(ctx: &Ctx) {
    let text = ctx.shell(STATUS, |b| {
        let caps = json!(["CAP_NET_BIND_SERVICE"]);
        b.set("/process/user", json!({"uid": 1000, "gid": 1000})).set(
            "/process/capabilities",
            json!({
                "bounding": caps, "permitted": caps, "effective": caps, "inheritable": caps, "ambient": caps
            }),
        )
    });
    assert_eq!(sets(&text), [BIND; 5], "{text}");
}

fn inheritable_capabilities_are_empty_unless_listed(ctx: &Ctx) {
    // CVE-2022-29162
    let text = ctx.shell(STATUS, |b| b);
    assert_eq!(sets(&text)[0], 0, "{text}");
    assert_eq!(sets(&text)[4], 0, "{text}");
}

fn an_unknown_capability_is_warned_of_or_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.caps(&["CAP_FLYING", "CAP_KILL"]).sh(STATUS);
    let out = ctx.run(&bundle);
    if out.code == 0 {
        assert_eq!(sets(&out.stdout)[3], KILL, "{out:?}");
    }
    assert!(
        out.log.contains("CAP_FLYING") || out.stderr.contains("CAP_FLYING"),
        "{out:?}"
    );
}

fn no_capabilities_field_means_none(ctx: &Ctx) {
    let text = ctx.shell(STATUS, |b| {
        b.edit(|s| drop(s["process"].as_object_mut().unwrap().remove("capabilities")))
    });
    assert_eq!(sets(&text), [0; 5], "{text}");
}

fn no_new_privileges_is_set(ctx: &Ctx) {
    assert!(ctx.shell(STATUS, |b| b).contains("NoNewPrivs:\t1"));
    assert!(
        ctx.shell(STATUS, |b| b.set("/process/noNewPrivileges", json!(false)))
            .contains("NoNewPrivs:\t0")
    );
}

fn rlimits_are_lowered(ctx: &Ctx) {
    let text = ctx.shell("cat /proc/self/limits", |b| {
        b.set("/process/rlimits", json!([
            {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 100}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_FSIZE", "soft": 1_048_576, "hard": 2_097_152}, {"type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 8_388_608}
        ]))
    });
    let line = |name: &str| {
        text.lines()
            .find(|l| l.starts_with(name))
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(line("Max open files"), "Max open files 64 100 files");
    assert_eq!(line("Max core file size"), "Max core file size 0 0 bytes");
    assert_eq!(line("Max file size"), "Max file size 1048576 2097152 bytes");
    assert_eq!(line("Max stack size"), "Max stack size 1048576 8388608 bytes");
}

fn an_unknown_rlimit_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_LUCK", "soft": 1, "hard": 1}]),
    );
    ctx.run(&bundle).refused(&["RLIMIT_LUCK", "rlimit"]);
}

fn a_doubled_rlimit_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let one = json!({"type": "RLIMIT_NOFILE", "soft": 64, "hard": 100});
    bundle.set("/process/rlimits", json!([one, one]));
    let out = ctx.run(&bundle);
    if out.code != 0 {
        out.refused(&["RLIMIT_NOFILE", "rlimit"]);
    }
}

fn environment_is_exactly_the_given_one(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set(
            "/process/env",
            json!(["PATH=/bin", "A=1", "EMPTY=", "SPACED= a b ", "HOME=/h"]),
        )
        .args(&["env"]);
    let id = ctx.id();
    let out = ctx
        .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id])
        .env("LEAKED", "yes")
        .output();
    let mut lines: Vec<&str> = out.ok().stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=1", "EMPTY=", "HOME=/h", "PATH=/bin", "SPACED= a b "]);
}

fn home_comes_from_passwd_when_unset(ctx: &Ctx) {
    assert_eq!(ctx.shell("echo $HOME", |b| b), "/root\n");
    assert_eq!(
        ctx.shell("echo $HOME", |b| b
            .set("/process/user", json!({"uid": 1000, "gid": 1000}))),
        "/home/user\n"
    );
}

fn later_environment_entries_win(ctx: &Ctx) {
    assert_eq!(
        ctx.shell("echo $A", |b| b.set("/process/env", json!(["PATH=/bin", "A=1", "A=2"]))),
        "2\n"
    );
}

fn path_of_the_environment_finds_the_program(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .file("/opt/tool", "#!/bin/sh\necho the tool\n")
        .set("/process/env", json!(["PATH=/nowhere:/opt:/bin"]))
        .args(&["tool"]);
    fs::set_permissions(bundle.path("/opt/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(ctx.run(&bundle).ok().text(), "the tool");
}

fn cwd_is_set_and_made(ctx: &Ctx) {
    assert_eq!(
        ctx.shell("pwd", |b| b.set("/process/cwd", json!("/home/user"))),
        "/home/user\n"
    );
    let bundle = ctx.bundle();
    bundle.writable().set("/process/cwd", json!("/made/for/it")).sh("pwd");
    assert_eq!(ctx.run(&bundle).ok().text(), "/made/for/it");
}

fn cwd_must_be_absolute(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/process/cwd", json!("home"));
    ctx.run(&bundle).refused(&["cwd"]);
}

fn cwd_that_the_user_cannot_enter_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .file("/root/private/x", "")
        .set("/process/cwd", json!("/root/private"))
        .set("/process/user", json!({"uid": 1000, "gid": 1000}));
    fs::set_permissions(bundle.path("/root"), fs::Permissions::from_mode(0o700)).unwrap();
    // runc of 1.1 enters as root first; what matters is that neither hangs nor hides a failure.
    let out = ctx.run(&bundle);
    if out.code != 0 {
        out.refused(&["/root/private"]);
    }
}

fn arguments_arrive_unchanged(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let odd = [
        "printf",
        "[%s]",
        "",
        "a b",
        "*",
        "$HOME",
        "ünï",
        "--",
        "-n",
        "new\nline",
    ];
    bundle.args(&odd);
    assert_eq!(
        ctx.run(&bundle).ok().stdout,
        "[][a b][*][$HOME][ünï][--][-n][new\nline]"
    );
}

fn oom_score_is_set(ctx: &Ctx) {
    assert_eq!(
        ctx.shell("cat /proc/self/oom_score_adj", |b| b
            .set("/process/oomScoreAdj", json!(300))),
        "300\n"
    );
}

fn profile(bundle: &Bundle, default: &str, rules: serde_json::Value) {
    let arch = if cfg!(target_arch = "aarch64") {
        "SCMP_ARCH_AARCH64"
    } else {
        "SCMP_ARCH_X86_64"
    };
    bundle.set(
        "/linux/seccomp",
        json!({"defaultAction": default, "architectures": [arch], "syscalls": rules}),
    );
}

fn probe(ctx: &Ctx, call: &str, rules: serde_json::Value) -> String {
    let bundle = ctx.bundle();
    profile(&bundle, "SCMP_ACT_ALLOW", rules);
    bundle.args(&["probe", "call", call]);
    ctx.run(&bundle).ok().text().to_owned()
}

/// A rule for each value of an argument that nobody uses.
fn values(values: impl Iterator<Item = u64>) -> serde_json::Value {
    values
        .map(|value| {
            json!({"names": ["personality"], "action": "SCMP_ACT_ERRNO",
                   "args": [{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}]})
        })
        .collect()
}

/// libseccomp alone needs minutes for what the kernel then refuses.
fn seccomp_with_more_values_than_can_be_loaded_is_refused_at_once(ctx: &Ctx) {
    let bundle = ctx.bundle();
    profile(&bundle, "SCMP_ACT_ALLOW", values(1..=12_000));
    let words = "linux.seccomp.syscalls: the rules compare arguments with 12000 different values";
    ctx.run(&bundle).refused(&[words]);
}

fn seccomp_with_many_values_is_loaded(ctx: &Ctx) {
    let bundle = ctx.bundle();
    profile(&bundle, "SCMP_ACT_ALLOW", values(1..=4000));
    ctx.run(&bundle).ok();
}

/// Few enough values to be tried, each of which takes several instructions: minutes of work, of which nobody is to be kept
/// from ending it. (With more room in BPF or a quicker libseccomp it would be loaded, and the program run.)
fn seccomp_that_takes_long_to_compile_can_be_interrupted(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let halves = |value: u64| value << 32 | value;
    let mut rules = Vec::new();
    for value in 1..=3000 {
        let name = ["personality", "getpgid", "getsid"][value as usize % 3];
        let args = json!([{"index": 1, "value": halves(value), "op": "SCMP_CMP_EQ"}]);
        rules.push(json!({"names": [name], "action": "SCMP_ACT_ERRNO", "args": args}));
    }
    profile(&bundle, "SCMP_ACT_ALLOW", rules.into());
    bundle.args(&["sleep", "1000"]);
    let id = ctx.id();
    let running = ctx
        .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id])
        .spawn();
    // From then on it passes on what it gets.
    proa_integration::ctx::eventually("that all signals are blocked", || {
        let status = fs::read_to_string(format!("/proc/{}/status", running.child.id())).ok()?;
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
        (!blocked.trim().bytes().all(|digit| digit == b'0')).then_some(())
    });
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().code(1000 + 15);
    ctx.call(&["state", &id])
        .output()
        .refused(&["container does not exist"]);
}

fn seccomp_errno_is_returned(ctx: &Ctx) {
    let rule = |errno: serde_json::Value| {
        let mut rule = json!({"names": ["sysinfo"], "action": "SCMP_ACT_ERRNO"});
        if !errno.is_null() {
            rule["errnoRet"] = errno;
        }
        json!([rule])
    };
    assert_eq!(probe(ctx, "sysinfo", rule(json!(null))), "errno 1");
    assert_eq!(probe(ctx, "sysinfo", rule(json!(38))), "errno 38");
    assert_eq!(probe(ctx, "getcwd", rule(json!(38))), "ok");
}

fn seccomp_default_action_and_allow_list(ctx: &Ctx) {
    let bundle = ctx.bundle();
    profile(
        &bundle,
        "SCMP_ACT_ERRNO",
        json!([{"action": "SCMP_ACT_ALLOW", "names": [
            "execve", "exit_group", "exit", "write", "writev", "brk", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64",
            "readlink", "readlinkat", "getrandom", "mprotect", "fstat", "newfstatat", "mmap", "munmap", "futex", "openat", "close", "read", "getcwd",
            "getpid", "getppid", "stat", "fcntl", "epoll_ctl", "epoll_pwait", "nanosleep", "rt_sigreturn", "rt_sigaction", "rt_sigprocmask", "sigaltstack",
            "gettid", "tgkill", "capset", "capget", "chdir", "fchdir", "setuid", "setgid", "setgroups", "prctl", "close_range", "sendmsg", "recvmsg",
            "sendto", "recvfrom", "fstatfs", "statfs", "poll", "ppoll", "getdents64", "access", "faccessat", "faccessat2", "umask", "setresuid", "setresgid", "execveat", "dup3", "lseek", "sched_yield", "madvise", "clock_gettime", "wait4", "waitid", "clone"
        ]}]),
    );
    bundle.args(&["probe", "call", "getcwd"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "ok");
    bundle.args(&["probe", "call", "sysinfo"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "errno 1");
}

fn seccomp_compares_arguments(ctx: &Ctx) {
    let rule = |op: &str, value: u64| json!([{"names": ["setpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77, "args": [{"index": 2, "value": value, "op": op}]}]);
    // The probe asks for priority 5.
    for (op, value, hit) in [
        ("SCMP_CMP_EQ", 5, true),
        ("SCMP_CMP_EQ", 6, false),
        ("SCMP_CMP_NE", 6, true),
        ("SCMP_CMP_NE", 5, false),
        ("SCMP_CMP_LT", 6, true),
        ("SCMP_CMP_LT", 5, false),
        ("SCMP_CMP_LE", 5, true),
        ("SCMP_CMP_GT", 4, true),
        ("SCMP_CMP_GT", 5, false),
        ("SCMP_CMP_GE", 5, true),
        ("SCMP_CMP_GE", 6, false),
    ] {
        assert_eq!(
            probe(ctx, "setpriority", rule(op, value)) == "errno 77",
            hit,
            "{op} {value}"
        );
    }
}

fn seccomp_masked_comparison(ctx: &Ctx) {
    let rule = |mask: u64, value: u64| {
        json!([{"names": ["setpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77,
            "args": [{"index": 2, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]}])
    };
    assert_eq!(probe(ctx, "setpriority", rule(4, 4)), "errno 77");
    assert_eq!(probe(ctx, "setpriority", rule(2, 2)), "ok");
}

fn seccomp_kill_process_ends_the_program(ctx: &Ctx) {
    let bundle = ctx.bundle();
    profile(
        &bundle,
        "SCMP_ACT_ALLOW",
        json!([{"names": ["sysinfo"], "action": "SCMP_ACT_KILL_PROCESS"}]),
    );
    bundle.args(&["probe", "call", "sysinfo"]);
    ctx.run(&bundle).code(128 + 31);
}

fn seccomp_trap_is_sigsys(ctx: &Ctx) {
    let bundle = ctx.bundle();
    profile(
        &bundle,
        "SCMP_ACT_ALLOW",
        json!([{"names": ["sysinfo"], "action": "SCMP_ACT_TRAP"}]),
    );
    bundle.sh("probe call sysinfo; echo $?");
    assert_eq!(ctx.run(&bundle).ok().stdout, "159\n");
}

fn seccomp_takes_several_architectures(ctx: &Ctx) {
    let bundle = ctx.bundle();
    profile(
        &bundle,
        "SCMP_ACT_ALLOW",
        json!([{"names": ["sysinfo"], "action": "SCMP_ACT_ERRNO"}]),
    );
    bundle.set(
        "/linux/seccomp/architectures",
        json!([
            "SCMP_ARCH_X86_64",
            "SCMP_ARCH_X86",
            "SCMP_ARCH_X32",
            "SCMP_ARCH_AARCH64",
            "SCMP_ARCH_ARM"
        ]),
    );
    bundle.args(&["probe", "call", "sysinfo"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "errno 1");
}

fn seccomp_flags_are_taken(ctx: &Ctx) {
    let bundle = ctx.bundle();
    profile(
        &bundle,
        "SCMP_ACT_ALLOW",
        json!([{"names": ["sysinfo"], "action": "SCMP_ACT_ERRNO"}]),
    );
    bundle.set(
        "/linux/seccomp/flags",
        json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
    );
    bundle.args(&["probe", "call", "sysinfo"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "errno 1");
}

fn seccomp_unknown_names_are_ignored(ctx: &Ctx) {
    // Profiles name calls of newer kernels and other architectures; every runtime skips what it does not know.
    assert_eq!(
        probe(
            ctx,
            "getcwd",
            json!([{"names": ["call_of_the_wild", "getcwd"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}])
        ),
        "errno 5"
    );
}

fn seccomp_unknown_action_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    profile(
        &bundle,
        "SCMP_ACT_ALLOW",
        json!([{"names": ["getcwd"], "action": "SCMP_ACT_SHRUG"}]),
    );
    ctx.run(&bundle).refused(&["SCMP_ACT_SHRUG"]);
    profile(&bundle, "SCMP_ACT_SHRUG", json!([]));
    ctx.run(&bundle).refused(&["SCMP_ACT_SHRUG"]);
}

fn seccomp_notify_hands_over_a_listener(ctx: &Ctx) {
    let socket = ctx.dir.join("notify.sock");
    let log = ctx.dir.join("agent.out");
    let mut agent = Command::new(&ctx.probe)
        .arg("notify-agent")
        .arg(&socket)
        .stdout(fs::File::create(&log).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let said = || fs::read_to_string(&log).unwrap();
    eventually("the agent", || said().contains("listening").then_some(()));
    let bundle = ctx.bundle();
    profile(
        &bundle,
        "SCMP_ACT_ALLOW",
        json!([{"names": ["sysinfo"], "action": "SCMP_ACT_NOTIFY"}]),
    );
    bundle
        .set("/linux/seccomp/listenerPath", json!(socket))
        .set("/linux/seccomp/listenerMetadata", json!("the metadata"));
    bundle.args(&["probe", "call", "sysinfo"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "errno 91");
    agent.kill().unwrap();
    agent.wait().unwrap();
    let said = said();
    let state = said.lines().find_map(|l| l.strip_prefix("state ")).unwrap();
    let state: serde_json::Value = serde_json::from_str(state).unwrap();
    assert_eq!(state["metadata"], "the metadata");
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert!(state["pid"].as_u64().unwrap() > 0);
    assert_eq!(state["state"]["status"], "creating");
    assert_eq!(state["state"]["bundle"], bundle.dir.to_str().unwrap());
}

fn seccomp_works_without_no_new_privileges(ctx: &Ctx) {
    let bundle = ctx.bundle();
    profile(
        &bundle,
        "SCMP_ACT_ALLOW",
        json!([{"names": ["sysinfo"], "action": "SCMP_ACT_ERRNO"}]),
    );
    bundle
        .set("/process/noNewPrivileges", json!(false))
        .sh("probe call sysinfo; grep NoNewPrivs /proc/self/status; grep Cap /proc/self/status");
    let out = ctx.run(&bundle);
    assert!(out.ok().stdout.starts_with("errno 1\nNoNewPrivs:\t0\n"), "{out:?}");
    // The capability that installing the filter needs is not left over.
    assert_eq!(sets(&out.stdout)[2], KILL | BIND | 1 << 29, "{out:?}");
}

fn seccomp_duplicate_rules_are_no_error(ctx: &Ctx) {
    let rule = json!({"names": ["sysinfo", "sysinfo"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5});
    assert_eq!(probe(ctx, "sysinfo", json!([rule, rule])), "errno 5");
}

fn keyring(ctx: &Ctx, flags: &[&str]) -> String {
    let bundle = ctx.bundle();
    bundle.args(&["probe", "keyring"]);
    ctx.run_with(&bundle, flags).ok().text().to_owned()
}

fn session_keyring_is_new(ctx: &Ctx) {
    let (one, two) = (keyring(ctx, &[]), keyring(ctx, &[]));
    assert!(!one.starts_with("errno"), "{one}");
    assert_ne!(one, two);
}

fn no_new_keyring_keeps_the_callers(ctx: &Ctx) {
    let host = Command::new(&ctx.probe).arg("keyring").output().unwrap().stdout;
    let id = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(
        id(&keyring(ctx, &["--no-new-keyring"])),
        id(&String::from_utf8_lossy(&host))
    );
    // An exec has what its container has.
    let container = ctx.create_with(ctx.bundle().args(&["sleep", "1000"]), &["--no-new-keyring"]);
    container.start();
    let inside = container.exec(&["probe", "keyring"]);
    assert_eq!(id(inside.ok().text()), id(&String::from_utf8_lossy(&host)));
}

fn personality_is_set(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/linux/personality", json!({"domain": "LINUX32"}))
        .args(&["uname", "-m"]);
    assert_ne!(ctx.run(&bundle).ok().text(), "x86_64");
    bundle.args(&["probe", "personality"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "0x8");
}

fn io_priority_is_set(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 4}),
        )
        .args(&["probe", "ioprio"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "0x4004");
}

fn scheduler_is_set(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 3}))
        .args(&["probe", "sched"]);
    let text = ctx.run(&bundle).ok().text().to_owned();
    assert!(text.starts_with("policy=3 nice=3"), "{text}");
}

fn exec_cpu_affinity_is_set(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/execCPUAffinity", json!({"initial": "0", "final": "1"}))
        .args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    assert_eq!(container.exec(&["probe", "affinity"]).ok().text(), "1");
}

fn signals_are_at_their_defaults(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["cat", "/proc/self/status"]);
    let id = ctx.id();
    let call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id]);
    let out = call
        .under(&["sh", "-c", "trap '' HUP INT PIPE; exec \"$@\"", "sh"])
        .output();
    let mask = |n: &str| {
        u64::from_str_radix(
            out.ok()
                .stdout
                .lines()
                .find(|l| l.starts_with(n))
                .unwrap()
                .split_whitespace()
                .nth(1)
                .unwrap(),
            16,
        )
        .unwrap()
    };
    assert_eq!(mask("SigBlk"), 0);
    // An ignored signal may be inherited, as from any shell; a runtime's own ignored ones may not be. The signals above 31
    // are the C library's.
    assert_eq!(mask("SigIgn") & 0x7fff_ffff & !(1 | 1 << 1 | 1 << 12), 0);
}

fn program_is_found_in_the_root_only(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["systemctl"]);
    ctx.run(&bundle).refused(&["systemctl"]);
    bundle.args(&["/usr/bin/env"]);
    ctx.run(&bundle).refused(&["/usr/bin/env"]);
}

fn a_script_runs_by_its_shebang(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .file("/bin/script", "#!/bin/sh\necho \"$0\" \"$@\"\n")
        .args(&["/bin/script", "x"]);
    fs::set_permissions(bundle.path("/bin/script"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(ctx.run(&bundle).ok().text(), "/bin/script x");
}

fn stdin_at_its_end_does_not_hang(ctx: &Ctx) {
    assert_eq!(ctx.shell("cat; echo end", |b| b), "end\n");
}

fn apparmor_profile_without_apparmor_is_refused(ctx: &Ctx) {
    if fs::exists("/sys/kernel/security/apparmor").unwrap_or(false) {
        return;
    }
    let bundle = ctx.bundle();
    bundle.set("/process/apparmorProfile", json!("no-such-profile"));
    ctx.run(&bundle).refused(&["apparmor"]);
}

fn memory_policy_or_a_clear_error(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/linux/memoryPolicy", json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}))
        .sh("grep -c interleave /proc/self/numa_maps");
    let out = ctx.run(&bundle);
    if out.code != 0 {
        out.refused(&["memoryPolicy", "memory policy", "set_mempolicy", "numa_maps"]);
    }
}

fn user_name_is_not_taken_for_an_id(ctx: &Ctx) {
    assert_ne!(ctx.subject.kind, Kind::Runc);
    let bundle = ctx.bundle();
    bundle.set("/process/user", json!({"uid": "root"}));
    ctx.run(&bundle).refused(&["uid"]);
}

fn warnings_of_the_containers_init_reach_the_log(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/capabilities/inheritable", json!(["CAP_KILL"]))
        .set("/process/capabilities/ambient", json!(["CAP_KILL", "CAP_CHOWN"]));
    let out = ctx.run(&bundle);
    let text = out.ok().log.clone() + &out.stderr;
    assert!(text.contains("can't raise ambient capability CAP_CHOWN: "), "{text}");
}

fn debug_tells_what_the_containers_init_does(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let id = ctx.id();
    let out = ctx
        .call(&["--debug", "run", "--bundle", bundle.dir.to_str().unwrap(), &id])
        .output();
    assert!(out.ok().log.contains("\"level\":\"debug\""), "{out:?}");
    if ctx.subject.kind == Kind::Proa {
        assert!(out.log.contains("exeseal: using /proc/self/exe clone"), "{out:?}");
    }
}
