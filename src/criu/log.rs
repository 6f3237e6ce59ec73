//! CRIU's own log, which says why it failed.

use std::path::Path;

/// What CRIU finds out about every host and complains of, and goes on.
const NOISE: [&str; 2] = ["Unable to create tun", "Can't setup RLIMIT_NOFILE"];

/// How many lines before one with an error are shown with it.
const BEFORE: usize = 5;

/// Quotes what `path` says of errors to our log, as runc does, and returns the first of them: the others follow from it.
pub fn quote(path: &Path) -> Option<String> {
    let text = match crate::files::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            tracing::warn!("open {}: {error}", path.display());
            return None;
        }
    };
    let (quoted, first) = errors(&text);
    if !quoted.is_empty() {
        tracing::warn!("--- Quoting {path:?}");
        quoted.iter().for_each(|line| tracing::warn!("{line}"));
        tracing::warn!("---");
    }
    first
}

/// Each line with `Error`, numbered, and what goes before it; and the message of the first one that is no [`NOISE`].
fn errors(text: &str) -> (Vec<String>, Option<String>) {
    let lines: Vec<&str> = text.lines().collect();
    let (mut quoted, mut next, mut first) = (Vec::new(), 0, None);
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("Error")) {
        let from = at.saturating_sub(BEFORE);
        if !quoted.is_empty() && from > next {
            quoted.push("...".to_owned());
        }
        for (number, line) in lines.iter().enumerate().take(at + 1).skip(from.max(next)) {
            if !line.is_empty() {
                quoted.push(format!("{}:{line}", number + 1));
            }
        }
        next = at + 1;
        if first.is_none() && !NOISE.iter().any(|words| line.contains(words)) {
            // Without the time stamp.
            first = line.find("Error").map(|at| line[at..].to_owned());
        }
    }
    (quoted, first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_quoted_with_what_leads_to_them() {
        let text =
            "(0.1) 1\n2\n3\n4\n5\n6\n(0.2) Error (x.c:1): first\n8\n\n10\n11\n12\n13\n14\n15\nError: Dumping FAILED.\n";
        let (quoted, first) = errors(text);
        assert_eq!(quoted[0], "2:2");
        assert_eq!(quoted[5], "7:(0.2) Error (x.c:1): first");
        assert_eq!(quoted[6], "...");
        assert_eq!(quoted[7], "11:11");
        assert_eq!(quoted.last().unwrap(), "16:Error: Dumping FAILED.");
        assert_eq!(first.unwrap(), "Error (x.c:1): first");
        assert_eq!(errors("fine\n"), (Vec::new(), None));
    }

    #[test]
    fn neighbours_are_quoted_once() {
        let (quoted, first) = errors("1\nError: a\n3\nError: b\n");
        assert_eq!(quoted, ["1:1", "2:Error: a", "3:3", "4:Error: b"]);
        assert_eq!(first.unwrap(), "Error: a");
    }
}
