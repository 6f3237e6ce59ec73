//! What `create` would make of a bundle, found out without making anything: the same plan, the same checks, and the Wasm hull
//! itself, which is asked what it would do with the entrypoint's file.
//!
//! Only where that file is can't be found out as init does, which has made every mount by then. It is looked for in the root and
//! in the sources of bind mounts; what is hidden behind a file system yet to be made stays open ([`Sight::Hidden`]).

use super::image::{self, Image};
use super::{CreateOptions, Error, code_directory, parent};
use crate::cgroup::Driver;
use crate::config::Config;
use crate::host::Host;
use crate::plan::Plan;
use crate::process;
use crate::rootfs;
use crate::wasm::facts::Facts;
use crate::wasm::{self, Settings};
use nix::errno::Errno;
use oci_spec::runtime::Spec;
use proa_executor::aot::{Cache, Found, Key};
use proa_executor::policy::{Aot, Policy};
use proa_executor::recognise::Evidence;
use proa_executor::wasm::inspection::{Engine, Inspection, Verdict};
use proa_executor::wasm::module;
use proa_executor::wasm::open::{self, Resolver};
use proa_executor::{Guest, Hull, native};
use proa_sys::errno::Raw;
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What runs the entrypoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runs {
    /// The engine, as a module.
    Module,
    /// The kernel, as a Linux program.
    Program,
    /// What decides it can't be seen from outside the container, or it is refused.
    #[default]
    Unknown,
}

/// What is found out.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The bundle, if it is one that was looked at.
    pub bundle: Option<PathBuf>,
    /// `process.args`.
    pub args: Vec<String>,
    /// `process.cwd`.
    pub cwd: String,
    /// Where the entrypoint's file is on the host.
    pub file: Option<PathBuf>,
    /// What runs it.
    pub runs: Runs,
    /// Why it is, or is not, given to the Wasm hull.
    pub why: Option<String>,
    /// The executable that becomes the container's init.
    pub hull: Option<PathBuf>,
    /// The engine, if it is needed and there.
    pub engine: Option<Engine>,
    /// What the module says about itself.
    pub module: Option<Facts>,
    /// `linux.resources.memory.limit`, bytes.
    pub memory_limit: Option<u64>,
    /// What a module may do and use: the configuration file, narrowed by the annotations.
    pub policy: Option<Policy>,
    /// Compiled code.
    pub code: Option<Code>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// Why the container would not be created; empty if it would.
    pub refusals: Vec<String>,
}

/// What there is of compiled code for the module.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Code {
    /// The cache.
    pub directory: PathBuf,
    /// What is looked for; `None` if nothing is.
    pub key: Option<String>,
    /// hit, miss, failed, unusable or none.
    pub state: &'static str,
    /// More about it.
    pub detail: Option<String>,
}

/// Where the entrypoint's file is.
enum Sight {
    Found(File, PathBuf),
    /// It is not there.
    Missing(String),
    /// It can't be told.
    Hidden(String),
}

/// Looks at a bundle as `create` would with these options.
pub fn inspect(options: &CreateOptions) -> Report {
    let mut report = Report {
        bundle: Some(options.bundle.clone()),
        ..Report::default()
    };
    let resolved = Config::load(&options.bundle).map_err(Error::from).and_then(|config| {
        let host = Host::probe(options.rootless, options.driver == Driver::Systemd);
        let plan = parent::resolve(&config, &host, options)?;
        Ok((plan, config))
    });
    let (mut plan, _config) = match resolved {
        Ok(resolved) => resolved,
        Err(error) => {
            report.refusals.push(error.to_string());
            return report;
        }
    };
    report.why = Some(plan.reason.to_string());
    if let Err(error) = process::check_host(&plan.process) {
        report.refusals.push(error.to_string());
    }
    let sight = look(&plan.process.guest, &plan.rootfs);
    report.judge(&mut plan, sight, &options.settings);
    report
}

/// Looks at a file as the entrypoint of a container of which nothing else is known.
pub fn inspect_module(path: &Path, settings: &Settings) -> Result<Report, Error> {
    let file = File::open(path).map_err(|source| opening(path, source))?;
    let mut report = Report::default();
    let policy = wasm::policy(settings, &Spec::default()).map_err(crate::plan::Error::from)?;
    let mut guest = Guest {
        args: vec![path.display().to_string()],
        cwd: "/".into(),
        policy: Some(Box::new(policy)),
        ..Guest::default()
    };
    report.guest(&guest);
    report.wasm(&mut guest, Some((file, path.to_owned())), settings);
    Ok(report)
}

fn opening(path: &Path, source: std::io::Error) -> Error {
    let errno = source.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    Error::call(format!("open {}", path.display()))(errno)
}

impl Report {
    fn guest(&mut self, guest: &Guest) {
        self.args.clone_from(&guest.args);
        self.cwd.clone_from(&guest.cwd);
        self.memory_limit = guest.memory_limit;
    }

