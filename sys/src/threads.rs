//! Whether this process has other threads than the calling one.
//!
//! Credentials, capabilities, no_new_privs, seccomp filters, Landlock's rules and LSM labels are each thread's own, and what
//! another thread holds locked stays locked in a copy of the process. So whoever confines or copies a process asks first.

use crate::errno::Raw;
use crate::{Errno, Result};
use std::fs::File;
use std::io::Read;

/// Whether the calling thread is the only one that uses its memory. The answer stays true until this very thread makes
/// another.
///
/// unshare(2) with `CLONE_VM` fails with EINVAL if it is not, and does nothing otherwise. Where a filter refuses that call,
/// [`count`] tells.
pub fn is_alone() -> Result<bool> {
    // SAFETY: a single thread shares nothing that could be unshared by this, and for any other the call fails.
    match Errno::result(unsafe { libc::unshare(libc::CLONE_VM) }) {
        Ok(_) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => Ok(count()? == 1),
        Err(errno) => Err(errno),
    }
}

/// How many threads this process has, as the procfs in sight says (proc_pid_stat(5), `num_threads`). ENOENT if what is in
/// sight is no procfs: an image can have a file of that name.
pub fn count() -> Result<u32> {
    let failed = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let mut file = File::open("/proc/self/stat").map_err(failed)?;
    let kind = rustix::fs::fstatfs(&file).map_err(|errno| errno.raw())?.f_type;
    if kind != rustix::fs::PROC_SUPER_MAGIC {
        return Err(Errno::ENOENT);
    }
    let mut stat = String::new();
    file.read_to_string(&mut stat).map_err(failed)?;
    parse(&stat).ok_or(Errno::EIO)
}

fn parse(stat: &str) -> Option<u32> {
    // The fields from the third on follow the name, in which anything may stand; this is the 20th.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(17)?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    /// Runs `what` in a copy of this process with one thread, which ends with the status that it returns. It must not
    /// allocate: the test harness has other threads.
    pub fn in_a_copy(what: impl FnOnce() -> u8) -> i32 {
        // SAFETY: as said, the child takes no lock that another thread could have held.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => crate::exec::exit_now(what()),
            ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, status) => status,
                other => panic!("{other:?}"),
            },
        }
    }

    #[test]
    fn other_threads_are_noticed() {
        std::thread::scope(|scope| {
            let (end, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            assert_eq!(is_alone(), Ok(false));
            assert!(count().unwrap() > 1);
            drop(end);
        });
        assert_eq!(in_a_copy(|| u8::from(is_alone() != Ok(true))), 0);
    }

    #[test]
    fn the_number_of_threads_is_read() {
        let stat = "7 (a ) 1 b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 3 0 1 0 0";
        assert_eq!(parse(stat), Some(3));
        assert_eq!(parse("7 (a) S 1"), None);
    }
}
