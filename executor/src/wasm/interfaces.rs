//! What of a container is the kernel's and not content, and which files name resolution may read: judged by where things lie,
//! since what they are called and what the names lead to is the image's author's to say.

use super::files::{directory, identity, upwards};
use super::kernel_files;
use crate::Error;
use crate::policy::Files;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc::{S_IFMT, S_IFREG};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{self, FsType, fstatfs};
use proa_sys::errno::words;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// File systems of which nothing is given without being named, beside those of [`kernel_files`]: terminals and message queues
/// are not files either.
const ALSO: [FsType; 2] = [
    statfs::DEVPTS_SUPER_MAGIC,
    // mqueue (ipc/mqueue.c); linux/magic.h has it not.
    FsType(0x1980_0202),
];

/// What name resolution reads; see [`super::names`].
const NAMES: [&str; 7] = [
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/nsswitch.conf",
];

/// The directories of a container that lead to the kernel though their file system is an ordinary one: `/dev`, and what
/// holds the cgroups of v1.
pub struct Interfaces(Vec<OwnedFd>);

impl Interfaces {
    /// Opens `/dev` and the bundle's mounts of the kernel's file systems.
    pub fn find(mounts: &[PathBuf]) -> Result<Self, Error> {
        let mut found = Vec::new();
        for path in [Path::new("/dev")]
            .into_iter()
            .chain(mounts.iter().map(PathBuf::as_path))
        {
            let failed = |errno| Error::Preopen {
                directory: path.to_owned(),
                problem: words(errno),
            };
            let opened = match directory(path) {
                Ok(opened) => opened,
                // What can't be got at, the working directory does not lie in.
                Err(Errno::ENOTDIR | Errno::ENOENT | Errno::EACCES | Errno::ELOOP) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            // The root is in no mount's place; a link of the image that leads there says nothing.
            let root = directory(Path::new("/")).and_then(|root| identity(root.as_fd()));
            if identity(opened.as_fd()).map_err(failed)? != root.map_err(failed)? {
                found.push(opened);
            }
        }
        Ok(Self(found))
    }

    /// Whether this directory is the kernel's, or lies in one that is. What can't be told, because a directory above is
    /// closed to the container's user, is taken for it.
    pub fn have(&self, directory: BorrowedFd<'_>) -> Result<bool, Errno> {
        let own = self.0.iter().map(|fd| identity(fd.as_fd()));
        let own = own.collect::<Result<Vec<_>, _>>()?;
        let found = upwards(directory, |here| {
            let kind = fstatfs(here)?.filesystem_type();
            let kernel = kernel_files::is(kind.0 as u64) || ALSO.contains(&kind);
            Ok((kernel || own.contains(&identity(here)?)).then_some(()))
        });
        match found {
            Err(Errno::EACCES) => Ok(true),
            found => Ok(found?.is_some()),
        }
    }

    /// Whether one of them lies in this directory, so that who has it gets at the kernel.
    pub fn are_below(&self, directory: BorrowedFd<'_>) -> Result<bool, Errno> {
        let id = identity(directory)?;
        for interface in &self.0 {
            let found = upwards(interface.as_fd(), |here| Ok((identity(here)? == id).then_some(())));
            match found {
                Ok(None) => {}
                Ok(Some(())) | Err(Errno::EACCES) => return Ok(true),
                Err(errno) => return Err(errno),
            }
        }
        Ok(false)
    }
}

/// The files that name resolution reads, as far as the container has them and they are what they are called: a link of the
/// image could have it read any other file of the container, a secret that is mounted, say. Behind a link, only what the
/// bundle has mounted by this name is taken.
pub fn files_of_names(policy: &Files) -> Vec<OwnedFd> {
    let mut files = Vec::new();
    for name in NAMES.map(Path::new) {
        match file_of_names(name, policy) {
            Ok(Some(file)) => files.push(file),
            Ok(None) => tracing::warn!(
                "{} is a link of the image: the guest's engine may not read where it leads, and resolves names without it",
                name.display()
            ),
            // An image need not have it.
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => tracing::debug!("{}: {}", name.display(), words(errno)),
        }
    }
    files
}

fn file_of_names(name: &Path, policy: &Files) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let opened = match openat2(AT_FDCWD, name, how) {
        Err(Errno::ELOOP) => match mounted_as(name, policy)? {
            Some(opened) => opened,
            None => return Ok(None),
        },
        opened => opened?,
    };
    match fstat(&opened)?.st_mode & S_IFMT {
        S_IFREG => Ok(Some(opened)),
        _ => Err(Errno::ENOTDIR),
    }
}

/// What the bundle has mounted by this name, wherever the image's links have put it: the root of a mount, and of none by
/// another name, which could have come to lie over it.
fn mounted_as(name: &Path, policy: &Files) -> Result<Option<OwnedFd>, Errno> {
    let look = |path: &Path| open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let opened = look(name)?;
    let content = policy.mounts.iter().map(|(path, _)| path);
    let (its, others): (Vec<_>, Vec<_>) = content.chain(&policy.interfaces).partition(|path| *path == name);
    if its.is_empty() || !proa_sys::mount::is_mount_root(opened.as_fd())? {
        return Ok(None);
    }
    let id = identity(opened.as_fd())?;
    for other in others {
        match look(other).and_then(|other| identity(other.as_fd())) {
            Ok(other) if other == id => return Ok(None),
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(opened))
}
