//! Looking up and making paths below a root that may be hostile.

use super::error::{Error, Named};
use oci_spec::runtime::Spec;
use proa_sys::Errno;
use proa_sys::errno::Raw;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: usize = 40;
/// openat2(2) gives up with EAGAIN when something was renamed while it went through a `..`; an attacker must not be
/// able to keep us here for ever.
const MAX_RETRIES: usize = 64;

/// A directory that no lookup leaves.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    /// It is the process's root by now.
    entered: bool,
}

/// What a path led to.
#[derive(Debug)]
pub(super) struct Place {
    /// `O_PATH`.
    pub fd: OwnedFd,
    /// Where it is below the root, symbolic links taken; starts with `/`.
    pub real: PathBuf,
    /// Nothing was there before.
    pub new: bool,
}

/// What to make where nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Dir,
    File,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Root {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd, entered: false }
    }

    /// After pivot_root.
    pub(super) fn entered(self) -> Self {
        Self { entered: true, ..self }
    }

    /// Opens `path` (below the root, whatever it starts with) without leaving the root.
    pub(super) fn open_with(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = relative(path);
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..MAX_RETRIES {
            return match openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(rustix::io::Errno::AGAIN) => continue,
                // EPERM: a seccomp filter from before openat2 was known.
                Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => self.emulated(path, flags, resolve),
                other => other.map_err(|errno| errno.raw()),
            };
        }
        Err(Errno::EAGAIN)
    }

    /// Before Linux 5.6. Without links to follow it takes no more than a step for each name; for the rest libpathrs
    /// checks after each step where it is.
    pub(super) fn emulated(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        if resolve.contains(ResolveFlags::NO_SYMLINKS) {
            return self.step_by_step(path, flags);
        }
        if self.entered {
            // The kernel itself keeps a process in its root.
            let path = Path::new("/").join(path);
            return openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| errno.raw());
        }
        let root = pathrs::RootRef::from_fd(self.fd.as_fd());
        let found = if flags.contains(OFlags::NOFOLLOW) {
            root.resolve_nofollow(path)
        } else {
            root.resolve(path)
        };
        let errno = |error: pathrs::error::Error| match error.kind() {
            pathrs::error::ErrorKind::OsError(Some(code)) => Errno::from_raw(code),
            _ => Errno::EXDEV,
        };
        let handle = found.map_err(errno)?;
        let fd = if flags.contains(OFlags::PATH) {
            let fd = OwnedFd::from(handle);
            if flags.contains(OFlags::DIRECTORY) && !is_dir(fd.as_fd())? {
                return Err(Errno::ENOTDIR);
            }
            fd
        } else {
            let flags = pathrs::flags::OpenFlags::from_bits_retain(flags.bits().into());
            handle.reopen(flags).map_err(errno)?.into()
        };
        Ok(fd)
    }

    fn step_by_step(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut here = self.fd.try_clone().map_err(|error| error.raw())?;
        let mut names = parts(path).peekable();
        while let Some(name) = names.next() {
            if name == ".." {
                return Err(Errno::EXDEV);
            }
            // With O_NOFOLLOW, O_PATH opens a link itself, which is no directory for the next step.
            let how = if names.peek().is_some() { HANDLE } else { flags } | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            here = openat(&here, &name, how, Mode::empty()).map_err(|errno| errno.raw())?;
            let stat = rustix::fs::fstat(&here).map_err(|errno| errno.raw())?;
            if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink() {
                return Err(Errno::ELOOP);
            }
        }
        Ok(here)
    }

    /// What is at `path`, or `None`.
    pub(super) fn lookup(&self, path: &Path, nofollow: bool) -> Result<Option<Place>, Error> {
        // Nearly every path is free of links: then one call also tells that `real` is `path`.
        match self.open_with(path, HANDLE, ResolveFlags::NO_SYMLINKS) {
            Ok(fd) => {
                return Ok(Some(Place {
                    fd,
                    real: path.into(),
                    new: false,
                }));
            }
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => {}
            Err(errno) => return Err(errno).call(|| format!("openat2(root, {path:?}, O_PATH)")),
        }
        let follow = if nofollow { OFlags::NOFOLLOW } else { OFlags::empty() };
        match self.open_with(path, HANDLE | follow, ResolveFlags::empty()) {
            Ok(fd) => {
                let real = self.real(fd.as_fd())?;
                Ok(Some(Place { fd, real, new: false }))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).call(|| format!("openat2(root, {path:?}, O_PATH, RESOLVE_IN_ROOT)")),
        }
    }

    /// Makes the directory `path` and those above it as far as they are missing.
    pub(super) fn make_dir(&self, path: &Path) -> Result<OwnedFd, Error> {
        match self.open_with(path, HANDLE, ResolveFlags::empty()) {
            Ok(fd) => Ok(fd),
            Err(Errno::ENOENT) => self.descend(path, Missing::Dir),
            Err(errno) => Err(errno).call(|| format!("openat2(root, {path:?}, O_PATH, RESOLVE_IN_ROOT)")),
        }
    }

    /// Makes `path`, where nothing is, and the directories above it.
    pub(super) fn make(&self, path: &Path, missing: Missing) -> Result<Place, Error> {
        // Mostly only the last name is missing, below a directory that no link leads to.
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(parent) = self.open_with(parent, HANDLE | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)
            && let Ok(fd) = make_one(parent.as_fd(), &name.to_owned(), missing)
        {
            return Ok(Place {
                fd,
                real: path.into(),
                new: true,
            });
        }
        let fd = self.descend(path, missing)?;
        let real = self.real(fd.as_fd())?;
        Ok(Place { fd, real, new: true })
    }

    /// Goes down `path`, making what is missing through the descriptor of the directory above it. A symbolic link to
    /// something that doesn't exist is taken as the wish to have it made.
    fn descend(&self, path: &Path, missing: Missing) -> Result<OwnedFd, Error> {
        let mut pending: VecDeque<OsString> = parts(path).collect();
        let mut done = PathBuf::new();
        let mut parent = self.fd.try_clone().call(|| "dup(root)")?;
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            let next = done.join(&name);
            match self.open_with(&next, HANDLE, ResolveFlags::empty()) {
                Ok(fd) => {
                    (parent, done) = (fd, next);
                    continue;
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno).call(|| format!("openat2(root, {next:?}, O_PATH, RESOLVE_IN_ROOT)")),
            }
            let kind = if pending.is_empty() { missing } else { Missing::Dir };
            match make_one(parent.as_fd(), &name, kind) {
                Ok(fd) => (parent, done) = (fd, next),
                // A link to nothing, or somebody else was faster.
                Err(Errno::EEXIST) if links < MAX_LINKS => {
                    links += 1;
                    let target = match readlinkat(&parent, &name, Vec::new()) {
                        Ok(target) => PathBuf::from(std::ffi::OsStr::new(&*target.to_string_lossy())),
                        Err(_) => PathBuf::from(&name),
                    };
                    if target.is_absolute() {
                        done = PathBuf::new();
                        parent = self.fd.try_clone().call(|| "dup(root)")?;
                    }
                    for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                        pending.push_front(part);
                    }
                }
                Err(Errno::EEXIST) => return Err(Errno::ELOOP).call(|| format!("mkdir({path:?})")),
                Err(errno) => return Err(errno).call(|| format!("mkdir({:?})", Path::new("/").join(&next))),
            }
        }
        Ok(parent)
    }

    /// Where `fd` is below the root. Needs the host's `/proc`, and so works only before pivot_root.
    pub(super) fn real(&self, fd: BorrowedFd<'_>) -> Result<PathBuf, Error> {
        let (root, path) = (path_of(self.fd.as_fd())?, path_of(fd)?);
        match path.strip_prefix(&root) {
            Ok(inside) => Ok(Path::new("/").join(inside)),
            Err(_) => Err(Error::refuse(&path, "is outside the root of the container")),
        }
    }
}

