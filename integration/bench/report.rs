//! The report: a table of medians, and what they were measured with.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use crate::{Samples, wasm};

const ROWS: [&str; 8] = [
    "run",
    "create",
    "start",
    "delete",
    "create + start + delete",
    "exec",
    "memory of the waiting init, PSS (KiB)",
    "smallest memory limit for `true` (KiB)",
];

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

fn shell(line: &str) -> String {
    let out = Command::new("sh").args(["-c", line]).output();
    out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .unwrap_or_default()
}

/// Median and quartiles, or the one value there is.
fn cell(row: &str, samples: Option<&[f64]>) -> String {
    let digits = if row.contains("KiB") { 0 } else { 2 };
    match samples {
        None => "–".to_owned(),
        Some([one]) => format!("{one:.digits$}"),
        Some(s) => format!(
            "{:.digits$} ({:.digits$}–{:.digits$})",
            quantile(s, 0.5),
            quantile(s, 0.25),
            quantile(s, 0.75)
        ),
    }
}

/// How many times the one median is the other.
fn ratio(own: Option<&[f64]>, other: Option<&[f64]>) -> String {
    match (own, other) {
        (Some(own), Some(other)) => format!("{:.2}x", quantile(own, 0.5) / quantile(other, 0.5)),
        _ => "–".to_owned(),
    }
}

fn of<'a>(samples: &'a Samples, row: &str, name: &str) -> Option<&'a [f64]> {
    samples
        .iter()
        .find(|((r, n), _)| *r == row && n == name)
        .map(|(_, s)| s.as_slice())
}

/// The whole document. `versions` are the subjects, and whether each is measured with Linux programs.
pub fn document(samples: &Samples, versions: &[(&str, &str, bool)], rounds: u32, view: &str) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{s}").expect("a string takes everything");
    line("# Performance".into());
    line(String::new());
    line("Written by `make bench`. Milliseconds unless said otherwise: the median of all rounds, in brackets the quartiles. All".into());
    line("subjects take turns within each round of one run, so that whatever else the machine does falls on all of them. *floor* is".into());
    line("the kernel alone: one clone with the default configuration's namespaces, its mounts, pivot_root, exec of the same static".into());
    line("program, reaped (`integration/helpers/floor.c`).".into());
    line(String::new());
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory
        .split_whitespace()
        .nth(1)
        .and_then(|k| k.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024
        / 1024;
    line(format!("- date: {}", shell("date -u +%Y-%m-%d")));
    line(format!(
        "- machine: Linux {}, {} CPUs, {memory} GiB, cgroup view {view}",
        shell("uname -r | cut -d- -f1"),
        shell("nproc")
    ));
    line(format!("- rounds: {rounds}"));
    for (name, version, _) in versions {
        line(format!("- {name}: {version}"));
    }
    text + &native(samples, versions) + &wasm(samples)
}

fn native(samples: &Samples, versions: &[(&str, &str, bool)]) -> String {
    let names = versions.iter().filter(|(_, _, native)| *native).map(|(name, ..)| *name);
    let names: Vec<&str> = names.chain(["floor"]).collect();
    let mut text = format!("\n| | {} | proa : crun | proa : floor |\n", names.join(" | "));
    text += &format!("|---|{}\n", "---|".repeat(names.len() + 2));
    for row in ROWS {
        let cells: Vec<String> = names.iter().map(|name| cell(row, of(samples, row, name))).collect();
        let ratio = |other| ratio(of(samples, row, "proa"), of(samples, row, other));
        text += &format!(
            "| {row} | {} | {} | {} |\n",
            cells.join(" | "),
            ratio("crun"),
            ratio("floor")
        );
    }
    text
}

/// The part about Wasm containers, if there is a peer.
fn wasm(samples: &Samples) -> String {
    if of(samples, wasm::HELLO, wasm::PEER).is_none() {
        return String::new();
    }
    let mut text = "\n## Wasm containers\n\n".to_owned();
    text += "The peer is Debian's crun with its WasmEdge, both as they are (`scripts/setup-crun-wasm`). *The same engine* is proa with the\n";
    text +=
        "very library that this crun loads. *proa : native* is against proa's own `run` of a Linux program, above.\n\n";
    let names = [wasm::OWN, wasm::OWN_WITH_PEERS_ENGINE, wasm::PEER];
    text += &format!(
        "| | {} | proa : crun | the same engine : crun | proa : native |\n",
        names.join(" | ")
    );
    text += &format!("|---|{}\n", "---|".repeat(names.len() + 3));
    let rows = [(wasm::HELLO, "run"), (wasm::WAITING, "")];
    for (row, native) in rows {
        let cells = names.map(|name| cell(row, of(samples, row, name)));
        let (own, same, peer) = (
            of(samples, row, names[0]),
            of(samples, row, names[1]),
            of(samples, row, names[2]),
        );
        let native = ratio(own, of(samples, native, wasm::OWN));
        text += &format!(
            "| {row} | {} | {} | {} | {native} |\n",
            cells.join(" | "),
            ratio(own, peer),
            ratio(same, peer)
        );
    }
    let (own, command) = (of(samples, wasm::JOB, wasm::OWN), of(samples, wasm::JOB, wasm::COMMAND));
    if command.is_some() {
        text += "\n`wasmedge` runs the same code from a file, without a container.\n\n";
        text += &format!(
            "| | {} | {} | proa : wasmedge |\n|---|---|---|---|\n",
            wasm::OWN,
            wasm::COMMAND
        );
        text += &format!(
            "| {} | {} | {} | {} |\n",
            wasm::JOB,
            cell(wasm::JOB, own),
            cell(wasm::JOB, command),
            ratio(own, command)
        );
    }
    text
}
