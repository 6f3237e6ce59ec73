//! The compiled programs are run by a small interpreter of our own, on several architectures; one is installed for real.

use crate::arch;
use crate::bpf::{Instruction, RETURN};
use crate::enosys::{self, RETURN_ENOSYS, Section, X32_BIT};
use crate::interpreter::{Call, run};
use crate::{Compiled, Error, Program, compile};
use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::LinuxSeccomp;

const ALLOW: u32 = 0x7fff_0000;
const KILL_THREAD: u32 = 0;
const EPERM: u32 = 0x0005_0001;

fn profile(json: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(json).expect("a profile")
}

fn compiled(json: serde_json::Value) -> Compiled {
    compile(&profile(json)).expect("compiles")
}

fn number(arch: ScmpArch, name: &str) -> u32 {
    i32::from(ScmpSyscall::from_name_by_arch(name, arch).unwrap()) as u32
}

fn outcome(program: &Program, arch: ScmpArch, name: &str, args: &[u64]) -> u32 {
    let mut call = Call {
        number: number(arch, name),
        architecture: arch::audit(arch),
        args: [0; 6],
    };
    call.args[..args.len()].copy_from_slice(args);
    run(&program.instructions, call)
}

fn raw(program: &Program, arch: ScmpArch, number: u32) -> u32 {
    run(
        &program.instructions,
        Call {
            number,
            architecture: arch::audit(arch),
            args: [0; 6],
        },
    )
}

/// An architecture of the same byte order as the running one, whose filters libseccomp therefore combines with its own.
fn foreign() -> (&'static str, ScmpArch) {
    match (cfg!(target_endian = "little"), cfg!(target_arch = "aarch64")) {
        (true, false) => ("SCMP_ARCH_AARCH64", ScmpArch::Aarch64),
        (true, true) => ("SCMP_ARCH_RISCV64", ScmpArch::Riscv64),
        (false, _) => ("SCMP_ARCH_PPC64", ScmpArch::Ppc64),
    }
}

#[test]
fn every_action_returns_what_the_kernel_defines_for_it() {
    for (action, errno, expected) in [
        ("SCMP_ACT_KILL", None, 0),
        ("SCMP_ACT_KILL_THREAD", None, 0),
        ("SCMP_ACT_KILL_PROCESS", None, 0x8000_0000),
        ("SCMP_ACT_TRAP", None, 0x0003_0000),
        ("SCMP_ACT_ERRNO", None, 0x0005_0001),
        ("SCMP_ACT_ERRNO", Some(95), 0x0005_005f),
        ("SCMP_ACT_TRACE", None, 0x7ff0_0001),
        ("SCMP_ACT_TRACE", Some(7), 0x7ff0_0007),
        ("SCMP_ACT_LOG", None, 0x7ffc_0000),
        ("SCMP_ACT_NOTIFY", None, 0x7fc0_0000),
    ] {
        let mut rule = serde_json::json!({"names": ["getcwd"], "action": action});
        if let Some(errno) = errno {
            rule["errnoRet"] = errno.into();
        }
        let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})).program;
        assert_eq!(outcome(&it, ScmpArch::native(), "getcwd", &[]), expected, "{action}");
        assert_eq!(outcome(&it, ScmpArch::native(), "getpid", &[]), ALLOW);
        assert_eq!(it.notify, action == "SCMP_ACT_NOTIFY");
    }
}

#[test]
fn the_default_action_carries_its_errno() {
    let it = compiled(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "syscalls": [{"names": ["getcwd", "getpid"], "action": "SCMP_ACT_ALLOW"}]
    }));
    assert_eq!(outcome(&it.program, ScmpArch::native(), "getpid", &[]), ALLOW);
    assert_eq!(outcome(&it.program, ScmpArch::native(), "getcwd", &[]), ALLOW);
    assert_eq!(outcome(&it.program, ScmpArch::native(), "read", &[]), 0x0005_000d);
}

