//! A fuzzer's bytes as decisions.

use serde_json::Value;

/// What is left of the input; zeros, once there is no more.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// At most `size` bytes.
    pub fn take(&mut self, size: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(size.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// One of a few.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// Any number, small ones and those at the limits of the types more often than others.
    pub fn number(&mut self) -> i64 {
        let wide = |bytes: &[u8]| bytes.iter().fold(0, |value: i64, byte| value << 8 | i64::from(*byte));
        match self.byte() % 4 {
            0 => self.byte().into(),
            1 => -i64::from(self.byte()),
            2 => (1i64.wrapping_shl(self.byte().into())).wrapping_sub(1),
            _ => wide(self.take(8)),
        }
    }

    /// Text of up to 255 bytes.
    pub fn text(&mut self) -> String {
        let size = self.byte();
        String::from_utf8_lossy(self.take(size.into())).into_owned()
    }

    /// `document` with a few places of it changed: what the input says of a place is which of its members to enter, or by
    /// what to replace it. A document that stays nearly valid gets further than one that any byte of it may break.
    pub fn edit(&mut self, document: &mut Value) {
        for _ in 0..8 {
            if self.0.is_empty() {
                return;
            }
            self.edit_one(document);
        }
    }

    fn edit_one(&mut self, mut place: &mut Value) {
        loop {
            let count = match place {
                Value::Object(members) => members.len(),
                Value::Array(items) => items.len(),
                _ => 0,
            };
            let chosen = usize::from(self.byte());
            if chosen >= count {
                break;
            }
            place = match place {
                Value::Object(members) => members.values_mut().nth(chosen).expect("counted"),
                Value::Array(items) => &mut items[chosen],
                _ => unreachable!("it has no members"),
            };
        }
        let kind = self.byte() % 12;
        match (kind, place) {
            (0, place) => *place = Value::Null,
            (1, place) => *place = true.into(),
            (2, place) => *place = Value::Array(Vec::new()),
            (3, place) => *place = serde_json::json!({}),
            (4 | 5, place) => *place = self.number().into(),
            (6, Value::Object(members)) => {
                let (key, value) = (self.text(), self.text());
                members.insert(key, value.into());
            }
            (7, Value::Array(items)) if items.len() < 64 => items.extend(items.last().cloned()),
            (8, Value::Array(items)) => drop(items.pop()),
            // A part of a text, so that prefixes and separators survive.
            (9, Value::String(text)) => {
                let at = usize::from(self.byte()) % (text.len() + 1);
                let with = self.text();
                if text.is_char_boundary(at) {
                    text.insert_str(at, &with);
                }
            }
            (10, place) => *place = "x".repeat(usize::from(self.byte()) * 20).into(),
            (_, place) => *place = self.text().into(),
        }
    }
}
