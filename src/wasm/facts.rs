//! What a WebAssembly binary says about itself, for people: nothing here decides anything.
//!
//! It is read on the host, outside every container, so what is kept of it is bounded, whatever the module's author wrote.

use proa_executor::aot::Hashing;
use proa_executor::from_start::FromStart;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use wasmparser::{BinaryReaderError, Encoding, ExternalKind, KnownCustom, Parser, Payload, TypeRef};

/// The bytes of a file that are looked at. Its digest and size are of all of it.
const READ_MAX: u64 = 128 << 20;
/// The most entries of all lists together.
const LISTED_MAX: usize = 16 << 10;
/// The longest name; of a longer one, so many bytes are kept.
const NAME_MAX: usize = 1024;

/// The facts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Facts {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// A component, which is none of the modules that can be run.
    pub component: bool,
    /// What is imported, by module.
    pub imports: BTreeMap<String, Vec<Item>>,
    /// What is exported.
    pub exports: Vec<Item>,
    /// The linear memories, imported ones first.
    pub memories: Vec<Limits>,
    /// The tables, imported ones first.
    pub tables: Vec<Limits>,
    /// Functions that are defined.
    pub functions: u32,
    /// Guest code runs when it is instantiated.
    pub start_section: bool,
    /// It has the names of its functions, for backtraces.
    pub names: bool,
    /// Features that its producer lists (custom section `target_features`).
    pub features: BTreeSet<String>,
    /// What it was made with (custom section `producers`).
    pub producers: BTreeSet<String>,
    /// The names of all custom sections.
    pub custom_sections: BTreeSet<String>,
    /// It carries code that was compiled ahead of time.
    pub compiled_code: bool,
    /// How many entries there are that none of the lists has, as they are too many.
    pub left_out: u64,
    /// How many were put into the lists.
    #[serde(skip)]
    listed: usize,
    /// Where it can't be read any further, and why.
    pub malformed: Option<String>,
}

/// An import or export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// function, table, memory, global or tag.
    pub kind: &'static str,
}

/// How large a memory (in its pages) or table (in elements) is at first, and may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// At first.
    pub min: u64,
    /// At most, if the module says.
    pub max: Option<u64>,
    /// Shared between threads.
    pub shared: bool,
    /// With 64-bit addresses.
    pub wide: bool,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.min)?;
        match self.max {
            Some(max) => write!(f, ", at most {max}")?,
            None => write!(f, ", no bound of its own")?,
        }
        let also = [(self.shared, ", shared"), (self.wide, ", 64-bit")];
        also.iter()
            .filter(|(is, _)| *is)
            .try_for_each(|(_, text)| f.write_str(text))
    }
}

impl Facts {
    /// Reads an open file from its beginning.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut hashing = Hashing::new(FromStart::new(file));
        let mut bytes = Vec::new();
        hashing.by_ref().take(READ_MAX).read_to_end(&mut bytes)?;
        let (digest, size) = hashing.finish()?;
        let mut facts = Self {
            size,
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            ..Self::default()
        };
        if let Err(error) = facts.parse(&bytes) {
            facts.malformed = Some(match size {
                0..=READ_MAX => error.to_string(),
                _ => format!("only the first {READ_MAX} bytes are looked at"),
            });
        }
        Ok(facts)
    }

    fn parse(&mut self, bytes: &[u8]) -> Result<(), BinaryReaderError> {
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::Version {
                    encoding: Encoding::Component,
                    ..
                } => {
                    // What is in it is of no use to who can't run it.
                    self.component = true;
                    return Ok(());
                }
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        self.import(import?);
                    }
                }
                Payload::FunctionSection(functions) => self.functions = functions.count(),
                Payload::TableSection(tables) => {
                    for table in tables {
                        let table = table_limits(table?.ty);
                        self.list(|facts| facts.tables.push(table));
                    }
                }
                Payload::MemorySection(memories) => {
                    for memory in memories {
                        let memory = memory_limits(memory?);
                        self.list(|facts| facts.memories.push(memory));
                    }
                }
                Payload::ExportSection(exports) => {
                    for export in exports {
                        let export = export?;
                        self.list(|facts| {
                            facts.exports.push(Item {
                                name: name(export.name),
                                kind: kind(export.kind),
                            });
                        });
                    }
                }
                Payload::StartSection { .. } => self.start_section = true,
                Payload::CustomSection(section) => self.custom(&section),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets `add` put one more entry into a list, if there is room.
    fn list<T>(&mut self, add: impl FnOnce(&mut Self) -> T) {
        match self.listed < LISTED_MAX {
            true => {
                self.listed += 1;
                add(self);
            }
            false => self.left_out += 1,
        }
    }

    fn import(&mut self, import: wasmparser::Import<'_>) {
        let kind = match import.ty {
            TypeRef::Func(_) | TypeRef::FuncExact(_) => "function",
            TypeRef::Table(table) => {
                self.list(|facts| facts.tables.push(table_limits(table)));
                "table"
            }
            TypeRef::Memory(memory) => {
                self.list(|facts| facts.memories.push(memory_limits(memory)));
                "memory"
            }
            TypeRef::Global(_) => "global",
            TypeRef::Tag(_) => "tag",
        };
        self.list(|facts| {
            facts.imports.entry(name(import.module)).or_default().push(Item {
                name: name(import.name),
                kind,
            });
        });
    }

    fn custom(&mut self, section: &wasmparser::CustomSectionReader<'_>) {
        self.list(|facts| facts.custom_sections.insert(name(section.name())));
        match section.as_known() {
            KnownCustom::Name(_) => self.names = true,
            KnownCustom::Producers(fields) => {
                let values = fields.into_iter().filter_map(Result::ok).flat_map(|field| field.values);
                for value in values.filter_map(Result::ok) {
                    let text = format!("{} {}", name(value.name), name(value.version));
                    self.list(|facts| facts.producers.insert(text.trim().to_owned()));
                }
            }
            _ if section.name() == "target_features" => {
                for feature in features(section.data()) {
                    self.list(|facts| facts.features.insert(name(feature)));
                }
            }
            _ if section.name().as_bytes() == proa_executor::wasm::module::AOT_SECTION => self.compiled_code = true,
            _ => {}
        }
    }
}

