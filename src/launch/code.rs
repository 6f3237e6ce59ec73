//! The parent's side of compiled code: it owns the cache ([`proa_executor::aot`]), answers what init asks of it, and has
//! compiled what is missing, as the container's policy says.

use super::compile::{self, Job, Limits};
use super::{Error, sealed};
use crate::cgroup::Driver;
use crate::host;
use crate::state::Store;
use crate::wasm::Settings;
use nix::errno::Errno;
use proa_executor::Guest;
use proa_executor::aot::{Answer, Cache, Found, Key, Level, Options, Target};
use proa_executor::policy::Aot;
use std::fmt::Debug;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// Answers init's question for compiled code.
pub trait Desk: Debug {
    /// What is known of the code of `key` by the time that this returns; `module` opens the module.
    fn find(&self, key: &Key, target: &Target, module: &dyn Fn() -> Result<OwnedFd, Error>) -> Result<Answer, Error>;
}

/// Where compilers are made: what the command line says beside the settings.
#[derive(Clone, Debug)]
pub struct Site {
    /// Whose hidden directory keeps a compiler's state.
    pub store: Store,
    /// Who makes its cgroup.
    pub driver: Driver,
    /// `--rootless`.
    pub rootless: Option<bool>,
}

/// The cache, for one container.
#[derive(Debug)]
pub struct CacheDesk {
    cache: Cache,
    policy: Aot,
    options: Options,
    max_size: u64,
    limits: Limits,
    site: Site,
}

/// The directory of the cache.
pub fn directory(settings: &Settings) -> PathBuf {
    settings.wasm.aot.cache.clone().unwrap_or_else(host::default_code_cache)
}

impl CacheDesk {
    /// Opens the cache if `guest` may use it, and tells the guest's hull. A cache that can't be used costs time, nothing else.
    pub fn open(guest: &mut Guest, settings: &Settings, site: Site) -> Option<Self> {
        let policy = guest.policy.as_deref()?;
        let path = policy.aot_cache.clone().unwrap_or_else(|| directory(settings));
        let opened = match policy.aot {
            Aot::Off => return None,
            // Without any entry there is nothing to ask for, and no digest to be made.
            Aot::Use => Cache::open(&path).and_then(|cache| match cache {
                Some(cache) if !cache.is_empty()? => Ok(Some(cache)),
                _ => Ok(None),
            }),
            Aot::Background | Aot::BeforeStart => Cache::make(&path).map(Some),
        };
        let cache = match opened {
            Ok(cache) => cache?,
            Err(error) => {
                tracing::warn!("{error}; the module is interpreted");
                return None;
            }
        };
        let desk = Self {
            policy: policy.aot,
            options: Options::of(policy),
            max_size: settings.wasm.aot.max_size(),
            limits: Limits::of(settings),
            site,
            cache,
        };
        guest.code = true;
        Some(desk)
    }

    /// Compiles, if nobody has meanwhile, and waits for it. Whether there is code then.
    fn compile(&self, key: &Key, module: OwnedFd) -> Result<bool, Error> {
        let wait = self.limits.wait();
        let Some(lock) = self.cache.lock(key, &wait)? else {
            tracing::warn!(
                "compiled code {key}: another process has been at it for too long; the module is interpreted"
            );
            return Ok(false);
        };
        let done = match self.cache.outcome(key) {
            Some(found) => Ok(found),
            None => self
                .job(key)
                .fill_in_turn(&self.cache, key, self.max_size, &File::from(module))
                .map(|filled| filled && matches!(self.cache.find(key), Found::Code(_))),
        };
        self.cache.unlock(key, lock)?;
        done
    }

    fn job(&self, key: &Key) -> Job {
        Job {
            site: self.site.clone(),
            limits: self.limits,
            options: self.options,
            level: Level::default(),
            key: Some(*key),
            background: self.policy == Aot::Background,
        }
    }
}

impl CacheDesk {
    /// Whether there is code of `key`, which is compiled if the policy says so.
    fn look(&self, key: &Key, module: &dyn Fn() -> Result<OwnedFd, Error>) -> Result<bool, Error> {
        match self.cache.find(key) {
            Found::Code(_) => return Ok(true),
            Found::Nothing => {}
            Found::Unusable(why) => tracing::warn!("compiled code {key}: {why}: it is not used"),
        }
        if self.policy == Aot::Use {
            return Ok(false);
        }
        if let Some(reason) = self.cache.failure(key) {
            tracing::debug!("compiled code {key}: not tried again: {reason}");
            return Ok(false);
        }
        let made = match self.policy {
            Aot::Background => compile::in_background(&self.cache, self.job(key), self.max_size, module),
            _ => module().and_then(|module| self.compile(key, module)),
        };
        match made {
            Ok(found) => Ok(found),
            // Whoever calls wants the container not to be made.
            Err(error @ Error::Compile(compile::Failure::Interrupted(_))) => Err(error),
            Err(error) => {
                tracing::warn!("compiling ahead of time, {key}: {error}; the module is interpreted");
                Ok(false)
            }
        }
    }

    /// The cache's directory as a container may see it: init keeps it open until the guest is loaded, and a root with
    /// CAP_SYS_PTRACE in its pid namespace goes wherever a descriptor leads.
    fn shown(&self) -> Answer {
        let path = self.cache.path().display();
        match (
            sealed::directory(self.cache.as_fd()),
            self.cache.as_fd().try_clone_to_owned(),
        ) {
            (Ok(directory), _) => Answer::In(directory),
            // Init may be the root of a user namespace of its own.
            (Err(Errno::EPERM), Ok(directory)) => Answer::OnHost(directory),
            // No overlayfs, or a kernel before Linux 5.2.
            (Err(errno), _) => {
                tracing::warn!(
                    "the cache of compiled code can't be shown alone: overlay over {path}: {errno}; the module is interpreted"
                );
                Answer::None
            }
        }
    }
}

impl Desk for CacheDesk {
    fn find(&self, key: &Key, _: &Target, module: &dyn Fn() -> Result<OwnedFd, Error>) -> Result<Answer, Error> {
        match self.look(key, module)? {
            true => Ok(self.shown()),
            false => Ok(Answer::None),
        }
    }
}
