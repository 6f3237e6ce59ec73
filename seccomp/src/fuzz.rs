//! The fuzz target of this crate, a library function so that a test can replay its corpus: profiles of any kind are compiled,
//! and the programs checked as the kernel checks them and run against what the profile says.

use crate::bpf::{Instruction, JUMP, LOAD, RETURN};
use crate::enosys::RETURN_ENOSYS;
use crate::interpreter::{Call, run};
use crate::{Program, arch, compile};
use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};
use serde_json::{Value, json};

const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
];
const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];
/// Those of one machine but x32: with that, libseccomp (2.5.4) can make a program that compares the wrong word.
const ARCHITECTURES: [&str; 3] = ["SCMP_ARCH_NATIVE", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];
/// Calls of every age, of other architectures only, and of none.
const NAMES: [&str; 32] = [
    "read",
    "write",
    "open",
    "close",
    "mmap",
    "ioctl",
    "clone",
    "clone3",
    "personality",
    "socket",
    "socketcall",
    "ipc",
    "mount",
    "umount2",
    "ptrace",
    "bpf",
    "keyctl",
    "setns",
    "unshare",
    "openat2",
    "faccessat2",
    "futex_waitv",
    "statmount",
    "arm_fadvise64_64",
    "s390_pci_mmio_read",
    "send",
    "recv",
    "time",
    "exit_group",
    "rt_sigreturn",
    "no_such_call",
    "",
];

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    /// Zeros, once there is no more.
    fn number(&mut self, size: usize) -> u64 {
        let (head, rest) = self.0.split_at(size.min(self.0.len()));
        self.0 = rest;
        head.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// Numbers as they are used, and any.
    fn value(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => self.number(1),
            1 => u64::MAX - self.number(1),
            2 => 1 << (self.byte() % 64),
            _ => self.number(8),
        }
    }
}

/// A document if it looks like one (none if it is no profile), else a profile that the bytes choose.
fn profile(bytes: &mut Bytes<'_>) -> Option<LinuxSeccomp> {
    if bytes.0.first() == Some(&b'{') {
        return serde_json::from_slice(std::mem::take(&mut bytes.0)).ok();
    }
    let mut profile = json!({"defaultAction": bytes.one(&ACTIONS)});
    if bytes.byte() & 3 == 0 {
        profile["defaultErrnoRet"] = bytes.value().into();
    }
    let count = bytes.byte() % 4;
    profile["architectures"] = (0..count).map(|_| bytes.one(&ARCHITECTURES)).collect();
    let rules = bytes.byte() % 16;
    profile["syscalls"] = (0..rules).map(|_| rule(bytes)).collect();
    serde_json::from_value(profile).ok()
}

fn rule(bytes: &mut Bytes<'_>) -> Value {
    let names: Vec<&str> = (0..=bytes.byte() % 4).map(|_| bytes.one(&NAMES)).collect();
    let mut rule = json!({"names": names, "action": bytes.one(&ACTIONS)});
    if bytes.byte() & 3 == 0 {
        rule["errnoRet"] = bytes.value().into();
    }
    let conditions = bytes.byte() % 4;
    let condition = |bytes: &mut Bytes<'_>| json!({"index": bytes.byte() % 7, "value": bytes.value(), "valueTwo": bytes.value(), "op": bytes.one(&OPERATORS)});
    rule["args"] = (0..conditions).map(|_| condition(bytes)).collect();
    rule
}

/// Compiles a profile and compares what its program answers with what the profile says.
pub fn seccomp(data: &[u8]) {
    let mut bytes = Bytes(data);
    let Some(profile) = profile(&mut bytes).filter(|profile| !meets_itself(profile)) else {
        return;
    };
    let program = match compile(&profile) {
        Ok(compiled) => compiled.program,
        Err(error) => return assert!(error.to_string().starts_with("linux.seccomp"), "{error}"),
    };
    assert_eq!(Program::decode(&program.encode()).as_ref(), Some(&program));
    check(&program);
    let native = arch::audit(ScmpArch::native());
    let all = profile.syscalls().as_deref().unwrap_or_default();
    for name in all.iter().flat_map(LinuxSyscall::names).take(64) {
        let Ok(number) = ScmpSyscall::from_name(name).map(i32::from) else {
            continue;
        };
        let Ok(number) = u32::try_from(number) else { continue };
        // Around the values that are compared with, where mistakes would show.
        let values: Vec<&LinuxSeccompArg> = all.iter().flat_map(|rule| rule.args().iter().flatten()).collect();
        let mut args = [0; 6];
        for (index, arg) in args.iter_mut().enumerate() {
            let compared = values.iter().find(|value| value.index() == index);
            *arg = match compared {
                Some(value) => value.value().wrapping_add(bytes.number(1)).wrapping_sub(1),
                None => bytes.value(),
            };
        }
        let call = Call {
            number,
            architecture: native,
            args,
        };
        if let Some(expected) = expected(&profile, name, &args) {
            assert_eq!(
                run(&program.instructions, call),
                expected,
                "{name}({args:x?}) under {profile:?}"
            );
        }
    }
    for number in [0, 1 << 29, bytes.number(4) as u32] {
        let call = Call {
            number,
            architecture: native,
            args: [bytes.value(); 6],
        };
        // Whatever comes, the program ends, with an action of the profile's or of the stub's.
        run(&program.instructions, call);
    }
    // No rule is about it, and it is newer than all.
    let answer = run(
        &program.instructions,
        Call {
            number: 1 << 29,
            architecture: native,
            args: [0; 6],
        },
    );
    let default = value(profile.default_action(), profile.default_errno_ret());
    assert!(
        answer == default || answer == RETURN_ENOSYS,
        "{answer:#x} under {profile:?}"
    );
}

