//! Code compiled ahead of time, as the container's first process finds it and maps it.
//!
//! What it maps is native code that was made from an attacker's module, and the engine parses the module in it once more. So that
//! happens as late as the rest: confined, with the container's root and user. No path of the container leads there (its
//! `/proc` is its own), so the directory is open since before, and entered for the moment of loading.

use super::binding::{Failure, Library, Machine};
use super::module::Refusal;
use super::relative::with_relative_paths;
use crate::aot::{Digest, Key, Options, Source, Target};
use crate::policy::Policy;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::fchdir;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Code that was found in the cache.
pub struct Compiled {
    directory: OwnedFd,
    path: CString,
}

impl Compiled {
    /// Takes the cache's directory from the parent, and asks for the code of the module that is open as `file`. Without code,
    /// the directory is closed at once: it leads to the host.
    pub fn find(
        directory: RawFd,
        (library, digest, file): (&Library, &Digest, &File),
        policy: &Policy,
        source: &mut dyn Source,
    ) -> Option<Self> {
        let directory = proa_sys::fd::inherit(directory)
            .inspect_err(|errno| tracing::debug!("the directory of compiled code: descriptor {directory}: {errno}"))
            .ok()?;
        let target = target(library, Options::of(policy))?;
        let key = Key::new(*digest, &target);
        let found = source.find(&key, &target, file.as_fd());
        tracing::debug!("compiled code {key}: {}", if found { "found" } else { "there is none" });
        found.then(|| Self {
            directory,
            path: CString::new(format!("./{}", key.file_name())).expect("a key has no null byte"),
        })
    }

    /// Maps the code. An inner failure leaves the machine without a module; after an outer one the process is not where the
    /// guest belongs.
    pub fn load(self, machine: &mut Machine<'_>) -> Result<Result<(), Failure>, Refusal> {
        let fail = |call: &str, errno: rustix::io::Errno| Failure {
            message: format!("{call}: {errno}"),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let here = match openat(CWD, ".", flags, Mode::empty()) {
            Ok(here) => here,
            Err(errno) => return Ok(Err(fail("open the working directory", errno))),
        };
        if let Err(errno) = fchdir(&self.directory) {
            return Ok(Err(fail("fchdir to the cache of compiled code", errno)));
        }
        let loaded = with_relative_paths(|| machine.load_compiled(&self.path));
        fchdir(&here).map_err(|errno| Refusal::WorkingDirectory(errno.into()))?;
        Ok(loaded)
    }
}

/// What code of this engine depends on; `None`, and said, if the engine can't be told from another one of its version.
pub fn target(library: &Library, options: Options) -> Option<Target> {
    let Some(build) = library.build_id() else {
        tracing::debug!("this engine has no build id: code for it is not kept");
        return None;
    };
    Some(Target::new(&library.version(), &build, options))
}
