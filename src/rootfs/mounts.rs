//! The entries of `mounts`, one after the other.

use super::error::{Error, Named};
use super::resolve::{Missing, Place, Root};
use super::tree::{self, Change, Source};
use super::{AskToMap, Kind, Mount, Plan, cgroup, copyup, options, plan::check_proc, protect, sources};
use proa_sys::Errno;
use proa_sys::errno::Raw;
use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, openat};
use rustix::mount::{MountAttrFlags as Attr, MountFlags as Flag};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `PROC_SUPER_MAGIC`, and the inode number of the root of every procfs.
const PROC: (rustix::fs::FsWord, u64) = (0x9fa0, 1);

/// Where the runtime itself makes files.
const DEV: &str = "/dev";

/// What one mount is made with.
pub(super) struct Scene<'a> {
    pub plan: &'a Plan,
    pub root: &'a Root,
    pub mount: &'a Mount,
    pub ask: AskToMap<'a>,
}

/// What later steps need of the mounts: they go on from here, and look none up again, as it could be another one by then.
#[derive(Debug, Default)]
pub(super) struct Made<'a> {
    /// The root of the file system that the bundle has on `/dev`.
    pub dev: Option<OwnedFd>,
    /// What [`protect::is_late_readonly`].
    pub late: Vec<(&'a Mount, OwnedFd)>,
    /// The bind mounts, and where below the root they lie, links of the image taken.
    pub binds: Vec<(&'a Mount, PathBuf)>,
}

impl<'a> Made<'a> {
    fn note(&mut self, mount: &'a Mount, laid: Laid) -> Result<(), Error> {
        if mount.kind == Kind::Bind {
            self.binds.push((mount, laid.real));
            return Ok(());
        }
        let Some(top) = laid.top else { return Ok(()) };
        if protect::is_late_readonly(mount) {
            let top = top.try_clone().call(|| "fcntl(F_DUPFD_CLOEXEC)")?;
            self.late.push((mount, top));
        }
        if mount.destination == Path::new(DEV) {
            self.dev = Some(top);
        }
        Ok(())
    }
}

/// A mount that was made.
struct Laid {
    /// Where below the root it lies.
    real: PathBuf,
    /// Its root, where that is needed.
    top: Option<OwnedFd>,
}

/// Makes every mount.
pub(super) fn all<'a>(plan: &'a Plan, root: &Root, ask: AskToMap<'_>) -> Result<Made<'a>, Error> {
    let mut made = Made::default();
    for mount in &plan.mounts {
        let scene = Scene { plan, root, mount, ask };
        let laid = one(&scene).and_then(|laid| laid.map_or(Ok(()), |laid| made.note(mount, laid)));
        laid.map_err(|cause| named(mount, cause))?;
    }
    // The mount points were entered one by one; leave the last one, whose mount would be busy for its life.
    rustix::process::fchdir(root.as_fd()).call(|| "fchdir(root)")?;
    Ok(made)
}

fn named(mount: &Mount, cause: Error) -> Error {
    Error::Mount {
        field: format!("mounts[{}]", mount.index),
        what: match &mount.kind {
            Kind::Fs(name) if mount.source.as_os_str().is_empty() => name.clone(),
            _ => mount.source.display().to_string(),
        },
        destination: mount.destination.clone(),
        cause: Box::new(cause),
    }
}

/// Makes the mount point of `mount`. A bind mount is made as well, for the mount points inside it.
pub(super) fn make_point(plan: &Plan, root: &Root, mount: &Mount) -> Result<(), Error> {
    // Nobody sees it, so that no id has to be mapped.
    let ask: AskToMap<'_> = &|_, _| false;
    let scene = Scene { plan, root, mount, ask };
    let made = match &mount.kind {
        Kind::Bind => bind(&scene).map(drop),
        Kind::Fs(name) => point(&scene, name).map(drop),
        Kind::Cgroup => scene.place(|| Ok(Missing::Dir)).map(drop),
    };
    made.map_err(|cause| named(mount, cause))
}

fn one(scene: &Scene<'_>) -> Result<Option<Laid>, Error> {
    match &scene.mount.kind {
        Kind::Bind => bind(scene).map(Some),
        Kind::Cgroup => cgroup::mount(scene).map(|()| None),
        Kind::Fs(name) => file_system(scene, name).map(Some),
    }
}

impl Scene<'_> {
    /// The mount point, made if it is missing; safe to mount this kind on.
    pub(super) fn place(&self, missing: impl FnOnce() -> Result<Missing, Error>) -> Result<Place, Error> {
        let destination = &self.mount.destination;
        let place = match self.root.lookup(destination, self.mount.options.destination_nofollow)? {
            Some(place) => place,
            None => self.root.make(destination, missing()?)?,
        };
        if place.real != self.mount.destination {
            // The plan looked at the destination as written; symbolic links led elsewhere.
            check_proc(
                &format!("mounts[{}].destination", self.mount.index),
                &place.real,
                &self.mount.kind,
            )?;
            if place.real == Path::new("/") {
                return Err(Error::refuse(
                    &self.mount.destination,
                    "leads to the root of the container",
                ));
            }
            check_dev(self.mount, &place.real)?;
        }
        Ok(place)
    }

    /// What remains to be done to a mount once it is there.
    pub(super) fn settle(&self, tree: BorrowedFd<'_>) -> Result<(), Error> {
        let options = &self.mount.options;
        for &propagation in &options.propagation {
            tree::propagate(tree, propagation).call(|| {
                format!(
                    "mount_setattr({:?}, propagation={propagation:#x})",
                    self.mount.destination
                )
            })?;
        }
        if options.recursive_set | options.recursive_clear != 0 {
            let change = Change {
                set: options.recursive_set,
                clear: options.recursive_clear,
                recursive: true,
            };
            tree::change(tree, change).call(|| format!("mount_setattr({:?}, {change:x?})", self.mount.destination))?;
        }
        Ok(())
    }

    pub(super) fn unsettled(&self) -> bool {
        let options = &self.mount.options;
        !options.propagation.is_empty() || options.recursive_set | options.recursive_clear != 0
    }
}