fn memory_limits(memory: wasmparser::MemoryType) -> Limits {
    Limits {
        min: memory.initial,
        max: memory.maximum,
        shared: memory.shared,
        wide: memory.memory64,
    }
}

fn table_limits(table: wasmparser::TableType) -> Limits {
    Limits {
        min: table.initial,
        max: table.maximum,
        shared: table.shared,
        wide: table.table64,
    }
}

fn kind(kind: ExternalKind) -> &'static str {
    match kind {
        ExternalKind::Func | ExternalKind::FuncExact => "function",
        ExternalKind::Table => "table",
        ExternalKind::Memory => "memory",
        ExternalKind::Global => "global",
        ExternalKind::Tag => "tag",
    }
}

/// As much of a name as is kept.
fn name(text: &str) -> String {
    let end = (0..=NAME_MAX.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or_default()].to_owned()
}

/// The tool conventions' `target_features`: a vector of a prefix (`+` is used) and a name. What can't be read ends it.
fn features(data: &[u8]) -> impl Iterator<Item = &str> {
    let mut reader = wasmparser::BinaryReader::new(data, 0);
    let count = reader.read_var_u32().unwrap_or_default();
    let each = (0..count).map_while(move |_| Some((reader.read_u8().ok()?, reader.read_string().ok()?)));
    each.filter(|(prefix, _)| *prefix == b'+').map(|(_, feature)| feature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn facts(bytes: &[u8]) -> Facts {
        let memory = nix::sys::memfd::memfd_create(c"module", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let mut file = File::from(memory);
        file.write_all(bytes).unwrap();
        Facts::read(&file).unwrap()
    }

    fn section(id: u8, body: &[u8]) -> Vec<u8> {
        [&[id, body.len() as u8], body].concat()
    }

    #[test]
    fn a_module_is_described() {
        let features = b"\x0ftarget_features\x02+\x0bbulk-memory-\x04simd";
        let module = [
            b"\0asm\x01\0\0\0".to_vec(),
            section(1, b"\x01\x60\0\0"),
            section(2, b"\x01\x16wasi_snapshot_preview1\x09proc_exit\0\0"),
            section(3, b"\x01\0"),
            section(4, b"\x01\x70\x01\x02\x08"),
            section(5, b"\x01\0\x03"),
            section(7, b"\x02\x06memory\x02\0\x06_start\0\x01"),
            section(10, b"\x01\x02\0\x0b"),
            section(0, b"\x04name\x00\x02\x01m"),
            section(0, b"\x08wasmedge"),
            section(0, features),
        ]
        .concat();
        let facts = facts(&module);
        assert_eq!(facts.malformed, None);
        assert_eq!(facts.size, module.len() as u64);
        assert_eq!(facts.sha256.len(), 64);
        assert_eq!(facts.imports["wasi_snapshot_preview1"][0].name, "proc_exit");
        assert_eq!(
            facts.exports.iter().map(|it| it.kind).collect::<Vec<_>>(),
            ["memory", "function"]
        );
        assert_eq!(facts.memories[0].to_string(), "3, no bound of its own");
        assert_eq!(facts.tables[0].to_string(), "2, at most 8");
        assert_eq!(facts.functions, 1);
        assert!(facts.names && facts.compiled_code && !facts.start_section && !facts.component);
        assert_eq!(facts.features.into_iter().collect::<Vec<_>>(), ["bulk-memory"]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let vector = |count: usize, entry: &[u8]| {
            let mut body = vec![count as u8 | 0x80, (count >> 7) as u8 | 0x80, (count >> 14) as u8];
            (0..count).for_each(|_| body.extend_from_slice(entry));
            let mut size = body.len();
            let mut section = vec![7];
            while size >= 0x80 {
                section.push(size as u8 | 0x80);
                size >>= 7;
            }
            section.push(size as u8);
            [section, body].concat()
        };
        let module = [b"\0asm\x01\0\0\0".to_vec(), vector(100_000, b"\x01x\0\0")].concat();
        let facts = facts(&module);
        assert_eq!((facts.malformed, facts.exports.len()), (None, LISTED_MAX));
        assert_eq!(facts.left_out, 100_000 - LISTED_MAX as u64);
        assert_eq!(name(&"ä".repeat(NAME_MAX)).len(), NAME_MAX);
        assert_eq!(name(&format!("x{}", "ä".repeat(NAME_MAX))).len(), NAME_MAX - 1);
    }

    #[test]
    fn what_is_malformed_is_said() {
        assert!(facts(b"\0asm\x01\0\0\0\x02\x7f").malformed.is_some());
        assert!(facts(b"").malformed.is_some());
        assert!(facts(b"\0asm\x0d\0\x01\0").component);
    }
}
