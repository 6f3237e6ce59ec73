//! The architectures of the specification, in libseccomp's and in the kernel's terms.

use libseccomp::ScmpArch;
use oci_spec::runtime::Arch;

/// libseccomp's name of `arch`.
pub(crate) fn library(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::native(),
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// The `AUDIT_ARCH_*` that the kernel reports for `arch` (linux/audit.h): the ELF machine, `__AUDIT_ARCH_64BIT`,
/// `__AUDIT_ARCH_LE`, and for the n32 ABI of MIPS `__AUDIT_ARCH_CONVENTION_MIPS64_N32`.
pub(crate) fn audit(arch: ScmpArch) -> u32 {
    const BITS_64: u32 = 0x8000_0000;
    const LITTLE: u32 = 0x4000_0000;
    const N32: u32 = 0x2000_0000;
    match arch {
        ScmpArch::Native => audit(ScmpArch::native()),
        ScmpArch::X86 => 3 | LITTLE,
        ScmpArch::X8664 | ScmpArch::X32 => 62 | BITS_64 | LITTLE,
        ScmpArch::Arm => 40 | LITTLE,
        ScmpArch::Aarch64 => 183 | BITS_64 | LITTLE,
        ScmpArch::Mips => 8,
        ScmpArch::Mips64 => 8 | BITS_64,
        ScmpArch::Mips64N32 => 8 | BITS_64 | N32,
        ScmpArch::Mipsel => 8 | LITTLE,
        ScmpArch::Mipsel64 => 8 | BITS_64 | LITTLE,
        ScmpArch::Mipsel64N32 => 8 | BITS_64 | LITTLE | N32,
        ScmpArch::Ppc => 20,
        ScmpArch::Ppc64 => 21 | BITS_64,
        ScmpArch::Ppc64Le => 21 | BITS_64 | LITTLE,
        ScmpArch::S390 => 22,
        ScmpArch::S390X => 22 | BITS_64,
        ScmpArch::Parisc => 15,
        ScmpArch::Parisc64 => 15 | BITS_64,
        ScmpArch::Riscv64 => 243 | BITS_64 | LITTLE,
        ScmpArch::Loongarch64 => 258 | BITS_64 | LITTLE,
        ScmpArch::M68k => 4,
        ScmpArch::Sh => 42 | LITTLE,
        ScmpArch::Sheb => 42,
        // libseccomp's enumeration may grow; a filter for an architecture unknown here can't be asked for.
        _ => 0,
    }
}
