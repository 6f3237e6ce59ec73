//! Compiling a module ahead of time, in a sandbox: the module is an attacker's, and a compiler of this size has faults.
//!
//! The compiler is a hull like that of any Wasm container, made by the same code ([`super::create`]) from a configuration of our
//! own ([`sandbox`]): its own namespaces of every kind, an empty file system in memory, no capability, a filter of system calls,
//! nobody's uid, limits, a cgroup beside the caller's. It gets the module in memory that nobody can change, and a place in
//! memory to put the code. What it hands back is used for that very module only, so that a module which takes the compiler
//! over has gained what it is given anyway: to be executed, confined, in its own container.

mod background;
mod sandbox;
mod waiting;

pub use background::{VERB, in_background, main};

use super::code::{Desk, Site};
use super::create::{self, Created, Order, StartBy};
use super::{CreateOptions, Error};
use crate::host::Host;
use crate::state::{self, Store};
use crate::wasm::Settings;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use proa_executor::Hull;
use proa_executor::aot::{Answer, Cache, Digest, Hashing, Key, Level, Options, Target, Task};
use proa_executor::from_start::FromStart;
use proa_sys::errno::Raw;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The longest wait for a lock of the cache that nobody holds for longer than it takes to list entries.
const SHORTLY: Duration = Duration::from_secs(10);
/// The most of a compiler's words that are repeated.
const WORDS_MAX: u64 = 512;

/// Bytes of memory that a compiler takes for each of the module, at least: fifty is what was seen.
const MEMORY_PER_BYTE: u64 = 8;

/// What a compiler may take.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Wall-clock time, and as much of one processor's.
    pub time: Duration,
    /// Bytes of memory.
    pub memory: u64,
    /// How many of one cache work at the same time.
    pub compilers: NonZeroU32,
}

impl Limits {
    /// As the administrator's file has them.
    pub fn of(settings: &Settings) -> Self {
        Self {
            time: settings.wasm.aot.time_limit(),
            memory: settings.wasm.aot.memory_limit(),
            compilers: settings.wasm.aot.compilers(),
        }
    }
}

/// Why a module was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The compiler says why.
    #[error("{0}")]
    Refused(String),
    /// It was killed, or crashed.
    #[error("the compiler was ended by {} (it may take {memory} bytes of memory)", signal_name(*signal))]
    Killed {
        /// The signal.
        signal: i32,
        /// Bytes.
        memory: u64,
    },
    /// It took more memory than it may.
    #[error("the compiler takes more than the {0} bytes of memory that it may")]
    OutOfMemory(u64),
    /// It took too long.
    #[error("the compiler has not finished in {0:?}")]
    TimeOut(Duration),
    /// It can't be compiled under the limits.
    #[error("{size} bytes: a compiler with so much memory as it may take compiles at most {most}")]
    TooLarge {
        /// Bytes of the module.
        size: u64,
        /// The most.
        most: u64,
    },
    /// This process is to end.
    #[error("interrupted by {}", signal_name(*.0))]
    Interrupted(i32),
    /// The file is not what it was.
    #[error("the module has changed meanwhile")]
    Changed,
    /// An engine was exchanged while containers start.
    #[error("the engine is another one now")]
    OtherEngine,
    /// Somebody else is at it.
    #[error("compiled code {0}: another process has been at it for too long")]
    Busy(Key),
    /// There is nothing to do.
    #[error("the cache has its code already: {0}")]
    Known(Key),
}

impl Failure {
    /// Whether it is the module's doing, so that another try would end the same. SIGKILL comes from outside: by hand, or by
    /// the kernel where the whole machine has no memory left.
    fn is_the_modules(&self) -> bool {
        match self {
            Self::Refused(_) | Self::TimeOut(_) | Self::OutOfMemory(_) => true,
            Self::Killed { signal, .. } => *signal != Signal::SIGKILL as i32,
            _ => false,
        }
    }
}

fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or(format!("signal {signal}"), |signal| signal.to_string())
}

/// Code to be made.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where compilers are made.
    pub site: Site,
    /// What one may take.
    pub limits: Limits,
    /// What goes into the code.
    pub options: Options,
    /// How hard to try.
    pub level: Level,
    /// The key that the code must have.
    pub key: Option<Key>,
    /// Whether nobody waits for it.
    pub background: bool,
}