    fn judge(&mut self, plan: &mut Plan, sight: Sight, settings: &Settings) {
        self.guest(&plan.process.guest);
        let found = match sight {
            Sight::Found(file, path) => Some((file, path)),
            Sight::Missing(error) => {
                self.refusals.push(error);
                None
            }
            Sight::Hidden(why) => {
                self.notes.push(why);
                None
            }
        };
        match plan.hull {
            Hull::Wasm => self.wasm(&mut plan.process.guest, found, settings),
            Hull::Native => self.native(found),
        }
    }

    fn native(&mut self, found: Option<(File, PathBuf)>) {
        self.runs = Runs::Program;
        self.hull = std::env::current_exe().ok();
        let Some((mut file, path)) = found else { return };
        let mode = file.metadata().map_or(0, |facts| facts.permissions().mode());
        if mode & 0o111 == 0 {
            let problem = format!(
                "exec: {:?}: permission denied: {} is not executable",
                self.args[0],
                path.display()
            );
            self.refusals.push(problem);
        }
        if is_webassembly(&file) {
            self.notes.push(
                "the file is WebAssembly: to have it run as a module, call it *.wasm, or set the annotation \
                 run.oci.handler=wasm"
                    .into(),
            );
            self.describe(&mut file);
        }
        self.file = Some(path);
    }

    fn wasm(&mut self, guest: &mut Guest, found: Option<(File, PathBuf)>, settings: &Settings) {
        if let Some(policy) = &mut guest.policy
            && let Err(error) = wasm::plugins::resolve(policy)
        {
            self.refusals.push(error.to_string());
        }
        let mut hull = Hull::Wasm;
        let image = image::open_for(&mut hull, guest, settings.wasm.engine_dir.as_deref());
        let image = match (image, hull) {
            (Ok(image), Hull::Wasm) => image,
            (Ok(_), Hull::Native) => {
                self.notes
                    .push("there is no Wasm hull, so that the kernel decides".into());
                return self.native(found);
            }
            (Err(error), _) => {
                self.refusals.push(Error::from(error).to_string());
                if let Some((mut file, path)) = found {
                    self.describe(&mut file);
                    self.file = Some(path);
                }
                return;
            }
        };
        self.hull = proa_executor::locate::hull_path().ok();
        let asked = ask(&image, found.as_ref().map(|(file, _)| (&*guest, file)));
        let Inspection { engine, verdict, .. } = match asked {
            Ok(inspection) => inspection,
            Err(error) => return self.refusals.push(error.to_string()),
        };
        let (engine, engine_error) = match engine {
            Ok(engine) => (Some(engine), None),
            Err(error) => (None, Some(error)),
        };
        let mut key = None;
        match verdict {
            None => {}
            Some(Ok(Verdict::Program)) => return self.native(found),
            Some(Ok(Verdict::Module { key: its })) => {
                self.runs = Runs::Module;
                key = its;
                self.refusals.extend(engine_error.clone());
            }
            Some(Err(refusal)) => self.refusals.push(refusal),
        }
        if self.runs == Runs::Unknown && guest.evidence == Evidence::Marked {
            self.notes.extend(engine_error);
        }
        self.engine = engine;
        if let Some((mut file, path)) = found {
            self.describe(&mut file);
            self.file = Some(path);
        }
        self.policy = guest.policy.as_deref().cloned();
        self.code = self.policy.as_ref().map(|policy| code(policy, settings, key));
    }

    fn describe(&mut self, file: &mut File) {
        if !is_webassembly(file) {
            return;
        }
        match Facts::read(file) {
            Ok(facts) => self.module = Some(facts),
            Err(error) => self.notes.push(format!("the file can't be described: {error}")),
        }
    }
}

fn is_webassembly(file: &File) -> bool {
    let mut magic = [0; module::MAGIC.len()];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *module::MAGIC
}

/// Looks for the entrypoint outside the container.
fn look(guest: &Guest, rootfs: &rootfs::Plan) -> Sight {
    let program = &guest.args[0];
    let mut last = Ok(None);
    for path in open::candidates(program, &guest.cwd, native::search_path(&guest.env)) {
        let Some((origin, below)) = rootfs.origin(&path) else {
            return Sight::Hidden(format!(
                "{} is on a file system that is made with the container: what is there can't be seen before",
                path.display()
            ));
        };
        match open_below(origin, &below) {
            Ok(file) => {
                let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
                return Sight::Found(file, real.unwrap_or_else(|_| origin.join(&below)));
            }
            Err(Errno::ENOENT) => {}
            Err(errno) if program.contains('/') => last = Err(errno),
            Err(_) => {}
        }
    }
    let error = match open::refusing(program, last) {
        Ok(_) => unreachable!("nothing was found"),
        Err(error) => error.to_string(),
    };
    match rootfs.has_content_mounts() {
        false => Sight::Missing(error),
        true => Sight::Hidden(format!(
            "{error}, as far as it can be seen before the mounts are made: a link may lead into one"
        )),
    }
}

