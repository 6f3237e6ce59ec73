//! What the kernel does with a seccomp filter: to ask one beforehand, and for tests.

use crate::bpf::{AND, IF_AT_LEAST, IF_BITS, IF_EQUAL, IF_GREATER, Instruction, JUMP, LOAD, RETURN};

/// `struct seccomp_data`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Call {
    pub number: u32,
    pub architecture: u32,
    pub args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> Option<u32> {
        let mut data = [0u8; 64];
        data[..4].copy_from_slice(&self.number.to_ne_bytes());
        data[4..8].copy_from_slice(&self.architecture.to_ne_bytes());
        for (index, arg) in self.args.iter().enumerate() {
            data[16 + 8 * index..][..8].copy_from_slice(&arg.to_ne_bytes());
        }
        let offset = offset as usize;
        let word = data.get(offset..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*word))
    }
}

/// What the kernel would do: runs `program` on `call`. `None` for a program that the kernel refuses, or with an instruction
/// that libseccomp never makes.
pub(crate) fn evaluate(program: &[u8], call: Call) -> Option<u32> {
    let (mut accumulator, mut at) = (0u32, 0usize);
    // Jumps go forward only, so this ends.
    loop {
        let bytes = program.get(at * Instruction::SIZE..)?.get(..Instruction::SIZE)?;
        let Instruction { code, jt, jf, k } = Instruction::decode(bytes);
        at += 1;
        let branch = |condition| usize::from(if condition { jt } else { jf });
        match code {
            LOAD => accumulator = call.word(k)?,
            AND => accumulator &= k,
            JUMP => at += k as usize,
            IF_EQUAL => at += branch(accumulator == k),
            IF_GREATER => at += branch(accumulator > k),
            IF_AT_LEAST => at += branch(accumulator >= k),
            IF_BITS => at += branch(accumulator & k != 0),
            RETURN => return Some(k),
            _ => return None,
        }
    }
}

/// As [`evaluate`], of a program that the kernel takes.
#[cfg(any(test, fuzzing))]
pub(crate) fn run(program: &[u8], call: Call) -> u32 {
    evaluate(program, call).expect("the kernel takes the program")
}
