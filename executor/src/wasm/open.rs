//! Finds and opens the entrypoint inside a root file system that this process hasn't entered yet.
//!
//! The image's author is the attacker here: a symbolic link in it must not lead to a file of the host. openat2(2) with
//! `RESOLVE_IN_ROOT` (Linux 5.6) gives that; before, [`Resolver::Walk`] does, one component at a time.

use crate::Error;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use proa_sys::errno::words;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// As many symbolic links as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;
/// How often openat2(2) is asked again when a rename elsewhere made it give up (EAGAIN).
const TRIES: usize = 128;

/// How paths are resolved inside a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolver {
    /// openat2(2), and the walk where the kernel (or a filter) hasn't got it.
    Kernel,
    /// Component by component, for kernels before 5.6.
    Walk,
}

/// Opens the regular file that `program` names for a process with this `cwd` and `PATH` in the root `rootfs`: a path with
/// a slash as it is (relative ones from `cwd`), a bare name in the directories of `search`, then in `cwd`. It need not be
/// executable, as modules seldom are. `Ok(None)` if there is no such file; `Err(EISDIR)` and the like for what is found
/// and can't be a file to execute.
pub fn find(
    rootfs: BorrowedFd<'_>,
    program: &str,
    cwd: &str,
    search: &str,
    resolver: Resolver,
) -> Result<Option<File>, Errno> {
    for path in candidates(program, cwd, search) {
        match open(rootfs, &path, resolver) {
            Ok(file) => return Ok(Some(file)),
            Err(Errno::ENOENT) => {}
            Err(errno) if program.contains('/') => return Err(errno),
            // As for programs, what can't be opened in one directory is looked for in the next.
            Err(_) => {}
        }
    }
    Ok(None)
}

/// What was looked for as `program`, refused as runc refuses a program that isn't there.
pub fn refusing(program: &str, found: Result<Option<File>, Errno>) -> Result<File, Error> {
    let cause = match found {
        Ok(Some(file)) => return Ok(file),
        Ok(None) if !program.contains('/') => "executable file not found in $PATH".to_owned(),
        Ok(None) => format!("stat {program}: {}", words(Errno::ENOENT)),
        Err(errno @ (Errno::EISDIR | Errno::EACCES)) => words(errno),
        Err(errno) => format!("stat {program}: {}", words(errno)),
    };
    Err(Error::Program {
        program: program.to_owned(),
        cause,
    })
}

/// The paths in the container that `program` may mean for a process with this `cwd` and `PATH`, in the order in which they are
/// tried.
pub fn candidates(program: &str, cwd: &str, search: &str) -> Vec<PathBuf> {
    let cwd = Path::new(cwd);
    match program {
        "" => Vec::new(),
        path if path.contains('/') => vec![cwd.join(path)],
        name => {
            let dirs = search.split(':').filter(|dir| !dir.is_empty());
            dirs.map(|dir| cwd.join(dir))
                .chain([cwd.to_owned()])
                .map(|dir| dir.join(name))
                .collect()
        }
    }
}

/// Opens a regular file inside `rootfs`. `EISDIR` for a directory, `EACCES` for any other kind, as execve(2) says.
pub fn open(rootfs: BorrowedFd<'_>, path: &Path, resolver: Resolver) -> Result<File, Errno> {
    // First without opening it: to open a device or a fifo has effects.
    regular(&fstat(resolve(rootfs, path, OFlag::O_PATH, resolver)?)?)?;
    let file = resolve(
        rootfs,
        path,
        OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY,
        resolver,
    )?;
    regular(&fstat(&file)?)?;
    Ok(File::from(file))
}

fn regular(facts: &FileStat) -> Result<(), Errno> {
    match SFlag::from_bits_truncate(facts.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Ok(()),
        SFlag::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EACCES),
    }
}

fn resolve(rootfs: BorrowedFd<'_>, path: &Path, flags: OFlag, resolver: Resolver) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlag::O_CLOEXEC;
    if resolver == Resolver::Kernel {
        let how = OpenHow::new()
            .flags(flags)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        for _ in 0..TRIES {
            match openat2(rootfs, path, how) {
                Err(Errno::EAGAIN) => {}
                // Filters of old container managers answer EPERM to calls that they don't know.
                Err(Errno::ENOSYS | Errno::EPERM) => return walk(rootfs, path, flags),
                other => return other,
            }
        }
        return Err(Errno::EAGAIN);
    }
    walk(rootfs, path, flags)
}

