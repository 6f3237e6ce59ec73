//! What the parent of a new process does, whether the process is a container's first or an `exec`'s.

use super::channel::{Channel, Message};
use super::code::Desk;
use super::image::Image;
use super::{CreateOptions, Error, hooks};
use crate::cgroup;
use crate::host::Host;
use crate::plan::{Plan, Request};
use crate::process::{self, Filter};
use crate::rootfs::Sources;
use crate::state::{self, Record, Store};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use oci_spec::runtime::{Hooks, LinuxSeccomp};
use proa_executor::Hull;
use proa_sys::clone::Child;
use proa_sys::errno::Raw;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How many descriptors after stdio the program inherits: `listen_fds` and those of `--preserve-fds`, each of which must be
/// open.
pub fn preserved_descriptors(listen_fds: u32, preserve_fds: u32) -> Result<u32, Error> {
    let count = listen_fds.saturating_add(preserve_fds);
    // One that is open may be proa's own (its log).
    match (3..RawFd::MAX)
        .zip(0..count)
        .find(|(fd, _)| !proa_sys::fd::is_inherited(*fd))
    {
        Some((fd, _)) => Err(Error::PreservedDescriptor { fd, count }),
        None => Ok(count),
    }
}

/// `$LISTEN_FDS`, sd_listen_fds(3): those of this very process, not of one before it that left the variables behind.
pub fn listen_fds() -> u32 {
    let number = |name| -> Option<u32> { std::env::var(name).ok()?.parse().ok() };
    match number("LISTEN_PID") {
        Some(pid) if pid == std::process::id() => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}

/// The name proa was called by: the name of its file, or of a link to it. It can select the Wasm hull, and messages that
/// callers know from runc begin with it.
pub fn program() -> String {
    std::env::args_os()
        .next()
        .as_deref()
        .map(Path::new)
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Resolves a plan for what the command line asks.
pub fn resolve(config: &crate::config::Config, host: &Host, options: &CreateOptions) -> Result<Plan, Error> {
    let request = Request {
        id: &options.id,
        bundle: &options.bundle,
        program: &program(),
        no_pivot: options.no_pivot,
        no_new_keyring: options.no_new_keyring,
        driver: options.driver,
        settings: &options.settings,
        listen_fds: listen_fds(),
    };
    Ok(crate::plan::resolve(config, host, request)?)
}

/// What is known of the container before it exists.
pub fn record(plan: &Plan, host: &Host, cgroup: cgroup::Saved) -> Result<Record, Error> {
    Ok(Record {
        version: state::VERSION,
        oci_version: plan.oci_version.clone(),
        id: plan.id.clone(),
        pid: 0,
        creator: Some(state::Creator::this_process()?),
        start_time: 0,
        bundle: plan.bundle.clone(),
        rootfs: plan.rootfs.root().to_path_buf(),
        shared_root: plan.rootfs.shared_root()?,
        created: crate::logging::timestamp(),
        annotations: plan.annotations.clone(),
        owner: host.euid,
        cgroup,
        hull: plan.hull,
        terminal: plan.process.terminal,
        no_new_keyring: plan.process.keyring.is_none(),
    })
}

/// The compiled seccomp filter; compiled ones are kept beside the containers' states.
pub fn filter(profile: &LinuxSeccomp, store: &Store) -> Result<Filter, Error> {
    Ok(process::filter(profile, &store.cache().join("seccomp"))?)
}

/// Where a seccomp listener goes: `linux.seccomp.listenerPath` and `listenerMetadata`.
pub type Listener = (PathBuf, Option<String>);

/// Where the configuration wants the seccomp listener sent.
pub fn listener(config: &crate::config::Config) -> Option<Listener> {
    let profile = config.spec.linux().as_ref()?.seccomp().as_ref()?;
    let path = profile.listener_path().clone()?;
    Some((path, profile.listener_metadata().clone()))
}

/// When `pid` started, in clock ticks since boot.
pub fn start_time(pid: Pid) -> Result<u64, Error> {
    state::process::Stat::look(pid.as_raw())?
        .map(|stat| stat.start_time)
        .ok_or(Error::InitGone)
}

/// Whether hooks run in the parent while init waits.
#[allow(deprecated, reason = "prestart hooks are deprecated, yet what Docker uses")]
pub fn has_parent_hooks(hooks: &Hooks) -> bool {
    !(hooks.prestart().as_deref().unwrap_or_default().is_empty()
        && hooks.create_runtime().as_deref().unwrap_or_default().is_empty())
}

/// Whether init runs hooks.
pub fn has_init_hooks(hooks: &Hooks) -> bool {
    !(hooks.create_container().as_deref().unwrap_or_default().is_empty()
        && hooks.start_container().as_deref().unwrap_or_default().is_empty())
}

/// Who answers what init may say at any time.
#[derive(Debug)]
pub struct Attendant<'a> {
    /// The container.
    pub record: &'a Record,
    /// The process that is being set up: the container's init, or an `exec`'s.
    pub pid: Pid,
    /// Where a seccomp listener goes.
    pub listener: Option<Listener>,
    /// The container's status, for the seccomp agent.
    pub status: &'static str,
    /// What was opened for a container that is being created.
    pub sources: Option<&'a Sources>,
    /// Who has compiled code.
    pub code: Option<&'a dyn Desk>,
}

impl Attendant<'_> {
    /// Answers `message`, which is none that the caller waits for.
    pub fn serve(&self, channel: &Channel, message: Message) -> Result<(), Error> {
        match message {
            Message::Log(line) => crate::logging::forward(&line),
            Message::Failed(text) => return Err(Error::Init(text)),
            Message::Unexecutable(cause) => return Err(Error::Unexecutable { cause, told: false }),
            Message::MapIds(mount, number) => {
                let unexpected = || super::channel::Error::Unexpected(format!("MapIds({mount})"));
                let sources = self.sources.ok_or_else(unexpected)?;
                sources.map(mount, descriptor_of(self.pid, number)?.as_fd())?;
                tell_go(channel)?;
            }
            Message::Listener(number) => {
                let (path, metadata) = self.listener.as_ref().ok_or(Error::UnexpectedListener)?;
                let fd = descriptor_of(self.pid, number)?;
                if !process::notify::is_listener(fd.as_fd()) {
                    return Err(super::channel::Error::Unexpected(format!("Listener({number})")).into());
                }
                let state = hooks::state(self.record, self.status, self.record.pid);
                let version = &self.record.oci_version;
                process::notify::send(
                    path,
                    metadata.as_deref(),
                    fd.as_fd(),
                    version,
                    self.pid.as_raw(),
                    &state,
                )?;
                tell_go(channel)?;
            }
            Message::Code(number, key, target) => {
                let desk = self.code.ok_or(Error::UnexpectedCode)?;
                let answer = desk.find(&key, &target, &|| descriptor_of(self.pid, number))?;
                tell(channel, || channel.answer(&answer))?;
            }
            other => return Err(super::channel::Error::Unexpected(format!("{other:?}")).into()),
        }
        Ok(())
    }

    /// Waits until init has set the container up, and learns by what its program is going to run; `mounted` runs the hooks that are due in between. `early` is what it
    /// said already.
    ///
    /// `image` is what init was executed from. To close it is to unmount it, which waits for every CPU to pass a quiescent
    /// state (umount's RCU grace period): it is done while there is nothing to do but wait for init.
    pub fn until_created(
        &self,
        channel: &Channel,
        early: Vec<Message>,
        plan: &process::Plan,
        mut image: Option<Image>,
        mut mounted: impl FnMut() -> Result<(), Error>,
    ) -> Result<Hull, Error> {
        let mut early = early.into_iter();
        loop {
            let message = match early.next() {
                Some(message) => Some(message),
                None => channel.receive()?,
            };
            match message {
                Some(Message::Created(hull)) => return Ok(hull),
                Some(Message::Ready) => {
                    process::tune(plan, self.pid)?;
                    tell_go(channel)?;
                    drop(image.take());
                }
                Some(Message::Mounted) => {
                    mounted()?;
                    tell_go(channel)?;
                }
                Some(message) => self.serve(channel, message)?,
                None => return Err(Error::InitGone),
            }
        }
    }

    /// Waits until init has executed the program, or says why it can't.
    pub fn until_running(&self, channel: &Channel) -> Result<(), Error> {
        while let Some(message) = channel.receive()? {
            self.serve(channel, message)?;
        }
        Ok(())
    }
}

