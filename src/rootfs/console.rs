//! The container's terminal.

use super::Console;
use super::error::{Error, Named};
use super::resolve::{Missing, Root};
use super::tree::{self, Source};
use rustix::fs::{FileType, FsWord, OFlags, ResolveFlags, fstat, fstatfs, makedev};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use std::os::fd::AsFd;
use std::path::Path;

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS: FsWord = 0x1cd1;

/// Opens a pair in the container's devpts. The slave comes from the master (TIOCGPTPEER, Linux 4.13), never from a path
/// that the image could have prepared (CVE-2025-52565), and it is that very file that appears as `/dev/console`.
pub(super) fn open(root: &Root, mount: bool) -> Result<Console, Error> {
    let path = Path::new("/dev/pts/ptmx");
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = root
        .open_with(path, flags, ResolveFlags::NO_SYMLINKS)
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
    if mount {
        show(root, &slave)?;
    }
    Ok(Console { master, slave })
}

fn show(root: &Root, slave: &impl AsFd) -> Result<(), Error> {
    let path = Path::new("/dev/console");
    let place = match root.lookup(path, true)? {
        Some(place) => place,
        None => root.make(path, Missing::File)?,
    };
    if place.real != path {
        return Err(Error::refuse(path, "is reached through a symbolic link"));
    }
    let stat = fstat(&place.fd).call(|| format!("fstat({path:?})"))?;
    if FileType::from_raw_mode(stat.st_mode).is_symlink() {
        return Err(Error::refuse(path, "is a symbolic link"));
    }
    tree::bind(Source::Fd(slave.as_fd()), false, place.fd.as_fd(), path, root).map(drop)
}