fn make_one(parent: BorrowedFd<'_>, name: &OsString, kind: Missing) -> Result<OwnedFd, Errno> {
    let mode = Mode::from_raw_mode(0o755);
    let (made, dir) = match kind {
        Missing::Dir => (mkdirat(parent, name, mode), OFlags::DIRECTORY),
        Missing::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
            (openat(parent, name, flags, mode).map(drop), OFlags::empty())
        }
    };
    made.map_err(|errno| errno.raw())?;
    openat(parent, name, HANDLE | OFlags::NOFOLLOW | dir, Mode::empty()).map_err(|errno| errno.raw())
}

/// The components of a path but for `/` and `.`; `..` is left to the kernel, which doesn't go above the root.
fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
}

/// `path` as openat2(2) takes it: an empty one is ENOENT.
pub(super) fn relative(path: &Path) -> &Path {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

/// The path of a descriptor as the kernel knows it.
pub(super) fn path_of(fd: BorrowedFd<'_>) -> Result<PathBuf, Error> {
    let link = super::tree::magic(fd);
    std::fs::read_link(&link).call(|| format!("readlink({link:?})"))
}

pub(super) fn is_dir(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| errno.raw())?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Opens a directory of the host.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd, Error> {
    let flags = HANDLE | OFlags::DIRECTORY;
    openat(CWD, path, flags, Mode::empty()).call(|| format!("open({path:?}, O_PATH|O_DIRECTORY)"))
}

/// Opens a directory of the host to whose path no symbolic link belongs.
pub(super) fn open_dir_no_symlinks(at: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = HANDLE | OFlags::DIRECTORY;
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    match openat2(at, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            // Before Linux 5.6: the path that the kernel reports shows whether a link was taken.
            let fd = openat(at, path, flags, Mode::empty()).map_err(|errno| errno.raw())?;
            let base = if path.is_absolute() {
                PathBuf::new()
            } else {
                path_of(at).map_err(|_| Errno::EIO)?
            };
            let real = path_of(fd.as_fd()).map_err(|_| Errno::EIO)?;
            if real == super::plan::clean(&base.join(path)) {
                Ok(fd)
            } else {
                Err(Errno::ELOOP)
            }
        }
        other => other.map_err(|errno| errno.raw()),
    }
}

