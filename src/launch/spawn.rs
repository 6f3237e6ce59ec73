//! Making the container's first process: one clone3(2) into all new namespaces and the cgroup, then the init image.

use super::channel::{self, Channel, Message};
use super::image::Image;
use crate::cgroup;
use crate::namespace::{self, Kind};
use nix::errno::Errno;
use proa_executor::Guest;
use proa_sys::clone::{Child, Clone, Side};
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// What the new process is and does before it executes the init image.
#[derive(Debug, Default)]
pub struct Birth {
    /// The namespaces it is cloned into.
    pub new: Vec<Kind>,
    /// The v2 cgroup it is born in.
    pub into_cgroup: Option<OwnedFd>,
    /// Where to write `0` if the kernel has no `CLONE_INTO_CGROUP`.
    pub into_fallback: Option<OwnedFd>,
    /// Where to write `0` in any case.
    pub join: Vec<OwnedFd>,
    /// Whether the cgroup may be refused: an unprivileged caller who asked for none.
    pub optional: bool,
    /// Whether it waits for `Go` first.
    pub wait: bool,
    /// Descriptors that stay open over the execve(2), under the same numbers.
    pub inherit: Vec<RawFd>,
    /// The bytes that the init image's arguments take at least: a Wasm guest's are put in their place (see [`title_room`]).
    pub title: usize,
}

impl Birth {
    /// The new process enters the cgroup at once, also if it only stands in the middle: what it makes is in there, too, and
    /// nobody inside can find a descriptor on the way (CVE-2016-9962).
    pub fn enter(&mut self, entry: cgroup::Birth) {
        self.optional = entry.optional;
        (self.into_cgroup, self.into_fallback, self.join) = (entry.into, entry.into_fallback, entry.join);
    }
}

/// Why there is no new process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("clone3({namespaces:?}): {source}")]
    Clone {
        /// The namespaces asked for.
        namespaces: Vec<Kind>,
        /// Why not.
        source: proa_sys::clone::Error,
    },
    /// In the new process: its cgroup refused it.
    #[error("write \"0\" to the cgroup's tasks or cgroup.procs: {0}")]
    EnterCgroup(Errno),
    /// In the new process: its user namespace has no root.
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    /// In the new process: the executable refused to run.
    #[error("execveat of the init image: {0}")]
    Exec(Errno),
    /// In the new process.
    #[error(transparent)]
    Channel(#[from] channel::Error),
}

/// Clones. `init` is the new process's end of the channel, `plan` the memfd of the handover.
///
/// `abandon` runs in the new process, a copy of this one, and closes what that must not keep open: the lock of the container,
/// which its creator's death has to release, and the creator's end of the channel, whose end of file tells of it.
pub fn spawn(
    image: &Image,
    birth: &Birth,
    init: &Channel,
    plan: &OwnedFd,
    abandon: impl FnOnce(),
) -> Result<Child, Error> {
    let mut argv = image.argv.clone();
    for fd in [init.as_raw_fd(), plan.as_raw_fd()] {
        argv.push(CString::new(fd.to_string()).expect("a number has no null byte"));
    }
    pad(&mut argv, birth.title);
    let flags = birth.new.iter().fold(0, |flags, kind| flags | kind.flag());
    let side = clone_into(flags, birth.into_cgroup.as_ref(), birth.optional).map_err(|source| Error::Clone {
        namespaces: birth.new.clone(),
        source,
    })?;
    let in_cgroup = match side {
        Side::Parent(child) => return Ok(child),
        Side::Child { in_cgroup } => in_cgroup,
    };
    abandon();
    let Err(error) = become_init(image, &argv, birth, init, plan, in_cgroup);
    // Nobody is left to be told if this fails too: the parent then reports an init that ended without a word.
    drop(init.send(&Message::Failed(error.to_string())));
    proa_sys::exec::exit_now(1)
}

/// The most bytes of a guest's arguments that are shown: ps(1) and its kind read no more.
const TITLE_MAX: usize = 4096;

