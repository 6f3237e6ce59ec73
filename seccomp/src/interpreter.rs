//! What the kernel does with a seccomp filter, for tests and fuzzing.

use crate::bpf::{AND, IF_AT_LEAST, IF_BITS, IF_EQUAL, IF_GREATER, Instruction, JUMP, LOAD, RETURN};

/// `struct seccomp_data`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Call {
    pub number: u32,
    pub architecture: u32,
    pub args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let mut data = [0u8; 64];
        data[..4].copy_from_slice(&self.number.to_ne_bytes());
        data[4..8].copy_from_slice(&self.architecture.to_ne_bytes());
        for (index, arg) in self.args.iter().enumerate() {
            data[16 + 8 * index..][..8].copy_from_slice(&arg.to_ne_bytes());
        }
        let offset = offset as usize;
        u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap())
    }
}

/// What the kernel would do: runs `program` on `call`. Panics where the kernel would have refused the program.
pub(crate) fn run(program: &[u8], call: Call) -> u32 {
    let program: Vec<Instruction> = program
        .chunks_exact(Instruction::SIZE)
        .map(Instruction::decode)
        .collect();
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let branch = |condition| usize::from(if condition { jt } else { jf });
        match code {
            LOAD => accumulator = call.word(k),
            AND => accumulator &= k,
            JUMP => at += k as usize,
            IF_EQUAL => at += branch(accumulator == k),
            IF_GREATER => at += branch(accumulator > k),
            IF_AT_LEAST => at += branch(accumulator >= k),
            IF_BITS => at += branch(accumulator & k != 0),
            RETURN => return k,
            other => panic!("instruction {:#x} at {}", other, at - 1),
        }
    }
}
