//! How a container's entrypoint is executed: natively with execve(2), or as a WebAssembly module in WasmEdge.
//!
//! The crate knows nothing of bundles, sandboxes or state. A [`Handler`] is given plain data and is driven in two phases:
//! [`Handler::prepare`] while the host's files can still be seen (before pivot_root(2)), [`Handler::run`] after the process
//! is confined.

pub mod aot;
pub mod from_start;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod locate;
pub mod native;
pub mod policy;
pub mod recognise;
pub mod status;
pub mod text;
pub mod wasm;

use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;

/// Which of the two executables becomes the container's init.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hull {
    /// `proa` itself: the entrypoint is a Linux program.
    Native,
    /// `proa-wasmedge`: the entrypoint is (or, with a sidecar guard, may be) a WebAssembly module.
    Wasm,
}

/// The program of a container, as plain data.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Guest {
    /// `process.args`; the first names the program or module. Never empty.
    pub args: Vec<String>,
    /// `process.env`, each `NAME=value`.
    pub env: Vec<String>,
    /// `process.cwd`, absolute, as seen inside the container.
    pub cwd: String,
    /// `linux.resources.memory.limit` in bytes, if there is one: bounds a Wasm guest's pages.
    pub memory_limit: Option<u64>,
    /// Why it may be a WebAssembly module.
    #[serde(default)]
    pub evidence: recognise::Evidence,
    /// What it may do if it is a WebAssembly module; a Linux program has none.
    pub policy: Option<Box<policy::Policy>>,
    /// The number of an inherited descriptor of the file for its [`status::Page`], if somebody may want to read it.
    pub status: Option<std::os::fd::RawFd>,
    /// Whether the parent may be asked for compiled code.
    #[serde(default)]
    pub code: bool,
    /// It is no guest at all but a compiler, which is confined like one.
    #[serde(default)]
    pub compile: Option<aot::Task>,
}

/// A way of executing a container's entrypoint. Driven by the container's init process, in this order.
pub trait Handler {
    /// Opens what must be opened while the host's root is still the process's root. `rootfs` is an `O_PATH` descriptor
    /// of the container's root directory with all mounts made. Fails for what can be refused by now (no such module, a
    /// component, no engine), so that `create` reports it. `source` has the code that was compiled ahead of time.
    fn prepare(&mut self, guest: &Guest, rootfs: BorrowedFd<'_>, source: &mut dyn aot::Source) -> Result<(), Error>;

    /// Whether, as [`Handler::prepare`] found, the guest runs inside this process instead of replacing it with execve(2):
    /// an LSM label then has to hold for this process from now on, not for the next program.
    fn in_process(&self) -> bool {
        false
    }

    /// Called after pivot_root(2) and after credentials are final, in the guest's cwd, before the wait for `start`: the
    /// last chance to fail at `create` (a native program that is not found or not executable).
    fn check(&mut self, guest: &Guest) -> Result<(), Error>;

    /// Called when the container is started, fully confined. Returns only if the guest could not be started; a guest
    /// that ran never returns (execve, or exit with the guest's status). `started` must be called once nothing can fail
    /// any more before the first instruction of a guest that is run in-process; for execve(2), close-on-exec tells.
    fn run(&mut self, guest: &Guest, started: &mut dyn FnMut()) -> Error;
}

/// Why an entrypoint can't be executed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program of `process.args[0]` can't be executed. Worded as runc words it, as callers match on it.
    #[error("exec: {program:?}: {cause}")]
    Program {
        /// As given in `process.args[0]`.
        program: String,
        /// e.g. `executable file not found in $PATH`, `permission denied`.
        cause: String,
    },
    /// execve(2) failed. Worded as runc words it.
    #[error("exec {path}: {cause}")]
    Exec {
        /// The program as it was found.
        path: String,
        /// The errno's text.
        cause: String,
    },
    /// A string that can't be handed to the kernel or to the engine.
    #[error("{field}[{index}] contains a NUL byte")]
    Nul {
        /// The field of config.json.
        field: &'static str,
        /// Its index.
        index: usize,
    },
    /// The container asks for something that proa hasn't got.
    #[error(transparent)]
    Recognise(#[from] recognise::Error),
    /// The WebAssembly module can't be executed.
    #[error("wasm module {path}: {cause}")]
    Module {
        /// As given in `process.args[0]`.
        path: String,
        /// Why.
        cause: wasm::Refusal,
    },
    /// A directory can't be given to a WebAssembly guest.
    #[error("preopened directory {directory}: {problem}", directory = directory.display())]
    Preopen {
        /// The directory, in the container.
        directory: std::path::PathBuf,
        /// Why not.
        problem: String,
    },
    /// The kernel can't be made to hold a WebAssembly guest to its policy.
    #[error("{policy} can't be enforced: {problem}")]
    Unenforceable {
        /// What of the policy, as its annotation is called.
        policy: &'static str,
        /// Why not.
        problem: String,
    },
    /// The status page can't be mapped.
    #[error("status page of the Wasm guest: {0}")]
    Status(String),
    /// The guest's signals and timers can't be set up.
    #[error("signals and timers of the Wasm guest (timer_create, timer_settime, sigaction): {0}")]
    Watch(String),
    /// There is no usable engine.
    #[cfg(feature = "engine")]
    #[error(transparent)]
    Engine(#[from] wasm::EngineError),
}
