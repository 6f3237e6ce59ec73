//! The root: made a mount point before the mounts, made the process's root after them.

use super::error::{Error, Named};
use super::options::{PRIVATE, REC, SHARED, SLAVE};
use super::resolve::{open_dir, open_dir_no_symlinks};
use super::{Plan, procfs, tree};
use proa_sys::Errno;
use proa_sys::errno::Raw;
use rustix::fs::CWD;
use rustix::mount::{MountFlags as Flag, MountPropagationFlags as Propagation, UnmountFlags};
use rustix::mount::{mount, mount_change, mount_move, unmount};
use rustix::process::{chdir, chroot, fchdir, pivot_root};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Cuts the mount namespace, if there is a new one, off from the host's as `linux.rootfsPropagation` says, and makes the
/// root a mount point.
/// Returns a descriptor of the new mount.
pub(super) fn prepare(plan: &Plan) -> Result<OwnedFd, Error> {
    if plan.private {
        let propagation = if plan.propagation == 0 {
            SLAVE | REC
        } else {
            plan.propagation
        };
        change(Path::new("/"), propagation)?;
    }
    if plan.private && !closed(plan) {
        let slave = plan.propagation & SLAVE != 0;
        parent_closed(
            &plan.root,
            if slave {
                Propagation::DOWNSTREAM
            } else {
                Propagation::PRIVATE
            },
        )?;
    }
    let root = open_dir_no_symlinks(CWD, &plan.root).call(|| format!("open({:?}, O_PATH|O_DIRECTORY)", plan.root))?;
    if let Some(bytes) = plan.scratch.filter(|_| plan.private) {
        return scratch(plan, root.as_fd(), bytes);
    }
    let mounted = match tree::detached(tree::Source::Fd(root.as_fd()), true) {
        Ok(tree) => {
            tree::attach(tree.as_fd(), root.as_fd()).call(|| format!("move_mount(<root>, {:?})", plan.root))?;
            tree
        }
        Err(errno) if tree::unsupported(errno) => bind_classic(plan, root.as_fd())?,
        Err(errno) => return Err(errno).call(|| format!("open_tree({:?}, OPEN_TREE_CLONE|AT_RECURSIVE)", plan.root)),
    };
    if !plan.private {
        // A copy of a shared mount is its peer: what is mounted below would appear below the original, too.
        change(&plan.root, PRIVATE | REC)?;
    }
    Ok(mounted)
}

/// Covers the root with an empty file system in memory.
fn scratch(plan: &Plan, root: BorrowedFd<'_>, bytes: u64) -> Result<OwnedFd, Error> {
    let flags = Flag::NOSUID | Flag::NODEV;
    let data = format!("mode=1777,size={bytes}");
    tree::mount_new(Path::new("proa"), root, "tmpfs", flags.bits(), &data, &plan.root)?;
    chdir("/").call(|| "chdir(\"/\")")?;
    top(plan, root)
}

fn top(plan: &Plan, root: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    tree::top(root).call(|| format!("openat2({:?}, \"..\", RESOLVE_IN_ROOT)", plan.root))
}

/// Before Linux 5.2.
fn bind_classic(plan: &Plan, root: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    mount(tree::magic(root), tree::magic(root), "", Flag::BIND | Flag::REC, None)
        .call(|| format!("mount({0:?}, {0:?}, NULL, MS_BIND|MS_REC)", plan.root))?;
    top(plan, root)
}

/// Whether no mount of the namespace hands mounts on to another one.
fn closed(plan: &Plan) -> bool {
    plan.propagation == 0 || (plan.propagation & REC != 0 && plan.propagation & SHARED == 0)
}

fn change(path: &Path, propagation: u32) -> Result<(), Error> {
    mount_change(path, Propagation::from_bits_retain(propagation))
        .call(|| format!("mount(NULL, {path:?}, NULL, {propagation:#x})"))
}

/// pivot_root(2) refuses a new root whose parent mount is shared, and what is mounted below would appear on the host. The
/// root, a copy of that mount, is to be a slave of the host's still if the bundle says so.
fn parent_closed(root: &Path, propagation: Propagation) -> Result<(), Error> {
    for path in root.ancestors() {
        match mount_change(path, propagation) {
            Ok(()) => return Ok(()),
            // Not a mount point: its mount is one further up.
            Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(errno).call(|| format!("mount(NULL, {path:?}, NULL, {propagation:?})")),
        }
    }
    Err(Errno::EINVAL).call(|| format!("mount(NULL, \"/\", NULL, {propagation:?})"))
}

/// Makes `root` the process's root, and takes the host's out of the namespace.
pub(super) fn enter(plan: &Plan, root: BorrowedFd<'_>) -> Result<(), Error> {
    if !plan.private {
        // Moving or exchanging the root would do so for everybody in the namespace.
        fchdir(root).call(|| "fchdir(root)")?;
        chroot(".").call(|| "chroot(\".\")")?;
        return chdir("/").call(|| "chdir(\"/\")");
    }
    if plan.no_pivot {
        return move_root(plan, root);
    }
    let old = if closed(plan) {
        None
    } else {
        Some(open_dir(Path::new("/"))?)
    };
    fchdir(root).call(|| "fchdir(root)")?;
    // The old root ends up on top of the new one, so that no directory is needed to put it in (pivot_root(2), Notes).
    pivot_root(".", ".").call(|| "pivot_root(\".\", \".\")")?;
    if let Some(old) = &old {
        fchdir(old).call(|| "fchdir(old root)")?;
        // Or the unmounting would reach the host.
        change(Path::new("."), SLAVE | REC)?;
    }
    unmount(".", UnmountFlags::DETACH).call(|| "umount2(\".\", MNT_DETACH)")?;
    chdir("/").call(|| "chdir(\"/\")")
}

/// `--no-pivot`. The kernel lets a container mount procfs and sysfs only if the namespace shows a complete one already;
/// the host's, still mounted out of sight, would count: they go first.
fn move_root(plan: &Plan, root: BorrowedFd<'_>) -> Result<(), Error> {
    for path in procfs::full_proc_and_sys(&plan.root)? {
        match mount_change(&path, Propagation::DOWNSTREAM | Propagation::REC) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => continue,
            Err(errno) => return Err(errno).call(|| format!("mount(NULL, {path:?}, NULL, MS_SLAVE|MS_REC)")),
        }
        match unmount(&path, UnmountFlags::DETACH).map_err(|errno| errno.raw()) {
            Ok(()) => {}
            // A user namespace may not take it away, but may cover it.
            Err(Errno::EINVAL | Errno::EPERM) => mount("tmpfs", &path, "tmpfs", Flag::empty(), None)
                .call(|| format!("mount(\"tmpfs\", {path:?}, \"tmpfs\")"))?,
            Err(errno) => return Err(errno).call(|| format!("umount2({path:?}, MNT_DETACH)")),
        }
    }
    fchdir(root).call(|| "fchdir(root)")?;
    mount_move(".", "/").call(|| format!("mount({:?}, \"/\", NULL, MS_MOVE)", plan.root))?;
    chroot(".").call(|| "chroot(\".\")")?;
    chdir("/").call(|| "chdir(\"/\")")
}
