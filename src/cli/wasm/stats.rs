//! `proa wasm stats`: what a Wasm container's guest does and has done.

use crate::cli::{Error, Globals, print, print_json};
use crate::state::{Container, Status, guest::Ending};
use proa_executor::status::{Phase, Snapshot};
use proa_executor::wasm::module::PAGE;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

#[derive(clap::Args, Debug)]
pub(in crate::cli) struct StatsArgs {
    /// Select one of: table or json
    #[arg(short, long, default_value = "table")]
    format: String,
    /// The container
    container_id: String,
}

pub(super) fn run(globals: &Globals, args: StatsArgs) -> Result<u8, Error> {
    let container = globals.store.open(&args.container_id)?;
    let figures = Figures::of(&container)?.ok_or_else(|| Error::NoGuest(container.id().into()))?;
    match args.format.as_str() {
        "table" => print(figures.table(container.status()).as_bytes()),
        "json" => {
            let mut text = serde_json::to_vec(&figures).map_err(|error| Error::Stdout(error.into()))?;
            text.push(b'\n');
            print_json(&text)
        }
        _ => Err(Error::Format),
    }
}

/// What is known of a guest, as shown: here, and as the member `wasm` of the events' data.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Figures {
    /// The engine's name and version.
    engine: String,
    /// `interpreted`, `cache-hit`, …; null before the module is loaded.
    code: Option<&'static str>,
    /// Microseconds that each step of the start took, by its name.
    phases: BTreeMap<&'static str, u64>,
    /// Microseconds since the guest's first instruction, or from there to its end.
    run: Option<u64>,
    /// Executed instructions; null if they are not counted.
    instructions: Option<u64>,
    memory: Option<Memory>,
    /// How a guest that has ended did so.
    ended: Option<End>,
}

/// The linear memory that the guest exports.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    /// Of 64 KiB.
    pages: u64,
    bytes: u64,
    /// The most it can grow to; null if only the address space bounds it.
    max_pages: Option<u64>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct End {
    how: &'static str,
    status: Option<u8>,
    detail: String,
}

impl Figures {
    /// Those of a container's guest at present; `None` if it has none.
    pub(in crate::cli) fn of(container: &Container) -> Result<Option<Self>, Error> {
        let Some(page) = container.guest_now()? else {
            return Ok(None);
        };
        let ending = match container.status() {
            Status::Stopped => container.ending()?,
            _ => None,
        };
        Ok(Some(Self::new(page, ending)))
    }

    fn new(page: Snapshot, ending: Option<Ending>) -> Self {
        let run = page.phases.iter().find(|(phase, _)| *phase == Phase::Run);
        let steps = page.phases.iter().filter(|(phase, _)| *phase != Phase::Run);
        Self {
            engine: page.engine,
            code: page.code.map(|code| code.name()),
            run: run.map(|(_, microseconds)| *microseconds),
            phases: steps
                .map(|(phase, microseconds)| (phase.name(), *microseconds))
                .collect(),
            instructions: page.instructions,
            memory: page.pages.map(|pages| Memory {
                pages,
                bytes: pages.saturating_mul(PAGE),
                max_pages: page.most_pages,
            }),
            ended: ending.map(|ending| End {
                how: ending.how,
                status: ending.status,
                detail: ending.detail,
            }),
        }
    }

    fn table(&self, status: Status) -> String {
        let mut table = String::new();
        let mut row = |name: &str, value: &str| {
            // Writing to a string can't fail.
            writeln!(table, "{name:<16}{value}").ok();
        };
        row("STATUS", status.name());
        row("ENGINE", &self.engine);
        row("CODE", self.code.unwrap_or("not loaded"));
        for (name, microseconds) in [
            ("find", "FIND"),
            ("engine", "ENGINE LOAD"),
            ("read", "READ"),
            ("load", "LOAD"),
            ("validate", "VALIDATE"),
            ("instantiate", "INSTANTIATE"),
        ]
        .into_iter()
        .filter_map(|(phase, name)| Some((name, self.phases.get(phase)?)))
        {
            row(name, &format!("{microseconds} µs"));
        }
        if let Some(run) = self.run {
            row("RUN", &format!("{run} µs"));
        }
        match self.instructions {
            Some(count) => row("INSTRUCTIONS", &count.to_string()),
            None => row("INSTRUCTIONS", "not counted"),
        }
        if let Some(memory) = &self.memory {
            let most = memory
                .max_pages
                .map_or(String::new(), |most| format!(" of at most {most}"));
            let text = format!("{} bytes, {} pages{most}", memory.bytes, memory.pages);
            row("MEMORY", &text);
        }
        if let Some(End { how, status, detail }) = &self.ended {
            let status = status.map_or(String::new(), |status| format!(", status {status}"));
            let colon = if detail.is_empty() { "" } else { ": " };
            row("ENDED", &format!("{how}{status}{colon}{detail}"));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_executor::status::Code;

    fn figures() -> Figures {
        let page = Snapshot {
            engine: "WasmEdge 0.17.1".into(),
            code: Some(Code::Interpreted),
            phases: vec![(Phase::Find, 90), (Phase::Engine, 4000), (Phase::Run, 123)],
            pages: Some(2),
            most_pages: Some(100),
            instructions: None,
            ended: None,
            answer: 1,
        };
        let ending = Ending {
            how: "trap",
            status: Some(134),
            detail: "unreachable in /app.wasm".into(),
        };
        Figures::new(page, Some(ending))
    }

    #[test]
    fn the_json_has_a_shape() {
        let json = serde_json::to_value(figures()).unwrap();
        let expected = serde_json::json!({
            "engine": "WasmEdge 0.17.1", "code": "interpreted", "phases": {"find": 90, "engine": 4000}, "run": 123,
            "instructions": null, "memory": {"pages": 2, "bytes": 131072, "maxPages": 100},
            "ended": {"how": "trap", "status": 134, "detail": "unreachable in /app.wasm"},
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_table_has_a_line_for_each() {
        let table = figures().table(Status::Stopped);
        for line in [
            "STATUS          stopped",
            "ENGINE LOAD     4000 µs",
            "RUN             123 µs",
            "INSTRUCTIONS    not counted",
            "MEMORY          131072 bytes, 2 pages of at most 100",
            "ENDED           trap, status 134: unreachable in /app.wasm",
        ] {
            assert!(table.lines().any(|found| found == line), "{line} in\n{table}");
        }
    }
}
