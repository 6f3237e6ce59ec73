//! Finds and loads the engine: without its compiler, unless that is wanted (docs/decisions/0008).
//!
//! In place of the compiler's library, some hundred microseconds are spent on a [`stand_in`] for it, made anew each time from
//! the engine's table of imports, in memory, and gone with the process. There is no file that somebody could change, and
//! nothing to find, to check, or to keep up to date. If anything about it fails, the engine is loaded as it is.

use super::binding::{Library, LoadError, SharedObject};
use super::{loader_cache, stand_in};
use crate::locate::{ENGINE_DIR, ENGINE_PLACE, LIBRARY};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proa_sys::mapped::Mapped;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

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
    /// A thread that nothing confines.
    #[error(
        "{library}: it starts a thread {when}, which would not be confined: capabilities, no_new_privs, seccomp filters, \
         labels and Landlock's rules are each thread's own (a thread that it starts when the guest calls it is confined)"
    )]
    Threads {
        /// Who started it, or who may have.
        library: String,
        /// At which step.
        when: &'static str,
    },
    /// Whether there is such a thread can't be told.
    #[error("{library}: whether it has started threads can't be told: {errno}")]
    Uncounted {
        /// Who may have.
        library: String,
        /// Why not.
        errno: Errno,
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

/// What the engine is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Modules are interpreted, or code is run that was compiled before. A call of a function of the compiler ends the
    /// process with `SIGSEGV`.
    Run,
    /// Modules are compiled as well: the engine is loaded with all that it is linked to, which takes ten times as long.
    Compile,
}

/// Loads the engine from `dir`, or from where the dynamic loader finds it.
pub fn load(dir: Option<&Path>, wanted: Use) -> Result<Library, EngineError> {
    load_and_tell(dir, wanted).map(|(library, _)| library)
}

/// The same, with the reason why the compiler was loaded though it was not wanted, if it was.
pub fn load_and_tell(dir: Option<&Path>, wanted: Use) -> Result<(Library, Option<String>), EngineError> {
    let mut told = None;
    let (name, place) = match dir {
        Some(dir) => (dir.join(LIBRARY).into_os_string(), shown(dir).display().to_string()),
        None => (LIBRARY.into(), "the dynamic loader's directories (ld.so(8))".to_owned()),
    };
    let not_found = |cause: String| EngineError::NotFound {
        place: place.clone(),
        cause,
    };
    let c_name = CString::new(name.as_bytes()).map_err(|error| not_found(error.to_string()))?;
    let loaded = match wanted {
        Use::Run => match without_compiler(dir, &c_name) {
            Ok(library) => return Ok((library, None)),
            Err(reason) => {
                tracing::debug!("the engine is loaded with its compiler: {reason}");
                told = Some(reason.to_string());
                Library::load(&c_name)
            }
        },
        Use::Compile => Library::load(&c_name),
    };
    loaded.map(|library| (library, told)).map_err(|error| match error {
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
        has_one_thread(|| format!("plugin {}", plugin.display()), "when it is loaded")?;
    }
    Ok(())
}

/// Demands that this process still has one thread, after `library` was loaded: what a process is confined by holds for the
/// thread that asks for it, and for those that it starts later.
pub fn has_one_thread(library: impl Fn() -> String, when: &'static str) -> Result<(), EngineError> {
    match proa_sys::threads::is_alone() {
        Ok(true) => Ok(()),
        Ok(false) => Err(EngineError::Threads {
            library: library(),
            when,
        }),
        Err(errno) => Err(EngineError::Uncounted {
            library: library(),
            errno,
        }),
    }
}

/// The same for `plugins` at the last moment: the engine has made their modules by now, which is code of theirs. This process
/// is under the container's filter, which may end who calls what it does not know: procfs is asked first.
pub fn have_started_no_thread(plugins: &[PathBuf]) -> Result<(), EngineError> {
    if plugins.is_empty() || proa_sys::threads::count() == Ok(1) {
        return Ok(());
    }
    let names = || {
        let names: Vec<String> = plugins.iter().map(|plugin| plugin.display().to_string()).collect();
        format!("plugin {}", names.join(" or "))
    };
    has_one_thread(names, "when the engine makes its module")
}

/// The directory's path, where `dir` is what was opened for this process.
fn shown(dir: &Path) -> PathBuf {
    let place = std::env::var_os(ENGINE_PLACE).filter(|_| dir.starts_with("/proc/self/fd"));
    place.map_or_else(|| dir.to_owned(), PathBuf::from)
}

/// Why the engine can't be loaded without its compiler.
#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    /// It isn't in the loader's cache, or there is none. The loader may find it all the same.
    #[error("{LIBRARY} is not in {cache}", cache = loader_cache::PATH)]
    NotInCache,
    /// The library can't be read.
    #[error("{path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// There can't be a stand-in for its compiler.
    #[error("{path}: {source}", path = path.display())]
    Derive { path: PathBuf, source: stand_in::Error },
    /// The kernel has no file in memory for it.
    #[error("{call} for the stand-in for {soname}: {source}")]
    Memory {
        call: &'static str,
        soname: String,
        source: std::io::Error,
    },
    /// The loader takes the stand-in for none.
    #[error("the stand-in for {soname} does not load: {cause}")]
    StandIn { soname: String, cause: String },
    /// The loader can't do with the stand-in.
    #[error("with a stand-in for its compiler, {0}")]
    Engine(String),
}

