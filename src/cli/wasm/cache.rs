//! `proa wasm cache ls`, `rm`, `prune`: what is kept of code compiled ahead of time.

use crate::cli::{Error, Globals, print, print_json};
use crate::launch::{self, compile::shortly};
use crate::wasm::units;
use proa_executor::aot::{self, Cache, Key, Listed};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The fewest digits by which an entry can be named.
const PREFIX_MIN: usize = 8;

/// Flags of `ls`.
#[derive(clap::Args, Debug)]
pub struct LsArgs {
    /// table or json
    #[arg(long, short = 'f', default_value = "table")]
    format: String,
}

/// Arguments of `rm`.
#[derive(clap::Args, Debug)]
pub struct RmArgs {
    /// Digests of modules, or keys, or what one of these begins with
    entries: Vec<String>,
    /// All entries
    #[arg(long)]
    all: bool,
}

/// Flags of `prune`.
#[derive(clap::Args, Debug)]
pub struct PruneArgs {
    /// Keep at most so much of what was used last, like 512MiB (default: the configuration file's)
    #[arg(long, value_parser = units::bytes)]
    max_size: Option<u64>,
    /// Remove what was not used for so long, like 30m or 720h
    #[arg(long, value_parser = units::duration)]
    older_than: Option<Duration>,
}

fn open(globals: &Globals) -> Result<Option<Cache>, Error> {
    let settings = globals.settings()?;
    Ok(Cache::open(&launch::code_directory(&settings))?)
}

pub(super) fn ls(globals: &Globals, args: LsArgs) -> Result<u8, Error> {
    let (entries, failures) = match open(globals)? {
        Some(cache) => (cache.list()?, cache.failures()?),
        None => Default::default(),
    };
    match args.format.as_str() {
        "table" => print(table(&entries, &failures).as_bytes()),
        "json" => {
            let all: Vec<Value> = entries
                .iter()
                .map(entry)
                .chain(failures.iter().map(|(key, reason)| failure(key, reason)))
                .collect();
            print_json(format!("{}\n", Value::from(all)).as_bytes())
        }
        _ => Err(Error::Format),
    }
}

/// An entry as `--format json` has it: `key`, `module` (SHA-256), `size` in bytes, `made` and `used` in seconds since 1970,
/// and either `code` (bytes of native code) and `target`, or `damage`.
fn entry(one: &Listed) -> Value {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut value = json!({
        "key": one.key.to_string(),
        "module": module(&one.key),
        "size": one.size,
        "made": seconds(one.made),
        "used": seconds(one.used),
    });
    match &one.facts {
        Ok(facts) => {
            value["code"] = facts.code.into();
            value["target"] = facts
                .target
                .as_str()
                .lines()
                .filter_map(|line| line.split_once(' '))
                .map(|(name, text)| (name.to_owned(), Value::from(text)))
                .collect::<serde_json::Map<_, _>>()
                .into();
        }
        Err(damage) => value["damage"] = damage.as_str().into(),
    }
    value
}

/// A module that did not compile, as `--format json` has it.
fn failure(key: &Key, reason: &str) -> Value {
    json!({"key": key.to_string(), "module": module(key), "failure": reason})
}

fn module(key: &Key) -> String {
    key.to_string().split('-').next().unwrap_or_default().to_owned()
}

fn table(entries: &[Listed], failures: &[(Key, String)]) -> String {
    let mut text = format!("{:<18}{:>12}   {:<20}{:<10}STATE\n", "MODULE", "SIZE", "ENGINE", "USED");
    // Writing to a string can't fail.
    for one in entries {
        let (engine, state) = match &one.facts {
            Ok(facts) => (facts.target.get("engine").unwrap_or_default(), options(&facts.target)),
            Err(damage) => ("", format!("damaged: {damage}")),
        };
        let used = age(one.used.elapsed().unwrap_or_default());
        let short = &module(&one.key)[..16];
        writeln!(text, "{short:<18}{:>12}   {engine:<20}{used:<10}{state}", one.size).ok();
    }
    for (key, reason) in failures {
        let short = &module(key)[..16];
        writeln!(
            text,
            "{short:<18}{:>12}   {:<20}{:<10}does not compile: {reason}",
            "-", "", ""
        )
        .ok();
    }
    text
}

