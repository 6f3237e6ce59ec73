//! CRIU, which saves running processes to files and makes them run again: criu(8), version 3 and later.
//!
//! It is a program of the host, found in `PATH`, and spoken to as go-criu does: `criu swrk FD` serves requests on a
//! socket that it inherits (<https://criu.org/RPC>). Nothing here is touched by any verb but `checkpoint` and `restore`.

pub mod descriptors;
pub mod log;
pub mod rpc;
mod worker;

pub use worker::{Worker, require_feature, version};

use rpc::RequestType;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why CRIU did not do what it was asked for. Words are runc's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("exec: \"criu\": executable file not found in $PATH")]
    Missing,
    /// It can't be executed.
    #[error("exec: \"criu\": {0}")]
    Start(#[source] std::io::Error),
    /// It could not be asked for its version.
    #[error("CRIU version check failed: {0}")]
    VersionCheck(#[source] Box<Error>),
    /// It is too old.
    #[error("{what}CRIU version {version} must be {needed} or higher")]
    TooOld {
        /// What needs a newer one, with a colon; empty if everything does.
        what: &'static str,
        /// Its version: 31701 is 3.17.1.
        version: u32,
        /// The one that is needed.
        needed: u32,
    },
    /// It could not be asked for what it can do.
    #[error("CRIU feature check failed: {0}")]
    FeatureCheck(#[source] Box<Error>),
    /// CRIU or the kernel lacks something.
    #[error("criu is missing features: [{0}]")]
    MissingFeature(&'static str),
    /// It failed, and says so.
    #[error("criu failed: type {request} errno {errno}", request = request.name())]
    Failed {
        /// What it answered.
        request: RequestType,
        /// An errno, or 0.
        errno: i32,
        /// The first error that it met, in its words.
        message: Option<String>,
    },
    /// It failed after its answer.
    #[error("criu failed: {0}")]
    Status(ExitStatus),
    /// It ended without an answer.
    #[error("criu failed: it ended without an answer ({0})")]
    Gone(ExitStatus),
    /// Its answer is not one.
    #[error("unable to parse the response of criu: {0}")]
    Response(String),
    /// A system call failed.
    #[error("{call}: {errno}")]
    Call {
        /// The call with its arguments.
        call: &'static str,
        /// Why.
        errno: nix::errno::Errno,
    },
    /// The file that tells which pipes are the container's standard streams.
    #[error("{call} {path}: {source}", path = path.display())]
    Descriptors {
        /// The call.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    fn call(call: &'static str) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::Call { call, errno }
    }
}
