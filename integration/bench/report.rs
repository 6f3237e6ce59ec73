//! The report: a table of medians, and what they were measured with.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use crate::Samples;

const ROWS: [&str; 9] = [
    "run",
    "create",
    "start",
    "delete",
    "create + start + delete",
    "exec",
    "memory of the waiting init, PSS (KiB)",
    "smallest memory limit for `true` (KiB)",
    "Wasm hello, run",
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

/// The whole document.
pub fn table(samples: &Samples, versions: &[(&str, &str)], rounds: u32, view: &str) -> String {
    let mut text = String::new();
    let mut names: Vec<&str> = versions.iter().map(|(name, _)| *name).collect();
    names.push("floor");
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
    for (name, version) in versions {
        line(format!("- {name}: {version}"));
    }
    line(String::new());
    line(format!("| | {} | proa : crun | proa : floor |", names.join(" | ")));
    line(format!("|---|{}", "---|".repeat(names.len() + 2)));
    for row in ROWS {
        let of = |name: &str| {
            samples
                .iter()
                .find(|((r, n), _)| *r == row && n == name)
                .map(|(_, s)| s.as_slice())
        };
        if names.iter().all(|n| of(n).is_none()) {
            continue;
        }
        let digits = if row.contains("KiB") { 0 } else { 2 };
        let cell = |name: &&str| {
            of(name).map_or_else(
                || "–".to_owned(),
                |s| match s {
                    [one] => format!("{one:.digits$}"),
                    s => format!(
                        "{:.digits$} ({:.digits$}–{:.digits$})",
                        quantile(s, 0.5),
                        quantile(s, 0.25),
                        quantile(s, 0.75)
                    ),
                },
            )
        };
        let peer = if row.starts_with("Wasm") { "crun+wasm" } else { "crun" };
        let ratio = |other: &str| match (of("proa"), of(other)) {
            (Some(own), Some(other)) => format!("{:.2}x", quantile(own, 0.5) / quantile(other, 0.5)),
            _ => "–".to_owned(),
        };
        let cells: Vec<String> = names.iter().map(cell).collect();
        line(format!(
            "| {row} | {} | {} | {} |",
            cells.join(" | "),
            ratio(peer),
            ratio("floor")
        ));
    }
    text
}
