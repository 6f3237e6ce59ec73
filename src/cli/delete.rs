//! `proa delete`.

use super::{Error, Globals};
use crate::launch;
use crate::state::{Action, Error as StateError, Locked, Status};

pub(super) fn run(globals: &Globals, args: liboci_cli::Delete) -> Result<u8, Error> {
    let (id, force) = (args.container_id.as_str(), args.force);
    let locked = match globals.store.open(id).and_then(|container| container.lock()) {
        Err(StateError::NotFound) => {
            // A create that was killed early leaves a directory and nothing else.
            globals.store.remove_debris(id)?;
            return if force { Ok(0) } else { Err(StateError::NotFound.into()) };
        }
        other => other?,
    };
    let ended = !locked.alive();
    if force {
        if let Err(error) = locked.require_known() {
            tracing::warn!("{error}: what it has that this proa does not know of is left");
        }
        // Even if init has ended: without a pid namespace of its own, there may be others left.
        locked.kill()?;
    } else if locked.require(Action::Delete)? != Status::Stopped {
        locked.kill()?;
    }
    if ended {
        // Nobody else may have seen it; without a log of its own the container's stderr has said it.
        launch::log_ending(&locked);
    }
    remove(locked)?;
    Ok(0)
}

/// Poststop hooks run after the container is deleted, and can't fail it any more (runtime-spec runtime.md#lifecycle).
fn remove(locked: Locked) -> Result<(), Error> {
    let record = locked.record.clone();
    let config = locked.config();
    locked.destroy()?;
    match config {
        Ok(config) => launch::poststop(&config, &record),
        // A create that was killed before the configuration was stored had no hooks to run.
        Err(_) if record.pid == 0 => {}
        Err(error) => tracing::warn!("poststop hooks of {} are skipped: {error}", record.id),
    }
    Ok(())
}
