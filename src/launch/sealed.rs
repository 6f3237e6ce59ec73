//! Files and directories of the host, opened so that whoever gets hold of them can never write to them.
//!
//! They are shown in one detached, read-only overlay over all the directories that they are in (Linux 5.2). An overlay without
//! an upper layer is read-only as a file system, not only as a mount: no right in a container makes it writable. It is one
//! overlay, as the end of each is waited for when the last process that has mapped something of it ends. What is mapped from it
//! is the page cache of the host's file, which all containers share.

use super::image::Error;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proa_sys::errno::Raw;
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Where files and directories are opened for reading and execution only.
pub struct Sealed {
    overlay: Result<Overlay, Errno>,
}

impl Sealed {
    /// For these files, and these directories with all that is in them. Of files with the same name, those of the directory
    /// that is named first are found.
    pub fn new<'a>(paths: impl Iterator<Item = &'a Path>) -> Self {
        let overlay = Overlay::over(paths);
        if let Err(errno) = &overlay {
            tracing::debug!("no overlay over what init is executed from: {errno}");
        }
        Self { overlay }
    }

    /// Opens one of them.
    pub fn open(&self, path: &Path) -> Result<OwnedFd, Error> {
        let (program, shown) = (super::program, path.display());
        // Words are runc's, whose tests and readers know them.
        let sealed = match self
            .overlay
            .as_ref()
            .map_err(|errno| *errno)
            .and_then(|it| it.open(path))
        {
            Ok(sealed) => {
                tracing::debug!("{} exeseal: using overlayfs for sealed {shown}", program());
                sealed
            }
            // Not privileged, no overlayfs, a kernel before Linux 5.2, a file system that can't be below an overlay: what the
            // copy protects it protects as well.
            Err(errno) => {
                tracing::debug!("no overlay over {shown}: {errno}; it is copied");
                match path.is_dir() {
                    true => clone_of(path)?,
                    false => copy_of(path)?,
                }
            }
        };
        tracing::debug!("{} exeseal: using {shown} clone", program());
        Ok(sealed)
    }

    /// Whether a file can be shown in an overlay; if not, it is copied.
    pub fn by_overlay(path: &Path) -> Result<(), Errno> {
        Overlay::over([path].into_iter())?.open(path).map(drop)
    }

    /// The mount that what was opened is on. To close it is to unmount it, which waits for a grace period of RCU.
    pub fn into_mount(self) -> Option<OwnedFd> {
        self.overlay.ok().map(|overlay| overlay.mount)
    }
}

/// A directory of the host with what is in it at any time, for a process that a container may look into: what is found there
/// can be read, and there is no way up. Fails where there can't be an overlay.
pub fn directory(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let paths = || [path.as_path()].into_iter();
    let overlay = match Overlay::over(paths()) {
        // In a user namespace no layer may have mounts below it that are another one's, as there are below /sys.
        Err(Errno::EINVAL) => Overlay::beside(paths(), "/sys/class"),
        other => other,
    }?;
    // The layer was opened by its name, which leads elsewhere where something was mounted or exchanged meanwhile.
    let what = |stat: Stat| (stat.st_dev, stat.st_ino);
    let layer = overlay.layers.first().ok_or(Errno::ESTALE)?;
    let named = openat(CWD, layer, HANDLE | OFlags::DIRECTORY, Mode::empty()).map_err(raw)?;
    match what(fstat(&named).map_err(raw)?) == what(fstat(directory).map_err(raw)?) {
        true => openat(&overlay.mount, ".", HANDLE | OFlags::DIRECTORY, Mode::empty()).map_err(raw),
        false => Err(Errno::ESTALE),
    }
}

/// A detached, read-only overlay.
struct Overlay {
    mount: OwnedFd,
    /// The directories that it shows as one.
    layers: Vec<PathBuf>,
}

impl Overlay {
    fn over<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<Self, Errno> {
        Self::beside(paths, "/sys")
    }

    /// With `other` as the second layer of a single one.
    fn beside<'a>(paths: impl Iterator<Item = &'a Path>, other: &str) -> Result<Self, Errno> {
        use rustix::mount::{
            FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
        };
        let layers = layers(paths)?;
        let opened: Vec<OwnedFd> = layers
            .iter()
            .map(|layer| openat(CWD, layer, HANDLE | OFlags::DIRECTORY, Mode::empty()).map_err(raw))
            .collect::<Result<_, _>>()?;
        let mut lower: Vec<String> = opened
            .iter()
            .map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd()))
            .collect();
        if lower.len() == 1 {
            // Without an upper layer the kernel wants two lower ones: any directory that is always there, and not the file's.
            lower.push(other.into());
        }
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(raw)?;
        fsconfig_set_string(&context, "lowerdir", lower.join(":")).map_err(raw)?;
        // Inode numbers are to be the files' own.
        fsconfig_set_string(&context, "xino", "off").map_err(raw)?;
        fsconfig_create(&context).map_err(raw)?;
        let flags = MountAttrFlags::MOUNT_ATTR_RDONLY;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(raw)?;
        Ok(Self { mount, layers })
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let (file, real) = resolve(path)?;
        let within = |layer: &&PathBuf| real.starts_with(layer);
        let layer = self
            .layers
            .iter()
            .filter(within)
            .max_by_key(|layer| layer.as_os_str().len());
        let below = layer
            .and_then(|layer| real.strip_prefix(layer).ok())
            .ok_or(Errno::ESTALE)?;
        let meant = fstat(&file).map_err(raw)?;
        if below.as_os_str().is_empty() {
            return openat(&self.mount, ".", HANDLE | OFlags::DIRECTORY, Mode::empty()).map_err(raw);
        }
        let opened = openat(&self.mount, below, HANDLE | OFlags::NOFOLLOW, Mode::empty()).map_err(raw)?;
        // An overlay does not see what is mounted on its layers: a file that was bind-mounted there is another one.
        let what = |stat: &Stat| {
            (
                stat.st_ino,
                stat.st_mtime,
                stat.st_mtime_nsec,
                is_dir(stat),
                stat.st_size,
            )
        };
        match what(&fstat(&opened).map_err(raw)?) == what(&meant) {
            true => Ok(opened),
            false => Err(Errno::ESTALE),
        }
    }
}

