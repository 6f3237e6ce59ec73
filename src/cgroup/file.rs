//! Reading and writing the small files of a cgroup.

use super::Error;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use proa_sys::errno::Raw;
use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, OFlags, openat};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A cgroup directory in one hierarchy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dir<'a>(pub &'a Path);

impl Dir<'_> {
    /// Writes `value`, that `field` of config.json asked for, to `file`. A missing file means a missing controller.
    pub fn set(
        self,
        controller: &'static str,
        field: &'static str,
        file: &str,
        value: impl ToString,
    ) -> Result<(), Error> {
        let value = value.to_string();
        let path = self.file(file)?;
        write(&path, &value).map_err(|errno| match errno {
            Errno::ENOENT => Error::NoController {
                controller,
                field,
                file: path.display().to_string(),
            },
            errno => Error::Write {
                field,
                path,
                value,
                errno,
            },
        })
    }

    /// Reads `file` as text, trimmed.
    pub fn text(self, file: &str) -> Result<String, Error> {
        let path = self.file(file)?;
        match read(&path) {
            Ok(text) => Ok(text.trim_end().to_owned()),
            Err(errno) => Err(Error::Call {
                call: "read",
                path,
                errno,
            }),
        }
    }

    /// Reads `file` as one number; `max` is `u64::MAX`, negative numbers are 0.
    pub fn number(self, file: &str) -> Result<u64, Error> {
        let text = self.text(file)?;
        number(&text).ok_or_else(|| Error::Malformed {
            path: self.0.join(file),
            content: text,
        })
    }

    /// As [`Dir::number`], `None` where the file (hence the controller or the knob) doesn't exist.
    pub fn number_if_any(self, file: &str) -> Result<Option<u64>, Error> {
        if_any(self.number(file))
    }

    /// As [`Dir::text`], `None` where the file doesn't exist.
    pub fn text_if_any(self, file: &str) -> Result<Option<String>, Error> {
        if_any(self.text(file))
    }

    /// Whether `file` exists.
    pub fn has(self, file: &str) -> bool {
        self.0.join(file).exists()
    }

    /// The path of `file`, which parts of config.json may have named: a slash would leave the cgroup.
    pub fn file(self, file: &str) -> Result<PathBuf, Error> {
        if file.contains('/') {
            let problem = "must be a file name (no slashes)".to_owned();
            return Err(Error::Field {
                field: format!("linux.resources: cgroup file {file:?}"),
                problem,
            });
        }
        Ok(self.0.join(file))
    }
}

/// Turns "no such file" and "the cgroup was just removed" into `None`.
pub(super) fn if_any<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One number as cgroup files print it.
pub(super) fn number(text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        text if text.starts_with('-') => text.parse::<i64>().ok().map(|_| 0),
        text => text.parse().ok(),
    }
}

/// The value of `key` in a flat keyed file (`key value` lines).
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ').and_then(number))
}

/// Opens an existing file for writing.
pub(super) fn open_for_write(path: &Path) -> Result<OwnedFd, Errno> {
    // No O_CREAT: on a cgroup file system it would turn "no such file" into a permission error.
    open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Writes `value` with one write(2), as cgroup files demand.
pub(super) fn write(path: &Path, value: &str) -> Result<(), Errno> {
    write_fd(open_for_write(path)?, value)
}

/// As [`write`], to an open file.
pub(super) fn write_fd(fd: impl AsFd, value: &str) -> Result<(), Errno> {
    loop {
        match nix::unistd::write(&fd, value.as_bytes()) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Reads a whole file.
pub(super) fn read(path: &Path) -> Result<String, Errno> {
    read_at(CWD, path)
}

/// As [`read`], from an open directory.
pub(super) fn read_at(dir: impl AsFd, name: &Path) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = openat(dir, name, flags, rustix::fs::Mode::empty()).map_err(|errno| errno.raw())?;
    // Room for nearly every file of a cgroup and of /proc, so that one read(2) gets it and the next its end.
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if bytes.spare_capacity_mut().is_empty() {
            bytes.reserve(bytes.len());
        }
        match rustix::io::read(&fd, spare_capacity(&mut bytes)) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.raw()),
        }
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number("max"), Some(u64::MAX));
        assert_eq!(number("-1"), Some(0));
        assert_eq!(number("9223372036854771712"), Some(9_223_372_036_854_771_712));
        assert_eq!(number("x"), None);
    }

    #[test]
    fn a_file_of_any_length_is_read_whole() {
        let path = std::env::temp_dir().join(format!("proa-cgroup-file-{}", std::process::id()));
        for length in [0, 4095, 4096, 4097, 20_000] {
            let text: String = ('a'..='z').cycle().take(length).collect();
            std::fs::write(&path, &text).unwrap();
            assert_eq!(read(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn keys_match_whole_words() {
        let text = "oom 3\noom_kill 2\n";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom"), Some(3));
        assert_eq!(keyed(text, "oo"), None);
    }

    #[test]
    fn file_names_stay_inside() {
        assert!(
            Dir(Path::new("/sys/fs/cgroup/x"))
                .file("hugetlb.1/../../y.max")
                .is_err()
        );
    }
}
