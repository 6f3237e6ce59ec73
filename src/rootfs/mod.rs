//! The container's file system: mounts, devices, pivot_root, masked and read-only paths.
//!
//! [`plan`] is pure but for looking at the root. [`open_sources`] runs in the parent. The rest runs in the container's
//! init, in its new mount namespace, as phases that consume each other: [`mount_all`] -> [`Mounted`] -> [`Entered`].
//!
//! The attacker is the image, and a running container that shares a volume with this one: both may hold symbolic links
//! and exchange them at any moment. So a path below the root is looked up once, and from then on only its descriptor is used:
//! `move_mount` goes onto a descriptor, mount(2) onto `.` of a directory that fchdir(2) has entered, and what was mounted there
//! is found from that descriptor, too ([`tree::top`]). `docs/security.md`, "One look-up", has where that is for each path.

mod cgroup;
mod console;
mod copyup;
mod devices;
mod error;
mod external;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod interfaces;
mod mounts;
mod options;
mod pivot;
mod plan;
pub mod procfs;
mod protect;
mod resolve;
mod shared;
mod sources;
mod sysctl;
#[cfg(test)]
mod tests;
mod tree;

pub use error::Error;
pub use external::{External, keep_mounts_private, show_root};
pub use interfaces::Interfaces;
pub use interfaces::of_running as interfaces_of_running;
pub use options::known as known_options;
pub use shared::SharedRoot;
pub use sources::{Sources, open_sources};

use crate::host::Host;
use error::Named;
use oci_spec::runtime::Spec;
use options::Parsed;
use resolve::Root;
use rustix::fs::Mode;
use rustix::mount::MountPropagationFlags;
use rustix::process::umask;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// The file system of a container, resolved and validated: flags parsed, devices merged with the default ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The root directory, absolute and free of symbolic links.
    root: PathBuf,
    /// `root.readonly`.
    root_readonly: bool,
    /// There is a mount namespace. Without one the mounts are made among the caller's, and the root is changed by chroot(2),
    /// as with runc (which also cuts the caller's whole namespace off from its peers).
    private: bool,
    userns: bool,
    cgroupns: bool,
    /// The directory of the container's cgroup on a host with v2 only.
    cgroup: Option<PathBuf>,
    /// `linux.rootfsPropagation` as `MS_*`, 0 if not given.
    propagation: u32,
    no_pivot: bool,
    /// The root is a new, empty file system in memory of at most so many bytes, and `root` only the place that it covers.
    #[serde(default)]
    scratch: Option<u64>,
    /// `/dev` is the container's own, to be filled with devices and links.
    setup_dev: bool,
    mounts: Vec<Mount>,
    devices: Vec<Device>,
    masked: Vec<PathBuf>,
    readonly_paths: Vec<PathBuf>,
    /// (file below /proc/sys, value).
    sysctl: Vec<(String, String)>,
    label: Option<String>,
    /// `process.cwd`, made if it is missing.
    cwd: Option<PathBuf>,
}

impl Plan {
    /// Where `path` of the container comes from, as far as that can be told without making any mount: a directory or file of the
    /// host, and what remains of the path below it. `None` if a file system that is yet to be made is there.
    pub fn origin(&self, path: &Path) -> Option<(&Path, PathBuf)> {
        let path = plan::clean(path);
        // What is mounted last covers what was there, were it mounted deeper.
        match self
            .mounts
            .iter()
            .rev()
            .find(|mount| path.starts_with(&mount.destination))
        {
            None => Some((&self.root, path)),
            Some(mount) if mount.kind == Kind::Bind => {
                let below = path.strip_prefix(&mount.destination).unwrap_or(Path::new(""));
                Some((&mount.source, below.to_owned()))
            }
            Some(_) => None,
        }
    }

    /// Whether there are mounts that programs can be on: what is not found outside may still be behind a link into one.
    pub fn has_content_mounts(&self) -> bool {
        self.mounts.iter().any(|mount| {
            let kernel = |name: &str| matches!(name, "proc" | "sysfs" | "cgroup2" | "devpts" | "mqueue");
            match &mount.kind {
                Kind::Cgroup => false,
                Kind::Fs(name) => !kernel(name) && !mount.destination.starts_with("/dev"),
                Kind::Bind => !mount.destination.starts_with("/dev"),
            }
        })
    }
}

