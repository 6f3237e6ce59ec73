//! `config.json` as written: read once, parsed once, not yet judged.

use oci_spec::runtime::Spec;
use std::path::{Path, PathBuf};

/// A bundle's `config.json`.
#[derive(Debug)]
pub struct Config {
    /// The parsed document.
    pub spec: Spec,
    /// The document's bytes, kept to be stored beside the container's state.
    pub raw: Vec<u8>,
}

/// Why a `config.json` can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not valid JSON or not a runtime-spec configuration.
    #[error("{path}: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field's value can't be used.
    #[error("{field}: {problem}")]
    Field {
        /// Where in the document, e.g. `process.cwd`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads `config.json` of the bundle directory `bundle`.
    pub fn load(bundle: &Path) -> Result<Self, Error> {
        Self::load_file(&bundle.join("config.json"))
    }

    /// Reads the configuration at `path`.
    pub fn load_file(path: &Path) -> Result<Self, Error> {
        let raw = std::fs::read(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        let spec = serde_json::from_slice(&raw).map_err(|source| Error::Parse {
            path: path.into(),
            source,
        })?;
        Ok(Self { spec, raw })
    }
}
