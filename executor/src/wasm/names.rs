//! How names are resolved: by `/etc/hosts` and the nameservers of `/etc/resolv.conf`, both of the container, as a Linux program
//! of it would; and by nothing else.
//!
//! The engine resolves with the C library it was started with (`sock_getaddrinfo`). That reads `/etc/nsswitch.conf`, which by
//! then is the image's, and loads for each service named there a library `libnss_SERVICE.so.2`, which is the image's as
//! well: native code of the image's author in the engine's process, where a Wasm container promises that there is none. So
//! before the container's root is entered, what each database consists of is fixed to the two services that the C library has
//! built in.
#![allow(unsafe_code)]

use crate::Error;
use std::ffi::{CStr, c_char, c_int, c_ulong};

/// The databases of nsswitch.conf(5). The engine asks for the first three; the others are fixed lest something asks.
const DATABASES: [&CStr; 14] = [
    c"hosts",
    c"services",
    c"protocols",
    c"networks",
    c"aliases",
    c"ethers",
    c"group",
    c"initgroups",
    c"netgroup",
    c"passwd",
    c"publickey",
    c"rpc",
    c"shadow",
    c"gshadow",
];

/// The libraries of the two services, for the C libraries that don't have them built in (before glibc 2.34).
const LIBRARIES: [&CStr; 2] = [c"libnss_files.so.2", c"libnss_dns.so.2"];

unsafe extern "C" {
    /// Of glibc's `nss.h`, since 2.0: from now on `database` consists of `services`, whatever nsswitch.conf says.
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    /// Of glibc's `resolv.h`, since 2.2: the resolver's state of the calling thread, `_res`.
    fn __res_state() -> *mut ResolverState;
}

/// What that state begins with, `struct __res_state`.
#[repr(C)]
struct ResolverState {
    retrans: c_int,
    retry: c_int,
    options: c_ulong,
}

/// `/etc/resolv.conf` is not read again when it has changed; without meaning, and without need, before glibc 2.26.
const RES_NORELOAD: c_ulong = 0x0200_0000;

/// Fixes how names are resolved in this process; with `dns`, nameservers are asked as well. To be called while the host's
/// libraries are in sight.
pub fn fix(dns: bool) -> Result<(), Error> {
    let failed = |problem: String| Error::Unenforceable {
        policy: "that names are resolved without code of the image",
        problem,
    };
    if !built_in() {
        for library in LIBRARIES {
            // SAFETY: a constant name; what is loaded is the C library's own companion on the host, and stays for good.
            let loaded = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_LAZY) };
            if loaded.is_null() {
                return Err(failed(format!("dlopen {}: not found", library.to_string_lossy())));
            }
        }
    }
    for database in DATABASES {
        let services = match database == c"hosts" && dns {
            true => c"files dns",
            false => c"files",
        };
        // SAFETY: both are constants that end with a zero byte; the function copies them and is called by the one thread.
        if unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) } != 0 {
            let database = database.to_string_lossy();
            return Err(failed(format!(
                "__nss_configure_lookup({database:?}): {}",
                nix::errno::Errno::last()
            )));
        }
    }
    Ok(())
}

/// Reads `/etc/resolv.conf`, for the last time in this thread: a guest that may write to it would have the C library ask any
/// address that it puts there, although its own sockets may not send to that. To be called in the guest's thread, when what
/// is in sight is the container's.
pub fn keep_nameservers() -> Result<(), Error> {
    // SAFETY: res_init(3) takes nothing; what it sets is this thread's.
    if unsafe { libc::res_init() } != 0 {
        return Err(Error::Unenforceable {
            policy: "proa.wasm/connect",
            problem: format!(
                "/etc/resolv.conf can't be read: res_init: {}",
                nix::errno::Errno::last()
            ),
        });
    }
    // SAFETY: points to the calling thread's state, which lives as long as the thread; nobody else has a reference to it.
    unsafe { (*__res_state()).options |= RES_NORELOAD };
    Ok(())
}

/// Whether the C library has the services `files` and `dns` in itself.
fn built_in() -> bool {
    // SAFETY: returns a static string.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    is_since_2_34(&version.to_string_lossy())
}

fn is_since_2_34(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(2), Some(34))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_librarys_version_is_read() {
        for (version, since) in [
            ("2.31", false),
            ("2.34", true),
            ("2.43", true),
            ("3.0", true),
            ("2", false),
        ] {
            assert_eq!(is_since_2_34(version), since, "{version}");
        }
    }

    #[test]
    fn every_database_is_known_to_the_c_library() {
        assert!(fix(true).is_ok() && fix(false).is_ok());
    }
}
