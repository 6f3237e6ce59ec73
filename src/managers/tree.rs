//! The file system whose managers are looked at: the host's, or an image's that is being built.
//!
//! In an image a symbolic link may point anywhere, also at the host's files, so every path is resolved below the root. What is
//! written replaces its file at once or not at all, with the mode and the owner that the file had.

use pathrs::Root;
use pathrs::error::ErrorKind as Lookup;
use pathrs::flags::OpenFlags;
use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Uid};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: usize = 40;
/// No configuration is longer; what is would be read whole.
const MAX_SIZE: u64 = 4 << 20;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call failed.
    #[error("{call} {path}: {source}", path = path.display())]
    Call {
        /// Which.
        call: &'static str,
        /// The file, as it is named inside of the root.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a device, or too long to be a configuration.
    #[error("{path} is not a configuration file: {why}", path = path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: &'static str,
    },
    /// Somebody wrote to it between our reading and our writing.
    #[error("{path} has just been changed by somebody else; nothing was written", path = path.display())]
    Raced {
        /// The file.
        path: PathBuf,
    },
}

fn failed(call: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Call {
        call,
        path: path.into(),
        source,
    }
}

/// libpathrs' error as the operating system's.
fn os(error: &pathrs::error::Error) -> io::Error {
    match error.kind() {
        Lookup::OsError(Some(errno)) => io::Error::from_raw_os_error(errno),
        _ => io::Error::other(error.to_string()),
    }
}

/// A file system by its root.
#[derive(Debug)]
pub struct Tree {
    root: Root,
    path: PathBuf,
}

/// A file by the directory that it is really in: what can be replaced atomically.
struct Place {
    dir: File,
    name: OsString,
}

