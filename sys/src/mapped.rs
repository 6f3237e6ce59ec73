//! A file's content, read where it is.

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;

/// The content of a file, mapped privately and for reading only: pages come from the page cache when they are looked at.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<c_void>,
    length: usize,
}

impl Mapped {
    /// Maps all of `file`. It has to be one that nobody shortens or writes to in place whom this process does not trust with
    /// everything, like a library that it loads: a shortened file ends the process with `SIGBUS`. Fails for an empty file.
    pub fn open(file: &File) -> std::io::Result<Self> {
        let length = file.metadata()?.len() as usize;
        let whole = NonZeroUsize::new(length).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        // SAFETY: a new private mapping, at an address that the kernel chooses.
        let start = unsafe { mmap(None, whole, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, file, 0) }?;
        Ok(Self { start, length })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is this object's, readable, and of this length; see `open` for changes of the file.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's, and no slice of it outlives the object.
        let unmapped = unsafe { munmap(self.start, self.length) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_is_the_file_s() {
        let path = std::env::current_exe().unwrap();
        let mapped = Mapped::open(&File::open(&path).unwrap()).unwrap();
        assert_eq!(&*mapped, std::fs::read(path).unwrap());
    }

    #[test]
    fn an_empty_file_and_a_directory_are_errors() {
        let path = std::env::temp_dir().join(format!("proa-mapped-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        assert!(Mapped::open(&File::open(&path).unwrap()).is_err());
        std::fs::remove_file(path).unwrap();
        assert!(Mapped::open(&File::open("/").unwrap()).is_err());
    }
}