#[test]
fn every_operator_compares_all_64_bits() {
    let big = 1u64 << 40;
    for (operator, value, two, inside, outside) in [
        ("SCMP_CMP_NE", big, 0, vec![0, big + 1], vec![big]),
        ("SCMP_CMP_LT", big, 0, vec![0, big - 1], vec![big, big + 1]),
        ("SCMP_CMP_LE", big, 0, vec![big], vec![big + 1]),
        ("SCMP_CMP_EQ", big, 0, vec![big], vec![0, big + 1, 2 * big]),
        ("SCMP_CMP_GE", big, 0, vec![big, u64::MAX], vec![big - 1]),
        ("SCMP_CMP_GT", big, 0, vec![big + 1], vec![big, 5]),
        ("SCMP_CMP_MASKED_EQ", 0xff, 0x80, vec![0x80, 0x180], vec![0, 0x81]),
        ("SCMP_CMP_MASKED_EQ", big, 0, vec![0, 1], vec![big, big | 1]),
    ] {
        let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
            "names": ["personality"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": value, "valueTwo": two, "op": operator}]
        }]}));
        for argument in inside {
            let got = outcome(&it.program, ScmpArch::native(), "personality", &[argument]);
            assert_eq!(got, EPERM, "{operator} {value} of {argument}");
        }
        for argument in outside {
            let got = outcome(&it.program, ScmpArch::native(), "personality", &[argument]);
            assert_eq!(got, ALLOW, "{operator} {value} of {argument}");
        }
    }
}

#[test]
fn conditions_on_different_arguments_must_all_hold_and_on_one_argument_any() {
    let rule = |args: serde_json::Value| {
        compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": args}]}))
        .program
    };
    let both = rule(serde_json::json!([{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"},
        {"index": 2, "value": 9, "op": "SCMP_CMP_EQ"}]));
    assert_eq!(outcome(&both, ScmpArch::native(), "socket", &[16, 3, 9]), EPERM);
    assert_eq!(outcome(&both, ScmpArch::native(), "socket", &[16, 3, 8]), ALLOW);
    let either = rule(serde_json::json!([{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"},
        {"index": 0, "value": 17, "op": "SCMP_CMP_EQ"}]));
    assert_eq!(outcome(&either, ScmpArch::native(), "socket", &[16, 0, 0]), EPERM);
    assert_eq!(outcome(&either, ScmpArch::native(), "socket", &[17, 0, 0]), EPERM);
    assert_eq!(outcome(&either, ScmpArch::native(), "socket", &[18, 0, 0]), ALLOW);
}

#[test]
fn youki_3479_repeated_rules_are_not_fatal() {
    let rule = serde_json::json!({"names": ["getcwd", "getcwd"], "action": "SCMP_ACT_ERRNO"});
    let conditional = serde_json::json!({"names": ["socket"], "action": "SCMP_ACT_ERRNO",
        "args": [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}]});
    let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule, conditional, rule, conditional]}));
    assert_eq!(outcome(&it.program, ScmpArch::native(), "getcwd", &[]), EPERM);
    assert_eq!(outcome(&it.program, ScmpArch::native(), "socket", &[16]), EPERM);
    assert_eq!(outcome(&it.program, ScmpArch::native(), "socket", &[17]), ALLOW);
}

#[test]
fn a_rule_for_the_same_call_with_another_action_is_not_fatal() {
    let it = compile(&profile(
        serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["getcwd"], "action": "SCMP_ACT_KILL"},
        ]}),
    ));
    let it = it.expect("compiles").program;
    assert_ne!(outcome(&it, ScmpArch::native(), "getcwd", &[]), ALLOW);
}

#[test]
fn unknown_names_are_returned_and_the_rest_holds() {
    let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["no_such_call", "getcwd", "no_such_call"], "action": "SCMP_ACT_ERRNO"}]}));
    assert_eq!(it.unknown, ["no_such_call"]);
    assert_eq!(outcome(&it.program, ScmpArch::native(), "getcwd", &[]), EPERM);
}

#[test]
fn rules_that_do_what_happens_anyway_are_skipped() {
    let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {"names": ["getpid"], "action": "SCMP_ACT_ALLOW"}]}));
    assert_eq!(outcome(&it.program, ScmpArch::native(), "getpid", &[]), ALLOW);
    assert_eq!(outcome(&it.program, ScmpArch::native(), "getcwd", &[]), EPERM);
}

#[test]
fn an_empty_profile_compiles() {
    let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    assert_eq!(outcome(&it.program, ScmpArch::native(), "getcwd", &[]), ALLOW);
}

#[test]
fn the_native_architecture_is_always_there_and_others_on_request() {
    let (name, arch) = foreign();
    let rules = serde_json::json!([{"names": ["getcwd", "getpid"], "action": "SCMP_ACT_ALLOW"}]);
    let with = compiled(
        serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": [name],
        "syscalls": rules}),
    );
    for architecture in [ScmpArch::native(), arch] {
        assert_eq!(
            outcome(&with.program, architecture, "getcwd", &[]),
            ALLOW,
            "{architecture:?}"
        );
    }
    let without = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
    assert_eq!(outcome(&without.program, arch, "getcwd", &[]), KILL_THREAD);
}

