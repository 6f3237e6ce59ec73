//! Procfs and sysfs of a Wasm container, which cannot be written to.
//!
//! To the kernel, a guest's engine and what a guest makes of it are one process, and a root user's process may write its own
//! code through `/proc/self/mem`, whatever its memory's rights are. The engine's calls are judged
//! (`executor/src/wasm/opens.rs`); the mounts hold for an engine that was taken over, too. For what runs beside the guest in
//! the same mount namespace (`exec` of a Linux program) they are as read-only.
//!
//! The mounts are found by the kernel's list and not by the bundle's, since a bind mount may bring a procfs along. They are
//! opened when all are made, and made read-only at the end, by their descriptors: labels are written to procfs meanwhile.

use super::Mounted;
use super::error::{Error, Named};
use super::procfs::unescape;
use super::resolve::{self, Root};
use super::tree::{self, Change};
use nix::sched::CloneFlags;
use proa_sys::Errno;
use rustix::fs::OFlags;
use rustix::mount::MountAttrFlags as Attr;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The mounts that are to become read-only, open.
#[derive(Debug, Default)]
pub struct Interfaces(Vec<(PathBuf, OwnedFd)>);

impl Interfaces {
    /// Makes them read-only.
    pub fn protect(self) -> Result<(), Error> {
        let change = Change {
            set: Attr::MOUNT_ATTR_RDONLY.bits(),
            clear: 0,
            recursive: false,
        };
        for (path, mount) in &self.0 {
            tree::change(mount.as_fd(), change).call(|| format!("mount_setattr({path:?}, MOUNT_ATTR_RDONLY)"))?;
        }
        Ok(())
    }
}

impl Mounted<'_> {
    /// Those below the container's root. None without a mount namespace: they are the host's then.
    pub fn interfaces(&self) -> Result<Interfaces, Error> {
        if !self.plan.private {
            return Ok(Interfaces::default());
        }
        let path = "/proc/thread-self/mountinfo";
        let list = std::fs::read(path).call(|| format!("open({path:?})"))?;
        find(&String::from_utf8_lossy(&list), &self.plan.root, &self.root)
    }
}

/// Those of the container that this process has joined, in a mount namespace of its own from now on: the container's programs
/// keep theirs as they are. None in a container without procfs that could be asked for them.
pub fn of_running() -> Result<Interfaces, Error> {
    use pathrs::flags::OpenFlags;
    use pathrs::procfs::{ProcfsBase, ProcfsHandle};
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).call(|| "unshare(CLONE_NEWNS)")?;
    let flags = OpenFlags::O_RDONLY | OpenFlags::O_CLOEXEC;
    let opened = ProcfsHandle::new().and_then(|proc| proc.open(ProcfsBase::ProcThreadSelf, "mountinfo", flags));
    let mut list = Vec::new();
    match opened {
        Ok(mut file) => file
            .read_to_end(&mut list)
            .call(|| "read(<proc>/thread-self/mountinfo)")?,
        Err(error) => {
            tracing::debug!("the mounts of the container can't be listed: {error}");
            return Ok(Interfaces::default());
        }
    };
    let root = Root::new(resolve::open_dir(Path::new("/"))?);
    find(&String::from_utf8_lossy(&list), Path::new("/"), &root)
}

/// One line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq)]
struct Line {
    /// The mount's own number.
    id: u64,
    /// The mount point below the root that is asked for.
    at: PathBuf,
    writable_interface: bool,
}

impl Line {
    fn parse(line: &str, root: &Path) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let id = left.next()?.parse().ok()?;
        let at = PathBuf::from(unescape(left.nth(3)?));
        let writable = left.next()?.split(',').any(|option| option == "rw");
        let interface = matches!(right.split(' ').next()?, "proc" | "sysfs");
        Some(Self {
            id,
            at: Path::new("/").join(at.strip_prefix(root).ok()?),
            writable_interface: writable && interface,
        })
    }
}

/// Opens what `list`, a mountinfo, has of writable procfs and sysfs below `root`, which is `opened`.
fn find(list: &str, root: &Path, opened: &Root) -> Result<Interfaces, Error> {
    let lines: Vec<Line> = list.lines().filter_map(|line| Line::parse(line, root)).collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.writable_interface) {
        let path = &line.at;
        let mount = match opened.open_straight(path, OFlags::PATH | OFlags::CLOEXEC) {
            Ok(mount) => mount,
            Err(Errno::ENOENT | Errno::ENOTDIR) if is_covered(&lines, index) => continue,
            Err(errno) => return Err(errno).call(|| format!("openat2(root, {path:?}, O_PATH)")),
        };
        if tree::mount_id(mount.as_fd())? == line.id {
            found.push((path.clone(), mount));
        } else if !is_covered(&lines, index) {
            // Somebody who shares a volume with this container has exchanged a directory.
            return Err(Error::refuse(path, "was exchanged while it was made read-only"));
        }
    }
    Ok(Interfaces(found))
}

/// Whether a mount that was made later covers the one of this place in the list, so that it can't be reached.
fn is_covered(lines: &[Line], index: usize) -> bool {
    let path = &lines[index].at;
    lines[index + 1..].iter().any(|later| path.starts_with(&later.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_container_are_read() {
        let parse = |line| Line::parse(line, Path::new("/r"));
        let proc = parse("36 35 0:22 / /r/a\\040b rw,nosuid shared:1 master:2 - proc proc rw").unwrap();
        assert_eq!(proc.id, 36);
        assert_eq!((proc.at.as_path(), proc.writable_interface), (Path::new("/a b"), true));
        let root = parse("36 35 0:22 / /r rw - proc proc rw").unwrap();
        assert_eq!(root.at, Path::new("/"));
        // The mount's own option counts, not the file system's.
        assert!(
            !parse("36 35 0:22 /sys /r/p ro,nosuid - proc proc rw")
                .unwrap()
                .writable_interface
        );
        assert!(
            !parse("36 35 0:22 / /r/t rw - tmpfs tmpfs rw")
                .unwrap()
                .writable_interface
        );
        assert!(
            parse("36 35 0:22 / /r/s rw - sysfs sysfs rw")
                .unwrap()
                .writable_interface
        );
        assert_eq!(parse("36 35 0:22 / /other rw - proc proc rw"), None);
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn covers_are_known() {
        let parse = |list: &str| -> Vec<Line> {
            let lines = list.lines();
            lines.filter_map(|line| Line::parse(line, Path::new("/"))).collect()
        };
        let covered = |list, index| is_covered(&parse(list), index);
        let plain =
            "1 0 8:1 / / rw - ext4 x rw\n2 1 0:5 / /proc rw - proc proc rw\n3 2 0:5 /sys /proc/sys ro - proc proc rw";
        assert!(!covered(plain, 1));
        assert!(covered(
            "2 1 0:5 / /proc rw - proc proc rw\n3 2 0:6 / /proc rw - tmpfs x rw",
            0
        ));
        assert!(covered(
            "2 1 0:5 / /v/proc rw - proc proc rw\n3 1 0:6 / /v rw - tmpfs x rw",
            0
        ));
        // The root of a compiler lies on what was there.
        assert!(covered("2 1 0:5 / / rw - proc proc rw\n3 1 0:6 / / rw - tmpfs x rw", 0));
    }
}
