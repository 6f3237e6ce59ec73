//! Code compiled ahead of time: what it was made of and for ([`Key`], [`Target`]), the form it is kept in ([`entry`]), and the
//! directory it is kept in ([`Cache`]).
//!
//! Nothing here needs an engine. `proa` owns the cache and is the only one who reads and writes it; the hull that has the
//! engine says for which key it wants code, and maps what was found once it is confined (`wasm::handler`).
//!
//! ```text
//!   hull (container's init, before pivot_root)        proa                                 compiler (a hull, confined)
//!     digest of the module + target = key  ---------> Cache::find: owner, mode, digest
//!                                                      miss: compile, as the policy says --> module -> ELF
//!                                                      Cache::publish <--------------------- the file's bytes
//!     <---------- there is code, in this directory / there is none
//!   (confined) load ./KEY.so in the directory, or interpret
//! ```

mod cache;
mod cpu;
pub mod entry;
mod key;

pub use cache::{Cache, Error, Found, Listed, Lock, Turn, Wait, at_once};
pub use key::{Digest, Hashing, Key, KeyError, Target};

use crate::policy::Policy;
use serde::{Deserialize, Serialize};
use std::os::fd::{BorrowedFd, OwnedFd};

/// What the compiler puts into the code beside the module's own instructions: code of one cannot serve for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Options {
    /// The cost of what was executed is summed up and bounded ([`crate::policy::Limits::fuel`]).
    pub cost: bool,
    /// Executed instructions are counted.
    pub count: bool,
    /// The most elements of each table ([`crate::policy::Limits::table_elements`]), which is put into the module itself.
    pub table_elements: Option<u32>,
}

impl Options {
    /// What a guest of this policy needs.
    pub fn of(policy: &Policy) -> Self {
        Self {
            cost: policy.limits.fuel.is_some(),
            count: policy.count_instructions,
            table_elements: policy.limits.table_elements,
        }
    }
}

/// How hard the compiler tries. Not part of the key: the code means the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// As little as possible.
    O0,
    /// Quick passes.
    O1,
    /// What pays for itself: 3 takes longer and made nothing faster (docs/decisions/0009).
    #[default]
    O2,
    /// Everything.
    O3,
    /// Small code.
    Os,
    /// The smallest code.
    Oz,
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim_start_matches(['O', 'o']) {
            "0" => Ok(Self::O0),
            "1" => Ok(Self::O1),
            "2" => Ok(Self::O2),
            "3" => Ok(Self::O3),
            "s" => Ok(Self::Os),
            "z" => Ok(Self::Oz),
            _ => Err(format!("{text:?} is none of 0, 1, 2, 3, s, z")),
        }
    }
}

/// What a hull that becomes a compiler is given: numbers are those of inherited descriptors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The module, in memory that nobody can change.
    pub module: i32,
    /// Where the code goes, or, if there is none, the reason in words.
    pub output: i32,
    /// A pipe whose other end is held by who waits for the code: without anybody there is no use in going on.
    pub lifeline: i32,
    /// What is put into the code.
    pub options: Options,
    /// How hard to try.
    pub level: Level,
}

/// What a hull is answered that asks for code.
#[derive(Debug)]
pub enum Answer {
    /// There is none.
    None,
    /// A compiler may make it.
    Make,
    /// It is [`Key::file_name`] in this directory, from which nothing else is reached and nothing can be changed: the hull holds
    /// it in a process that a container may look into.
    In(OwnedFd),
    /// The same, but it is the host's own directory, since the caller may not mount. A hull that may has to do that first, or
    /// goes without the code.
    OnHost(OwnedFd),
}

/// Who has the cache, as a hull sees it.
pub trait Source {
    /// Asks for the code of `key`, for this `target`; `module` is the open file.
    fn find(&mut self, key: &Key, target: &Target, module: BorrowedFd<'_>) -> Answer;
}

/// A source that has nothing.
#[derive(Debug)]
pub struct Nothing;

impl Source for Nothing {
    fn find(&mut self, _: &Key, _: &Target, _: BorrowedFd<'_>) -> Answer {
        Answer::None
    }
}
