//! `descriptors.json` beside CRIU's images: what a container's standard streams were, so that those of `restore` can take the
//! place of pipes, whose other ends are outside.
//!
//! runc writes down at `create` what they are. Here the container is looked at when it is checkpointed, so that creating it
//! costs nothing: a stream is init's, or of a process of init's session, as long as nobody in the container holds the
//! pipe's other end. (A shell whose output goes through a `tee` of its own has a pipe for stdout that is no stream.)

use super::Error;
use nix::unistd::Pid;
use std::collections::HashSet;
use std::path::Path;

const FILE: &str = "descriptors.json";
/// What stands for a stream that is of no concern.
const NOTHING: &str = "/dev/null";

/// A process's part in a pipe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct End {
    pipe: String,
    writes: bool,
}

/// Finds out what the standard streams of `init` and its container's processes `pids` are.
pub fn find(init: Pid, pids: &[Pid]) -> [String; 3] {
    let session = session(init);
    let others = pids
        .iter()
        .copied()
        .filter(|pid| *pid != init && self::session(*pid) == session);
    let processes: Vec<Pid> = [init].into_iter().chain(others).collect();
    streams(&processes, pids)
}

/// The standard streams of `processes`, of which the first is init, as far as none of `inside` has a pipe's other end.
fn streams(processes: &[Pid], inside: &[Pid]) -> [String; 3] {
    let held: HashSet<End> = inside.iter().flat_map(|pid| ends(*pid)).collect();
    let outside = |end: &End| {
        !held.contains(&End {
            writes: !end.writes,
            ..end.clone()
        })
    };
    [0, 1, 2].map(|number| {
        let mut ends = processes.iter().filter_map(|pid| end(*pid, number));
        match ends.find(outside) {
            Some(end) => end.pipe,
            None => NOTHING.to_owned(),
        }
    })
}

/// The pipe that descriptor `number` of `pid` is one end of. A process that ends meanwhile has none.
fn end(pid: Pid, number: u32) -> Option<End> {
    let pipe = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
    let pipe = pipe.to_str().filter(|target| target.starts_with("pipe:["))?.to_owned();
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
    Some(End {
        pipe,
        writes: flags & nix::libc::O_ACCMODE != nix::libc::O_RDONLY,
    })
}

fn ends(pid: Pid) -> Vec<End> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let numbers = entries.into_iter().flatten().flatten();
    numbers
        .filter_map(|entry| end(pid, entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

fn session(pid: Pid) -> Option<Pid> {
    nix::unistd::getsid(Some(pid)).ok()
}

/// Writes them beside the images in `directory`.
pub fn save(directory: &Path, streams: &[String; 3]) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let path = directory.join(FILE);
    let text = serde_json::json!(streams).to_string();
    let write = || -> std::io::Result<()> {
        let mut options = std::fs::File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&path)?.write_all(text.as_bytes())
    };
    write().map_err(|source| Error::Descriptors {
        call: "write",
        path: path.clone(),
        source,
    })
}

/// The streams that were pipes, each with the number of its descriptor.
pub fn load(directory: &Path) -> Result<Vec<(i32, String)>, Error> {
    let path = directory.join(FILE);
    let failed = |call: &'static str, source| Error::Descriptors {
        call,
        path: path.clone(),
        source,
    };
    let text = crate::files::read(&path).map_err(|error| failed("open", error))?;
    let streams: Option<Vec<String>> = serde_json::from_slice(&text).map_err(|error| failed("parse", error.into()))?;
    let numbered = (0..3).zip(streams.unwrap_or_default());
    Ok(numbered.filter(|(_, stream)| stream.contains("pipe:")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn streams_are_pipes_that_lead_outside() {
        // Not a shell: one moves its own streams about for a command's redirections.
        let mut cat = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let init = Pid::from_raw(cat.id().cast_signed());
        let streams = find(init, &[init]);
        assert!(
            streams[0].starts_with("pipe:[") && streams[2].starts_with("pipe:["),
            "{streams:?}"
        );
        assert_eq!(streams[1], "/dev/null");
        // With the reader of its stderr in the container, that is a pipe of the container's own.
        let streams = super::streams(&[init], &[init, Pid::this()]);
        assert_eq!([&*streams[0], &*streams[2]], ["/dev/null"; 2]);
        drop(cat.stdin.take());
        cat.wait().unwrap();
    }

    #[test]
    fn only_pipes_are_taken_over() {
        let dir = std::env::temp_dir().join(format!("proa-descriptors-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let streams = ["/dev/null", "pipe:[12]", "/x"].map(str::to_owned);
        save(&dir, &streams).unwrap();
        assert_eq!(load(&dir).unwrap(), [(1, "pipe:[12]".to_owned())]);
        std::fs::write(dir.join(FILE), "null").unwrap();
        assert!(load(&dir).unwrap().is_empty(), "runc writes this for none");
        std::fs::write(dir.join(FILE), "{").unwrap();
        let error = load(&dir).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("parse {}", dir.join(FILE).display())),
            "{error}"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
