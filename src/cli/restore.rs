//! `proa restore`.

use super::checkpoint::CommonArgs;
use super::create::CreateArgs;
use super::{Error, Globals};
use crate::launch::{self, RestoreOptions};
use std::path::PathBuf;

/// runc's flags.
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Path to an AF_UNIX socket which will receive a file descriptor referencing the master end of the console's
    /// pseudoterminal
    #[arg(long, value_name = "value")]
    console_socket: Option<PathBuf>,
    /// Path to the root of the bundle directory
    #[arg(long, short, value_name = "value", default_value = ".")]
    bundle: PathBuf,
    /// Detach from the container's process
    #[arg(long, short)]
    detach: bool,
    /// Specify the file to write the process id to
    #[arg(long, value_name = "value")]
    pid_file: Option<PathBuf>,
    /// Disable the use of the subreaper used to reap reparented processes
    #[arg(long)]
    no_subreaper: bool,
    /// Accepted for runc's sake: it is CRIU that makes the root
    #[arg(long)]
    no_pivot: bool,
    /// Specify an LSM profile to be used during restore in the form of TYPE:NAME
    #[arg(long, value_name = "value")]
    lsm_profile: Option<String>,
    /// Specify an LSM mount context to be used during restore
    #[arg(long, value_name = "value")]
    lsm_mount_context: Option<String>,
    #[arg(value_name = "container-id")]
    container_id: String,
}

pub(super) fn run(globals: &Globals, args: RestoreArgs) -> Result<u8, Error> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let options = RestoreOptions {
        detach: args.detach,
        no_subreaper: args.no_subreaper,
        lsm_profile: given(args.lsm_profile),
        lsm_mount_context: given(args.lsm_mount_context),
    };
    let create = CreateArgs {
        common: liboci_cli::Create {
            bundle: args.bundle,
            console_socket: args.console_socket,
            pid_file: args.pid_file,
            no_pivot: args.no_pivot,
            no_new_keyring: false,
            preserve_fds: 0,
            container_id: args.container_id,
        },
        pidfd_socket: None,
    };
    let criu = args.common.resolve()?;
    Ok(launch::restore(
        &globals.store,
        &create.resolve(globals)?,
        &criu,
        &options,
    )?)
}
