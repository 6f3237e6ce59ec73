//! Masked and read-only paths, the read-only root, and what has to become read-only late.

use super::devices::{Dev, null};
use super::error::{Error, Named};
use super::resolve::Root;
use super::tree::{self, Change, Source};
use super::{Kind, Mount};
use proa_sys::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags as Attr, MountFlags as Flag, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

const READONLY: Change = Change {
    set: Attr::MOUNT_ATTR_RDONLY.bits(),
    clear: 0,
    recursive: false,
};

/// Whether a mount is asked to be read-only but is written to by the runtime before.
pub(super) fn is_late_readonly(mount: &Mount) -> bool {
    mount.options.has(Flag::RDONLY)
        && match &mount.kind {
            Kind::Fs(name) => name == "tmpfs" || mount.destination == Path::new("/dev"),
            Kind::Bind | Kind::Cgroup => false,
        }
}

/// Makes read-only what [`is_late_readonly`].
pub(super) fn late_readonly(late: Vec<(&Mount, OwnedFd)>) -> Result<(), Error> {
    for (mount, tree) in late {
        tree::change(tree.as_fd(), READONLY)
            .call(|| format!("mount_setattr({:?}, MOUNT_ATTR_RDONLY)", mount.destination))?;
    }
    Ok(())
}

/// Makes the root read-only.
pub(super) fn root(root: &Root) -> Result<(), Error> {
    tree::change(root.as_fd(), READONLY).call(|| "mount_setattr(\"/\", MOUNT_ATTR_RDONLY)")
}

/// Bind-mounts each path on itself, read-only. What is missing is ignored.
pub(super) fn readonly(paths: &[PathBuf], root: &Root) -> Result<(), Error> {
    for path in paths {
        let protect = || -> Result<(), Error> {
            let Some(place) = root.lookup_to_cover(path)? else {
                return Ok(());
            };
            let place = place.as_fd();
            match tree::detached(Source::Fd(place), true) {
                Ok(tree) => {
                    // Read-only before anything can see it, where the kernel can do that.
                    let early = tree::change_new(tree.as_fd(), READONLY);
                    tree::attach(tree.as_fd(), place).call(|| format!("move_mount({path:?})"))?;
                    let done = match early {
                        Err(Errno::ENOSYS) => tree::change_classic(tree.as_fd(), READONLY),
                        other => other,
                    };
                    done.call(|| format!("mount_setattr({path:?}, MOUNT_ATTR_RDONLY)"))
                }
                Err(errno) if tree::unsupported(errno) => {
                    let tree = tree::bind_classic(Source::Fd(place), true, place, path, root)?;
                    tree::change_classic(tree.as_fd(), READONLY)
                        .call(|| format!("mount(NULL, {path:?}, NULL, MS_REMOUNT|MS_BIND|MS_RDONLY)"))
                }
                Err(errno) => Err(errno).call(|| format!("open_tree({path:?}, OPEN_TREE_CLONE|AT_RECURSIVE)")),
            }
        };
        protect().map_err(|cause| failed("linux.readonlyPaths", path, cause))?;
    }
    Ok(())
}

fn failed(field: &'static str, path: &Path, cause: Error) -> Error {
    Error::Protect {
        field,
        path: path.into(),
        cause: Box::new(cause),
    }
}

/// Covers each path: a directory with an empty read-only tmpfs, anything else with `/dev/null`. What is missing is
/// ignored.
pub(super) fn mask(paths: &[PathBuf], root: &Root, dev: Option<&Dev>, label: Option<&str>) -> Result<(), Error> {
    let mut covers = Covers {
        dev,
        null: None,
        empty: None,
    };
    for path in paths {
        let cover = || -> Result<(), Error> {
            let Some(place) = root.lookup_to_cover(path)? else {
                return Ok(());
            };
            if tree::dir(place.as_fd())? {
                covers.dir(place.as_fd(), path, label)
            } else {
                covers.file(place.as_fd(), path, root)
            }
        };
        let mut cover = cover;
        cover().map_err(|cause| failed("linux.maskedPaths", path, cause))?;
    }
    Ok(())
}

/// What masks are made of; one of each serves all paths.
struct Covers<'a> {
    dev: Option<&'a Dev>,
    /// The `/dev/null` of a container whose `/dev` is not its own.
    null: Option<OwnedFd>,
    /// The empty tmpfs, where it is mounted first.
    empty: Option<OwnedFd>,
}

impl Covers<'_> {
    fn file(&mut self, place: BorrowedFd<'_>, path: &Path, root: &Root) -> Result<(), Error> {
        let null = match (self.dev, &mut self.null) {
            (Some(dev), _) => dev.null()?,
            (None, Some(null)) => (*null).as_fd(),
            (None, none) => {
                let opened: &OwnedFd = none.insert(null(root, Path::new("/dev/null"))?);
                opened.as_fd()
            }
        };
        match tree::detached(Source::Fd(null), false) {
            Ok(tree) => tree::attach(tree.as_fd(), place).call(|| format!("move_mount(<\"/dev/null\">, {path:?})")),
            Err(errno) if tree::unsupported(errno) => {
                tree::bind_classic(Source::Fd(null), false, place, path, root).map(drop)
            }
            Err(errno) => Err(errno).call(|| "open_tree(\"/dev/null\", OPEN_TREE_CLONE)"),
        }
    }

    /// A copy of a mount is much cheaper for the kernel than another file system, and nobody can write to it.
    fn dir(&mut self, place: BorrowedFd<'_>, path: &Path, label: Option<&str>) -> Result<(), Error> {
        let tree = match &self.empty {
            Some(first) => tree::detached(Source::Fd(first.as_fd()), false).map_err(|errno| ("open_tree", errno)),
            None => empty_tmpfs(label),
        };
        match tree {
            Ok(tree) => {
                tree::attach(tree.as_fd(), place).call(|| format!("move_mount(<tmpfs>, {path:?})"))?;
                self.empty.get_or_insert(tree);
                Ok(())
            }
            Err((_, errno)) if tree::unsupported(errno) => {
                let data = label.map(|label| format!("context=\"{label}\"")).unwrap_or_default();
                tree::mount_new(Path::new("tmpfs"), place, "tmpfs", Flag::RDONLY.bits(), &data, path)?;
                rustix::process::chdir("/").call(|| "chdir(\"/\")")
            }
            Err((call, errno)) => Err(errno).call(|| format!("{call}(tmpfs for {path:?})")),
        }
    }
}

/// A detached tmpfs, read-only as a file system and as a mount (Linux 5.2).
fn empty_tmpfs(label: Option<&str>) -> Result<OwnedFd, (&'static str, Errno)> {
    use proa_sys::errno::Raw;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| ("fsopen", e.raw()))?;
    let set = |result: rustix::io::Result<()>| result.map_err(|e| ("fsconfig", e.raw()));
    set(fsconfig_set_flag(&context, "ro"))?;
    if let Some(label) = label {
        set(fsconfig_set_string(&context, "context", label))?;
    }
    set(fsconfig_create(&context))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, Attr::MOUNT_ATTR_RDONLY).map_err(|e| ("fsmount", e.raw()))
}