/// `/dev` is where the runtime makes nodes and links and removes some: what is there has to be what the bundle has put there.
/// A link of the image, or of a volume, has no say in it.
fn check_dev(mount: &Mount, real: &Path) -> Result<(), Error> {
    if real == Path::new(DEV) {
        let problem = "leads to \"/dev\" by a symbolic link: what is mounted there has to have it as its destination";
        return Err(Error::refuse(&mount.destination, problem));
    }
    if mount.destination == Path::new(DEV) && mount.kind != Kind::Bind {
        return Err(Error::refuse(
            &mount.destination,
            format!("is reached through a symbolic link, which leads to {real:?}"),
        ));
    }
    Ok(())
}

/// A new mount of a file system.
fn file_system(scene: &Scene<'_>, name: &str) -> Result<Laid, Error> {
    let Mount { options, source, .. } = scene.mount;
    let place = point(scene, name)?;
    let mut flags = options.flags & !options::REMOUNT.bits();
    let mut data = options.data.clone();
    if protect::is_late_readonly(scene.mount) {
        // Devices, links and copied files still have to be put there.
        flags &= !Flag::RDONLY.bits();
    }
    // A tmpfs looks like the directory that it hides, if there was one.
    if name == "tmpfs" && !place.new && !data.split(',').any(|option| option.starts_with("mode=")) {
        let stat = fstat(&place.fd).call(|| format!("fstat({:?})", place.real))?;
        data = join(&format!("mode={:04o}", stat.st_mode & 0o7777), &data);
    }
    // These file systems have labels of their own.
    if let Some(label) = scene
        .plan
        .label
        .as_ref()
        .filter(|_| !matches!(name, "proc" | "sysfs" | "mqueue" | "cgroup2"))
    {
        data = join(&data, &format!("context=\"{label}\""));
    }
    let mounted = tree::mount_new(source, place.fd.as_fd(), name, flags, &data, &place.real);
    match mounted {
        Err(error) if scene.plan.userns && error.errno() == Some(Errno::EPERM) && name == "sysfs" => {
            // The network namespace is not the user namespace's: sysfs is refused, the host's may be shown.
            return bind_host_sys(scene, place);
        }
        Err(error) if scene.plan.userns && error.errno() == Some(Errno::EINVAL) && name == "devpts" => {
            // gid=5 (tty) is in nearly every config and has no meaning where the group is not mapped.
            let kept: Vec<_> = data.split(',').filter(|option| !option.starts_with("gid=")).collect();
            if kept.join(",") == data {
                return Err(error);
            }
            tree::mount_new(source, place.fd.as_fd(), name, flags, &kept.join(","), &place.real)?;
        }
        other => other?,
    }
    let label = scene.plan.label.as_ref().filter(|_| name == "mqueue");
    let kept = protect::is_late_readonly(scene.mount) || scene.mount.destination == Path::new(DEV);
    let needed = kept || scene.unsettled() || options.copy_up || label.is_some();
    let top = needed.then(|| place.top()).transpose()?;
    if let Some(tree) = &top {
        if options.copy_up {
            copyup::copy(place.fd.as_fd(), tree.as_fd(), &place.real)?;
        }
        if let Some(label) = label {
            set_label(tree.as_fd(), label)?;
        }
        scene.settle(tree.as_fd())?;
    }
    let real = place.real;
    Ok(Laid { real, top })
}

