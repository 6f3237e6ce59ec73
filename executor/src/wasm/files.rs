//! Which directories the guest is given (preopened), and that it gets at nothing else.
//!
//! With the container's root preopened there is nothing to hold back: what the guest can reach is what any program of the
//! container could. A narrowed policy is different: it says that the guest may *not* reach what the process itself can, and
//! the engine, which resolves the guest's paths itself, has been wrong about that before (WasmEdge #4938). So the kernel is
//! asked to enforce it as well: Landlock, in place before the guest's first instruction, for this process alone; what `exec`
//! runs beside it is not affected.
//!
//! The attackers are the guest and the image's author: the image's links must not decide what a policy grants. A directory
//! that was named is opened without following any, and a mount's destination has to be what is mounted there.

use super::interfaces::{self, Interfaces};
use crate::policy::{self, Preopen, Preopens};
use crate::{Error, Guest, native};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, make_bitflags,
};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use proa_sys::errno::words;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What is needed of the kernel. What later versions add is used where it is there: linking and renaming between directories
/// is refused before the second, and truncate(2) by a path, which the engine does not call, not restricted before the third.
const LEAST: ABI = ABI::V1;
/// The newest version whose rights are known here.
const NEWEST: ABI = ABI::V5;

/// The directories of one guest, opened.
pub struct Files {
    /// As the engine takes them: `GUEST:HOST[:readonly]`.
    pub preopens: Vec<CString>,
    /// What holds the guest to them; `None` if the root is among them.
    ruleset: Option<RulesetCreated>,
}

/// A directory to preopen.
struct Entry {
    /// By which the engine opens it: absolute, or `.`.
    host: PathBuf,
    guest: String,
    read_only: bool,
    /// `None` for what a policy with the root gives, which nothing has to be asked about.
    opened: Option<OwnedFd>,
}

impl Files {
    /// Finds and opens the directories; this process is in the container's root and in `process.cwd`.
    pub fn open(guest: &Guest) -> Result<Self, Error> {
        let default = policy::Files::default();
        let policy = guest.policy.as_ref().map_or(&default, |policy| &policy.files);
        let mut entries = match policy.preopens {
            Preopens::Root => root(),
            Preopens::Mounts => from_bundle(policy)?,
            Preopens::Nothing => Vec::new(),
        };
        if !policy.named.is_empty() {
            let bounds = match policy.ceiling {
                Preopens::Root => None,
                Preopens::Mounts => Some(from_bundle(policy)?),
                Preopens::Nothing => Some(Vec::new()),
            };
            for preopen in &policy.named {
                name(&mut entries, preopen, bounds.as_deref())?;
            }
        }
        for entry in &entries {
            if entry.read_only {
                holds_read_only(entry, &entries)?;
            }
        }
        let ruleset = match policy.preopens {
            Preopens::Root => None,
            _ => Some(ruleset(&entries, policy).map_err(unenforceable)?),
        };
        let preopens = entries.iter().map(Entry::for_engine).collect::<Result<_, _>>()?;
        Ok(Self { preopens, ruleset })
    }

    /// From now on this thread, and what it starts, gets at nothing else.
    pub fn enforce(&mut self) -> Result<(), Error> {
        let Some(ruleset) = self.ruleset.take() else {
            return Ok(());
        };
        // Sets no_new_privs, without which it takes a capability: nothing is executed by this process any more.
        let status = ruleset.restrict_self().map_err(unenforceable)?;
        match status.ruleset {
            RulesetStatus::NotEnforced => Err(unenforceable("landlock_restrict_self(2) had no effect")),
            _ => Ok(()),
        }
    }
}

impl Entry {
    fn for_engine(&self) -> Result<CString, Error> {
        let host = self.host.to_str().filter(|path| !path.contains(':'));
        let Some(host) = host else {
            return Err(refused(
                &self.host,
                "WasmEdge can't take a path that has a colon or is not UTF-8",
            ));
        };
        let suffix = if self.read_only { ":readonly" } else { "" };
        native::c_string("preopen", 0, &format!("{}:{host}{suffix}", self.guest))
    }
}

fn refused(directory: &Path, problem: impl Into<String>) -> Error {
    Error::Preopen {
        directory: directory.to_owned(),
        problem: problem.into(),
    }
}

