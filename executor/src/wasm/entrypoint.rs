//! The entrypoint as a module: found and judged while the host's files are in sight ([`Module::prepare`]), and parsed, from
//! its own bytes or with code compiled ahead of time, once the process is confined ([`Module::load`]).

use super::binding::{Counting, Failure, Library, Machine};
use super::code::{self, Compiled};
use super::files::Files;
use super::inspection::Verdict;
use super::limits::{self, Bounds, Prepared};
use super::module::{self, Kind, Refusal, Survey};
use super::open::{self, Resolver};
use super::progress::Progress;
use super::{binfmt, engine, names, network};
use crate::aot::{Digest, Hashing, Key, Options, Source};
use crate::native;
use crate::policy::Aot;
use crate::recognise::{self, Evidence};
use crate::status::{Code, Phase};
use crate::{Error, Guest};
use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

/// As many bytes of a file as tell its kind.
const HEAD: usize = 64;

/// A module that is open, and the engine for it.
pub struct Module {
    file: File,
    library: Library,
    /// How far the start has come.
    pub progress: Progress,
    /// What WASI hands to the guest: made by [`Module::check`], once the environment is final.
    pub strings: Option<Strings>,
    /// What `prepare` saw of it.
    survey: Survey,
    /// Its code, if the cache has it.
    compiled: Option<Compiled>,
    /// Code that came with the image may be run.
    trusted: bool,
    /// It is nothing but such code: a library, by its path in the container.
    library_path: Option<CString>,
    /// The cache was asked for code.
    asked: bool,
}

/// What WASI hands to the guest.
pub struct Strings {
    /// `process.args`.
    pub args: Vec<CString>,
    /// `process.env`.
    pub env: Vec<CString>,
    /// Preopened directories.
    pub files: Files,
}

/// What an entrypoint's file turned out to be.
struct Judged {
    survey: Survey,
    /// Of the very bytes that were looked at.
    digest: Option<Digest>,
    library_path: Option<CString>,
}

impl Module {
    /// Finds the module, the engine, and compiled code; `None` if the entrypoint is a Linux program.
    pub fn prepare(
        guest: &Guest,
        rootfs: BorrowedFd<'_>,
        engine_dir: Option<&Path>,
        source: &mut dyn Source,
    ) -> Result<Option<Self>, Error> {
        let mut progress = Progress::start(guest)?;
        let file = match find(guest, rootfs) {
            Ok(file) if !unmarked_program(guest, &file) => file,
            Err(error) if guest.evidence == Evidence::Marked => return Err(error),
            _ => {
                progress.page.clear();
                return Ok(None);
            }
        };
        let policy = guest.policy.as_deref().filter(|policy| policy.aot != Aot::Off);
        let trusted = policy.is_some_and(|policy| policy.trust_image_code);
        let cache = guest
            .code
            .zip(policy)
            .filter(|_| Bounds::of(guest).table_elements.is_none());
        let Some(judged) = judge(&file, guest, trusted, cache.is_some())? else {
            progress.page.clear();
            return Ok(None);
        };
        progress.is_over(Phase::Find);
        let library = engine::load(engine_dir, engine::Use::Run)?;
        names::fix(network::asks_nameservers(guest))?;
        progress.is_over(Phase::Engine);
        let mut module = Self {
            file,
            library,
            progress,
            strings: None,
            survey: judged.survey,
            compiled: None,
            trusted,
            library_path: judged.library_path,
            asked: false,
        };
        module.progress.page.engine(&module.engine());
        // Code that the image brings along is what its author wants to have run.
        let digest = judged.digest.filter(|_| !trusted || module.survey.aot.is_empty());
        if let (Some((directory, policy)), Some(digest)) = (cache, &digest) {
            module.asked = true;
            module.compiled = Compiled::find(directory, (&module.library, digest, &module.file), policy, source);
            module.progress.is_over(Phase::Code);
        }
        Ok(Some(module))
    }

