//! `/dev`: nodes and the links of every container (config-linux.md, "Default Devices"; runc adds `core`).

use super::error::{Error, Named};
use super::mounts::Made;
use super::resolve::{Missing, Root, make_one};
use super::tree::{self, Source};
use super::{Device, DeviceKind, Mount, Plan};
use proa_sys::Errno;
use proa_sys::errno::Raw;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, makedev, mknodat, openat, statat, symlinkat,
    unlinkat,
};
use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The container's own `/dev`: from here on it is known by its descriptor.
#[derive(Debug)]
pub(super) struct Dev {
    root: Root,
    null: OnceCell<OwnedFd>,
}

impl Dev {
    /// An `O_PATH` descriptor of its `null`.
    pub(super) fn null(&self) -> Result<BorrowedFd<'_>, Error> {
        if self.null.get().is_none() {
            let null = null(&self.root, Path::new("null"))?;
            // It was empty: there is one thread.
            self.null.set(null).ok();
        }
        self.null
            .get()
            .map(AsFd::as_fd)
            .ok_or_else(|| Error::refuse(Path::new(NULL), "is gone"))
    }

    /// The directory itself.
    pub(super) fn root(&self) -> &Root {
        &self.root
    }
}

const NULL: &str = "/dev/null";

/// Makes the nodes of the plan, `ptmx`, and the links, and gives the standard streams the container's null device.
pub(super) fn all(plan: &Plan, root: &Root, made: &mut Made<'_>) -> Result<Dev, Error> {
    let dev = match made.dev.take() {
        Some(mounted) => mounted,
        None => straight(root, Path::new("/dev"))?,
    };
    let dev = Dev {
        root: Root::new(dev),
        null: OnceCell::new(),
    };
    for device in &plan.devices {
        one(plan, device, &dev, (root, made)).map_err(|cause| Error::Device {
            path: device.path.clone(),
            cause: cause.into(),
        })?;
    }
    links(root, dev.root.as_fd())?;
    reopen_null(&dev)?;
    Ok(dev)
}

/// The directory `path` below `root`, made if it is missing. No symbolic link may lead there: it could lead to a volume of the
/// host, where a device node must never appear.
pub(super) fn straight(root: &Root, path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let refuse = || Error::refuse(path, "is reached through a symbolic link");
    match root.open_straight(path, flags) {
        Ok(fd) => Ok(fd),
        Err(Errno::ENOENT) => match root.make(path, Missing::Dir)? {
            made if made.real == path => Ok(made.fd),
            _ => Err(refuse()),
        },
        Err(Errno::ELOOP) => Err(refuse()),
        Err(errno) => Err(errno).call(|| format!("openat2(root, {path:?}, O_PATH|O_DIRECTORY)")),
    }
}

/// The directory `path` for a node. The bundle may have put a volume there; a link of the image may not lead to one, nor have led
/// one there.
fn directory(dev: &Dev, path: &Path, (root, made): (&Root, &Made<'_>)) -> Result<OwnedFd, Error> {
    let (fd, real) = match path.strip_prefix("/dev") {
        Ok(inside) => (straight(&dev.root, &Path::new("/").join(inside))?, path.to_owned()),
        Err(_) => {
            let place = root.make_dir(path)?;
            (place.fd, place.real)
        }
    };
    let led = |(mount, at): &&(&Mount, PathBuf)| real.starts_with(at) && (real != path || *at != mount.destination);
    match made.binds.iter().find(led) {
        None => Ok(fd),
        Some((mount, _)) => Err(Error::refuse(
            path,
            format!("is in the volume of mounts[{}], by a symbolic link", mount.index),
        )),
    }
}

fn one(plan: &Plan, device: &Device, dev: &Dev, beside: (&Root, &Made<'_>)) -> Result<(), Error> {
    let Some(name) = device.path.file_name() else {
        return Err(Error::refuse(&device.path, "is no name for a device"));
    };
    let parent = device.path.parent().unwrap_or(Path::new("/"));
    let made;
    let dir = if parent == Path::new("/dev") {
        dev.root.as_fd()
    } else {
        made = directory(dev, parent, beside)?;
        made.as_fd()
    };
    let root = beside.0;
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
        give(device, dir, name)?;
    }
    Ok(())
}

/// Gives a node to its owner, if it is still there: others may share the directory.
pub(super) fn give(device: &Device, dir: BorrowedFd<'_>, name: &Path) -> Result<(), Error> {
    let path = &device.path;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(dir, name, flags, Mode::empty()).call(|| format!("open({path:?}, O_PATH|O_NOFOLLOW)"))?;
    if !device.is(&fstat(&node).call(|| format!("fstat({path:?})"))?) {
        return Err(Error::refuse(path, "was exchanged while it was made"));
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(&node, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
        .call(|| format!("chown({path:?}, {}, {})", device.uid, device.gid))?;
    // chown(2) takes set-id bits off.
    if device.mode & 0o6000 != 0 {
        let mode = Mode::from_raw_mode(device.mode);
        rustix::fs::chmod(tree::magic(node.as_fd()), mode).call(|| format!("chmod({path:?})"))?;
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

    pub(super) fn number(&self) -> u64 {
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
        Err(rustix::io::Errno::NOENT) => {
            make_one(dir, name.as_os_str(), Missing::File).call(|| format!("open({path:?}, O_CREAT|O_EXCL)"))?
        }
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
    match root.open_straight(Path::new("/proc/kcore"), OFlags::PATH) {
        Ok(_) => link("/proc/kcore", "core"),
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => Ok(()),
        Err(errno) => Err(errno).call(|| "openat2(root, \"/proc/kcore\", O_PATH)"),
    }
}

/// The number of `/dev/null`.
pub(super) fn is_null(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == makedev(1, 3)
}

/// Opens the container's null device, `path` below `at`, and makes sure that it is one (CVE-2025-31133).
pub(super) fn null(at: &Root, path: &Path) -> Result<OwnedFd, Error> {
    let null = at
        .open_straight(path, OFlags::PATH | OFlags::NOFOLLOW)
        .call(|| "openat2(root, \"/dev/null\", O_PATH|O_NOFOLLOW)")?;
    if is_null(&fstat(&null).call(|| "fstat(\"/dev/null\")")?) {
        return Ok(null);
    }
    Err(Error::refuse(Path::new(NULL), "is not the null device"))
}

/// Standard streams that are the host's `/dev/null` become the container's: the host's node is on a mount that is gone
/// from the container, where `/proc/self/fd/0` could not be opened.
fn reopen_null(dev: &Dev) -> Result<(), Error> {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let mut opened: Option<OwnedFd> = None;
    for (number, stream) in streams.into_iter().enumerate() {
        match fstat(stream) {
            Ok(stat) if is_null(&stat) => {}
            Ok(_) => continue,
            Err(errno) if errno.raw() == Errno::EBADF => continue,
            Err(errno) => return Err(errno).call(|| format!("fstat({number})")),
        }
        let null = match &opened {
            Some(null) => null,
            None => {
                let node = tree::magic(dev.null()?);
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                let null = openat(CWD, &node, flags, Mode::empty()).call(|| "open(<\"/dev/null\">, O_RDWR)")?;
                opened.insert(null)
            }
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
