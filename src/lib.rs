//! proa: an OCI container runtime with two hulls, one for Linux programs, one for WebAssembly modules.
//!
//! The way of a container through the code:
//!
//! ```text
//! config.json -> config (as written) -> host (facts, probed once) -> plan (pure) -> launch -> state
//! ```
//!
//! Dependencies point one way: `cli -> launch -> {namespace, cgroup, rootfs, process} -> sys`.

pub mod cgroup;
pub mod cli;
pub mod config;
pub mod criu;
pub mod doctor;
pub mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod host;
pub mod launch;
pub mod logging;
pub mod managers;
pub mod namespace;
pub mod plan;
pub mod process;
pub mod rootfs;
pub mod state;
pub mod wasm;
