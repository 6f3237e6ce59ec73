//! The calls by which this process opens and changes files, in the place of the C library's: where a guest is kept from the
//! kernel's interfaces ([`super::kernel_files`]).
//!
//! They are the engine's for the same reason as those of [`super::calls`]; until [`arm`], and for what is not on one of these
//! file systems, they are the C library's. A file is judged by what was opened and not by its name: by the kind of its file
//! system and its mode, wherever it is mounted. The attacker is the guest, which races: so what is judged is the descriptor
//! that the engine gets. What would be changed by being opened is looked at before, by `O_PATH`, as well.
//!
//! `RESOLVE_NO_MAGICLINKS` (openat2(2), Linux 5.6) keeps the links of procfs that are none (`/proc/PID/fd/N`, `exe`, `root`,
//! `cwd`, `map_files/`, `ns/`) from leading anywhere. Where the kernel or a filter hasn't got openat2(2), no link at all is
//! followed; the engine follows links itself and asks for none to be.
#![allow(unsafe_code)]

use super::calls::are_called;
use super::kernel_files;
use libc::{AT_FDCWD, O_ACCMODE, O_CREAT, O_PATH, O_RDONLY, O_TMPFILE, O_TRUNC, c_char, c_int, c_void, mode_t};
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, fstatfs, ftruncate, openat, openat2};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether files are judged.
static ARMED: AtomicBool = AtomicBool::new(false);

/// Whether [`arm`] will have an effect. The error is the name of a call that would not be asked here.
pub fn check() -> Result<(), String> {
    are_called(&[
        (c"open", open as *const c_void),
        (c"open64", open64 as *const c_void),
        (c"openat", openat_ as *const c_void),
        (c"openat64", openat64 as *const c_void),
        (c"mkdirat", mkdirat as *const c_void),
        (c"unlinkat", unlinkat as *const c_void),
        (c"renameat", renameat as *const c_void),
        (c"linkat", linkat as *const c_void),
        (c"symlinkat", symlinkat as *const c_void),
    ])
}

/// From now on no call of a library opens or changes what a guest must not have, for good.
pub fn arm() {
    ARMED.store(true, Ordering::Release);
}

