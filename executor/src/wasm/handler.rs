//! Runs a WebAssembly module as the container's first process, or, where the entrypoint turns out to be a Linux program,
//! executes that.

use super::binding::{End, Failure, Library, Machine};
use super::code::{CodeFacts, CodeUse, Compiled};
use super::compile::Compiler;
use super::module::{self, Kind, Refusal, Survey};
use super::open::{self, Resolver};
use super::{binfmt, engine, process};
use crate::aot::{Digest, Hashing, Source};
use crate::locate::ENGINE_DIR;
use crate::native::{self, NativeHandler};
use crate::policy::Aot;
use crate::recognise::{self, Evidence};
use crate::{Error, Guest, Handler};
use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use proa_sys::errno::words;
use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Instant;

/// The exit status of a guest that trapped: what a shell reports for `SIGABRT`.
const TRAPPED: i32 = 134;
/// As many bytes of a file as tell its kind.
const HEAD: usize = 64;
/// The most pages a 32-bit memory can have.
const PAGES_MAX: u64 = 65536;

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
    /// What `prepare` saw of it.
    survey: Survey,
    /// Its code, if the cache has it.
    compiled: Option<Compiled>,
    facts: CodeFacts,
    /// Made by `check`, once the environment is final.
    strings: Option<Strings>,
}

/// What WASI hands to the guest.
struct Strings {
    args: Vec<CString>,
    env: Vec<CString>,
    preopens: Vec<CString>,
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
        let file = match find(guest, rootfs) {
            Ok(file) if unmarked_program(guest, &file) => return Ok(Target::Program(NativeHandler::new())),
            Err(_) if guest.evidence != Evidence::Marked => return Ok(Target::Program(NativeHandler::new())),
            found => found?,
        };
        let refuse = |cause| Error::Module {
            path: guest.args[0].clone(),
            cause,
        };
        let policy = guest.policy.as_deref();
        let cache = guest.code.zip(policy.filter(|policy| policy.aot != Aot::Off));
        let began = Instant::now();
        let Some((survey, digest)) = inspect(&file, guest, cache.is_some()).map_err(refuse)? else {
            return Ok(Target::Program(NativeHandler::new()));
        };
        let inspected_in = began.elapsed();
        let library = engine::load(engine_dir)?;
        let mut facts = CodeFacts::default();
        let mut compiled = None;
        if let (Some((directory, policy)), Some(digest)) = (cache, &digest) {
            let began = Instant::now();
            compiled = Compiled::find(directory, (&library, digest, &file), policy, source);
            facts.found_in = inspected_in + began.elapsed();
        }
        Ok(Target::Module(Box::new(Module {
            file,
            library,
            survey,
            compiled,
            facts,
            strings: None,
        })))
    }
}

impl Handler for WasmHandler {
    fn prepare(&mut self, guest: &Guest, rootfs: BorrowedFd<'_>, source: &mut dyn Source) -> Result<(), Error> {
        self.target = Some(self.look(guest, rootfs, source)?);
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
                Err(error) => error,
            },
            Some(Target::Compiler(compiler)) => compiler.run(started),
            None => unprepared(guest),
        }
    }
}

/// Opens the entrypoint; refused as runc refuses a program that isn't there.
fn find(guest: &Guest, rootfs: BorrowedFd<'_>) -> Result<File, Error> {
    let program = &guest.args[0];
    let cause = match open::find(
        rootfs,
        program,
        &guest.cwd,
        native::search_path(&guest.env),
        Resolver::Kernel,
    ) {
        Ok(Some(file)) => return Ok(file),
        Ok(None) if !program.contains('/') => "executable file not found in $PATH".to_owned(),
        Ok(None) => format!("stat {program}: {}", words(Errno::ENOENT)),
        Err(errno @ (Errno::EISDIR | Errno::EACCES)) => words(errno),
        Err(errno) => format!("stat {program}: {}", words(errno)),
    };
    Err(Error::Program {
        program: program.clone(),
        cause,
    })
}

