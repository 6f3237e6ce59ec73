//! Compiling while the container runs already: another `proa`, that nobody waits for.
//!
//! It keeps nothing of its caller's: no standard stream, no descriptor but the module and the key's lock, no session, no
//! working directory; its parent ends at once, so that it belongs to whoever reaps orphans.

use super::{Job, Limits};
use crate::cgroup::Driver;
use crate::launch::code::Site;
use crate::launch::{Error, spawn};
use crate::state::Store;
use nix::errno::Errno;
use proa_executor::aot::{Cache, Level, Lock, Options, at_once};
use proa_sys::clone::{Clone, Side};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

/// The verb of that other `proa`, which is in no help.
pub const VERB: &str = "compile-in-background";

/// Of the caller's environment, what says where the engine, the user's bus and directories are.
const KEPT: [&str; 6] = [
    proa_executor::locate::ENGINE_DIR,
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "HOME",
    "PATH",
    "USER",
];

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
struct Errand {
    root: PathBuf,
    driver: Driver,
    rootless: Option<bool>,
    limits: Limits,
    options: Options,
    level: Level,
    key: String,
    cache: PathBuf,
    max_size: u64,
    module: RawFd,
    lock: RawFd,
}

/// Has another process compile for `job`'s key, unless one does so already, or has just done so. Whether there is code.
pub fn in_background(
    cache: &Cache,
    job: Job,
    max_size: u64,
    module: &dyn Fn() -> Result<OwnedFd, Error>,
) -> Result<bool, Error> {
    let Some(key) = job.key else { return Ok(false) };
    let Some(lock) = cache.lock::<Error>(&key, &at_once)? else {
        return Ok(false);
    };
    if let Some(found) = cache.outcome(&key) {
        cache.unlock(&key, lock)?;
        return Ok(found);
    }
    let module = module()?;
    let errand = Errand {
        root: job.site.store.root().to_owned(),
        driver: job.site.driver,
        rootless: job.site.rootless,
        limits: job.limits,
        options: job.options,
        level: job.level,
        key: key.to_string(),
        cache: cache.path().to_owned(),
        max_size,
        module: module.as_raw_fd(),
        lock: lock.as_fd().as_raw_fd(),
    };
    let text = serde_json::to_vec(&errand).map_err(crate::launch::handover::Error::Json)?;
    let text = CString::new(text).map_err(|_| Error::call("serde_json")(Errno::EINVAL))?;
    let open = |path: &str, flags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::path("open", path)(errno.into()))
    };
    let (null, own) = (open("/dev/null", OFlags::RDWR)?, open("/proc/self/exe", OFlags::PATH)?);
    let verb = CString::new(VERB).expect("no null byte");
    let argv = [c"proa".to_owned(), verb, text];
    let env = KEPT.iter().filter_map(|name| variable(name)).collect::<Vec<_>>();

    let cloned = proa_sys::clone::clone(&Clone::default()).map_err(|source| spawn::Error::Clone {
        namespaces: Vec::new(),
        source,
    })?;
    let Side::Parent(child) = cloned else {
        // A copy of this process that only makes the other one.
        let status = match proa_sys::clone::clone(&Clone::default()) {
            Ok(Side::Parent(_)) => 0,
            Ok(Side::Child { .. }) => {
                let Err(_) = become_other(&null, (&module, &lock), &own, &argv, &env);
                1
            }
            Err(_) => 1,
        };
        proa_sys::exec::exit_now(status)
    };
    let pid = child.pid;
    nix::sys::wait::waitpid(pid, None).map_err(Error::call(format!("waitpid({pid})")))?;
    tracing::debug!("compiled code {key}: compiling in the background");
    Ok(false)
}

fn variable(name: &str) -> Option<CString> {
    let value = std::env::var_os(name)?;
    CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
}

fn become_other(
    null: &OwnedFd,
    (module, lock): (&OwnedFd, &Lock),
    own: &OwnedFd,
    argv: &[CString],
    env: &[CString],
) -> Result<Infallible, Errno> {
    nix::unistd::setsid()?;
    nix::unistd::chdir("/")?;
    nix::unistd::dup2_stdin(null)?;
    nix::unistd::dup2_stdout(null)?;
    nix::unistd::dup2_stderr(null)?;
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    proa_sys::fd::close_on_exec_from(3)?;
    for fd in [module.as_fd(), lock.as_fd()] {
        proa_sys::fd::set_close_on_exec(fd.as_raw_fd(), false)?;
    }
    proa_sys::exec::execveat(own.as_fd(), argv, env)
}

/// The main function of that other `proa`; `arguments` are those after [`VERB`].
pub fn main(arguments: &[OsString]) -> ExitCode {
    let errand = match arguments {
        [text] => serde_json::from_slice::<Errand>(text.as_bytes()).ok(),
        _ => None,
    };
    let Some(errand) = errand else {
        eprintln!("{VERB} is for proa itself");
        return ExitCode::FAILURE;
    };
    match carry_out(errand) {
        Ok(()) => ExitCode::SUCCESS,
        // It is kept in the cache if it is the module's fault; there is nobody to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

fn carry_out(errand: Errand) -> Result<(), Error> {
    let inherit = |fd: RawFd| proa_sys::fd::claim(fd).map_err(Error::call(format!("descriptor {fd}")));
    let (module, lock) = (inherit(errand.module)?, Lock::inherited(inherit(errand.lock)?));
    proa_sys::fd::close_on_exec_from(3).map_err(Error::call("close_range(3, CLOSE_RANGE_CLOEXEC)"))?;
    let key = errand.key.parse().map_err(|_| Error::UnexpectedCode)?;
    let Some(cache) = Cache::open(&errand.cache)? else {
        return Ok(());
    };
    let job = Job {
        site: Site {
            store: Store::new(errand.root),
            driver: errand.driver,
            rootless: errand.rootless,
        },
        limits: errand.limits,
        options: errand.options,
        level: errand.level,
        key: Some(key),
        background: true,
    };
    let done = job.fill_in_turn(&cache, &key, errand.max_size, &File::from(module));
    cache.unlock(&key, lock)?;
    done.map(drop)
}
