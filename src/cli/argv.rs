//! Go's rules of a command line, applied before clap sees it.
//!
//! runc's callers write what Go's flag packages understand: `-bundle X` for `--bundle X`, `--detach=true`, a flag given twice
//! (the last counts), a value that begins with a dash (`--cpu-quota -1`), flags after the id, global flags after the verb. All
//! of that is put into one canonical form, `--name=value … -- positional …`, which clap then parses and checks.

use clap::{ArgAction, Command};

/// What is wrong with a command line. Worded as runc words it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// A flag at the end that needs a value.
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    /// A switch's value is not a boolean.
    #[error("invalid boolean value {value:?} for -{name}: parse error")]
    NotBoolean {
        /// The flag.
        name: String,
        /// What was given.
        value: String,
    },
    /// e.g. `---x` or `-=x`.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
}

/// A command line in canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canonical {
    /// Flags of the verb, each `--name` or `--name=value`.
    pub flags: Vec<String>,
    /// Global flags, in the same form.
    pub globals: Vec<String>,
    /// Everything else, in order.
    pub positionals: Vec<String>,
    /// `-h` or `--help` was given.
    pub help: bool,
    /// `-v` or `--version` was given where it is a global flag.
    pub version: bool,
}

/// Sorts `args` into flags of `verb`, global flags, and the rest. Once `stop_after` positional arguments are seen, what
/// follows is not looked at: it belongs to the program of `exec`, or to ps(1).
pub fn canonical(
    verb: Option<&Command>,
    globals: &Command,
    args: &[String],
    stop_after: Option<usize>,
) -> Result<Canonical, Error> {
    let mut result = Canonical::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if stop_after == Some(result.positionals.len()) {
            result.positionals.push(arg.clone());
            result.positionals.extend(rest.cloned());
            break;
        }
        if arg == "--" {
            result.positionals.extend(rest.cloned());
            break;
        }
        let Some(body) = arg
            .strip_prefix("--")
            .or_else(|| arg.strip_prefix('-'))
            .filter(|body| !body.is_empty())
        else {
            result.positionals.push(arg.clone());
            continue;
        };
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(Error::Syntax(arg.clone()));
        }
        let (flag, out) = match (verb.and_then(|verb| find(verb, name)), find(globals, name)) {
            (Some(flag), _) => (flag, &mut result.flags),
            (None, Some(flag)) => (flag, &mut result.globals),
            (None, None) if matches!(name, "h" | "help") => {
                result.help = true;
                continue;
            }
            (None, None) if matches!(name, "v" | "version") && verb.is_none() => {
                result.version = true;
                continue;
            }
            (None, None) => return Err(Error::Unknown(name.into())),
        };
        if !flag.repeats {
            out.retain(|earlier| earlier.split('=').next() != Some(&flag.canonical));
        }
        match flag.kind {
            Kind::Value => match value.as_ref().or_else(|| rest.next()) {
                Some(value) => out.push(format!("{}={value}", flag.canonical)),
                None => return Err(Error::NoValue(name.into())),
            },
            Kind::Switch | Kind::Boolean => {
                let on = match &value {
                    None => true,
                    Some(text) => boolean(text).ok_or_else(|| Error::NotBoolean {
                        name: name.into(),
                        value: text.clone(),
                    })?,
                };
                match flag.kind {
                    Kind::Switch if on => out.push(flag.canonical),
                    Kind::Switch => {}
                    _ => out.push(format!("{}={on}", flag.canonical)),
                }
            }
        }
    }
    Ok(result)
}

struct Flag {
    /// `--name`.
    canonical: String,
    kind: Kind,
    repeats: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    /// On if given, unless `=false`.
    Switch,
    /// As a switch, but `=false` is not the same as not given.
    Boolean,
    Value,
}

fn find(command: &Command, name: &str) -> Option<Flag> {
    let mut chars = name.chars();
    let short = chars.next().filter(|_| chars.next().is_none());
    let arg = command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(name) || (short.is_some() && arg.get_short() == short))?;
    Some(Flag {
        canonical: format!("--{}", arg.get_long()?),
        kind: match arg.get_action().takes_values() {
            false => Kind::Switch,
            true if arg.get_num_args().is_some_and(|range| range.min_values() == 0) => Kind::Boolean,
            true => Kind::Value,
        },
        repeats: matches!(arg.get_action(), ArgAction::Append),
    })
}

/// What Go's strconv.ParseBool accepts.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn commands() -> (Command, Command) {
        let verb = Command::new("exec")
            .arg(Arg::new("tty").long("tty").short('t').action(ArgAction::SetTrue))
            .arg(Arg::new("cwd").long("cwd"))
            .arg(Arg::new("env").long("env").short('e').action(ArgAction::Append));
        let globals = Command::new("proa")
            .arg(Arg::new("root").long("root"))
            .arg(Arg::new("debug").long("debug").action(ArgAction::SetTrue));
        (verb, globals)
    }

    fn parse(line: &str, stop_after: Option<usize>) -> Result<Canonical, Error> {
        let (verb, globals) = commands();
        let args: Vec<String> = line.split_whitespace().map(Into::into).collect();
        canonical(Some(&verb), &globals, &args, stop_after)
    }

    fn flags(line: &str) -> Vec<String> {
        parse(line, None).unwrap().flags
    }

    #[test]
    fn gos_spellings_are_one() {
        for line in ["-cwd /x", "--cwd /x", "-cwd=/x", "--cwd=/x", "--cwd /y --cwd /x"] {
            assert_eq!(flags(line), ["--cwd=/x"], "{line}");
        }
        assert_eq!(flags("-t --tty=false"), Vec::<String>::new());
        assert_eq!(
            flags("--tty=1 -e A=1 -e B= --env=C"),
            ["--tty", "--env=A=1", "--env=B=", "--env=C"]
        );
        assert_eq!(flags("--cwd -1"), ["--cwd=-1"]);
        assert_eq!(flags("--cwd="), ["--cwd="]);
    }

    #[test]
    fn order_is_free_until_the_program_begins() {
        let all = parse("c1 --cwd /x --root /r -t", None).unwrap();
        assert_eq!(all.positionals, ["c1"]);
        assert_eq!(all.flags, ["--cwd=/x", "--tty"]);
        assert_eq!(all.globals, ["--root=/r"]);
        let program = parse("-t c1 sh -c -t -- x", Some(1)).unwrap();
        assert_eq!(program.flags, ["--tty"]);
        assert_eq!(program.positionals, ["c1", "sh", "-c", "-t", "--", "x"]);
        assert_eq!(parse("c1 -- -t", None).unwrap().positionals, ["c1", "-t"]);
        assert_eq!(parse("-", None).unwrap().positionals, ["-"]);
    }

    #[test]
    fn errors_have_runcs_words() {
        let words = |line| parse(line, None).unwrap_err().to_string();
        assert_eq!(words("--foo c1"), "flag provided but not defined: -foo");
        assert_eq!(words("c1 --cwd"), "flag needs an argument: -cwd");
        assert_eq!(
            words("--tty=maybe"),
            "invalid boolean value \"maybe\" for -tty: parse error"
        );
        assert_eq!(words("---tty"), "bad flag syntax: ---tty");
        assert_eq!(words("--version"), "flag provided but not defined: -version");
        assert!(parse("-h", None).unwrap().help);
    }
}
