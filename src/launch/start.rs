//! `start`: tells a waiting init to execute the program, and learns how that went.

use super::channel::{Channel, Message};
use super::parent::Attendant;
use super::{Error, hooks, parent, sdnotify};
use crate::config::Config;
use crate::state::{Action, Record, Refused, Store, VERSION, process};
use nix::sys::socket::SockFlag;
use nix::unistd::Pid;
use oci_spec::runtime::Hook;
use std::time::Duration;

/// Starts the created container `id`.
///
/// No lock is taken, so that a container whose `startContainer` hook hangs can be deleted: init accepts one start, and of
/// two who try at once the second is refused.
pub fn start(store: &Store, id: &str) -> Result<(), Error> {
    let container = store.open(id)?;
    container.require(Action::Start)?;
    let config = container.config()?;
    let socket = container.connect_start(SockFlag::empty()).map_err(|errno| {
        let path = container.dir().join(crate::state::START_SOCKET);
        Error::path("connect", path)(errno.into())
    })?;
    let listener = sdnotify::Listener::bind(container.dir())?;
    let channel = Channel::from(socket);
    channel.send(&Message::Start(VERSION))?;
    match channel.receive()? {
        Some(Message::Starting(0..=VERSION)) => {}
        // It does not keep to what it was told.
        Some(Message::Starting(version)) => {
            let id = id.to_owned();
            return Err(crate::state::Error::Newer { id, version }.into());
        }
        Some(Message::Failed(text)) => return Err(Error::Init(text)),
        Some(other) => return Err(super::channel::Error::Unexpected(format!("{other:?}")).into()),
        None => {
            // It was killed just now, or else whoever came first was served, and init listens no more.
            container.require(Action::Start)?;
            return Err(crate::state::Error::Refused(Refused::StartRunning).into());
        }
    }
    let record = &container.record;
    Attendant {
        record,
        pid: Pid::from_raw(record.pid),
        listener: parent::listener(&config),
        status: "created",
        sources: None,
        code: None,
    }
    .until_running(&channel)
    .inspect_err(|error| await_end(error, record))?;
    poststart(&config, &container.record)?;
    // Nobody listens there any more: later status checks need not even try.
    container.remove_start()?;
    if let Some(listener) = listener {
        listener.wait(&container.record);
    }
    Ok(())
}

/// Waits for the end of an init that has said why it ends: whoever hears that start failed finds the container stopped. A
/// manager that deletes it at once, as containerd's client does, would be refused by its shim.
fn await_end(error: &Error, record: &Record) {
    if !matches!(error, Error::Init(_) | Error::Unexecutable { .. }) {
        return;
    }
    if !process::wait_gone(record.pid, record.start_time, Duration::from_secs(10)) {
        tracing::warn!(
            "init (pid {}) of container {} still runs after {error}",
            record.pid,
            record.id
        );
    }
}

/// The `poststart` hooks. As with runc, the container is killed if one fails.
pub fn poststart(config: &Config, record: &Record) -> Result<(), Error> {
    let Some(hooks) = config
        .spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.poststart().as_deref())
    else {
        return Ok(());
    };
    let ran = hooks::run_all("poststart", hooks, &hooks::state(record, "running", record.pid), None);
    if ran.is_err() {
        match process::signal(record.pid, record.start_time, nix::libc::SIGKILL) {
            // A short program has ended by itself meanwhile; what the hook said is what counts.
            Ok(()) | Err(crate::state::Error::NotRunning) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ran?)
}

/// The `poststop` hooks, after a container was deleted.
pub fn poststop(config: &Config, record: &Record) {
    let hooks = config
        .spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.poststop().as_deref());
    run_poststop(hooks.unwrap_or_default(), record);
}

/// Runs `poststop` hooks. A failing one is logged, and the others still run (runtime-spec runtime.md#lifecycle, step 13).
pub fn run_poststop(hooks: &[Hook], record: &Record) {
    let state = hooks::state(record, "stopped", 0);
    for hook in hooks {
        if let Err(error) = hooks::run_all("poststop", std::slice::from_ref(hook), &state, None) {
            tracing::warn!("{error}");
        }
    }
}
