//! The `cgroup` mount: what the container sees of the host's cgroup file systems.
//!
//! With a cgroup namespace each hierarchy is mounted anew, and the kernel shows the container's part as its root. Without
//! one, on v1 only the container's own part of each hierarchy is bind-mounted; on v2 the whole (as runc does). A user
//! namespace that may not mount v2 gets the same by a bind mount of the container's cgroup.

use super::error::{Error, Named};
use super::mounts::Scene;
use super::resolve::{Missing, Place};
use super::tree::{self, Change, Source};
use proa_sys::Errno;
use rustix::fs::{FsWord, Mode, OFlags, mkdirat, openat, statfs, symlinkat};
use rustix::mount::{MountAttrFlags as Attr, MountFlags as Flag};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

const HOST: &str = "/sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2: FsWord = 0x6367_7270;
const SAFE: Flag = Flag::NOSUID.union(Flag::NODEV).union(Flag::NOEXEC);

/// A hierarchy as `/proc/self/cgroup` tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    /// The directory's name: `cpu,cpuacct`, `systemd`, `unified`.
    name: String,
    /// What mount(2) selects the v1 hierarchy by; empty for v2.
    select: String,
    /// The process's cgroup in it.
    path: String,
}

pub(super) fn mount(scene: &Scene<'_>) -> Result<(), Error> {
    let fs = statfs(HOST).call(|| format!("statfs({HOST:?})"))?;
    if fs.f_type == CGROUP2 {
        unified(scene)
    } else {
        v1(scene)
    }
}

/// cgroup v2 alone.
fn unified(scene: &Scene<'_>) -> Result<(), Error> {
    let place = scene.place(|| Ok(Missing::Dir))?;
    let options = &scene.mount.options;
    let (source, flags) = (&scene.mount.source, options.flags & !super::options::REMOUNT.bits());
    match tree::mount_new(source, place.fd.as_fd(), "cgroup2", flags, &options.data, &place.real) {
        // A user namespace without a cgroup namespace of its own may not mount it, only show what there is.
        Err(error) if matches!(error.errno(), Some(Errno::EPERM | Errno::EBUSY)) => show(scene, &place, flags),
        Err(error) => Err(error),
        Ok(()) if scene.unsettled() => scene.settle(place.top()?.as_fd()),
        Ok(()) => Ok(()),
    }
}

/// What a container that may not mount cgroup2 gets to see. With a cgroup namespace that is only its own cgroup, as if it
/// were mounted; if it has none, nothing: what the host has is none of its business (CVE-2023-25809's neighbour).
fn show(scene: &Scene<'_>, place: &Place, flags: u32) -> Result<(), Error> {
    let path = match (&scene.plan.cgroup, scene.plan.cgroupns) {
        (_, false) => Path::new(HOST),
        (Some(own), true) => own,
        (None, true) => {
            let empty = Path::new("tmpfs");
            let flags = (SAFE | Flag::RDONLY).bits();
            return tree::mount_new(empty, place.fd.as_fd(), "tmpfs", flags, "", &place.real);
        }
    };
    let source = Source::Path { path, nofollow: false };
    let tree = tree::bind(source, true, place.fd.as_fd(), &place.real, scene.root)?;
    restrict(tree.as_fd(), flags)?;
    scene.settle(tree.as_fd())
}