impl Tree {
    /// The file system below `root`.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let handle = Root::open(root).map_err(|error| failed("open", root)(os(&error)))?;
        Ok(Self {
            root: handle,
            path: root.into(),
        })
    }

    /// Whether it is the one that this process runs in, so that its programs can be asked.
    pub fn is_host(&self) -> bool {
        self.path == Path::new("/")
    }

    /// What a path of the tree is called outside of it.
    pub fn outside(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The whole text of a file; `None` if it is not there.
    pub fn read(&self, path: &Path) -> Result<Option<String>, Error> {
        let handle = match self.root.resolve(path) {
            Ok(handle) => handle,
            Err(error) => return absent(os(&error)).map_err(failed("open", path)),
        };
        // Before it is opened: a FIFO would block, a device would be used.
        if !is_regular(&handle).map_err(failed("stat", path))? {
            return Err(Error::Unfit {
                path: path.into(),
                why: "it is not a regular file",
            });
        }
        let file = handle
            .reopen(OpenFlags::O_RDONLY | OpenFlags::O_CLOEXEC)
            .map_err(|error| failed("open", path)(os(&error)))?;
        let mut text = String::new();
        let length = file
            .take(MAX_SIZE + 1)
            .read_to_string(&mut text)
            .map_err(failed("read", path))?;
        if length as u64 > MAX_SIZE {
            return Err(Error::Unfit {
                path: path.into(),
                why: "it is longer than 4 MiB",
            });
        }
        Ok(Some(text))
    }

    /// Whether something is there, symbolic links followed.
    pub fn exists(&self, path: &Path) -> bool {
        self.root.resolve(path).is_ok()
    }

    /// Whether it is a file that somebody may execute.
    pub fn is_program(&self, path: &Path) -> bool {
        let Ok(handle) = self.root.resolve(path) else {
            return false;
        };
        rustix::fs::fstat(&handle).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0
        })
    }

    /// The names in a directory, sorted; none if it is not there.
    pub fn list(&self, dir: &Path) -> Result<Vec<OsString>, Error> {
        let handle = match self.root.resolve(dir) {
            Ok(handle) => handle,
            Err(error) => {
                return match absent::<()>(os(&error)) {
                    Ok(_) => Ok(Vec::new()),
                    Err(source) => Err(failed("open", dir)(source)),
                };
            }
        };
        let file = handle
            .reopen(OpenFlags::O_RDONLY | OpenFlags::O_DIRECTORY | OpenFlags::O_CLOEXEC)
            .map_err(|error| failed("open", dir)(os(&error)))?;
        let entries = rustix::fs::Dir::new(file).map_err(|errno| failed("read", dir)(errno.into()))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|errno| failed("read", dir)(errno.into()))?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Puts `after` (`None`: nothing) in the place of `before`, if that is still what is there. A new file is root's (or the
    /// caller's) and readable for all, unless `like` names a file whose mode and owner it is to have.
    pub fn replace(
        &self,
        path: &Path,
        before: Option<&str>,
        after: Option<&str>,
        like: Option<&Path>,
    ) -> Result<(), Error> {
        let place = self.place(path, after.is_some())?;
        let (lock, name) = lock(path, &place)?;
        let replaced = self.replace_alone(path, &place, (before, after), like);
        rustix::fs::unlinkat(&place.dir, &name, AtFlags::empty())
            .map_err(|errno| failed("unlink the lock of", path)(errno.into()))?;
        drop(lock);
        replaced
    }

    fn replace_alone(
        &self,
        path: &Path,
        place: &Place,
        (before, after): (Option<&str>, Option<&str>),
        like: Option<&Path>,
    ) -> Result<(), Error> {
        if self.read(path)?.as_deref() != before {
            return Err(Error::Raced { path: path.into() });
        }
        match after {
            Some(text) => {
                let model = match before {
                    Some(_) => Some(path),
                    None => like,
                };
                self.write(path, place, text, model)?;
            }
            None => rustix::fs::unlinkat(&place.dir, &place.name, AtFlags::empty())
                .map_err(|errno| failed("unlink", path)(errno.into()))?,
        }
        place.dir.sync_all().map_err(failed("fsync", path))
    }

    fn write(&self, path: &Path, place: &Place, text: &str, model: Option<&Path>) -> Result<(), Error> {
        let mut name = OsString::from(".");
        name.push(&place.name);
        name.push(format!(".{}", std::process::id()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place.dir, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed("create", path)(errno.into()))?;
        let written = self.fill(path, File::from(file), text, model).and_then(|()| {
            rustix::fs::renameat(&place.dir, &name, &place.dir, &place.name)
                .map_err(|errno| failed("rename", path)(errno.into()))
        });
        if written.is_err() {
            // The first failure is what is told.
            rustix::fs::unlinkat(&place.dir, &name, AtFlags::empty()).ok();
        }
        written
    }

    fn fill(&self, path: &Path, mut file: File, text: &str, model: Option<&Path>) -> Result<(), Error> {
        file.write_all(text.as_bytes()).map_err(failed("write", path))?;
        let mut mode = 0o644;
        if let Some(model) = model {
            let handle = self
                .root
                .resolve(model)
                .map_err(|error| failed("open", model)(os(&error)))?;
            let stat = rustix::fs::fstat(&handle).map_err(|errno| failed("stat", model)(errno.into()))?;
            let own = file.metadata().map_err(failed("stat", path))?;
            if (own.uid(), own.gid()) != (stat.st_uid, stat.st_gid) {
                let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(|errno| failed("chown", path)(errno.into()))?;
            }
            mode = stat.st_mode & 0o7777;
        }
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(failed("chmod", path))?;
        file.sync_all().map_err(failed("fsync", path))
    }

    /// Where `path` really is: its last part is not a symbolic link any more, which a rename would replace. Directories that
    /// are missing are made if `make` says so.
    fn place(&self, path: &Path, make: bool) -> Result<Place, Error> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                break;
            };
            match self.root.readlink(&path) {
                Ok(target) => path = parent.join(target),
                // EINVAL: it is there, and not a link.
                Err(error) if matches!(os(&error).raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
                    let handle = match make {
                        true => self.root.mkdir_all(parent, &Permissions::from_mode(0o755)),
                        false => self.root.resolve(parent),
                    };
                    let handle = handle.map_err(|error| failed("mkdir", parent)(os(&error)))?;
                    let dir = handle
                        .reopen(OpenFlags::O_RDONLY | OpenFlags::O_DIRECTORY | OpenFlags::O_CLOEXEC)
                        .map_err(|error| failed("open", parent)(os(&error)))?;
                    let name = name.to_owned();
                    return Ok(Place { dir, name });
                }
                Err(error) => return Err(failed("readlink", &path)(os(&error))),
            }
        }
        Err(failed("open", &path)(io::Error::from_raw_os_error(libc::ELOOP)))
    }
}

