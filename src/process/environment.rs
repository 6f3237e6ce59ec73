//! `process.env`: the pure part, and `HOME` from the container's /etc/passwd.

use super::Error;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;

/// The environment as the guest gets it: of a repeated name the last value, no empty `HOME` (which is looked up instead).
pub(super) fn resolve(env: &[String]) -> Result<Vec<String>, Error> {
    let mut seen = HashSet::with_capacity(env.len());
    let mut kept = Vec::with_capacity(env.len());
    for (index, variable) in env.iter().enumerate().rev() {
        let invalid = |problem: &str| {
            Err(Error::field(
                format!("process.env[{index}]"),
                format!("invalid environment variable: {problem}"),
            ))
        };
        let Some((name, value)) = variable.split_once('=') else {
            return invalid("missing '='");
        };
        if name.is_empty() {
            return invalid("name cannot be empty");
        }
        if variable.contains('\0') {
            return invalid(&format!("{name:?} contains nul byte (\\x00)"));
        }
        if seen.insert(name) && !(name == "HOME" && value.is_empty()) {
            kept.push(variable.clone());
        }
    }
    kept.reverse();
    Ok(kept)
}

/// Adds `HOME` of user `uid` if `env` has none: from /etc/passwd of the process's root, else `/`, as runc does.
pub(super) fn add_home(env: &mut Vec<String>, uid: u32) {
    if env.iter().any(|variable| variable.starts_with("HOME=")) {
        return;
    }
    let home = open_passwd().and_then(|passwd| find_home(BufReader::new(passwd), uid));
    env.push(format!("HOME={}", home.as_deref().unwrap_or("/")));
}

/// The file is the container's: it may be a pipe that never ends, or no file at all.
fn open_passwd() -> Option<impl Read> {
    const LONGEST: u64 = 16 << 20;
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open("/etc/passwd")
        .ok()?;
    file.metadata().ok()?.is_file().then(|| file.take(LONGEST))
}

/// The sixth field of the first line of `passwd` with `uid` (passwd(5)). Lines that are longer than paths and names can make them
/// are passed over: how long they are is the image's choice.
fn find_home(mut passwd: impl BufRead, uid: u32) -> Option<String> {
    const LINE_MAX: u64 = 64 << 10;
    let mut line = Vec::new();
    loop {
        line.clear();
        match passwd.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return None,
            Ok(length) if length as u64 == LINE_MAX && !line.ends_with(b"\n") => {
                passwd.skip_until(b'\n').ok()?;
            }
            Ok(_) => {
                if let Some(home) = home_in(line.strip_suffix(b"\n").unwrap_or(&line), uid) {
                    return Some(home);
                }
            }
        }
    }
}

fn home_in(line: &[u8], uid: u32) -> Option<String> {
    let mut fields = std::str::from_utf8(line).ok()?.split(':').skip(2);
    (fields.next()?.parse::<u32>().ok()? == uid).then(|| fields.nth(2).map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(variables: &[&str]) -> Result<Vec<String>, Error> {
        resolve(&variables.iter().map(|v| v.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_value_of_a_name_wins_and_keeps_its_place() {
        assert_eq!(env(&["A=1", "B=2", "A=3", "C="]).unwrap(), ["B=2", "A=3", "C="]);
        assert_eq!(env(&["X=a=b"]).unwrap(), ["X=a=b"]);
    }

    #[test]
    fn an_empty_home_is_as_good_as_none() {
        assert_eq!(env(&["HOME=", "A=1"]).unwrap(), ["A=1"]);
        assert_eq!(env(&["HOME=/x", "HOME="]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_variable_is_refused_by_index() {
        for (variables, words) in [
            (["A=1", "B"], "missing '='"),
            (["A=1", "=2"], "cannot be empty"),
            (["A=1", "B=\0"], "nul"),
        ] {
            let error = env(&variables).unwrap_err().to_string();
            assert!(
                error.starts_with("process.env[1]: invalid environment variable") && error.contains(words),
                "{error}"
            );
        }
    }

    #[test]
    fn home_is_the_sixth_field_of_the_first_line_with_the_uid() {
        let passwd = "# x\nroot:x:0:0:root:/root:/bin/sh\nbroken\nu:x:7:7::/home/u:/bin/sh\nv:x:7:7::/home/v:\nw:x:8:8";
        let home = |uid| find_home(passwd.as_bytes(), uid);
        assert_eq!(home(0).as_deref(), Some("/root"));
        assert_eq!(home(7).as_deref(), Some("/home/u"));
        assert_eq!(home(8), None);
        assert_eq!(home(9), None);
    }

    #[test]
    fn lines_without_an_end_are_passed_over() {
        let long = format!("u:x:7:7:{}:/home/u:\nv:x:7:7::/home/v:\n", "x".repeat(100_000));
        assert_eq!(find_home(long.as_bytes(), 7).as_deref(), Some("/home/v"));
        assert_eq!(find_home("x".repeat(200_000).as_bytes(), 7), None);
    }
}