fn unenforceable(problem: impl ToString) -> Error {
    Error::Unenforceable {
        policy: "proa.wasm/preopens",
        problem: format!(
            "{}: it takes Landlock (Linux 5.13 and later, among the kernel's LSMs, and not refused by the container's seccomp \
             profile)",
            problem.to_string()
        ),
    }
}

/// The container's root.
///
/// WASI has no working directory. wasi-libc starts in `/` and can't tell a relative path from an absolute one when it
/// looks for the directory to open it in: `.` beside `/` would get the paths that are meant for the root as well, as the
/// engine orders directories by where they lie on its heap. Guests that know of working directories take `PWD`, as Go does.
fn root() -> Vec<Entry> {
    vec![Entry {
        host: "/".into(),
        guest: "/".to_owned(),
        read_only: false,
        opened: None,
    }]
}

/// `process.cwd`, unless that is the root or leads to the kernel, and the bundle's mounts.
fn from_bundle(policy: &policy::Files) -> Result<Vec<Entry>, Error> {
    let interfaces = Interfaces::find(&policy.interfaces)?;
    let mut entries = Vec::new();
    if let Some(cwd) = working_directory(&interfaces)? {
        entries.push(Entry {
            host: ".".into(),
            guest: ".".into(),
            read_only: false,
            opened: Some(cwd),
        });
    }
    for (destination, read_only) in &policy.mounts {
        if let Some(opened) = mounted(destination, &interfaces)? {
            let shown = destination.to_string_lossy().into_owned();
            entries.push(Entry {
                host: destination.clone(),
                guest: shown,
                read_only: *read_only,
                opened: Some(opened),
            });
        }
    }
    Ok(entries)
}

/// The image says which it is (`WORKDIR`), and what its name leads to: it is judged by where it is.
fn working_directory(interfaces: &Interfaces) -> Result<Option<OwnedFd>, Error> {
    let cwd = Path::new(".");
    let failed = |errno| refused(cwd, words(errno));
    let opened = directory(cwd).map_err(failed)?;
    let root = directory(Path::new("/")).map_err(|errno| refused(Path::new("/"), words(errno)))?;
    let is_root = identity(opened.as_fd()).map_err(failed)? == identity(root.as_fd()).map_err(failed)?;
    let leads_to_kernel =
        interfaces.have(opened.as_fd()).map_err(failed)? || interfaces.are_below(opened.as_fd()).map_err(failed)?;
    Ok((!is_root && !leads_to_kernel).then_some(opened))
}

