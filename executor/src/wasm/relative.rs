//! A library named by a relative path, for an engine that makes every path absolute.
//!
//! WasmEdge puts the working directory's name in front of a relative path before it opens anything. The cache of compiled code
//! is entered by its descriptor and has no name below the container's root: getcwd(3) fails there. So, while code is loaded,
//! this executable's own getcwd(3), which comes before the C library's for every library it loads, names the directory `.`,
//! and the path stays relative. (build.rs has the linker export it; where that did not work, code is not loaded, and
//! interpreted.)
//!
//! The dynamic loader has a getcwd of its own, for `$ORIGIN`, and can do without. But for a directory that is out of sight the
//! kernel's answer makes it go up from there by the host's directories, with a lock that it forgets to initialise (glibc 2.43):
//! it may wait for ever. So the system call is made to fail, for good: nothing in this process asks for it any more.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO};
use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

thread_local! {
    static RELATIVE: Cell<bool> = const { Cell::new(false) };
}

/// The longest name of a directory, with the zero byte (`PATH_MAX`).
const LONGEST: usize = libc::PATH_MAX as usize;

/// From now on getcwd(2) fails with ENOENT in this process, which gives up the right to gain rights for it: a guest executes
/// nothing. Fails where the container's own seccomp filter doesn't permit another one.
pub fn forget_working_directory() -> Result<(), Errno> {
    let instruction = |code: u32, equal: u8, other: u8, value: u32| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&(code as u16).to_ne_bytes());
        (bytes[2], bytes[3]) = (equal, other);
        bytes[4..].copy_from_slice(&value.to_ne_bytes());
        bytes
    };
    // The number is the first word of what a filter sees (seccomp(2), struct seccomp_data).
    let filter = [
        instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, libc::SYS_getcwd as u32),
        instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | libc::ENOENT as u32),
        instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
    ];
    nix::sys::prctl::set_no_new_privs()?;
    proa_sys::security::seccomp_install(0, filter.as_flattened()).map(drop)
}

/// Calls `load`, during which this thread's working directory is called `.`.
pub fn with_relative_paths<T>(load: impl FnOnce() -> T) -> T {
    // Or the linker would see no use of it, and leave it out.
    std::hint::black_box(getcwd as unsafe extern "C" fn(*mut c_char, usize) -> *mut c_char);
    RELATIVE.set(true);
    let loaded = load();
    RELATIVE.set(false);
    loaded
}

/// getcwd(3), for everything in this process.
///
/// # Safety
/// As for getcwd(3): `buffer` is null, in which case the caller frees what is returned, or has `size` bytes to write to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getcwd(buffer: *mut c_char, size: usize) -> *mut c_char {
    let mut name = [0u8; LONGEST];
    let length = if RELATIVE.get() {
        name[0] = b'.';
        2
    } else {
        // SAFETY: the kernel writes at most as many bytes as the array has.
        let result = unsafe { libc::syscall(libc::SYS_getcwd, name.as_mut_ptr(), LONGEST) };
        match usize::try_from(result) {
            // What is out of sight has a name that is no path ("(unreachable)/…").
            Ok(length) if name[0] == b'/' => length,
            Ok(_) => return fail(Errno::ENOENT),
            // The call has set errno.
            Err(_) => return null_mut(),
        }
    };
    if !buffer.is_null() && size == 0 {
        return fail(Errno::EINVAL);
    }
    if (!buffer.is_null() || size != 0) && length > size {
        return fail(Errno::ERANGE);
    }
    let to = if buffer.is_null() {
        // SAFETY: no memory of this process is involved; null is checked.
        unsafe { libc::malloc(length.max(size)) }.cast()
    } else {
        buffer
    };
    if to.is_null() {
        return null_mut();
    }
    // SAFETY: `to` has at least `length` bytes: it was made so, or promised and just compared; the array is this function's
    // own and does not overlap.
    unsafe { std::ptr::copy_nonoverlapping(name.as_ptr().cast::<c_void>(), to.cast::<c_void>(), length) };
    to
}

fn fail(errno: Errno) -> *mut c_char {
    errno.set();
    null_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn name(size: usize) -> Result<String, Errno> {
        let mut buffer = vec![1; size];
        // SAFETY: the buffer has so many bytes.
        let named = unsafe { getcwd(buffer.as_mut_ptr().cast(), size) };
        if named.is_null() {
            return Err(Errno::last());
        }
        let end = buffer.iter().position(|byte| *byte == 0).unwrap();
        Ok(String::from_utf8_lossy(&buffer[..end]).into_owned())
    }

    #[test]
    fn the_kernel_does_not_say_it_any_more() {
        // In a thread of its own: a filter is for good.
        std::thread::spawn(|| {
            forget_working_directory().unwrap();
            assert_eq!(name(LONGEST), Err(Errno::ENOENT));
            assert!(std::fs::read_dir(".").is_ok());
            with_relative_paths(|| assert_eq!(name(2), Ok(".".to_owned())));
        })
        .join()
        .unwrap();
        assert!(name(LONGEST).is_ok());
    }

    #[test]
    fn the_working_directory_has_its_name_and_a_relative_one_for_a_moment() {
        let real = std::fs::read_link("/proc/self/cwd").unwrap();
        assert_eq!(std::env::current_dir().unwrap(), real);
        let text = name(LONGEST).unwrap();
        assert_eq!(Path::new(&text), real);
        assert_eq!(name(text.len()), Err(Errno::ERANGE));
        assert_eq!(name(text.len() + 1), Ok(text));
        with_relative_paths(|| assert_eq!(name(2), Ok(".".to_owned())));
        // SAFETY: without a buffer the function makes one, freed once here.
        let made = unsafe { getcwd(null_mut(), 0) };
        assert!(!made.is_null());
        // SAFETY: as above.
        unsafe { libc::free(made.cast()) };
    }
}
