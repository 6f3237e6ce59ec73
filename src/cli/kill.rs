//! `proa kill`.

use super::{Error, Globals, signals};

/// liboci-cli requires the signal; runc's default is SIGTERM.
#[derive(clap::Args, Debug)]
pub struct KillArgs {
    /// Obsolete, accepted: SIGKILL reaches every process anyway. A container that does not run is no error with it
    #[arg(short, long)]
    all: bool,
    /// The container
    container_id: String,
    /// The signal's name or number (default: SIGTERM)
    signal: Option<String>,
}

/// Takes no lock: a signal must get through whatever else is being done to the container.
pub(super) fn run(globals: &Globals, args: KillArgs) -> Result<u8, Error> {
    let container = globals.store.open(&args.container_id)?;
    let signal = signals::parse(
        args.signal
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or("SIGTERM"),
    )?;
    match container.signal(signal) {
        Err(crate::state::Error::NotRunning) if args.all => Ok(0),
        other => Ok(other.map(|()| 0)?),
    }
}
