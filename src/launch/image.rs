//! The executable that becomes the container's init, opened so that the container can never write to it.
//!
//! While init runs, `/proc/PID/exe` refers to the file on the host; a container that gets hold of it could write to it
//! once nobody executes it any more, and so take over the host (CVE-2019-5736). Here it is executed from a detached,
//! read-only clone of its mount, on which no open for writing succeeds. That costs three microseconds where a copy of
//! the file into a sealed memfd costs four hundred; the copy is the way where the clone can't be had.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proa_executor::Hull;
use proa_executor::locate::{self, Argument};
use rustix::mount::OpenTreeFlags;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
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

/// Opens the init image of `hull`.
pub fn open(hull: Hull) -> Result<Image, Error> {
    match hull {
        Hull::Native => Ok(Image {
            program: protect(Path::new("/proc/self/exe"))?,
            argv: vec![c"proa".into(), c"init".into()],
            opened: Vec::new(),
            env: Vec::new(),
        }),
        Hull::Wasm => {
            let found = locate::wasm_hull()?;
            let program = protect(&found.program)?;
            let mut opened = Vec::new();
            let mut argv = Vec::new();
            for argument in found.args {
                argv.push(match argument {
                    Argument::Text(text) => c_string(text)?,
                    Argument::Opened(path) => {
                        let file = open_path(&path)?;
                        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
                        opened.push(file);
                        c_string(name.into())?
                    }
                });
            }
            let env = found.env.into_iter().map(c_string).collect::<Result<_, _>>()?;
            Ok(Image {
                program,
                argv,
                opened,
                env,
            })
        }
    }
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

/// Opens `path` for execution only.
pub fn protect(path: &Path) -> Result<OwnedFd, Error> {
    match read_only_mount(path) {
        Ok(fd) => Ok(fd),
        // No such call (before Linux 5.2 and 5.12), not privileged in this mount namespace, or a mount that can't be cloned.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) => sealed_copy(path),
        Err(errno) => Err(Error::Open {
            call: "open_tree",
            path: path.into(),
            source: errno.into(),
        }),
    }
}

/// A detached, read-only clone of the file's mount: open_tree(2), mount_setattr(2).
fn read_only_mount(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let fd = rustix::mount::open_tree(rustix::fs::CWD, path, flags)
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    proa_sys::mount::set_read_only(fd.as_fd())?;
    Ok(fd)
}

/// A copy that nobody can change: memfd_create(2) with every seal.
pub fn sealed_copy(path: &Path) -> Result<OwnedFd, Error> {
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