fn open_below(origin: &Path, below: &Path) -> Result<File, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let origin = openat(CWD, origin, flags, Mode::empty()).map_err(|errno| errno.raw())?;
    let below = below.strip_prefix("/").unwrap_or(below);
    if below.as_os_str().is_empty() {
        // A file that is mounted by itself. Its link in procfs is not followed by `open`, which takes no such links.
        let regular = rustix::fs::fstat(&origin).map_err(|errno| errno.raw())?;
        return match rustix::fs::FileType::from_raw_mode(regular.st_mode) {
            rustix::fs::FileType::RegularFile => {
                let path = format!("/proc/self/fd/{}", origin.as_raw_fd());
                File::open(path).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
            }
            rustix::fs::FileType::Directory => Err(Errno::EISDIR),
            _ => Err(Errno::EACCES),
        };
    }
    open::open(origin.as_fd(), below, Resolver::Kernel)
}

fn code(policy: &Policy, settings: &Settings, key: Option<String>) -> Code {
    let directory = policy.aot_cache.clone().unwrap_or_else(|| code_directory(settings));
    let (state, detail) = match (policy.aot, &key) {
        (Aot::Off, _) => ("none", Some("wasm.aot.policy is off".to_owned())),
        (_, None) => ("none", None),
        (_, Some(key)) => state_of(&directory, key),
    };
    Code {
        directory,
        key,
        state,
        detail,
    }
}

fn state_of(directory: &Path, key: &str) -> (&'static str, Option<String>) {
    let Ok(key) = key.parse::<Key>() else {
        return (
            "unusable",
            Some(format!("the hull has named a key that is none: {key:?}")),
        );
    };
    match Cache::open(directory) {
        Err(error) => ("unusable", Some(error.to_string())),
        Ok(None) => ("miss", Some("there is no cache yet".into())),
        Ok(Some(cache)) => match cache.find(&key) {
            Found::Code(_) => ("hit", None),
            Found::Unusable(why) => ("unusable", Some(why)),
            Found::Nothing => match cache.failure(&key) {
                Some(reason) => ("failed", Some(reason)),
                None => ("miss", None),
            },
        },
    }
}

/// Asks the engine's hull about itself only.
pub fn engine(settings: &Settings) -> Result<Inspection, Error> {
    let image = image::open(Hull::Wasm, settings.wasm.engine_dir.as_deref())?;
    ask(&image, None)
}

/// The hull's verb for being asked.
pub const VERB: &str = "inspect";

/// Runs the hull as it is run for a container, but for its verb: the guest comes on its stdin, the module as a descriptor.
fn ask(image: &Image, shown: Option<(&Guest, &File)>) -> Result<Inspection, Error> {
    let call = |errno| Error::call(format!("the Wasm hull's {VERB}"))(errno);
    let os = |error: std::io::Error| call(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
    let text = |text: &std::ffi::CString| std::ffi::OsString::from(text.to_string_lossy().into_owned());
    let inherited = image.numbers().chain(shown.map(|(_, file)| file.as_raw_fd()));
    for number in inherited {
        proa_sys::fd::set_close_on_exec(number, false).map_err(call)?;
    }
    let (name, rest) = image.argv.split_first().ok_or(call(Errno::EINVAL))?;
    let (_, rest) = rest.split_last().unwrap_or((name, rest));
    let mut hull = Command::new(format!("/proc/self/fd/{}", image.program.as_raw_fd()));
    hull.arg0(text(name)).args(rest.iter().map(text)).arg(VERB).env_clear();
    for entry in &image.env {
        let entry = entry.to_string_lossy();
        let (key, value) = entry.split_once('=').unwrap_or((&entry, ""));
        hull.env(key, value);
    }
    if let Some((_, file)) = shown {
        hull.arg(file.as_raw_fd().to_string());
    }
    let mut child = hull
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(os)?;
    if let (Some(mut stdin), Some((guest, _))) = (child.stdin.take(), shown) {
        let guest = serde_json::to_vec(guest).map_err(|error| os(error.into()))?;
        stdin.write_all(&guest).map_err(os)?;
    }
    let output = child.wait_with_output().map_err(os)?;
    if let Some((_, file)) = shown {
        proa_sys::fd::set_close_on_exec(file.as_raw_fd(), true).map_err(call)?;
    }
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Error::Init(format!("the Wasm hull can't be asked: {}: {said}", output.status))
    })
}

/// The hull's side of it: `arguments` are those after the verb.
pub fn main(
    arguments: &[std::ffi::OsString],
    answer: impl FnOnce(Option<(&Guest, &File)>) -> Inspection,
) -> std::process::ExitCode {
    let answered = || -> std::io::Result<()> {
        let inspection = match arguments.first().and_then(|number| number.to_str()?.parse().ok()) {
            None => answer(None),
            Some(number) => {
                let guest: Guest = serde_json::from_reader(std::io::stdin().lock())?;
                let file = File::from(proa_sys::fd::claim(number)?);
                answer(Some((&guest, &file)))
            }
        };
        serde_json::to_writer(std::io::stdout().lock(), &inspection)?;
        Ok(())
    };
    match answered() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", proa_executor::text::lines(&error.to_string()));
            std::process::ExitCode::FAILURE
        }
    }
}
