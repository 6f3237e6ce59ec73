//! `proa wasm inspect`: what would become of a bundle, or of a module, and why.

use crate::cli::{Error, Globals, absolute, create, print, print_json};
use crate::launch::CreateOptions;
use crate::launch::inspect::{self, Report, Runs};
use proa_executor::policy::{Network, Policy, Preopens};
use proa_executor::text;
use std::fmt::Write;
use std::path::PathBuf;

/// Why the exit status is not 0 although everything was said on stdout.
const REFUSED: u8 = 1;

/// The command line.
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// The directory with the bundle
    #[arg(long, short = 'b', default_value = ".")]
    bundle: PathBuf,
    /// text or json
    #[arg(long, short = 'f', default_value = "text")]
    format: String,
    /// A module, instead of a bundle
    module: Option<PathBuf>,
}

pub(super) fn run(globals: &Globals, args: InspectArgs) -> Result<u8, Error> {
    let settings = globals.settings()?;
    let report = match &args.module {
        Some(module) => inspect::inspect_module(&absolute(module)?, &settings)?,
        None => inspect::inspect(&CreateOptions {
            id: "inspect".into(),
            bundle: create::bundle(&args.bundle)?,
            console_socket: None,
            pid_file: None,
            pidfd_socket: None,
            no_pivot: false,
            no_new_keyring: false,
            preserve_fds: 0,
            driver: globals.driver,
            rootless: globals.rootless,
            settings,
        }),
    };
    match args.format.as_str() {
        "text" => print(text(&report).as_bytes())?,
        "json" => {
            let json = serde_json::to_string_pretty(&report);
            let json = json.map_err(|error| Error::Stdout(error.into()))? + "\n";
            print_json(json.as_bytes())?
        }
        _ => return Err(Error::Format),
    };
    Ok(if report.refusals.is_empty() { 0 } else { REFUSED })
}

/// Everything that is known, a line each.
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        // Names and paths are the image's author's: on one line, and nothing for the terminal in it.
        let value = value.to_string();
        writeln!(self.0, "{name:<14}{}", text::line(&value)).expect("a string takes everything");
    }

    fn maybe(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }
}

fn text(report: &Report) -> String {
    let mut lines = Lines(String::new());
    lines.maybe("bundle", report.bundle.as_ref().map(|path| path.display()));
    lines.maybe("entrypoint", report.args.first());
    lines.maybe("file", report.file.as_ref().map(|path| path.display()));
    let engine = report.engine.as_ref().map_or("the engine", |engine| &engine.version);
    match (report.runs, report.refusals.is_empty()) {
        (_, false) => lines.add("runs", "not at all: it is refused"),
        (Runs::Module, _) => lines.add("runs", format!("as a WebAssembly module, in {engine}")),
        (Runs::Program, _) => lines.add("runs", "as a Linux program"),
        (Runs::Unknown, _) => lines.add(
            "runs",
            "as its file says, which can't be seen from outside the container",
        ),
    }
    lines.maybe("why", report.why.as_ref());
    lines.maybe("hull", report.hull.as_ref().map(|path| path.display()));
    if let Some(engine) = &report.engine {
        let how = match &engine.with_compiler {
            None => "without its compiler".to_owned(),
            Some(reason) => format!("with its compiler: {reason}"),
        };
        lines.add("engine", format!("{}, loaded {how}", engine.version));
    }
    module(&mut lines, report);
    if report.runs != Runs::Program
        && let Some(policy) = &report.policy
    {
        self::policy(&mut lines, report, policy);
    }
    if let Some(code) = &report.code {
        let detail = code
            .detail
            .as_ref()
            .map_or(String::new(), |detail| format!(" ({detail})"));
        let key = code.key.as_ref().map_or(String::new(), |key| format!(", key {key}"));
        lines.add(
            "code",
            format!("{}{detail}, cache {}{key}", code.state, code.directory.display()),
        );
    }
    report.notes.iter().for_each(|note| lines.add("note", note));
    report.refusals.iter().for_each(|refusal| lines.add("refused", refusal));
    lines.0
}

