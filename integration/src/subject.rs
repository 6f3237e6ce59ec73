//! The runtime under test: where it is, what it calls itself, and what may be expected of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::vars;

/// Whose runtime it is; decides only which tests apply, never what a test expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This project's.
    Proa,
    /// runc.
    Runc,
    /// crun.
    Crun,
    /// Anything else: held to everything, as proa is.
    Other,
}

/// The runtime under test.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The executable.
    pub path: PathBuf,
    /// Arguments that each call begins with.
    pub args: Vec<String>,
    /// Whose it is.
    pub kind: Kind,
    /// Its version as (major, minor).
    pub version: (u32, u32),
}

impl Subject {
    /// Reads the subject from the environment and asks it for its version.
    pub fn from_env() -> Result<Subject, String> {
        let path = match std::env::var_os(vars::RUNTIME) {
            Some(path) => PathBuf::from(path),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bin/proa"),
        };
        let path = path.canonicalize().map_err(|e| {
            format!(
                "the runtime to test, {}: {e} (make build, or set {})",
                path.display(),
                vars::RUNTIME
            )
        })?;
        let args = std::env::var(vars::RUNTIME_ARGS).unwrap_or_default();
        let args = args.split_whitespace().map(str::to_owned).collect();
        let out = Command::new(&path)
            .arg("--version")
            .output()
            .map_err(|e| format!("{}: {e}", path.display()))?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let mut words = text.split_whitespace();
        let kind = match words.next() {
            Some("proa") => Kind::Proa,
            Some("runc") => Kind::Runc,
            Some("crun") => Kind::Crun,
            _ => Kind::Other,
        };
        let version = words.find_map(parse_version).unwrap_or((0, 0));
        Ok(Subject {
            path,
            args,
            kind,
            version,
        })
    }

    /// Whether the subject is runc of at least that version, or no runc or crun at all: the newer features of the
    /// specification are expected of everyone except old releases of the peers.
    pub fn as_new_as_runc(&self, major: u32, minor: u32) -> bool {
        match self.kind {
            Kind::Proa | Kind::Other => true,
            Kind::Runc => self.version >= (major, minor),
            // crun gains features at other versions; what runc 1.2 knows, crun of the same year knows as well.
            Kind::Crun => self.version >= (1, 14),
        }
    }
}

fn parse_version(word: &str) -> Option<(u32, u32)> {
    let mut parts = word.split(['.', '+', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
