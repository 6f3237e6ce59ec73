//! WebAssembly modules: what can be said of one without an engine ([`module`]), how it is found in a root file system that
//! isn't entered yet ([`open`]), and, with the feature `engine`, how WasmEdge runs it.

#[cfg(feature = "engine")]
mod binding;
pub mod binfmt;
#[cfg(feature = "engine")]
mod code;
#[cfg(feature = "engine")]
mod compile;
#[cfg(feature = "engine")]
mod engine;
#[cfg(feature = "engine")]
mod handler;
pub mod module;
pub mod open;
#[cfg(feature = "engine")]
mod process;
#[cfg(feature = "engine")]
mod relative;

#[cfg(feature = "engine")]
pub use code::{CodeFacts, CodeUse};
#[cfg(feature = "engine")]
pub use engine::EngineError;
#[cfg(feature = "engine")]
pub use handler::WasmHandler;
pub use module::Refusal;
