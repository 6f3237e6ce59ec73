//! The hull as a compiler: it runs the engine's compiler over a module, confined like a guest and more, because a module is
//! an attacker's and a compiler is a large program.
//!
//! It has the module and a place for the code as open descriptors, an empty file system in memory, and nothing else. Whoever
//! waits for the code trusts nothing of it: the code is used for that very module only.

use super::binding::Library;
use super::limits::{self, Bounds, Prepared};
use super::module::{self, Refusal};
use super::{code, engine, process};
use crate::Error;
use crate::aot::{Answer, Hashing, Key, Source, Task};
use crate::from_start::FromStart;
use crate::locate::LIBRARY;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

/// Where the engine is to put the code; it makes a file of its own beside.
const OUTPUT: &str = "/code.so";

/// A compiler that has its engine, and has said what it is going to make.
pub struct Compiler {
    library: Library,
    module: File,
    output: File,
    lifeline: OwnedFd,
    task: Task,
}

impl Compiler {
    /// Loads the engine and says which key the code will have.
    pub fn prepare(task: &Task, engine_dir: Option<&Path>, source: &mut dyn Source) -> Result<Self, Error> {
        let inherit = |fd: RawFd| {
            proa_sys::fd::claim(fd)
                .map_err(|errno| refuse(Refusal::Read(std::io::Error::from_raw_os_error(errno as i32))))
        };
        no_streams().map_err(|errno| refuse(Refusal::Read(errno.into())))?;
        let (module, output, lifeline) = (inherit(task.module)?, inherit(task.output)?, inherit(task.lifeline)?);
        let module = File::from(module);
        let library = engine::load(engine_dir, engine::Use::Compile)?;
        engine::has_one_thread(|| LIBRARY.to_owned(), "when it is loaded")?;
        let unknown = || Refusal::Engine {
            engine: format!("WasmEdge {}", library.version()),
            phase: "compile",
            message: "it has no build id by which its code could be told from another build's".to_owned(),
        };
        let target = code::target(&library, task.options).ok_or_else(|| refuse(unknown()))?;
        let read = |error| refuse(Refusal::Read(error));
        let (digest, _) = Hashing::new(FromStart::new(&module)).finish().map_err(read)?;
        let key = Key::new(digest, &target);
        if !matches!(source.find(&key, &target, module.as_fd()), Answer::Make) {
            let nobody = std::io::Error::other("nobody wants the code");
            return Err(refuse(Refusal::Read(nobody)));
        }
        Ok(Self {
            library,
            module,
            output: File::from(output),
            lifeline,
            task: task.clone(),
        })
    }

    /// Compiles and ends the process: 0, or 1 with the reason in place of the code.
    pub fn run(&mut self, started: &mut dyn FnMut()) -> Error {
        if let Err(error) = self.live_with_parent() {
            return error;
        }
        started();
        let status = match self.compile() {
            Ok(()) => 0,
            Err(refusal) => {
                // What fails here shows as code that is none.
                drop(self.output.write_all(refusal.to_string().as_bytes()));
                1
            }
        };
        process::exit_now(status)
    }

    /// From now on this process ends when the one that waits for the code does.
    fn live_with_parent(&self) -> Result<(), Error> {
        let failed = |errno: Errno| refuse(Refusal::Read(errno.into()));
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed)?;
        let mut gone = [PollFd::new(self.lifeline.as_fd(), PollFlags::POLLIN)];
        poll(&mut gone, PollTimeout::ZERO).map_err(failed)?;
        match gone[0].any() {
            Some(false) => Ok(()),
            _ => Err(refuse(Refusal::Read(std::io::Error::other("proa has ended")))),
        }
    }

    fn compile(&mut self) -> Result<(), Refusal> {
        let mut bytes = Vec::new();
        FromStart::new(&self.module)
            .take(u64::from(u32::MAX))
            .read_to_end(&mut bytes)
            .map_err(Refusal::Read)?;
        match module::kind(&bytes[..bytes.len().min(64)])? {
            module::Kind::Module => {}
            module::Kind::Program => return Err(Refusal::Unknown("a Linux program".to_owned())),
        }
        // Not as strict as for a guest that is about to run: it need not be a command.
        let Prepared { mut bytes, survey, .. } = limits::prepare_any(bytes, &Bounds::of_code(&self.task.options))?;
        // The engine keeps the module in the library, and would find code of the image's in it.
        module::hide_aot(&mut bytes, &survey.aot);
        let output = CString::new(OUTPUT).expect("no null byte");
        let Task { level, options, .. } = self.task;
        self.library
            .compile(&bytes, &output, level, options)
            .map_err(|failure| Refusal::Engine {
                engine: format!("WasmEdge {}", self.library.version()),
                phase: "compile",
                message: failure.message,
            })?;
        drop(bytes);
        let mut code = File::open(OUTPUT).map_err(Refusal::Read)?;
        std::io::copy(&mut code, &mut self.output).map_err(Refusal::Read)?;
        Ok(())
    }
}

/// The caller's streams are not a compiler's.
fn no_streams() -> Result<(), Errno> {
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)
}

fn refuse(cause: Refusal) -> Error {
    Error::Module {
        path: "to be compiled".to_owned(),
        cause,
    }
}
