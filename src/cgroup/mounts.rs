//! Where cgroup hierarchies are mounted: v1, v2 or both (hybrid).

use super::{Error, file};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{AccessFlags, faccessat};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// The v1 controllers a container joins, as runc knows them.
const CONTROLLERS: [&str; 15] = [
    "cpuset",
    "devices",
    "memory",
    "cpu",
    "cpuacct",
    "pids",
    "blkio",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "freezer",
    "rdma",
    "name=systemd",
    "misc",
];

/// Where the file system is mounted on every distribution that has only v2.
const USUAL_MOUNT: &str = "/sys/fs/cgroup";

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Its v1 controllers (several if they are mounted together), none for v2.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Which directory of the hierarchy is mounted there (`/` unless it is a bind mount of a part).
    pub root: String,
    /// The caller's own cgroup in it, as `/proc/self/cgroup` prints it.
    pub own: String,
}

/// All hierarchies that can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// v1 hierarchies with at least one controller that is of use here.
    pub v1: Vec<Hierarchy>,
    /// The v2 hierarchy.
    pub v2: Option<Hierarchy>,
}

impl Hierarchy {
    /// The caller's own cgroup directory.
    pub fn own_dir(&self) -> PathBuf {
        let rest = if self.root == "/" {
            Some(self.own.as_str())
        } else {
            self.own.strip_prefix(&self.root)
        };
        // What is outside of the mounted part (or of the cgroup namespace: `/../x`) can't be named: the mounted part is
        // as near as one gets.
        let rest = rest.filter(|rest| !rest.starts_with("/..") && (rest.is_empty() || rest.starts_with('/')));
        join(&self.mount, rest.unwrap_or(""))
    }

    /// Whether this process may move processes of its own to the v2 cgroup `path`: without privileges it must be allowed to
    /// write to `cgroup.procs` of the nearest cgroup that is above both (cgroups(7), delegation containment).
    pub fn may_enter(&self, path: &Path) -> bool {
        let own = self.own_dir();
        let above = path.ancestors().find(|above| own.starts_with(above));
        above.is_some_and(|above| {
            faccessat(
                AT_FDCWD,
                &above.join("cgroup.procs"),
                AccessFlags::W_OK,
                AtFlags::AT_EACCESS,
            )
            .is_ok()
        })
    }

    /// Whether `controller` is in this hierarchy.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

impl Layout {
    /// Looks at the mounts of this process.
    pub fn probe() -> Result<Self, Error> {
        let read = |path: &'static str| {
            file::read(Path::new(path)).map_err(|errno| Error::Call {
                call: "read",
                path: path.into(),
                errno,
            })
        };
        // Reading mountinfo costs what the host has of mounts; where the usual place is v2 there is no need.
        if statfs(USUAL_MOUNT).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            let own = own_cgroup(&memberships(&read("/proc/self/cgroup")?), &[]);
            let v2 = Hierarchy {
                controllers: Vec::new(),
                mount: USUAL_MOUNT.into(),
                root: "/".into(),
                own,
            };
            return Ok(Self {
                v1: Vec::new(),
                v2: Some(v2),
            });
        }
        let layout = Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        if layout.v1.is_empty() && layout.v2.is_none() {
            return Err(Error::NoCgroupMount);
        }
        Ok(layout)
    }

    /// Finds the visible cgroup mounts in the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    pub fn parse(mountinfo: &str, own: &str) -> Self {
        let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(Mount::parse).collect();
        let own = memberships(own);
        let mut layout = Self::default();
        for mount in mounts.iter().filter(|mount| mount.kind.starts_with("cgroup")) {
            if !mount.is_visible(&mounts) {
                continue;
            }
            let options = mount.super_options.split(',');
            let controllers: Vec<String> = options
                .filter(|name| CONTROLLERS.contains(name))
                .map(str::to_owned)
                .collect();
            let hierarchy = Hierarchy {
                own: own_cgroup(&own, &controllers),
                mount: PathBuf::from(&*mount.point),
                root: unescape(mount.root).into_owned(),
                controllers,
            };
            if mount.kind == "cgroup2" {
                layout.v2.get_or_insert(hierarchy);
            } else if !hierarchy.controllers.is_empty()
                && !layout.v1.iter().any(|known| known.controllers == hierarchy.controllers)
            {
                // A hierarchy may be mounted more than once (bind mounts for chroots): the first is the system's.
                layout.v1.push(hierarchy);
            }
        }
        layout
    }

    /// Whether resources are to be controlled through v1. A lone `name=systemd` hierarchy controls nothing.
    pub fn is_legacy(&self) -> bool {
        self.v1
            .iter()
            .any(|hierarchy| hierarchy.controllers.iter().any(|name| !name.starts_with("name=")))
    }
}

/// The lines of `/proc/self/cgroup`: the names of a hierarchy's controllers (empty for v2), and the path in it.
fn memberships(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .collect()
}

/// The path of this process in the hierarchy of `controllers` (v2 if empty).
fn own_cgroup(memberships: &[(&str, &str)], controllers: &[String]) -> String {
    let found = memberships.iter().find(|(names, _)| match controllers.first() {
        None => names.is_empty(),
        Some(controller) => names.split(',').any(|name| name == controller),
    });
    found.map_or("/", |(_, path)| path).to_owned()
}

