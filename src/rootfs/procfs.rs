//! procfs that is procfs: files in it are used only if nothing was mounted over them (CVE-2025-52881).

use super::Plan;
use super::error::{Error, Named};
use proa_sys::Errno;
use proa_sys::errno::Raw;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The root of a real procfs.
#[derive(Debug)]
pub struct Procfs {
    root: OwnedFd,
}

impl AsFd for Procfs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Procfs {
    /// The procfs that is mounted on `/proc`, if it is one.
    pub fn host() -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(CWD, "/proc", flags, Mode::empty()).call(|| "open(\"/proc\", O_PATH|O_NOFOLLOW)")?;
        let fs = fstatfs(&root).call(|| "fstatfs(\"/proc\")")?;
        let stat = fstat(&root).call(|| "fstat(\"/proc\")")?;
        // PROC_SUPER_MAGIC, PROC_ROOT_INO: a bind mount of a directory of procfs would have another number.
        if fs.f_type == 0x9fa0 && stat.st_ino == 1 {
            return Ok(Self { root });
        }
        Err(Error::refuse(Path::new("/proc"), "is not the root of a procfs"))
    }

    /// A procfs of the process's pid namespace that is mounted nowhere (Linux 5.2; needs the privilege to mount one).
    pub fn detached() -> Result<Self, Error> {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).call(|| "fsopen(\"proc\")")?;
        fsconfig_create(&context).call(|| "fsconfig(proc, FSCONFIG_CMD_CREATE)")?;
        let root =
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).call(|| "fsmount(proc)")?;
        Ok(Self { root })
    }

    /// Opens `path` of this procfs for writing. Refuses with EXDEV or ELOOP what was mounted over or is a link.
    pub fn open_for_writing(&self, path: &str) -> Result<File, Error> {
        let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        match openat2(&self.root, path, flags, Mode::empty(), resolve) {
            Err(errno) if super::tree::unsupported(errno.raw()) && !path.contains("..") => self.step_by_step(path),
            other => other
                .map(File::from)
                .call(|| format!("openat2(<proc>, {path:?}, O_WRONLY, RESOLVE_NO_XDEV)")),
        }
    }

    /// Before Linux 5.6: one component at a time, each on the same device as the root. Two procfs never share one
    /// number, and no file of procfs itself can be bound over another without the plan's refusing it.
    fn step_by_step(&self, path: &str) -> Result<File, Error> {
        let call = || format!("openat(<proc>, {path:?}, O_WRONLY)");
        let device = fstat(&self.root).call(call)?.st_dev;
        let mut here = self.root.as_fd().try_clone_to_owned().call(call)?;
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = parts.next() {
            let how = if parts.peek().is_some() {
                OFlags::PATH | OFlags::DIRECTORY
            } else {
                OFlags::WRONLY
            };
            here = openat(&here, part, how | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).call(call)?;
            if fstat(&here).call(call)?.st_dev != device {
                return Err(Errno::EXDEV).call(call);
            }
        }
        Ok(here.into())
    }

    fn write(&self, path: &str, value: &str) -> Result<(), Error> {
        let mut file = self.open_for_writing(path)?;
        file.write_all(value.as_bytes())
            .call(|| format!("write({path:?}, {value:?})"))
    }
}

/// Writes the sysctls. Which namespaces' they are is decided by who writes, not by which procfs; so any real one serves:
/// the container's, else one of our own, else the host's.
pub(super) fn write_sysctls(plan: &Plan, host: Option<&Procfs>) -> Result<(), Error> {
    if plan.sysctl.is_empty() {
        return Ok(());
    }
    let made = Procfs::host().or_else(|_| Procfs::detached());
    let proc = match (&made, host) {
        (Ok(proc), _) => proc,
        (Err(_), Some(host)) => host,
        (Err(_), None) => return made.map(drop),
    };
    for (key, value) in &plan.sysctl {
        proc.write(&format!("sys/{key}"), value)
            .map_err(|cause| Error::Sysctl {
                key: key.clone(),
                value: value.clone(),
                cause: Box::new(cause),
            })?;
    }
    Ok(())
}

/// Whether `path` is the network namespace that the caller itself is in.
pub(super) fn is_own_net(path: &Path) -> bool {
    let (Ok(own), Ok(other)) = (rustix::fs::stat("/proc/thread-self/ns/net"), rustix::fs::stat(path)) else {
        return false;
    };
    (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino)
}

/// The mount points of complete procfs and sysfs outside of `root`, the last mounted first.
pub(super) fn full_proc_and_sys(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let text = std::fs::read("/proc/thread-self/mountinfo").call(|| "open(\"/proc/thread-self/mountinfo\")")?;
    let mut found: Vec<PathBuf> = String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| full(line, root))
        .collect();
    found.reverse();
    Ok(found)
}

fn full(line: &str, root: &Path) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (mount_root, at) = (left.next()?, PathBuf::from(unescape(left.next()?)));
    let is = mount_root == "/" && matches!(right.split(' ').next()?, "proc" | "sysfs") && !at.starts_with(root);
    is.then_some(at)
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
pub(crate) fn unescape(text: &str) -> String {
    if !text.contains('\\') {
        return text.into();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let [first, rest @ ..] = bytes {
        let code = rest.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                bytes = &rest[3..];
            }
            _ => {
                out.push(*first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
        assert_eq!(unescape("/odd\\04"), "/odd\\04");
    }

    #[test]
    fn only_full_mounts_outside_of_the_root() {
        let root = Path::new("/r");
        assert_eq!(full("1 2 0:3 / /proc rw - proc proc rw", root), Some("/proc".into()));
        assert_eq!(
            full("1 2 0:3 / /sys rw shared:1 - sysfs sysfs rw", root),
            Some("/sys".into())
        );
        assert_eq!(full("1 2 0:3 /sys /mnt rw - proc proc rw", root), None);
        assert_eq!(full("1 2 0:3 / /r/proc rw - proc proc rw", root), None);
        assert_eq!(full("1 2 0:3 / /tmp rw - tmpfs tmpfs rw", root), None);
    }
}