fn point(scene: &Scene<'_>, name: &str) -> Result<Place, Error> {
    match name {
        "proc" | "sysfs" => ordinary_directory(scene, name),
        _ => scene.place(|| Ok(Missing::Dir)),
    }
}

/// procfs and sysfs decide what else is safe; no link of the image may say where they go.
fn ordinary_directory(scene: &Scene<'_>, name: &str) -> Result<Place, Error> {
    let path = &scene.mount.destination;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let refuse = || {
        Error::refuse(
            path,
            format!("filesystem {name:?} must be mounted on ordinary directory"),
        )
    };
    match scene.root.open_straight(path, flags) {
        Ok(fd) => Ok(Place {
            fd,
            real: path.clone(),
            new: false,
        }),
        Err(Errno::ELOOP | Errno::ENOTDIR) => Err(refuse()),
        Err(Errno::ENOENT) => {
            let place = scene.place(|| Ok(Missing::Dir))?;
            if place.real == *path { Ok(place) } else { Err(refuse()) }
        }
        Err(errno) => Err(errno).call(|| format!("openat2(root, {path:?}, O_PATH|O_DIRECTORY)")),
    }
}

fn bind_host_sys(scene: &Scene<'_>, place: Place) -> Result<Laid, Error> {
    let source = Source::Path {
        path: Path::new("/sys"),
        nofollow: false,
    };
    let tree = tree::bind(source, true, place.fd.as_fd(), &place.real, scene.root)?;
    flags(tree.as_fd(), scene.mount)?;
    below_too(tree.as_fd(), scene.mount)?;
    scene.settle(tree.as_fd())?;
    let (real, top) = (place.real, Some(tree));
    Ok(Laid { real, top })
}

/// What was asked for is one file system. What came is more, cgroups that the container's root may write to among it
/// (CVE-2023-25809): what restricts the one has to restrict all.
fn below_too(tree: BorrowedFd<'_>, mount: &Mount) -> Result<(), Error> {
    let restricting =
        Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOEXEC;
    let change = Change {
        set: tree::attributes(mount.options.flags) & restricting.bits(),
        clear: 0,
        recursive: true,
    };
    if change.set == 0 {
        return Ok(());
    }
    tree::change(tree, change).call(|| format!("mount_setattr({:?}, {change:x?})", mount.destination))
}