fn is_regular(handle: &pathrs::Handle) -> io::Result<bool> {
    let stat = rustix::fs::fstat(handle)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// Nothing, if that is what the error says.
fn absent<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
        _ => Err(error),
    }
}

/// Waits for the lock of `path`: a file beside it that only its owner can open, as everybody may lock a directory that
/// everybody may open. With its name, by which whoever has it removes it.
fn lock(path: &Path, place: &Place) -> Result<(OwnedFd, OsString), Error> {
    let mut name = OsString::from(".");
    name.push(&place.name);
    name.push(".lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let call = |call| move |errno: rustix::io::Errno| failed(call, path)(errno.into());
    loop {
        let file =
            rustix::fs::openat(&place.dir, &name, flags, Mode::RUSR | Mode::WUSR).map_err(call("open the lock of"))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(call("flock"))?;
        // Whoever had it has removed it, and another one may hold a new one.
        let own = rustix::fs::fstat(&file).map_err(call("fstat the lock of"))?;
        let there = rustix::fs::statat(&place.dir, &name, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)) {
            return Ok((file, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Scratch;
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_replaced_keeps_its_mode_and_what_is_new_is_readable() {
        let scratch = Scratch::new("tree-mode");
        let path = Path::new("/etc/x/config");
        let tree = scratch.tree();
        tree.replace(path, None, Some("one"), None).unwrap();
        let outside = tree.outside(path);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&outside), 0o644);
        fs::set_permissions(&outside, Permissions::from_mode(0o600)).unwrap();
        tree.replace(path, Some("one"), Some("two"), None).unwrap();
        assert_eq!(
            (fs::read_to_string(&outside).unwrap().as_str(), mode(&outside)),
            ("two", 0o600)
        );
        tree.replace(Path::new("/backup"), None, Some("one"), Some(path))
            .unwrap();
        assert_eq!(mode(&tree.outside(Path::new("/backup"))), 0o600);
        let error = tree.replace(path, Some("one"), Some("three"), None).unwrap_err();
        assert!(matches!(error, Error::Raced { .. }), "{error}");
        tree.replace(path, Some("two"), None, None).unwrap();
        assert_eq!(tree.read(path).unwrap(), None);
        assert_eq!(
            tree.list(Path::new("/etc/x")).unwrap(),
            Vec::<OsString>::new(),
            "nothing is left"
        );
    }

    #[test]
    fn links_stay_links_and_do_not_leave_the_tree() {
        let scratch = Scratch::new("tree-links");
        let tree = scratch.tree();
        let outside = scratch.path().join("../outside");
        fs::create_dir_all(scratch.path().join("etc")).unwrap();
        fs::write(scratch.path().join("real"), "one").unwrap();
        symlink("/real", scratch.path().join("etc/config")).unwrap();
        symlink("../../../outside", scratch.path().join("etc/escape")).unwrap();
        tree.replace(Path::new("/etc/config"), Some("one"), Some("two"), None)
            .unwrap();
        assert_eq!(fs::read_to_string(scratch.path().join("real")).unwrap(), "two");
        assert!(
            fs::symlink_metadata(scratch.path().join("etc/config"))
                .unwrap()
                .is_symlink()
        );
        tree.replace(Path::new("/etc/escape"), None, Some("in"), None).unwrap();
        assert!(!outside.exists());
        assert_eq!(fs::read_to_string(scratch.path().join("outside")).unwrap(), "in");
        symlink("loop", scratch.path().join("etc/loop")).unwrap();
        assert!(tree.replace(Path::new("/etc/loop"), None, Some("x"), None).is_err());
        assert!(tree.read(Path::new("/etc")).is_err(), "a directory is no file");
    }
}
