//! Runs a WebAssembly module as the container's first process, or, where the entrypoint turns out to be a Linux program,
//! executes that.

use super::binding::{End, Failure};
use super::compile::Compiler;
use super::entrypoint::{Loaded, Module, failed};
use super::module::Survey;
use super::watch::Watch;
use super::{network, process};
use crate::aot::Source;
use crate::locate::ENGINE_DIR;
use crate::native::NativeHandler;
use crate::policy::Limits;
use crate::status::{Ended, Page, Phase};
use crate::{Error, Guest, Handler};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use proa_sys::errno::words;
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
}

impl Handler for WasmHandler {
    fn prepare(&mut self, guest: &Guest, rootfs: BorrowedFd<'_>, source: &mut dyn Source) -> Result<(), Error> {
        let engine_dir = self.engine_dir.as_deref();
        if let Some(task) = &guest.compile {
            let compiler = Compiler::prepare(task, engine_dir, source)?;
            self.target = Some(Target::Compiler(Box::new(compiler)));
            return Ok(());
        }
        self.target = Some(match Module::prepare(guest, rootfs, engine_dir, source)? {
            Some(module) => Target::Module(Box::new(module)),
            None => {
                let mut native = NativeHandler::new();
                native.prepare(guest, rootfs, source)?;
                Target::Program(native)
            }
        });
        Ok(())
    }

    fn in_process(&self) -> bool {
        matches!(self.target, Some(Target::Module(_) | Target::Compiler(_)))
    }

    fn check(&mut self, guest: &Guest) -> Result<(), Error> {
        match &mut self.target {
            Some(Target::Program(native)) => native.check(guest),
            Some(Target::Module(module)) => module.check(guest),
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

/// Runs the module to its end: the exit status for this process. An error is of something before its first instruction.
fn execute(module: &mut Module, guest: &Guest, started: &mut dyn FnMut()) -> Result<i32, Error> {
    let path = &guest.args[0];
    let limits = guest.policy.as_ref().map(|policy| policy.limits).unwrap_or_default();
    let engine = module.engine();
    let failed = |phase, failure| failed(guest, &engine, phase, failure);
    if module.strings.is_none() {
        module.check(guest)?;
    }
    let Some(mut strings) = module.strings.take() else {
        return Err(unprepared(guest));
    };
    // The wait for `start` is nobody's phase.
    module.progress.resume();
    let Loaded {
        mut machine,
        survey,
        progress,
    } = module.load(guest)?;
    machine.validate().map_err(|failure| failed("validation", failure))?;
    progress.is_over(Phase::Validate);
    if !survey.start_section {
        machine
            .instantiate()
            .map_err(|failure| failed("instantiation", explain(failure, &survey)))?;
        progress.is_over(Phase::Instantiate);
    }

    strings.files.enforce()?;
    network::enforce(guest)?;
    // Its thread inherits what holds for this one.
    let watch = Watch::set(progress.page, &limits, path, progress.sample(machine.gauge()))
        .map_err(|errno| Error::Watch(words(errno)))?;
    watch.observe();
    started();
    // Not before, as `started` talks to the parent; and not after the engine has opened what is preopened.
    process::close_on_exec_now();
    machine.wasi(&strings.args, &strings.env, &strings.files.preopens);
    watch.start();
    // Guest code runs in a start section already.
    let ended = survey.start_section.then(|| machine.instantiate_and_start()).flatten();
    let end = ended.unwrap_or_else(|| machine.execute("_start"));
    watch.look();
    Ok(finish(end, progress.page, &limits, path))
}

/// Notes how the guest ended, says on its stderr what stopped it, and returns the exit status.
fn finish(end: End, page: &Page, limits: &Limits, path: &str) -> i32 {
    let (how, status, kind, detail) = match end {
        End::Exit(code) => {
            // As exit(3) has it.
            let status = (code & 0xff) as i32;
            page.ended(Ended::Exit, status, &[]);
            return status;
        }
        End::Trap(failure) => (Ended::Trap, TRAPPED, "trap", format!("{} in {path}", failure.message)),
        End::OutOfFuel => {
            let fuel = limits.fuel.unwrap_or_default();
            let detail = format!("{fuel} instructions are used up in {path}");
            (Ended::Fuel, OUT_OF_FUEL, "fuel", detail)
        }
    };
    page.ended(how, status, &[detail.as_bytes()]);
    // Nobody is left to be told if stderr is closed; the status says it too.
    drop(std::io::stderr().write_all(format!("proa: wasm {kind}: {detail}\n").as_bytes()));
    status
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