/// cgroup v1, and v1 with a v2 hierarchy beside it: a tmpfs with a directory for each hierarchy.
fn v1(scene: &Scene<'_>) -> Result<(), Error> {
    let hierarchies =
        own(&std::fs::read_to_string("/proc/thread-self/cgroup").call(|| "open(\"/proc/thread-self/cgroup\")")?);
    let mounted = if scene.plan.cgroupns {
        None
    } else {
        let mut mounted = mountinfo()?;
        // Below the root there may be copies already, of a `/sys` that is bind-mounted.
        mounted.retain(|mounted| !mounted.at.starts_with(&scene.plan.root));
        Some(mounted)
    };
    let place = scene.place(|| Ok(Missing::Dir))?;
    let mut data = String::from("mode=755");
    if let Some(label) = &scene.plan.label {
        data = format!("{data},context=\"{label}\"");
    }
    tree::mount_new(
        Path::new("tmpfs"),
        place.fd.as_fd(),
        "tmpfs",
        SAFE.bits(),
        &data,
        &place.real,
    )?;
    let dir = place.top()?;
    for hierarchy in &hierarchies {
        hierarchy_mount(scene, &dir, &place, hierarchy, mounted.as_deref())?;
    }
    if scene.mount.options.has(Flag::RDONLY) {
        let change = Change {
            set: Attr::MOUNT_ATTR_RDONLY.bits(),
            ..Change::default()
        };
        tree::change(dir.as_fd(), change).call(|| format!("mount_setattr({:?}, MOUNT_ATTR_RDONLY)", place.real))?;
    }
    scene.settle(dir.as_fd())
}

fn hierarchy_mount(
    scene: &Scene<'_>,
    dir: &OwnedFd,
    place: &Place,
    hierarchy: &Hierarchy,
    mounted: Option<&[Mounted]>,
) -> Result<(), Error> {
    let Hierarchy { name, select, .. } = hierarchy;
    let at = place.real.join(name);
    let source = match mounted {
        None => None,
        // The host has the hierarchy but shows it nowhere: then the container doesn't see it either.
        Some(mounted) => match shown(mounted, hierarchy) {
            Some(source) => Some(source),
            None => return Ok(()),
        },
    };
    // Nobody else can be in the tmpfs yet, so names in it lead where they say.
    mkdirat(dir, name, Mode::from_raw_mode(0o755)).call(|| format!("mkdir({at:?})"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let here = openat(dir, name, flags, Mode::empty()).call(|| format!("open({at:?})"))?;
    let readonly = Flag::from_bits_retain(scene.mount.options.flags) & Flag::RDONLY;
    match source {
        None => {
            let fs = if select.is_empty() { "cgroup2" } else { "cgroup" };
            let what = if name == "systemd" { "systemd" } else { "cgroup" };
            tree::mount_new(Path::new(what), here.as_fd(), fs, (SAFE | readonly).bits(), select, &at)?;
        }
        Some(source) => {
            let from = Source::Path {
                path: &source,
                nofollow: false,
            };
            let tree = tree::bind(from, true, here.as_fd(), &at, scene.root)?;
            restrict(tree.as_fd(), scene.mount.options.flags | readonly.bits())?;
        }
    }
    if name.contains(',') {
        for one in name.split(',') {
            match symlinkat(name.as_str(), dir, one) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(errno).call(|| format!("symlink({name:?}, {:?})", place.real.join(one))),
            }
        }
    }
    Ok(())
}

/// The flags of the `cgroup` mount on a bind-mounted part of a hierarchy.
fn restrict(tree: BorrowedFd<'_>, flags: u32) -> Result<(), Error> {
    let change = Change {
        set: tree::attributes(flags),
        ..Change::default()
    };
    if change.set & !Attr::MOUNT_ATTR__ATIME.bits() == 0 {
        return Ok(());
    }
    let change = Change {
        set: change.set & !Attr::MOUNT_ATTR__ATIME.bits(),
        ..change
    };
    tree::change(tree, change).call(|| format!("mount_setattr(cgroup, {change:x?})"))
}

/// Reads `/proc/self/cgroup` (cgroups(7)): `ID:CONTROLLERS:PATH`.
fn own(text: &str) -> Vec<Hierarchy> {
    let mut all: Vec<Hierarchy> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.to_owned());
            let name = match controllers {
                "" => "unified",
                other => other.strip_prefix("name=").unwrap_or(other),
            };
            Some(Hierarchy {
                name: name.into(),
                select: controllers.into(),
                path,
            })
        })
        .collect();
    // The v2 hierarchy is always there; it counts only where the host mounts it beside the others.
    all.retain(|h| !h.select.is_empty() || is_unified());
    all
}

