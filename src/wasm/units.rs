//! Durations, sizes and rules as people write them.

use proa_executor::policy::Rule;
use std::time::Duration;

/// `5s`, `250ms`, `2m`, `1h`; a bare number counts seconds. The error says what was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = split(text);
    let number: u64 = digits.parse().map_err(|_| malformed_duration(text))?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(malformed_duration(text)),
    };
    let total = number
        .checked_mul(milliseconds)
        .ok_or_else(|| malformed_duration(text))?;
    Ok(Duration::from_millis(total))
}

fn malformed_duration(text: &str) -> String {
    format!("{text:?} is not a duration (like 250ms, 5s, 2m or 1h)")
}

/// Bytes: `64MiB`, `1GiB`, `512KiB`; a bare number counts bytes. The error says what was expected.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = split(text);
    let malformed = || format!("{text:?} is not a size (like 512KiB, 64MiB or 1GiB)");
    let number: u64 = digits.parse().map_err(|_| malformed())?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(malformed()),
    };
    number.checked_mul(1 << shift).ok_or_else(malformed)
}

/// Rules of what sockets may do; `listen` tells which direction they are for.
pub fn rules<'a>(texts: impl Iterator<Item = &'a str>, listen: bool) -> Result<Vec<Rule>, String> {
    let rules: Vec<Rule> = texts
        .map(|text| {
            text.parse()
                .map_err(|error: proa_executor::policy::rule::Error| error.to_string())
        })
        .collect::<Result<_, _>>()?;
    match listen && rules.contains(&Rule::Nameservers) {
        true => Err("\"dns\": names are asked, which is for connect and not for listen".to_owned()),
        false => Ok(rules),
    }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("5", 5_000),
            ("5s", 5_000),
            ("2 m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in [
            "",
            "s",
            "-1s",
            "1.5s",
            "5 weeks",
            "99999999999999999999h",
            "18446744073709551615h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", 0),
            ("17B", 17),
            ("512KiB", 512 << 10),
            ("64 MiB", 64 << 20),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "MiB", "1MB", "18446744073709551615GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
