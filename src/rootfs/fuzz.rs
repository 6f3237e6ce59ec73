//! The fuzz targets of this room; see [`crate::fuzz`].

use super::options::{self, Parsed};
use super::resolve::{Missing, Root, open_dir, path_of};
use super::{Plan, plan};
use crate::fuzz::{Bytes, scratch};
use proa_sys::Errno;
use proa_sys::errno::Raw;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::MountAttrFlags;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// What holds of every file system that a configuration resolves to.
pub(crate) fn check(plan: &Plan) {
    for mount in &plan.mounts {
        let destination = &mount.destination;
        assert_eq!(&plan::clean(destination), destination);
        assert_ne!(destination, Path::new("/"));
        if mount.kind == super::Kind::Bind {
            assert!(mount.source.is_absolute());
        }
        plan::check_proc("mounts", destination, &mount.kind).expect("it was checked when it was planned");
    }
    for device in &plan.devices {
        assert_eq!(plan::clean(&device.path), device.path);
    }
    for (file, _) in &plan.sysctl {
        assert!(
            !file.starts_with('/') && file.split('/').all(|part| !matches!(part, "" | "." | "..")),
            "{file}"
        );
    }
}

/// Lines as the options of one mount.
pub fn mount_options(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let known = options::known();
    let mut bytes = Bytes(data);
    let words: Vec<&str> = match text.contains('\n') {
        true => text.split('\n').collect(),
        false => std::iter::from_fn(|| (!bytes.0.is_empty()).then(|| bytes.one(&known))).collect(),
    };
    let parsed = options::parse(words.iter().copied());
    holds(&parsed);
    // The last word on a thing counts: to say it again changes nothing but the propagations, which are a list of steps.
    let mut again = options::parse(words.iter().chain(&words).copied());
    assert_eq!(again.propagation.len(), 2 * parsed.propagation.len());
    again.propagation.truncate(parsed.propagation.len());
    assert_eq!(again.propagation, parsed.propagation);
    again.data.clone_from(&parsed.data);
    assert_eq!(again, parsed);
    // What is for the file system is in it, in order, and nothing else is.
    let data: Vec<&str> = words
        .into_iter()
        .filter(|word| !word.is_empty() && !known.contains(word))
        .collect();
    assert_eq!(parsed.data, data.join(","));
    super::tree::attributes(parsed.flags);
}

fn holds(parsed: &Parsed) {
    // A flag is on, or off, or not spoken of.
    assert_eq!(parsed.flags & parsed.cleared, 0);
    let atime = MountAttrFlags::MOUNT_ATTR__ATIME.bits();
    assert_eq!(parsed.recursive_set & parsed.recursive_clear & !atime, 0);
    // mount_setattr(2): EINVAL, if a mode of access times is set and not all of them cleared.
    assert!(parsed.recursive_set & atime == 0 || parsed.recursive_clear & atime == atime);
    let types = options::SHARED | options::SLAVE | options::PRIVATE | options::UNBINDABLE;
    assert!(
        parsed
            .propagation
            .iter()
            .all(|one| (one & types).count_ones() == 1 && one & !(types | options::REC) == 0)
    );
}

/// Names to make paths of: everything that leads somewhere else, and into everything that is made.
const NAMES: [&str; 24] = [
    "..",
    ".",
    "",
    "a",
    "b",
    "dir",
    "file",
    "up",
    "out",
    "host",
    "self",
    "loop",
    "dangling",
    "far",
    "deep",
    "absolute",
    "proc",
    "magic",
    "new",
    "fifo",
    "trailing/",
    "etc",
    "passwd",
    "c",
];

/// A hostile root file system, and beside it what must not be reached.
struct Tree {
    dir: PathBuf,
    root: Root,
}

impl Tree {
    fn new() -> Self {
        let dir = scratch().join("resolver");
        if dir.exists() {
            fs::remove_dir_all(&dir).expect("the tree of the run before");
        }
        let inside = dir.join("root");
        for name in ["root/dir/a/b", "root/etc", "root/proc", "outside/dir"] {
            fs::create_dir_all(dir.join(name)).expect("a directory");
        }
        for name in ["root/file", "root/etc/passwd", "outside/file", "outside/passwd"] {
            fs::write(dir.join(name), name).expect("a file");
        }
        let outside = dir.join("outside");
        let links: [(&str, &Path); 10] = [
            ("up", Path::new("../../../../..")),
            ("out", Path::new("../outside")),
            ("host", &outside),
            ("self", Path::new(".")),
            ("loop", Path::new("loop")),
            ("dangling", Path::new("new/one")),
            ("far", Path::new("/../../outside/new")),
            ("dir/deep", Path::new("../../dir/../../outside")),
            ("absolute", Path::new("/etc")),
            ("magic", Path::new("/proc/self/root")),
        ];
        for (name, target) in links {
            symlink(target, inside.join(name)).expect("a link");
        }
        let root = Root::new(open_dir(&inside).expect("the root"));
        Self { dir, root }
    }