/// One of `mounts`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Mount {
    /// Its place in `mounts`.
    index: usize,
    /// Absolute and clean.
    destination: PathBuf,
    /// Absolute if it is a bind mount's.
    source: PathBuf,
    kind: Kind,
    options: Parsed,
    idmap: Option<Idmap>,
    /// The detached mount that [`open_sources`] made.
    opened: Option<RawFd>,
    /// `MOUNT_ATTR_*` of the source, if the container has a user namespace: what the kernel would not let that one take off,
    /// had it made the mount itself.
    locked: Option<u32>,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// A new mount of a file system of this type.
    Fs(String),
    /// A part of the file system that exists already.
    Bind,
    /// The cgroup file systems as this host has them.
    Cgroup,
}

/// The id map of a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Idmap {
    recursive: bool,
    /// The contents of `uid_map` and `gid_map`.
    maps: Option<(String, String)>,
    /// The user namespace to take the map from.
    path: Option<PathBuf>,
    /// The user namespace that [`open_sources`] made.
    opened: Option<RawFd>,
    /// Init can't set the map, since its user namespace does not own the file system: it asks the parent.
    by_parent: bool,
}

type Id = u32;

/// A device node.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Device {
    path: PathBuf,
    kind: DeviceKind,
    major: u32,
    minor: u32,
    mode: u32,
    uid: Id,
    gid: Id,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum DeviceKind {
    Char,
    Block,
    Fifo,
}

/// What the command line says about the file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// `--no-pivot`: MS_MOVE and chroot(2) instead of pivot_root(2).
    pub no_pivot: bool,
}

/// The pseudo-terminal of a container: the master for the caller, the slave to become stdin, stdout and stderr.
#[derive(Debug)]
pub struct Console {
    /// The master, to be sent over the console socket.
    pub master: OwnedFd,
    /// The slave.
    pub slave: OwnedFd,
}

/// Resolves `root`, `mounts`, `linux.devices`, `linux.maskedPaths`, `linux.readonlyPaths`, `linux.rootfsPropagation`,
/// `linux.sysctl`, `linux.mountLabel` against `bundle` (absolute). Looks at the root directory (it must be one, and no
/// symbolic link may lead to it from the bundle) and touches nothing else.
pub fn plan(spec: &Spec, bundle: &Path, host: &Host, options: Options) -> Result<Plan, Error> {
    let root = resolve::find_root(spec, bundle)?;
    plan::build(spec, bundle, root, host, options, procfs::is_own_net)
}

impl Plan {
    /// The root file system's directory on the host, absolute and free of symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Has the root be an empty file system in memory of at most `bytes`, with no device, in which everybody may make files.
    /// It covers what the configuration has as the root, in the new mount namespace only.
    pub fn set_scratch(&mut self, bytes: u64) {
        self.scratch = Some(bytes);
        self.setup_dev = false;
    }

    /// Says where the container's cgroup has been made: for what can't be mounted and has to be shown instead.
    pub fn set_cgroup(&mut self, path: Option<&Path>) {
        self.cgroup = path.map(Path::to_owned);
    }

    /// What is to be remembered to take the mounts away again, if they are made among the caller's.
    pub fn shared_root(&self) -> Result<Option<SharedRoot>, Error> {
        (!self.private).then(|| SharedRoot::note(&self.root)).transpose()
    }
}

/// `exec --tty`: allocates a pseudo-terminal in the devpts of the container that this process has joined.
pub fn console_of_running() -> Result<Console, Error> {
    console::open(
        &Root::new(resolve::open_dir(Path::new("/"))?),
        Path::new("dev/pts/ptmx"),
    )
}