/// A bind mount.
fn bind(scene: &Scene<'_>) -> Result<Laid, Error> {
    let Mount {
        options,
        source,
        opened,
        idmap,
        destination,
        ..
    } = scene.mount;
    let recursive = options.has(Flag::REC);
    let nofollow = options.source_nofollow;
    let tree = match opened {
        Some(fd) => Ok(proa_sys::fd::claim(*fd).call(|| format!("fcntl({fd}, F_GETFD)"))?),
        None if idmap.is_some() => sources::open_late(scene)?.ok_or(Errno::ENOSYS),
        None => tree::detached(Source::Path { path: source, nofollow }, recursive),
    };
    let (tree, real) = match tree {
        Ok(tree) => {
            let place = bind_place(scene, tree.as_fd())?;
            attach(tree.as_fd(), &place).call(|| format!("move_mount({source:?}, {destination:?})"))?;
            (tree, place.real)
        }
        Err(errno) if tree::unsupported(errno) => {
            let handle = openat(CWD, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .call(|| format!("open({source:?}, O_PATH)"))?;
            let place = bind_place(scene, handle.as_fd())?;
            let from = Source::Fd(handle.as_fd());
            let tree = tree::bind_classic(from, recursive, place.fd.as_fd(), &place.real, scene.root)?;
            (tree, place.real)
        }
        Err(errno) => return Err(errno).call(|| format!("open_tree({source:?}, OPEN_TREE_CLONE)")),
    };
    flags(tree.as_fd(), scene.mount)?;
    scene.settle(tree.as_fd())?;
    Ok(Laid { real, top: Some(tree) })
}

/// Puts a tree where it belongs. A directory on a file, or a file on a directory, is what move_mount(2) has only its most
/// general answer for; mount(2) says ENOTDIR, which callers of runc look for to tell their users what was confused.
fn attach(tree: BorrowedFd<'_>, place: &Place) -> Result<(), Errno> {
    tree::attach(tree, place.fd.as_fd()).map_err(|errno| match (tree::dir(tree), tree::dir(place.fd.as_fd())) {
        (Ok(source), Ok(target)) if errno == Errno::EINVAL && source != target => Errno::ENOTDIR,
        _ => errno,
    })
}

/// The mount point for what `source` is: a directory for a directory, a file for anything else.
fn bind_place(scene: &Scene<'_>, source: BorrowedFd<'_>) -> Result<Place, Error> {
    let path = &scene.mount.destination;
    let place = scene.place(|| {
        Ok(if tree::dir(source)? {
            Missing::Dir
        } else {
            Missing::File
        })
    })?;
    if place.real == Path::new("/proc") {
        let stat = fstat(source).call(|| "fstat(source)")?;
        let fs = fstatfs(source).call(|| "fstatfs(source)")?;
        if (fs.f_type, stat.st_ino) != PROC {
            return Err(Error::refuse(path, "cannot be mounted because it is not of type proc"));
        }
    }
    Ok(place)
}

/// A bind mount starts with the flags of what it shows. If the bundle gives any, they replace those (as mount(8) does),
/// except that a user namespace may not take off what its creator put on: what is not named stays, what is named is refused.
fn flags(tree: BorrowedFd<'_>, mount: &Mount) -> Result<(), Error> {
    let ignored = (Flag::BIND | Flag::REC | Flag::SILENT).bits() | options::REMOUNT.bits();
    let wanted = mount.options.flags & !ignored;
    if wanted == 0 && mount.options.cleared == 0 {
        return Ok(());
    }
    let plain = (Attr::MOUNT_ATTR_RDONLY
        | Attr::MOUNT_ATTR_NOSUID
        | Attr::MOUNT_ATTR_NODEV
        | Attr::MOUNT_ATTR_NOEXEC
        | Attr::MOUNT_ATTR_NOSYMFOLLOW)
        .bits();
    let set = tree::attributes(wanted);
    let atime = (Flag::NOATIME | Flag::RELATIME | Flag::STRICTATIME | Flag::NODIRATIME).bits();
    // Taking an access-time mode off says nothing about which comes instead, so nothing changes (fs/namespace.c, path_mount).
    let modes = if wanted & atime != 0 {
        (Attr::MOUNT_ATTR__ATIME | Attr::MOUNT_ATTR_NODIRATIME).bits()
    } else {
        0
    };
    // A `remount` in the options asks to change only what is named.
    let named = tree::attributes(mount.options.cleared) & plain;
    let clear = if mount.options.flags & options::REMOUNT.bits() != 0 {
        named
    } else {
        plain & !set
    };
    let lockable = plain & !Attr::MOUNT_ATTR_NOSYMFOLLOW.bits();
    let change = Change {
        set,
        clear: clear & !(mount.locked.unwrap_or(0) & lockable) | (modes & !(set & Attr::MOUNT_ATTR_NODIRATIME.bits())),
        recursive: false,
    };
    let forbidden = |locked| named & locked & lockable != 0 || (set ^ locked) & modes != 0;
    if mount.locked.is_some_and(forbidden) {
        return Err(Errno::EPERM).call(|| format!("mount_setattr({:?}, {change:x?})", mount.destination));
    }
    let result = tree::change(tree, change).or_else(|errno| match errno {
        Errno::EPERM => tree::change(
            tree,
            Change {
                clear: change.clear & !plain | named,
                ..change
            },
        ),
        other => Err(other),
    });
    result.call(|| format!("mount_setattr({:?}, {change:x?})", mount.destination))
}

fn join(left: &str, right: &str) -> String {
    match (left, right) {
        ("", one) | (one, "") => one.into(),
        (left, right) => format!("{left},{right}"),
    }
}

/// mqueue takes no `context=`: its root is labelled afterwards.
fn set_label(tree: BorrowedFd<'_>, label: &str) -> Result<(), Error> {
    let open = |fd| {
        openat(
            fd,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    let dir: OwnedFd = open(tree).call(|| "open(mqueue, O_DIRECTORY)")?;
    match rustix::fs::fsetxattr(
        &dir,
        "security.selinux",
        label.as_bytes(),
        rustix::fs::XattrFlags::empty(),
    ) {
        // No SELinux, and so nothing that the label would be for.
        Err(errno) if errno.raw() == Errno::ENOTSUP => Ok(()),
        other => other.call(|| format!("fsetxattr(mqueue, \"security.selinux\", {label:?})")),
    }
}
