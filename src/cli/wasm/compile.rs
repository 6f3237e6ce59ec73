//! `proa wasm compile`: fills the cache before a container asks, or makes a file.

use crate::cli::{Error, Globals, absolute, absolute_option, print};
use crate::launch::compile::{Failure, Job, Limits, Module, shortly};
use crate::launch::{self, Site};
use proa_executor::aot::{Cache, Found, Key, Level, Lock, Options, Turn};
use proa_executor::text;
use std::cell::RefCell;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a log hears that it still goes on.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// What can be said of a compilation.
#[derive(clap::Args, Debug)]
pub struct CompileArgs {
    /// The module
    module: PathBuf,
    /// Write the code to this file, as `wasmedge compile` does, and leave the cache alone
    #[arg(long, short = 'o')]
    output: Option<PathBuf>,
    /// How hard to try: 0, 1, 2, 3, s or z
    #[arg(long, default_value = "2")]
    opt_level: Level,
    /// For containers whose instructions are limited (proa.wasm/fuel); also if the configuration file limits them
    #[arg(long)]
    fuel: bool,
    /// For containers whose instructions are counted; also if the configuration file has them counted
    #[arg(long)]
    count_instructions: bool,
    /// For containers whose tables are limited to so many elements (proa.wasm/table-elements)
    #[arg(long)]
    table_elements: Option<u32>,
    /// Compile again what the cache has
    #[arg(long)]
    force: bool,
}

pub(super) fn run(globals: &Globals, args: CompileArgs) -> Result<u8, Error> {
    let shown = args.module.clone();
    compile(globals, args).map_err(|error| Error::Compile {
        module: shown,
        source: Box::new(error),
    })
}

fn compile(globals: &Globals, args: CompileArgs) -> Result<u8, Error> {
    let settings = globals.settings()?;
    let path = absolute(&args.module)?;
    let limits = Limits::of(&settings);
    let module = Module::copy(&File::open(&path).map_err(Error::path("open", &path))?, limits)?;
    let job = Job {
        site: Site {
            store: globals.store.clone(),
            driver: globals.driver,
            rootless: globals.rootless,
        },
        limits,
        options: Options {
            cost: args.fuel || settings.wasm.limits.fuel.is_some(),
            count: args.count_instructions || settings.wasm.count_instructions,
            table_elements: args.table_elements.or(settings.wasm.limits.table_elements),
        },
        level: args.opt_level,
        key: None,
        background: false,
    };
    let mut progress = Progress::new(&args.module);
    if let Some(output) = absolute_option(args.output)? {
        let compiled = job.run(&module, &|_| Ok(()), &mut |spent| progress.show(spent));
        progress.end();
        return write(&output, |to| compiled?.write(to).map_err(Error::path("write", &output)));
    }
    let cache = Cache::make(&launch::code_directory(&settings)).map_err(launch::Error::from)?;
    let held: RefCell<Option<(Key, Lock, Turn)>> = RefCell::new(None);
    let pass = |key: &Key| -> Result<(), launch::Error> {
        let Some(lock) = cache.lock(key, &limits.wait())? else {
            return Err(Failure::Busy(*key).into());
        };
        if !args.force && matches!(cache.find(key), Found::Code(_)) {
            cache.unlock(key, lock)?;
            return Err(Failure::Known(*key).into());
        }
        let Some(turn) = cache.turn(key, limits.compilers, &limits.wait())? else {
            cache.unlock(key, lock)?;
            return Err(Failure::Busy(*key).into());
        };
        held.replace(Some((*key, lock, turn)));
        Ok(())
    };
    let compiled = job.run(&module, &pass, &mut |spent| progress.show(spent));
    progress.end();
    let done = match compiled {
        Ok(compiled) => cache
            .publish(
                &compiled.key,
                &compiled.target,
                &compiled.code,
                settings.wasm.aot.max_size(),
                &shortly,
            )
            .map(|_| compiled.key),
        Err(launch::Error::Compile(Failure::Known(key))) => Ok(key),
        Err(error) => Err(error),
    };
    if let Some((key, lock, turn)) = held.take() {
        cache.end_turn(turn).map_err(launch::Error::from)?;
        cache.unlock(&key, lock).map_err(launch::Error::from)?;
    }
    print(format!("{}\n", done?).as_bytes())
}

/// Makes the file whole or not at all.
fn write(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), Error>) -> Result<u8, Error> {
    let name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput);
    let name = name.map_err(|kind| Error::path("create", path)(kind.into()))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(&temporary)
        .map_err(Error::path("create", &temporary))?;
    let done = fill(&mut file).and_then(|()| std::fs::rename(&temporary, path).map_err(Error::path("rename", path)));
    if done.is_err() {
        std::fs::remove_file(&temporary).map_err(Error::path("unlink", &temporary))?;
    }
    done.map(|()| 0)
}

/// Says on stderr that it goes on: on a terminal every second in one line, else a line now and then.
struct Progress {
    module: String,
    terminal: bool,
    shown: Duration,
}

impl Progress {
    fn new(module: &Path) -> Self {
        Self {
            module: text::line(&module.display().to_string()).into_owned(),
            terminal: std::io::stderr().is_terminal(),
            shown: Duration::ZERO,
        }
    }

    fn show(&mut self, spent: Duration) {
        let every = if self.terminal {
            Duration::from_secs(1)
        } else {
            REPORT_EVERY
        };
        if spent < self.shown + every {
            return;
        }
        self.shown = spent;
        let seconds = spent.as_secs();
        let (start, end) = if self.terminal { ("\r", "") } else { ("", "\n") };
        self.say(&format!("{start}compiling {}: {seconds} s{end}", self.module));
    }

    fn end(&self) {
        if self.terminal && !self.shown.is_zero() {
            self.say("\n");
        }
    }

    fn say(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        // Nobody is there to see it: that is no reason not to compile.
        stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()).ok();
    }
}
