//! Classic BPF as seccomp uses it: one instruction, its encoding, and the opcodes that the stub needs.

/// The most instructions a filter may have (`BPF_MAXINSNS`, linux/bpf_common.h).
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;

/// Where `seccomp_data` has the system call's number.
pub(crate) const NUMBER: u32 = 0;
/// Where `seccomp_data` has the `AUDIT_ARCH_*` of the caller.
pub(crate) const ARCHITECTURE: u32 = 4;

/// `BPF_LD | BPF_W | BPF_ABS`.
pub(crate) const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`.
pub(crate) const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub(crate) const IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
pub(crate) const IF_GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
pub(crate) const IF_AT_LEAST: u16 = 0x35;
/// `BPF_JMP | BPF_JSET | BPF_K`.
pub(crate) const IF_BITS: u16 = 0x45;
/// `BPF_ALU | BPF_AND | BPF_K`.
pub(crate) const AND: u16 = 0x54;
/// `BPF_RET | BPF_K`.
pub(crate) const RETURN: u16 = 0x06;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

impl Instruction {
    pub const SIZE: usize = 8;

    pub const fn new(code: u16, k: u32) -> Self {
        Self { code, jt: 0, jf: 0, k }
    }

    /// A conditional jump: `jt` instructions on if the condition holds, `jf` if not.
    pub const fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Self {
        Self { code, jt, jf, k }
    }

    /// As the kernel reads it, in the machine's byte order.
    pub const fn encode(self) -> [u8; Self::SIZE] {
        let (code, k) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [code[0], code[1], self.jt, self.jf, k[0], k[1], k[2], k[3]]
    }

    pub fn decode(b: &[u8]) -> Self {
        let k = u32::from_ne_bytes([b[4], b[5], b[6], b[7]]);
        Self {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k,
        }
    }
}
