//! The container's first process, from its execution as the init image to the user's program.
//!
//! It is a straight line. Where a step could not be anywhere else, the reason stands beside it.

mod joining;
mod middle;
mod report;
mod terminal;

use super::channel::{self, Channel};
use super::handover::{self, Handover};
use super::{hooks, spawn};
use crate::logging;
use crate::namespace::{self, Kind, enter};
use crate::process::{self, Filter};
use crate::rootfs::{self, Interfaces};
use nix::errno::Errno;
use proa_executor::{Handler, Hull};
use report::Report;
use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::process::ExitCode;

/// Why the container can't be set up from inside.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Called by hand, or by something that is not this version of proa.
    #[error("the init of a container is started by proa itself, as `init SOCKET PLAN`, not with {0:?}")]
    Arguments(Vec<OsString>),
    /// A system call failed.
    #[error("{call}: {errno}")]
    Call {
        /// The call with its arguments.
        call: String,
        /// Why.
        errno: Errno,
    },
    /// The plan can't be read.
    #[error(transparent)]
    Handover(#[from] handover::Error),
    /// The parent can't be talked to.
    #[error(transparent)]
    Channel(#[from] channel::Error),
    /// A namespace can't be entered or set up.
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    /// The cgroup can't be entered, or the process in the middle can't clone.
    #[error(transparent)]
    Spawn(#[from] spawn::Error),
    /// The file system can't be made.
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    /// The process can't be confined.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    /// The program or module can't be executed.
    #[error(transparent)]
    Executor(#[from] proa_executor::Error),
    /// The parent is gone: there is nobody to fail to.
    #[error("proa ended before the container was set up")]
    Orphaned,
}

fn failed(call: impl Into<String>) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Call {
        call: call.into(),
        errno,
    }
}

/// The main function of the init image; `arguments` are those after `init`. Returns only if something failed, which the
/// parent has then been told.
pub fn main(arguments: &[OsString], handler: &mut dyn Handler) -> ExitCode {
    // First of all: from now on nobody in the container, whose pid namespace this process may share already, can look into
    // this process's memory or descriptors (CVE-2016-9962).
    let hidden = process::early().map_err(Error::from);
    // What may follow only makes room for a guest's arguments.
    let numbers = arguments
        .iter()
        .take(2)
        .map(|one| one.to_str()?.parse().ok())
        .collect::<Option<Vec<RawFd>>>();
    let Some([channel, plan]) = numbers.as_deref() else {
        eprintln!("{}", Error::Arguments(arguments.to_vec()));
        return ExitCode::FAILURE;
    };
    let channel = match inherit(*channel) {
        Ok(fd) => Channel::from(fd),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::new(channel);
    let Err(error) = hidden.and_then(|()| run(*plan, handler, &mut report));
    report.failed(&error);
    ExitCode::FAILURE
}

fn inherit(fd: RawFd) -> Result<OwnedFd, Error> {
    proa_sys::fd::claim(fd).map_err(failed(format!("descriptor {fd} of the init's plan")))
}

fn run(plan: RawFd, handler: &mut dyn Handler, report: &mut Report) -> Result<Infallible, Error> {
    // Everything that was inherited is for init alone; what the program inherits is chosen at the end.
    proa_sys::fd::close_on_exec_from(3).map_err(failed("close_range(3, CLOSE_RANGE_CLOEXEC)"))?;
    let (mut handover, program) = Handover::read(inherit(plan)?)?;
    logging::keep(handover.debug);
    // The stages have the names that they have in runc's log: what is known of the one helps to read the other.
    tracing::debug!("nsexec container setup");
    let filter = program.map(|program| Filter {
        program,
        listener: None,
    });
    let joins = handover.join_process.take();
    let sealed = match &joins {
        Some(join) => joining::enter(join, &mut handover, filter.as_ref(), handler, report)?,
        None => make(&mut handover, filter.as_ref(), handler, report)?,
    };
    // What an `exec` could not have installed yet.
    let filter = filter.filter(|_| !sealed);
    let native = !handler.in_process();
    handler.check(&handover.process.guest)?;

    // An agent gets its listener while the container is created, as with runc; every other filter comes last.
    let notifies = filter.as_ref().is_some_and(|filter| filter.program.notify);
    if notifies {
        seal(&handover, filter.as_ref(), native, report)?;
    }
    let hull = if native { Hull::Native } else { Hull::Wasm };
    report.created(hull, handover.start_socket, |socket| {
        // Not under a filter that an agent answers for.
        if !notifies {
            proa_sys::memory::wait_released(socket);
        }
    })?;
    unblock_signals()?;
    // Before the filter, where that can be: preserved descriptors are for the program, and not for a hook.
    let hooked = !handover.start_container.is_empty();
    if !hooked {
        preserve_descriptors(&handover)?;
    }
    if !notifies {
        seal(&handover, filter.as_ref(), native, report)?;
    }
    if hooked {
        // They are the container's, and no less confined than its program.
        run_hooks("startContainer", &handover.start_container, &handover, "created")?;
        preserve_descriptors(&handover)?;
    }
    match joins {
        Some(_) => tracing::debug!("setns_init: about to exec"),
        None => tracing::debug!("init: closing the pipe to signal completion"),
    }
    report.flush_last()?;
    Err(handler.run(&handover.process.guest, &mut || report.started()).into())
}

/// The container's first process, up to its confinement. False, as it is not sealed yet.
fn make(
    handover: &mut Handover,
    filter: Option<&Filter>,
    handler: &mut dyn Handler,
    report: &mut Report,
) -> Result<bool, Error> {
    if let Some(middle) = handover.middle.take() {
        middle::run(&middle, handover, report)?;
    }
    tracing::debug!("child process in init()");
    // A session of its own: a terminal's signals, and a kill of the caller's process group, are not for the container.
    nix::unistd::setsid().map_err(failed("setsid()"))?;
    let interfaces = enter_sandbox(handover, handler, report)?;
    enter::set_names(handover.hostname.as_deref(), handover.domainname.as_deref())?;
    let native = !handler.in_process();
    process::labels(&handover.process, native, None)?;
    // After the labels, which are written to procfs.
    interfaces.protect()?;
    if handover.start_socket.is_some() {
        // It may wait for `start` for long; whoever asks it to end meanwhile is not to be ignored, as with runc.
        proa_sys::signal::end_on_termination().map_err(failed("signal(SIGTERM)"))?;
    }
    report.ready()?;
    let listener = process::confine(&mut handover.process, filter, native)?;
    report.listener(listener)?;
    Ok(false)
}

/// From now on whatever is executed inherits the descriptors of `--preserve-fds`.
fn preserve_descriptors(handover: &Handover) -> Result<(), Error> {
    (3..3 + handover.preserve as RawFd).try_for_each(|fd| {
        proa_sys::fd::set_close_on_exec(fd, false).map_err(failed(format!("preserved descriptor {fd}")))
    })
}

fn seal(handover: &Handover, filter: Option<&Filter>, native: bool, report: &Report) -> Result<(), Error> {
    let listener = process::seal(&handover.process, filter, native)?;
    report.listener(listener)
}

/// The namespaces and the file system: after this, the process's root is the container's. Returns what is yet to be made
/// read-only.
fn enter_sandbox(handover: &Handover, handler: &mut dyn Handler, report: &Report) -> Result<Interfaces, Error> {
    for join in handover
        .join
        .iter()
        .filter(|join| !matches!(join.kind, Kind::User | Kind::Pid))
    {
        enter::join(join.kind, inherit(join.fd)?.as_fd())?;
    }
    if handover.new_cgroup_namespace {
        // Not by clone3: its root would be the parent's cgroup, as the process enters its own only after the namespace
        // is made (kernel/fork.c, copy_process).
        enter::unshare(Kind::Cgroup)?;
    }
    if handover.loopback {
        enter::loopback_up()?;
    }
    let console = handover.console.map(inherit).transpose()?;
    let Some(plan) = &handover.rootfs else {
        return Err(handover::Error::NoRoot.into());
    };
    let mounted = rootfs::mount_all(plan, &|mount, tree| report.map_ids(mount, tree).is_ok())?;
    if handover.parent_hooks {
        report.mounted()?;
    }
    prepare(handover, handler, mounted.root(), report)?;
    run_hooks("createContainer", &handover.create_container, handover, "creating")?;
    if let Some(socket) = console {
        terminal::attach(mounted.console()?, &socket, handover.process.console_size)?;
        terminal::control()?;
    }
    // While the host's procfs is in sight, which lists the mounts.
    let interfaces = match handler.in_process() {
        true => mounted.interfaces()?,
        false => Interfaces::default(),
    };
    mounted.pivot()?.finish()?;
    Ok(interfaces)
}

/// Opens what the handler needs while the host's files are in sight. Then what the init image was loaded from is closed: it
/// leads to the host, and an `exec`'s process is soon seen by the container's.
fn prepare(
    handover: &Handover,
    handler: &mut dyn Handler,
    rootfs: BorrowedFd<'_>,
    report: &Report,
) -> Result<(), Error> {
    handler.prepare(&handover.process.guest, rootfs, &mut report::Code(report))?;
    handover.image.iter().try_for_each(|fd| inherit(*fd).map(drop))
}

fn run_hooks(
    kind: &'static str,
    hooks: &[oci_spec::runtime::Hook],
    handover: &Handover,
    status: &str,
) -> Result<(), Error> {
    if hooks.is_empty() {
        return Ok(());
    }
    let mut state = handover.state.clone().unwrap_or_default();
    state["status"] = status.into();
    state["pid"] = nix::unistd::getpid().as_raw().into();
    // As with runc, the hook just before the program has the program's environment.
    let environment = (kind == "startContainer").then_some(handover.process.guest.env.as_slice());
    Ok(hooks::run_all(kind, hooks, &state, environment)?)
}

/// The parent may have blocked signals to forward them, which the program does not inherit. (That SIGPIPE is ignored it does
/// not inherit either, but that has to hold as long as there is something to report.)
fn unblock_signals() -> Result<(), Error> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(failed("sigprocmask(SIG_SETMASK, [])"))
}