/// `base` with the absolute or relative `path` below it.
pub(super) fn join(base: &Path, path: &str) -> PathBuf {
    let path = path.trim_matches('/');
    if path.is_empty() {
        base.to_owned()
    } else {
        base.join(path)
    }
}

/// A line of mountinfo. It borrows from the text: a host has thousands of mounts, of which a dozen matter here.
struct Mount<'a> {
    id: u32,
    parent: u32,
    /// Still escaped.
    root: &'a str,
    point: Cow<'a, str>,
    kind: &'a str,
    super_options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(' ');
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (root, point) = (fields.nth(1)?, unescape(fields.next()?));
        // The mount's options, then any number of optional fields, ended by a lone hyphen.
        fields.find(|field| *field == "-")?;
        Some(Self {
            id,
            parent,
            root,
            point,
            kind: fields.next()?,
            super_options: fields.nth(1).unwrap_or_default(),
        })
    }

    /// Whether a walk to its mount point ends in it: nothing may be mounted on it, nor on a directory on the way.
    fn is_visible(&self, mounts: &[Self]) -> bool {
        let covered = mounts.iter().any(|other| {
            let on_top = other.parent == self.id && other.point == self.point;
            let on_the_way = other.parent == self.parent && other.id != self.id && is_above(&other.point, &self.point);
            on_top || on_the_way
        });
        let parent = mounts
            .iter()
            .find(|other| other.id == self.parent && other.id != self.id);
        !covered && parent.is_none_or(|parent| parent.is_visible_for_children(mounts))
    }

    /// As [`Mount::is_visible`], for a mount of which a deeper one is asked: what covers its root is seen there.
    fn is_visible_for_children(&self, mounts: &[Self]) -> bool {
        let covered = mounts
            .iter()
            .any(|other| other.parent == self.parent && other.id != self.id && is_above(&other.point, &self.point));
        let parent = mounts
            .iter()
            .find(|other| other.id == self.parent && other.id != self.id);
        !covered && parent.is_none_or(|parent| parent.is_visible_for_children(mounts))
    }
}

/// Whether `upper` is a directory above `lower`.
fn is_above(upper: &str, lower: &str) -> bool {
    lower
        .strip_prefix(upper)
        .is_some_and(|rest| (upper == "/" && !rest.is_empty()) || rest.starts_with('/'))
}

/// Undoes mountinfo's octal escapes (`\040` is a space).
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return text.into();
    }
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    (out + rest).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 1 8:1 / / rw - ext4 /dev/sda rw
31 22 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str = "9:name=systemd:/\n4:memory:/pod/a\n2:cpu,cpuacct:/\n0::/user.slice/x\n";

    #[test]
    fn hybrid() {
        let layout = Layout::parse(HYBRID, OWN);
        assert!(layout.is_legacy());
        assert_eq!(layout.v1.len(), 3);
        assert!(layout.v1[0].has("cpuacct") && layout.v1[0].has("cpu"));
        assert_eq!(layout.v1[1].own_dir(), Path::new("/sys/fs/cgroup/memory/pod/a"));
        assert_eq!(layout.v1[2].controllers, ["name=systemd"]);
        let v2 = layout.v2.unwrap();
        assert_eq!(v2.own_dir(), Path::new("/sys/fs/cgroup/unified/user.slice/x"));
    }

    #[test]
    fn what_lies_under_another_mount_is_not_there() {
        let text = format!("{HYBRID}50 31 0:38 / /sys/fs/cgroup rw - cgroup2 none rw\n");
        let layout = Layout::parse(&text, OWN);
        assert!(layout.v1.is_empty(), "{:?}", layout.v1);
        assert!(!layout.is_legacy());
        assert_eq!(layout.v2.unwrap().mount, Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn a_mount_on_the_parents_directory_hides_the_whole_tree() {
        let text = format!("{HYBRID}50 22 0:40 / /sys rw - tmpfs none rw\n");
        assert_eq!(Layout::parse(&text, OWN), Layout::default());
    }

    #[test]
    fn a_named_hierarchy_alone_is_not_legacy() {
        let text = "\
31 22 0:28 / /cg rw - tmpfs tmpfs rw
40 31 0:37 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw
";
        assert!(!Layout::parse(text, OWN).is_legacy());
    }

    #[test]
    fn a_bind_mounted_part() {
        let text = "35 31 0:32 /pod /cg/my\\040memory rw - cgroup cgroup rw,memory\n";
        let layout = Layout::parse(text, OWN);
        assert_eq!(layout.v1[0].own_dir(), Path::new("/cg/my memory/a"));
        let layout = Layout::parse(text, "4:memory:/podium/a\n");
        assert_eq!(layout.v1[0].own_dir(), Path::new("/cg/my memory"));
    }

    #[test]
    fn outside_of_the_cgroup_namespace() {
        let layout = Layout::parse(HYBRID, "4:memory:/../x\n");
        assert_eq!(layout.v1[1].own_dir(), Path::new("/sys/fs/cgroup/memory"));
    }
}
