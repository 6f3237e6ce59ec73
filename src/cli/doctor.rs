//! `proa doctor`: what this host has, what it lacks, and what can be done.

use super::{Error, Globals, print, print_json};
use crate::doctor::{self, Check, Question, State};
use crate::host::Host;
use crate::wasm::settings;
use std::path::Path;

/// No Linux container can be made here.
const UNFIT: u8 = 1;

/// The command line.
#[derive(clap::Args, Debug)]
pub struct DoctorArgs {
    /// text or json
    #[arg(long, short = 'f', default_value = "text")]
    format: String,
}

pub(super) fn run(globals: &Globals, args: DoctorArgs) -> Result<u8, Error> {
    if !matches!(args.format.as_str(), "text" | "json") {
        return Err(Error::Format);
    }
    let loaded = globals.settings();
    let path = globals.config.as_deref().unwrap_or(Path::new(settings::DEFAULT_PATH));
    let host = Host::probe(globals.rootless, globals.driver == crate::cgroup::Driver::Systemd);
    let checks = doctor::checks(&Question {
        root: globals.store.root(),
        settings: (path, loaded.as_ref().map_err(ToString::to_string)),
        rootless: host.rootless,
    });
    match args.format.as_str() {
        "json" => {
            let json = serde_json::to_string_pretty(&checks).map_err(|error| Error::Stdout(error.into()))?;
            print_json(format!("{json}\n").as_bytes())?;
        }
        _ => {
            print(text(&checks).as_bytes())?;
        }
    }
    let fit = checks.iter().all(|check| check.state != State::Failed);
    Ok(if fit { 0 } else { UNFIT })
}

/// A line a check, and one more for what can be done.
fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Missing => "missing",
            State::Failed => "FAILED",
        };
        text += &format!("{state:<8} {:<8} {}: {}\n", check.area, check.name, check.found);
        if let Some(fix) = &check.fix {
            text += &format!("{:18}-> {fix}\n", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_told() {
        let check = |state, fix: Option<&str>| Check {
            area: "kernel",
            name: "x".into(),
            state,
            found: "y".into(),
            fix: fix.map(Into::into),
        };
        let text = text(&[check(State::Ok, None), check(State::Failed, Some("z"))]);
        assert_eq!(
            text,
            "ok       kernel   x: y\nFAILED   kernel   x: y\n                  -> z\n"
        );
    }
}