/// Whether the entrypoint is executed natively because nobody said that it is a module, and it is none; or it is one, and the
/// kernel knows how to execute it. What can't be read is the kernel's matter, too.
fn unmarked_program(guest: &Guest, file: &File) -> bool {
    if guest.evidence == Evidence::Marked {
        return false;
    }
    let mut magic = [0; module::MAGIC.len()];
    if !read_head(file, &mut magic).is_ok_and(|length| magic[..length] == *module::MAGIC) {
        return true;
    }
    let executable = file
        .metadata()
        .is_ok_and(|facts| facts.permissions().mode() & 0o111 != 0);
    if guest.evidence == Evidence::Content || !executable {
        return false;
    }
    let extension = guest.args[0].rsplit('.').next().unwrap_or_default();
    let interpreter = binfmt::interpreter(extension);
    if let Some(name) = &interpreter {
        tracing::debug!(
            "{}: left to the kernel, which has {name} for it (binfmt_misc)",
            guest.args[0]
        );
    }
    interpreter.is_some()
}

/// Says what the file is, and refuses what can't be run: `None` for a Linux program. With `identify`, the digest of the very
/// bytes that were looked at comes along, unless they can't be read in order.
fn inspect(file: &File, guest: &Guest, identify: bool) -> Result<Option<(Survey, Option<Digest>)>, Refusal> {
    let size = file.metadata().map_err(Refusal::Read)?.len();
    let mut head = [0; HEAD];
    let length = read_head(file, &mut head).map_err(Refusal::Read)?;
    if kind(&guest.args[0], &head[..length])? == Kind::Program {
        return Ok(None);
    }
    let mut hashing = Hashing::new(file);
    let surveyed = match identify {
        true => module::survey(&mut hashing, size),
        false => module::survey(file, size),
    };
    let (survey, digest) = match surveyed {
        // What is malformed is for the engine to refuse, in its words.
        Err(Refusal::Read(error)) if error.kind() == ErrorKind::NotSeekable => (module::survey(file, size)?, None),
        Ok(survey) if identify => {
            let (digest, length) = hashing.finish().map_err(Refusal::Read)?;
            (survey, (length == size).then_some(digest))
        }
        other => (other?, None),
    };
    survey.check(guest.memory_limit)?;
    Ok(Some((survey, digest)))
}

/// What the file is. Text can begin with anything: what is called `.wat` is taken for it.
fn kind(name: &str, head: &[u8]) -> Result<Kind, Refusal> {
    module::kind(head).map_err(|refusal| match refusal {
        Refusal::Unknown(_) | Refusal::Empty if recognise::names_text(name) => Refusal::Text,
        other => other,
    })
}