/// Whether two rules put conditions on one call: libseccomp (2.5.4) can fall into an endless loop over such
/// (`seccomp_rule_add_array`), and that is not to be found again and again. On x86 the calls on sockets are one. Documents may
/// also list the architectures of several machines, see [`ARCHITECTURES`].
fn meets_itself(profile: &LinuxSeccomp) -> bool {
    let listed = profile.architectures().as_deref().unwrap_or_default();
    if listed
        .iter()
        .any(|arch| !ARCHITECTURES.contains(&arch.to_string().as_str()))
    {
        return true;
    }
    let mut seen: Vec<&str> = Vec::new();
    let all = profile.syscalls().as_deref().unwrap_or_default();
    let conditional = all
        .iter()
        .filter(|rule| rule.args().as_ref().is_some_and(|args| !args.is_empty()));
    conditional.flat_map(LinuxSyscall::names).any(|name| {
        let name = match name.as_str() {
            "socket" | "send" | "recv" => "socketcall",
            other => other,
        };
        let met = seen.contains(&name);
        seen.push(name);
        met
    })
}

/// What seccomp(2) refuses: unknown operations, loads outside of `seccomp_data`, jumps out of the program, an open end.
fn check(program: &Program) {
    let all: Vec<Instruction> = program
        .instructions
        .chunks_exact(Instruction::SIZE)
        .map(Instruction::decode)
        .collect();
    assert!(!all.is_empty() && all.len() <= 4096);
    for (at, one) in all.iter().enumerate() {
        let last = all.len() - 1;
        match one.code {
            LOAD => assert!(one.k % 4 == 0 && one.k < 64, "load of {}", one.k),
            JUMP => assert!(at + 1 + one.k as usize <= last, "jump at {at}"),
            RETURN | 0x54 => {}
            0x15 | 0x25 | 0x35 | 0x45 => assert!(at + 1 + usize::from(one.jt.max(one.jf)) <= last, "branch at {at}"),
            code => panic!("operation {code:#x} at {at}"),
        }
    }
    assert_eq!(all.last().map(|one| one.code), Some(RETURN));
}

/// What the kernel is to do with a call of `name`, if the profile is simple enough to tell: one rule is about it.
fn expected(profile: &LinuxSeccomp, name: &str, args: &[u64; 6]) -> Option<u32> {
    let all = profile.syscalls().as_deref().unwrap_or_default();
    let mut rules = all
        .iter()
        .flat_map(|rule| rule.names().iter().map(move |name| (name, rule)))
        .filter(|(other, _)| *other == name);
    let (_, rule) = rules.next()?;
    if rules.next().is_some() {
        return None;
    }
    let conditions = rule.args().as_deref().unwrap_or_default();
    let on: Vec<usize> = conditions.iter().map(LinuxSeccompArg::index).collect();
    let repeated = (1..on.len()).any(|at| on[..at].contains(&on[at]));
    if repeated {
        // Alternatives. libseccomp (2.5.4) does not get all of those right whose values share their upper or lower half.
        return None;
    }
    let holds = conditions.iter().all(|condition| holds(condition, args));
    let by_default = value(profile.default_action(), profile.default_errno_ret());
    Some(if holds {
        value(rule.action(), rule.errno_ret())
    } else {
        by_default
    })
}

fn holds(condition: &LinuxSeccompArg, args: &[u64; 6]) -> bool {
    let (arg, value) = (args[condition.index()], condition.value());
    match condition.op() {
        LinuxSeccompOperator::ScmpCmpNe => arg != value,
        LinuxSeccompOperator::ScmpCmpLt => arg < value,
        LinuxSeccompOperator::ScmpCmpLe => arg <= value,
        LinuxSeccompOperator::ScmpCmpEq => arg == value,
        LinuxSeccompOperator::ScmpCmpGe => arg >= value,
        LinuxSeccompOperator::ScmpCmpGt => arg > value,
        // Of what it is to be, libseccomp takes only the bits of the mask.
        LinuxSeccompOperator::ScmpCmpMaskedEq => arg & value == condition.value_two().unwrap_or(0) & value,
    }
}

/// `SECCOMP_RET_*` of linux/seccomp.h with its data.
fn value(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    let errno = errno.unwrap_or(1);
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => 0x0005_0000 | errno,
        LinuxSeccompAction::ScmpActNotify => 0x7fc0_0000,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | errno,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_is_replayed() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/seccomp");
        let mut count = 0;
        for entry in std::fs::read_dir(corpus).unwrap() {
            super::seccomp(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{corpus} is empty");
    }
}
