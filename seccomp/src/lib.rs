//! Turns the seccomp profile of an OCI bundle (`linux.seccomp`, runtime-spec 1.3 config-linux.md#seccomp) into the
//! classic BPF program that seccomp(2) installs.
//!
//! The crate reads and writes no file: a profile goes in, a program comes out. [`engine`] has the one filter that is proa's own.

#![forbid(unsafe_code)]

mod arch;
mod bpf;
mod compile;
pub mod engine;
mod enosys;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod interpreter;
#[cfg(test)]
mod tests;

pub use compile::{compile, knows_architecture, library_version, uses_notify};

use oci_spec::runtime::LinuxSeccompAction;

/// A compiled filter, ready for seccomp(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// `struct sock_filter` records (8 bytes each) in the machine's byte order.
    pub instructions: Vec<u8>,
    /// The `SECCOMP_FILTER_FLAG_*` bits that the profile asks for, and NEW_LISTENER if it notifies. TSYNC is never among
    /// them: whether there are other threads is for the installing process to know.
    pub flags: u64,
    /// Whether a rule uses `SCMP_ACT_NOTIFY`, so that installing returns a listener descriptor.
    pub notify: bool,
}

/// The outcome of [`compile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The filter.
    pub program: Program,
    /// Names in the profile that libseccomp doesn't know: their rules were left out, as runc does.
    pub unknown: Vec<String>,
}

/// The first bytes of an encoded [`Program`]; the last one is the version of the encoding.
const MAGIC: [u8; 8] = *b"proabpf\x01";

impl Program {
    /// The program as bytes, to be handed to the process that installs it or kept in a cache on the same machine.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24 + self.instructions.len());
        bytes.extend(MAGIC);
        bytes.extend(self.flags.to_ne_bytes());
        bytes.extend(u64::from(self.notify).to_ne_bytes());
        bytes.extend(&self.instructions);
        bytes
    }

    /// What [`Program::encode`] made; `None` if `bytes` is anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (flags, rest) = rest.split_first_chunk::<8>()?;
        let (notify, instructions) = rest.split_first_chunk::<8>()?;
        let whole = !instructions.is_empty() && instructions.len() % bpf::Instruction::SIZE == 0;
        let short = instructions.len() <= bpf::MAX_INSTRUCTIONS * bpf::Instruction::SIZE;
        let notify = match u64::from_ne_bytes(*notify) {
            0 => false,
            1 => true,
            _ => return None,
        };
        (*magic == MAGIC && whole && short).then(|| Self {
            instructions: instructions.to_vec(),
            flags: u64::from_ne_bytes(*flags),
            notify,
        })
    }
}

/// What a filter answers a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The call is made, and perhaps logged.
    Allowed,
    /// The call fails with this errno.
    Errno(u16),
    /// Anything else: a signal, the end of the process, an agent, a tracer.
    Other,
}

impl Program {
    /// What the filter answers call `number` of this machine's own architecture with the arguments `args`. A program that
    /// can't be understood allows nothing.
    pub fn verdict(&self, number: u32, args: [u64; 6]) -> Verdict {
        const ALLOW: u32 = 0x7fff_0000;
        const LOG: u32 = 0x7ffc_0000;
        const ERRNO: u32 = 0x0005_0000;
        let call = interpreter::Call {
            number,
            architecture: arch::audit(libseccomp::ScmpArch::native()),
            args,
        };
        match interpreter::evaluate(&self.instructions, call) {
            Some(ALLOW | LOG) => Verdict::Allowed,
            Some(answer) if answer & 0xffff_0000 == ERRNO => Verdict::Errno(answer as u16),
            _ => Verdict::Other,
        }
    }
}

/// What is wrong with a profile. Worded as runc words it where runc has words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The default action would make every call wait for an agent that can't be told yet.
    #[error("linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action")]
    NotifyByDefault,
    /// The process could not tell the parent about its listener.
    #[error("linux.seccomp.syscalls[{index}]: SCMP_ACT_NOTIFY cannot be used for the write syscall")]
    NotifyWrite {
        /// Of the rule.
        index: usize,
    },
    /// An errno is given for an action that returns none (config-linux.md#seccomp: "MUST print and error and fail").
    #[error("linux.seccomp.{field}: {action} does not take an errno")]
    NeedlessErrno {
        /// e.g. `syscalls[3].errnoRet`.
        field: String,
        /// The action.
        action: LinuxSeccompAction,
    },
    /// An errno (or trace value) that doesn't fit the 16 bits which the kernel has for it.
    #[error("linux.seccomp.{field}: {value} is larger than 65535")]
    LargeErrno {
        /// e.g. `syscalls[3].errnoRet`.
        field: String,
        /// As given.
        value: u32,
    },
    /// A system call has six arguments.
    #[error("linux.seccomp.syscalls[{index}].args[{arg}].index: {value} is not an argument of a system call (0 to 5)")]
    ArgumentIndex {
        /// Of the rule.
        index: usize,
        /// Of the condition.
        arg: usize,
        /// As given.
        value: usize,
    },
    /// An empty name.
    #[error("linux.seccomp.syscalls[{index}].names: empty string is not a valid syscall")]
    EmptyName {
        /// Of the rule.
        index: usize,
    },
    /// libseccomp can't combine the architecture with the native one, or doesn't know it.
    #[error("linux.seccomp.architectures: error adding architecture {arch} to seccomp filter: {source}")]
    Architecture {
        /// As in the profile.
        arch: oci_spec::runtime::Arch,
        /// Why.
        source: libseccomp::error::SeccompError,
    },
    /// libseccomp can't add a rule.
    #[error("linux.seccomp.syscalls[{index}]: error adding seccomp filter rule for syscall {name}: {source}")]
    Rule {
        /// Of the rule.
        index: usize,
        /// The system call.
        name: String,
        /// Why.
        source: libseccomp::error::SeccompError,
    },
    /// libseccomp can't make or write out the filter.
    #[error("linux.seccomp: {call}: {source}")]
    Library {
        /// libseccomp's function.
        call: &'static str,
        /// Why.
        source: libseccomp::error::SeccompError,
    },
    /// The program can't be fetched from libseccomp.
    #[error("linux.seccomp: exporting the program: {0}")]
    Export(#[from] std::io::Error),
    /// The kernel takes no more than 4096 instructions, and each of these values needs one.
    #[error(
        "linux.seccomp.syscalls: the rules compare arguments with {0} different values, each of which needs a BPF instruction; \
         the kernel takes 4096 instructions"
    )]
    TooManyValues(usize),
    /// The kernel takes no more than 4096 instructions.
    #[error("linux.seccomp: the profile needs {0} BPF instructions, the kernel takes 4096")]
    TooLong(usize),
}
