//! The stub in front of a filter that answers `ENOSYS` to system calls newer than the profile.
//!
//! A profile that denies by default also denies, with `EPERM`, the calls that its author could not know. glibc tries new
//! calls first and falls back to old ones on `ENOSYS` only, so under an old profile programs break with every new kernel
//! (clone3, faccessat2, …). As in runc, every number above the largest one that the profile mentions for an architecture
//! therefore gets `ENOSYS`. An approximation: numbers are handed out in order only mostly.

use crate::bpf::{ARCHITECTURE, IF_BITS, IF_EQUAL, IF_GREATER, Instruction, JUMP, LOAD, NUMBER, RETURN};

/// `SECCOMP_RET_ERRNO | ENOSYS`.
pub(crate) const RETURN_ENOSYS: u32 = 0x0005_0000 | 38;

/// The bit that marks a system call of the x32 ABI, which shares its `AUDIT_ARCH_*` with x86-64.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

/// What the stub does for one `AUDIT_ARCH_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    /// The `AUDIT_ARCH_*` that the kernel reports.
    pub audit: u32,
    /// The largest number the profile mentions; none if it mentions no call of this architecture.
    pub last: Option<u32>,
    /// The same for x32, with [`X32_BIT`] set. Only with the `AUDIT_ARCH_*` of x86-64.
    pub last_x32: Option<u32>,
    /// On s390 and s390x an unknown "large" number arrives as 0, the long-gone setup(2): that is `ENOSYS`, too.
    pub zero_is_unknown: bool,
    /// Whether [`X32_BIT`] has a meaning.
    pub has_x32: bool,
}

/// The stub for `sections`, to be put in front of a filter: it ends by falling through. Empty if there is nothing to do.
pub(crate) fn stub(sections: &[Section]) -> Vec<Instruction> {
    let bodies: Vec<(u32, Vec<Instruction>)> = sections
        .iter()
        .filter_map(|section| Some((section.audit, body(section)?)))
        .collect();
    if bodies.is_empty() {
        return Vec::new();
    }
    let mut left: usize = bodies.iter().map(|(_, body)| body.len() + 1).sum();
    let mut stub = vec![Instruction::new(LOAD, ARCHITECTURE)];
    for (audit, body) in bodies {
        // A body is shorter than a conditional jump reaches, whatever the number of architectures.
        stub.push(Instruction::branch(IF_EQUAL, audit, 0, body.len() as u8));
        left -= body.len() + 1;
        for (index, instruction) in body.iter().enumerate() {
            let behind = body.len() - index - 1;
            stub.push(match instruction.code {
                JUMP => Instruction::new(JUMP, (behind + left) as u32),
                _ => *instruction,
            });
        }
    }
    stub
}

/// The instructions for one architecture. `JUMP` stands for "to the filter", its distance is filled in later.
fn body(section: &Section) -> Option<Vec<Instruction>> {
    let mut body = vec![Instruction::new(LOAD, NUMBER)];
    if section.zero_is_unknown {
        body.push(Instruction::branch(IF_EQUAL, 0, 0, 1));
        body.push(Instruction::new(RETURN, RETURN_ENOSYS));
    }
    let to_filter = Instruction::new(JUMP, 0);
    match (section.last, section.last_x32) {
        (None, None) => return None,
        (Some(last), None) => {
            if section.has_x32 {
                // An x32 call is the filter's business: it refuses the architecture.
                body.push(Instruction::branch(IF_BITS, X32_BIT, 1, 0));
            }
            body.push(Instruction::branch(IF_GREATER, last, 1, 0));
        }
        (None, Some(last_x32)) => {
            body.push(Instruction::branch(IF_BITS, X32_BIT, 0, 1));
            body.push(Instruction::branch(IF_GREATER, last_x32, 1, 0));
        }
        (Some(last), Some(last_x32)) => {
            body.push(Instruction::branch(IF_BITS, X32_BIT, 1, 0));
            body.push(Instruction::branch(IF_GREATER, last, 2, 1));
            body.push(Instruction::branch(IF_GREATER, last_x32, 1, 0));
        }
    }
    body.push(to_filter);
    body.push(Instruction::new(RETURN, RETURN_ENOSYS));
    Some(body)
}
