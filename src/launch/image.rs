//! The executable that becomes the container's init, opened so that the container can never write to it.
//!
//! While init runs, `/proc/PID/exe` refers to its executable; a container that gets hold of the host's file could write to
//! it once nobody executes it any more, and so take over the host (CVE-2019-5736). Here it is executed from a read-only
//! overlay of its own, on which no open for writing succeeds, and whose inode is not the host's: even a refused open counts
//! as a writer for an instant, in which the file can't be executed. That costs ten microseconds where a copy of the file
//! into a sealed memfd costs six hundred; the copy is the way where the overlay can't be had (docs/decisions/0004).

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proa_executor::locate::{self, Argument};
use proa_executor::recognise::Evidence;
use proa_executor::{Guest, Hull};
use proa_sys::errno::Raw;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// An executable and how it is called.
#[derive(Debug)]
pub struct Image {
    /// The executable, to be given to execveat(2).
    pub program: OwnedFd,
    /// The arguments before init's own.
    pub argv: Vec<CString>,
    /// What the arguments name as `/proc/self/fd/N`: open, and inherited by the image.
    pub opened: Vec<OwnedFd>,
    /// The environment of init itself; the container's comes with the plan.
    pub env: Vec<CString>,
    /// The mount that the executable is on. To close it is to unmount it, which waits for a grace period of RCU.
    _mount: Option<OwnedFd>,
}

impl Image {
    /// The numbers of what is open for the image.
    pub fn numbers(&self) -> impl Iterator<Item = RawFd> {
        self.opened.iter().map(AsRawFd::as_raw_fd)
    }
}

/// Why the executable can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be opened or copied.
    #[error("{call} {path}: {source}", path = path.display())]
    Open {
        /// The call.
        call: &'static str,
        /// The executable.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The Wasm hull or its engine is not there.
    #[error(transparent)]
    Locate(#[from] locate::Error),
    /// An argument has a null byte.
    #[error("{0:?} has a null byte")]
    Null(OsString),
}

/// Opens the init image of `hull` for `guest`. Where there is no Wasm hull, an entrypoint that nobody said to be a module is
/// the kernel's matter, and `hull` becomes the native one.
pub fn open_for(hull: &mut Hull, guest: &Guest, engine_dir: Option<&Path>) -> Result<Image, Error> {
    match open(*hull, engine_dir) {
        Err(Error::Locate(error @ locate::Error::NotFound { .. })) if guest.evidence != Evidence::Marked => {
            tracing::debug!("{error}; {} is executed natively", guest.args[0]);
            *hull = Hull::Native;
            open(*hull, engine_dir)
        }
        opened => opened,
    }
}

/// Opens the init image of `hull`; `engine_dir` is where the configuration file says that the engine is.
pub fn open(hull: Hull, engine_dir: Option<&Path>) -> Result<Image, Error> {
    match hull {
        Hull::Native => {
            let (program, mount) = protect(Path::new("/proc/self/exe"))?;
            Ok(Image {
                program,
                argv: vec![c"proa".into(), c"init".into()],
                opened: Vec::new(),
                env: Vec::new(),
                _mount: mount,
            })
        }
        Hull::Wasm => {
            let found = locate::wasm_hull(engine_dir)?;
            let (program, mount) = protect(&found.program)?;
            let mut opened = Opened::default();
            let argv = found.args.into_iter().map(|argument| c_string(opened.text(argument)?));
            let argv = argv.collect::<Result<_, Error>>()?;
            let env = found.env.into_iter().map(|(name, value)| {
                let mut entry = OsString::from(name);
                entry.push("=");
                entry.push(opened.text(value)?);
                c_string(entry)
            });
            Ok(Image {
                program,
                argv,
                env: env.collect::<Result<_, _>>()?,
                opened: opened.0.into_iter().map(|(_, file)| file).collect(),
                _mount: mount,
            })
        }
    }
}

/// What was opened for an image, each file once.
#[derive(Default)]
struct Opened(Vec<(PathBuf, OwnedFd)>);

impl Opened {
    fn text(&mut self, argument: Argument) -> Result<OsString, Error> {
        let path = match argument {
            Argument::Text(text) => return Ok(text),
            Argument::Opened(path) => path,
        };
        let known = self.0.iter().find(|(known, _)| *known == path);
        let number = match known.map(|(_, file)| file.as_raw_fd()) {
            Some(number) => number,
            None => {
                let file = open_path(&path)?;
                let number = file.as_raw_fd();
                self.0.push((path, file));
                number
            }
        };
        Ok(format!("/proc/self/fd/{number}").into())
    }
}

/// Whether an init image can be shown in an overlay; if not, it is copied.
pub fn sealed_by_overlay() -> Result<(), Errno> {
    overlay(Path::new("/proc/self/exe")).map(drop)
}

fn c_string(text: OsString) -> Result<CString, Error> {
    CString::new(text.as_bytes()).map_err(|_| Error::Null(text))
}

fn open_path(path: &Path) -> Result<OwnedFd, Error> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| Error::Open {
        call: "open",
        path: path.into(),
        source: errno.into(),
    })
}

