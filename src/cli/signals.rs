//! Signals as runc's callers name them: `KILL`, `SIGKILL`, `sigkill`, `9`, and the real-time ones.

use nix::sys::signal::Signal;
use std::str::FromStr;

/// Not a signal. Worded as runc words it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown signal {0:?}")]
pub struct Unknown(String);

/// A signal's number. Numbers are not judged: the kernel refuses those that are none.
pub fn parse(text: &str) -> Result<i32, Unknown> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let (min, max) = proa_sys::signal::realtime();
    let realtime = |base: &str| name.strip_prefix(base).filter(|offset| !offset.is_empty());
    let found = match name {
        "RTMIN" => Some(min),
        "RTMAX" => Some(max),
        // Names of the same numbers that nix has not.
        "CLD" => Some(Signal::SIGCHLD as i32),
        "IOT" => Some(Signal::SIGABRT as i32),
        "POLL" => Some(Signal::SIGIO as i32),
        _ => match (realtime("RTMIN+"), realtime("RTMAX-")) {
            (Some(offset), _) => offset.parse::<u8>().ok().map(|offset| min + i32::from(offset)),
            (_, Some(offset)) => offset.parse::<u8>().ok().map(|offset| max - i32::from(offset)),
            _ => Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32),
        },
    };
    found
        .filter(|number| (1..=max).contains(number))
        .ok_or_else(|| Unknown(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings() {
        for text in ["KILL", "SIGKILL", "sigkill", "kill", "9", "SigKill"] {
            assert_eq!(parse(text), Ok(9), "{text}");
        }
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("winch"), Ok(28));
        assert_eq!(parse("SIGPOLL"), Ok(29));
        assert_eq!(parse("RTMIN+3"), Ok(parse("SIGRTMIN").unwrap() + 3));
        assert_eq!(parse("SIGRTMAX-1"), Ok(parse("RTMAX").unwrap() - 1));
    }

    #[test]
    fn others_are_refused_by_name() {
        for text in ["", "FOO", "SIG", "RTMIN+", "RTMIN+99", "RTMAX-99", "9x", "SIGSIGKILL"] {
            assert_eq!(parse(text).unwrap_err().to_string(), format!("unknown signal {text:?}"));
        }
    }
}
