//! Hooks: runtime-spec config.md#posix-platform-hooks.

use crate::state::Record;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::Hook;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// Why a hook counts as failed. Words are runc's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("error running {kind} hook #{index}: {path}: {source}", path = path.display())]
    Start {
        /// e.g. `createRuntime`.
        kind: &'static str,
        /// Which of the list.
        index: usize,
        /// The program.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended badly.
    #[error("error running {kind} hook #{index}: {ended}, stdout: {stdout}, stderr: {stderr}", ended = ended(*status))]
    Status {
        /// e.g. `createRuntime`.
        kind: &'static str,
        /// Which of the list.
        index: usize,
        /// How.
        status: ExitStatus,
        /// What it said.
        stdout: String,
        /// What it complained of.
        stderr: String,
    },
    /// It was killed after `timeout` seconds.
    #[error("error running {kind} hook #{index}: hook ran past specified timeout of {seconds}.0s")]
    Timeout {
        /// e.g. `createRuntime`.
        kind: &'static str,
        /// Which of the list.
        index: usize,
        /// Its `timeout`.
        seconds: i64,
    },
}

/// The container's state as hooks read it from stdin: runtime-spec runtime.md#state.
pub fn state(record: &Record, status: &str, pid: i32) -> serde_json::Value {
    let mut state = serde_json::json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "status": status,
        "pid": pid,
        "bundle": record.bundle,
    });
    if !record.annotations.is_empty() {
        state["annotations"] = serde_json::json!(record.annotations);
    }
    if pid == 0 {
        state.as_object_mut().expect("made as an object above").remove("pid");
    }
    state
}

/// How a process ended, in Go's words.
fn ended(status: ExitStatus) -> String {
    let core = if status.core_dumped() { " (core dumped)" } else { "" };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(libc::SIGSYS)) => format!("signal: bad system call{core}"),
        (None, Some(libc::SIGKILL)) => "signal: killed".into(),
        (None, Some(libc::SIGSEGV)) => format!("signal: segmentation fault{core}"),
        (None, Some(libc::SIGABRT)) => format!("signal: aborted{core}"),
        (None, Some(libc::SIGTERM)) => "signal: terminated".into(),
        (None, Some(signal)) => format!("signal: {signal}{core}"),
        (None, None) => status.to_string(),
    }
}

/// Runs the hooks of one kind in order; the first that fails ends it. A hook that says nothing of its environment gets
/// `environment`, or this process's.
pub fn run_all(
    kind: &'static str,
    hooks: &[Hook],
    state: &serde_json::Value,
    environment: Option<&[String]>,
) -> Result<(), Error> {
    hooks
        .iter()
        .enumerate()
        .try_for_each(|(index, hook)| run(kind, index, hook, state, environment))
}

fn run(
    kind: &'static str,
    index: usize,
    hook: &Hook,
    state: &serde_json::Value,
    environment: Option<&[String]>,
) -> Result<(), Error> {
    let start = |source| Error::Start {
        kind,
        index,
        path: hook.path().clone(),
        source,
    };
    // Files in memory instead of pipes: nothing has to be copied while the hook runs, and a hook that reads nothing, or
    // leaves a background process with its stdout behind, blocks nobody.
    let mut stdin = scratch().map_err(start)?;
    stdin
        .write_all(state.to_string().as_bytes())
        .and_then(|()| stdin.seek(SeekFrom::Start(0)))
        .map_err(start)?;
    let stdout = scratch().map_err(start)?;
    let stderr = scratch().map_err(start)?;

    let mut command = Command::new(hook.path());
    if let Some((first, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(first).args(rest);
    }
    if let Some(env) = hook.env().as_deref().or(environment) {
        command
            .env_clear()
            .envs(env.iter().filter_map(|entry| entry.split_once('=')));
    }
    command
        .stdin(stdin)
        .stdout(stdout.try_clone().map_err(start)?)
        .stderr(stderr.try_clone().map_err(start)?);
    // Who waits in the foreground has blocked every signal, which a hook must not inherit.
    proa_sys::exec::unblock_signals(&mut command);
    // What is not close-on-exec in the runtime is for the container (preserved descriptors), or was left open by the caller.
    // Init has marked everything, and may be under a filter by now that does not know the call.
    if kind != "startContainer" {
        proa_sys::exec::keep_only_stdio(&mut command);
    }
    let mut child = command.spawn().map_err(start)?;

    if let Some(seconds) = hook.timeout()
        && !ends_within(&mut child, seconds).map_err(start)?
    {
        child.kill().and_then(|()| child.wait()).map_err(start)?;
        return Err(Error::Timeout { kind, index, seconds });
    }
    let status = child.wait().map_err(start)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Status {
        kind,
        index,
        status,
        stdout: said(stdout),
        stderr: said(stderr),
    })
}

/// Whether the hook ended in time. Waits on a pidfd; where there is none (before Linux 5.3) it looks again and again, since
/// waiting for SIGCHLD would take the caller's own.
fn ends_within(child: &mut Child, seconds: i64) -> std::io::Result<bool> {
    let timeout = Duration::from_secs(seconds.max(0) as u64);
    let Some(deadline) = Instant::now().checked_add(timeout) else {
        return child.wait().map(|_| true);
    };
    let pid = rustix::process::Pid::from_child(child);
    let pidfd = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Ok(pidfd) => Some(pidfd),
        Err(rustix::io::Errno::NOSYS) => None,
        Err(errno) => return Err(errno.into()),
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let step = match pidfd {
            Some(_) => left,
            None => left.min(Duration::from_millis(10)),
        };
        let step = PollTimeout::try_from(step).unwrap_or(PollTimeout::MAX);
        let mut interests: Vec<PollFd> = pidfd
            .iter()
            .map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN))
            .collect();
        match poll(&mut interests, step) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

fn scratch() -> std::io::Result<File> {
    Ok(File::from(memfd_create(c"proa-hook", MFdFlags::MFD_CLOEXEC)?))
}

fn said(mut file: File) -> String {
    let mut bytes = Vec::new();
    match file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
        Err(error) => format!("({error})"),
    }
}
