//! The processor as the engine's compiler sees it: it compiles for the one it runs on, with all that it has.
#![cfg_attr(target_arch = "x86_64", allow(unsafe_code))]

use std::fmt::Write;

/// Everything by which LLVM tells the processor's features and model, in an order of its own.
#[cfg(target_arch = "x86_64")]
pub fn features() -> String {
    use std::arch::x86_64::{__cpuid_count, __get_cpuid_max, _xgetbv};
    // Leaf, subleaf, and which of eax, ebx, ecx, edx count. Not among them: what differs from core to core (the APIC id in
    // leaf 1's ebx) and the stepping.
    const LEAVES: [(u32, u32, [u32; 4]); 10] = [
        (0, 0, [0, !0, !0, !0]),
        (1, 0, [!0xf, 0, !0, !0]),
        (7, 0, [0, !0, !0, !0]),
        (7, 1, [!0, !0, !0, !0]),
        (0xd, 1, [!0, 0, 0, 0]),
        (0x14, 0, [0, !0, 0, 0]),
        (0x19, 0, [0, !0, 0, 0]),
        (0x24, 0, [0, !0, 0, 0]),
        (0x8000_0001, 0, [0, 0, !0, !0]),
        (0x8000_0008, 0, [0, !0, 0, 0]),
    ];
    let most = [__get_cpuid_max(0).0, __get_cpuid_max(0x8000_0000).0];
    let mut text = String::from("x86_64");
    for (leaf, subleaf, masks) in LEAVES {
        if leaf > most[usize::from(leaf >= 0x8000_0000)] {
            continue;
        }
        let found = __cpuid_count(leaf, subleaf);
        for (value, mask) in [found.eax, found.ebx, found.ecx, found.edx].into_iter().zip(masks) {
            if mask != 0 {
                write!(text, " {:x}", value & mask).expect("a string takes everything");
            }
        }
        // OSXSAVE: which registers the kernel saves decides which features can be used.
        if leaf == 1 && found.ecx & 1 << 27 != 0 {
            // SAFETY: the processor has the instruction, as the bit just asked for says.
            let saved = unsafe { _xgetbv(0) };
            write!(text, " {saved:x}").expect("a string takes everything");
        }
    }
    text
}

/// The kernel's words for features and model: what LLVM reads, too.
#[cfg(not(target_arch = "x86_64"))]
pub fn features() -> String {
    let mut text = String::from(std::env::consts::ARCH);
    // Of the first processor; those of one machine that differ do so in model, and then LLVM takes the first as well.
    let all = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let told = |line: &&str| {
        [
            "Features",
            "flags",
            "isa",
            "features",
            "CPU implementer",
            "CPU part",
            "CPU variant",
        ]
        .iter()
        .any(|name| line.starts_with(name))
    };
    for line in all.split("\n\n").next().unwrap_or_default().lines().filter(told) {
        write!(text, " {}", line.replace(['\t', '\n'], " ")).expect("a string takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_same_processor_says_the_same() {
        let first = super::features();
        assert!(!first.contains('\n'));
        for _ in 0..100 {
            assert_eq!(super::features(), first);
        }
    }
}
