//! The compiler: a profile's rules into libseccomp, libseccomp's program out, the `ENOSYS` stub in front.

use crate::arch;
use crate::bpf::{Instruction, MAX_INSTRUCTIONS};
use crate::enosys::{self, Section};
use crate::{Compiled, Error, Program};
use libseccomp::error::SeccompErrno;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag};
use oci_spec::runtime::{LinuxSeccompOperator, LinuxSyscall};
use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Seek};

/// `SECCOMP_FILTER_FLAG_*` of linux/seccomp.h.
const FLAG_LOG: u64 = 1 << 1;
const FLAG_SPEC_ALLOW: u64 = 1 << 2;
const FLAG_NEW_LISTENER: u64 = 1 << 3;
const FLAG_WAIT_KILLABLE_RECV: u64 = 1 << 5;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// From this many names on a binary search beats the linear one (libseccomp tests four numbers a node).
const LINEAR_NAMES: usize = 32;

/// Whether a rule of `profile` notifies an agent.
pub fn uses_notify(profile: &LinuxSeccomp) -> bool {
    syscalls(profile)
        .iter()
        .any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify)
}

/// Compiles `profile` for the running architecture and the ones the profile lists.
pub fn compile(profile: &LinuxSeccomp) -> Result<Compiled, Error> {
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(Error::NotifyByDefault);
    }
    let default = action(profile.default_action(), profile.default_errno_ret(), || {
        "defaultErrnoRet".into()
    })?;
    let mut filter = ScmpFilterContext::new(default).map_err(library("seccomp_init"))?;
    let architectures = add_architectures(&mut filter, profile)?;
    // no_new_privs is the caller's business, and libseccomp sets it only when it loads the filter itself.
    filter
        .set_ctl_nnp(false)
        .map_err(library("seccomp_attr_set(SCMP_FLTATR_CTL_NNP, 0)"))?;
    let mut rules = Rules::new(default);
    for (index, rule) in syscalls(profile).iter().enumerate() {
        rules.add(index, rule)?;
    }
    // Before libseccomp sees them: the time it takes grows with the square of their number, and worse.
    let values = rules.compared_values();
    if values > MAX_INSTRUCTIONS {
        return Err(Error::TooManyValues(values));
    }
    rules.add_to(&mut filter)?;
    if rules.kept.len() > LINEAR_NAMES {
        filter
            .set_ctl_optimize(2)
            .map_err(library("seccomp_attr_set(SCMP_FLTATR_CTL_OPTIMIZE, 2)"))?;
    }
    let stub: Vec<Instruction> = if needs_stub(profile) {
        enosys::stub(&sections(profile, &architectures))
    } else {
        Vec::new()
    };
    let mut instructions: Vec<u8> = stub.into_iter().flat_map(Instruction::encode).collect();
    instructions.extend(export(&filter)?);
    let length = instructions.len() / Instruction::SIZE;
    debug_assert!(values <= length, "{values} values in {length} instructions");
    if length > MAX_INSTRUCTIONS {
        return Err(Error::TooLong(length));
    }
    let notify = uses_notify(profile);
    Ok(Compiled {
        program: Program {
            instructions,
            flags: flags(profile, notify),
            notify,
        },
        unknown: rules.unknown,
    })
}

/// The version of libseccomp, which decides what names are known and what program comes out.
pub fn library_version() -> String {
    match libseccomp::ScmpVersion::current() {
        Ok(version) => format!("libseccomp {}.{}.{}", version.major, version.minor, version.micro),
        Err(error) => format!("libseccomp {error}"),
    }
}

/// Whether this libseccomp has `arch`; one of the other byte order can't be in a filter for this machine, yet is known.
pub fn knows_architecture(arch: Arch) -> bool {
    let Ok(mut filter) = ScmpFilterContext::new(ScmpAction::Allow) else {
        return false;
    };
    match filter.add_arch(arch::library(arch)) {
        Ok(_) => true,
        Err(error) => error.errno() != Some(SeccompErrno::EINVAL),
    }
}

fn syscalls(profile: &LinuxSeccomp) -> &[LinuxSyscall] {
    profile.syscalls().as_deref().unwrap_or_default()
}

fn library(call: &'static str) -> impl FnOnce(libseccomp::error::SeccompError) -> Error {
    move |source| Error::Library { call, source }
}

/// Adds the profile's architectures and returns them all, the native one (which libseccomp adds by itself) first.
fn add_architectures(filter: &mut ScmpFilterContext, profile: &LinuxSeccomp) -> Result<Vec<ScmpArch>, Error> {
    let mut all = vec![ScmpArch::native()];
    let listed: &[Arch] = profile.architectures().as_deref().unwrap_or_default();
    for &name in listed {
        let arch = arch::library(name);
        if !all.contains(&arch) {
            filter
                .add_arch(arch)
                .map_err(|source| Error::Architecture { arch: name, source })?;
            all.push(arch);
        }
    }
    Ok(all)
}

