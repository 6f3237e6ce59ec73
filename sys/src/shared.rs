//! Memory that two processes share: words of 64 bits that either may read and write at any time, and futex(2) on them.

use crate::{Errno, Result};
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Bytes of a word.
pub const WORD: usize = size_of::<AtomicU64>();

/// A shared mapping of whole words, from the start of a file.
#[derive(Debug)]
pub struct Shared {
    first: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
}

// SAFETY: it is a pointer to atomics, of which threads may use the same at the same time.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps the first `words` words of `file`, which must be that long. Whoever can shorten the file can have the process
    /// that touches the words killed (SIGBUS): see [`Shared::wait`] and [`Shared::wake`], which don't touch them.
    pub fn map(file: BorrowedFd<'_>, words: NonZeroUsize) -> Result<Self> {
        let bytes = words.saturating_mul(NonZeroUsize::new(WORD).unwrap_or(NonZeroUsize::MIN));
        // SAFETY: a new mapping at an address that the kernel chooses; its content is only ever seen through atomics.
        let first = unsafe { mmap(None, bytes, access(), MapFlags::MAP_SHARED, file, 0) }?;
        let first = first.cast();
        Ok(Self { first, bytes })
    }

    /// As [`Shared::map`], of memory that no file has.
    pub fn anonymous(words: NonZeroUsize) -> Result<Self> {
        let bytes = words.saturating_mul(NonZeroUsize::new(WORD).unwrap_or(NonZeroUsize::MIN));
        // SAFETY: as for `map`.
        let first = unsafe { mmap_anonymous(None, bytes, access(), MapFlags::MAP_SHARED) }?;
        let first = first.cast();
        Ok(Self { first, bytes })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has that many bytes, starts at a page and lives as long as `self`; every content is a valid
        // word, and other processes change it as other threads would.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.bytes.get() / WORD) }
    }

    /// Waits until word `index` is woken; returns at once if the lower half of its value is not `value`. False if
    /// `timeout` passed first. A word that can't be read is the error EFAULT.
    pub fn wait(&self, index: usize, value: u64, timeout: Option<Duration>) -> Result<bool> {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: FUTEX_WAIT reads the word and the timeout, null or valid; of an address that can't be read it says so.
        let waited = unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.half(index),
                libc::FUTEX_WAIT,
                value as u32,
                timeout,
            )
        };
        match Errno::result(waited) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
            Err(Errno::ETIMEDOUT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Wakes all who wait on word `index`, in any process.
    pub fn wake(&self, index: usize) -> Result<()> {
        // SAFETY: FUTEX_WAKE doesn't even read the word.
        let woken = unsafe { libc::syscall(libc::SYS_futex, self.half(index), libc::FUTEX_WAKE, i32::MAX) };
        Errno::result(woken).map(drop)
    }

    /// The address of the lower 32 bits of a word, which is what futex(2) works on. It is never read through here.
    fn half(&self, index: usize) -> *const u32 {
        let word = &raw const self.words()[index];
        let half = usize::from(cfg!(target_endian = "big"));
        word.cast::<u32>().wrapping_add(half)
    }
}

fn access() -> ProtFlags {
    ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no slice of it outlives the value.
        let unmapped = unsafe { munmap(self.first.cast(), self.bytes.get()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering::SeqCst;

    fn words(count: usize) -> NonZeroUsize {
        NonZeroUsize::new(count).unwrap()
    }

    fn file(bytes: u64) -> File {
        let memfd = nix::sys::memfd::memfd_create(c"shared", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let file = File::from(memfd);
        file.set_len(bytes).unwrap();
        file
    }

    #[test]
    fn two_mappings_of_a_file_are_one_memory() {
        let file = file(64);
        let (one, other) = (
            Shared::map(file.as_fd(), words(8)).unwrap(),
            Shared::map(file.as_fd(), words(8)).unwrap(),
        );
        one.words()[7].store(42, SeqCst);
        assert_eq!(other.words()[7].load(SeqCst), 42);
        assert_eq!(other.words().len(), 8);
    }

    #[test]
    fn who_waits_is_woken_through_another_mapping() {
        let file = file(64);
        let one = Shared::map(file.as_fd(), words(8)).unwrap();
        assert_eq!(one.wait(0, 1, None), Ok(true), "another value: no wait");
        assert_eq!(one.wait(0, 0, Some(Duration::from_millis(1))), Ok(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let other = Shared::map(file.as_fd(), words(8)).unwrap();
                other.words()[0].store(1, SeqCst);
                other.wake(0).unwrap();
            });
            while one.words()[0].load(SeqCst) == 0 {
                assert_eq!(one.wait(0, 0, Some(Duration::from_secs(10))), Ok(true));
            }
        });
    }

    #[test]
    fn a_shortened_file_is_an_error_and_no_signal() {
        let file = file(64);
        let shared = Shared::map(file.as_fd(), words(8)).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(shared.wait(0, 0, Some(Duration::from_millis(1))), Err(Errno::EFAULT));
        assert!(matches!(shared.wake(0), Ok(()) | Err(Errno::EFAULT)));
    }
}
