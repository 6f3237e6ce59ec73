//! Reading a file of which others have the same open file description.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Reads a file from its start, with pread(2): the offset is neither used nor moved. A module's descriptor is shared between
/// the container's init and the `proa` that compiles beside it (pidfd_getfd(2)), and both read it at the same time.
#[derive(Debug)]
pub struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> FromStart<'a> {
    /// Of all of `file`, wherever its offset is.
    pub fn new(file: &'a File) -> Self {
        Self { file, at: 0 }
    }
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::{Seek, Write};

    #[test]
    fn who_shares_the_offset_is_not_disturbed() {
        let mut file = File::from(memfd_create(c"shared", MFdFlags::MFD_CLOEXEC).unwrap());
        let bytes: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        file.write_all(&bytes).unwrap();
        let mut shared = file.try_clone().unwrap();
        for offset in [0, 5, 100_000] {
            shared.seek(io::SeekFrom::Start(offset)).unwrap();
            let mut one = FromStart::new(&file).take(70_000);
            let mut read = Vec::new();
            one.read_to_end(&mut read).unwrap();
            assert!(read == bytes[..70_000]);
            assert_eq!(shared.stream_position().unwrap(), offset);
        }
        let mut all = Vec::new();
        FromStart::new(&file).read_to_end(&mut all).unwrap();
        assert!(all == bytes);
    }
}