fn is_unified() -> bool {
    statfs(Path::new(HOST).join("unified")).is_ok_and(|fs| fs.f_type == CGROUP2)
}

/// A mounted cgroup hierarchy of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mounted {
    root: String,
    at: PathBuf,
    v2: bool,
    options: String,
}

fn mountinfo() -> Result<Vec<Mounted>, Error> {
    let text =
        std::fs::read_to_string("/proc/thread-self/mountinfo").call(|| "open(\"/proc/thread-self/mountinfo\")")?;
    Ok(text.lines().filter_map(parse_mountinfo).collect())
}

/// proc_pid_mountinfo(5): fields 4 and 5 are root and mount point, after ` - ` come type, source, super options.
fn parse_mountinfo(line: &str) -> Option<Mounted> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, at) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let v2 = match right.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options = right.nth(1)?.to_owned();
    Some(Mounted {
        root: super::procfs::unescape(root),
        at: super::procfs::unescape(at).into(),
        v2,
        options,
    })
}

/// Where the host shows the process's own cgroup of `hierarchy`.
fn shown(mounted: &[Mounted], hierarchy: &Hierarchy) -> Option<PathBuf> {
    mounted.iter().find_map(|m| {
        let same = if hierarchy.select.is_empty() {
            m.v2
        } else {
            !m.v2
                && hierarchy
                    .select
                    .split(',')
                    .all(|one| m.options.split(',').any(|option| option == one))
        };
        if !same {
            return None;
        }
        let inside = Path::new(&hierarchy.path).strip_prefix(&m.root).ok()?;
        let path = m.at.join(inside);
        // A path with nothing behind it ends in a slash otherwise, which open_tree(2) takes but no message should show.
        Some(path.components().collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(name: &str, select: &str, path: &str) -> Hierarchy {
        Hierarchy {
            name: name.into(),
            select: select.into(),
            path: path.into(),
        }
    }

    #[test]
    fn names_of_hierarchies() {
        let text = "12:cpu,cpuacct:/a\n3:name=systemd:/b:c\n2:memory:/\n";
        assert_eq!(
            own(text),
            [
                hierarchy("cpu,cpuacct", "cpu,cpuacct", "/a"),
                hierarchy("systemd", "name=systemd", "/b:c"),
                hierarchy("memory", "memory", "/"),
            ]
        );
    }

    #[test]
    fn own_part_of_a_hierarchy() {
        let lines = [
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct",
            "33 31 0:30 /docker/x /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory",
            "34 31 0:31 / /sys/fs/cgroup/with\\040space rw - cgroup2 cgroup2 rw",
            "35 31 0:32 / /proc rw - proc proc rw",
        ];
        let mounted: Vec<_> = lines.iter().filter_map(|line| parse_mountinfo(line)).collect();
        assert_eq!(mounted.len(), 3);
        let at = |name, select, path| shown(&mounted, &hierarchy(name, select, path));
        assert_eq!(
            at("cpu,cpuacct", "cpu,cpuacct", "/c"),
            Some("/sys/fs/cgroup/cpu,cpuacct/c".into())
        );
        assert_eq!(
            at("memory", "memory", "/docker/x/y"),
            Some("/sys/fs/cgroup/memory/y".into())
        );
        assert_eq!(
            at("memory", "memory", "/docker/x"),
            Some("/sys/fs/cgroup/memory".into())
        );
        assert_eq!(at("memory", "memory", "/other"), None);
        assert_eq!(at("unified", "", "/c"), Some("/sys/fs/cgroup/with space/c".into()));
        assert_eq!(at("pids", "pids", "/"), None);
    }
}