fn module(lines: &mut Lines, report: &Report) {
    let Some(facts) = &report.module else { return };
    let kind = if facts.component { "component" } else { "module" };
    lines.add(kind, format!("{} bytes, sha256:{}", facts.size, facts.sha256));
    lines.maybe("malformed", facts.malformed.as_ref());
    if facts.component {
        return;
    }
    if facts.left_out > 0 {
        lines.add(
            "left out",
            format!("{} entries of the lists that follow", facts.left_out),
        );
    }
    for (name, items) in &facts.imports {
        let names: Vec<&str> = items.iter().map(|item| item.name.as_str()).collect();
        lines.add("imports", format!("{name}: {}", names.join(", ")));
    }
    let exports: Vec<String> = facts
        .exports
        .iter()
        .map(|item| format!("{} ({})", item.name, item.kind))
        .collect();
    lines.add("exports", exports.join(", "));
    facts
        .memories
        .iter()
        .for_each(|memory| lines.add("memory", format!("{memory} (pages of 64 KiB)")));
    facts
        .tables
        .iter()
        .for_each(|table| lines.add("table", format!("{table} (elements)")));
    let names = if facts.names { "with names" } else { "without names" };
    lines.add("functions", format!("{}, {names}", facts.functions));
    if !facts.features.is_empty() {
        let features: Vec<&str> = facts.features.iter().map(String::as_str).collect();
        lines.add("features", features.join(", "));
    }
    if facts.compiled_code {
        let used = report.policy.as_ref().is_some_and(|policy| policy.trust_image_code);
        let used = if used { "used" } else { "not used: it is native code" };
        lines.add("image code", format!("compiled ahead of time, {used}"));
    }
}

fn policy(lines: &mut Lines, report: &Report, policy: &Policy) {
    let mut preopens = match policy.files.preopens {
        Preopens::Root => vec![format!("{} as .", report.cwd), "/".to_owned()],
        Preopens::Mounts => {
            let mounts = policy.files.mounts.iter();
            let mounts = mounts.map(|(path, ro)| path.display().to_string() + if *ro { " (read-only)" } else { "" });
            [format!("{} as .", report.cwd)].into_iter().chain(mounts).collect()
        }
        Preopens::Nothing => Vec::new(),
    };
    let named = policy.files.named.iter();
    preopens.extend(named.map(|one| {
        let read_only = if one.read_only { " (read-only)" } else { "" };
        format!("{} as {}{read_only}", one.directory.display(), one.guest)
    }));
    lines.add(
        "preopens",
        if preopens.is_empty() {
            "none".to_owned()
        } else {
            preopens.join(", ")
        },
    );
    let limits = policy.limits;
    let mut all = Vec::new();
    all.extend(report.memory_limit.map(|limit| format!("memory {limit} bytes")));
    all.extend(limits.pages.map(|pages| format!("{pages} pages")));
    all.extend(
        limits
            .table_elements
            .map(|elements| format!("{elements} table elements")),
    );
    all.extend(limits.fuel.map(|fuel| format!("fuel {fuel}")));
    all.extend(limits.deadline.map(|deadline| format!("deadline {deadline:?}")));
    all.push(format!("grace {:?}", limits.grace));
    lines.add("limits", all.join(", "));
    lines.add("network", network(&policy.network));
    let plugins: Vec<String> = policy.plugins.iter().map(|path| path.display().to_string()).collect();
    if !plugins.is_empty() {
        lines.add("plugins", plugins.join(", "));
    }
    let aot = serde_json::to_value(policy.aot).ok();
    lines.maybe("aot", aot.as_ref().and_then(|aot| aot.as_str()));
}

/// The rules as they are written; something is allowed if every list allows it.
fn network(network: &Network) -> String {
    let rules = |name: &str, lists: serde_json::Value| match lists.as_array().is_some_and(|lists| !lists.is_empty()) {
        true => format!("{name} {lists}"),
        false => format!("{name} everything"),
    };
    let json = serde_json::to_value(network).unwrap_or_default();
    format!(
        "{}; {}",
        rules("listen", json["listen"].clone()),
        rules("connect", json["connect"].clone())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_flags_are_sound() {
        crate::cli::verb_command::<InspectArgs>("wasm inspect").debug_assert();
    }

    #[test]
    fn what_an_image_says_stays_on_its_line() {
        let report = Report {
            args: vec!["/a\nrefused \x1b[2Jb".into()],
            ..Report::default()
        };
        let text = text(&report);
        assert!(text.contains("entrypoint    /a\\nrefused \\u{1b}[2Jb\n"), "{text}");
    }

    #[test]
    fn a_refusal_comes_first_and_last() {
        let report = Report {
            runs: Runs::Module,
            refusals: vec!["no".into()],
            ..Report::default()
        };
        let text = text(&report);
        assert!(
            text.contains("runs          not at all") && text.ends_with("refused       no\n"),
            "{text}"
        );
    }
}