/// Code that was made.
#[derive(Debug)]
pub struct Compiled {
    /// Its key.
    pub key: Key,
    /// What it is for.
    pub target: Target,
    /// The engine's library, in memory that is this process's alone by now.
    pub code: File,
}

/// A module in memory that nobody can change.
#[derive(Debug)]
pub struct Module {
    memory: OwnedFd,
    digest: Digest,
}

impl Module {
    /// Copies `file`, unless no compiler of these limits could take it.
    pub fn copy(file: &File, limits: Limits) -> Result<Self, Error> {
        let call = |call: &'static str| move |source: std::io::Error| failed(call, source);
        let (size, most) = (
            file.metadata().map_err(call("fstat(module)"))?.len(),
            limits.memory / MEMORY_PER_BYTE,
        );
        if size > most {
            return Err(Failure::TooLarge { size, most }.into());
        }
        let memory = memory(c"proa-module")?;
        // One that grows meanwhile is another one.
        let mut hashing = Hashing::new(FromStart::new(file).take(most));
        let mut to = File::from(memory);
        std::io::copy(&mut hashing, &mut to).map_err(call("copy of the module"))?;
        let (digest, _) = hashing.finish().map_err(call("read(module)"))?;
        let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        fcntl(&to, FcntlArg::F_ADD_SEALS(seals)).map_err(Error::call("fcntl(module, F_ADD_SEALS)"))?;
        Ok(Self {
            memory: to.into(),
            digest,
        })
    }
}

fn memory(name: &std::ffi::CStr) -> Result<OwnedFd, Error> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    memfd_create(name, flags).map_err(Error::call(format!("memfd_create({name:?})")))
}

fn failed(call: &'static str, source: std::io::Error) -> Error {
    let errno = source.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    Error::call(call)(errno)
}

/// Learns from the compiler, before it has read a byte of the module as such, which key its code will have.
struct Gate<'a> {
    digest: Digest,
    pass: &'a dyn Fn(&Key) -> Result<(), Error>,
    seen: RefCell<Option<(Key, Target)>>,
}

impl std::fmt::Debug for Gate<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Desk for Gate<'_> {
    fn find(&self, key: &Key, target: &Target, _: &dyn Fn() -> Result<OwnedFd, Error>) -> Result<Answer, Error> {
        if *key.module() != self.digest || *key != Key::new(self.digest, target) {
            return Err(Failure::Changed.into());
        }
        (self.pass)(key)?;
        self.seen.replace(Some((*key, target.clone())));
        Ok(Answer::Make)
    }
}

impl Job {
    /// As [`Self::fill`], once fewer than [`Limits::compilers`] are at work. False if others have been for too long.
    pub fn fill_in_turn(&self, cache: &Cache, key: &Key, max_size: u64, module: &File) -> Result<bool, Error> {
        let Some(turn) = cache.turn(key, self.limits.compilers, &self.limits.wait())? else {
            tracing::warn!("compiled code {key}: other modules are being compiled; this one is interpreted");
            return Ok(false);
        };
        let done = self.fill(cache, max_size, module);
        cache.end_turn(turn)?;
        done.map(|()| true)
    }

