//! The device rules of cgroup v2: a BPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE` (Linux 4.15), emitted here.
//!
//! ```text
//! r2 = type, r3 = access, r4 = major, r5 = minor        (struct bpf_cgroup_dev_ctx, in r1)
//! for each exception:  if r2 != kind                    goto next
//!                      if r3 has more than its access   goto next
//!                      if r4 != major, r5 != minor      goto next
//!                      return !default
//! return default
//! ```

use super::devices::{Access, Emulator, Kind};
use proa_sys::bpf::Insn;

// Operation codes of linux/bpf_common.h and linux/bpf.h, already combined.
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const AND32_IMM: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RSH32_IMM: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const MOV32_REG: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOV32_IMM: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const JNE_IMM: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const JNE_REG: u8 = 0x5d; // BPF_JMP | BPF_JNE | BPF_X
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// `BPF_DEVCG_DEV_BLOCK`, `BPF_DEVCG_DEV_CHAR` of linux/bpf.h.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// `BPF_DEVCG_ACC_*` of linux/bpf.h.
pub(super) fn access_bits(access: Access) -> i32 {
    [(Access::MKNOD, 1), (Access::READ, 2), (Access::WRITE, 4)]
        .into_iter()
        .filter(|(mode, _)| access.contains(*mode))
        .map(|(_, bit)| bit)
        .sum()
}

/// The program for a state of the devices controller.
///
/// Where the default is to deny, an exception matches if it grants all of the access; where it is to allow, if it denies
/// any of it.
pub(super) fn program(emulator: &Emulator) -> Vec<Insn> {
    let mut program = vec![
        Insn::new(LOAD_WORD, 2, 1, 0, 0),
        Insn::new(MOV32_REG, 3, 2, 0, 0),
        Insn::new(AND32_IMM, 2, 0, 0, 0xffff),
        Insn::new(RSH32_IMM, 3, 0, 0, 16),
        Insn::new(LOAD_WORD, 4, 1, 4, 0),
        Insn::new(LOAD_WORD, 5, 1, 8, 0),
    ];
    for (device, access) in &emulator.exceptions {
        // The comparisons first, as (instruction, whether it jumps on); the distance is known at the end.
        let mut block = vec![Insn::new(
            JNE_IMM,
            2,
            0,
            0,
            if device.kind == Kind::Block { BLOCK } else { CHAR },
        )];
        if emulator.default_allow {
            block.push(Insn::new(MOV32_REG, 1, 3, 0, 0));
            // All of the kernel's modes that the exception does not deny: what is left of the access is denied.
            block.push(Insn::new(AND32_IMM, 1, 0, 0, access_bits(*access)));
            block.push(Insn::new(JNE_IMM, 1, 0, 1, 0));
            block.push(Insn::new(SKIP, 0, 0, 0, 0));
        } else if *access != Access::ALL {
            block.push(Insn::new(MOV32_REG, 1, 3, 0, 0));
            block.push(Insn::new(AND32_IMM, 1, 0, 0, access_bits(*access)));
            block.push(Insn::new(JNE_REG, 1, 3, 0, 0));
        }
        for (register, number) in [(4, device.major), (5, device.minor)] {
            match number.map(u32::cast_signed) {
                None => {}
                Some(number @ 0..) => block.push(Insn::new(JNE_IMM, register, 0, 0, number)),
                // An immediate is extended by its sign, the number in the register by zeros.
                Some(number) => {
                    block.push(Insn::new(MOV32_IMM, 1, 0, 0, number));
                    block.push(Insn::new(JNE_REG, register, 1, 0, 0));
                }
            }
        }
        block.push(Insn::new(MOV32_IMM, 0, 0, 0, i32::from(!emulator.default_allow)));
        block.push(Insn::new(EXIT, 0, 0, 0, 0));
        let end = block.len();
        for (at, insn) in block.iter_mut().enumerate() {
            let jumps = matches!(insn.code, JNE_IMM | JNE_REG | SKIP);
            if jumps && insn.off == 0 {
                insn.off = i16::try_from(end - at - 1).unwrap_or(i16::MAX);
            }
        }
        program.extend(block);
    }
    program.push(Insn::new(MOV32_IMM, 0, 0, 0, i32::from(emulator.default_allow)));
    program.push(Insn::new(EXIT, 0, 0, 0, 0));
    program
}

/// `BPF_JMP | BPF_JA`.
const SKIP: u8 = 0x05;

