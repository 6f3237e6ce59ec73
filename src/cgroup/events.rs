//! Word of the kernel's out-of-memory killer (`proa events`).

use super::file::{Dir, open_for_write, write_fd};
use super::{Cgroup, Error};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;
use proa_sys::errno::Raw;
use rustix::fs::inotify;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// What [`OomEvents::next`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomEvent {
    /// A process of the container was killed for want of memory.
    Oom,
    /// The cgroup is empty or gone: nothing more will come.
    Ended,
    /// Nothing of note; poll again.
    Nothing,
}

/// A source of events: poll its descriptor for input, then call [`OomEvents::next`].
#[derive(Debug)]
pub struct OomEvents {
    source: Source,
}

#[derive(Debug)]
enum Source {
    V1 {
        event: EventFd,
        dir: PathBuf,
        _control: OwnedFd,
    },
    V2 {
        inotify: OwnedFd,
        dir: PathBuf,
        memory: i32,
        kills: u64,
    },
}

impl Cgroup {
    /// Subscribes to the out-of-memory events of the container.
    pub fn oom_events(&self) -> Result<OomEvents, Error> {
        let missing = || Error::NoController {
            controller: "memory",
            field: "events",
            file: (if self.is_legacy() {
                "memory.oom_control"
            } else {
                "memory.events"
            })
            .to_owned(),
        };
        let dir = self.path("memory").ok_or_else(missing)?.to_owned();
        if self.is_legacy() { v1(dir) } else { v2(dir) }.map(|source| OomEvents { source })
    }

    /// Whether the kernel has killed a process of the container for want of memory; `None` if no cgroup can tell. systemd
    /// removes one as soon as its last process has ended. It is asked to explain a failure: where nothing can be learned,
    /// that is no further one.
    pub fn was_out_of_memory(&self) -> Option<bool> {
        let file = match self.is_legacy() {
            true => "memory.oom_control",
            false => "memory.events",
        };
        let dir = self.path("memory")?;
        match killed_in(dir, file) {
            Ok(killed) if killed > 0 => Some(true),
            _ if !dir.exists() => None,
            _ => Some(false),
        }
    }
}

/// Documentation/admin-guide/cgroup-v1/memory.rst, section 10: an eventfd is tied to `memory.oom_control`.
fn v1(dir: PathBuf) -> Result<Source, Error> {
    let failed = |call: &'static str, path: PathBuf| move |errno| Error::Call { call, path, errno };
    let path = dir.join("memory.oom_control");
    let control =
        open(&path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("open", path.clone()))?;
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let event = EventFd::from_value_and_flags(0, flags).map_err(failed("eventfd", path))?;
    let path = dir.join("cgroup.event_control");
    let order = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
    open_for_write(&path)
        .and_then(|fd| write_fd(fd, &order))
        .map_err(failed("write", path))?;
    Ok(Source::V1 {
        event,
        dir,
        _control: control,
    })
}

/// The kernel reports changes of `memory.events` and `cgroup.events` as modifications (cgroups(7)).
fn v2(dir: PathBuf) -> Result<Source, Error> {
    let failed = |path: PathBuf| {
        move |errno: rustix::io::Errno| {
            let errno = errno.raw();
            Error::Call {
                call: "inotify",
                path,
                errno,
            }
        }
    };
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let fd = inotify::init(flags).map_err(failed(dir.clone()))?;
    let watch = |name: &str| {
        let path = dir.join(name);
        inotify::add_watch(&fd, &path, inotify::WatchFlags::MODIFY).map_err(failed(path))
    };
    let (memory, _) = (watch("memory.events")?, watch("cgroup.events")?);
    let kills = kills(&dir)?;
    Ok(Source::V2 {
        inotify: fd,
        dir,
        memory,
        kills,
    })
}

fn kills(dir: &std::path::Path) -> Result<u64, Error> {
    killed_in(dir, "memory.events")
}

