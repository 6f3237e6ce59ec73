//! `proa pause` and `proa resume`.

use super::{Error, Globals};
use crate::state::Action;

pub(super) fn pause(globals: &Globals, args: liboci_cli::Pause) -> Result<u8, Error> {
    let container = globals.store.open(&args.container_id)?.lock()?;
    container.require(Action::Pause)?;
    container.cgroup()?.freeze()?;
    Ok(0)
}

pub(super) fn resume(globals: &Globals, args: liboci_cli::Resume) -> Result<u8, Error> {
    let container = globals.store.open(&args.container_id)?.lock()?;
    container.require(Action::Resume)?;
    container.cgroup()?.thaw()?;
    Ok(0)
}
