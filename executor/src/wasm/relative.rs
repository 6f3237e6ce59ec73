//! A library named by a relative path, for an engine that makes every path absolute.
//!
//! WasmEdge puts the working directory's name in front of a relative path before it opens anything. The cache of compiled code
//! is entered by its descriptor and has no name below the container's root: getcwd(3) fails there. So, while code is loaded,
//! this executable's own getcwd(3), which comes before the C library's for every library it loads, names the directory `.`,
//! and the path stays relative. (build.rs has the linker export it; where that did not work, code is not loaded, and
//! interpreted.)
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

thread_local! {
    static RELATIVE: Cell<bool> = const { Cell::new(false) };
}

/// The longest name of a directory, with the zero byte (`PATH_MAX`).
const LONGEST: usize = libc::PATH_MAX as usize;

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