/// Opens for a guest; the flags and the mode are those of open(2).
fn judged(directory: BorrowedFd<'_>, path: &CStr, flags: c_int, mode: mode_t) -> Result<OwnedFd, Errno> {
    if kernel_files::writes(flags) {
        let look = O_PATH | flags & (libc::O_NOFOLLOW | libc::O_DIRECTORY);
        // What is not there is to be made; why something can't be opened, the call itself says.
        if let Ok(found) = resolve(directory, path, look | libc::O_CLOEXEC, 0) {
            judge(&found, path, flags)?;
        }
    }
    // Emptied only once it is known what it is.
    let later = flags & O_ACCMODE != O_RDONLY && flags & (O_TRUNC | O_PATH) == O_TRUNC;
    let opened = resolve(directory, path, if later { flags & !O_TRUNC } else { flags }, mode)?;
    judge(&opened, path, flags)?;
    if later {
        match ftruncate(&opened, 0) {
            // Not a regular file, for which open(2) ignores the flag.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(opened)
}

/// EACCES if a guest must not have what was opened, or if it can't be told what it is.
fn judge(opened: &OwnedFd, path: &CStr, flags: c_int) -> Result<(), Errno> {
    let kind = fstatfs(opened).map_err(|_| Errno::ACCESS)?.f_type as u64;
    if !kernel_files::is(kind) {
        return Ok(());
    }
    let mode = fstat(opened).map_err(|_| Errno::ACCESS)?.st_mode;
    let path = path.to_bytes();
    let name = path.rsplit(|byte| *byte == b'/').find(|name| !name.is_empty());
    match kernel_files::permits(kind, mode, flags, name.unwrap_or_default()) {
        true => Ok(()),
        false => Err(Errno::ACCESS),
    }
}

/// Opens without following a link of procfs that is none.
fn resolve(directory: BorrowedFd<'_>, path: &CStr, flags: c_int, mode: mode_t) -> Result<OwnedFd, Errno> {
    let mut flags = OFlags::from_bits_retain(flags as u32);
    if flags.contains(OFlags::PATH) {
        // Which open(2) ignores, and openat2(2) does not.
        flags &= OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    }
    let made = flags.bits() as c_int & (O_CREAT | O_TMPFILE) & !libc::O_DIRECTORY != 0;
    let mode = if made {
        Mode::from_raw_mode(mode & 0o7777)
    } else {
        Mode::empty()
    };
    match openat2(directory, path, flags, mode, ResolveFlags::NO_MAGICLINKS) {
        // Filters of old container managers answer EPERM to calls that they don't know.
        Err(Errno::NOSYS | Errno::PERM) => walk(directory, path, flags, mode),
        other => other,
    }
}

/// The same by openat(2), and without following any link.
fn walk(directory: BorrowedFd<'_>, path: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let bytes = path.to_bytes();
    if bytes.is_empty() {
        return Err(Errno::NOENT);
    }
    let pass = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = match bytes[0] {
        b'/' => openat(directory, c"/", pass, Mode::empty())?,
        _ => openat(directory, c".", pass, Mode::empty())?,
    };
    let mut names = bytes
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
        .peekable();
    while let Some(name) = names.next() {
        if names.peek().is_some() {
            here = openat(&here, name, pass, Mode::empty())?;
            continue;
        }
        let directory = if bytes.ends_with(b"/") {
            OFlags::DIRECTORY
        } else {
            OFlags::empty()
        };
        return openat(&here, name, flags | directory | OFlags::NOFOLLOW, mode);
    }
    openat(&here, c".", flags, mode)
}

/// Whether the directory that `path` lies in is the kernel's: nothing is made, removed or renamed there. What can't be
/// told is.
fn is_kernels(directory: BorrowedFd<'_>, path: &CStr) -> bool {
    let mut bytes = path.to_bytes();
    while let [rest @ .., b'/'] = bytes {
        bytes = rest;
    }
    let kind = match bytes.iter().rposition(|byte| *byte == b'/') {
        // As it is almost always: the engine goes through directories one by one.
        None if directory.as_raw_fd() != AT_FDCWD => fstatfs(directory),
        at => {
            let mut parent = bytes[..at.map_or(0, |at| at + 1)].to_vec();
            parent.extend(b".\0");
            let Ok(parent) = CStr::from_bytes_with_nul(&parent) else {
                return true;
            };
            resolve(directory, parent, O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC, 0).and_then(fstatfs)
        }
    };
    !kind.is_ok_and(|kind| !kernel_files::is(kind.f_type as u64))
}

fn failed(errno: i32) -> c_int {
    nix::errno::Errno::from_raw(errno).set();
    -1
}

/// What a caller has for a directory; `None` for what can't be one.
///
/// # Safety
/// The descriptor stays open during the call, if it is.
unsafe fn borrowed<'fd>(directory: c_int) -> Option<BorrowedFd<'fd>> {
    // SAFETY: promised by the caller; it is not -1.
    (directory >= 0 || directory == AT_FDCWD).then(|| unsafe { BorrowedFd::borrow_raw(directory) })
}

/// # Safety
/// As openat(2): `path` is a string that ends with a zero byte, or a pointer for which the kernel would answer EFAULT while
/// nothing is judged.
unsafe fn open_at(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    if !ARMED.load(Ordering::Acquire) || path.is_null() {
        // SAFETY: promised by the caller.
        return unsafe { libc::syscall(libc::SYS_openat, directory, path, flags, mode as libc::c_uint) as c_int };
    }
    // SAFETY: promised by the caller.
    let path = unsafe { CStr::from_ptr(path) };
    // SAFETY: a caller that closes the descriptor meanwhile gets what openat(2) gives in that case.
    let Some(directory) = (unsafe { borrowed(directory) }) else {
        return failed(libc::EBADF);
    };
    match judged(directory, path, flags, mode) {
        Ok(opened) => opened.into_raw_fd(),
        Err(errno) => failed(errno.raw_os_error()),
    }
}

/// As open(2). The third argument of a variadic function is passed as any other's on the machines that engines run on.
///
/// # Safety
/// As open(2): `path` is a string that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: promised by the caller.
    unsafe { open_at(AT_FDCWD, path, flags, mode) }
}

/// As open64(3), which is open(2) where `off_t` has 64 bits.
///
/// # Safety
/// As open(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: promised by the caller.
    unsafe { open_at(AT_FDCWD, path, flags, mode) }
}