#[test]
fn a_large_profile_is_searched_as_a_tree_with_the_same_outcome() {
    let known: Vec<(u32, String)> = (0..300)
        .filter_map(|nr| Some((nr as u32, ScmpSyscall::from(nr).get_name().ok()?)))
        .filter(|(nr, _)| nr % 2 == 0)
        .collect();
    assert!(known.len() > 64);
    let names: Vec<&String> = known.iter().map(|(_, name)| name).collect();
    let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": names, "action": "SCMP_ACT_ALLOW"}]}));
    let last = known.iter().map(|(nr, _)| *nr).max().unwrap();
    for nr in 0..last {
        let expected = if known.iter().any(|(number, _)| *number == nr) {
            ALLOW
        } else {
            EPERM
        };
        assert_eq!(raw(&it.program, ScmpArch::native(), nr), expected, "system call {nr}");
    }
}

#[test]
fn calls_newer_than_the_profile_are_unknown_rather_than_forbidden() {
    let rules = serde_json::json!([{"names": ["getcwd", "openat"], "action": "SCMP_ACT_ALLOW"}]);
    let last = number(ScmpArch::native(), "openat").max(number(ScmpArch::native(), "getcwd"));
    for default in ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let it = compiled(serde_json::json!({"defaultAction": default, "syscalls": rules})).program;
        assert_eq!(outcome(&it, ScmpArch::native(), "openat", &[]), ALLOW);
        assert_eq!(raw(&it, ScmpArch::native(), last + 1), RETURN_ENOSYS, "{default}");
        assert_eq!(raw(&it, ScmpArch::native(), 9999), RETURN_ENOSYS, "{default}");
        assert_ne!(
            outcome(&it, ScmpArch::native(), "read", &[]),
            RETURN_ENOSYS,
            "{default}"
        );
    }
    for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
        let rules = serde_json::json!([{"names": ["getcwd", "openat"], "action": "SCMP_ACT_KILL"}]);
        let it = compiled(serde_json::json!({"defaultAction": default, "syscalls": rules})).program;
        assert_ne!(raw(&it, ScmpArch::native(), 9999), RETURN_ENOSYS, "{default}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn each_architecture_of_x86_has_its_own_newest_call() {
    let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["getcwd", "openat", "execveat"], "action": "SCMP_ACT_ALLOW"}]}))
    .program;
    for arch in [ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32] {
        let newest = ["getcwd", "openat", "execveat"]
            .map(|name| number(arch, name))
            .into_iter()
            .max()
            .unwrap();
        assert_eq!(raw(&it, arch, newest), ALLOW, "{arch:?}");
        assert_eq!(raw(&it, arch, newest + 1), RETURN_ENOSYS, "{arch:?}");
    }
    // Without x32 in the profile its calls stay the filter's business, which refuses the architecture.
    let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ALLOW"}]}));
    assert_eq!(raw(&it.program, ScmpArch::X8664, X32_BIT | 9999), KILL_THREAD);
}

/// Runs the stub alone, in front of a filter that allows everything.
fn run_stub(sections: &[Section], audit: u32, number: u32) -> u32 {
    let mut program = enosys::stub(sections);
    program.push(Instruction::new(RETURN, ALLOW));
    let bytes: Vec<u8> = program.into_iter().flat_map(Instruction::encode).collect();
    run(
        &bytes,
        Call {
            number,
            architecture: audit,
            args: [0; 6],
        },
    )
}

#[test]
fn the_stub_serves_any_number_of_architectures() {
    let plain = |audit, last| Section {
        audit,
        last,
        last_x32: None,
        zero_is_unknown: false,
        has_x32: false,
    };
    let mut sections: Vec<Section> = (1..=60).map(|audit| plain(audit, Some(100 * audit))).collect();
    sections.push(plain(61, None));
    sections.push(Section {
        zero_is_unknown: true,
        ..plain(arch::audit(ScmpArch::S390X), Some(400))
    });
    for audit in 1..=60 {
        assert_eq!(run_stub(&sections, audit, 100 * audit), ALLOW);
        assert_eq!(run_stub(&sections, audit, 100 * audit + 1), RETURN_ENOSYS);
        assert_eq!(run_stub(&sections, audit, 0), ALLOW);
    }
    assert_eq!(run_stub(&sections, 61, 9999), ALLOW);
    assert_eq!(run_stub(&sections, 62, 9999), ALLOW);
    let s390x = arch::audit(ScmpArch::S390X);
    assert_eq!(
        [0, 1, 400, 401].map(|nr| run_stub(&sections, s390x, nr)),
        [RETURN_ENOSYS, ALLOW, ALLOW, RETURN_ENOSYS]
    );
}