    /// Name and version of the engine.
    pub fn engine(&self) -> String {
        format!("WasmEdge {}", self.library.version())
    }

    /// Makes what WASI hands to the guest, which needs the final environment and user.
    pub fn check(&mut self, guest: &Guest) -> Result<(), Error> {
        self.strings = Some(strings(guest)?);
        Ok(())
    }

    /// Parses the module and what code there is for it.
    pub fn load(&mut self, guest: &Guest) -> Result<Loaded<'_>, Error> {
        let engine = self.engine();
        let refuse = |cause| refused(guest, cause);
        let failed = |phase, failure| failed(guest, &engine, phase, failure);
        let library = &self.library;
        let progress = &mut self.progress;
        let bounds = Bounds::of(guest);
        let machine = |survey: &Survey, compiled: bool, progress: &Progress| {
            let pages = bounds.pages(survey);
            progress.page.most_pages(pages.unwrap_or_default().into());
            Machine::new(library, pages, counting(guest), compiled).map_err(|failure| failed("set-up", failure))
        };

        if let Some(compiled) = self.compiled.take() {
            let mut machine = machine(&self.survey, true, progress)?;
            match compiled.load(&mut machine).map_err(refuse)? {
                Ok(()) => {
                    progress.page.code(Code::CacheHit);
                    progress.is_over(Phase::Load);
                    let survey = std::mem::take(&mut self.survey);
                    return Ok(Loaded {
                        machine,
                        survey,
                        progress,
                    });
                }
                Err(failure) => tracing::debug!("compiled code does not load: {}; it is interpreted", failure.message),
            }
        }
        if let Some(path) = &self.library_path {
            // Whether it has a start section is not known: then guest code may run while it is instantiated.
            let survey = Survey {
                start_section: true,
                ..Survey::default()
            };
            let mut machine = machine(&survey, true, progress)?;
            machine.load_compiled(path).map_err(|failure| failed("load", failure))?;
            progress.page.code(Code::Image);
            progress.is_over(Phase::Load);
            return Ok(Loaded {
                machine,
                survey,
                progress,
            });
        }
        let Prepared { mut bytes, survey } = read(&mut self.file, &bounds).map_err(refuse)?;
        let image = self.trusted && !survey.aot.is_empty();
        if !image {
            module::hide_aot(&mut bytes, &survey.aot);
        }
        progress.page.code(match (image, self.asked) {
            (true, _) => Code::Image,
            (false, true) => Code::CacheMiss,
            (false, false) => Code::Interpreted,
        });
        progress.is_over(Phase::Read);
        let mut machine = machine(&survey, image, progress)?;
        machine.load(&bytes).map_err(|failure| failed("load", failure))?;
        progress.is_over(Phase::Load);
        Ok(Loaded {
            machine,
            survey,
            progress,
        })
    }
}

/// A module that was parsed, and the machine that it is in.
pub struct Loaded<'module> {
    /// Where it is.
    pub machine: Machine<'module>,
    /// What is known of it.
    pub survey: Survey,
    /// How far the start has come.
    pub progress: &'module mut Progress,
}

/// How instructions are counted.
fn counting(guest: &Guest) -> Counting {
    let policy = guest.policy.as_deref();
    Counting {
        count: policy.is_some_and(|policy| policy.count_instructions),
        limit: policy.and_then(|policy| policy.limits.fuel),
    }
}

/// An error about the module of `guest`.
pub fn refused(guest: &Guest, cause: Refusal) -> Error {
    Error::Module {
        path: guest.args[0].clone(),
        cause,
    }
}

/// An error of the `engine`'s about the module of `guest`.
pub fn failed(guest: &Guest, engine: &str, phase: &'static str, failure: Failure) -> Error {
    let (engine, message) = (engine.to_owned(), failure.message);
    refused(guest, Refusal::Engine { engine, phase, message })
}

