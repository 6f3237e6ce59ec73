//! `proa run`.

use super::create::bundle;
use super::{Error, Globals, absolute_option, preserve_fds};
use crate::launch::{self, CreateOptions, RunOptions};
use std::path::PathBuf;

/// liboci-cli's flags and the one it lacks.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    common: liboci_cli::Run,
    /// Path to an AF_UNIX socket which will receive a file descriptor referencing the init process
    #[arg(long)]
    pidfd_socket: Option<PathBuf>,
}

pub(super) fn run(globals: &Globals, args: RunArgs) -> Result<u8, Error> {
    let run = || -> Result<u8, Error> {
        let options = RunOptions {
            detach: args.common.detach,
            keep: args.common.keep,
            no_subreaper: args.common.no_subreaper,
        };
        Ok(launch::run(&globals.store, &args.resolve(globals)?, options)?)
    };
    run().map_err(|error| Error::Run(Box::new(error)))
}

impl RunArgs {
    fn resolve(&self, globals: &Globals) -> Result<CreateOptions, Error> {
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
        })
    }
}
