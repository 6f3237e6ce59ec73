//! `proa events`.

use super::wasm::Figures;
use super::{Error, Globals, print_json, units};
use crate::cgroup::{Cgroup, OomEvent, OomEvents, Stats};
use crate::state::{Action, Container, process};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::Serialize;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// liboci-cli's interval is a number of seconds; runc's is a duration of Go.
#[derive(clap::Args, Debug)]
pub struct EventsArgs {
    /// Set the stats collection interval
    #[arg(long, default_value = "5s", value_parser = interval)]
    interval: Duration,
    /// Display the container's stats then exit
    #[arg(long)]
    stats: bool,
    /// The container
    container_id: String,
}

/// Why events can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// Worded as runc words it.
    #[error("duration interval must be greater than 0")]
    Interval,
    /// The resource group can't be read.
    #[error(transparent)]
    Rdt(crate::process::Error),
    /// The kernel gives no timer, or no poll.
    #[error("{call}: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// Why.
        source: Errno,
    },
}

/// A line of output, its members in runc's order.
#[derive(Serialize)]
struct Event<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
}

fn interval(text: &str) -> Result<Duration, String> {
    units::duration(text).ok_or_else(|| "parse error".into())
}

pub(super) fn run(globals: &Globals, args: EventsArgs) -> Result<u8, Error> {
    let container = globals.store.open(&args.container_id)?;
    if args.interval.is_zero() {
        return Err(EventsError::Interval.into());
    }
    container.require(Action::Events)?;
    if args.stats {
        return emit("stats", container.id(), Some(stats(&container, &container.cgroup()?)?));
    }
    watch(&container, args.interval)
}

/// The data of an event: runc's, and of a Wasm container one member more.
#[derive(Serialize)]
struct Data {
    #[serde(flatten)]
    stats: Stats,
    #[serde(skip_serializing_if = "Option::is_none")]
    wasm: Option<Figures>,
}

/// What the cgroup, the resctrl group and the Wasm guest, if there is one, say.
fn stats(container: &Container, cgroup: &Cgroup) -> Result<Data, Error> {
    let mut stats = cgroup.stats()?;
    if let Some((resctrl, group)) = container.rdt()? {
        stats.intel_rdt = resctrl.stats(&group).map_err(EventsError::Rdt)?;
    }
    let wasm = Figures::of(container)?;
    Ok(Data { stats, wasm })
}

fn emit<T: Serialize>(kind: &'static str, id: &str, data: Option<T>) -> Result<u8, Error> {
    let mut line = serde_json::to_vec(&Event { kind, id, data }).map_err(|error| Error::Stdout(error.into()))?;
    line.push(b'\n');
    print_json(&line)
}

/// Until init ends: a line every interval, and one for each process that the kernel killed for want of memory.
fn watch(container: &Container, interval: Duration) -> Result<u8, Error> {
    let cgroup = container.cgroup()?;
    let timer = timer(interval).map_err(|source| EventsError::Call {
        call: "timerfd_create",
        source,
    })?;
    // Without pidfds (before Linux 5.3) the end is noticed with the next interval.
    let init = process::pidfd(container.record.pid).ok();
    // A host without a memory controller has no such events; the rest is still of use.
    let mut oom = cgroup
        .oom_events()
        .inspect_err(|error| tracing::warn!("no oom events: {error}"))
        .ok();
    while container.alive() {
        let (ticked, oom_ready) = wait(&timer, init.as_ref(), oom.as_ref())?;
        if oom_ready && let Some(events) = &mut oom {
            match events.next()? {
                OomEvent::Oom => drop(emit("oom", container.id(), None::<()>)?),
                OomEvent::Ended => return Ok(0),
                OomEvent::Nothing => {}
            }
        }
        if ticked {
            timer.wait().map_err(|source| EventsError::Call {
                call: "read(timerfd)",
                source,
            })?;
            match stats(container, &cgroup) {
                Ok(stats) => drop(emit("stats", container.id(), Some(stats))?),
                // The cgroup may go while the container ends; anything else is told and tried again.
                Err(error) => tracing::error!("{error}"),
            }
        }
    }
    Ok(0)
}

/// Waits for the timer, the end of init, or word of the out-of-memory killer; says whether it was the first, the last.
fn wait(timer: &TimerFd, init: Option<&OwnedFd>, oom: Option<&OomEvents>) -> Result<(bool, bool), EventsError> {
    let mut fds = vec![PollFd::new(timer.as_fd(), PollFlags::POLLIN)];
    fds.extend(oom.map(|events| PollFd::new(events.as_fd(), PollFlags::POLLIN)));
    fds.extend(init.map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)));
    match nix::poll::poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok((false, false)),
        Err(source) => return Err(EventsError::Call { call: "poll", source }),
    }
    let ready = |at: usize| fds.get(at).is_some_and(|fd: &PollFd| fd.any().unwrap_or(false));
    Ok((ready(0), oom.is_some() && ready(1)))
}

fn timer(interval: Duration) -> Result<TimerFd, Errno> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    timer.set(
        Expiration::Interval(TimeSpec::from_duration(interval)),
        TimerSetTimeFlags::empty(),
    )?;
    Ok(timer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_runcs_shape() {
        let oom = serde_json::to_string(&Event {
            kind: "oom",
            id: "c1",
            data: None::<()>,
        })
        .unwrap();
        assert_eq!(oom, r#"{"type":"oom","id":"c1"}"#);
        let stats = serde_json::to_string(&Event {
            kind: "stats",
            id: "c1",
            data: Some([1]),
        })
        .unwrap();
        assert_eq!(stats, r#"{"type":"stats","id":"c1","data":[1]}"#);
    }

    #[test]
    fn the_timer_ticks() {
        let timer = timer(Duration::from_millis(1)).unwrap();
        timer.wait().unwrap();
        timer.wait().unwrap();
    }
}
