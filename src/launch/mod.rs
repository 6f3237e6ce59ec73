//! From a plan to a running container: the parent's side, the init's side, and the protocol between them.

use crate::cgroup;
use crate::config::Config;
use crate::state::Store;
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
    /// The container.
    pub id: String,
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
    /// `--cgroup`, a path below the container's cgroup.
    pub cgroup: Option<String>,
    /// `--ignore-paused`.
    pub ignore_paused: bool,
}

/// Why a container could not be launched.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// `proa create`: returns when the container's init waits for `start`.
pub fn create(store: &Store, options: &CreateOptions) -> Result<(), Error> {
    let _ = (store, options);
    todo!()
}

/// `proa run`: returns the exit status of the container (128 + the signal that ended it), or 0 with `detach`.
pub fn run(store: &Store, options: &CreateOptions, run: RunOptions) -> Result<u8, Error> {
    let _ = (store, options, run);
    todo!()
}

/// `proa start`.
pub fn start(store: &Store, id: &str) -> Result<(), Error> {
    let _ = (store, id);
    todo!()
}

/// `proa exec`: returns the exit status of the process, or 0 with `detach`. `config` is the container's stored one.
pub fn exec(store: &Store, config: &Config, options: &ExecOptions) -> Result<u8, Error> {
    let _ = (store, config, options);
    todo!()
}

/// Runs the poststop hooks of a container that has been deleted.
pub fn delete_hooks(record: &crate::state::Record, config: &Config) -> Result<(), Error> {
    let _ = (record, config);
    todo!()
}
