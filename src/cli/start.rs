//! `proa start`.

use super::{Error, Globals};
use crate::launch;

pub(super) fn run(globals: &Globals, args: liboci_cli::Start) -> Result<u8, Error> {
    launch::start(&globals.store, &args.container_id)?;
    Ok(0)
}
