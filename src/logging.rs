//! The log: a small `tracing` subscriber that writes what runc's log looks like.
//!
//! containerd reads the last `{"level":"error","msg":…}` line of `--log FILE --log-format json` to tell its client why a
//! runtime failed; podman and CRI-O show stderr. So a line is either logrus' JSON, or logrus' text, or (on a terminal)
//! logrus' short form.

use proa_executor::text;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time="…" level=error msg="…"`.
    #[default]
    Text,
    /// `{"level":"error","msg":"…","time":"…"}`.
    Json,
}

/// Why the log can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not one of the formats. Worded as runc words it.
    #[error("invalid log-format: {0}")]
    Format(String),
    /// Not one of the levels.
    #[error("invalid log-level: {0} (there are: error, warning, info, debug)")]
    Level(String),
    /// `--log` can't be opened.
    #[error("open {path}: {source}", path = path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(Error::Format(other.into())),
        }
    }
}

/// Where lines go.
enum Out {
    Stderr,
    File(File),
    /// To be taken from here.
    Kept(Mutex<Vec<String>>),
}

/// Where lines go, and how they look.
struct Log {
    out: Out,
    format: Format,
    level: Level,
    terminal: bool,
    started: Instant,
}

static LOG: OnceLock<&'static Log> = OnceLock::new();

/// `--log-level`: crun's names, and what runc's log knows.
pub fn level(name: &str) -> Result<Level, Error> {
    match name.to_ascii_lowercase().as_str() {
        "error" => Ok(Level::ERROR),
        "warning" | "warn" => Ok(Level::WARN),
        "" | "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        _ => Err(Error::Level(name.into())),
    }
}

/// Sends the process's log to `file` (appended to; made 0644, or less by the caller's umask), or to stderr. The first call of a process counts.
pub fn init(file: Option<&Path>, format: Format, level: Level) -> Result<(), Error> {
    let out = match file {
        Some(path) => Out::File(
            File::options()
                .append(true)
                .create(true)
                .mode(0o644)
                .open(path)
                .map_err(|source| Error::Open {
                    path: path.into(),
                    source,
                })?,
        ),
        None => Out::Stderr,
    };
    install(out, format, level);
    Ok(())
}

/// Keeps the process's log as JSON lines for [`take`]: a container's init sees neither `--log` nor stderr, and hands the
/// lines to the parent, who passes each to [`forward`].
pub fn keep(debug: bool) {
    let level = if debug { Level::DEBUG } else { Level::INFO };
    install(Out::Kept(Mutex::default()), Format::Json, level);
}

/// The lines that were kept since the last call.
pub fn take() -> Vec<String> {
    match LOG.get().map(|log| &log.out) {
        Some(Out::Kept(lines)) => lines
            .lock()
            .map(|mut lines| std::mem::take(&mut *lines))
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

fn install(out: Out, format: Format, level: Level) {
    let terminal = matches!(out, Out::Stderr) && std::io::stderr().is_terminal();
    let log: &'static Log = Box::leak(Box::new(Log {
        out,
        format,
        level,
        terminal,
        started: Instant::now(),
    }));
    if LOG.set(log).is_ok() {
        // Only fails if a subscriber is set already, which `LOG.set` has just excluded.
        tracing::subscriber::set_global_default(log).ok();
    }
}

/// Whether everything is logged, to be handed on to a container's init.
pub fn debug() -> bool {
    LOG.get().is_some_and(|log| log.level == Level::DEBUG)
}

/// Whether the log has a file, so that an error has to be told to stderr too.
pub fn to_file() -> bool {
    LOG.get().is_some_and(|log| matches!(log.out, Out::File(_)))
}

/// Writes a line that another process of ours kept; anything else becomes the message of a warning.
pub fn forward(line: &str) {
    #[derive(serde::Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    match serde_json::from_str::<Line>(line) {
        Ok(line) => match line.level.as_str() {
            "error" => tracing::error!("{}", line.msg),
            "warning" => tracing::warn!("{}", line.msg),
            "info" => tracing::info!("{}", line.msg),
            _ => tracing::debug!("{}", line.msg),
        },
        Err(_) => tracing::warn!("{line}"),
    }
}

impl Log {
    fn write(&self, line: &str) {
        // One write(2) a line: several processes append to the same file. A log that can't be written (a full disk, a
        // closed stderr) must not fail a container.
        match &self.out {
            Out::File(file) => (&mut &*file).write_all(line.as_bytes()).ok(),
            Out::Stderr => std::io::stderr().write_all(line.as_bytes()).ok(),
            Out::Kept(lines) => lines.lock().map(|mut lines| lines.push(line.to_owned())).ok(),
        };
    }
}

impl Subscriber for &'static Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = level_name(event.metadata().level());
        let line = match (self.format, self.terminal) {
            (Format::Json, _) => json_line(level, &fields, &now()),
            (Format::Text, false) => text_line(level, &fields, &now()),
            (Format::Text, true) => terminal_line(level, &fields, self.started.elapsed().as_secs()),
        };
        self.write(&line);
    }

    // Spans are not used: no verb is long enough to need them.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// An event's message and its other fields.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message = value,
            name => self.others.push((name, value)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.into(),
            name => self.others.push((name, value.into())),
        }
    }
}

/// logrus' names.
fn level_name(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        _ => "debug",
    }
}

fn json_line(level: &str, fields: &Fields, time: &str) -> String {
    // serde_json's map is sorted by key, as logrus' JSON is.
    let mut map = serde_json::Map::new();
    for (name, value) in &fields.others {
        map.insert((*name).into(), text::lines(value).into());
    }
    map.insert("level".into(), level.into());
    map.insert("msg".into(), text::lines(&fields.message).into());
    map.insert("time".into(), time.into());
    serde_json::Value::Object(map).to_string() + "\n"
}

fn text_line(level: &str, fields: &Fields, time: &str) -> String {
    let mut line = format!("time=\"{time}\" level={level} msg={}", quoted(&fields.message));
    push_fields(&mut line, fields);
    line
}

fn terminal_line(level: &str, fields: &Fields, seconds: u64) -> String {
    let mut line = format!(
        "{}[{seconds:04}] {:<44}",
        &level.to_uppercase()[..4],
        text::lines(fields.message.trim_end_matches('\n'))
    );
    push_fields(&mut line, fields);
    line
}

fn push_fields(line: &mut String, fields: &Fields) {
    for (name, value) in &fields.others {
        // Writing to a string can't fail.
        write!(line, " {name}={}", quoted(value)).ok();
    }
    let trimmed = line.trim_end_matches(' ').len();
    line.truncate(trimmed);
    line.push('\n');
}

/// As logrus quotes: only what has a character beyond the plainest. What a terminal obeys is escaped by this as well.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into()
    } else {
        format!("{text:?}")
    }
}

/// The wall clock as RFC 3339 in UTC with seconds.
fn now() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    rfc3339(seconds, None)
}

/// `seconds` since the epoch as RFC 3339 in UTC. Nanoseconds, if given, are printed as Go prints them: without trailing
/// zeros, and not at all if 0.
pub fn rfc3339(seconds: u64, nanoseconds: Option<u32>) -> String {
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let fraction = match nanoseconds.filter(|nanoseconds| *nanoseconds != 0) {
        Some(nanoseconds) => format!(".{nanoseconds:09}").trim_end_matches('0').to_owned(),
        None => String::new(),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// The present moment as RFC 3339 in UTC with nanoseconds, as `state` prints `created`.
pub fn timestamp() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(now.as_secs(), Some(now.subsec_nanos()))
}

/// The Gregorian date `days` after 1970-01-01, counted in 400-year eras that begin on a 1 March so that the leap day comes
/// last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Fields {
        Fields {
            message: text.into(),
            others: Vec::new(),
        }
    }

    #[test]
    fn levels_have_names() {
        assert_eq!(level("WARNING").unwrap(), Level::WARN);
        assert_eq!(level("debug").unwrap(), Level::DEBUG);
        assert!(
            level("loud")
                .unwrap_err()
                .to_string()
                .starts_with("invalid log-level: loud")
        );
    }

    #[test]
    fn json_is_what_containerd_reads() {
        let line = json_line("error", &message("exec: \"x\": not found\n"), "2026-11-22T20:27:19Z");
        let expected = r#"{"level":"error","msg":"exec: \"x\": not found\n","time":"2026-11-22T20:27:19Z"}"#;
        assert_eq!(line, format!("{expected}\n"));
    }

    #[test]
    fn text_is_logrus_text() {
        let line = text_line("error", &message("container does not exist"), "2026-11-22T20:27:19Z");
        assert_eq!(
            line,
            "time=\"2026-11-22T20:27:19Z\" level=error msg=\"container does not exist\"\n"
        );
        let fields = Fields {
            message: "plain".into(),
            others: vec![("path", "/a b".into())],
        };
        assert_eq!(
            text_line("info", &fields, "t"),
            "time=\"t\" level=info msg=plain path=\"/a b\"\n"
        );
        assert_eq!(terminal_line("error", &message("no"), 3), "ERRO[0003] no\n");
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(0, None), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400, Some(0)), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_379_239, Some(120_000_000)), "2026-11-22T20:27:19.12Z");
        assert_eq!(rfc3339(4_102_444_799, Some(1)), "2099-12-31T23:59:59.000000001Z");
    }
}
