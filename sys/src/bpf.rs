//! bpf(2): device programs on cgroup v2.

use crate::{Errno, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// An instruction, `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// The operation code.
    pub code: u8,
    registers: u8,
    /// A jump's distance or a load's offset.
    pub off: i16,
    /// The immediate operand.
    pub imm: i32,
}

impl Insn {
    /// An instruction with destination and source registers 0 to 10.
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        // The two are bit fields in C, whose order follows the byte order.
        let registers = if cfg!(target_endian = "little") {
            src << 4 | dst
        } else {
            dst << 4 | src
        };
        Self {
            code,
            registers,
            off,
            imm,
        }
    }

    /// The destination register.
    pub const fn dst(self) -> u8 {
        if cfg!(target_endian = "little") {
            self.registers & 15
        } else {
            self.registers >> 4
        }
    }

    /// The source register.
    pub const fn src(self) -> u8 {
        if cfg!(target_endian = "little") {
            self.registers >> 4
        } else {
            self.registers & 15
        }
    }
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`, as of Linux 4.15.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The same for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`; the last field is of Linux 5.6.
#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// The same for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

/// The same for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Calls bpf(2); `size` is how much of `attr` the kernel is to read.
fn bpf<T>(command: libc::c_int, attr: &mut T, size: usize) -> Result<libc::c_long> {
    debug_assert!(size <= size_of::<T>());
    // SAFETY: `attr` is a live, exclusive reference to a #[repr(C)] struct laid out as `union bpf_attr` for `command`,
    // of which the kernel reads and writes no more than `size` bytes. Pointers within it are made by the callers below
    // from slices that outlive the call, with their true lengths.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    Errno::result(result)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Takes ownership of a descriptor that bpf(2) returned.
fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just returned this descriptor to us (close-on-exec), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` (Linux 4.15). `EPERM` may also mean that `RLIMIT_MEMLOCK` is
/// too small (before Linux 5.11).
pub fn load_device_program(program: &[Insn]) -> Result<OwnedFd> {
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        insns: program.as_ptr().expose_provenance() as u64,
        // No helper is called, so the licence could be any; it has to be a string.
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        ..LoadAttr::default()
    };
    owned(bpf(BPF_PROG_LOAD, &mut attr, size_of::<LoadAttr>())?)
}

/// Attaches a device program to a cgroup beside those of the cgroups above it, or in the place of `replaced` (Linux 5.6;
/// `EINVAL` before).
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | if replaced.is_some() { BPF_F_REPLACE } else { 0 },
        replace_bpf_fd: replaced.map_or(0, raw),
    };
    // Kernels before 5.6 refuse a size that covers a field they don't know only if it is not zero.
    bpf(BPF_PROG_ATTACH, &mut attr, size_of::<AttachAttr>()).map(drop)
}

/// Detaches a device program from a cgroup.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        ..AttachAttr::default()
    };
    bpf(BPF_PROG_DETACH, &mut attr, size_of::<AttachAttr>()).map(drop)
}

/// The ids of the device programs that are attached to this very cgroup, at most 64 (the kernel's own limit).
pub fn device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: 64,
        ..QueryAttr::default()
    };
    bpf(BPF_PROG_QUERY, &mut attr, size_of::<QueryAttr>())?;
    Ok(ids[..usize::try_from(attr.prog_cnt).unwrap_or(0).min(ids.len())].to_vec())
}

/// Opens a program by its id.
pub fn program_by_id(id: u32) -> Result<OwnedFd> {
    let mut attr = IdAttr {
        id,
        ..IdAttr::default()
    };
    owned(bpf(BPF_PROG_GET_FD_BY_ID, &mut attr, size_of::<IdAttr>())?)
}
