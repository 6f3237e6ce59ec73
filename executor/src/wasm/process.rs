//! What execve(2) would do for a program and has to be done for a guest in this process; and its end.
#![allow(unsafe_code)]

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;

/// Tells how much memory this process has of its own. To be made while the host's procfs is in sight: a container may have
/// none.
pub struct OwnMemory(Option<File>);

impl OwnMemory {
    /// Opens what tells it. A host without procfs is not one that a container runs on.
    pub fn open() -> Self {
        let file =
            File::open("/proc/self/statm").inspect_err(|error| tracing::debug!("open /proc/self/statm: {error}"));
        Self(file.ok())
    }

    /// The bytes that can't be taken away from the process, unlike those of files: proc_pid_statm(5). They are counted for
    /// each CPU, and so exact to some hundred KiB. `None` if it can't be told.
    pub fn bytes(&self) -> Option<u64> {
        let mut text = [0; 128];
        let length = self.0.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        let mut fields = text.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
        let (resident, of_files) = (fields.next()?.ok()?, fields.next()?.ok()?);
        let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
        Some(resident.saturating_sub(of_files) * page as u64)
    }
}

/// Where this process's arguments lie, which ps(1) shows: proc_pid_cmdline(5).
pub struct Title {
    start: *mut u8,
    length: usize,
}

impl Title {
    /// Finds the place, which the kernel tells by procfs only: to be done while the host's is in sight. `None` if it can't be
    /// told: the process is then shown as what it is.
    pub fn find() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The fields from the third on follow the name, in which anything may stand; these are 48 and 49.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(45);
        let (start, end): (usize, usize) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let length = end.checked_sub(start).filter(|length| *length > 0)?;
        (start != 0).then_some(Self {
            start: start as *mut u8,
            length,
        })
    }

    /// Shows the process as one of this name and with these arguments, as far as there is room for them.
    pub fn set(&self, name: &CStr, args: &[CString]) {
        if let Err(errno) = nix::sys::prctl::set_name(name) {
            tracing::debug!("prctl(PR_SET_NAME): {errno}");
        }
        let mut bytes = args.iter().flat_map(|arg| arg.to_bytes_with_nul().iter().copied());
        for at in 0..self.length {
            // The last byte stays zero, or the kernel takes what follows for more of it.
            let byte = bytes.next().filter(|_| at + 1 < self.length).unwrap_or(0);
            // SAFETY: the kernel has put the arguments there, on this process's own stack, which is writable and stays. The
            // standard library reads the arguments from there when it is asked for them; it is not, after init has its own.
            unsafe { self.start.add(at).write(byte) };
        }
    }
}

/// Ends this process without running destructors: those of a C++ library whose objects are still in use are among them.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) is async-signal-safe and touches nothing of this process.
    unsafe { libc::_exit(status) }
}

/// Closes what close-on-exec would close: init holds directories of the host and sockets to its parent, and a process of the
/// container that may trace this one could go through them (as in CVE-2024-21626). Descriptors that the caller preserved
/// for the guest follow stdio without a gap and without the close-on-exec flag; all from the first that has it, go. Only
/// `keep`, which is the container's own, is kept, under that first one's number; `None` if it can't be.
pub fn close_on_exec_now(keep: File) -> Option<File> {
    let mut first = 3;
    // SAFETY: fcntl(F_GETFD) only reads a flag, of any number.
    while unsafe { libc::fcntl(first, libc::F_GETFD) } == 0 {
        first += 1;
    }
    let number = match keep.into_raw_fd() {
        same if same == first => same,
        // SAFETY: as below for the one that may be open under that number.
        other => unsafe { libc::dup3(other, first, libc::O_CLOEXEC) },
    };
    // SAFETY: the number is taken from its owner, or new.
    let kept = (number == first).then(|| unsafe { File::from_raw_fd(number) });
    first += i32::from(kept.is_some());
    // SAFETY: whoever owns one of these never uses or drops it again: from here the process runs the guest and ends with
    // _exit(2), and the engine opens its own only later.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) };
    if closed != 0 {
        close_each(first);
    }
    kept
}

/// The way of kernels before 5.9, or under a filter that doesn't know close_range(2): every number that can be open.
fn close_each(first: i32) {
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(1 << 20, |(_, hard)| hard.min(1 << 20)) as i32;
    for fd in first..most {
        // SAFETY: as above; a number that isn't open gives EBADF.
        unsafe { libc::close(fd) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_the_arguments_is_found() {
        let title = Title::find().unwrap();
        let cmdline = std::fs::read("/proc/self/cmdline").unwrap();
        assert_eq!(title.length, cmdline.len());
        // SAFETY: as in `set`; nobody writes there.
        let there = unsafe { std::slice::from_raw_parts(title.start, title.length) };
        assert_eq!(there, cmdline);
    }

    #[test]
    fn memory_of_its_own_is_counted() {
        let own = OwnMemory::open();
        let before = own.bytes().unwrap();
        let filled = vec![1u8; 32 << 20];
        let after = own.bytes().unwrap();
        assert!(after - before > 24 << 20, "{before} {after} {}", filled[7]);
        assert_eq!(OwnMemory(None).bytes(), None);
    }
}
