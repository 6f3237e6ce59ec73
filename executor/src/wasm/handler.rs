//! Runs a WebAssembly module as the container's first process, or, where the entrypoint turns out to be a Linux program,
//! executes that.

use super::binding::{Counting, End, Failure, Library, log};
use super::code::{self, Code, Loaded};
use super::compile::Compiler;
use super::files::Files;
use super::limits::Bounds;
use super::module::{Refusal, Survey};
use super::process::{OwnMemory, Title};
use super::progress::Progress;
use super::trap::{self, Trap};
use super::watch::Watch;
use super::{engine, entrypoint, hardening, loaded, names, network, opens, process};
use crate::aot::Source;
use crate::locate::{ENGINE_DIR, LIBRARY};
use crate::native::{self, NativeHandler};
use crate::policy::{Aot, Limits};
use crate::status::{self, Ended, Page, Phase};
use crate::{Error, Guest, Handler, text};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use proa_sys::errno::words;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// The exit status of a guest that trapped: what a shell reports for `SIGABRT`.
const TRAPPED: i32 = 134;
/// The exit status of a guest that used up its instructions: what a shell reports for `SIGXCPU`.
const OUT_OF_FUEL: i32 = 128 + nix::libc::SIGXCPU;
/// The exit status of a guest that could not be started.
const FAILED: i32 = 1;
/// Executes a module in WasmEdge, and Linux programs natively: in a pod that is marked for Wasm, sidecars are marked too.
#[derive(Default)]
pub struct WasmHandler {
    engine_dir: Option<PathBuf>,
    target: Option<Target>,
}

/// What `prepare` found.
enum Target {
    Program(NativeHandler),
    Module(Box<Module>),
    Compiler(Box<Compiler>),
}

/// A module that is open but not read, and the engine for it.
struct Module {
    file: File,
    library: Library,
    survey: Survey,
    code: Code,
    progress: Progress,
    own_memory: OwnMemory,
    title: Option<Title>,
    /// Made by `check`, once the environment is final.
    strings: Option<Strings>,
}

/// What WASI hands to the guest.
struct Strings {
    args: Vec<CString>,
    env: Vec<CString>,
    files: Files,
}

impl WasmHandler {
    /// A handler whose engine is looked for where the environment of this process says, or else where the dynamic loader
    /// finds it.
    pub fn new() -> Self {
        let engine_dir = std::env::var_os(ENGINE_DIR)
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from);
        Self {
            engine_dir,
            target: None,
        }
    }

    fn look(&self, guest: &Guest, rootfs: BorrowedFd<'_>, source: &mut dyn Source) -> Result<Target, Error> {
        let engine_dir = self.engine_dir.as_deref();
        if let Some(task) = &guest.compile {
            let compiler = Compiler::prepare(task, engine_dir, source)?;
            return Ok(Target::Compiler(Box::new(compiler)));
        }
        let mut progress = Progress::start(guest)?;
        let Some(file) = entrypoint::open(guest, rootfs)? else {
            progress.page.clear();
            return Ok(Target::Program(NativeHandler::new()));
        };
        let refuse = |cause| Error::Module {
            path: guest.args[0].clone(),
            cause,
        };
        let policy = guest.policy.as_deref();
        let cache = policy.filter(|policy| guest.code && policy.aot != Aot::Off);
        let trusted = code::trusts_image(guest);
        let mut code = Code::Own { trusted };
        let (survey, digest) = match entrypoint::inspect(&file, guest, cache.is_some()) {
            Ok(Some(inspected)) => inspected,
            Ok(None) => {
                progress.page.clear();
                return Ok(Target::Program(NativeHandler::new()));
            }
            // By its path, since that is how libraries are loaded: what the image has there is what is trusted.
            Err(Refusal::SharedLibrary) if trusted && guest.args[0].contains('/') => {
                code = Code::Image(native::c_string("process.args", 0, &guest.args[0])?);
                (Survey::default(), None)
            }
            Err(refusal) => return Err(refuse(refusal)),
        };
        progress.is_over(Phase::Find);
        let library = engine::load(engine_dir, engine::Use::Run)?;
        engine::has_one_thread(|| LIBRARY.to_owned(), "when it is loaded")?;
        names::fix(network::asks_nameservers(guest))?;
        engine::load_plugins(&library, policy.map_or(&[][..], |policy| &policy.plugins))?;
        progress.page.engine(&format!("WasmEdge {}", library.version()));
        progress.is_over(Phase::Engine);
        // Code that the image brings along is what its author wants to have run.
        let digest = digest.filter(|_| !trusted || survey.aot.is_empty());
        if let (Some(policy), Some(digest)) = (cache, &digest) {
            code = Code::find((&library, digest, &file), policy, source);
            progress.is_over(Phase::Code);
        }
        Ok(Target::Module(Box::new(Module {
            file,
            library,
            survey,
            code,
            progress,
            own_memory: OwnMemory::open(),
            title: Title::find(),
            strings: None,
        })))
    }
}