/// What of the options is out of the ordinary.
fn options(target: &aot::Target) -> String {
    let on = |name: &&str| target.get(name) == Some("true");
    let on: Vec<&str> = ["cost", "count"].into_iter().filter(on).collect();
    match on.is_empty() {
        true => "whole".to_owned(),
        false => format!("whole, with {}", on.join(" and ")),
    }
}

fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}

pub(super) fn rm(globals: &Globals, args: RmArgs) -> Result<u8, Error> {
    if args.entries.is_empty() && !args.all {
        return Err(Error::NoEntry);
    }
    let Some(cache) = open(globals)? else {
        return match args.entries.first() {
            Some(name) => Err(Error::UnknownEntry(name.clone())),
            None => Ok(0),
        };
    };
    let failures = cache.failures()?.into_iter().map(|(key, _)| key);
    let known: Vec<Key> = cache.list()?.iter().map(|one| one.key).chain(failures).collect();
    let mut chosen = Vec::new();
    for name in &args.entries {
        chosen.extend(named(&known, name)?);
    }
    if args.all {
        chosen.clone_from(&known);
    }
    for key in chosen {
        cache.remove(&key)?;
    }
    Ok(0)
}

/// All entries of the one module whose digest, or the one whose key, begins with `name`.
fn named(known: &[Key], name: &str) -> Result<Vec<Key>, Error> {
    let found: Vec<Key> = known
        .iter()
        .filter(|key| name.len() >= PREFIX_MIN && key.to_string().starts_with(name))
        .copied()
        .collect();
    match found.first() {
        None => Err(Error::UnknownEntry(name.to_owned())),
        Some(first) if found.iter().any(|key| key.module() != first.module()) => {
            Err(Error::AmbiguousEntry(name.to_owned()))
        }
        Some(_) => Ok(found),
    }
}

pub(super) fn prune(globals: &Globals, args: PruneArgs) -> Result<u8, Error> {
    let Some(cache) = open(globals)? else { return Ok(0) };
    let max_size = match args.max_size {
        Some(given) => given,
        None => globals.settings()?.wasm.aot.max_size(),
    };
    let removed = cache.prune(Some(max_size), args.older_than, &shortly)?;
    let freed: u64 = removed.iter().map(|one| one.size).sum();
    print(format!("removed {} entries, {freed} bytes\n", removed.len()).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_executor::aot::Target;

    #[test]
    fn entries_are_named_by_what_they_begin_with() {
        let key = |byte, target: &str| Key::new([byte; 32], &Target::from_text(target));
        let known = [key(1, "a"), key(1, "b"), key(2, "a")];
        assert_eq!(named(&known, "01010101").unwrap(), known[..2]);
        assert_eq!(named(&known, &known[1].to_string()).unwrap(), known[1..2]);
        for unknown in ["0101", "03030303", ""] {
            assert!(
                matches!(named(&known, unknown), Err(Error::UnknownEntry(_))),
                "{unknown}"
            );
        }
    }

    #[test]
    fn the_table_has_a_line_each() {
        let key = Key::new([0xab; 32], &Target::from_text("x"));
        let listed = Listed {
            key,
            size: 1234,
            used: SystemTime::now() - Duration::from_secs(7200),
            made: UNIX_EPOCH,
            facts: Ok(aot::entry::Facts {
                code: 1000,
                target: Target::from_text("engine WasmEdge 0.17.1\ncost true\ncount false\n"),
            }),
        };
        let text = table(&[listed], &[(key, "it crashed".to_owned())]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "abababababababab          1234   WasmEdge 0.17.1     2h        whole, with cost"
        );
        assert!(lines[2].ends_with("does not compile: it crashed"));
    }
}
