//! What a Wasm guest may do and use, as plain data: resolved by the caller from the administrator's configuration file and
//! the container's annotations, and handed to the [`crate::Handler`] with the guest.

pub mod rule;

pub use rule::{Network, Rule};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that is decided about a Wasm guest before it starts. The default is what a container gets without a
/// configuration file and annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Whether code compiled ahead of time is used and made.
    pub aot: Aot,
    /// The directory of the cache of such code; `None` for the built-in one.
    pub aot_cache: Option<PathBuf>,
    /// Whether code compiled ahead of time that comes with an image may be run.
    pub trust_image_code: bool,
    /// What bounds the guest.
    pub limits: Limits,
    /// Which directories the guest is given.
    pub files: Files,
    /// What the guest's sockets may do.
    pub network: Network,
    /// Engine plugins to load from the host, absolute paths.
    pub plugins: Vec<PathBuf>,
    /// Whether executed instructions are counted, which takes time.
    pub count_instructions: bool,
}

impl Policy {
    /// Whether instructions are counted, be it to bound them: code compiled ahead of time counts none unless it was compiled
    /// to do so.
    pub fn counts(&self) -> bool {
        self.count_instructions || self.limits.fuel.is_some()
    }
}

/// When code compiled ahead of time is used and made; each value takes more of the host than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aot {
    /// Never: everything is interpreted.
    Off,
    /// What the cache has is used; nothing is compiled.
    #[default]
    Use,
    /// What the cache lacks is interpreted, and compiled meanwhile for the next start.
    Background,
    /// What the cache lacks is compiled before the container is created.
    BeforeStart,
}

/// What bounds a guest; `None` is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Wall-clock time from the guest's first instruction.
    pub deadline: Option<Duration>,
    /// How long a guest goes on after SIGTERM or SIGINT.
    pub grace: Duration,
    /// Instructions, as the engine's cost table weighs them.
    pub fuel: Option<u64>,
    /// The most pages (64 KiB) of each linear memory.
    pub pages: Option<u64>,
    /// The most elements of each table.
    pub table_elements: Option<u32>,
}

/// Which directories of the container a guest is given (preopened).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Files {
    /// The directories that follow from the bundle.
    pub preopens: Preopens,
    /// The widest that the administrator allows: what is named one by one has to lie in what this gives.
    pub ceiling: Preopens,
    /// Those that were named one by one.
    pub named: Vec<Preopen>,
    /// The destinations of the bundle's mounts, for [`Preopens::Mounts`], and whether each is read-only.
    pub mounts: Vec<(PathBuf, bool)>,
    /// The destinations of the bundle's other mounts, the kernel's file systems and what is below `/dev`: what lies in them is
    /// not given by [`Preopens::Mounts`].
    pub interfaces: Vec<PathBuf>,
}

/// The directories that follow from the bundle; each value is narrower than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preopens {
    /// The container's root.
    #[default]
    Root,
    /// `process.cwd` and the destinations of the bundle's bind mounts and volumes.
    Mounts,
    /// None but those that are named one by one.
    Nothing,
}

/// A directory of the container that was named one by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preopen {
    /// The directory in the container, absolute.
    pub directory: PathBuf,
    /// The name by which the guest knows it.
    pub guest: String,
    /// Whether nothing may be written there.
    pub read_only: bool,
}
