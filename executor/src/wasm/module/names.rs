//! Which functions of a module instructions lie in, and what they are called: the code section, and the custom section `name`
//! of those who kept it. Bounded like the rest of this reader; what it can't read it leaves out.
//!
//! Format: WebAssembly core specification 3.0, sections 5.5.13 (code section) and 7.4.1 (name section).

use super::{BufReader, Read, Reader, Refusal, Seek, custom_name};

/// The names of the functions are in this subsection.
const FUNCTION_NAMES: u8 = 1;

/// A function of a module, as a backtrace shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its index, imported functions included.
    pub index: u32,
    /// Its name, if the module has it: whatever its author wrote, but no control characters.
    pub name: Option<String>,
}

/// What a module says of the functions with the indices `wanted`, in their order.
pub fn functions<R: Read + Seek>(source: R, size: u64, wanted: &[u32]) -> Vec<Function> {
    let mut found: Vec<Function> = wanted
        .iter()
        .map(|index| Function {
            index: *index,
            name: None,
        })
        .collect();
    let read = |reader: &mut Reader<R>, id, end| match id {
        0 if custom_name(reader, end)? == b"name" => names(reader, end, &mut found),
        _ => Ok(()),
    };
    // What was found until it broke off is what there is.
    sections(source, size, read).ok();
    found
}

/// The index of the function in whose body the instruction at `offset` of the file lies.
pub fn function_at<R: Read + Seek>(source: R, size: u64, offset: u64) -> Option<u32> {
    let (mut imported, mut found) = (0u64, None);
    let read = |reader: &mut Reader<R>, id, end| match id {
        2 => {
            imported = imported_functions(reader, end)?;
            Ok(())
        }
        10 if (reader.at..end).contains(&offset) => {
            for index in 0..reader.number("the functions")? {
                let length = reader.number("a function's size")?;
                let next = reader.at + length;
                if next > end {
                    break;
                }
                if offset < next {
                    found = u32::try_from(imported + index).ok();
                    break;
                }
                reader.go(next)?;
            }
            Ok(())
        }
        _ => Ok(()),
    };
    // As above.
    sections(source, size, read).ok();
    found
}

/// Calls `read` with the reader at the content of each section, its identity and its end.
fn sections<R: Read + Seek>(
    source: R,
    size: u64,
    mut read: impl FnMut(&mut Reader<R>, u8, u64) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut reader = Reader {
        source: BufReader::new(source),
        at: 0,
        size,
    };
    reader.go(8)?;
    while reader.at < size {
        let id = reader.byte("a section")?;
        let end = reader.number("a section's size")?.saturating_add(reader.at);
        if end > size {
            break;
        }
        read(&mut reader, id, end)?;
        reader.go(end)?;
    }
    Ok(())
}

fn imported_functions<R: Read + Seek>(reader: &mut Reader<R>, end: u64) -> Result<u64, Refusal> {
    let mut functions = 0;
    super::each_import(reader, end, |_, kind, _| functions += u64::from(kind == 0))?;
    Ok(functions)
}

fn names<R: Read + Seek>(reader: &mut Reader<R>, end: u64, found: &mut [Function]) -> Result<(), Refusal> {
    while reader.at < end {
        let id = reader.byte("a subsection")?;
        let next = reader.number("a subsection's size")?.saturating_add(reader.at);
        if next > end {
            break;
        }
        if id == FUNCTION_NAMES {
            for _ in 0..reader.number("the names")? {
                let index = reader.number("a function")?;
                let length = reader.number("a function's name")?;
                let name = reader.name(length, next)?;
                for function in found.iter_mut().filter(|function| u64::from(function.index) == index) {
                    function.name = readable(&name);
                }
            }
        }
        reader.go(next)?;
    }
    Ok(())
}

/// A name for a terminal and a log.
fn readable(name: &[u8]) -> Option<String> {
    let visible = |letter: char| if crate::text::is_obeyed(letter) { '?' } else { letter };
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).chars().map(visible).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// Two imported functions, three of its own, names of some.
    fn module() -> Vec<u8> {
        let sections: [(u8, &[u8]); 5] = [
            (1, b"\x01\x60\0\0"),
            (2, b"\x03\x01w\x01a\0\0\x01w\x01m\x02\0\x01\x01w\x01b\0\0"),
            (3, b"\x03\0\0\0"),
            (10, b"\x03\x02\0\x0b\x04\0\x01\x01\x0b\x03\0\0\x0b"),
            (
                0,
                b"\x04name\0\x02\x01x\x01\x12\x04\x01\x01b\x02\x05outer\x03\x03\xff\n\0\x04\0",
            ),
        ];
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        for (id, content) in sections {
            module.push(id);
            module.push(content.len() as u8);
            module.extend_from_slice(content);
        }
        module
    }

    fn at(module: &[u8], offset: usize) -> Option<u32> {
        function_at(Cursor::new(module), module.len() as u64, offset as u64)
    }

    #[test]
    fn an_offset_leads_to_its_function() {
        let module = module();
        let code = module.windows(4).position(|four| four == b"\x03\x02\0\x0b").unwrap();
        // The second body's first instruction, and the third's.
        assert_eq!(at(&module, code + 2), Some(2));
        assert_eq!(at(&module, code + 6), Some(3));
        assert_eq!(at(&module, code + 11), Some(4));
        assert_eq!(at(&module, code + 13), None, "the next section");
        assert_eq!(at(&module, 3), None);
        assert_eq!(at(&module, usize::MAX), None);
    }

    #[test]
    fn names_are_found_and_cleaned() {
        let module = module();
        let found = functions(Cursor::new(&module), module.len() as u64, &[3, 2, 9, 4, 2]);
        let names: Vec<_> = found.iter().map(|one| (one.index, one.name.as_deref())).collect();
        let expected = [
            (3, Some("\u{fffd}??")),
            (2, Some("outer")),
            (9, None),
            (4, None),
            (2, Some("outer")),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn mutated_modules_do_no_harm() {
        let seed = module();
        let mut next = crate::fuzz::numbers(11);
        for _ in 0..20_000 {
            let mut module = seed.clone();
            for _ in 0..1 + next() % 4 {
                let at = 8 + next() as usize % (module.len() - 8);
                module[at] = next() as u8;
            }
            module.truncate(module.len() - next() as usize % 9);
            let size = module.len() as u64;
            let found = functions(Cursor::new(&module), size, &[0, 3, 70000]);
            assert_eq!(found.len(), 3);
            function_at(Cursor::new(&module), size, next() % 120);
        }
    }
}
