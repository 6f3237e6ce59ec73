//! Reading files whose paths others may have a say in.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// The longest `state.json` or `config.json` in bytes. A configuration with the largest seccomp profile that can be loaded
/// has one.
const LONGEST: u64 = 64 << 20;

/// Reads the regular file at `path`. Anything else, like a fifo, for whose writer open(2) would wait, is an error of the kind
/// `InvalidInput`, and a file of more than 64 MiB one of the kind `FileTooLarge`.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    contents(open(path, false, OFlags::empty())?)
}

/// As [`read`], for a file that nobody but proa should have made: a link is none.
pub fn read_own(path: &Path) -> Result<Vec<u8>> {
    contents(open(path, false, OFlags::NOFOLLOW)?)
}

/// Opens such a file for reading and writing.
pub fn open_own(path: &Path) -> Result<File> {
    open(path, true, OFlags::NOFOLLOW)
}

fn open(path: &Path, write: bool, further: OFlags) -> Result<File> {
    // NONBLOCK changes nothing for a regular file.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | further;
    let file = File::options()
        .read(true)
        .write(write)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

fn contents(file: File) -> Result<Vec<u8>> {
    let length = file.metadata()?.len().min(LONGEST);
    let mut bytes = Vec::with_capacity(length as usize + 1);
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > LONGEST {
        true => {
            let problem = format!("it is longer than {LONGEST} bytes");
            Err(Error::new(ErrorKind::FileTooLarge, problem))
        }
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_length_are_read() {
        let dir = std::env::temp_dir().join(format!("proa-files-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let at = |name: &str| dir.join(name);
        std::fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        File::create(at("long")).unwrap().set_len(LONGEST + 1).unwrap();
        assert_eq!(read(&at("file")).unwrap(), b"text");
        assert_eq!(read_own(&at("file")).unwrap(), b"text");
        assert_eq!(read(&at("link")).unwrap(), b"text");
        assert!(read_own(&at("link")).is_err());
        assert!(open_own(&at("link")).is_err());
        for name in ["fifo", "."] {
            let error = read(&at(name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
            assert!(open_own(&at(name)).is_err(), "{name}");
        }
        assert_eq!(read(&at("long")).unwrap_err().kind(), ErrorKind::FileTooLarge);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
