//! From a plan to a running container: the parent's side, the init's side, and the protocol between them.

pub mod channel;
mod checkpoint;
mod code;
pub mod compile;
mod create;
mod criu;
mod exec;
mod foreground;
pub mod handover;
pub mod hooks;
pub mod image;
pub mod init;
pub mod inspect;
mod parent;
mod restore;
mod sdnotify;
mod sealed;
pub mod spawn;
mod start;
mod terminal;

pub use checkpoint::{CheckpointOptions, checkpoint};
pub use code::{Site, directory as code_directory};
pub use criu::CriuOptions;
pub use exec::may_be_module;
pub use image::sealed_by_overlay;
pub use parent::program;
pub use restore::{RestoreOptions, restore};

use crate::cgroup;
use crate::config::Config;
use crate::state::{Container, Store};
use crate::wasm::Settings;
use oci_spec::runtime::Process;
use std::path::PathBuf;

/// The arguments of `create` and `run`.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The container's id, not yet validated.
    pub id: String,
    /// `--bundle`, absolute.
    pub bundle: PathBuf,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--pidfd-socket`.
    pub pidfd_socket: Option<PathBuf>,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// `--preserve-fds`: how many descriptors after stdio (and `$LISTEN_FDS`) the container inherits.
    pub preserve_fds: u32,
    /// `--systemd-cgroup`.
    pub driver: cgroup::Driver,
    /// `--rootless`: `None` is `auto`.
    pub rootless: Option<bool>,
    /// The administrator's configuration file, with what the command line says in its place.
    pub settings: Settings,
}

/// What `run` has beyond `create`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// `--detach`.
    pub detach: bool,
    /// `--keep`: leave the state of a container that ended.
    pub keep: bool,
    /// `--no-subreaper`: accepted for runc's sake.
    pub no_subreaper: bool,
}

/// The arguments of `exec`, the process already merged from `--process` or the flags and the container's config.
#[derive(Clone, Debug)]
pub struct ExecOptions {
    /// The process to run.
    pub process: Process,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--pidfd-socket`.
    pub pidfd_socket: Option<PathBuf>,
    /// `--detach`.
    pub detach: bool,
    /// `--preserve-fds`.
    pub preserve_fds: u32,
    /// `--cgroup`, each `[CONTROLLER,…:]PATH` below the container's cgroup.
    pub cgroup: Vec<String>,
    /// The administrator's configuration file, with what the command line says in its place.
    pub settings: Settings,
    /// `--systemd-cgroup`.
    pub driver: cgroup::Driver,
    /// `--rootless`: `None` is `auto`.
    pub rootless: Option<bool>,
}

