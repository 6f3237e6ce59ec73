//! The file systems that are interfaces of the kernel and not storage, and what a guest may do with a file of one.
//!
//! To the kernel a guest's calls are those of the engine's process. What procfs shows of that process (`/proc/self/mem` and its
//! kin) is therefore the engine, not the guest: one write there makes native code of a guest that the engine confines.

use nix::libc::{O_ACCMODE, O_CREAT, O_PATH, O_RDONLY, O_TRUNC, S_IROTH, c_int};

/// `PROC_SUPER_MAGIC`.
const PROC: u32 = 0x9fa0;

/// The values of `statfs.f_type`, as linux/magic.h has them or the file system's own source.
const ALL: [u32; 21] = [
    PROC,
    0x9fa1,      // openpromfs
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x5a3c_69f0, // apparmorfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0xcafe_4a11, // bpf
    0x6265_6570, // configfs
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x4249_4e4d, // binfmt_misc
    0x0765_5821, // resctrl
    0x6573_5543, // fusectl
    0x6e73_6673, // nsfs
    0x6e66_7364, // nfsd
    0xabba_1974, // xenfs
];

/// In procfs, what tells where the process's memory lies. Everybody may ask, but only a tracer is told; a process always is its own.
const LAYOUTS: [&[u8]; 4] = [b"maps", b"smaps", b"smaps_rollup", b"numa_maps"];

/// Whether a file system of this `statfs.f_type` is an interface of the kernel.
pub fn is(kind: u64) -> bool {
    // Some machines have a signed word, or one of 32 bits.
    ALL.contains(&(kind as u32))
}

/// Whether a guest may open a file, or directory, of this mode on a file system of this kind with these flags of open(2), by a
/// path that ends in `name`.
///
/// Of the kernel's interfaces it gets what everybody may read: not what only the owner may, since the guest of a root user is
/// the owner of everything. That leaves out, with `mem`, every file of `/proc/PID` for which the kernel asks more than for
/// the process's name: `environ`, `auxv`, `pagemap`, `syscall`, `stack`, `fd/`, `map_files/`.
pub fn permits(kind: u64, mode: u32, flags: c_int, name: &[u8]) -> bool {
    if !is(kind) {
        return true;
    }
    let layout = kind as u32 == PROC && LAYOUTS.contains(&name);
    !writes(flags) && mode & S_IROTH != 0 && !layout
}

/// Whether to open with these flags is to change something, or to be able to.
pub fn writes(flags: c_int) -> bool {
    flags & O_PATH == 0 && (flags & O_ACCMODE != O_RDONLY || flags & (O_TRUNC | O_CREAT) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc::{O_DIRECTORY, O_RDWR, O_WRONLY};

    const SYSFS: u64 = 0x6265_6572;
    const EXT4: u64 = 0xef53;

    #[test]
    fn storage_is_the_kernels_matter() {
        for flags in [O_RDONLY, O_RDWR, O_WRONLY | O_CREAT | O_TRUNC] {
            assert!(permits(EXT4, 0o000, flags, b"mem"));
        }
    }

    #[test]
    fn interfaces_are_read_by_who_is_anybody() {
        for kind in [u64::from(PROC), SYSFS, 0x6367_7270] {
            assert!(permits(kind, 0o444, O_RDONLY, b"meminfo"));
            assert!(permits(kind, 0o555, O_RDONLY | O_DIRECTORY, b"self"));
            assert!(permits(kind, 0o555, O_PATH | O_DIRECTORY, b"self"));
            for secret in [0o600, 0o400, 0o440, 0o200, 0o222] {
                assert!(!permits(kind, secret, O_RDONLY, b"mem"));
                assert!(!permits(kind, secret, O_PATH, b"mem"));
            }
            for flags in [O_RDWR, O_WRONLY, O_RDONLY | O_TRUNC, O_RDONLY | O_CREAT] {
                assert!(!permits(kind, 0o666, flags, b"timerslack_ns"));
            }
        }
    }

    #[test]
    fn the_layout_of_memory_is_not_told() {
        for name in LAYOUTS {
            assert!(!permits(PROC.into(), 0o444, O_RDONLY, name));
            assert!(permits(SYSFS, 0o444, O_RDONLY, name));
        }
    }

    #[test]
    fn a_kind_has_32_bits() {
        assert!(is(0xffff_ffff_f97c_ff8c) && is(0xf97c_ff8c));
        assert!(!is(0x0102_1994));
    }
}
