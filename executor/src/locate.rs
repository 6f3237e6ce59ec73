//! Where the Wasm hull and its engine are, and how to execute them.

use std::ffi::OsString;
use std::path::PathBuf;

/// How the Wasm hull is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The file to execute.
    pub program: PathBuf,
    /// argv, up to init's own arguments.
    pub args: Vec<OsString>,
    /// `NAME=value` for the hull itself.
    pub env: Vec<OsString>,
}

/// Why it can't be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No hull.
    #[error("proa-wasmedge not found")]
    NotFound,
}

/// Finds the hull.
pub fn wasm_hull() -> Result<Image, Error> {
    Err(Error::NotFound)
}