/// Why a container could not be launched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration can't be read.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// The configuration can't be carried out.
    #[error(transparent)]
    Plan(#[from] crate::plan::Error),
    /// A plugin of the Wasm engine can't be trusted or isn't there.
    #[error(transparent)]
    Plugin(#[from] crate::wasm::plugins::Error),
    /// The container's state.
    #[error(transparent)]
    State(#[from] crate::state::Error),
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// Its namespaces.
    #[error(transparent)]
    Namespace(#[from] crate::namespace::Error),
    /// Its file system.
    #[error(transparent)]
    Rootfs(#[from] crate::rootfs::Error),
    /// Its process.
    #[error(transparent)]
    Process(#[from] crate::process::Error),
    /// The init image.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// What init is handed.
    #[error(transparent)]
    Handover(#[from] handover::Error),
    /// The first process.
    #[error(transparent)]
    Spawn(#[from] spawn::Error),
    /// The line to init.
    #[error(transparent)]
    Channel(#[from] channel::Error),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    /// Init said why. Words are runc's, which Docker and podman look for the cause behind.
    #[error("unable to start container process: {0}")]
    Init(String),
    /// execve(2) refused the program. `told`: init has said so on the stderr that it shares with this process.
    #[error("unable to start container process: {cause}")]
    Unexecutable {
        /// `exec PATH: why`.
        cause: String,
        /// The user has read it.
        told: bool,
    },
    /// Init ended without a word.
    #[error("the container's init ended before the container was set up")]
    InitGone,
    /// Init was killed for want of memory: runc's words.
    #[error("unable to start container process: container init was OOM-killed (memory limit too low?)")]
    OutOfMemory,
    /// A call on a path failed.
    #[error("{call} {path}: {source}", path = path.display())]
    Path {
        /// The call.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A call failed.
    #[error("{call}: {errno}")]
    Call {
        /// The call with its arguments.
        call: String,
        /// Why.
        errno: nix::errno::Errno,
    },
    /// `--preserve-fds` or `LISTEN_FDS` promise more than there is.
    #[error("unable to stat preserved-fd {fd} (of {count}): it is not open")]
    PreservedDescriptor {
        /// The first that is missing.
        fd: i32,
        /// How many were promised.
        count: u32,
    },
    /// Only a hull that was given the directory of compiled code asks for some.
    #[error("init asked for compiled code, of which it was offered none")]
    UnexpectedCode,
    /// The cache of compiled code.
    #[error(transparent)]
    Cache(#[from] proa_executor::aot::Error),
    /// A module is not compiled.
    #[error(transparent)]
    Compile(#[from] compile::Failure),
    /// An addition of ours to the configuration.
    #[error(transparent)]
    Spec(#[from] oci_spec::OciSpecError),
    /// `--pidfd-socket` on a kernel without pidfds.
    #[error("--pidfd-socket: this kernel has no pidfd (it needs Linux 5.3)")]
    NoPidfd,
    /// A filter without SCMP_ACT_NOTIFY returned a listener.
    #[error("linux.seccomp.listenerPath: missing, yet the filter notifies")]
    UnexpectedListener,
    /// CRIU does not do what it is asked for.
    #[error(transparent)]
    Criu(#[from] crate::criu::Error),
    /// CRIU failed at what it was asked for, and has a log.
    #[error("{error}{cause} (log file: {log})", log = log.display())]
    CriuLog {
        /// What it answered.
        error: crate::criu::Error,
        /// The log's last error, with a colon.
        cause: String,
        /// The log.
        log: PathBuf,
    },
    /// CRIU has to be root.
    #[error("{0} is not possible for rootless containers: CRIU needs the host's root")]
    RootlessCriu(&'static str),
    /// The Wasm engine's files are outside of the container, where CRIU can't find them again.
    #[error(
        "{0} is not possible for a Wasm container: CRIU saves Linux programs of the container's own file system only"
    )]
    WasmCriu(&'static str),
    /// Words are runc's.
    #[error("invalid --status-fd argument {number}: {problem}")]
    StatusFd {
        /// The descriptor.
        number: i32,
        /// What is wrong with it.
        problem: String,
    },
    /// Words are runc's.
    #[error("criu lacks support for external {kind} namespace during {when} process (old criu version?)")]
    ExternalNamespace {
        /// As in `/proc/PID/ns`.
        kind: &'static str,
        /// At what.
        when: &'static str,
    },
    /// Words are runc's.
    #[error("Requested {kind:?} namespace {path} does not exist: {source}", path = path.display())]
    NoNamespace {
        /// Its kind.
        kind: crate::namespace::Kind,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// CRIU has no way to join one.
    #[error("linux.namespaces: the cgroup namespace {path} can't be joined by restore: CRIU knows no way", path = .0.display())]
    JoinCgroupNamespace(PathBuf),
    /// Words are runc's.
    #[error("cannot allocate tty if runc will detach without setting console socket")]
    TerminalNeedsSocket,
    /// Words are runc's.
    #[error("cannot use console socket if runc will not detach or allocate tty")]
    SocketWithoutTerminal,
}

impl Error {
    fn call(call: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::Call {
            call: call.into(),
            errno,
        }
    }

    /// `show`s what init has written, which the user then has `told`.
    fn seen(self, show: impl FnOnce() -> bool) -> Self {
        match self {
            Self::Unexecutable { cause, .. } => Self::Unexecutable { cause, told: show() },
            other => other,
        }
    }

    fn path(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { call, path, source }
    }
}

/// `proa create`: returns when the container's init waits for `start`.
pub fn create(store: &Store, options: &CreateOptions) -> Result<(), Error> {
    create::create(store, options, create::StartBy::Socket, true)?.keep();
    Ok(())
}

/// `proa run`: returns the exit status of the container (128 + the signal that ended it), or 0 with `detach`.
pub fn run(store: &Store, options: &CreateOptions, run: RunOptions) -> Result<u8, Error> {
    foreground::run(store, options, run)
}

/// `proa start`.
pub fn start(store: &Store, id: &str) -> Result<(), Error> {
    start::start(store, id)
}

/// `proa exec` in a container that may be executed in: returns the exit status of the process, or 0 with `detach`.
/// `config` is the container's stored one.
pub fn exec(store: &Store, container: &Container, config: &Config, options: &ExecOptions) -> Result<u8, Error> {
    exec::exec(store, container, config, options)
}

/// The `poststop` hooks of a container that was deleted; a failing one is only logged.
pub fn poststop(config: &Config, record: &crate::state::Record) {
    start::poststop(config, record);
}

/// Logs what stopped the guest of a Wasm container that has ended. What the guest's process has said itself, on the stderr
/// that may be the log's as well, is only told to a log of its own.
pub fn log_ending(container: &Container) {
    match container.ending() {
        Ok(Some(ending)) if ending.is_stopped() && (crate::logging::to_file() || ending.how == "oom") => {
            tracing::warn!("container {}: the Wasm guest was stopped: {ending}", container.id());
        }
        Ok(_) => {}
        Err(error) => tracing::warn!("{error}"),
    }
}