/// Opens the entrypoint; refused as runc refuses a program that isn't there.
fn find(guest: &Guest, rootfs: BorrowedFd<'_>) -> Result<File, Error> {
    let program = &guest.args[0];
    let search = native::search_path(&guest.env);
    open::refusing(program, open::find(rootfs, program, &guest.cwd, search, Resolver::Kernel))
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

/// What [`Module::prepare`] would find of an entrypoint whose file is this one, with `library` as the engine.
pub fn verdict(guest: &Guest, file: &File, library: Option<&Library>) -> Result<Verdict, Error> {
    if unmarked_program(guest, file) {
        return Ok(Verdict::Program);
    }
    let policy = guest.policy.as_deref().filter(|policy| policy.aot != Aot::Off);
    let trusted = policy.is_some_and(|policy| policy.trust_image_code);
    let Some(judged) = judge(file, guest, trusted, true)? else {
        return Ok(Verdict::Program);
    };
    let digest = judged.digest.filter(|_| !trusted || judged.survey.aot.is_empty());
    let policy = policy.filter(|_| Bounds::of(guest).table_elements.is_none());
    let target = policy
        .zip(library)
        .and_then(|(policy, library)| code::target(library, Options::of(policy)));
    let key = digest.zip(target).map(|(digest, target)| Key::new(digest, &target).to_string());
    Ok(Verdict::Module { key })
}

/// Says what the file is, and refuses what can't be run: `None` for a Linux program. With `identify`, the digest of a module
/// comes along, unless its bytes can't be read in order.
fn judge(file: &File, guest: &Guest, trusted: bool, identify: bool) -> Result<Option<Judged>, Error> {
    let bounds = Bounds::of(guest);
    match survey(file, &bounds, identify).map_err(|refusal| by_name(refusal, &guest.args[0])) {
        Ok(surveyed) => Ok(surveyed.map(|(survey, digest)| Judged {
            survey,
            digest,
            library_path: None,
        })),
        // By its path, since that is how libraries are loaded: what the image has there is what is trusted. Its tables can't be
        // bounded.
        Err(Refusal::SharedLibrary) if trusted && bounds.table_elements.is_none() && guest.args[0].contains('/') => {
            Ok(Some(Judged {
                survey: Survey::default(),
                digest: None,
                library_path: Some(native::c_string("process.args", 0, &guest.args[0])?),
            }))
        }
        Err(refusal) => Err(refused(guest, refusal)),
    }
}

/// Text can begin with anything: what is called `.wat` is taken for it.
fn by_name(refusal: Refusal, name: &str) -> Refusal {
    match refusal {
        Refusal::Unknown(_) | Refusal::Empty if recognise::names_text(name) => Refusal::Text,
        other => other,
    }
}

fn survey(file: &File, bounds: &Bounds, identify: bool) -> Result<Option<(Survey, Option<Digest>)>, Refusal> {
    let size = file.metadata().map_err(Refusal::Read)?.len();
    let mut head = [0; HEAD];
    let length = read_head(file, &mut head).map_err(Refusal::Read)?;
    if module::kind(&head[..length])? == Kind::Program {
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
    bounds.check(&survey, file)?;
    Ok(Some((survey, digest)))
}

fn read_head(file: &File, head: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    loop {
        match file.read_at(&mut head[length..], length as u64) {
            Ok(0) => return Ok(length),
            Ok(more) => length += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads the module through the descriptor that `prepare` opened. It may have changed since: it is looked at again.
fn read(file: &mut File, bounds: &Bounds) -> Result<Prepared, Refusal> {
    let size = file.metadata().map_err(Refusal::Read)?.len();
    let capacity = u32::try_from(size).map_err(|_| Refusal::TooLarge(size))?;
    let mut bytes = Vec::with_capacity(capacity as usize);
    std::io::Seek::rewind(file).map_err(Refusal::Read)?;
    file.take(u64::from(u32::MAX))
        .read_to_end(&mut bytes)
        .map_err(Refusal::Read)?;
    module::kind(&bytes[..bytes.len().min(HEAD)])?;
    limits::prepare(bytes, bounds)
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
