//! Bounds the tables of a module. The engine has no option for it, as it has for memories; but a table can't grow beyond
//! the maximum that the module gives it, so that maximum is put into the module before the engine sees it.
//!
//! What isn't understood in a table section is an error here: a table that was overlooked would have no bound.
//!
//! Format: WebAssembly core specification 3.0, section 5.5.7 (table section).

use super::{Refusal, Section, Survey};

const SECTION: u8 = 4;
/// The longest table section that is read: some ten thousand tables, of which modules have one or two.
const SECTION_MAX: u64 = 64 * 1024;

/// A module whose tables were bounded.
#[derive(Debug, PartialEq, Eq)]
pub struct Bounded {
    /// The module.
    pub module: Vec<u8>,
    /// Up to this offset of the new module nothing that has an offset in messages was moved.
    pub from: u64,
    /// By how many bytes everything behind was moved.
    pub by: i64,
}

/// Bounds each table of `module`, of which `survey` tells, to `limit` elements. `None` if none can have more anyway.
pub fn bound(module: &[u8], survey: &Survey, limit: u32) -> Result<Option<Bounded>, Refusal> {
    let Some(section) = survey.tables else {
        return Ok(None);
    };
    let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
    let (start, body, end) = (at(section.start), at(section.body), at(section.end));
    let Some(content) = module.get(body..end) else {
        return Err(Refusal::Tables {
            what: "its end is missing",
            offset: section.start,
        });
    };
    let Some(content) = section_bounded(content, survey, limit)? else {
        return Ok(None);
    };
    let mut bounded = module[..start].to_vec();
    bounded.push(SECTION);
    write(&mut bounded, content.len() as u64);
    bounded.extend_from_slice(&content);
    let from = bounded.len() as u64;
    bounded.extend_from_slice(&module[end..]);
    let by = bounded.len() as i64 - module.len() as i64;
    Ok(Some(Bounded {
        module: bounded,
        from,
        by,
    }))
}

/// Refuses what [`bound`] would refuse, given only the table section's content.
pub fn check(section: &[u8], survey: &Survey, limit: u32) -> Result<(), Refusal> {
    section_bounded(section, survey, limit).map(drop)
}

/// Where the content of the table section starts and how long it is, if there is one that can be read at all.
pub fn place(survey: &Survey) -> Result<Option<(u64, usize)>, Refusal> {
    let Some(Section { body, end, .. }) = survey.tables else {
        return Ok(None);
    };
    match end - body {
        length if length <= SECTION_MAX => Ok(Some((body, length as usize))),
        _ => Err(Refusal::Tables {
            what: "a table section of this size",
            offset: body,
        }),
    }
}

/// The new content of the table section; `None` if the old one will do.
fn section_bounded(section: &[u8], survey: &Survey, limit: u32) -> Result<Option<Vec<u8>>, Refusal> {
    let Some((start, _)) = place(survey)? else {
        return Ok(None);
    };
    if survey.more_tables {
        return Err(Refusal::Tables {
            what: "a second table section",
            offset: start,
        });
    }
    let mut cursor = Cursor {
        bytes: section,
        at: 0,
        start,
    };
    let mut out = Vec::with_capacity(section.len() + 16);
    let mut changed = false;
    let count = cursor.number("the tables")?;
    write(&mut out, count);
    for _ in 0..count {
        // A table with an initial value (function references proposal) says so first.
        let with_value = cursor.peek() == Some(0x40);
        if with_value {
            out.extend_from_slice(cursor.take(2)?);
        }
        cursor.copy(&mut out, Cursor::reference)?;
        changed |= limits(&mut cursor, &mut out, limit)?;
        if with_value {
            cursor.copy(&mut out, Cursor::constant)?;
        }
    }
    match cursor.at == section.len() {
        true => Ok(changed.then_some(out)),
        false => Err(cursor.error("more than its tables")),
    }
}

/// Copies a table's limits, the maximum lowered to `limit` or added; says whether they changed.
fn limits(cursor: &mut Cursor<'_>, out: &mut Vec<u8>, limit: u32) -> Result<bool, Refusal> {
    // Bit 0: there is a maximum; bit 2: 64-bit indices. Others (shared) no engine has for tables.
    let flags = cursor.byte("a table's limits")?;
    if flags & !0b101 != 0 {
        return Err(cursor.error("a table's limits"));
    }
    let elements = cursor.number("a table's limits")?;
    if elements > limit.into() {
        return Err(Refusal::Table { elements, limit });
    }
    let most = match flags & 1 {
        0 => None,
        _ => Some(cursor.number("a table's limits")?),
    };
    out.push(flags | 1);
    write(out, elements);
    write(out, most.unwrap_or(u64::MAX).min(limit.into()));
    Ok(most.is_none_or(|most| most > limit.into()))
}

/// Appends a number as unsigned LEB128.
fn write(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the section starts in the module, for messages.
    start: u64,
}

