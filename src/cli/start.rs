//! `proa start`.

use super::{Error, Globals};
use crate::launch;
use crate::state::Action;

/// No lock is taken here: init accepts one start, so of two who try at once the second is refused by the kernel.
pub(super) fn run(globals: &Globals, args: liboci_cli::Start) -> Result<u8, Error> {
    globals.store.open(&args.container_id)?.require(Action::Start)?;
    launch::start(&globals.store, &args.container_id)?;
    Ok(0)
}
