//! `/dev`: nodes and the links of every container (config-linux.md, "Default Devices"; runc adds `core`).

use super::error::{Error, Named};
use super::resolve::{Missing, Root};
use super::tree::{self, Source};
use super::{Device, DeviceKind, Plan};
use proa_sys::Errno;
use proa_sys::errno::Raw;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chownat, fstat, makedev, mknodat, openat,
    statat, symlinkat, unlinkat,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Makes the nodes of the plan, `ptmx`, and the links.
pub(super) fn all(plan: &Plan, root: &Root) -> Result<(), Error> {
    let dev = directory(root, Path::new("/dev"))?;
    for device in &plan.devices {
        one(plan, device, &dev, root).map_err(|cause| Error::Device {
            path: device.path.clone(),
            cause: cause.into(),
        })?;
    }
    links(root, dev.as_fd())
}

/// A directory for nodes. In `/dev` a symbolic link of the image could lead to a volume of the host, where a device node
/// must never appear.
fn directory(root: &Root, path: &Path) -> Result<OwnedFd, Error> {
    if !path.starts_with("/dev") {
        return root.make_dir(path);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let refuse = || Error::refuse(path, "is reached through a symbolic link");
    match root.open_with(path, flags, ResolveFlags::NO_SYMLINKS) {
        Ok(fd) => Ok(fd),
        Err(Errno::ENOENT) => match root.make(path, Missing::Dir)? {
            made if made.real == path => Ok(made.fd),
            _ => Err(refuse()),
        },
        Err(Errno::ELOOP) => Err(refuse()),
        Err(errno) => Err(errno).call(|| format!("openat2(root, {path:?}, O_PATH|O_DIRECTORY)")),
    }
}

fn one(plan: &Plan, device: &Device, dev: &OwnedFd, root: &Root) -> Result<(), Error> {
    let Some(name) = device.path.file_name() else {
        return Err(Error::refuse(&device.path, "is no name for a device"));
    };
    let parent = device.path.parent().unwrap_or(Path::new("/"));
    let made;
    let dir = if parent == Path::new("/dev") {
        dev.as_fd()
    } else {
        made = directory(root, parent)?;
        made.as_fd()
    };
    let name = Path::new(name);
    // In a user namespace a node that mknod(2) would make can't be opened.
    if plan.userns {
        return show_host(device, dir, name, root);
    }
    let call = || {
        format!(
            "mknod({:?}, {:?}, {}:{})",
            device.path, device.kind, device.major, device.minor
        )
    };
    let mode = Mode::from_raw_mode(device.mode);
    match mknodat(dir, name, device.file_type(), mode, device.number()) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return existing(device, dir, name),
        Err(errno @ rustix::io::Errno::PERM) => {
            return show_host(device, dir, name, root).map_err(|instead| Error::Instead {
                cause: Box::new(Error::Call {
                    call: call(),
                    errno: errno.raw(),
                }),
                instead: Box::new(instead),
            });
        }
        Err(errno) => return Err(errno).call(call),
    }
    // The node has our owner, and its mode is exact because the mask is empty.
    if (device.uid, device.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .call(|| format!("chown({:?}, {}, {})", device.path, device.uid, device.gid))?;
        // chown(2) takes set-id bits off.
        if device.mode & 0o6000 != 0 {
            rustix::fs::chmodat(dir, name, mode, AtFlags::empty()).call(|| format!("chmod({:?})", device.path))?;
        }
    }
    Ok(())
}

impl Device {
    fn file_type(&self) -> FileType {
        match self.kind {
            DeviceKind::Char => FileType::CharacterDevice,
            DeviceKind::Block => FileType::BlockDevice,
            DeviceKind::Fifo => FileType::Fifo,
        }
    }

    fn number(&self) -> u64 {
        if self.kind == DeviceKind::Fifo {
            0
        } else {
            makedev(self.major, self.minor)
        }
    }

    /// Whether a file is this device: a fifo has no number.
    fn is(&self, stat: &Stat) -> bool {
        FileType::from_raw_mode(stat.st_mode) == self.file_type()
            && (self.kind == DeviceKind::Fifo || stat.st_rdev == self.number())
    }
}

/// "If a file already exists at path that does not match the requested device, the runtime MUST generate an error."
fn existing(device: &Device, dir: BorrowedFd<'_>, name: &Path) -> Result<(), Error> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).call(|| format!("lstat({:?})", device.path))?;
    if device.is(&stat) {
        return Ok(());
    }
    Err(Error::refuse(
        &device.path,
        "exists already and is another kind of file",
    ))
}

