//! WebAssembly modules: what can be said of one without an engine ([`module`]), how it is found in a root file system that
//! isn't entered yet ([`open`]), and, with the feature `engine`, how WasmEdge runs it.

#[cfg(feature = "engine")]
mod binding;
pub mod binfmt;
#[cfg(feature = "engine")]
mod calls;
#[cfg(feature = "engine")]
mod code;
#[cfg(feature = "engine")]
mod compile;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "engine")]
mod entrypoint;
#[cfg(feature = "engine")]
mod files;
#[cfg(feature = "engine")]
mod handler;
#[cfg(feature = "engine")]
mod hardening;
pub mod inspection;
#[cfg(feature = "engine")]
mod interfaces;
#[cfg(feature = "engine")]
mod judge;
#[cfg(feature = "engine")]
mod kernel_files;
#[cfg(feature = "engine")]
mod limits;
#[cfg(feature = "engine")]
mod loaded;
pub mod loader_cache;
pub mod module;
#[cfg(feature = "engine")]
mod names;
#[cfg(feature = "engine")]
mod network;
pub mod open;
#[cfg(feature = "engine")]
mod opens;
#[cfg(feature = "engine")]
mod process;
#[cfg(feature = "engine")]
mod progress;
#[cfg(feature = "engine")]
mod relative;
#[cfg(feature = "engine")]
pub mod stand_in;
#[cfg(feature = "engine")]
mod trap;
#[cfg(feature = "engine")]
mod watch;

#[cfg(feature = "engine")]
pub use engine::EngineError;
#[cfg(feature = "engine")]
pub use handler::WasmHandler;
pub use module::Refusal;