/// Finds `root.path` of a bundle: a directory that is reached without symbolic links (but for those in the path of the
/// bundle itself). Returns its real path.
pub(super) fn find_root(spec: &Spec, bundle: &Path) -> Result<PathBuf, Error> {
    let root = spec
        .root()
        .as_ref()
        .map(|root| root.path())
        .filter(|path| !path.as_os_str().is_empty());
    let Some(root) = root else {
        return Err(Error::Field {
            field: "root.path".into(),
            problem: "root must be specified".into(),
        });
    };
    let path = bundle.join(root);
    let open = || -> Result<OwnedFd, Errno> {
        if root.is_absolute() {
            return open_dir_no_symlinks(CWD, root);
        }
        let flags = HANDLE | OFlags::DIRECTORY;
        let bundle = openat(CWD, bundle, flags, Mode::empty()).map_err(|errno| errno.raw())?;
        open_dir_no_symlinks(bundle.as_fd(), root)
    };
    let problem = match open() {
        Ok(fd) => return path_of(fd.as_fd()),
        Err(Errno::ELOOP) => format!("{}: not an absolute path, or a symlink", path.display()),
        Err(Errno::ENOTDIR) => match path.symlink_metadata() {
            Ok(meta) if meta.is_symlink() => format!("{}: not an absolute path, or a symlink", path.display()),
            _ => format!("{}: not a directory", path.display()),
        },
        Err(Errno::ENOENT) => format!("stat {}: no such file or directory", path.display()),
        Err(errno) => format!("stat {}: {}", path.display(), proa_sys::errno::words(errno)),
    };
    Err(Error::Root { problem })
}