/// The directory that is mounted at `destination`; `None` if it is a file, or was covered by a later mount, or can't be
/// reached by the container's user: a Linux program would not get there either. `None` as well if it is the kernel's, or a
/// link of the image has put it among what is.
fn mounted(destination: &Path, interfaces: &Interfaces) -> Result<Option<OwnedFd>, Error> {
    let failed = |errno| refused(destination, words(errno));
    let opened = match directory(destination) {
        Ok(opened) => opened,
        Err(Errno::ENOTDIR | Errno::ENOENT | Errno::EACCES) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    match proa_sys::mount::is_mount_root(opened.as_fd()) {
        Ok(true) => Ok((!interfaces.have(opened.as_fd()).map_err(failed)?).then_some(opened)),
        Ok(false) => Err(refused(
            destination,
            "not where the bundle's mount is: a link of the image leads elsewhere",
        )),
        Err(errno) => Err(failed(errno)),
    }
}

/// Adds a directory that was named, and that lies in one of `bounds` if there are any, in the place of what has its name in
/// the guest; one that is there already becomes read-only with it.
fn name(entries: &mut Vec<Entry>, preopen: &Preopen, bounds: Option<&[Entry]>) -> Result<(), Error> {
    let failed = |problem: String| refused(&preopen.directory, problem);
    let opened = match bounds {
        None => without_links(AT_FDCWD, &preopen.directory),
        Some(bounds) => within(bounds, &preopen.directory),
    }
    .map_err(|errno| {
        failed(match errno {
            Errno::ELOOP => {
                "a component of the path is a symbolic link; name the directory that it leads to".to_owned()
            }
            Errno::EXDEV => {
                "outside of what the configuration file allows (wasm.files.preopens): mounts is process.cwd and the \
                 bundle's mounts, nothing is nothing"
                    .to_owned()
            }
            errno => words(errno),
        })
    })?;
    let new = identity(opened.as_fd()).map_err(|errno| failed(words(errno)))?;
    for entry in entries.iter_mut() {
        let other = entry.opened.as_ref().map(|fd| identity(fd.as_fd())).transpose();
        if other.map_err(|errno| failed(words(errno)))? == Some(new) {
            entry.read_only |= preopen.read_only;
        }
    }
    entries.retain(|entry| entry.guest != preopen.guest);
    entries.push(Entry {
        host: preopen.directory.clone(),
        guest: preopen.guest.clone(),
        read_only: preopen.read_only,
        opened: Some(opened),
    });
    Ok(())
}

/// Opens `path`, which has to lie in one of `bounds`: `EXDEV` if it doesn't.
fn within(bounds: &[Entry], path: &Path) -> Result<OwnedFd, Errno> {
    for entry in bounds {
        let Some(base) = &entry.opened else { continue };
        let at = match entry.host.to_str() {
            // As the kernel knows it.
            Some(".") => std::env::current_dir().map_err(|_| Errno::ENOENT)?,
            _ => entry.host.clone(),
        };
        if let Ok(rest) = path.strip_prefix(&at) {
            let rest = if rest.as_os_str().is_empty() {
                Path::new(".")
            } else {
                rest
            };
            return without_links(base, rest);
        }
    }
    Err(Errno::EXDEV)
}

/// No link on the way, so that the image's author does not decide where it leads. openat2(2) is older than Landlock; where
/// a filter denies it (ENOSYS, EPERM) the directory is not to be had.
fn without_links(base: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(base, path, how)
}

pub(super) fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    open(
        path,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// What tells one directory from another.
pub(super) fn identity(fd: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    let facts = fstat(fd)?;
    Ok((facts.st_dev, facts.st_ino))
}

/// Landlock grants what any directory above grants: a read-only directory inside of a writable one would be so only by its
/// name, and is refused. A read-only mount is held by the kernel.
fn holds_read_only(entry: &Entry, all: &[Entry]) -> Result<(), Error> {
    let failed = |errno| refused(&entry.host, words(errno));
    let Some(opened) = &entry.opened else { return Ok(()) };
    if fstatvfs(opened).map_err(failed)?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    let mut writable: Vec<((u64, u64), &Entry)> = Vec::new();
    for other in all.iter().filter(|other| !other.read_only) {
        let id = match &other.opened {
            Some(fd) => identity(fd.as_fd()),
            None => directory(&other.host).and_then(|fd| identity(fd.as_fd())),
        };
        writable.push((id.map_err(failed)?, other));
    }
    let found = upwards(opened.as_fd(), |here| {
        let id = identity(here)?;
        Ok(writable.iter().find(|(other, _)| *other == id).map(|(_, other)| *other))
    });
    match found.map_err(failed)? {
        None => Ok(()),
        Some(other) => Err(refused(
            &entry.host,
            format!("read-only, but it lies in {}, which is writable", other.host.display()),
        )),
    }
}

/// What `look` finds in the directory or in one above it, up to the root.
pub(super) fn upwards<T>(
    from: BorrowedFd<'_>,
    mut look: impl FnMut(BorrowedFd<'_>) -> Result<Option<T>, Errno>,
) -> Result<Option<T>, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut here = openat(from, ".", flags, Mode::empty())?;
    loop {
        if let Some(found) = look(here.as_fd())? {
            return Ok(Some(found));
        }
        let above = openat(&here, "..", flags, Mode::empty())?;
        if identity(above.as_fd())? == identity(here.as_fd())? {
            return Ok(None);
        }
        here = above;
    }
}

/// The rules, for a kernel that has at least [`LEAST`].
fn ruleset(entries: &[Entry], policy: &policy::Files) -> Result<RulesetCreated, landlock::RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let never = make_bitflags!(AccessFs::{Execute | MakeChar | MakeBlock | IoctlDev});
    let write = AccessFs::from_all(NEWEST) & !never;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(LEAST))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .create()?;
    for entry in entries {
        if let Some(opened) = &entry.opened {
            let access: BitFlags<AccessFs> = if entry.read_only { read } else { write };
            ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
        }
    }
    for opened in interfaces::files_of_names(policy) {
        ruleset = ruleset.add_rule(PathBeneath::new(opened, AccessFs::ReadFile))?;
    }
    Ok(ruleset)
}
