//! Which code of a module is executed: its own instructions, or what was compiled from them ahead of time, as the container's
//! first process finds and maps it.
//!
//! What it maps is native code that was made from an attacker's module, and the engine parses the module in it once more. So that
//! happens as late as the rest: confined, with the container's root and user. No path of the container leads there (its
//! `/proc` is its own), so the directory is open since before, and entered for the moment of loading.

use super::binding::{Failure, Library, Machine};
use super::entrypoint::HEAD;
use super::limits::{self, Bounds, Prepared};
use super::module::{self, Refusal, Survey};
use super::relative::{forget_working_directory, with_relative_paths};
use crate::Guest;
use crate::aot::{Digest, Key, Options, Source, Target};
use crate::from_start::FromStart;
use crate::policy::{Aot, Policy};
use crate::status;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::fchdir;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Where a module's code is.
pub enum Code {
    /// In the module; with `trusted`, code that was compiled from it and lies in a section of it counts.
    Own { trusted: bool },
    /// As `Own`, since the cache has none.
    Missing,
    /// In the cache.
    Cached(Cached),
    /// The entrypoint is nothing but compiled code: a library of the image, by its path in the container.
    Image(CString),
}

/// Code that was found in the cache.
pub struct Cached {
    directory: OwnedFd,
    path: CString,
}

/// A module that is parsed, with its code.
pub struct Loaded<'library> {
    pub machine: Machine<'library>,
    pub survey: Survey,
    /// Which code it is.
    pub code: status::Code,
    /// As in [`Prepared`].
    pub moved: Option<(u64, i64)>,
}

/// Why a module is not loaded.
pub enum LoadFailure {
    /// It can't be run.
    Refused(Refusal),
    /// The engine failed at this.
    Engine(&'static str, Failure),
}

impl From<Refusal> for LoadFailure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn engine(phase: &'static str) -> impl FnOnce(Failure) -> LoadFailure {
    move |failure| LoadFailure::Engine(phase, failure)
}

impl Code {
    /// Takes the cache's directory from the parent, and asks for the code of the module that is open as `file`. Without code,
    /// the directory is closed at once: it leads to the host.
    pub fn find(
        directory: RawFd,
        (library, digest, file): (&Library, &Digest, &File),
        policy: &Policy,
        source: &mut dyn Source,
    ) -> Self {
        let directory = match proa_sys::fd::claim(directory) {
            Ok(directory) => directory,
            Err(errno) => {
                tracing::debug!("the directory of compiled code: descriptor {directory}: {errno}");
                return Self::Missing;
            }
        };
        let Some(target) = target(library, Options::of(policy)) else {
            return Self::Missing;
        };
        let key = Key::new(*digest, &target);
        let found = source.find(&key, &target, file.as_fd());
        tracing::debug!("compiled code {key}: {}", if found { "found" } else { "there is none" });
        if !found {
            return Self::Missing;
        }
        Self::Cached(Cached {
            directory,
            path: CString::new(format!("./{}", key.file_name())).expect("a key has no null byte"),
        })
    }
}

impl Cached {
    /// Maps the code. An inner failure leaves the machine without a module; after an outer one the process is not where the
    /// guest belongs.
    fn load(self, machine: &mut Machine<'_>) -> Result<Result<(), Failure>, Refusal> {
        let fail = |call: &str, errno: rustix::io::Errno| Failure {
            message: format!("{call}: {errno}"),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let here = match openat(CWD, ".", flags, Mode::empty()) {
            Ok(here) => here,
            Err(errno) => return Ok(Err(fail("open the working directory", errno))),
        };
        if let Err(errno) = forget_working_directory() {
            let message = format!("seccomp: {errno}");
            return Ok(Err(Failure { message }));
        }
        if let Err(errno) = fchdir(&self.directory) {
            return Ok(Err(fail("fchdir to the cache of compiled code", errno)));
        }
        let loaded = with_relative_paths(|| machine.load_compiled(&self.path));
        fchdir(&here).map_err(|errno| Refusal::WorkingDirectory(errno.into()))?;
        Ok(loaded)
    }
}

/// Parses the module that is open as `file` and was seen as `survey`, with the code that there is for it; compiled code that
/// does not load costs nothing but the time. `read` is called once the module is read, if it has to be.
pub fn load<'library>(
    library: &'library Library,
    (file, code, survey): (&File, &mut Code, &mut Survey),
    bounds: &Bounds,
    read: &mut dyn FnMut(),
) -> Result<Loaded<'library>, LoadFailure> {
    let mut without = status::Code::Interpreted;
    let mut trusted = false;
    match std::mem::replace(code, Code::Missing) {
        Code::Own { trusted: granted } => trusted = granted,
        Code::Missing => without = status::Code::CacheMiss,
        Code::Cached(cached) => {
            let mut machine = Machine::new(library, true).map_err(engine("set-up"))?;
            match cached.load(&mut machine)? {
                Ok(()) => {
                    tracing::debug!("compiled code is loaded");
                    return Ok(Loaded {
                        machine,
                        survey: std::mem::take(survey),
                        code: status::Code::CacheHit,
                        moved: None,
                    });
                }
                Err(failure) => {
                    tracing::debug!("compiled code does not load: {}; it is interpreted", failure.message);
                }
            }
        }
        Code::Image(path) => {
            let mut machine = Machine::new(library, true).map_err(engine("set-up"))?;
            machine.load_compiled(&path).map_err(engine("load"))?;
            // Whether it has a start section is not known: then guest code runs while it is instantiated.
            let survey = Survey {
                start_section: true,
                ..Survey::default()
            };
            return Ok(Loaded {
                machine,
                survey,
                code: status::Code::Image,
                moved: None,
            });
        }
    }
    let Prepared {
        mut bytes,
        survey,
        moved,
    } = prepare(file, bounds)?;
    read();
    trusted &= !survey.aot.is_empty();
    match trusted {
        true => without = status::Code::Image,
        false => module::hide_aot(&mut bytes, &survey.aot),
    }
    let mut machine = Machine::new(library, trusted).map_err(engine("set-up"))?;
    machine.load(&bytes).map_err(engine("load"))?;
    Ok(Loaded {
        machine,
        survey,
        code: without,
        moved,
    })
}

/// Reads the module through the descriptor that was opened for `create`. It may have changed since: it is looked at again.
fn prepare(file: &File, bounds: &Bounds) -> Result<Prepared, Refusal> {
    let size = file.metadata().map_err(Refusal::Read)?.len();
    let capacity = u32::try_from(size).map_err(|_| Refusal::TooLarge(size))?;
    let mut bytes = Vec::with_capacity(capacity as usize);
    FromStart::new(file)
        .take(u64::from(u32::MAX))
        .read_to_end(&mut bytes)
        .map_err(Refusal::Read)?;
    module::kind(&bytes[..bytes.len().min(HEAD)])?;
    limits::prepare(bytes, bounds)
}

/// Whether code that comes with the image is run. What was compiled elsewhere counts no instructions, and has its own idea of the
/// tables.
pub fn trusts_image(guest: &Guest) -> bool {
    guest.policy.as_deref().is_some_and(|policy| {
        let bounded = policy.counts() || policy.limits.table_elements.is_some();
        policy.trust_image_code && policy.aot != Aot::Off && !bounded
    })
}

/// What code of this engine depends on; `None`, and said, if the engine can't be told from another one of its version.
pub fn target(library: &Library, options: Options) -> Option<Target> {
    let Some(build) = library.build_id() else {
        tracing::debug!("this engine has no build id: code for it is not kept");
        return None;
    };
    Some(Target::new(&library.version(), &build, options))
}