/// Opens `path` for execution only; with the mount, if it is on one of its own.
fn protect(path: &Path) -> Result<(OwnedFd, Option<OwnedFd>), Error> {
    let (program, shown) = (super::program, path.display());
    // Words are runc's, whose tests and readers know them.
    let protected = match overlay(path) {
        Ok(protected) => {
            tracing::debug!("{} exeseal: using overlayfs for sealed {shown}", program());
            protected
        }
        // Not privileged, no overlayfs, a kernel before Linux 5.2, a file system that can't be below an overlay: what the
        // copy protects it protects as well.
        Err(errno) => {
            tracing::debug!("no overlay over {shown}: {errno}; it is copied");
            (sealed_copy(path)?, None)
        }
    };
    tracing::debug!("{} exeseal: using {shown} clone", program());
    Ok(protected)
}

/// The file in a detached, read-only overlay over its directory (Linux 5.2).
fn overlay(path: &Path) -> Result<(OwnedFd, Option<OwnedFd>), Errno> {
    use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    };
    let raw = |errno: rustix::io::Errno| errno.raw();
    let handle = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat(CWD, path, handle, Mode::empty()).map_err(raw)?;
    let real = rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new()).map_err(raw)?;
    let real = PathBuf::from(OsString::from_vec(real.into_bytes()));
    let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
        return Err(Errno::EINVAL);
    };
    let directory = openat(CWD, parent, handle | OFlags::DIRECTORY, Mode::empty()).map_err(raw)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(raw)?;
    // Without an upper layer the kernel wants two lower ones: any directory that is always there, and not the file's.
    let lower = format!("/proc/self/fd/{}:/sys", directory.as_raw_fd());
    fsconfig_set_string(&context, "lowerdir", lower).map_err(raw)?;
    // Inode numbers are to be the file's own.
    fsconfig_set_string(&context, "xino", "off").map_err(raw)?;
    fsconfig_create(&context).map_err(raw)?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(raw)?;
    let program = openat(&mount, name, handle | OFlags::NOFOLLOW, Mode::empty()).map_err(raw)?;
    // An overlay does not see what is mounted on its layers: a file that was bind-mounted there is another one.
    let what = |stat: rustix::fs::Stat| (stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    match what(fstat(&program).map_err(raw)?) == what(fstat(&file).map_err(raw)?) {
        true => Ok((program, Some(mount))),
        false => Err(Errno::ESTALE),
    }
}

/// A copy that nobody can change: memfd_create(2) with every seal.
fn sealed_copy(path: &Path) -> Result<OwnedFd, Error> {
    let failed = |call| {
        move |source| Error::Open {
            call,
            path: path.into(),
            source,
        }
    };
    // MFD_EXEC (Linux 6.3) says that an executable memfd is meant, which vm.memfd_noexec may demand.
    let exec = MFdFlags::from_bits_retain(0x10);
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let copy = match memfd_create(c"proa", flags | exec) {
        Err(Errno::EINVAL) => memfd_create(c"proa", flags),
        other => other,
    }
    .map_err(|errno| failed("memfd_create for")(errno.into()))?;
    let mut from = File::open(path).map_err(failed("open"))?;
    let mut to = File::from(copy);
    std::io::copy(&mut from, &mut to).map_err(failed("copy"))?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&to, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| failed("seal the copy of")(errno.into()))?;
    Ok(to.into())
}