fn raw(errno: rustix::io::Errno) -> Errno {
    errno.raw()
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What is at `path`, and where that really is.
fn resolve(path: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
    let file = openat(CWD, path, HANDLE, Mode::empty()).map_err(raw)?;
    let real = rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new()).map_err(raw)?;
    Ok((file, OsString::from_vec(real.into_bytes()).into()))
}

/// The directories that have all of `paths`, none of them below another one: the kernel refuses such layers.
fn layers<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<Vec<PathBuf>, Errno> {
    let mut layers: Vec<(PathBuf, u64)> = Vec::new();
    for path in paths {
        let (file, real) = resolve(path)?;
        let stat = fstat(&file).map_err(raw)?;
        let directory = match is_dir(&stat) {
            true => real,
            false => real.parent().ok_or(Errno::EINVAL)?.to_owned(),
        };
        let covers = |(one, device): &(PathBuf, u64), other: &Path, on: u64| *device == on && other.starts_with(one);
        if layers.iter().any(|layer| covers(layer, &directory, stat.st_dev)) {
            continue;
        }
        let new = (directory, stat.st_dev);
        layers.retain(|(layer, device)| !covers(&new, layer, *device));
        layers.push(new);
    }
    Ok(layers.into_iter().map(|(layer, _)| layer).collect())
}

/// A directory in a detached, read-only mount of its own, from which nothing else is reached. Without the right to mount, and
/// before Linux 5.12, it is the directory itself.
fn clone_of(path: &Path) -> Result<OwnedFd, Error> {
    use rustix::mount::OpenTreeFlags;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let cloned = rustix::mount::open_tree(CWD, path, flags).map_err(raw);
    let read_only = cloned.and_then(|tree| proa_sys::mount::set_read_only(tree.as_fd()).map(|()| tree));
    match read_only {
        Ok(tree) => Ok(tree),
        Err(errno) => {
            tracing::debug!("no read-only clone of {}: {errno}", path.display());
            openat(CWD, path, HANDLE, Mode::empty()).map_err(|errno| Error::Open {
                call: "open",
                path: path.into(),
                source: errno.into(),
            })
        }
    }
}

/// A copy that nobody can change: memfd_create(2) with every seal.
fn copy_of(path: &Path) -> Result<OwnedFd, Error> {
    let failed = |call| {
        move |source| Error::Open {
            call,
            path: path.into(),
            source,
        }
    };
    // MFD_EXEC (Linux 6.3) says that an executable memfd is meant, which vm.memfd_noexec may demand.
    let exec = MFdFlags::from_bits_retain(0x10);
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let copy = match memfd_create(c"proa", flags | exec) {
        Err(Errno::EINVAL) => memfd_create(c"proa", flags),
        other => other,
    }
    .map_err(|errno| failed("memfd_create for")(errno.into()))?;
    let mut from = File::open(path).map_err(failed("open"))?;
    let mut to = File::from(copy);
    std::io::copy(&mut from, &mut to).map_err(failed("copy"))?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&to, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| failed("seal the copy of")(errno.into()))?;
    Ok(to.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn no_layer_is_below_another_one() {
        let top = std::env::temp_dir().join(format!("proa-layers-{}", std::process::id()));
        let top_of = |name: &str| top.join(name);
        fs::create_dir_all(top_of("lib/engine")).unwrap();
        fs::create_dir_all(top_of("bin")).unwrap();
        for file in ["lib/hull", "lib/engine/ld.so", "bin/proa"] {
            fs::write(top_of(file), file).unwrap();
        }
        std::os::unix::fs::symlink("engine/ld.so", top_of("lib/link")).unwrap();
        let real = top.canonicalize().unwrap();
        let of = |names: &[&str]| {
            let paths: Vec<PathBuf> = names.iter().map(|name| top_of(name)).collect();
            let layers = layers(paths.iter().map(PathBuf::as_path)).unwrap();
            let below = layers
                .iter()
                .map(|layer| layer.strip_prefix(&real).unwrap().to_str().unwrap().to_owned());
            below.collect::<Vec<_>>()
        };
        assert_eq!(of(&["lib/engine", "lib/engine/ld.so"]), ["lib/engine"]);
        assert_eq!(of(&["lib/engine", "bin/proa"]), ["lib/engine", "bin"]);
        assert_eq!(of(&["lib/engine", "bin/proa", "lib/hull"]), ["bin", "lib"]);
        assert_eq!(of(&["lib/hull", "lib/engine"]), ["lib"]);
        assert_eq!(of(&["lib/link"]), ["lib/engine"]);
        fs::remove_dir_all(top).unwrap();
    }
}
