//! Looking up and making paths below a root that may be hostile.

use super::error::{Error, Named};
use super::tree::mount_id;
use oci_spec::runtime::Spec;
use proa_sys::Errno;
use proa_sys::errno::Raw;
use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstatfs, mkdirat, openat, openat2, readlinkat};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: usize = 40;
/// openat2(2) gives up with EAGAIN when something was renamed while it went through a `..`; an attacker must not be
/// able to keep us here for ever.
pub(super) const MAX_RETRIES: usize = 64;

/// A directory that no lookup leaves.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
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

impl Place {
    /// The root of what has been mounted here.
    pub(super) fn top(&self) -> Result<OwnedFd, Error> {
        super::tree::top(self.fd.as_fd()).call(|| format!("openat2({:?}, \"..\", RESOLVE_IN_ROOT)", self.real))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
thread_local! {
    /// The paths that this thread has looked up below any root, as the kernel has them.
    pub(super) static LOOKED_UP: std::cell::RefCell<Vec<PathBuf>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Root {
    #[cfg(test)]
    fn note(&self, path: &Path) {
        let root = path_of(self.fd.as_fd()).unwrap_or_default();
        LOOKED_UP.with_borrow_mut(|all| all.push(root.join(relative(path))));
    }

    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens `path` (below the root, whatever it starts with), to which no symbolic link may belong (`ELOOP`).
    pub(super) fn open_straight(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        #[cfg(test)]
        self.note(path);
        self.open(path, flags)
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = relative(path);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        for _ in 0..MAX_RETRIES {
            return match openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(rustix::io::Errno::AGAIN) => continue,
                // EPERM: a seccomp filter from before openat2 was known.
                Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => self.step_by_step(path, flags),
                other => other.map_err(|errno| errno.raw()),
            };
        }
        Err(Errno::EAGAIN)
    }

    /// Before Linux 5.6: a step for each name.
    pub(super) fn step_by_step(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut here = self.fd.try_clone().map_err(|error| error.raw())?;
        let mut names = parts(path).peekable();
        while let Some(name) = names.next() {
            if name == ".." {
                return Err(Errno::EXDEV);
            }
            // With O_NOFOLLOW, O_PATH opens a link itself, which is no directory for the next step.
            let how = if names.peek().is_some() { HANDLE } else { flags } | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            here = openat(&here, &name, how, Mode::empty()).map_err(|errno| errno.raw())?;
            if is_link(here.as_fd())? {
                return Err(Errno::ELOOP);
            }
        }
        Ok(here)
    }

    /// What is at `path`, or `None`.
    pub(super) fn lookup(&self, path: &Path, nofollow: bool) -> Result<Option<Place>, Error> {
        #[cfg(test)]
        self.note(path);
        // Nearly every path is free of links: then one call also tells that `real` is `path`.
        match self.open(path, HANDLE) {
            Ok(fd) => Ok(Some(Place {
                fd,
                real: path.into(),
                new: false,
            })),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP) => self.walk(path, nofollow, None, &mut |_| Ok(())),
            Err(errno) => Err(errno).call(|| format!("openat2(root, {path:?}, O_PATH)")),
        }
    }

    /// What is at `path`, or `None`, for something to be laid over it. A symbolic link in a volume may not lead out of it: whoever
    /// shares it could have the cover over any other path of the container.
    pub(super) fn lookup_to_cover(&self, path: &Path) -> Result<Option<OwnedFd>, Error> {
        match self.open_straight(path, HANDLE) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            Err(Errno::ELOOP) => {}
            Err(errno) => return Err(errno).call(|| format!("openat2(root, {path:?}, O_PATH)")),
        }
        let own = mount_id(self.fd.as_fd())?;
        let mut volumes = Vec::new();
        let mut note = |link: BorrowedFd<'_>| {
            volumes.extend(Some(mount_id(link)?).filter(|id| *id != own));
            Ok(())
        };
        let found = match self.walk(path, false, None, &mut note) {
            Ok(Some(place)) => place.fd,
            Ok(None) => return Ok(None),
            Err(error) if error.errno() == Some(Errno::ENOTDIR) => return Ok(None),
            Err(error) => return Err(error),
        };
        let at = mount_id(found.as_fd())?;
        match volumes.iter().all(|id| *id == at) {
            true => Ok(Some(found)),
            false => Err(Error::refuse(path, "is led out of a volume by a symbolic link in it")),
        }
    }

    /// Makes the directory `path` and those above it as far as they are missing.
    pub(super) fn make_dir(&self, path: &Path) -> Result<Place, Error> {
        match self.lookup(path, false)? {
            Some(place) => Ok(place),
            None => self.make(path, Missing::Dir),
        }
    }

    /// Makes `path`, where nothing is, and the directories above it. A symbolic link to something that doesn't exist is taken
    /// as the wish to have it made.
    pub(super) fn make(&self, path: &Path, missing: Missing) -> Result<Place, Error> {
        // Mostly only the last name is missing, below a directory that no link leads to.
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(parent) = self.open(parent, HANDLE | OFlags::DIRECTORY)
            && let Ok(fd) = make_one(parent.as_fd(), name, missing)
        {
            return Ok(Place {
                fd,
                real: path.into(),
                new: true,
            });
        }
        let gone = || Errno::ENOENT;
        self.walk(path, false, Some(missing), &mut |_| Ok(()))?
            .ok_or_else(gone)
            .call(|| format!("openat2(root, {path:?}, O_PATH)"))
    }

    /// Goes down `path` name by name, each looked up once in the directory that the one before led to. No link is followed by
    /// the kernel: its text is taken below the root. `..` goes back to the directory that was gone through, wherever that is
    /// by now. What is missing is made, if `missing` says as what; `on_link` is shown each link that is taken.
    fn walk(
        &self,
        path: &Path,
        nofollow: bool,
        missing: Option<Missing>,
        on_link: &mut dyn FnMut(BorrowedFd<'_>) -> Result<(), Error>,
    ) -> Result<Option<Place>, Error> {
        let mut pending: VecDeque<OsString> = parts(path).collect();
        let mut way: Vec<(OwnedFd, OsString)> = Vec::new();
        let (mut links, mut new) = (0, false);
        let real =
            |way: &[(OwnedFd, OsString)]| Path::new("/").join(way.iter().map(|(_, name)| name).collect::<PathBuf>());
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                way.pop();
                continue;
            }
            let here = way.last().map_or(self.fd.as_fd(), |(fd, _)| fd.as_fd());
            let at = || real(&way).join(&name);
            let last = pending.is_empty();
            let fd = match openat(here, &name, HANDLE | OFlags::NOFOLLOW, Mode::empty()).map_err(|errno| errno.raw()) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => {
                    let Some(missing) = missing else { return Ok(None) };
                    match make_one(here, &name, if last { missing } else { Missing::Dir }) {
                        Ok(fd) => {
                            new = last;
                            fd
                        }
                        // Somebody else was faster.
                        Err(Errno::EEXIST) if links < MAX_LINKS => {
                            links += 1;
                            pending.push_front(name);
                            continue;
                        }
                        Err(errno) => return Err(errno).call(|| format!("mkdir({:?})", at())),
                    }
                }
                Err(errno) => return Err(errno).call(|| format!("openat({:?}, O_PATH|O_NOFOLLOW)", at())),
            };
            if last && nofollow || !is_link(fd.as_fd()).call(|| format!("fstat({:?})", at()))? {
                way.push((fd, name));
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP).call(|| format!("openat2(root, {path:?}, O_PATH, RESOLVE_IN_ROOT)"));
            }
            on_link(fd.as_fd())?;
            let target = readlinkat(&fd, "", Vec::new()).call(|| format!("readlink({:?})", at()))?;
            let target = Path::new(OsStr::from_bytes(target.to_bytes()));
            if is_magic(fd.as_fd(), target).call(|| format!("fstatfs({:?})", at()))? {
                return Err(Errno::ELOOP).call(|| format!("openat2(root, {path:?}, O_PATH, RESOLVE_NO_MAGICLINKS)"));
            }
            if target.is_absolute() {
                way.clear();
            }
            for part in parts(target).collect::<Vec<_>>().into_iter().rev() {
                pending.push_front(part);
            }
        }
        let real = real(&way);
        let fd = match way.pop() {
            Some((fd, _)) => fd,
            None => self.fd.try_clone().call(|| "dup(root)")?,
        };
        Ok(Some(Place { fd, real, new }))
    }
}

/// Whether this link with this text is one of procfs that leads elsewhere than its text says (symlink(7), magic links): to what
/// somebody has open, or to a namespace. Those that do not, such as `/proc/self` and `/proc/mounts`, are relative.
fn is_magic(link: BorrowedFd<'_>, text: &Path) -> Result<bool, Errno> {
    let relative = text.is_relative() && !text.as_os_str().as_bytes().contains(&b':');
    let kind = || fstatfs(link).map_err(|errno| errno.raw());
    Ok(!relative && kind()?.f_type == PROC_SUPER_MAGIC)
}

pub(super) fn make_one(parent: BorrowedFd<'_>, name: &OsStr, kind: Missing) -> Result<OwnedFd, Errno> {
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

fn is_link(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| errno.raw())?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink())
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
