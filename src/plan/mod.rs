//! From a configuration and facts about the host to a plan: pure, no system call, testable without root.

use crate::cgroup::{self, Driver};
use crate::config::Config;
use crate::host::Host;
use crate::namespace::{self, Kind};
use crate::wasm::{self, Settings};
use crate::{process, rootfs};
use oci_spec::runtime::{Hooks, LinuxSeccomp};
use proa_executor::Hull;
use proa_executor::recognise::{self, Reason};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A container, resolved and validated: everything that `create` does follows from this.
#[derive(Debug)]
pub struct Plan {
    /// The container's id.
    pub id: String,
    /// `ociVersion`, as written.
    pub oci_version: String,
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// Which executable becomes init.
    pub hull: Hull,
    /// Why this one.
    pub reason: Reason,
    /// The namespaces.
    pub namespaces: namespace::Plan,
    /// The file system.
    pub rootfs: rootfs::Plan,
    /// The process.
    pub process: process::Plan,
    /// The cgroup.
    pub cgroup: cgroup::Plan,
    /// `linux.seccomp`, to be compiled.
    pub seccomp: Option<LinuxSeccomp>,
    /// `hooks`.
    pub hooks: Hooks,
    /// `annotations`.
    pub annotations: HashMap<String, String>,
}

/// What the command line and the caller's environment say.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The container's id, valid.
    pub id: &'a str,
    /// The bundle directory, absolute.
    pub bundle: &'a Path,
    /// The name proa was called by.
    pub program: &'a str,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// `--systemd-cgroup`.
    pub driver: Driver,
    /// The administrator's configuration file.
    pub settings: &'a Settings,
    /// How many descriptors systemd's socket activation passed (`LISTEN_FDS`), sd_listen_fds(3).
    pub listen_fds: u32,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A required part of config.json is missing. Words are runc's.
    #[error("{0}")]
    Missing(&'static str),
    /// config.md#posix-platform-hooks: `path` MUST be absolute.
    #[error("hooks.{kind}[{index}].path: {path:?} is not absolute")]
    HookPath {
        /// e.g. `prestart`.
        kind: &'static str,
        /// Which of the list.
        index: usize,
        /// As given.
        path: PathBuf,
    },
    /// Namespaces.
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    /// File system.
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    /// Process.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// Cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The annotations of a Wasm container.
    #[error(transparent)]
    Annotation(#[from] wasm::annotations::Error),
    /// The entrypoint's kind.
    #[error(transparent)]
    Executor(#[from] proa_executor::Error),
}

/// Resolves `config` for this host.
pub fn resolve(config: &Config, host: &Host, request: Request<'_>) -> Result<Plan, Error> {
    let spec = &config.spec;
    let linux = spec
        .linux()
        .as_ref()
        .ok_or(Error::Missing("linux property must not be empty"))?;
    let process = spec
        .process()
        .as_ref()
        .ok_or(Error::Missing("process property must not be empty"))?;
    check_hooks(spec.hooks().as_ref())?;
    let annotations = spec.annotations().clone().unwrap_or_default();
    let options = process::Options {
        no_new_keyring: request.no_new_keyring,
        exec: false,
        unprivileged: host.unprivileged(),
    };
    let mut process = process::plan(process, spec, request.id, options)?;
    if request.listen_fds > 0 {
        process.guest.env.push(format!("LISTEN_FDS={}", request.listen_fds));
        process.guest.env.push("LISTEN_PID=1".into());
    }
    let program = process.guest.args.first().map_or("", String::as_str);
    let decision = recognise::decide(&annotations, request.program, program, request.settings.wasm.detect)?;
    process.guest.evidence = decision.evidence;
    if decision.hull == Hull::Wasm {
        let policy = wasm::policy(request.settings, spec)?;
        process.guest.policy = Some(Box::new(policy));
    }
    Ok(Plan {
        id: request.id.into(),
        oci_version: spec.version().clone(),
        bundle: request.bundle.into(),
        hull: decision.hull,
        reason: decision.reason,
        namespaces: namespace::plan(spec, host)?,
        rootfs: rootfs::plan(
            spec,
            request.bundle,
            host,
            rootfs::Options {
                no_pivot: request.no_pivot,
            },
        )?,
        cgroup: cgroup::plan(spec, request.id, request.driver, host)?,
        seccomp: linux.seccomp().clone(),
        hooks: spec.hooks().clone().unwrap_or_default(),
        annotations,
        process,
    })
}

/// Refuses a hook that would be looked for in somebody's `PATH`.
#[allow(deprecated, reason = "prestart hooks are deprecated, yet what Docker uses")]
fn check_hooks(hooks: Option<&Hooks>) -> Result<(), Error> {
    let Some(hooks) = hooks else { return Ok(()) };
    let kinds = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, hooks) in kinds {
        let hooks = hooks.as_deref().unwrap_or_default();
        if let Some(index) = hooks.iter().position(|hook| !hook.path().is_absolute()) {
            let path = hooks[index].path().clone();
            return Err(Error::HookPath { kind, index, path });
        }
    }
    Ok(())
}

impl Plan {
    /// The namespaces the first process is cloned into right away. The cgroup namespace is made later, by init itself,
    /// once it is in its cgroup; the time namespace only by a process in the middle.
    pub fn cloned_namespaces(&self) -> Vec<Kind> {
        let later = |kind: &&Kind| matches!(kind, Kind::Cgroup | Kind::Time);
        self.namespaces
            .new
            .iter()
            .filter(|kind| !later(kind))
            .copied()
            .collect()
    }
}