/// libseccomp's action for `action` with `errno`, which belongs to the field that `field` names.
fn action(action: LinuxSeccompAction, errno: Option<u32>, field: impl FnOnce() -> String) -> Result<ScmpAction, Error> {
    let takes_errno = matches!(
        action,
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace
    );
    let value = match errno {
        Some(_) if !takes_errno => return Err(Error::NeedlessErrno { field: field(), action }),
        Some(value) => u16::try_from(value).map_err(|_| Error::LargeErrno { field: field(), value })?,
        None => EPERM as u16,
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(i32::from(value)),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(value),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    })
}

/// The rules on their way into libseccomp.
struct Rules<'a> {
    default: ScmpAction,
    seen: HashSet<(ScmpSyscall, ScmpAction, Vec<ScmpArgCompare>)>,
    unknown: Vec<String>,
    unknown_before: HashSet<&'a str>,
    kept: Vec<Kept<'a>>,
}

/// What libseccomp is given for one call of it.
struct Kept<'a> {
    index: usize,
    name: &'a str,
    number: ScmpSyscall,
    action: ScmpAction,
    conditions: Vec<ScmpArgCompare>,
    /// The first argument that is compared, and with what.
    first: Option<(usize, u64)>,
}

impl<'a> Rules<'a> {
    fn new(default: ScmpAction) -> Self {
        Self {
            default,
            seen: HashSet::new(),
            unknown: Vec::new(),
            unknown_before: HashSet::new(),
            kept: Vec::new(),
        }
    }

    fn add(&mut self, index: usize, rule: &'a LinuxSyscall) -> Result<(), Error> {
        let action = action(rule.action(), rule.errno_ret(), || {
            format!("syscalls[{index}].errnoRet")
        })?;
        let alternatives = conditions(index, rule.args().as_deref().unwrap_or_default())?;
        for name in rule.names() {
            if name.is_empty() {
                return Err(Error::EmptyName { index });
            }
            // Until the parent has the listener, write(2) is how the process tells it: notifying it would deadlock.
            if action == ScmpAction::Notify && name == "write" {
                return Err(Error::NotifyWrite { index });
            }
            // libseccomp refuses a rule that does what happens anyway.
            if action == self.default {
                continue;
            }
            let Ok(number) = ScmpSyscall::from_name(name) else {
                if self.unknown_before.insert(name) {
                    self.unknown.push(name.clone());
                }
                continue;
            };
            for Alternative { conditions, first } in &alternatives {
                // A repeated rule changes nothing (youki#3479 is what happens to those who ask libseccomp about it).
                if self.seen.insert((number, action, conditions.clone())) {
                    self.kept.push(Kept {
                        index,
                        name,
                        number,
                        action,
                        conditions: conditions.clone(),
                        first: *first,
                    });
                }
            }
        }
        Ok(())
    }

    /// How many values the program has to compare arguments with, and so a bound that its instructions can't be fewer than:
    /// an instruction has room for one value. Whatever libseccomp merges, the first comparison of a rule stays, unless
    /// another rule is about every call of that name.
    fn compared_values(&self) -> usize {
        let mut of_call: BTreeMap<i32, Option<Vec<(usize, u32)>>> = BTreeMap::new();
        // libseccomp numbers a call that the architecture doesn't have below zero, and makes nothing of it.
        for kept in self.kept.iter().filter(|kept| i32::from(kept.number) >= 0) {
            let values = of_call
                .entry(i32::from(kept.number))
                .or_insert_with(|| Some(Vec::new()));
            match (kept.first, values) {
                // Its lower half: the upper one has an instruction of its own only on 64-bit architectures.
                (Some((argument, value)), Some(values)) => values.push((argument, value as u32)),
                (Some(_), None) => {}
                (None, values) => *values = None,
            }
        }
        let values = of_call.into_values().flatten().flatten();
        values.collect::<HashSet<_>>().len()
    }

    fn add_to(&self, filter: &mut ScmpFilterContext) -> Result<(), Error> {
        for kept in &self.kept {
            let added = match kept.conditions.as_slice() {
                [] => filter.add_rule(kept.action, kept.number),
                conditions => filter.add_rule_conditional(kept.action, kept.number, conditions),
            };
            added.map_err(|source| Error::Rule {
                index: kept.index,
                name: kept.name.into(),
                source,
            })?;
        }
        Ok(())
    }
}