/// Tells the process to go on. If it is gone, its last word is the reason.
pub fn tell_go(channel: &Channel) -> Result<(), Error> {
    tell(channel, || channel.send(&Message::Go))
}

fn tell(channel: &Channel, send: impl FnOnce() -> Result<(), super::channel::Error>) -> Result<(), Error> {
    match send() {
        Err(super::channel::Error::Call {
            errno: Errno::EPIPE, ..
        }) => {}
        sent => return Ok(sent?),
    }
    while let Some(message) = channel.receive()? {
        match message {
            Message::Failed(text) => return Err(Error::Init(text)),
            Message::Log(line) => crate::logging::forward(&line),
            _ => {}
        }
    }
    Err(Error::InitGone)
}

/// Tells the process to execute its program. If it was killed meanwhile, that is how the program ended, as if it had been a
/// moment later; if it failed, what it said is still to be read.
pub fn tell_start(channel: &Channel) -> Result<(), Error> {
    match channel.send(&Message::Start(state::VERSION)) {
        Err(super::channel::Error::Call {
            errno: Errno::EPIPE, ..
        }) => Ok(()),
        sent => Ok(sent?),
    }
}

/// Waits for one message that must come.
pub fn expect(channel: &Channel, wanted: impl Fn(&Message) -> bool) -> Result<Message, Error> {
    loop {
        return match channel.receive()? {
            Some(message) if wanted(&message) => Ok(message),
            Some(Message::Log(line)) => {
                crate::logging::forward(&line);
                continue;
            }
            Some(Message::Failed(text)) => Err(Error::Init(text)),
            Some(other) => Err(super::channel::Error::Unexpected(format!("{other:?}")).into()),
            None => Err(Error::InitGone),
        };
    }
}