impl<'a> Cursor<'a> {
    fn error(&self, what: &'static str) -> Refusal {
        let offset = self.start + self.at as u64;
        Refusal::Tables { what, offset }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, Refusal> {
        let byte = self.peek().ok_or_else(|| self.error(what))?;
        self.at += 1;
        Ok(byte)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let taken = self.bytes.get(self.at..self.at + count);
        let taken = taken.ok_or_else(|| self.error("a table"))?;
        self.at += count;
        Ok(taken)
    }

    /// An unsigned LEB128 number.
    fn number(&mut self, what: &'static str) -> Result<u64, Refusal> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error(what))
    }

    /// Copies what `read` reads.
    fn copy(&mut self, out: &mut Vec<u8>, read: fn(&mut Self) -> Result<(), Refusal>) -> Result<(), Refusal> {
        let from = self.at;
        read(self)?;
        out.extend_from_slice(&self.bytes[from..self.at]);
        Ok(())
    }

    /// A reference type: one byte, or `(ref ht)` and `(ref null ht)`.
    fn reference(&mut self) -> Result<(), Refusal> {
        match self.byte("a table's type")? {
            0x63 | 0x64 => self.number("a heap type").map(drop),
            0x60..0x80 => Ok(()),
            _ => Err(self.error("a table's type")),
        }
    }

    /// A constant expression of one instruction: `ref.null`, `ref.func` or `global.get`.
    fn constant(&mut self) -> Result<(), Refusal> {
        match self.byte("a table's initial value")? {
            0x23 | 0xd0 | 0xd2 => self.number("a table's initial value").map(drop)?,
            _ => return Err(self.error("a table's initial value")),
        }
        match self.byte("a table's initial value")? {
            0x0b => Ok(()),
            _ => Err(self.error("a table's initial value")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::survey;
    use super::*;
    use std::io::Cursor as Bytes;

    /// A module with this table section (without its size) between a type section and a custom one.
    fn module(content: &[u8]) -> Vec<u8> {
        let mut module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0".to_vec();
        module.push(SECTION);
        write(&mut module, content.len() as u64);
        module.extend_from_slice(content);
        module.extend_from_slice(b"\0\x02\x01x");
        module
    }

    fn bounded(content: &[u8], limit: u32) -> Result<Option<Bounded>, Refusal> {
        let module = module(content);
        let survey = survey(Bytes::new(&module), module.len() as u64).unwrap();
        let section = survey.tables.unwrap();
        let checked = check(&module[section.body as usize..section.end as usize], &survey, limit);
        let bounded = bound(&module, &survey, limit);
        assert_eq!(checked.is_ok(), bounded.is_ok(), "both say the same");
        bounded
    }

    #[test]
    fn a_maximum_is_added_or_lowered() {
        let cases: [(&[u8], &[u8]); 5] = [
            (b"\x01\x70\0\x05", b"\x01\x70\x01\x05\xe8\x07"),
            (b"\x01\x70\x01\x05\xff\xff\x03", b"\x01\x70\x01\x05\xe8\x07"),
            (
                b"\x02\x70\x01\x05\x06\x6f\0\0",
                b"\x02\x70\x01\x05\x06\x6f\x01\0\xe8\x07",
            ),
            (b"\x01\x63\x00\x04\x05", b"\x01\x63\x00\x05\x05\xe8\x07"),
            (
                b"\x01\x40\0\x70\0\x05\xd0\x70\x0b",
                b"\x01\x40\0\x70\x01\x05\xe8\x07\xd0\x70\x0b",
            ),
        ];
        for (before, after) in cases {
            let result = bounded(before, 1000).unwrap().unwrap();
            assert_eq!(result.module, module(after));
            assert_eq!(result.by, after.len() as i64 - before.len() as i64);
            let rest = &result.module[result.from as usize..];
            assert_eq!(rest, b"\0\x02\x01x", "what lies behind is as it was");
        }
    }

    #[test]
    fn what_is_small_enough_stays() {
        assert_eq!(bounded(b"\x01\x70\x01\x05\xe8\x07", 1000).unwrap(), None);
        assert_eq!(bounded(b"\0", 0).unwrap(), None);
    }

    #[test]
    fn what_starts_above_is_refused_by_name() {
        let text = bounded(b"\x01\x70\0\xe9\x07", 1000).unwrap_err().to_string();
        assert!(
            text.contains("1001 elements") && text.contains("proa.wasm/table-elements"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let strange: [&[u8]; 8] = [
            b"",
            b"\x02\x70\0\x05",
            b"\x01\x70\x02\x05",
            b"\x01\x05\0\x05",
            b"\x01\x70\0\x05\x05",
            b"\x01\x40\0\x70\0\x05\x41\x05\x0b",
            b"\x01\x70\0\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ];
        for content in strange {
            let text = bounded(content, 1000).unwrap_err().to_string();
            assert!(text.contains("can't be bounded"), "{content:?}: {text}");
        }
    }

    #[test]
    fn a_second_table_section_is_refused() {
        let mut module = module(b"\x01\x70\0\x05");
        module.extend_from_slice(b"\x04\x04\x01\x70\0\x05");
        let survey = survey(Bytes::new(&module), module.len() as u64).unwrap();
        assert!(matches!(bound(&module, &survey, 1000), Err(Refusal::Tables { .. })));
    }

    #[test]
    fn mutated_sections_are_bounded_or_refused() {
        let seed = b"\x03\x70\0\x05\x40\0\x63\x00\x04\x05\xd0\x70\x0b\x6f\x01\0\xff\xff\x03";
        let mut next = crate::fuzz::numbers(7);
        for _ in 0..20_000 {
            let mut content = seed.to_vec();
            for _ in 0..1 + next() % 4 {
                let at = next() as usize % content.len();
                content[at] = next() as u8;
            }
            content.truncate(content.len() - next() as usize % 3);
            if let Ok(Some(result)) = bounded(&content, 1000) {
                let survey = survey(Bytes::new(&result.module), result.module.len() as u64).unwrap();
                assert_eq!(
                    bound(&result.module, &survey, 1000).unwrap(),
                    None,
                    "bounded once is bounded"
                );
            }
        }
    }
}