impl Cgroup {
    /// Whether its processes have wanted more memory than its own limit allows: want of memory may be the machine's, too.
    pub fn has_met_its_memory_limit(&self) -> bool {
        let count = |dir: &std::path::Path| match self.is_legacy() {
            true => Dir(dir).text_if_any("memory.failcnt").ok()??.trim().parse::<u64>().ok(),
            false => super::file::keyed(&Dir(dir).text_if_any("memory.events").ok()??, "oom"),
        };
        self.path("memory").and_then(count).is_some_and(|count| count > 0)
    }
}

/// How often the kernel has killed a process of the cgroup for want of memory, as the file with its events says.
fn killed_in(dir: &std::path::Path, file: &'static str) -> Result<u64, Error> {
    let text = Dir(dir).text_if_any(file)?.unwrap_or_default();
    Ok(super::file::keyed(&text, "oom_kill").unwrap_or(0))
}

impl OomEvents {
    /// Reads what made the descriptor ready, without blocking.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator would block or end; this does neither"
    )]
    pub fn next(&mut self) -> Result<OomEvent, Error> {
        match &mut self.source {
            Source::V1 { event, dir, .. } => {
                match event.read() {
                    Ok(_) => {}
                    Err(Errno::EAGAIN | Errno::EINTR) => return Ok(OomEvent::Nothing),
                    Err(errno) => {
                        return Err(Error::Call {
                            call: "read",
                            path: dir.clone(),
                            errno,
                        });
                    }
                }
                // Removing the cgroup signals too.
                Ok(if Dir(dir).has("cgroup.event_control") {
                    OomEvent::Oom
                } else {
                    OomEvent::Ended
                })
            }
            Source::V2 {
                inotify,
                dir,
                memory,
                kills: seen,
            } => {
                let mut buffer = [MaybeUninit::uninit(); 4096];
                let mut reader = inotify::Reader::new(inotify, &mut buffer);
                let mut touched = false;
                loop {
                    match reader.next() {
                        Ok(event) => touched |= event.wd() == *memory,
                        Err(rustix::io::Errno::AGAIN) => break,
                        Err(rustix::io::Errno::INTR) => {}
                        Err(errno) => {
                            let errno = errno.raw();
                            return Err(Error::Call {
                                call: "read",
                                path: dir.clone(),
                                errno,
                            });
                        }
                    }
                }
                if touched {
                    let now = kills(dir)?;
                    if now > *seen {
                        *seen = now;
                        return Ok(OomEvent::Oom);
                    }
                }
                let text = Dir(dir).text_if_any("cgroup.events")?.unwrap_or_default();
                let populated = super::file::keyed(&text, "populated").unwrap_or(0);
                Ok(if populated == 0 {
                    OomEvent::Ended
                } else {
                    OomEvent::Nothing
                })
            }
        }
    }
}

impl AsFd for OomEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::V1 { event, .. } => event.as_fd(),
            Source::V2 { inotify, .. } => inotify.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn v2_tells_each_kill_once_and_the_end() {
        let dir = std::env::temp_dir().join(format!("proa-events-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let write = |file: &str, text: &str| fs::write(dir.join(file), text).unwrap();
        write("memory.events", "low 0\noom 1\noom_kill 1\n");
        write("cgroup.events", "populated 1\nfrozen 0\n");
        let mut events = OomEvents {
            source: v2(dir.clone()).unwrap(),
        };
        assert_eq!(events.next().unwrap(), OomEvent::Nothing, "what was before is no news");
        write("memory.events", "low 5\noom 2\noom_kill 1\n");
        assert_eq!(events.next().unwrap(), OomEvent::Nothing, "nobody was killed");
        write("memory.events", "low 5\noom 3\noom_kill 2\n");
        assert_eq!(events.next().unwrap(), OomEvent::Oom);
        assert_eq!(events.next().unwrap(), OomEvent::Nothing);
        write("cgroup.events", "populated 0\nfrozen 0\n");
        assert_eq!(events.next().unwrap(), OomEvent::Ended);
        fs::remove_dir_all(&dir).unwrap();
    }
}