    fn inside(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// That `fd` is below the root, and nothing was changed beside it.
    fn holds(&self, fd: &OwnedFd, path: &Path) {
        let found = path_of(fd.as_fd()).expect("procfs");
        assert!(found.starts_with(self.inside()), "{path:?} led to {found:?}");
        let names = |dir: &str| fs::read_dir(self.dir.join(dir)).expect("a directory").count();
        assert_eq!(
            (names(""), names("outside"), names("outside/dir")),
            (2, 3, 0),
            "{path:?}"
        );
    }
}

/// A path of a few names, or of any bytes but NUL.
fn path(bytes: &mut Bytes<'_>) -> PathBuf {
    let count = bytes.byte();
    if count >= 0xf0 {
        let size = usize::from(bytes.byte()) * if count == 0xff { 40 } else { 1 };
        let raw: Vec<u8> = bytes.take(size).iter().copied().filter(|byte| *byte != 0).collect();
        return PathBuf::from(OsStr::from_bytes(&raw));
    }
    let names: Vec<&str> = (0..count % 12).map(|_| bytes.one(&NAMES)).collect();
    let start = if count & 1 == 0 { "/" } else { "" };
    PathBuf::from(format!("{start}{}", names.join("/")))
}

/// Looks paths up and makes them, below a root full of traps, on the way of this kernel and on that of older ones.
pub fn resolver(data: &[u8]) {
    let mut bytes = Bytes(data);
    let tree = Tree::new();
    for _ in 0..12 {
        if bytes.0.is_empty() {
            return;
        }
        let (operation, path) = (bytes.byte() % 6, path(&mut bytes));
        match operation {
            0 | 1 => {
                let nofollow = operation == 1;
                if let Ok(Some(place)) = tree.root.lookup(&path, nofollow) {
                    tree.holds(&place.fd, &path);
                    assert!(!place.new);
                }
                older(&tree, &path, nofollow);
                by_links(&tree, &path);
            }
            2 => {
                if let Ok(place) = tree.root.make_dir(&path) {
                    tree.holds(&place.fd, &path);
                }
            }
            3 | 4 => {
                let missing = if operation == 3 { Missing::Dir } else { Missing::File };
                if matches!(tree.root.lookup(&path, false), Ok(None))
                    && let Ok(place) = tree.root.make(&path, missing)
                {
                    tree.holds(&place.fd, &path);
                    assert!(place.real.is_absolute());
                }
            }
            _ => {
                // The container's processes change the tree in between.
                let at = tree.inside().join(bytes.one(&NAMES[3..8]));
                if fs::symlink_metadata(&at).is_err() {
                    // A target that the kernel does not take is none.
                    symlink(&path, &at).ok();
                }
            }
        }
    }
}

/// Before openat2(2) a path leads to the same place or nowhere.
fn older(tree: &Tree, path: &Path, nofollow: bool) {
    let follow = if nofollow { OFlags::NOFOLLOW } else { OFlags::empty() };
    let flags = OFlags::PATH | OFlags::CLOEXEC | follow;
    let old = tree.root.step_by_step(super::resolve::relative(path), flags);
    same(tree, path, old, tree.root.open_straight(path, flags));
}

/// With links, which are taken here, it leads to where the kernel finds it.
fn by_links(tree: &Tree, path: &Path) {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let kernel = openat2(
        &tree.root,
        super::resolve::relative(path),
        flags,
        Mode::empty(),
        resolve,
    );
    let own = match tree.root.lookup(path, false) {
        Ok(Some(place)) => Ok(place.fd),
        Ok(None) => Err(Errno::ENOENT),
        Err(error) => Err(error.errno().unwrap_or(Errno::EXDEV)),
    };
    same(tree, path, own, kernel.map_err(|errno| errno.raw()));
}

fn same(tree: &Tree, path: &Path, old: Result<OwnedFd, Errno>, new: Result<OwnedFd, Errno>) {
    match (old, new) {
        (Ok(old), Ok(new)) => {
            tree.holds(&old, path);
            let id = |fd: &OwnedFd| {
                let meta = fs::File::from(fd.try_clone().expect("dup")).metadata().expect("fstat");
                (meta.dev(), meta.ino())
            };
            assert_eq!(id(&old), id(&new), "{path:?}");
        }
        // Stricter in what is rare: `..` where links are refused anyway.
        (Err(_), _) => {}
        (Ok(old), Err(errno)) => {
            tree.holds(&old, path);
            // Names are not counted together, and `/.` behind a file is not seen.
            let known = [Errno::ENAMETOOLONG, Errno::ENOTDIR];
            assert!(known.contains(&errno), "{path:?}: openat2 said {errno}");
        }
    }
}
