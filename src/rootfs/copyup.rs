//! `tmpcopyup`: a new tmpfs starts with a copy of the directory that it hides.

use super::error::{Error, Named};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, fchmod, fchown,
    fstat, futimens, linkat, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Copies what is in `from` to `to`, both `O_PATH` directories. `path` is for messages.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    Copy { links: HashMap::new() }.dir(from, to, path)
}

struct Copy {
    /// Files with more than one name, by device and inode, and the copy's directory and name.
    links: HashMap<(u64, u64), (OwnedFd, CString)>,
}

impl Copy {
    fn dir(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let from = openat(from, ".", flags, Mode::empty()).call(|| format!("open({path:?}, O_DIRECTORY)"))?;
        let entries = Dir::read_from(&from).call(|| format!("getdents64({path:?})"))?;
        for entry in entries {
            let entry = entry.call(|| format!("getdents64({path:?})"))?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                let path = path.join(&*name.to_string_lossy());
                self.entry(from.as_fd(), to, name.to_owned(), &path)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: CString, path: &Path) -> Result<(), Error> {
        let mut stat = statat(from, &name, AtFlags::SYMLINK_NOFOLLOW).call(|| format!("fstatat({path:?})"))?;
        let call = |what: &str| format!("{what}({path:?})");
        if let Some((dir, other)) = self.links.get(&(stat.st_dev, stat.st_ino)) {
            return linkat(dir, other, to, &name, AtFlags::empty()).call(|| call("linkat"));
        }
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let mode = Mode::from_raw_mode(stat.st_mode);
        let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, &name, Mode::RWXU).call(|| call("mkdirat"))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | nofollow;
                let below = openat(from, &name, flags, Mode::empty()).call(|| call("openat"))?;
                stat = fstat(&below).call(|| call("fstat"))?;
                let made = openat(to, &name, flags, Mode::empty()).call(|| call("openat"))?;
                self.dir(below.as_fd(), made.as_fd(), path)?;
                own(made.as_fd(), &stat, path)?;
            }
            FileType::RegularFile => {
                // Whoever shares the directory may have put a pipe there meanwhile, or a device without an end.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | nofollow;
                let mut data: File = openat(from, &name, flags, Mode::empty())
                    .call(|| call("openat"))?
                    .into();
                // Nor may the owner and the set-id bits of one file come to the contents of another.
                stat = fstat(&data).call(|| call("fstat"))?;
                if !FileType::from_raw_mode(stat.st_mode).is_file() {
                    return Err(Error::refuse(path, "was exchanged while it was copied"));
                }
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | nofollow;
                let mut made: File = openat(to, &name, flags, Mode::RUSR).call(|| call("openat"))?.into();
                std::io::copy(&mut data, &mut made).call(|| call("write"))?;
                own(made.as_fd(), &stat, path)?;
            }
            FileType::Symlink => {
                let target = readlinkat(from, &name, Vec::new()).call(|| call("readlinkat"))?;
                symlinkat(&target, to, &name).call(|| call("symlinkat"))?;
                chownat(to, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).call(|| call("fchownat"))?;
                utimensat(to, &name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW).call(|| call("utimensat"))?;
            }
            kind => {
                mknodat(to, &name, kind, mode, stat.st_rdev).call(|| call("mknodat"))?;
                chownat(to, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).call(|| call("fchownat"))?;
                chmodat(to, &name, mode, AtFlags::empty()).call(|| call("fchmodat"))?;
            }
        }
        if stat.st_nlink > 1 && !FileType::from_raw_mode(stat.st_mode).is_dir() {
            self.links.insert(
                (stat.st_dev, stat.st_ino),
                (to.try_clone_to_owned().call(|| call("dup"))?, name),
            );
        }
        Ok(())
    }
}

/// Owner first: chown(2) takes the set-id bits off.
fn own(made: BorrowedFd<'_>, stat: &Stat, path: &Path) -> Result<(), Error> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchown(made, Some(uid), Some(gid)).call(|| format!("fchown({path:?})"))?;
    fchmod(made, Mode::from_raw_mode(stat.st_mode)).call(|| format!("fchmod({path:?})"))?;
    futimens(made, &times(stat)).call(|| format!("futimens({path:?})"))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |sec, nsec| Timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}
