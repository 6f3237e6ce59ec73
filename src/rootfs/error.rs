//! Why the file system can't be made.

use proa_sys::Errno;
use proa_sys::errno::{Raw, words};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Why the file system can't be made; names the field (`mounts[3].options`), the path, and the call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field's value can't be used.
    #[error("{field}: {problem}")]
    Field {
        /// Where in config.json.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// `root.path` can't be the container's root (runc's words).
    #[error("invalid rootfs: {problem}")]
    Root {
        /// What is wrong with it, with the path.
        problem: String,
    },
    /// A mount failed (runc's words).
    #[error("error mounting {what:?} to rootfs at {destination:?} ({field}): {cause}")]
    Mount {
        /// `mounts[N]`.
        field: String,
        /// The source, or the kind of file system.
        what: String,
        /// Where it was to appear.
        destination: PathBuf,
        /// What failed.
        cause: Box<Error>,
    },
    /// A device node can't be made.
    #[error("error creating device node {path}: {cause}", path = path.display())]
    Device {
        /// The node, in the container.
        path: PathBuf,
        /// What failed.
        cause: Box<Error>,
    },
    /// A sysctl can't be written.
    #[error("linux.sysctl: {key}={value}: {cause}", key = dotted(key))]
    Sysctl {
        /// The file below `/proc/sys`.
        key: String,
        /// The value.
        value: String,
        /// What failed.
        cause: Box<Error>,
    },
    /// A path of `linux.maskedPaths` or `linux.readonlyPaths` can't be protected.
    #[error("{field}: can't mask or protect {path}: {cause}", path = path.display())]
    Protect {
        /// The field of config.json.
        field: &'static str,
        /// The path, in the container.
        path: PathBuf,
        /// What failed.
        cause: Box<Error>,
    },
    /// What is found in the rootfs is not safe to use.
    #[error("{path:?} {problem}")]
    Unsafe {
        /// The path, in the container.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A step was not permitted, and what is done in its place then failed, too.
    #[error("{cause}; bind mount of the host's in its place: {instead}")]
    Instead {
        /// The step.
        cause: Box<Error>,
        /// What failed in its place.
        instead: Box<Error>,
    },
    /// A system call failed.
    #[error("{call}: {words}", words = words(*errno))]
    Call {
        /// The call with its arguments.
        call: String,
        /// Its errno.
        errno: Errno,
    },
}

impl Error {
    /// The errno at the bottom, if a system call failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Call { errno, .. } => Some(*errno),
            Error::Mount { cause, .. }
            | Error::Device { cause, .. }
            | Error::Sysctl { cause, .. }
            | Error::Protect { cause, .. }
            | Error::Instead { cause, .. } => cause.errno(),
            Error::Field { .. } | Error::Root { .. } | Error::Unsafe { .. } => None,
        }
    }

    pub(super) fn refuse(path: &Path, problem: impl Into<String>) -> Self {
        Error::Unsafe {
            path: path.into(),
            problem: problem.into(),
        }
    }
}

/// The name of a sysctl, as sysctl(8) writes it, from its file.
fn dotted(file: &str) -> String {
    file.chars().map(super::sysctl::swap).collect()
}

/// Gives the errno of a call its call.
pub(super) trait Named<T> {
    /// The call with its arguments, strace-like.
    fn call<D: Display>(self, name: impl FnOnce() -> D) -> Result<T, Error>;
}

impl<T, E: Raw> Named<T> for Result<T, E> {
    fn call<D: Display>(self, name: impl FnOnce() -> D) -> Result<T, Error> {
        self.map_err(|errno| Error::Call {
            call: name().to_string(),
            errno: errno.raw(),
        })
    }
}