/// A process of ours that is killed and reaped unless it gets to run its program.
#[derive(Debug, Default)]
pub struct Newborn(Option<Pid>);

impl Newborn {
    /// Takes charge of `pid`, a child of this process.
    pub fn of(pid: Pid) -> Self {
        Self(Some(pid))
    }

    /// Whether `pid` is another child of this process.
    fn is_sibling(&self, pid: i32) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        pid > 0 && self.0 != Some(Pid::from_raw(pid)) && waitid(Id::Pid(Pid::from_raw(pid)), flags).is_ok()
    }

    /// Lets it live.
    pub fn keep(&mut self) {
        self.0 = None;
    }

    /// Whether a SIGKILL has ended it, which leaves it to be reaped. With `wait` it is known to end just now.
    pub fn was_killed(&self, wait: bool) -> bool {
        let Some(pid) = self.0 else { return false };
        let mut flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        flags.set(WaitPidFlag::WNOHANG, !wait);
        matches!(
            waitid(Id::Pid(pid), flags),
            Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _))
        )
    }

    /// Kills and reaps it.
    pub fn kill(&mut self) {
        let Some(pid) = self.0.take() else {
            return;
        };
        // The number is its own until it is waited for. ESRCH: it ended by itself.
        match nix::sys::signal::kill(pid, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => tracing::warn!("kill({pid}, SIGKILL): {errno}"),
        }
        if let Err(errno) = nix::sys::wait::waitpid(pid, None) {
            tracing::warn!("waitpid({pid}): {errno}");
        }
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The most that a process says before the one in the middle has spoken of it.
const MOST_EARLY: usize = 256;

/// Learns which process the one in the middle made, reaps that one, and takes charge of the other. Returns also what the
/// other said before the one in the middle came to speak. `middle` is that one's pidfd.
///
/// What the one in the middle says before it makes the other is answered by `serve`, if given, up to and with `Ready`. From then on
/// it may be the other who speaks, and that may be in the hands of the container: only a child of this process is believed to
/// be the one that was made.
pub fn replace_middle(
    channel: &Channel,
    newborn: &mut Newborn,
    middle: Option<&OwnedFd>,
    mut serve: Option<&mut dyn FnMut(Pid, Message) -> Result<(), Error>>,
) -> Result<(Child, Vec<Message>), Error> {
    let mut early = Vec::new();
    let pid = loop {
        await_word(channel, middle)?;
        match channel.receive()? {
            Some(Message::Child(pid)) if newborn.is_sibling(pid) => break Pid::from_raw(pid),
            Some(Message::Failed(text)) => return Err(Error::Init(text)),
            Some(message @ (Message::Code(..) | Message::Ready | Message::Log(_))) if serve.is_some() => {
                let last = matches!(message, Message::Ready);
                if let (Some(serve), Some(middle)) = (&mut serve, newborn.0) {
                    serve(middle, message)?;
                }
                serve = serve.filter(|_| !last);
            }
            Some(message) if early.len() < MOST_EARLY => early.push(message),
            Some(message) => return Err(super::channel::Error::Unexpected(format!("{message:?}")).into()),
            None => return Err(Error::InitGone),
        }
    };
    if let Some(middle) = newborn.0.replace(pid) {
        nix::sys::wait::waitpid(middle, None).map_err(|errno| Error::Call {
            call: format!("waitpid({middle})"),
            errno,
        })?;
    }
    Ok((
        Child {
            pid,
            pidfd: pidfd_of(pid),
        },
        early,
    ))
}

/// Waits until there is something to receive. What the process in the middle made holds its end of the channel, too: if the
/// one in the middle was killed before it could speak of the other, no end of file tells. (Before Linux 5.3 nothing does.)
fn await_word(channel: &Channel, middle: Option<&OwnedFd>) -> Result<(), Error> {
    let Some(middle) = middle else { return Ok(()) };
    let failed = |errno| Error::Call {
        call: "poll(channel, middle)".into(),
        errno,
    };
    let readable = |timeout, with: Option<&OwnedFd>| -> Result<bool, Error> {
        let mut interests = vec![PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        interests.extend(with.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        loop {
            match poll(&mut interests, timeout) {
                Err(Errno::EINTR) => {}
                polled => {
                    polled.map_err(failed)?;
                    return Ok(interests[0].any().unwrap_or(false));
                }
            }
        }
    };
    // Its last word may have come between the two looks.
    match readable(PollTimeout::NONE, Some(middle))? || readable(PollTimeout::ZERO, None)? {
        true => Ok(()),
        false => Err(Error::InitGone),
    }
}

/// A pidfd of a child of this process that was not waited for: the number is its own.
pub fn pidfd_of(pid: Pid) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw())?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// The descriptor `number` of a child of this process: pidfd_getfd(2), Linux 5.6.
fn descriptor_of(pid: Pid, number: RawFd) -> Result<OwnedFd, Error> {
    let failed = |errno: Errno| Error::Call {
        call: format!("pidfd_getfd(pidfd of {pid}, {number})"),
        errno,
    };
    let pidfd = pidfd_of(pid).ok_or_else(|| failed(Errno::ENOSYS))?;
    rustix::process::pidfd_getfd(&pidfd, number, rustix::process::PidfdGetfdFlags::empty())
        .map_err(|errno| failed(errno.raw()))
}

/// Connects to `--console-socket`.
pub fn console_socket(path: &Path) -> Result<OwnedFd, Error> {
    let socket = process::notify::connect(path).map_err(Error::path("connect", path))?;
    Ok(socket.into())
}

/// `--pid-file` and `--pidfd-socket`.
pub fn announce(pid_file: Option<&Path>, pidfd_socket: Option<&Path>, init: &Child) -> Result<(), Error> {
    if let Some(path) = pidfd_socket {
        let pidfd = init.pidfd.as_ref().ok_or(Error::NoPidfd)?;
        let failed = |errno: Errno| Error::path("send the pidfd to", path)(errno.into());
        let socket = process::notify::connect(path).map_err(Error::path("send the pidfd to", path))?;
        let descriptors = [pidfd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &[IoSlice::new(b"pidfd")],
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(failed)?;
    }
    if let Some(path) = pid_file {
        write_pid_file(path, init.pid).map_err(Error::path("write", path))?;
    }
    Ok(())
}

/// Readers see no file or the whole number: containerd reads it as soon as it is there. Nobody else may write to it, whatever
/// the caller's umask: whose pid is in it gets the signals of a manager.
fn write_pid_file(path: &Path, pid: Pid) -> std::io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?);
    let temporary: PathBuf = path.with_file_name(name);
    let open = || {
        let mut new = std::fs::OpenOptions::new();
        new.write(true).create_new(true).mode(0o644).open(&temporary)
    };
    let mut file = match open() {
        // Of one who was killed just here.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(&temporary)?;
            open()?
        }
        opened => opened?,
    };
    let written = write!(file, "{pid}").and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        std::fs::remove_file(&temporary)?;
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::zombie_processes, reason = "it is the code under test that waits")]
    fn process() -> Pid {
        let child = std::process::Command::new("/bin/true").spawn().unwrap();
        // Whether it has ended makes no difference: nobody has waited for it.
        Pid::from_raw(child.id() as i32)
    }

    #[test]
    fn only_a_child_of_ours_is_believed_to_be_what_the_middle_made() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (middle, made) = (process(), process());
        let mut newborn = Newborn::of(middle);
        let own = nix::unistd::getpid();
        for forged in [own, Pid::from_raw(1), Pid::from_raw(-1), Pid::from_raw(0), middle] {
            theirs.send(&Message::Child(forged.as_raw())).unwrap();
        }
        theirs.send(&Message::Child(made.as_raw())).unwrap();
        let (child, early) = replace_middle(&ours, &mut newborn, None, None).unwrap();
        assert_eq!((child.pid, early.len()), (made, 5));
        drop(newborn);
        // Both were reaped.
        for pid in [middle, made] {
            assert!(nix::sys::wait::waitpid(pid, None).is_err());
        }
    }

    #[test]
    fn what_is_said_too_early_is_bounded() {
        let (ours, theirs) = Channel::pair().unwrap();
        let speaker = std::thread::spawn(move || while theirs.send(&Message::Mounted).is_ok() {});
        let said = replace_middle(&ours, &mut Newborn::default(), None, None);
        assert!(said.unwrap_err().to_string().contains("unexpected message"));
        drop(ours);
        speaker.join().unwrap();
    }

    #[test]
    fn what_asks_for_the_hosts_rights_is_answered_until_the_process_is_ready() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (middle, made) = (process(), process());
        let mut newborn = Newborn::of(middle);
        for message in [Message::Ready, Message::Ready, Message::Child(made.as_raw())] {
            theirs.send(&message).unwrap();
        }
        let mut asked = Vec::new();
        let mut serve = |pid, message| {
            asked.push((pid, format!("{message:?}")));
            Ok(())
        };
        let (_, early) = replace_middle(&ours, &mut newborn, None, Some(&mut serve)).unwrap();
        assert_eq!((asked, early.len()), (vec![(middle, "Ready".to_owned())], 1));
    }
}
