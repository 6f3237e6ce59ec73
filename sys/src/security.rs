//! seccomp(2), prctl(2), keyctl(2), ioprio_set(2), sched_setattr(2), sched_setaffinity(2), set_mempolicy(2).

use crate::{Errno, Result};
use libc::{c_int, c_long, c_ulong};
use std::ffi::CStr;
use std::os::fd::{FromRawFd, OwnedFd};

/// The length in bytes of one classic BPF instruction (`struct sock_filter`).
const INSTRUCTION: usize = size_of::<libc::sock_filter>();

/// `SECCOMP_FILTER_FLAG_TSYNC`: install for every thread of the process.
pub const SECCOMP_TSYNC: u64 = 1 << 0;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`: return a descriptor that receives the filter's notifications (Linux 5.0).
pub const SECCOMP_NEW_LISTENER: u64 = 1 << 3;
/// `SECCOMP_FILTER_FLAG_TSYNC_ESRCH`: makes TSYNC and NEW_LISTENER usable together (Linux 5.7).
pub const SECCOMP_TSYNC_ESRCH: u64 = 1 << 4;

/// `SECCOMP_FILTER_FLAG_LOG`: log what the filter refuses (Linux 4.14).
pub const SECCOMP_LOG: u64 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`: no mitigation of speculative store bypass (Linux 4.17).
pub const SECCOMP_SPEC_ALLOW: u64 = 1 << 2;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`: once its notification was read, only a deadly signal interrupts a call (Linux
/// 5.19). Only together with [`SECCOMP_NEW_LISTENER`].
pub const SECCOMP_WAIT_KILLABLE_RECV: u64 = 1 << 5;

/// Whether the kernel knows all of these flags (seccomp(2), Notes: it looks at them before it looks for the filter).
pub fn seccomp_knows(flags: u64) -> bool {
    // SAFETY: the kernel checks the null pointer and answers EFAULT; no filter is installed.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as c_ulong,
            flags as c_ulong,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    Errno::result(ret) == Err(Errno::EFAULT)
}

/// Installs the classic BPF `program` (`struct sock_filter` records in the machine's byte order) as a seccomp filter of
/// the calling thread, or of all threads with [`SECCOMP_TSYNC`]. Returns the listener if `flags` has
/// [`SECCOMP_NEW_LISTENER`].
///
/// Fails with `EACCES` if the thread has neither CAP_SYS_ADMIN nor no_new_privs, `EINVAL` for a flag or a program that the
/// kernel doesn't know, `EBUSY` if a listener exists already, `ESRCH` if a thread could not be brought in line (seccomp(2)).
pub fn seccomp_install(flags: u64, program: &[u8]) -> Result<Option<OwnedFd>> {
    let mut filter = instructions(program)?;
    let length = u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?;
    let fprog = libc::sock_fprog {
        len: length,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `fprog` and the `filter` that it points to, of the length it states, live until the call returns; the kernel
    // copies both and writes neither.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as c_ulong,
            flags as c_ulong,
            &raw const fprog,
        )
    };
    let value = Errno::result(ret)?;
    if flags & SECCOMP_NEW_LISTENER != 0 {
        let fd = c_int::try_from(value).map_err(|_| Errno::EBADF)?;
        // SAFETY: with NEW_LISTENER a successful call returns a new descriptor that nobody else owns.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    // With TSYNC alone, a positive value is the id of a thread that has a diverging filter: nothing was installed.
    if value == 0 { Ok(None) } else { Err(Errno::ESRCH) }
}

/// The records of a program, which are not aligned in it.
fn instructions(program: &[u8]) -> Result<Vec<libc::sock_filter>> {
    if program.is_empty() || !program.len().is_multiple_of(INSTRUCTION) {
        return Err(Errno::EINVAL);
    }
    let records = program.chunks_exact(INSTRUCTION).map(|i| libc::sock_filter {
        code: u16::from_ne_bytes([i[0], i[1]]),
        jt: i[2],
        jf: i[3],
        k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
    });
    Ok(records.collect())
}

/// As [`seccomp_install`] without flags, for the calling thread, by prctl(2): for a thread whose filter knows no seccomp(2).
pub fn seccomp_install_by_prctl(program: &[u8]) -> Result<()> {
    let mut filter = instructions(program)?;
    let length = u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?;
    let fprog = libc::sock_fprog {
        len: length,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: as in `seccomp_install`.
    let ret = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER as c_ulong,
            &raw const fprog,
            0,
            0,
        )
    };
    Errno::result(ret).map(drop)
}

/// Whether the calling thread has a seccomp filter; also if one does not let it ask (prctl(2), `PR_GET_SECCOMP`).
pub fn is_filtered() -> bool {
    // SAFETY: PR_GET_SECCOMP takes integers only.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) != 0 }
}

/// From now on no memory of this process becomes executable that was not when it was mapped, and none is mapped writable and
/// executable, for good (prctl(2), `PR_SET_MDWE`). `EINVAL`: a kernel before 6.3.
pub fn refuse_executable_memory() -> Result<()> {
    const PR_SET_MDWE: c_int = 65;
    const PR_MDWE_REFUSE_EXEC_GAIN: c_ulong = 1;
    // SAFETY: PR_SET_MDWE takes integers only.
    let ret = unsafe { libc::prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) };
    Errno::result(ret).map(drop)
}

/// Removes capability number `capability` from the bounding set. `EINVAL`: the kernel has no such capability; `EPERM`: the
/// thread lacks CAP_SETPCAP.
pub fn bounding_drop(capability: u32) -> Result<()> {
    // SAFETY: PR_CAPBSET_DROP takes integers only.
    let ret = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, c_ulong::from(capability), 0, 0, 0) };
    Errno::result(ret).map(drop)
}

/// Whether capability number `capability` is in the bounding set. `EINVAL`: the kernel has no such capability.
pub fn bounding_has(capability: u32) -> Result<bool> {
    // SAFETY: PR_CAPBSET_READ takes integers only.
    let ret = unsafe { libc::prctl(libc::PR_CAPBSET_READ, c_ulong::from(capability), 0, 0, 0) };
    Errno::result(ret).map(|has| has == 1)
}

/// Empties the ambient capability set.
pub fn ambient_clear() -> Result<()> {
    // SAFETY: PR_CAP_AMBIENT takes integers only.
    let ret = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong, 0, 0, 0) };
    Errno::result(ret).map(drop)
}

/// Adds capability number `capability` to the ambient set. `EPERM`: it is not both permitted and inheritable.
pub fn ambient_raise(capability: u32) -> Result<()> {
    let raise = libc::PR_CAP_AMBIENT_RAISE as c_ulong;
    // SAFETY: PR_CAP_AMBIENT takes integers only.
    let ret = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, c_ulong::from(capability), 0, 0) };
    Errno::result(ret).map(drop)
}

/// Joins the session keyring called `name`, or makes it, and returns its serial number (keyctl(2)).
pub fn keyring_join(name: &CStr) -> Result<i32> {
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING as c_ulong,
            name.as_ptr(),
            0,
            0,
            0,
        )
    };
    Errno::result(ret).map(|serial| serial as i32)
}

/// The description of key `serial`: `type;uid;gid;perm;description`, perm in hexadecimal (keyctl(2), KEYCTL_DESCRIBE).
pub fn key_describe(serial: i32) -> Result<Vec<u8>> {
    // KEY_MAX_DESC_SIZE for the name, and some for the numbers in front of it; the kernel writes all or nothing.
    let mut buffer = vec![0u8; 4096 + 64];
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which is that long.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_DESCRIBE as c_ulong,
            serial as c_long,
            buffer.as_mut_ptr(),
            buffer.len(),
            0,
        )
    };
    let length = Errno::result(ret)? as usize;
    buffer.truncate(length);
    Ok(buffer)
}

/// Sets the permission bits of key `serial` (keyctl(2), KEYCTL_SETPERM).
pub fn key_set_permissions(serial: i32, permissions: u32) -> Result<()> {
    // SAFETY: KEYCTL_SETPERM takes integers only.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_SETPERM as c_ulong,
            serial as c_long,
            c_ulong::from(permissions),
            0,
            0,
        )
    };
    Errno::result(ret).map(drop)
}

/// Sets the I/O priority (`class << 13 | level`) of the calling process (ioprio_set(2), IOPRIO_WHO_PROCESS).
pub fn ioprio_set(priority: i32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: c_int = 1;
    // SAFETY: ioprio_set takes integers only.
    let ret = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) };
    Errno::result(ret).map(drop)
}

/// `struct sched_attr` as Linux 3.14 defined it (sched_setattr(2)); every later kernel takes this size.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH: -20 to 19.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR: 1 to 99.
    pub priority: u32,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub runtime: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub deadline: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub period: u64,
}

/// Sets the scheduling policy and attributes of the calling thread.
pub fn sched_setattr(attr: &SchedAttr) -> Result<()> {
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        ..*attr
    };
    // SAFETY: `attr` outlives the call, and its first member states its size.
    let ret = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    Errno::result(ret).map(drop)
}

/// Lets the process `pid` (0: the calling thread) run on the CPUs `cpus` only. The kernel ignores CPUs that it doesn't
/// have; `EINVAL` if none is left.
pub fn sched_setaffinity(pid: libc::pid_t, cpus: &[u32]) -> Result<()> {
    let mask = bit_mask(cpus);
    // SAFETY: the kernel reads `size_of_val(mask)` bytes of `mask`, which is that long.
    let ret = unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, size_of_val(&mask[..]), mask.as_ptr()) };
    Errno::result(ret).map(drop)
}

/// Lets the process `pid` run on every CPU that its cpuset has, now and later: the mask covers CPUs that are not there yet.
pub fn sched_reset_affinity(pid: libc::pid_t) -> Result<()> {
    // As many bits as the largest NR_CPUS that a kernel can be built with.
    let mask = [!0u8; 8192 / 8];
    // SAFETY: the kernel reads `mask.len()` bytes of `mask`.
    let ret = unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, mask.len(), mask.as_ptr()) };
    Errno::result(ret).map(drop)
}

/// Sets the NUMA memory policy of the calling thread: `mode` is `MPOL_*` with the `MPOL_F_*` flags, for `nodes`
/// (set_mempolicy(2)). `ENOSYS` on a kernel without NUMA.
pub fn set_mempolicy(mode: i32, nodes: &[u32]) -> Result<()> {
    let mask = bit_mask(nodes);
    // The kernel takes one off the number of bits that it is told.
    let bits = if mask.is_empty() {
        0
    } else {
        mask.len() * c_ulong::BITS as usize + 1
    };
    let pointer = if mask.is_empty() {
        std::ptr::null()
    } else {
        mask.as_ptr()
    };
    // SAFETY: the kernel reads `bits - 1` bits of `mask`, which has that many, or nothing if `bits` is 0.
    let ret = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) };
    Errno::result(ret).map(drop)
}

/// The kernel's bit mask for the `numbers`: words of the size of `unsigned long`.
fn bit_mask(numbers: &[u32]) -> Vec<c_ulong> {
    let words = numbers
        .iter()
        .max()
        .map_or(0, |&max| (max / c_ulong::BITS) as usize + 1);
    let mut mask = vec![0; words];
    for number in numbers {
        mask[(number / c_ulong::BITS) as usize] |= 1 << (number % c_ulong::BITS);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_bits_of_its_numbers_and_no_others() {
        assert!(bit_mask(&[]).is_empty());
        assert_eq!(bit_mask(&[0, 3]), [0b1001]);
        let mask = bit_mask(&[c_ulong::BITS + 1, 2]);
        assert_eq!(mask, [0b100, 0b10]);
    }

    #[test]
    fn a_torn_program_is_refused_before_the_kernel_sees_it() {
        assert_eq!(seccomp_install(0, &[]).unwrap_err(), Errno::EINVAL);
        assert_eq!(seccomp_install(0, &[0; 12]).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn flags_are_known_or_not() {
        assert!(seccomp_knows(0) && seccomp_knows(SECCOMP_TSYNC));
        assert!(!seccomp_knows(1 << 31));
    }

    #[test]
    fn sched_attr_has_the_size_of_its_first_version() {
        assert_eq!(size_of::<SchedAttr>(), 48);
    }
}