#[test]
fn the_stub_of_x32_alone_leaves_x86_64_to_the_filter() {
    let audit = arch::audit(ScmpArch::X32);
    let only = Section {
        audit,
        last: None,
        last_x32: Some(X32_BIT | 300),
        zero_is_unknown: false,
        has_x32: true,
    };
    assert_eq!(run_stub(&[only], audit, 9999), ALLOW);
    assert_eq!(run_stub(&[only], audit, X32_BIT | 300), ALLOW);
    assert_eq!(run_stub(&[only], audit, X32_BIT | 301), RETURN_ENOSYS);
}

#[test]
fn flags_are_the_kernels_bits() {
    let flags = |value: serde_json::Value| {
        let mut json = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": value});
        if json["flags"].is_null() {
            json.as_object_mut().unwrap().remove("flags");
        }
        compiled(json).program.flags
    };
    assert_eq!(flags(serde_json::json!(null)), 4);
    assert_eq!(flags(serde_json::json!([])), 0);
    assert_eq!(flags(serde_json::json!(["SECCOMP_FILTER_FLAG_TSYNC"])), 0);
    assert_eq!(
        flags(serde_json::json!([
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
        ])),
        6
    );
    assert_eq!(flags(serde_json::json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])), 32);
}

#[test]
fn bad_profiles_are_refused_by_field() {
    let refused = |json| compile(&profile(json)).expect_err("refused").to_string();
    let rule = |rule: serde_json::Value| serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    assert!(
        refused(serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"}))
            .contains("SCMP_ACT_NOTIFY cannot be used as default action")
    );
    assert!(
        refused(rule(
            serde_json::json!({"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"})
        ))
        .contains("SCMP_ACT_NOTIFY cannot be used for the write syscall")
    );
    assert!(
        refused(serde_json::json!({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}))
            .contains("defaultErrnoRet: SCMP_ACT_KILL does not take an errno")
    );
    assert!(
        refused(rule(
            serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 70000})
        ))
        .contains("syscalls[0].errnoRet: 70000")
    );
    assert!(
        refused(rule(serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})))
        .contains("syscalls[0].args[0].index: 6")
    );
    assert!(
        refused(rule(serde_json::json!({"names": [""], "action": "SCMP_ACT_ERRNO"})))
            .contains("empty string is not a valid syscall")
    );
    // A filter of the other byte order can't be combined with the native one.
    let other = if cfg!(target_endian = "little") {
        "SCMP_ARCH_S390X"
    } else {
        "SCMP_ARCH_X86_64"
    };
    let it = compile(&profile(
        serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [other]}),
    ));
    assert!(matches!(it, Err(Error::Architecture { .. })));
}

#[test]
fn a_program_survives_encoding_and_nothing_else_decodes() {
    let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["getcwd"], "action": "SCMP_ACT_NOTIFY"}]}))
    .program;
    let bytes = it.encode();
    assert_eq!(Program::decode(&bytes), Some(it));
    assert_eq!(Program::decode(&bytes[..bytes.len() - 1]), None);
    assert_eq!(Program::decode(&bytes[..24]), None);
    assert_eq!(Program::decode(b""), None);
    let mut wrong = bytes;
    wrong[7] = 99;
    assert_eq!(Program::decode(&wrong), None);
}

#[test]
fn the_kernel_takes_the_program_and_obeys_it() {
    let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}))
    .program;
    let attempt = || std::fs::create_dir("/proc/nowhere").unwrap_err().raw_os_error();
    // A filter holds for the thread that installs it, so the other tests go on unfiltered.
    let filtered = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        assert!(
            proa_sys::security::seccomp_install(it.flags, &it.instructions)
                .unwrap()
                .is_none()
        );
        attempt()
    });
    assert_eq!(filtered.join().unwrap(), Some(95));
    assert_ne!(attempt(), Some(95));
}

#[test]
fn the_kernel_returns_a_listener_for_a_notifying_program() {
    let it = compiled(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["personality"], "action": "SCMP_ACT_NOTIFY"}]}))
    .program;
    let listener = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        proa_sys::security::seccomp_install(it.flags, &it.instructions).unwrap()
    });
    assert!(listener.join().unwrap().is_some());
}
