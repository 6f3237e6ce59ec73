//! Text of others on its way to a terminal, a log or a table: names in modules and images, what an engine or a file says.
//!
//! A terminal obeys some characters instead of showing them, and could be made to hide or forge what an operator reads, or to
//! type for them. They become escapes as Rust (or JSON) writes them. Whoever writes text to stdout, stderr or the log calls one
//! of these functions, whatever the text is made of: which parts of it are somebody else's is not asked.

use std::borrow::Cow;

/// Whether a terminal obeys the character: the control characters (C0, DEL and C1 of ECMA-48), the separators of lines and
/// paragraphs, and what changes the direction of text (Unicode Standard Annex 9).
pub fn is_obeyed(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// For a part of a line: `\n` and `\t` are escaped, too.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_obeyed, |letter| letter.escape_default().to_string())
}

/// For whole lines: their ends and tabs stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, is_obeyed_in_lines, |letter| letter.escape_default().to_string())
}

/// For a JSON document, which stays the same document: such characters can only be in its strings.
pub fn json(document: &str) -> Cow<'_, str> {
    escaped(document, is_obeyed_in_lines, |letter| {
        format!("\\u{:04x}", u32::from(letter))
    })
}

fn is_obeyed_in_lines(letter: char) -> bool {
    is_obeyed(letter) && !matches!(letter, '\n' | '\t')
}

fn escaped(text: &str, which: impl Fn(char) -> bool, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(&which) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match which(letter) {
            true => shown += &escape(letter),
            false => shown.push(letter),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        let text = "a\x1b[2J\u{9b}1m\x7f\u{202e}\r\n\tz é 漢 \u{1f600}";
        assert_eq!(
            line(text),
            "a\\u{1b}[2J\\u{9b}1m\\u{7f}\\u{202e}\\r\\n\\tz é 漢 \u{1f600}"
        );
        assert_eq!(
            lines(text),
            "a\\u{1b}[2J\\u{9b}1m\\u{7f}\\u{202e}\\r\n\tz é 漢 \u{1f600}"
        );
        assert!(matches!(line("plain é"), Cow::Borrowed(_)));
        for letter in (0..0x3000).filter_map(char::from_u32) {
            let text = letter.to_string();
            assert!(!line(&text).chars().any(is_obeyed), "{letter:?}");
            // As once is enough, more than once does no harm.
            assert_eq!(line(&line(&text)), line(&text));
        }
    }

    #[test]
    fn a_json_document_stays_the_same() {
        assert_eq!(
            json("{\n\t\"a\": \"\u{9b}2J\u{202e}\x7f\\u001b\"\n}"),
            "{\n\t\"a\": \"\\u009b2J\\u202e\\u007f\\u001b\"\n}"
        );
    }
}
