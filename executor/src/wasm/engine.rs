//! Finds and loads the engine.

use super::binding::{Library, LoadError};
use crate::locate::ENGINE_DIR;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The engine's name as the dynamic loader knows it.
const LIBRARY: &str = "libwasmedge.so.0";

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Not there, or it doesn't load.
    #[error(
        "no WebAssembly engine: {LIBRARY} wasn't found or doesn't load: looked for in {place}: {cause}. To get it: \
         `apt install libwasmedge0` (Debian 13 or later), `dnf install wasmedge` (Fedora), or proa's scripts/setup-engine \
         (elsewhere); {ENGINE_DIR} can name the directory that has it"
    )]
    NotFound {
        /// Where.
        place: String,
        /// In the loader's words.
        cause: String,
    },
    /// A plugin that the engine doesn't take; it says no more than that.
    #[error(
        "plugin {plugin}: the engine does not load it: it is no plugin for {engine}, or a library that it needs is missing",
        plugin = plugin.display()
    )]
    Plugin {
        /// The plugin.
        plugin: PathBuf,
        /// The engine's name and version.
        engine: String,
    },
    /// Something else of that name.
    #[error(
        "the WebAssembly engine {library} has no function {symbol}: versions 0.14 to 0.17 of WasmEdge are known to work"
    )]
    Symbol {
        /// The library's name or path.
        library: String,
        /// What it lacks.
        symbol: &'static str,
    },
}

/// Loads the engine from `dir`, or from where the dynamic loader finds it.
pub fn load(dir: Option<&Path>) -> Result<Library, EngineError> {
    let (name, place) = match dir {
        Some(dir) => (
            dir.join(LIBRARY).into_os_string(),
            format!("{} (from {ENGINE_DIR})", dir.display()),
        ),
        None => (LIBRARY.into(), "the dynamic loader's directories (ld.so(8))".to_owned()),
    };
    let not_found = |cause: String| EngineError::NotFound {
        place: place.clone(),
        cause,
    };
    let c_name = CString::new(name.as_bytes()).map_err(|error| not_found(error.to_string()))?;
    Library::load(&c_name).map_err(|error| match error {
        LoadError::Load(cause) => not_found(cause),
        LoadError::Symbol(symbol) => EngineError::Symbol {
            library: name.to_string_lossy().into_owned(),
            symbol,
        },
    })
}

/// Loads `plugins` into the engine, before it makes a machine. Nothing else is: neither from where WasmEdge keeps plugins nor
/// from where its environment variable says.
pub fn load_plugins(library: &Library, plugins: &[PathBuf]) -> Result<(), EngineError> {
    for plugin in plugins {
        let path = CString::new(plugin.as_os_str().as_bytes());
        if !path.is_ok_and(|path| library.load_plugin(&path)) {
            return Err(EngineError::Plugin {
                plugin: plugin.clone(),
                engine: format!("WasmEdge {}", library.version()),
            });
        }
    }
    Ok(())
}
