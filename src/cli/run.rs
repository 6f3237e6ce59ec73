//! `proa run`.

use super::create::CreateArgs;
use super::{Error, Globals};
use crate::launch::{self, RunOptions};
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
        Ok(launch::run(
            &globals.store,
            &CreateArgs::from(args).resolve(globals)?,
            options,
        )?)
    };
    run().map_err(|error| Error::Run(Box::new(error)))
}

impl From<RunArgs> for CreateArgs {
    /// `run` makes the container as `create` does.
    fn from(args: RunArgs) -> Self {
        let run = args.common;
        Self {
            common: liboci_cli::Create {
                bundle: run.bundle,
                console_socket: run.console_socket,
                pid_file: run.pid_file,
                no_pivot: run.no_pivot,
                no_new_keyring: run.no_new_keyring,
                preserve_fds: run.preserve_fds,
                container_id: run.container_id,
            },
            pidfd_socket: args.pidfd_socket,
        }
    }
}
