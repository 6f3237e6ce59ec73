//! What the engine says in its log, of which only errors are wanted: where a trap happened is told nowhere else.
//!
//! 0.17 hands its log to a function. 0.14 writes to the C library's `stdout`, as that is when the library is loaded: then
//! another stream stands there for a moment. Of a version that does neither (none is known to work), the log is off.
#![allow(unsafe_code)]

use super::{Functions, RawString};
use libc::FILE;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null_mut, slice_from_raw_parts};
use std::sync::Mutex;

/// As much of the end of the log as is kept. A guest can have the engine log, and shall not fill memory with it.
const KEPT: usize = 8 * 1024;

static TAIL: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// The end of what the engine has logged.
pub fn tail() -> String {
    let tail = TAIL.lock().map(|tail| tail.clone()).unwrap_or_default();
    String::from_utf8_lossy(&tail).into_owned()
}

fn keep(text: &[u8]) {
    let Ok(mut tail) = TAIL.lock() else { return };
    tail.extend_from_slice(&text[text.len().saturating_sub(KEPT)..]);
    let excess = tail.len().saturating_sub(KEPT);
    tail.drain(..excess);
}

/// Has the library's errors kept, if it was loaded inside of [`with_stream`], and turns its log off if they can't be.
pub(super) fn divert(functions: &Functions, version: &str) {
    // SAFETY: functions of the loaded library that take nothing or, the second, a function of the declared type that is
    // there as long as the process.
    unsafe {
        match functions.log_callback {
            Some(set) => {
                set(Some(receive));
                (functions.log_errors)();
            }
            None if version.starts_with("0.14.") => (functions.log_errors)(),
            None => (functions.log_off)(),
        }
    }
}

/// The beginning of `WasmEdge_LogMessage`.
#[repr(C)]
pub struct LogMessage {
    message: RawString,
}

/// `WasmEdge_LogCallback_t`.
pub type Receive = unsafe extern "C" fn(*const LogMessage);

unsafe extern "C" fn receive(message: *const LogMessage) {
    // SAFETY: the library passes a valid message for the time of the call; a string is as long as it says.
    let text = unsafe {
        let RawString { length, bytes } = (*message).message;
        match bytes.is_null() {
            true => return,
            false => &*slice_from_raw_parts(bytes.cast::<u8>(), length as usize),
        }
    };
    keep(text);
    keep(b"\n");
}

/// `cookie_io_functions_t`, fopencookie(3).
#[repr(C)]
struct CookieFunctions {
    read: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> isize>,
    write: Option<unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> isize>,
    seek: Option<unsafe extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
    close: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
}

unsafe extern "C" {
    /// stdin(3): the C library's, which may be assigned to.
    static mut stdout: *mut FILE;
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: CookieFunctions) -> *mut FILE;
}

unsafe extern "C" fn write(_cookie: *mut c_void, bytes: *const c_char, length: usize) -> isize {
    // SAFETY: the C library passes a buffer of that length.
    keep(unsafe { &*slice_from_raw_parts(bytes.cast::<u8>(), length) });
    length as isize
}

/// Runs `load` with a stream that is kept in the place of the C library's `stdout`, so that who asks for that meanwhile has
/// it from then on. No other thread may run.
pub fn with_stream<T>(load: impl FnOnce() -> T) -> T {
    let functions = CookieFunctions {
        read: None,
        write: Some(write),
        seek: None,
        close: None,
    };
    const MODE: &CStr = c"w";
    // SAFETY: the functions fit their type, and the mode ends with a zero byte. The variable is the C library's, which reads
    // it in other threads only; there are none. A stream that can't be made is null, and nothing is changed then.
    let before = unsafe {
        let stream = fopencookie(null_mut(), MODE.as_ptr(), functions);
        if stream.is_null() {
            return load();
        }
        libc::setvbuf(stream, null_mut(), libc::_IONBF, 0);
        let before = stdout;
        stdout = stream;
        before
    };
    let loaded = load();
    // SAFETY: as above.
    unsafe { stdout = before };
    loaded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept() {
        with_stream(|| {
            // SAFETY: both end with a zero byte.
            unsafe { libc::puts(c"the beginning".as_ptr()) };
        });
        keep(&[b'x'; 3 * KEPT]);
        keep(b"the end");
        assert_eq!(tail().len(), KEPT);
        assert!(tail().ends_with("xthe end") && !tail().contains("beginning"));
    }
}