/// Resolves `path` below `rootfs` with a descriptor held for every directory entered, so that `..` is where one came
/// from and never above the root, and no component but the last is resolved by more than one name.
fn walk(rootfs: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let mut parents: Vec<OwnedFd> = Vec::new();
    let mut todo: Vec<OsString> = components(path);
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            parents.pop();
            continue;
        }
        let here = parents.last().map_or(rootfs, AsFd::as_fd);
        let found = openat(
            here,
            name.as_os_str(),
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let kind = SFlag::from_bits_truncate(fstat(&found)?.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFLNK {
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::ELOOP);
            }
            let target = PathBuf::from(readlinkat(&found, "")?);
            if target.is_absolute() {
                parents.clear();
            }
            todo.extend(components(&target));
        } else if !todo.is_empty() {
            if kind != SFlag::S_IFDIR {
                return Err(Errno::ENOTDIR);
            }
            parents.push(found);
        } else if flags.contains(OFlag::O_PATH) {
            return Ok(found);
        } else {
            return openat(here, name.as_os_str(), flags | OFlag::O_NOFOLLOW, Mode::empty());
        }
    }
    // The path ended in `..` or names the root: a directory.
    let here = parents.last().map_or(rootfs, AsFd::as_fd);
    openat(
        here,
        ".",
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// The components of a path, last first, without the root and `.`.
fn components(path: &Path) -> Vec<OsString> {
    let keep = |part: Component<'_>| match part {
        Component::Normal(name) => Some(OsString::from_vec(name.as_bytes().to_vec())),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    path.components().rev().filter_map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    const BOTH: [Resolver; 2] = [Resolver::Kernel, Resolver::Walk];

    struct Root(PathBuf, File);

    impl Root {
        /// A root with links of every sort; `secret` is a file beside it.
        fn new(name: &str) -> Self {
            let base = std::env::temp_dir().join(format!("proa-open-{name}-{}", std::process::id()));
            let root = base.join("root");
            fs::create_dir_all(root.join("usr/bin")).unwrap();
            fs::create_dir_all(root.join("data")).unwrap();
            fs::write(base.join("secret"), "secret").unwrap();
            fs::write(root.join("app.wasm"), "app").unwrap();
            fs::write(root.join("secret"), "inside").unwrap();
            fs::write(root.join("usr/bin/tool"), "tool").unwrap();
            fs::write(root.join("data/own"), "own").unwrap();
            symlink("/app.wasm", root.join("data/absolute")).unwrap();
            symlink("../app.wasm", root.join("data/relative")).unwrap();
            symlink("../../../secret", root.join("data/out")).unwrap();
            symlink("loop", root.join("loop")).unwrap();
            symlink("usr/bin", root.join("bin")).unwrap();
            nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRWXU).unwrap();
            let fd = File::open(&root).unwrap();
            Self(base, fd)
        }

        fn find(&self, program: &str, cwd: &str, search: &str, resolver: Resolver) -> Result<Option<String>, Errno> {
            let file = find(self.1.as_fd(), program, cwd, search, resolver)?;
            Ok(file.map(|mut file| {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            }))
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn paths_are_resolved_in_the_root() {
        let root = Root::new("paths");
        let found = [
            ("/app.wasm", "/", "app"),
            ("./app.wasm", "/", "app"),
            ("./own", "/data", "own"),
            ("/../../app.wasm", "/", "app"),
            ("/data/absolute", "/", "app"),
            ("./relative", "/data", "app"),
            ("/data/../data/relative", "/", "app"),
            ("/bin/tool", "/", "tool"),
        ];
        for resolver in BOTH {
            for (program, cwd, text) in found {
                assert_eq!(
                    root.find(program, cwd, "", resolver),
                    Ok(Some(text.to_owned())),
                    "{program} {resolver:?}"
                );
            }
        }
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let root = Root::new("out");
        for resolver in BOTH {
            assert_eq!(
                root.find("/data/out", "/", "", resolver),
                Ok(Some("inside".to_owned())),
                "{resolver:?}"
            );
        }
    }

    #[test]
    fn bare_names_are_looked_up() {
        let root = Root::new("names");
        for resolver in BOTH {
            assert_eq!(
                root.find("tool", "/", "/nowhere:/bin", resolver),
                Ok(Some("tool".to_owned()))
            );
            assert_eq!(root.find("own", "/data", "/bin", resolver), Ok(Some("own".to_owned())));
            assert_eq!(root.find("own", "/", "/bin", resolver), Ok(None));
            assert_eq!(root.find("", "/", "/bin", resolver), Ok(None));
        }
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let root = Root::new("kinds");
        for resolver in BOTH {
            assert_eq!(root.find("/missing", "/", "", resolver), Ok(None));
            assert_eq!(root.find("/data", "/", "", resolver), Err(Errno::EISDIR));
            assert_eq!(root.find("/data/..", "/", "", resolver), Err(Errno::EISDIR));
            assert_eq!(root.find("/loop", "/", "", resolver), Err(Errno::ELOOP));
            assert_eq!(root.find("/app.wasm/x", "/", "", resolver), Err(Errno::ENOTDIR));
            assert_eq!(root.find("/fifo", "/", "", resolver), Err(Errno::EACCES));
        }
    }
}