/// Loads the engine `name`, which lies in `dir` or where the loader's cache says, with stand-ins for what it compiles with. On
/// failure, nothing remains loaded.
fn without_compiler(dir: Option<&Path>, name: &std::ffi::CStr) -> Result<Library, Reason> {
    let path = match dir {
        Some(dir) => dir.join(LIBRARY),
        None => found_by_loader()?,
    };
    let read = |source| Reason::Read {
        path: path.clone(),
        source,
    };
    let library = Mapped::open(&File::open(&path).map_err(read)?).map_err(read)?;
    let stand_ins = stand_in::derive(&library).map_err(|source| Reason::Derive { path, source })?;
    let loaded = stand_ins.iter().map(load_stand_in).collect::<Result<Vec<_>, _>>()?;
    let library = Library::load(name).map_err(|error| match error {
        LoadError::Load(cause) => Reason::Engine(cause),
        LoadError::Symbol(symbol) => Reason::Engine(format!("it has no function {symbol}")),
    })?;
    // The engine holds them, too.
    drop(loaded);
    Ok(library)
}

fn found_by_loader() -> Result<PathBuf, Reason> {
    let cache = File::open(loader_cache::PATH)
        .and_then(|file| Mapped::open(&file))
        .map_err(|source| Reason::Read {
            path: loader_cache::PATH.into(),
            source,
        })?;
    let found = loader_cache::find(&cache, LIBRARY).ok_or(Reason::NotInCache)?;
    Ok(found.to_owned())
}

/// Loads a stand-in from a file in memory which nobody can change.
pub(super) fn load_stand_in(stand_in: &stand_in::StandIn) -> Result<SharedObject, Reason> {
    let soname = &stand_in.soname;
    let failed = |call| {
        move |source: std::io::Error| Reason::Memory {
            call,
            soname: soname.clone(),
            source,
        }
    };
    // As the process's maps show it.
    let label = CString::new(format!("stand-in for {soname}")).unwrap_or_else(|_| c"stand-in".into());
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // MFD_NOEXEC_SEAL (Linux 6.3) says that nothing in it is to be executed, which vm.memfd_noexec may demand.
    let not_executable = MFdFlags::from_bits_retain(0x8);
    let memory = match memfd_create(label.as_c_str(), flags | not_executable) {
        Err(Errno::EINVAL) => memfd_create(label.as_c_str(), flags),
        other => other,
    };
    let mut file = File::from(memory.map_err(|errno| failed("memfd_create")(errno.into()))?);
    file.write_all(&stand_in.image).map_err(failed("write"))?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| failed("fcntl(F_ADD_SEALS)")(errno.into()))?;
    let name = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("a number has no zero byte");
    SharedObject::load(&name).map_err(|cause| Reason::StandIn {
        soname: soname.clone(),
        cause,
    })
}