/// Asks the parent to set the id map of a mount, by its place in `mounts`, on the detached mount that is given (see
/// [`Sources::map`]); false if the parent is gone.
pub type AskToMap<'a> = &'a dyn Fn(usize, BorrowedFd<'_>) -> bool;

/// Sets the root's propagation, makes the root file system a mount point, makes every mount, device node and default
/// symlink below it.
pub fn mount_all<'a>(plan: &'a Plan, ask: AskToMap<'_>) -> Result<Mounted<'a>, Error> {
    // Modes are given in full below; the caller's mask must not take from them.
    let mask = umask(Mode::empty());
    let mounted = pivot::prepare(plan).and_then(|root| {
        let root = Root::new(root);
        let mut made = mounts::all(plan, &root, ask)?;
        let dev = plan.setup_dev.then(|| devices::all(plan, &root, &mut made));
        Ok(Mounted {
            plan,
            root,
            dev: dev.transpose()?,
            late: made.late,
            host_proc: None,
        })
    });
    umask(mask);
    let mut mounted = mounted?;
    if !plan.sysctl.is_empty() {
        mounted.host_proc = procfs::Procfs::host().ok();
    }
    Ok(mounted)
}

/// All mounts are made below the root file system; the host's root is still the process's root.
#[derive(Debug)]
pub struct Mounted<'a> {
    plan: &'a Plan,
    root: Root,
    /// Its `/dev`, if that is its own.
    dev: Option<devices::Dev>,
    /// The mounts that are to become read-only at the end.
    late: Vec<(&'a Mount, OwnedFd)>,
    /// The host's procfs, for sysctls of a container that has none itself.
    host_proc: Option<procfs::Procfs>,
}

impl<'a> Mounted<'a> {
    /// An `O_PATH` descriptor of the container's root, with the mounts on top.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Allocates a pseudo-terminal in the container's devpts and bind-mounts its slave on `/dev/console`. The size is
    /// the caller's to set.
    pub fn console(&self) -> Result<Console, Error> {
        let other;
        let dev = match &self.dev {
            Some(dev) => dev.root(),
            None => {
                other = Root::new(devices::straight(&self.root, Path::new("/dev"))?);
                &other
            }
        };
        let console = console::open(dev, Path::new("pts/ptmx"))?;
        console::show(dev, &console)?;
        Ok(console)
    }

    /// Makes the container's root the process's root and detaches the host's.
    pub fn pivot(self) -> Result<Entered<'a>, Error> {
        pivot::enter(self.plan, self.root.as_fd())?;
        Ok(Entered {
            plan: self.plan,
            root: self.root,
            dev: self.dev,
            late: self.late,
            host_proc: self.host_proc,
        })
    }
}

/// The process's root is the container's.
#[derive(Debug)]
pub struct Entered<'a> {
    /// The plan.
    pub plan: &'a Plan,
    root: Root,
    dev: Option<devices::Dev>,
    late: Vec<(&'a Mount, OwnedFd)>,
    host_proc: Option<procfs::Procfs>,
}

impl Entered<'_> {
    /// Sets the root's final propagation, writes the sysctls, makes paths read-only and masks them, makes the root
    /// read-only. After this the file system is as the bundle says.
    pub fn finish(self) -> Result<(), Error> {
        // pivot_root(2) demanded a private one; only now is "/" the container's and no more the host's.
        let propagation = self.plan.propagation;
        if propagation != 0 && propagation & options::PRIVATE == 0 {
            rustix::mount::mount_change("/", MountPropagationFlags::from_bits_retain(propagation))
                .call(|| format!("mount(NULL, \"/\", NULL, {propagation:#x})"))?;
        }
        if let Some(cwd) = self.plan.cwd.as_ref().filter(|cwd| *cwd != Path::new("/")) {
            self.root.make_dir(cwd)?;
        }
        protect::late_readonly(self.late)?;
        if self.plan.root_readonly {
            protect::root(&self.root)?;
        }
        procfs::write_sysctls(self.plan, self.host_proc.as_ref())?;
        protect::readonly(&self.plan.readonly_paths, &self.root)?;
        protect::mask(
            &self.plan.masked,
            &self.root,
            self.dev.as_ref(),
            self.plan.label.as_deref(),
        )
    }
}
