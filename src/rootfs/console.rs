//! The container's terminal.

use super::Console;
use super::error::{Error, Named};
use super::resolve::{Missing, Root};
use super::tree::{self, Source};
use rustix::fs::{FileType, FsWord, OFlags, fstat, fstatfs, makedev};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use std::os::fd::AsFd;
use std::path::Path;

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS: FsWord = 0x1cd1;

/// Opens a pair by the multiplexer that `ptmx` below `at` is. The slave comes from the master (TIOCGPTPEER, Linux 4.13), never from a
/// path that the image could have prepared (CVE-2025-52565).
pub(super) fn open(at: &Root, ptmx: &Path) -> Result<Console, Error> {
    let path = Path::new("/dev/pts/ptmx");
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = at
        .open_straight(ptmx, flags)
        .call(|| format!("openat2(root, {path:?}, O_RDWR|O_NOCTTY)"))?;
    let stat = fstat(&master).call(|| format!("fstat({path:?})"))?;
    let fs = fstatfs(&master).call(|| format!("fstatfs({path:?})"))?;
    let is_ptmx = FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == makedev(5, 2);
    if !is_ptmx || fs.f_type != DEVPTS {
        return Err(Error::refuse(path, "is not the multiplexer of a devpts"));
    }
    unlockpt(&master).call(|| "ioctl(ptmx, TIOCSPTLCK)")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).call(|| "ioctl(ptmx, TIOCGPTPEER)")?;
    Ok(Console { master, slave })
}

/// Mounts that very slave on `console` below `dev`.
pub(super) fn show(dev: &Root, console: &Console) -> Result<(), Error> {
    let (path, name) = (Path::new("/dev/console"), Path::new("/console"));
    let place = match dev.lookup(name, true)? {
        Some(place) => place,
        None => dev.make(name, Missing::File)?,
    };
    let stat = fstat(&place.fd).call(|| format!("fstat({path:?})"))?;
    if place.real != name || FileType::from_raw_mode(stat.st_mode).is_symlink() {
        return Err(Error::refuse(path, "is a symbolic link"));
    }
    tree::bind(Source::Fd(console.slave.as_fd()), false, place.fd.as_fd(), name, dev).map(drop)
}
