//! The executable that becomes the container's init, opened so that the container can never write to it, nor to what it loads.
//!
//! While init runs, `/proc/PID/exe` refers to its executable, and `/proc/PID/map_files` to all that is mapped; a container that
//! gets hold of the host's file could write to it, and so take over the host (CVE-2019-5736). Here it is executed from a
//! read-only overlay of its own, on which no open for writing succeeds, and whose inode is not the host's: even a refused
//! open counts as a writer for an instant, in which the file can't be executed. That costs ten microseconds where a copy of
//! the file into a sealed memfd costs six hundred; the copy is the way where the overlay can't be had (docs/decisions/0004).

use super::sealed::Sealed;
use nix::errno::Errno;
use proa_executor::locate::{self, Argument};
use proa_executor::recognise::Evidence;
use proa_executor::{Guest, Hull};
use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
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
            let exe = Path::new("/proc/self/exe");
            let sealed = Sealed::new([exe].into_iter());
            Ok(Image {
                program: sealed.open(exe)?,
                argv: vec![c"proa".into(), c"init".into()],
                opened: Vec::new(),
                env: Vec::new(),
                _mount: sealed.into_mount(),
            })
        }
        Hull::Wasm => {
            let found = locate::wasm_hull(engine_dir)?;
            let sealed = Sealed::new(found.paths());
            let mut opened = Opened::default();
            let argv = found.args.into_iter().map(|it| c_string(opened.text(it, &sealed)?));
            let argv = argv.collect::<Result<_, Error>>()?;
            let env = found.env.into_iter().map(|(name, value)| {
                let mut entry = OsString::from(name);
                entry.push("=");
                entry.push(opened.text(value, &sealed)?);
                c_string(entry)
            });
            let env = env.collect::<Result<_, _>>()?;
            Ok(Image {
                program: sealed.open(&found.program)?,
                argv,
                env,
                opened: opened.0.into_iter().map(|(_, file)| file).collect(),
                _mount: sealed.into_mount(),
            })
        }
    }
}

/// What was opened for an image, each file once.
#[derive(Default)]
struct Opened(Vec<(PathBuf, OwnedFd)>);

impl Opened {
    fn text(&mut self, argument: Argument, sealed: &Sealed) -> Result<OsString, Error> {
        let paths = match argument {
            Argument::Text(text) => return Ok(text),
            Argument::Opened(path) => vec![path],
            Argument::Search(paths) => paths,
        };
        let mut names = OsString::new();
        for path in paths {
            let known = self.0.iter().find(|(known, _)| *known == path);
            let number = match known.map(|(_, file)| file.as_raw_fd()) {
                Some(number) => number,
                None => {
                    let file = sealed.open(&path)?;
                    let number = file.as_raw_fd();
                    self.0.push((path, file));
                    number
                }
            };
            if !names.is_empty() {
                names.push(":");
            }
            names.push(format!("/proc/self/fd/{number}"));
        }
        Ok(names)
    }
}

/// Whether an init image can be shown in an overlay; if not, it is copied.
pub fn sealed_by_overlay() -> Result<(), Errno> {
    Sealed::by_overlay(Path::new("/proc/self/exe"))
}

fn c_string(text: OsString) -> Result<CString, Error> {
    CString::new(text.as_bytes()).map_err(|_| Error::Null(text))
}