/// Bind-mounts the host's node of the same path.
fn show_host(device: &Device, dir: BorrowedFd<'_>, name: &Path, root: &Root) -> Result<(), Error> {
    let path = &device.path;
    let host = openat(
        CWD,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .call(|| format!("open({path:?}, O_PATH)"))?;
    let stat = fstat(&host).call(|| format!("fstat({path:?})"))?;
    if !device.is(&stat) {
        return Err(Error::refuse(path, "is another device on the host"));
    }
    let handle = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = match openat(dir, name, handle, Mode::empty()) {
        Ok(place) => place,
        Err(rustix::io::Errno::NOENT) => root.make(path, Missing::File)?.fd,
        Err(errno) => return Err(errno).call(|| format!("open({path:?}, O_PATH|O_NOFOLLOW)")),
    };
    tree::bind(Source::Fd(host.as_fd()), false, place.as_fd(), path, root).map(drop)
}

fn links(root: &Root, dev: BorrowedFd<'_>) -> Result<(), Error> {
    // Whatever an image has there: only the container's own devpts may answer.
    match unlinkat(dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno).call(|| "unlink(\"/dev/ptmx\")"),
    }
    symlinkat("pts/ptmx", dev, "ptmx").call(|| "symlink(\"pts/ptmx\", \"/dev/ptmx\")")?;
    let link = |target: &str, name: &str| match symlinkat(target, dev, name) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).call(|| format!("symlink({target:?}, \"/dev/{name}\")")),
    };
    link("/proc/self/fd", "fd")?;
    link("/proc/self/fd/0", "stdin")?;
    link("/proc/self/fd/1", "stdout")?;
    link("/proc/self/fd/2", "stderr")?;
    match root.open_with(Path::new("/proc/kcore"), OFlags::PATH, ResolveFlags::NO_SYMLINKS) {
        Ok(_) => link("/proc/kcore", "core"),
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => Ok(()),
        Err(errno) => Err(errno).call(|| "openat2(root, \"/proc/kcore\", O_PATH)"),
    }
}

/// The number of `/dev/null`.
pub(super) fn is_null(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == makedev(1, 3)
}

/// Opens the container's `/dev/null` and makes sure that it is one (CVE-2025-31133).
pub(super) fn open_null(root: &Root, flags: OFlags) -> Result<OwnedFd, Error> {
    let path = Path::new("/dev/null");
    let null = root
        .open_with(path, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS)
        .call(|| "openat2(root, \"/dev/null\", O_PATH|O_NOFOLLOW)")?;
    if !is_null(&fstat(&null).call(|| "fstat(\"/dev/null\")")?) {
        return Err(Error::refuse(path, "is not the null device"));
    }
    if flags.contains(OFlags::PATH) {
        return Ok(null);
    }
    let opened = root.open_with(path, flags | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS);
    let opened = opened.call(|| format!("openat2(root, \"/dev/null\", {flags:?})"))?;
    if is_null(&fstat(&opened).call(|| "fstat(\"/dev/null\")")?) {
        return Ok(opened);
    }
    Err(Error::refuse(path, "is not the null device"))
}

/// Standard streams that are the host's `/dev/null` become the container's: the host's node is on a mount that is gone
/// from the container, where `/proc/self/fd/0` could not be opened.
pub(super) fn reopen_null(root: &Root) -> Result<(), Error> {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let mut null = None;
    for (number, stream) in streams.into_iter().enumerate() {
        match fstat(stream) {
            Ok(stat) if is_null(&stat) => {}
            Ok(_) => continue,
            Err(errno) if errno.raw() == Errno::EBADF => continue,
            Err(errno) => return Err(errno).call(|| format!("fstat({number})")),
        }
        let null = match &null {
            Some(null) => null,
            None => match open_null(root, OFlags::RDWR) {
                Ok(opened) => null.insert(opened),
                Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        let duplicated = match number {
            0 => rustix::stdio::dup2_stdin(null),
            1 => rustix::stdio::dup2_stdout(null),
            _ => rustix::stdio::dup2_stderr(null),
        };
        duplicated.call(|| format!("dup2(<\"/dev/null\">, {number})"))?;
    }
    Ok(())
}