/// As openat(2).
///
/// # Safety
/// As openat(2): `path` is a string that ends with a zero byte.
#[unsafe(export_name = "openat")]
pub unsafe extern "C" fn openat_(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: promised by the caller.
    unsafe { open_at(directory, path, flags, mode) }
}

/// As openat64(3).
///
/// # Safety
/// As openat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: promised by the caller.
    unsafe { open_at(directory, path, flags, mode) }
}

/// Whether a call that makes or removes this name is refused.
///
/// # Safety
/// `path` is null or a string that ends with a zero byte.
unsafe fn refused(directory: c_int, path: *const c_char) -> bool {
    if !ARMED.load(Ordering::Acquire) || path.is_null() {
        return false;
    }
    // SAFETY: promised by the caller.
    let path = unsafe { CStr::from_ptr(path) };
    // SAFETY: as for open_at.
    unsafe { borrowed(directory) }.is_some_and(|directory| is_kernels(directory, path))
}

/// As mkdirat(2).
///
/// # Safety
/// As mkdirat(2): `path` is a string that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdirat(directory: c_int, path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: promised by the caller.
    match unsafe { refused(directory, path) } {
        true => failed(libc::EACCES),
        // SAFETY: as above.
        false => unsafe { libc::syscall(libc::SYS_mkdirat, directory, path, mode as libc::c_uint) as c_int },
    }
}

/// As unlinkat(2).
///
/// # Safety
/// As unlinkat(2): `path` is a string that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: promised by the caller.
    match unsafe { refused(directory, path) } {
        true => failed(libc::EACCES),
        // SAFETY: as above.
        false => unsafe { libc::syscall(libc::SYS_unlinkat, directory, path, flags) as c_int },
    }
}

/// As renameat(2).
///
/// # Safety
/// As renameat(2): both are strings that end with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat(from: c_int, old: *const c_char, to: c_int, new: *const c_char) -> c_int {
    // SAFETY: promised by the caller.
    match unsafe { refused(from, old) || refused(to, new) } {
        true => failed(libc::EACCES),
        // SAFETY: as above.
        false => unsafe { libc::syscall(RENAMEAT, from, old, to, new, 0) as c_int },
    }
}

/// renameat(2), or where there never was one, renameat2(2), whose last argument is then 0.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const RENAMEAT: libc::c_long = libc::SYS_renameat;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const RENAMEAT: libc::c_long = libc::SYS_renameat2;

/// As linkat(2).
///
/// # Safety
/// As linkat(2): both are strings that end with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn linkat(from: c_int, old: *const c_char, to: c_int, new: *const c_char, flags: c_int) -> c_int {
    // SAFETY: promised by the caller.
    match unsafe { refused(to, new) } {
        true => failed(libc::EACCES),
        // SAFETY: as above.
        false => unsafe { libc::syscall(libc::SYS_linkat, from, old, to, new, flags) as c_int },
    }
}

/// As symlinkat(2).
///
/// # Safety
/// As symlinkat(2): both are strings that end with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn symlinkat(target: *const c_char, directory: c_int, path: *const c_char) -> c_int {
    // SAFETY: promised by the caller.
    match unsafe { refused(directory, path) } {
        true => failed(libc::EACCES),
        // SAFETY: as above.
        false => unsafe { libc::syscall(libc::SYS_symlinkat, target, directory, path) as c_int },
    }
}

#[cfg(test)]
mod tests;