fn read_head(file: &File, head: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    loop {
        match file.read_at(&mut head[length..], length as u64) {
            Ok(0) => return Ok(length),
            Ok(more) => length += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Arguments, environment and preopened directories of the guest.
///
/// WASI has no working directory. wasi-libc starts in `/` and can't tell a relative path from an absolute one when it
/// looks for the directory to open it in, so with the root preopened its relative paths start there, as under crun. Guests
/// of other languages do better if told: Go takes `PWD`, Zig the first preopened directory.
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
    let mut preopens = vec![CString::from(c"/:/")];
    if guest.cwd != "/" {
        // Not by its name, which may have a colon: this process is there.
        preopens.insert(0, CString::from(c".:."));
        if !guest.env.iter().any(|entry| entry.starts_with("PWD=")) {
            env.push(native::c_string("process.cwd", 0, &format!("PWD={}", guest.cwd))?);
        }
    }
    Ok(Strings { args, env, preopens })
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
    let strings = match module.strings.take() {
        Some(strings) => strings,
        None => strings(guest)?,
    };
    process::take_signals().map_err(|errno| refuse(Refusal::Read(errno.into())))?;

    let (mut machine, survey) = load(module, guest)?;
    machine.validate().map_err(|f| failed("validation", f))?;
    if !survey.start_section {
        machine
            .instantiate()
            .map_err(|f| failed("instantiation", explain(f, &survey)))?;
    }
    started();
    // Not before, as `started` talks to the parent; and not after the engine has opened what is preopened.
    process::close_on_exec_now();
    machine.wasi(&strings.args, &strings.env, &strings.preopens);
    if survey.start_section {
        // Guest code runs in this step already.
        if let Err(failure) = machine.instantiate() {
            return Ok(trap(&failure, path));
        }
    }
    Ok(match machine.execute("_start") {
        // As exit(3) has it.
        End::Exit(code) => (code & 0xff) as i32,
        End::Trap(failure) => trap(&failure, path),
    })
}

/// Parses the module and what code there is for it.
fn load<'module>(module: &'module mut Module, guest: &Guest) -> Result<(Machine<'module>, Survey), Error> {
    let refuse = |cause| Error::Module {
        path: guest.args[0].clone(),
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
    let began = Instant::now();
    let pages = pages(guest.memory_limit);
    if let Some(compiled) = module.compiled.take() {
        let mut machine = Machine::new(&module.library, pages, true).map_err(|f| failed("set-up", f))?;
        match compiled.load(&mut machine).map_err(refuse)? {
            Ok(()) => {
                module.facts.used = CodeUse::Cached;
                module.facts.loaded_in = began.elapsed();
                tracing::debug!(
                    "compiled code loaded in {:?}, found in {:?}",
                    module.facts.loaded_in,
                    module.facts.found_in
                );
                return Ok((machine, std::mem::take(&mut module.survey)));
            }
            Err(failure) => tracing::debug!("compiled code does not load: {}; it is interpreted", failure.message),
        }
    }
    let (bytes, survey) = read(&mut module.file, guest.memory_limit).map_err(refuse)?;
    let mut machine = Machine::new(&module.library, pages, false).map_err(|f| failed("set-up", f))?;
    machine.load(&bytes).map_err(|f| failed("load", f))?;
    module.facts.loaded_in = began.elapsed();
    Ok((machine, survey))
}

/// Reads the module through the descriptor that `prepare` opened. It may have changed since: it is looked at again.
fn read(file: &mut File, memory_limit: Option<u64>) -> Result<(Vec<u8>, Survey), Refusal> {
    let size = file.metadata().map_err(Refusal::Read)?.len();
    let capacity = u32::try_from(size).map_err(|_| Refusal::TooLarge(size))?;
    let mut bytes = Vec::with_capacity(capacity as usize);
    std::io::Seek::rewind(file).map_err(Refusal::Read)?;
    file.take(u64::from(u32::MAX))
        .read_to_end(&mut bytes)
        .map_err(Refusal::Read)?;
    module::kind(&bytes[..bytes.len().min(HEAD)])?;
    let survey = module::survey(std::io::Cursor::new(&bytes), bytes.len() as u64)?;
    survey.check(memory_limit)?;
    module::hide_aot(&mut bytes, &survey.aot);
    Ok((bytes, survey))
}

/// The most pages of memory under a limit in bytes.
fn pages(memory_limit: Option<u64>) -> Option<u32> {
    memory_limit.map(|limit| (limit / module::PAGE).min(PAGES_MAX) as u32)
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

/// Says on the guest's stderr why it ended.
fn trap(failure: &Failure, path: &str) -> i32 {
    let line = format!("proa: wasm trap: {} in {path}\n", failure.message);
    // Nobody is left to be told if stderr is closed; the status says it too.
    drop(std::io::stderr().write_all(line.as_bytes()));
    TRAPPED
}

fn unprepared(guest: &Guest) -> Error {
    Error::Program {
        program: guest.args[0].clone(),
        cause: "not prepared".to_owned(),
    }
}