impl Handler for WasmHandler {
    fn prepare(&mut self, guest: &Guest, rootfs: BorrowedFd<'_>, source: &mut dyn Source) -> Result<(), Error> {
        self.target = Some(self.look(guest, rootfs, source)?);
        loaded::protect()?;
        match &mut self.target {
            Some(Target::Program(native)) => native.prepare(guest, rootfs, source),
            _ => Ok(()),
        }
    }

    fn in_process(&self) -> bool {
        matches!(self.target, Some(Target::Module(_) | Target::Compiler(_)))
    }

    fn check(&mut self, guest: &Guest) -> Result<(), Error> {
        match &mut self.target {
            Some(Target::Program(native)) => native.check(guest),
            Some(Target::Module(module)) => {
                module.strings = Some(strings(guest)?);
                Ok(())
            }
            Some(Target::Compiler(_)) => Ok(()),
            None => Err(unprepared(guest)),
        }
    }

    fn run(&mut self, guest: &Guest, started: &mut dyn FnMut()) -> Error {
        match &mut self.target {
            Some(Target::Program(native)) => native.run(guest, started),
            Some(Target::Module(module)) => match execute(module, guest, started) {
                Ok(status) => process::exit_now(status),
                Err(error) => {
                    let text = error.to_string();
                    module.progress.page.ended(Ended::Failed, FAILED, &[text.as_bytes()]);
                    error
                }
            },
            Some(Target::Compiler(compiler)) => compiler.run(started),
            None => unprepared(guest),
        }
    }
}

/// Arguments, environment and preopened directories of the guest.
fn strings(guest: &Guest) -> Result<Strings, Error> {
    let make = |field, values: &[String]| -> Result<Vec<CString>, Error> {
        values
            .iter()
            .enumerate()
            .map(|(index, value)| native::c_string(field, index, value))
            .collect()
    };
    let args = make("process.args", &guest.args)?;
    let mut env = make("process.env", &guest.env)?;
    if guest.cwd != "/" && !guest.env.iter().any(|entry| entry.starts_with("PWD=")) {
        // What tells a guest where it is, as WASI has no working directory.
        env.push(native::c_string("process.cwd", 0, &format!("PWD={}", guest.cwd))?);
    }
    let files = Files::open(guest)?;
    Ok(Strings { args, env, files })
}

