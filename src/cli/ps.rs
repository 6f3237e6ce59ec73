//! `proa ps`.

use super::{Error, Globals, print, print_json};
use std::process::{Command, ExitStatus};

/// Why ps(1) is of no help.
#[derive(Debug, thiserror::Error)]
pub enum PsError {
    /// It can't be run.
    #[error("exec: \"ps\": {0}")]
    Start(#[source] std::io::Error),
    /// It failed.
    #[error("{status}: {output}")]
    Status {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
    },
    /// Its options give no such column. Worded as runc words it.
    #[error("couldn't find PID field in ps output")]
    NoPid,
    /// A line without a number where the pid should be.
    #[error("unable to parse pid in ps output: {0:?}")]
    Line(String),
}

pub(super) fn run(globals: &Globals, args: liboci_cli::Ps) -> Result<u8, Error> {
    let container = globals.store.open(&args.container_id)?;
    let pids: Vec<i32> = container
        .cgroup()?
        .pids()?
        .into_iter()
        .map(|pid| pid.as_raw())
        .collect();
    match args.format.as_str() {
        "table" => {}
        // Go prints a list that was never made as null.
        "json" if pids.is_empty() => return print(b"null\n"),
        "json" => return print_json(format!("{}\n", serde_json::Value::from(pids)).as_bytes()),
        _ => return Err(Error::Format),
    }
    let options = if args.ps_options.is_empty() {
        vec!["-ef".into()]
    } else {
        args.ps_options
    };
    let output = Command::new("ps").args(options).output().map_err(PsError::Start)?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let output_text = String::from_utf8_lossy(&said).trim_end().to_owned();
        return Err(PsError::Status {
            status: output.status,
            output: output_text,
        }
        .into());
    }
    print(filter(&String::from_utf8_lossy(&output.stdout), &pids)?.as_bytes())
}

/// The title and the lines whose PID is one of `pids`.
fn filter(output: &str, pids: &[i32]) -> Result<String, PsError> {
    let mut lines = output.lines();
    let title = lines.next().unwrap_or_default();
    let column = title
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or(PsError::NoPid)?;
    let mut kept = format!("{title}\n");
    for line in lines.filter(|line| !line.is_empty()) {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse().ok());
        if pids.contains(&pid.ok_or_else(|| PsError::Line(line.into()))?) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_lines_are_kept() {
        let output = "UID   PID CMD\nroot    1 init\nroot   12 sh -c 1\n\n";
        assert_eq!(filter(output, &[12]).unwrap(), "UID   PID CMD\nroot   12 sh -c 1\n");
        assert!(matches!(filter("CMD\nx\n", &[1]), Err(PsError::NoPid)));
        assert!(matches!(filter("PID\nx\n", &[1]), Err(PsError::Line(_))));
    }
}
