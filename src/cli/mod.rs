//! The command line: runc's grammar, one file a verb.
//!
//! ```text
//! argv -> argv::canonical (Go's rules) -> clap (one verb's flags only) -> verb's Args -> verb::run -> exit status
//! ```
//!
//! liboci-cli's argument structs are used where they have runc's shape; where they lack a flag or type it differently the
//! verb has its own (docs/decisions/0003-command-line.md).

mod argv;
mod checkpoint;
mod create;
mod delete;
mod doctor;
mod events;
mod exec;
mod features;
mod help;
mod kill;
mod list;
mod pause;
mod ps;
mod restore;
mod run;
mod setup;
mod signals;
mod spec;
mod start;
mod state;
mod units;
mod update;
mod wasm;

use crate::cgroup::{self, Driver};
use crate::state::Store;
use crate::wasm::{Settings, settings};
use crate::{config, host, launch, logging, managers};
use argv::Canonical;
use clap::{Args, Command, FromArgMatches};
use proa_executor::native::NativeHandler;
use proa_executor::recognise::Detect;
use proa_executor::text;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

/// The highest version of the runtime-spec that is implemented.
pub const SPEC_VERSION: &str = "1.3.0";

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Argv(#[from] argv::Error),
    #[error("{program}: {verb:?} requires {requirement} argument(s)")]
    Arity {
        program: String,
        verb: &'static str,
        requirement: String,
    },
    /// clap's words for a value of the wrong type.
    #[error("{0}")]
    Value(String),
    #[error("No help topic for '{0}'")]
    UnknownVerb(String),
    #[error("argument {0} is not valid UTF-8")]
    NotUnicode(usize),
    #[error("Option --root argument should not be set to /")]
    RootIsRoot,
    #[error("invalid value {0:?} for --rootless: must be true, false or auto")]
    Rootless(String),
    #[error("invalid value {0:?} for --cgroup-manager: must be cgroupfs, systemd or disabled")]
    CgroupManager(String),
    #[error("invalid value for --wasm-detect: {0}")]
    WasmDetect(String),
    #[error("{call} {path}: {source}", path = path.display())]
    Path {
        call: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("--preserve-fds must not be negative: {0}")]
    PreserveFds(i32),
    #[error("invalid format option")]
    Format,
    #[error("write to stdout: {0}")]
    Stdout(#[source] std::io::Error),
    #[error("{program} create failed: {0}", program = launch::program())]
    Create(#[source] Box<Error>),
    #[error("{program} run failed: {0}", program = launch::program())]
    Run(#[source] Box<Error>),
    #[error("exec failed: {0}")]
    Exec(#[source] Box<Error>),
    #[error(transparent)]
    Log(#[from] logging::Error),
    #[error(transparent)]
    State(#[from] crate::state::Error),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Settings(#[from] settings::Error),
    #[error(transparent)]
    Launch(#[from] launch::Error),
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    #[error(transparent)]
    Signal(#[from] signals::Unknown),
    #[error(transparent)]
    Process(#[from] exec::ProcessError),
    #[error(transparent)]
    Update(#[from] update::UpdateError),
    #[error(transparent)]
    Ps(#[from] ps::PsError),
    #[error(transparent)]
    Events(#[from] events::EventsError),
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    #[error(transparent)]
    Setup(#[from] setup::SetupError),
    #[error(transparent)]
    Managers(#[from] managers::Error),
    #[error(transparent)]
    Criu(#[from] checkpoint::CriuError),
    #[error("container {0} has no Wasm guest")]
    NoGuest(String),
    #[error("wasm compile {module}: {source}", module = module.display())]
    Compile { module: PathBuf, source: Box<Error> },
    #[error(transparent)]
    Cache(#[from] proa_executor::aot::Error),
    #[error("wasm cache rm: name entries, or all of them by --all")]
    NoEntry,
    #[error("wasm cache: no entry whose key begins with {0:?} (at least 8 digits)")]
    UnknownEntry(String),
    #[error("wasm cache: entries of several modules begin with {0:?}")]
    AmbiguousEntry(String),
}

impl From<crate::state::Refused> for Error {
    fn from(refused: crate::state::Refused) -> Self {
        Self::State(refused.into())
    }
}

impl Error {
    /// The exit status, as runc's (docs/exit-codes.md).
    fn status(&self) -> u8 {
        match self {
            Self::Exec(_) => 255,
            // What the program that could not be executed ends with under runc.
            Self::Run(cause) if matches!(**cause, Self::Launch(launch::Error::Unexecutable { .. })) => 255,
            Self::UnknownVerb(_) => 3,
            _ => 1,
        }
    }

    /// Whether the cause stands on stderr already.
    fn is_told(&self) -> bool {
        match self {
            Self::Run(cause) | Self::Exec(cause) => cause.is_told(),
            Self::Launch(launch::Error::Unexecutable { told, .. }) => *told,
            _ => false,
        }
    }

    /// Whether the caller should be shown how the verb is used.
    fn is_usage(&self) -> bool {
        matches!(self, Self::Argv(_) | Self::Arity { .. } | Self::Value(_))
    }

    fn path(call: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Path {
            call,
            path: path.into(),
            source,
        }
    }
}

/// Flags before the verb (or, as in runc 1.5, after it).
#[derive(Args, Debug)]
struct GlobalArgs {
    #[command(flatten)]
    common: liboci_cli::GlobalOpts,
    /// Ignore cgroup permission errors ('true', 'false', or 'auto')
    #[arg(long, default_value = "auto")]
    rootless: String,
    /// Who makes cgroups ('cgroupfs', 'systemd' or 'disabled'): crun's, which podman gives
    #[arg(long)]
    cgroup_manager: Option<String>,
    /// How much is logged ('error', 'warning', 'info' or 'debug'): crun's; --debug comes first
    #[arg(long)]
    log_level: Option<String>,
    /// Accepted for old callers: as with runc, it is the criu in PATH that is used
    #[arg(long, hide = true)]
    criu: Option<PathBuf>,
    /// The administrator's configuration file (default: /etc/proa/config.toml, if there is one)
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where code that was compiled ahead of time is kept (default: /var/lib/proa/aot)
    #[arg(long)]
    engine_cache: Option<PathBuf>,
    /// How an entrypoint that nothing marks is recognised ('annotation', 'name' or 'auto'; default: the file's wasm.detect)
    #[arg(long)]
    wasm_detect: Option<String>,
}

/// What the global flags resolve to on this host.
#[derive(Debug)]
struct Globals {
    store: Store,
    /// Whether `--root` was given: a default root that does not exist is an empty list, a given one is an error.
    root_given: bool,
    driver: Driver,
    rootless: Option<bool>,
    /// `--config`.
    config: Option<PathBuf>,
    /// `--engine-cache`.
    engine_cache: Option<PathBuf>,
    /// `--wasm-detect`.
    wasm_detect: Option<Detect>,
}

impl Globals {
    /// The administrator's configuration file, with what the command line says in its place.
    fn settings(&self) -> Result<Settings, Error> {
        let mut settings = Settings::load(self.config.as_deref())?;
        if let Some(cache) = &self.engine_cache {
            settings.wasm.aot.cache = Some(cache.clone());
        }
        if let Some(detect) = self.wasm_detect {
            settings.wasm.detect = detect;
        }
        Ok(settings)
    }
}

/// Parses the command line, runs the verb, and maps its result to an exit status.
pub fn main() -> ExitCode {
    let typed: Vec<OsString> = std::env::args_os().collect();
    // The hidden verb: this very executable as the container's init. It comes before everything that costs time.
    if typed.get(1).is_some_and(|verb| verb == "init") {
        return launch::init::main(&typed[2..], &mut NativeHandler::new());
    }
    let mut args = typed.into_iter();
    let program = args.next().unwrap_or_default().to_string_lossy().into_owned();
    let args: Result<Vec<String>, Error> = args
        .enumerate()
        .map(|(at, arg)| arg.into_string().map_err(|_| Error::NotUnicode(at + 1)))
        .collect();
    match args.and_then(|args| dispatch(&program, &args)) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            report(&error);
            ExitCode::from(error.status())
        }
    }
}

/// To the log, and to stderr if that is not the log: once each.
fn report(error: &Error) {
    if let Error::UnknownVerb(_) | Error::Argv(_) | Error::Value(_) | Error::NotUnicode(_) | Error::Log(_) = error {
        // These can come before the log is set up; then it is stderr. If it is set up, this is refused, and not needed.
        logging::init(None, logging::Format::Text, tracing::Level::INFO).ok();
    }
    let (file, told) = (logging::to_file(), error.is_told());
    if file || !told {
        tracing::error!("{error}");
    }
    if file && !told {
        eprintln!("{}", text::lines(&error.to_string()));
    }
}

fn dispatch(program: &str, args: &[String]) -> Result<u8, Error> {
    let globals = global_command();
    let first = argv::canonical(None, &globals, args, Some(1)).inspect_err(|_| help::incorrect_usage(None))?;
    if first.version {
        return print(help::version().as_bytes());
    }
    let Some((verb, rest)) = first.positionals.split_first().filter(|_| !first.help) else {
        return print(help::general().as_bytes());
    };
    let call = Call {
        program,
        globals,
        typed: first.globals.clone(),
        args: rest,
    };
    use Arity::{AtLeast, Between, Exactly};
    match verb.as_str() {
        "create" => call.run("create", Exactly(1), None, create::run),
        "run" => call.run("run", Exactly(1), None, run::run),
        "start" => call.run("start", Exactly(1), None, start::run),
        "state" => call.run("state", Exactly(1), None, state::run),
        "kill" => call.run("kill", Between(1, 2), None, kill::run),
        "delete" => call.run("delete", Exactly(1), None, delete::run),
        "exec" => call.run("exec", AtLeast(1), Some(1), exec::run),
        "list" => call.run("list", Exactly(0), None, list::run),
        "ps" => call.run("ps", AtLeast(1), Some(1), ps::run),
        "pause" => call.run("pause", Exactly(1), None, pause::pause),
        "resume" => call.run("resume", Exactly(1), None, pause::resume),
        "update" => call.run("update", Exactly(1), None, update::run),
        "events" => call.run("events", Exactly(1), None, events::run),
        "spec" => call.run("spec", Exactly(0), None, spec::run),
        "doctor" => call.run("doctor", Exactly(0), None, doctor::run),
        "setup" => call.run("setup", Exactly(1), None, setup::run),
        "features" => call.run("features", Exactly(0), None, features::run),
        "checkpoint" => call.run("checkpoint", Exactly(1), None, checkpoint::run),
        "wasm" => wasm::dispatch(&call),
        "restore" => call.run("restore", Exactly(1), None, restore::run),
        "help" | "h" => match rest.first() {
            None => print(help::general().as_bytes()),
            Some(topic) => dispatch(program, &[topic.clone(), "--help".into()]),
        },
        other => {
            call.set_up(&first.globals)?;
            Err(Error::UnknownVerb(other.into()))
        }
    }
}

/// How many positional arguments a verb takes.
#[derive(Clone, Copy)]
enum Arity {
    Exactly(usize),
    AtLeast(usize),
    Between(usize, usize),
}

impl Arity {
    /// What is required, if `count` is not it.
    fn unmet(self, count: usize) -> Option<String> {
        match self {
            Self::Exactly(n) if count != n => Some(format!("exactly {n}")),
            Self::AtLeast(n) | Self::Between(n, _) if count < n => Some(format!("a minimum of {n}")),
            Self::Between(_, n) if count > n => Some(format!("a maximum of {n}")),
            _ => None,
        }
    }
}

/// A verb about to be run: nothing is known of its flags yet.
struct Call<'a> {
    program: &'a str,
    globals: Command,
    typed: Vec<String>,
    args: &'a [String],
}

impl Call<'_> {
    /// The next word, a sub-verb's name, and the call of that one; an empty word if there is none.
    fn next(&self) -> (&str, Call<'_>) {
        let (verb, rest) = match self.args.split_first() {
            Some((verb, rest)) => (verb.as_str(), rest),
            None => ("", self.args),
        };
        let call = Call {
            program: self.program,
            globals: self.globals.clone(),
            typed: self.typed.clone(),
            args: rest,
        };
        (verb, call)
    }

    fn run<A: Args>(
        &self,
        verb: &'static str,
        arity: Arity,
        stop_after: Option<usize>,
        run: fn(&Globals, A) -> Result<u8, Error>,
    ) -> Result<u8, Error> {
        let command = verb_command::<A>(verb);
        let canonical = argv::canonical(Some(&command), &self.globals, self.args, stop_after);
        // The log comes first: it has to hear of everything that is wrong, the verb's flags included.
        let also = canonical.as_ref().map_or(&[][..], |canonical| &canonical.globals);
        let globals = self.set_up(&[self.typed.as_slice(), also].concat())?;
        let parsed = canonical.map_err(Error::from).and_then(|canonical| {
            if canonical.help {
                return Ok(None);
            }
            self.parse::<A>(verb, arity, command, canonical).map(Some)
        });
        match parsed {
            Ok(Some(args)) => run(&globals, args),
            Ok(None) => print(help::verb(&mut verb_command::<A>(verb)).as_bytes()),
            Err(error) => {
                if error.is_usage() {
                    help::incorrect_usage(Some(&mut verb_command::<A>(verb)));
                }
                Err(error)
            }
        }
    }

    fn parse<A: Args>(
        &self,
        verb: &'static str,
        arity: Arity,
        command: Command,
        canonical: Canonical,
    ) -> Result<A, Error> {
        if let Some(requirement) = arity.unmet(canonical.positionals.len()) {
            return Err(Error::Arity {
                program: self.program.into(),
                verb,
                requirement,
            });
        }
        if canonical.positionals.first().is_some_and(String::is_empty) {
            return Err(crate::state::Error::EmptyId.into());
        }
        let line = canonical
            .flags
            .into_iter()
            .chain(["--".into()])
            .chain(canonical.positionals);
        let matches = command
            .no_binary_name(true)
            .try_get_matches_from(line)
            .map_err(value_error)?;
        A::from_arg_matches(&matches).map_err(value_error)
    }

    /// Resolves the global flags and sets up the log.
    fn set_up(&self, typed: &[String]) -> Result<Globals, Error> {
        let matches = self
            .globals
            .clone()
            .no_binary_name(true)
            .try_get_matches_from(typed)
            .map_err(value_error)?;
        let args = GlobalArgs::from_arg_matches(&matches).map_err(value_error)?;
        let format = args.common.log_format.as_deref().unwrap_or_default().parse()?;
        let file = args.common.log.as_deref().filter(|path| !path.as_os_str().is_empty());
        let level = match (&args.log_level, args.common.debug) {
            (_, true) => tracing::Level::DEBUG,
            (Some(name), false) => logging::level(name)?,
            (None, false) => tracing::Level::INFO,
        };
        logging::init(file, format, level)?;
        let root_given = args.common.root.is_some();
        let root = match args.common.root {
            Some(root) => given_root(&root)?,
            None => default_root()?,
        };
        let rootless = match args.rootless.as_str() {
            auto if auto.is_empty() || auto.eq_ignore_ascii_case("auto") => None,
            other => Some(argv::boolean(other).ok_or_else(|| Error::Rootless(other.into()))?),
        };
        let driver = match args.cgroup_manager.as_deref() {
            None if args.common.systemd_cgroup => Driver::Systemd,
            None | Some("cgroupfs") => Driver::Cgroupfs,
            Some("systemd") => Driver::Systemd,
            Some("disabled") => Driver::Disabled,
            Some(other) => return Err(Error::CgroupManager(other.into())),
        };
        Ok(Globals {
            store: Store::new(root),
            root_given,
            driver,
            rootless,
            config: args.config.map(given_file).transpose()?,
            engine_cache: absolute_option(args.engine_cache)?,
            wasm_detect: args
                .wasm_detect
                .map(|word| word.parse())
                .transpose()
                .map_err(Error::WasmDetect)?,
        })
    }
}

/// The global flags, without the short forms that liboci-cli has and runc has not.
fn global_command() -> Command {
    let mut command = GlobalArgs::augment_args(Command::new("proa")).disable_help_flag(true);
    for arg in ["log", "root", "systemd_cgroup"] {
        command = command.mut_arg(arg, |arg| arg.short(None));
    }
    command
}

/// A verb's flags, with liboci-cli's short forms put right.
fn verb_command<A: Args>(verb: &'static str) -> Command {
    use clap::builder::Resettable::Reset;
    // What the structs say of themselves is for those who read the code.
    let command = A::augment_args(Command::new(verb))
        .disable_help_flag(true)
        .about(Reset)
        .long_about(Reset);
    match verb {
        "create" | "run" => command
            .mut_arg("console_socket", |arg| arg.short(None))
            .mut_arg("pid_file", |arg| arg.short(None)),
        "list" => command.mut_arg("format", |arg| arg.short('f')),
        _ => command,
    }
}

/// clap's message without its trimmings.
fn value_error(error: clap::Error) -> Error {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    Error::Value(line.strip_prefix("error: ").unwrap_or(line).into())
}

/// `--root` as an absolute path without `.` and `..`; never the root of the file system, where deleting a container called
/// `etc` would be a catastrophe.
fn given_root(root: &Path) -> Result<PathBuf, Error> {
    let absolute = absolute(root)?;
    let mut clean = PathBuf::from("/");
    for part in absolute.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::Normal(name) => clean.push(name),
            _ => {}
        }
    }
    if clean == Path::new("/") {
        Err(Error::RootIsRoot)
    } else {
        Ok(clean)
    }
}

fn default_root() -> Result<PathBuf, Error> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let (root, xdg) = host::default_root();
    if xdg {
        // The XDG base directory specification: what must not be pruned automatically has the sticky bit.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(Error::path("mkdir", &root))?;
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o1700))
            .map_err(Error::path("chmod", &root))?;
    }
    Ok(root)
}

/// A path that stays right after chdir(2).
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    if path.as_os_str().is_empty() {
        return std::env::current_dir().map_err(Error::path("getcwd", path));
    }
    std::path::absolute(path).map_err(Error::path("getcwd", path))
}

fn absolute_option(path: Option<PathBuf>) -> Result<Option<PathBuf>, Error> {
    path.filter(|path| !path.as_os_str().is_empty())
        .map(|path| absolute(&path))
        .transpose()
}

/// The absolute path of a file that was named; that it was named by nothing is not overlooked.
fn given_file(path: PathBuf) -> Result<PathBuf, Error> {
    match path.as_os_str().is_empty() {
        true => Ok(path),
        false => absolute(&path),
    }
}

fn preserve_fds(count: i32) -> Result<u32, Error> {
    u32::try_from(count).map_err(|_| Error::PreserveFds(count))
}

/// Writes lines to stdout, whole; success is exit status 0.
fn print(bytes: &[u8]) -> Result<u8, Error> {
    write_out(&text::lines(&String::from_utf8_lossy(bytes)))
}

/// The same for a JSON document.
fn print_json(bytes: &[u8]) -> Result<u8, Error> {
    write_out(&text::json(&String::from_utf8_lossy(bytes)))
}

fn write_out(text: &str) -> Result<u8, Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::Stdout)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_absolute_and_never_the_root() {
        assert_eq!(given_root(Path::new("/run/../var/./x/")).unwrap(), Path::new("/var/x"));
        for root in ["/", "//", "/..", "/a/..", "../../../../../../../../../../../../.."] {
            assert!(matches!(given_root(Path::new(root)), Err(Error::RootIsRoot)), "{root}");
        }
        assert_eq!(
            given_root(Path::new("x")).unwrap(),
            std::env::current_dir().unwrap().join("x")
        );
    }

    #[test]
    fn every_verbs_flags_are_sound() {
        global_command().debug_assert();
        verb_command::<create::CreateArgs>("create").debug_assert();
        verb_command::<run::RunArgs>("run").debug_assert();
        verb_command::<exec::ExecArgs>("exec").debug_assert();
        verb_command::<checkpoint::CheckpointArgs>("checkpoint").debug_assert();
        verb_command::<restore::RestoreArgs>("restore").debug_assert();
        verb_command::<kill::KillArgs>("kill").debug_assert();
        verb_command::<update::UpdateArgs>("update").debug_assert();
        verb_command::<events::EventsArgs>("events").debug_assert();
        verb_command::<setup::SetupArgs>("setup").debug_assert();
        verb_command::<doctor::DoctorArgs>("doctor").debug_assert();
        verb_command::<liboci_cli::List>("list").debug_assert();
        verb_command::<liboci_cli::Ps>("ps").debug_assert();
        verb_command::<liboci_cli::Spec>("spec").debug_assert();
        verb_command::<liboci_cli::Delete>("delete").debug_assert();
        verb_command::<wasm::stats::StatsArgs>("wasm stats").debug_assert();
    }

    #[test]
    fn exit_statuses_are_runcs() {
        let error = || Error::State(crate::state::Error::NotFound);
        assert_eq!(error().status(), 1);
        assert_eq!(Error::Create(Box::new(error())).status(), 1);
        assert_eq!(Error::Exec(Box::new(error())).status(), 255);
        assert_eq!(Error::UnknownVerb("x".into()).status(), 3);
    }
}
