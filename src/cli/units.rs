//! Durations and sizes as Go's callers write them.

use std::time::Duration;

/// Go's time.ParseDuration for what is not negative: `5s`, `1m30s`, `1.5h`, `100ms`, `0`.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|end| *end > 0)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    Duration::try_from_secs_f64(total).ok().filter(|_| !text.is_empty())
}

/// Bytes, as Docker's units package reads them: `512`, `64k`, `1.5g`, `2 MiB`; units are powers of 1024. `-1` is given back
/// as it is: unlimited.
pub fn bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.')? + 1;
    let (number, suffix) = text.split_at(end);
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix).to_ascii_lowercase();
    let number: f64 = number
        .parse()
        .ok()
        .filter(|number: &f64| *number >= 0.0 && number.is_finite())?;
    let unit = match suffix.as_str() {
        "" | "b" => "",
        _ => suffix
            .strip_suffix("ib")
            .or_else(|| suffix.strip_suffix('b'))
            .unwrap_or(&suffix),
    };
    let power = match unit {
        "" if matches!(suffix.as_str(), "" | "b") => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    Some((number * 1024_f64.powi(power)) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        for bad in ["", "5", "s", "-1s", "5x", "1s5", "1..5s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("512"), Some(512));
        assert_eq!(bytes("64k"), Some(64 << 10));
        assert_eq!(bytes("1.5g"), Some(3 << 29));
        assert_eq!(bytes("2 MiB"), Some(2 << 20));
        assert_eq!(bytes("2mb"), Some(2 << 20));
        assert_eq!(bytes("7b"), Some(7));
        assert_eq!(bytes("-1"), Some(-1));
        for bad in ["", "x", "-2", "5q", "5bb", "5ib", "5kx", "1e", "k"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