    /// Compiles into `cache`, whose lock of the key the caller has; a failure of the module's own is remembered there.
    pub fn fill(&self, cache: &Cache, max_size: u64, module: &File) -> Result<(), Error> {
        let module = Module::copy(module, self.limits)?;
        let key = match self.key {
            Some(key) if *key.module() != module.digest => return Err(Failure::Changed.into()),
            other => other,
        };
        let pass = |found: &Key| match key.is_none_or(|key| key == *found) {
            true => Ok(()),
            false => Err(Failure::OtherEngine.into()),
        };
        match self.run(&module, &pass, &mut |_| ()) {
            Ok(compiled) => {
                cache.publish(&compiled.key, &compiled.target, &compiled.code, max_size, &shortly)?;
                Ok(())
            }
            Err(Error::Compile(failure)) if failure.is_the_modules() => {
                if let Some(key) = key {
                    cache.mark_failed(&key, &failure.to_string())?;
                }
                Err(failure.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Compiles, as [`Job::attempt`] does, with signals that end a process kept until then: they end the compiler, and nothing
    /// is left. `pass` may object once the key is known; `progress` hears every second how long it has taken.
    pub fn run(
        &self,
        module: &Module,
        pass: &dyn Fn(&Key) -> Result<(), Error>,
        progress: &mut dyn FnMut(Duration),
    ) -> Result<Compiled, Error> {
        let store = Store::new(self.site.store.cache().join("compile"));
        sweep(&store);
        let host = Host::probe(self.site.rootless, self.site.driver == crate::cgroup::Driver::Systemd);
        let mut shape = sandbox::Shape::new(&host);
        let mask = |how, set: &SigSet| sigprocmask(how, Some(set), None).map_err(Error::call("sigprocmask"));
        let before = SigSet::thread_get_mask().map_err(Error::call("sigprocmask"))?;
        mask(SigmaskHow::SIG_BLOCK, &ending())?;
        let done = loop {
            match self.attempt(&store, &host, shape, module, pass, progress) {
                Ok(compiled) => break Ok(compiled),
                // What this host hasn't got is done without; what is left is confinement enough, or an error.
                Err(error) => match shape.without(&error) {
                    Some(less) => shape = less,
                    None => break Err(error),
                },
            }
        };
        mask(SigmaskHow::SIG_SETMASK, &before)?;
        done
    }

    fn attempt(
        &self,
        store: &Store,
        host: &Host,
        shape: sandbox::Shape,
        module: &Module,
        pass: &dyn Fn(&Key) -> Result<(), Error>,
        progress: &mut dyn FnMut(Duration),
    ) -> Result<Compiled, Error> {
        let call = |call: &'static str| move |source: std::io::Error| failed(call, source);
        let began = Instant::now();
        tracing::debug!("compiling a module ahead of time");
        let output = memory(c"proa-code")?;
        let (lifeline, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| Error::call("pipe2(O_CLOEXEC)")(errno.raw()))?;
        let inherit: [RawFd; 3] = [&module.memory, &output, &lifeline].map(AsRawFd::as_raw_fd);
        let gate = Gate {
            digest: module.digest,
            pass,
            seen: RefCell::new(None),
        };
        let options = CreateOptions {
            id: unique_id(),
            bundle: store.root().to_owned(),
            console_socket: None,
            pid_file: None,
            pidfd_socket: None,
            no_pivot: false,
            no_new_keyring: true,
            preserve_fds: 0,
            driver: self.site.driver,
            rootless: self.site.rootless,
            settings: Settings::default(),
        };
        let config = sandbox::config(self, shape, host)?;
        let mut plan = super::parent::resolve(&config, host, &options)?;
        plan.hull = Hull::Wasm;
        plan.rootfs.set_scratch(self.limits.memory / 2);
        plan.process.guest.compile = Some(Task {
            module: inherit[0],
            output: inherit[1],
            lifeline: inherit[2],
            options: self.options,
            level: self.level,
        });
        let order = Order {
            config,
            host: host.clone(),
            plan,
            start: StartBy::Channel,
            detach: true,
            preserve: 0,
            inherit: inherit.into(),
            code: Some(&gate),
        };
        let mut compiler = create::make(store, &options, order)?;
        drop(lifeline);
        compiler.start()?;
        let ended = self.wait(&compiler, began, progress);
        let beyond_its_limit = compiler.was_beyond_its_memory();
        // However it ended: what is left of it goes, and no process can write to the code any more.
        drop((compiler, held));
        let mut code = File::from(output);
        code.rewind().map_err(call("lseek(code)"))?;
        match ended? {
            WaitStatus::Exited(_, 0) => {}
            WaitStatus::Exited(..) => {
                let mut words = Vec::new();
                code.take(WORDS_MAX)
                    .read_to_end(&mut words)
                    .map_err(call("read(code)"))?;
                // They are a hostile process's: printable, and on one line.
                let words = String::from_utf8_lossy(&words).replace(char::is_control, " ");
                return Err(Failure::Refused(words).into());
            }
            WaitStatus::Signaled(_, signal, _) => {
                let (signal, memory) = (signal as i32, self.limits.memory);
                return Err(match beyond_its_limit {
                    true => Failure::OutOfMemory(memory),
                    false => Failure::Killed { signal, memory },
                }
                .into());
            }
            other => return Err(Failure::Refused(format!("the compiler ended unexpectedly: {other:?}")).into()),
        }
        match gate.seen.into_inner() {
            Some((key, target)) => Ok(Compiled { key, target, code }),
            None => Err(Failure::Refused("the compiler has not said what it makes".into()).into()),
        }
    }

    /// Waits for the compiler's end, and leaves it to be reaped.
    fn wait(
        &self,
        compiler: &Created,
        began: Instant,
        progress: &mut dyn FnMut(Duration),
    ) -> Result<WaitStatus, Error> {
        let pid = compiler.init.pid;
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let ended = || waitid(Id::Pid(pid), flags).map_err(Error::call(format!("waitid({pid}, WEXITED|WNOWAIT)")));
        let Some(pidfd) = &compiler.init.pidfd else {
            // Before Linux 5.3: the limit of processor time ends it.
            return ended();
        };
        let signals = SignalFd::with_flags(&ending(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(Error::call("signalfd"))?;
        loop {
            let spent = began.elapsed();
            let Some(left) = self.limits.time.checked_sub(spent).filter(|left| !left.is_zero()) else {
                return Err(Failure::TimeOut(self.limits.time).into());
            };
            let nap = left.min(Duration::from_secs(1)) + Duration::from_millis(1);
            let mut interests = [
                PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut interests, PollTimeout::try_from(nap).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::call("poll(compiler)")(errno)),
            }
            if interests[0].any() == Some(true) {
                return ended();
            }
            let pending = interests[1].any() == Some(true);
            if pending && let Some(signal) = signals.read_signal().map_err(Error::call("read of the signalfd"))? {
                return Err(Failure::Interrupted(signal.ssi_signo as i32).into());
            }
            progress(began.elapsed());
        }
    }
}

impl Limits {
    /// Waits for a lock of the cache for as long as one compiler may take.
    pub fn wait(&self) -> impl Fn(BorrowedFd<'_>) -> Result<bool, Error> + use<> {
        let time = self.time;
        move |file| waiting::lock(file, time)
    }
}

/// Waits for a lock of the cache that is held for moments.
pub fn shortly(file: BorrowedFd<'_>) -> Result<bool, Error> {
    waiting::lock(file, SHORTLY)
}

/// A name that no other compiler has, also of a `proa` in another pid namespace whose cgroups are beside ours: this process's
/// number, by which [`sweep`] tells whether it lives, and the time.
fn unique_id() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-compiler-{:x}", std::process::id(), since.as_nanos())
}

/// The signals that end the wait.
fn ending() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]
        .into_iter()
        .collect()
}

/// Removes what killed processes have left of their compilers.
fn sweep(store: &Store) {
    let Ok(ids) = store.ids() else {
        // There was none yet.
        return;
    };
    for id in ids {
        let creator = id.split('-').next().and_then(|pid| pid.parse().ok());
        if creator.is_some_and(|pid| matches!(state::process::Stat::look(pid), Ok(Some(_)))) {
            continue;
        }
        let removed = match store.open(&id).and_then(state::Container::lock) {
            Ok(locked) => locked.kill().and_then(|()| locked.destroy()),
            Err(state::Error::NotFound) => store.remove_debris(&id).map(drop),
            Err(state::Error::Busy(_)) => continue,
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::debug!("what is left of a compiler, {id}: {error}");
        }
    }
}

impl Compiled {
    /// Writes the library as the engine's own tool would.
    pub fn write(&self, to: &mut File) -> std::io::Result<()> {
        let mut code = &self.code;
        code.rewind()?;
        std::io::copy(&mut code, to)?;
        to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_module_did_counts() {
        let killed = |signal: Signal| Failure::Killed {
            signal: signal as i32,
            memory: 1,
        };
        for modules in [
            Failure::Refused("a type that is none".into()),
            Failure::OutOfMemory(1),
            Failure::TimeOut(Duration::from_secs(1)),
            killed(Signal::SIGSEGV),
            killed(Signal::SIGXCPU),
        ] {
            assert!(modules.is_the_modules(), "{modules}");
        }
        for others in [
            killed(Signal::SIGKILL),
            Failure::Interrupted(Signal::SIGTERM as i32),
            Failure::Changed,
            Failure::OtherEngine,
        ] {
            assert!(!others.is_the_modules(), "{others}");
        }
    }
}
