//! `proa create`.

use super::{Error, Globals, absolute_option, preserve_fds};
use crate::launch::{self, CreateOptions};
use std::path::PathBuf;

/// liboci-cli's flags and the one it lacks.
#[derive(clap::Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    pub(super) common: liboci_cli::Create,
    /// Path to an AF_UNIX socket which will receive a file descriptor referencing the init process
    #[arg(long)]
    pub(super) pidfd_socket: Option<PathBuf>,
}

pub(super) fn run(globals: &Globals, args: CreateArgs) -> Result<u8, Error> {
    let create = || -> Result<(), Error> { Ok(launch::create(&globals.store, &args.resolve(globals)?)?) };
    create().map_err(|error| Error::Create(Box::new(error)))?;
    Ok(0)
}

impl CreateArgs {
    pub(super) fn resolve(&self, globals: &Globals) -> Result<CreateOptions, Error> {
        let args = &self.common;
        Ok(CreateOptions {
            id: args.container_id.clone(),
            bundle: bundle(&args.bundle)?,
            console_socket: absolute_option(args.console_socket.clone())?,
            pid_file: absolute_option(args.pid_file.clone())?,
            pidfd_socket: absolute_option(self.pidfd_socket.clone())?,
            no_pivot: args.no_pivot,
            no_new_keyring: args.no_new_keyring,
            preserve_fds: preserve_fds(args.preserve_fds)?,
            driver: globals.driver,
            rootless: globals.rootless,
            settings: globals.settings()?,
        })
    }
}

/// The bundle's real path, as `state` prints it. An empty `--bundle` is the current directory.
pub(super) fn bundle(path: &std::path::Path) -> Result<PathBuf, Error> {
    let path = if path.as_os_str().is_empty() {
        std::path::Path::new(".")
    } else {
        path
    };
    let real = std::fs::canonicalize(path).map_err(Error::path("chdir", path))?;
    if !real.is_dir() {
        return Err(Error::path("chdir", path)(std::io::ErrorKind::NotADirectory.into()));
    }
    Ok(real)
}