/// What one call of libseccomp matches.
struct Alternative {
    conditions: Vec<ScmpArgCompare>,
    /// The argument with the lowest index, which libseccomp compares first, and with what.
    first: Option<(usize, u64)>,
}

/// The alternatives that match a rule with `args`: one with all of them, except that two conditions on the same argument
/// make every condition an alternative of its own, as in runc (and in Docker's profiles, which rely on it).
fn conditions(index: usize, args: &[LinuxSeccompArg]) -> Result<Vec<Alternative>, Error> {
    let mut conditions = Vec::with_capacity(args.len());
    let mut used = [false; 6];
    let mut repeated = false;
    for (position, arg) in args.iter().enumerate() {
        let Some(used) = used.get_mut(arg.index()) else {
            return Err(Error::ArgumentIndex {
                index,
                arg: position,
                value: arg.index(),
            });
        };
        repeated |= std::mem::replace(used, true);
        let (operator, value) = match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
            LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
            LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
            // `value` is the mask, `valueTwo` what the masked argument is to be.
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
            }
        };
        // Of what is masked, only those bits are left in the instruction.
        let compared = match operator {
            ScmpCompareOp::MaskedEqual(mask) => value & mask,
            _ => value,
        };
        conditions.push((
            ScmpArgCompare::new(arg.index() as u32, operator, value),
            (arg.index(), compared),
        ));
    }
    Ok(match repeated {
        true => conditions
            .into_iter()
            .map(|(condition, first)| Alternative {
                conditions: vec![condition],
                first: Some(first),
            })
            .collect(),
        false => {
            let (conditions, compared): (Vec<_>, Vec<_>) = conditions.into_iter().unzip();
            let first = compared.into_iter().min_by_key(|(argument, _)| *argument);
            vec![Alternative { conditions, first }]
        }
    })
}

/// The bits of `linux.seccomp.flags`; without the field SPEC_ALLOW, as in runc: the default of the kernel before 5.16,
/// mitigating speculation for every confined process, costs much and is no longer thought to be worth it.
fn flags(profile: &LinuxSeccomp, notify: bool) -> u64 {
    let listed = match profile.flags() {
        None => FLAG_SPEC_ALLOW,
        Some(flags) => flags.iter().fold(0, |bits, flag| {
            bits | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => FLAG_WAIT_KILLABLE_RECV,
            }
        }),
    };
    listed | if notify { FLAG_NEW_LISTENER } else { 0 }
}

/// Whether new system calls need the stub: not if the default lets them through to the kernel or to a tracer, which
/// answer `ENOSYS` themselves, and not if the default answers it.
fn needs_stub(profile: &LinuxSeccomp) -> bool {
    match profile.default_action() {
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace => false,
        LinuxSeccompAction::ScmpActErrno => profile.default_errno_ret() != Some(ENOSYS),
        _ => true,
    }
}

/// What the stub has to know of each of `architectures`.
fn sections(profile: &LinuxSeccomp, architectures: &[ScmpArch]) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for &architecture in architectures {
        let audit = arch::audit(architecture);
        let last = last_number(profile, architecture);
        let x32 = architecture == ScmpArch::X32;
        match sections.iter_mut().find(|section| section.audit == audit) {
            Some(section) if x32 => section.last_x32 = last,
            Some(section) => section.last = last,
            None => sections.push(Section {
                audit,
                last: if x32 { None } else { last },
                last_x32: if x32 { last } else { None },
                zero_is_unknown: matches!(architecture, ScmpArch::S390 | ScmpArch::S390X),
                has_x32: x32 || architecture == ScmpArch::X8664,
            }),
        }
    }
    sections
}

/// The largest number of a system call that `profile` mentions, on `architecture`. Rules equal to the default count: they
/// tell what the author knew.
fn last_number(profile: &LinuxSeccomp, architecture: ScmpArch) -> Option<u32> {
    let names = syscalls(profile).iter().flat_map(LinuxSyscall::names);
    // libseccomp numbers a call that the architecture doesn't have below zero.
    let numbers = names.filter_map(|name| ScmpSyscall::from_name_by_arch(name, architecture).ok());
    numbers
        .filter_map(|number| u32::try_from(i32::from(number)).ok())
        .filter(|&number| number > 0)
        .max()
}

/// libseccomp's program. It writes to a descriptor only; a memfd can't fill up as a pipe would.
fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>, Error> {
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    let mut memory = std::fs::File::from(memory);
    filter.export_bpf(&memory).map_err(library("seccomp_export_bpf"))?;
    memory.rewind()?;
    let mut program = Vec::new();
    memory.read_to_end(&mut program)?;
    Ok(program)
}
