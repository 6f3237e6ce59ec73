//! Values of systemd properties as users write them in annotations: a subset of GVariant's text format.
//!
//! Source: "GVariant Text Format" of the GLib manual, as far as D-Bus types without dictionaries go: `true`, `5`,
//! `uint64 5`, `'text'`, `['a', 'b']`, `@as []`, `(1, 'x')`, `<'v'>`, `objectpath '/x'`, `b'bytes'`.

use super::dbus::Value;

/// Parses all of `text`; `None` if it is not a value of that format.
pub(super) fn parse(text: &str) -> Option<Value> {
    let mut parser = Parser {
        rest: text.trim(),
        depth: 0,
    };
    let value = parser.value(None)?;
    parser.rest.trim().is_empty().then_some(value)
}

/// As deep as containers may lie in each other in a D-Bus message (D-Bus specification, "Message Protocol"): 32 arrays and 32
/// structures. What is deeper could only be refused by systemd, and would first take all of the stack here.
const MAX_DEPTH: usize = 64;

/// The length of a signature is one byte.
const MAX_SIGNATURE: usize = 255;

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    /// Takes `token` if it is next.
    fn eat(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Takes letters, digits and what numbers are made of.
    fn word(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    /// A value, of the type with this signature if one is wanted.
    fn value(&mut self, wanted: Option<&str>) -> Option<Value> {
        if self.depth > MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let value = self.value_here(wanted);
        self.depth -= 1;
        value.filter(|value| value.signature().len() <= MAX_SIGNATURE)
    }

    fn value_here(&mut self, wanted: Option<&str>) -> Option<Value> {
        self.rest = self.rest.trim_start();
        if self.eat("@") {
            let end = self.rest.find(char::is_whitespace)?;
            let (signature, rest) = self.rest.split_at(end);
            self.rest = rest;
            return self.value(Some(signature));
        }
        if self.eat("[") {
            let mut values = self.list("]", wanted.and_then(|wanted| wanted.strip_prefix('a')))?;
            let element = match (values.first(), wanted.and_then(|wanted| wanted.strip_prefix('a'))) {
                (_, Some(element)) => element.to_owned(),
                (Some(first), None) => first.signature(),
                (None, None) => return None,
            };
            values.retain(|value| value.signature() == element);
            return Some(Value::Array(element, values));
        }
        if self.eat("(") {
            return Some(Value::Struct(self.list(")", None)?));
        }
        if self.eat("<") {
            let value = self.value(None)?;
            return self.eat(">").then(|| Value::Variant(Box::new(value)));
        }
        if self.rest.starts_with("b'") || self.rest.starts_with("b\"") {
            self.eat("b");
            let mut bytes: Vec<Value> = self.string()?.into_bytes().into_iter().map(Value::Byte).collect();
            bytes.push(Value::Byte(0));
            return Some(Value::Array("y".into(), bytes));
        }
        if self.rest.starts_with(['\'', '"']) {
            let text = self.string()?;
            return match wanted {
                None | Some("s") => Some(Value::Str(text)),
                Some("o") => Some(Value::Path(text)),
                Some("g") => Some(Value::Signature(text)),
                Some(_) => None,
            };
        }
        let word = self.word();
        match type_named(word) {
            Some(signature) => self.value(Some(signature)),
            None => scalar(word, wanted),
        }
    }

    /// Values separated by commas up to `end`; all of one type.
    fn list(&mut self, end: &str, element: Option<&str>) -> Option<Vec<Value>> {
        let mut values: Vec<Value> = Vec::new();
        while !self.eat(end) {
            if !values.is_empty() && !self.eat(",") {
                return None;
            }
            // A tuple may end with a comma.
            if self.eat(end) {
                break;
            }
            // The first element's type holds for the rest: `[uint64 1, 2]`.
            let first = values.first().filter(|_| end == "]").map(Value::signature);
            let value = self.value(element.or(first.as_deref()))?;
            if first.is_some_and(|first| first != value.signature()) {
                return None;
            }
            values.push(value);
        }
        Some(values)
    }

    /// A quoted string with C's escapes.
    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let mut chars = self.rest[1..].char_indices();
        let mut text = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.rest = &self.rest[1 + at + 1..];
                    return Some(text);
                }
                '\\' => text.push(match chars.next()?.1 {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'a' => '\x07',
                    'b' => '\x08',
                    'f' => '\x0c',
                    'v' => '\x0b',
                    other => other,
                }),
                c => text.push(c),
            }
        }
        None
    }
}

/// GVariant's type keywords.
fn type_named(word: &str) -> Option<&'static str> {
    Some(match word {
        "boolean" => "b",
        "byte" => "y",
        "int16" => "n",
        "uint16" => "q",
        "int32" => "i",
        "uint32" => "u",
        "int64" => "x",
        "uint64" => "t",
        "double" => "d",
        "string" => "s",
        "objectpath" => "o",
        "signature" => "g",
        _ => return None,
    })
}

fn scalar(word: &str, wanted: Option<&str>) -> Option<Value> {
    let wanted = match (wanted, word) {
        (Some(wanted), _) => wanted,
        (None, "true" | "false") => "b",
        (None, word) if word.contains('.') => "d",
        (None, _) => "i",
    };
    let number = || match word.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16).ok(),
        None => word.parse::<i128>().ok(),
    };
    Some(match wanted {
        "b" => Value::Bool(word.parse().ok()?),
        "y" => Value::Byte(number()?.try_into().ok()?),
        "n" => Value::I16(number()?.try_into().ok()?),
        "q" => Value::U16(number()?.try_into().ok()?),
        "i" => Value::I32(number()?.try_into().ok()?),
        "u" => Value::U32(number()?.try_into().ok()?),
        "x" => Value::I64(number()?.try_into().ok()?),
        "t" => Value::U64(number()?.try_into().ok()?),
        "d" => Value::Double(word.parse().ok()?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!(parse("true"), Some(Value::Bool(true)));
        assert_eq!(parse("uint64 123456789"), Some(Value::U64(123_456_789)));
        assert_eq!(parse(" 'inactive-or-failed' "), Some(Value::str("inactive-or-failed")));
        assert_eq!(parse("5"), Some(Value::I32(5)));
        assert_eq!(parse("0x10"), Some(Value::I32(16)));
        assert_eq!(parse("0.5"), Some(Value::Double(0.5)));
        assert_eq!(parse("byte 255"), Some(Value::Byte(255)));
        let units = vec![Value::str("a.service"), Value::str("it's.service")];
        assert_eq!(
            parse(r#"['a.service', "it's.service"]"#),
            Some(Value::Array("s".into(), units))
        );
        assert_eq!(parse("@as []"), Some(Value::Array("s".into(), vec![])));
        assert_eq!(
            parse("[uint64 1, 2]"),
            Some(Value::Array("t".into(), vec![Value::U64(1), Value::U64(2)]))
        );
        assert_eq!(
            parse("(1, 'x')"),
            Some(Value::Struct(vec![Value::I32(1), Value::str("x")]))
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(32)).is_some());
        assert_eq!(parse(&nested(100_000)), None);
        assert_eq!(parse(&"uint64 ".repeat(100_000)), None);
        assert_eq!(parse(&format!("({})", "1,".repeat(300))), None);
        assert_eq!(parse(&format!("<({})>", "1,".repeat(300))), None);
        assert_eq!(parse(&"@s ".repeat(100_000)), None);
    }

    #[test]
    fn what_is_no_value() {
        for text in [
            "",
            "[]",
            "'open",
            "[1, 'a']",
            "uint64 -1",
            "byte 256",
            "true false",
            "nonsense",
            "[1 2]",
            "@",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