/// Runs the module to its end: the exit status for this process. An error is of something before its first instruction.
fn execute(module: &mut Module, guest: &Guest, started: &mut dyn FnMut()) -> Result<i32, Error> {
    let path = &guest.args[0];
    let refuse = |cause| Error::Module {
        path: path.clone(),
        cause,
    };
    let version = module.library.version();
    let failed = |phase: &'static str, failure: Failure| {
        refuse(Refusal::Engine {
            engine: format!("WasmEdge {version}"),
            phase,
            message: failure.message,
        })
    };
    let mut strings = match module.strings.take() {
        Some(strings) => strings,
        None => strings(guest)?,
    };
    let progress = &mut module.progress;
    // The wait for `start` is nobody's phase.
    progress.resume();
    let (bounds, limits) = (Bounds::of(guest), limits(guest));

    let Loaded {
        mut machine,
        survey,
        code,
        moved,
    } = code::load(
        &module.library,
        (&module.file, &mut module.code, &mut module.survey),
        &bounds,
        &mut || progress.is_over(Phase::Read),
    )
    .map_err(|failure| match failure {
        code::LoadFailure::Refused(refusal) => refuse(refusal),
        code::LoadFailure::Engine(phase, failure) => failed(phase, failure),
    })?;
    progress.page.code(code);
    progress.is_over(Phase::Load);
    machine.validate().map_err(|f| failed("validation", f))?;
    progress.is_over(Phase::Validate);
    // What the instance copies of it is what is given back of it then: so much the engine needs for itself.
    let pages = bounds.pages(&survey, module.own_memory.bytes().unwrap_or_default());
    progress.page.most_pages(pages.unwrap_or_default().into());
    machine.bound(pages, counting(guest)).map_err(|f| failed("set-up", f))?;
    if !survey.start_section {
        machine
            .instantiate()
            .map_err(|f| failed("instantiation", explain(f, &survey)))?;
        machine.forget_parsed();
        progress.is_over(Phase::Instantiate);
    }

    engine::have_started_no_thread(guest.policy.as_ref().map_or(&[], |policy| &policy.plugins))?;
    strings.files.enforce()?;
    network::enforce(guest)?;
    if let Some(title) = &module.title {
        title.set(&name_of(&strings.args[0]), &strings.args);
    }
    let watch = Watch::set(progress.page, &limits, path, progress.sample(machine.gauge()))
        .map_err(|errno| Error::Watch(words(errno)))?;
    // Its thread inherits what holds for this one.
    hardening::enforce(guest)?;
    watch.observe();
    // For the names of functions, should it trap.
    let file = module.file.try_clone().map_err(|error| refuse(Refusal::Read(error)))?;
    started();
    // Not before, as `started` talks to the parent; and not after the engine has opened what is preopened.
    let file = process::close_on_exec_now(file);
    machine.wasi(&strings.args, &strings.env, &strings.files.preopens);
    // Not before: what is preopened was chosen by the bundle and not by the guest.
    opens::arm();
    watch.start();
    // Guest code runs in a start section already.
    let ended = survey.start_section.then(|| machine.instantiate_and_start()).flatten();
    let end = ended.unwrap_or_else(|| machine.execute("_start"));
    watch.look();
    let compiled = matches!(code, status::Code::CacheHit | status::Code::Image);
    let trace = || match &file {
        Some(file) => trap::trace(&log::tail(), file, moved, compiled),
        None => Trap::default(),
    };
    Ok(finish(end, progress.page, &limits, path, trace))
}

/// The name of a program's file, which the kernel cuts to 15 bytes.
fn name_of(program: &CStr) -> CString {
    let bytes = program.to_bytes();
    let start = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    CString::new(&bytes[start..]).unwrap_or_default()
}

/// Notes how the guest ended, says on its stderr what stopped it, and returns the exit status.
fn finish(end: End, page: &Page, limits: &Limits, path: &str, trace: impl FnOnce() -> Trap) -> i32 {
    let mut trap = Trap::default();
    let (how, status, kind, detail) = match end {
        End::Exit(code) => {
            // As exit(3) has it.
            let status = (code & 0xff) as i32;
            page.ended(Ended::Exit, status, &[]);
            return status;
        }
        End::Trap(failure) => {
            trap = trace();
            (Ended::Trap, TRAPPED, "trap", format!("{} in {path}", failure.message))
        }
        End::OutOfFuel => {
            let fuel = limits.fuel.unwrap_or_default();
            let detail = format!("{fuel} instructions are used up in {path}");
            (Ended::Fuel, OUT_OF_FUEL, "fuel", detail)
        }
    };
    let detail = text::line(&detail);
    page.ended(how, status, &[detail.as_bytes(), trap.short().as_bytes()]);
    // Nobody is left to be told if stderr is closed; the status says it too.
    let told = format!("proa: wasm {kind}: {detail}\n{}", trap.lines());
    drop(std::io::stderr().write_all(told.as_bytes()));
    status
}

fn limits(guest: &Guest) -> Limits {
    guest.policy.as_ref().map(|policy| policy.limits).unwrap_or_default()
}

fn counting(guest: &Guest) -> Counting {
    Counting {
        count: guest.policy.as_ref().is_some_and(|policy| policy.count_instructions),
        limit: limits(guest).fuel,
    }
}

/// Adds what is known about a failed instantiation to the engine's few words: its log, which says more, is off.
fn explain(mut failure: Failure, survey: &Survey) -> Failure {
    let foreign = survey.foreign_imports();
    if !foreign.is_empty() {
        failure.message += &format!(" (beside WASI it imports from {})", foreign.join(", "));
    }
    match getrlimit(Resource::RLIMIT_AS) {
        Ok((limit, _)) if limit != RLIM_INFINITY && survey.pages > 0 => {
            failure.message += &format!(" (RLIMIT_AS is {limit}; the engine reserves some 12 GiB of address space)");
        }
        _ => {}
    }
    failure
}

fn unprepared(guest: &Guest) -> Error {
    Error::Program {
        program: guest.args[0].clone(),
        cause: "not prepared".to_owned(),
    }
}
