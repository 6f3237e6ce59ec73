//! That nobody in a container can write to the host's files by what this process has mapped of them.
//!
//! `/proc/PID/map_files` opens the file of a mapping by the mount that it was mapped from, for who has CAP_SYS_PTRACE and
//! CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN). The caller therefore has the engine loaded from a read-only overlay. What comes from
//! elsewhere all the same (plugins, what the loader's cache led to, links that leave the engine's directory, everything where
//! there is no overlay) is replaced by a copy in memory here, once it is loaded.

use crate::Error;
use proa_sys::memory::{self, Object};
use rustix::fs::{StatVfsMountFlags, stat, statvfs};
use std::ffi::CStr;

/// The number of the initial user namespace in `/proc/PID/ns/user` (`PROC_USER_INIT_INO` of the kernel's linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Copies what is mapped of files that could be written to. In a user namespace nothing is: the capabilities would have to be held
/// in the initial one, which what shares the namespaces of this process does not have.
pub fn protect() -> Result<(), Error> {
    if stat("/proc/self/ns/user").is_ok_and(|namespace| namespace.st_ino != INITIAL_USER_NAMESPACE) {
        return Ok(());
    }
    let mut objects = memory::objects();
    objects.retain(|object| !is_protected(&object.path));
    if objects.is_empty() {
        return Ok(());
    }
    tracing::debug!(
        "what was loaded from file systems that can be written to is copied: {}",
        names(&objects)
    );
    memory::copy_objects(&objects).map_err(|error| Error::Unenforceable {
        policy: "that nobody writes to the engine's files by way of this process",
        problem: error.to_string(),
    })
}

/// Whether nobody can write to the file: it is on a read-only file system, or it is what this process was executed from, which the
/// caller has seen to.
fn is_protected(path: &CStr) -> bool {
    // By its descriptor alone, only what this process has made is loaded, in memory that is sealed (`engine::load_stand_in`). That
    // descriptor is closed by now.
    let descriptor = path.to_bytes().strip_prefix(b"/proc/self/fd/");
    if descriptor.is_some_and(|number| number.iter().all(u8::is_ascii_digit)) {
        return true;
    }
    if statvfs(path).is_ok_and(|facts| facts.f_flag.contains(StatVfsMountFlags::RDONLY)) {
        return true;
    }
    let what = |facts: rustix::fs::Stat| (facts.st_ino, facts.st_size, facts.st_mtime, facts.st_mtime_nsec);
    let (file, program) = (stat(path).map(what), stat("/proc/self/exe").map(what));
    file.is_ok() && file == program
}

fn names(objects: &[Object]) -> String {
    let names = objects.iter().map(|object| object.path.to_string_lossy());
    names.collect::<Vec<_>>().join(", ")
}
