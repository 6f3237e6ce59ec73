//! Freezing and thawing, v1 and v2.

use super::Error;
use super::file::{self, Dir};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proa_sys::errno::Raw;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the kernel may take to freeze, as long as runc waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Freezes a v2 cgroup and waits for the kernel's word.
pub(super) fn freeze_v2(path: &Path) -> Result<(), Error> {
    write(path, "cgroup.freeze", "1")?;
    if wait_for_event(CWD, path, "frozen", 1, PATIENCE)? {
        Ok(())
    } else {
        Err(Error::Unfreezable(path.to_owned()))
    }
}

/// Thaws a v2 cgroup.
pub(super) fn thaw_v2(path: &Path) -> Result<(), Error> {
    write(path, "cgroup.freeze", "0")
}

/// Whether a v2 cgroup was asked to freeze. One above it being frozen does not count, as in runc.
pub(super) fn is_frozen_v2(path: &Path) -> Result<bool, Error> {
    Ok(Dir(path).number_if_any("cgroup.freeze")? == Some(1))
}

/// Freezes a v1 cgroup.
///
/// The kernel gives no sign when v1's `FREEZING` becomes `FROZEN` (reading the state is what brings it about), and never
/// gets there by itself if a process was forked or added meanwhile: then writing again helps, and now and then thawing.
/// The processes have to run to freeze, so after some rounds that are as good as free it leaves them the processor.
pub(super) fn freeze_v1(path: &Path) -> Result<(), Error> {
    let give_up = Instant::now() + PATIENCE;
    let mut result = Ok(());
    for round in 0u32.. {
        if Instant::now() > give_up {
            result = Err(Error::Unfreezable(path.to_owned()));
        } else if round % 100 == 99 {
            // Lets a fork that is under way come to its end, then starts over.
            result = write(path, "freezer.state", "THAWED");
            std::thread::sleep(Duration::from_millis(10));
        }
        let state = result
            .and_then(|()| write(path, "freezer.state", "FROZEN"))
            .and_then(|()| {
                let state = Dir(path).text("freezer.state")?;
                match state.as_str() {
                    "FROZEN" | "FREEZING" => Ok(state == "FROZEN"),
                    _ => Err(Error::Malformed {
                        path: path.join("freezer.state"),
                        content: state,
                    }),
                }
            });
        match state {
            Ok(true) => return Ok(()),
            Ok(false) => result = Ok(()),
            Err(error) => {
                // Half frozen is worse than not frozen.
                if let Err(thaw) = write(path, "freezer.state", "THAWED") {
                    tracing::warn!("thawing after a failed freeze: {thaw}");
                }
                return Err(error);
            }
        }
        pause(round);
    }
    Ok(())
}

/// Thaws a v1 cgroup.
pub(super) fn thaw_v1(path: &Path) -> Result<(), Error> {
    write(path, "freezer.state", "THAWED")
}

/// Whether a v1 cgroup itself (not one above it) was asked to freeze.
pub(super) fn is_frozen_v1(path: &Path) -> Result<bool, Error> {
    if let Some(state) = Dir(path).number_if_any("freezer.self_freezing")? {
        return Ok(state == 1);
    }
    Ok(Dir(path)
        .text_if_any("freezer.state")?
        .is_some_and(|state| state != "THAWED"))
}

/// Waits until `key` of `cgroup.events` has `value`; false after `patience`. The file wakes who polls it for exceptional
/// conditions whenever it changes (cgroups(7)). The cgroup is `dir`, or is looked up by its `path` if `dir` is [`CWD`].
pub(super) fn wait_for_event(
    dir: impl AsFd,
    path: &Path,
    key: &str,
    value: u64,
    patience: Duration,
) -> Result<bool, Error> {
    let file = path.join("cgroup.events");
    let by_path = dir.as_fd().as_raw_fd() == CWD.as_raw_fd();
    let name = if by_path {
        file.as_path()
    } else {
        Path::new("cgroup.events")
    };
    let failed = |call: &'static str| {
        let path = file.clone();
        move |errno| Error::Call { call, path, errno }
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = openat(dir, name, flags, Mode::empty()).map_err(|errno| errno.raw());
    let fd: OwnedFd = match opened {
        Ok(fd) => fd,
        // A cgroup that is gone has nothing in it.
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(true),
        Err(errno) => return Err(failed("open")(errno)),
    };
    let give_up = Instant::now() + patience;
    loop {
        let mut buffer = [0u8; 256];
        let length = match nix::sys::uio::pread(&fd, &mut buffer, 0) {
            Ok(length) => length,
            Err(Errno::ENODEV) => return Ok(true),
            Err(errno) => return Err(failed("read")(errno)),
        };
        let text = String::from_utf8_lossy(&buffer[..length]);
        match file::keyed(&text, key) {
            Some(current) if current == value => return Ok(true),
            Some(_) => {}
            None => {
                return Err(Error::Malformed {
                    path: file,
                    content: text.into_owned(),
                });
            }
        }
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed("poll")(errno)),
        }
    }
}

/// Gives others the processor where the kernel offers nothing to wait for; longer the longer it goes on, to 5 ms.
pub(super) fn pause(round: u32) {
    if round < 10 {
        rustix::thread::sched_yield();
    } else {
        std::thread::sleep(Duration::from_micros(u64::from(round * 10).min(5000)));
    }
}

fn write(path: &Path, name: &str, value: &str) -> Result<(), Error> {
    let path = path.join(name);
    file::write(&path, value).map_err(|errno| match errno {
        Errno::ENOENT => Error::NoFreezer,
        errno => Error::Write {
            field: "freezer",
            path,
            value: value.to_owned(),
            errno,
        },
    })
}