/// How many bytes the arguments of a guest take, where its own process shows them in place of the init image's: Linux shows
/// the memory in which execve(2) has put the arguments, and that can't grow.
pub fn title_room(guest: &Guest) -> usize {
    match guest.policy {
        // A Linux program: execve(2) puts its own there.
        None => 0,
        Some(_) => guest.args.iter().map(|arg| arg.len() + 1).sum::<usize>().min(TITLE_MAX),
    }
}

/// Adds an argument, which init ignores, so that all take `room` bytes; exactly so many, if they are not that many anyway.
fn pad(argv: &mut Vec<CString>, room: usize) {
    let taken: usize = argv.iter().map(|arg| arg.as_bytes_with_nul().len()).sum();
    if let Some(missing @ 1..) = room.checked_sub(taken) {
        argv.push(CString::new(vec![b' '; missing - 1]).expect("spaces are no null bytes"));
    }
}

/// The new process, until it executes the init image. It runs in a copy of the parent's memory, so it does little.
fn become_init(
    image: &Image,
    argv: &[CString],
    birth: &Birth,
    init: &Channel,
    plan: &OwnedFd,
    in_cgroup: bool,
) -> Result<Infallible, Error> {
    let fallback = birth.into_fallback.iter().filter(|_| !in_cgroup);
    enter_cgroup(birth.join.iter().chain(fallback), birth.optional)?;
    if birth.wait && !init.wait_go()? {
        proa_sys::exec::exit_now(1);
    }
    if birth.new.contains(&Kind::User) {
        // Before the execve, which would take all capabilities from a process whose uid is not mapped to root.
        namespace::enter::become_root()?;
    }
    // What the caller left open is not for the container's init: it may wait for `start` for long, and whoever reads from
    // the other end of a pipe would wait with it.
    proa_sys::fd::close_on_exec_from(3).map_err(Error::Exec)?;
    for fd in birth
        .inherit
        .iter()
        .copied()
        .chain(image.numbers())
        .chain([init.as_raw_fd(), plan.as_raw_fd()])
    {
        proa_sys::fd::set_close_on_exec(fd, false).map_err(Error::Exec)?;
    }
    proa_sys::exec::execveat(image.program.as_fd(), argv, &image.env).map_err(Error::Exec)
}

/// Clones into a cgroup; where that is optional and not permitted, without.
fn clone_into(flags: u64, cgroup: Option<&OwnedFd>, optional: bool) -> Result<Side, proa_sys::clone::Error> {
    use proa_sys::clone::Error::Call;
    let mut what = Clone {
        flags,
        into_cgroup: cgroup.map(AsFd::as_fd),
    };
    match proa_sys::clone::clone(&what) {
        Err(Call(errno)) if optional && cgroup.is_some() && is_refusal(errno) => {
            what.into_cgroup = None;
            proa_sys::clone::clone(&what)
        }
        other => other,
    }
}

/// Moves this process into the cgroups whose `tasks` or `cgroup.procs` are open as `files`.
fn enter_cgroup<'a>(files: impl Iterator<Item = &'a OwnedFd>, optional: bool) -> Result<(), Error> {
    for file in files {
        match nix::unistd::write(file, b"0") {
            Ok(_) => {}
            Err(errno) if optional && is_refusal(errno) => {}
            Err(errno) => return Err(Error::EnterCgroup(errno)),
        }
    }
    Ok(())
}

fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::EACCES | Errno::EPERM | Errno::EROFS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_padded_to_the_byte() {
        let bytes = |room: usize| {
            let mut argv = vec![CString::from(c"proa"), CString::from(c"init")];
            pad(&mut argv, room);
            argv.iter().map(|arg| arg.as_bytes_with_nul().len()).sum::<usize>()
        };
        assert_eq!([0, 9, 10, 11, 12, 4096].map(bytes), [10, 10, 10, 11, 12, 4096]);
        let mut guest = Guest {
            args: vec!["/a.wasm".into(), "-x".into()],
            policy: Some(Box::default()),
            ..Guest::default()
        };
        assert_eq!(title_room(&guest), 11);
        guest.args = vec!["x".repeat(5000)];
        assert_eq!(title_room(&guest), TITLE_MAX);
        guest.policy = None;
        assert_eq!(title_room(&guest), 0);
    }
}