/// Runs a program on an access, as the kernel would.
#[cfg(any(test, fuzzing))]
pub(super) fn run(program: &[Insn], kind: i32, access: i32, major: u32, minor: u32) -> bool {
    let context = [(access.cast_unsigned() << 16) | kind.cast_unsigned(), major, minor];
    let mut registers = [0u64; 11];
    let mut at = 0usize;
    loop {
        let insn = program[at];
        let (dst, src) = (usize::from(insn.dst()), usize::from(insn.src()));
        let imm = insn.imm.cast_unsigned();
        at += 1;
        let low = |value: u64| value as u32;
        let mut jump = |taken: bool| {
            if taken {
                at = at.checked_add_signed(insn.off.into()).unwrap();
            }
        };
        match insn.code {
            LOAD_WORD => registers[dst] = context[usize::try_from(insn.off).unwrap() / 4].into(),
            AND32_IMM => registers[dst] = (low(registers[dst]) & imm).into(),
            RSH32_IMM => registers[dst] = (low(registers[dst]) >> imm).into(),
            MOV32_REG => registers[dst] = low(registers[src]).into(),
            MOV32_IMM => registers[dst] = imm.into(),
            // The immediate of a 64 bit comparison is sign-extended.
            JNE_IMM => jump(registers[dst] != i64::from(insn.imm).cast_unsigned()),
            JNE_REG => jump(registers[dst] != registers[src]),
            SKIP => jump(true),
            EXIT => return registers[0] != 0,
            code => panic!("operation {code:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::devices::{Rule, default_rules};
    use super::*;

    const MKNOD: i32 = 1;
    const READ: i32 = 2;
    const WRITE: i32 = 4;

    #[test]
    fn default_devices() {
        let program = program(&Emulator::new(&default_rules(None)).unwrap());
        assert!(run(&program, CHAR, READ | WRITE | MKNOD, 1, 3));
        assert!(run(&program, CHAR, READ, 136, 77));
        assert!(run(&program, CHAR, MKNOD, 200, 1));
        assert!(run(&program, BLOCK, MKNOD, 8, 0));
        assert!(!run(&program, CHAR, READ, 200, 1));
        assert!(!run(&program, BLOCK, READ, 8, 0));
        assert!(!run(&program, BLOCK, READ | MKNOD, 8, 0));
        assert!(!run(&program, BLOCK, READ, 1, 3));
        assert!(!run(&program, CHAR, READ, 10, 201));
    }

    #[test]
    fn a_deny_list_denies_any_of_the_modes() {
        let all = Rule {
            device: None,
            access: Access::ALL,
            allow: true,
        };
        let mut rules = vec![all];
        rules.extend(
            Emulator::parse("b 8:0 w")
                .unwrap()
                .exceptions
                .iter()
                .map(|(device, access)| Rule {
                    device: Some(*device),
                    access: *access,
                    allow: false,
                }),
        );
        let program = program(&Emulator::new(&rules).unwrap());
        assert!(run(&program, CHAR, READ | WRITE | MKNOD, 1, 3));
        assert!(run(&program, BLOCK, READ, 8, 0));
        assert!(run(&program, BLOCK, WRITE, 8, 1));
        assert!(!run(&program, BLOCK, WRITE, 8, 0));
        assert!(!run(&program, BLOCK, READ | WRITE, 8, 0));
    }

    #[test]
    fn numbers_beyond_the_largest_signed_one_match() {
        let program = program(&Emulator::parse("c 2147483648:4294967295 rwm").unwrap());
        assert!(run(&program, CHAR, READ, 1 << 31, u32::MAX));
        assert!(!run(&program, CHAR, READ, 1 << 31, 0));
        assert!(!run(&program, CHAR, READ, 0, u32::MAX));
    }

    #[test]
    fn all_or_nothing() {
        let all = program(&Emulator {
            default_allow: true,
            ..Emulator::default()
        });
        assert!(run(&all, BLOCK, WRITE, 8, 0));
        assert!(!run(&program(&Emulator::default()), CHAR, READ, 1, 3));
    }

    #[test]
    fn the_kernels_verifier_likes_no_unknown_operations() {
        let program = program(&Emulator::new(&default_rules(None)).unwrap());
        let known = [
            LOAD_WORD, AND32_IMM, RSH32_IMM, MOV32_REG, MOV32_IMM, JNE_IMM, JNE_REG, SKIP, EXIT,
        ];
        assert!(program.iter().all(|insn| known.contains(&insn.code)));
        assert_eq!(program.last().unwrap().code, EXIT);
    }
}
