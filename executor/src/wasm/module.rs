//! What the file of an entrypoint is, and what a WebAssembly module asks for, without an engine: a bounded reader of
//! section headers, imports, exports and memories. It is there to refuse by name, at `create`, what can't run; it doesn't
//! validate. Whatever it doesn't understand it leaves to the engine.
//!
//! Format: WebAssembly core specification 3.0, chapter 5 (binary format).

pub mod names;
pub mod tables;

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

/// Bytes of a memory page of WebAssembly.
pub const PAGE: u64 = 65536;

/// The custom section that holds code compiled ahead of time by WasmEdge ("universal wasm").
pub const AOT_SECTION: &[u8] = b"wasmedge";

/// The module that WasmEdge offers for WASI.
const WASI: &str = "wasi_snapshot_preview1";

/// How every module, and every component, begins.
pub const MAGIC: &[u8; 4] = b"\0asm";
const CORE: [u8; 4] = [1, 0, 0, 0];

/// The longest name that is looked at; longer ones are skipped.
const NAME_MAX: u64 = 256;
/// The most imported modules that are remembered for error messages.
const IMPORTS_MAX: usize = 16;
/// The most custom sections called [`AOT_SECTION`] that a module may have: `wasmedge compile` makes one. Where each of them is has
/// to be known, to rename it, and eleven bytes of a module are enough for one.
pub const AOT_SECTIONS_MAX: usize = 16;

/// What the first bytes of a file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A core WebAssembly module, version 1.
    Module,
    /// A Linux program: an ELF executable or a script with `#!`.
    Program,
}

/// Why a file can't be run as a guest.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The component model's binary format.
    #[error(
        "a component (WASI 0.2 or later), not a core module: WasmEdge can't run components; build for wasm32-wasi \
         (wasm32-wasip1)"
    )]
    Component,
    /// `\0asm` with a version word that no specification has.
    #[error("unknown version {0:#010x} of the WebAssembly binary format")]
    Version(u32),
    /// The text format.
    #[error("WebAssembly text, not a binary module: assemble it first, for example with wat2wasm (package wabt)")]
    Text,
    /// The file ends before what it announces.
    #[error("truncated: {what} needs {needed} bytes at offset {offset}, the file has {size} in all")]
    Truncated {
        /// What isn't there in full.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// How long it is said to be.
        needed: u64,
        /// The size of the file.
        size: u64,
    },
    /// Structure that can't be read at all.
    #[error("malformed: {what} at offset {offset}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// An empty file.
    #[error("empty file, not a WebAssembly module")]
    Empty,
    /// Neither a module nor a program.
    #[error("neither a WebAssembly module nor a Linux program (it starts with {0})")]
    Unknown(String),
    /// A shared library: WasmEdge's native form of a module compiled ahead of time.
    #[error(
        "a native shared library, not a WebAssembly module: code compiled ahead of time that comes in an image isn't \
         trusted; ship the .wasm file"
    )]
    SharedLibrary,
    /// More of something than is kept account of.
    #[error("more than {limit} {what}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The most that are taken.
        limit: usize,
    },
    /// More than the engine's interface can take.
    #[error("{0} bytes: larger than the 4 GiB a module can have")]
    TooLarge(u64),
    /// Exports `_initialize` and no `_start`.
    #[error(
        "a reactor (exports _initialize, no _start): only commands, which export _start, can be a container's entrypoint"
    )]
    Reactor,
    /// Exports neither.
    #[error("no export _start: not a WASI command")]
    NotCommand,
    /// WASI before its first snapshot, or a module linked to something that isn't there.
    #[error("imports from {0:?}, which isn't provided: modules link to {WASI}")]
    Imports(String),
    /// The memory that the module starts with is more than the container may have.
    #[error("starts with {pages} pages of memory ({} bytes), more than linux.resources.memory.limit = {limit}", pages * PAGE)]
    Memory {
        /// The least pages of the module's memory.
        pages: u64,
        /// Bytes.
        limit: u64,
    },
    /// The memory that the module starts with is more than its policy allows.
    #[error("starts with {pages} pages of memory, more than proa.wasm/pages (or wasm.limits.pages) = {limit}")]
    Pages {
        /// The least pages of the module's memories.
        pages: u64,
        /// Pages.
        limit: u64,
    },
    /// A table that the module starts with is more than its policy allows.
    #[error(
        "starts with a table of {elements} elements, more than proa.wasm/table-elements (or wasm.limits.table-elements) = \
         {limit}"
    )]
    Table {
        /// The least elements of the table.
        elements: u64,
        /// Elements.
        limit: u32,
    },
    /// Its tables can't be bounded.
    #[error(
        "its tables can't be bounded by proa.wasm/table-elements (or wasm.limits.table-elements): {what} at offset {offset}"
    )]
    Tables {
        /// What isn't understood.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// The engine would not take it.
    #[error("{engine}: {phase}: {message}")]
    Engine {
        /// Name and version.
        engine: String,
        /// What it was doing.
        phase: &'static str,
        /// In its words.
        message: String,
    },
    /// Reading failed.
    #[error("cannot read: {0}")]
    Read(io::Error),
    /// The guest would not be where it belongs.
    #[error("cannot go back to the working directory from the cache of compiled code: {0}")]
    WorkingDirectory(io::Error),
}

/// What a module says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Exports a function `_start`.
    pub command: bool,
    /// Exports a function `_initialize`.
    pub reactor: bool,
    /// Has a start section: guest code runs at instantiation already.
    pub start_section: bool,
    /// The least pages of its largest memory, defined or imported.
    pub pages: u64,
    /// How many memories it has, defined or imported.
    pub memories: u64,
    /// The (last) table section.
    pub tables: Option<Section>,
    /// There is a second table section, which no valid module has.
    pub more_tables: bool,
    /// The modules it imports from (the first few).
    pub imports: BTreeSet<String>,
    /// Offsets of the names of custom sections called [`AOT_SECTION`], at most [`AOT_SECTIONS_MAX`].
    pub aot: Vec<u64>,
}

/// Offsets of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Of its identity, which its size follows.
    pub start: u64,
    /// Of its content.
    pub body: u64,
    /// Of what follows it.
    pub end: u64,
}

/// Tells from the first bytes what a file is. `head` holds at least 64 bytes unless the file is shorter.
pub fn kind(head: &[u8]) -> Result<Kind, Refusal> {
    if head.is_empty() {
        return Err(Refusal::Empty);
    }
    if head.starts_with(b"#!") {
        return Ok(Kind::Program);
    }
    if head.starts_with(b"\x7fELF") {
        return if shared_library(head) {
            Err(Refusal::SharedLibrary)
        } else {
            Ok(Kind::Program)
        };
    }
    if head.starts_with(MAGIC) {
        let Some(version) = head.get(4..8).and_then(|word| <[u8; 4]>::try_from(word).ok()) else {
            let size = head.len() as u64;
            return Err(Refusal::Truncated {
                what: "the header",
                offset: 0,
                needed: 8,
                size,
            });
        };
        // The upper half of the word is the layer: 0 for core modules, 1 for components.
        return match version {
            CORE => Ok(Kind::Module),
            [_, _, 1, 0] => Err(Refusal::Component),
            _ => Err(Refusal::Version(u32::from_le_bytes(version))),
        };
    }
    if MAGIC.starts_with(head) {
        let size = head.len() as u64;
        return Err(Refusal::Truncated {
            what: "the header",
            offset: 0,
            needed: 8,
            size,
        });
    }
    let text = head.trim_ascii_start();
    if text.starts_with(b"(module")
        || text.starts_with(b"(component")
        || text.starts_with(b";;")
        || text.starts_with(b"(;")
    {
        return Err(Refusal::Text);
    }
    Err(Refusal::Unknown(head[..head.len().min(8)].escape_ascii().to_string()))
}

/// An ELF file of type `ET_DYN` without an entry point (elf(5)): a library, where position-independent programs have one.
fn shared_library(head: &[u8]) -> bool {
    let little = head.get(5) != Some(&2);
    let half = |at: usize| -> Option<u16> {
        let bytes = head.get(at..at + 2)?.try_into().ok()?;
        Some(if little {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        })
    };
    let entry = if head.get(4) == Some(&2) {
        head.get(24..32)
    } else {
        head.get(24..28)
    };
    half(16) == Some(3) && entry.is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0))
}

/// Reads the structure of a core module. `size` is the length of the file.
pub fn survey<R: Read + Seek>(source: R, size: u64) -> Result<Survey, Refusal> {
    if u32::try_from(size).is_err() {
        return Err(Refusal::TooLarge(size));
    }
    let mut reader = Reader {
        source: BufReader::new(source),
        at: 0,
        size,
    };
    reader.go(8)?;
    let mut survey = Survey::default();
    while reader.at < size {
        let start = reader.at;
        let id = reader.byte("a section")?;
        let length = reader.number("a section's size")?;
        let body = reader.at;
        let end = body + length;
        if end > size {
            return Err(Refusal::Truncated {
                what: section(id),
                offset: start,
                needed: end - start,
                size,
            });
        }
        // A section's content that this reader doesn't know is the engine's matter; its frame isn't.
        let read = match id {
            0 => custom(&mut reader, end, &mut survey),
            2 => imports(&mut reader, end, &mut survey),
            4 => {
                survey.more_tables |= survey.tables.replace(Section { start, body, end }).is_some();
                Ok(())
            }
            5 => memories(&mut reader, end, &mut survey),
            7 => exports(&mut reader, end, &mut survey),
            8 => {
                survey.start_section = true;
                Ok(())
            }
            _ => Ok(()),
        };
        match read {
            Ok(()) | Err(Refusal::Malformed { .. }) => {}
            Err(other) => return Err(other),
        }
        reader.go(end)?;
    }
    Ok(survey)
}

impl Survey {
    /// Refuses what can't be a container's entrypoint under `memory_limit` bytes.
    pub fn check(&self, memory_limit: Option<u64>) -> Result<(), Refusal> {
        // The plug-ins that an engine may have bring modules of their own: what is refused here no engine has.
        if let Some(name) = self
            .imports
            .iter()
            .find(|name| *name == "wasi_unstable" || name.starts_with("wasi:"))
        {
            return Err(Refusal::Imports(name.clone()));
        }
        if !self.command {
            return Err(if self.reactor {
                Refusal::Reactor
            } else {
                Refusal::NotCommand
            });
        }
        match memory_limit {
            Some(limit) if self.pages > limit / PAGE => Err(Refusal::Memory {
                pages: self.pages,
                limit,
            }),
            _ => Ok(()),
        }
    }

    /// Modules it imports from beside WASI, for a message.
    pub fn foreign_imports(&self) -> Vec<&str> {
        self.imports
            .iter()
            .map(String::as_str)
            .filter(|name| *name != WASI)
            .collect()
    }
}

/// Renames the sections of ahead-of-time compiled code in `module`, so that an engine takes them for sections it doesn't
/// know: native code out of an image must never be mapped, whatever the engine's configuration does.
pub fn hide_aot(module: &mut [u8], offsets: &[u64]) {
    for &offset in offsets {
        if let Some(first) = usize::try_from(offset).ok().and_then(|at| module.get_mut(at)) {
            *first = b'_';
        }
    }
}

fn custom<R: Read + Seek>(reader: &mut Reader<R>, end: u64, survey: &mut Survey) -> Result<(), Refusal> {
    let name = custom_name(reader, end)?;
    if name != AOT_SECTION {
        return Ok(());
    }
    if survey.aot.len() == AOT_SECTIONS_MAX {
        return Err(Refusal::TooMany {
            what: "custom sections called \"wasmedge\"",
            limit: AOT_SECTIONS_MAX,
        });
    }
    survey.aot.push(reader.at - name.len() as u64);
    Ok(())
}

/// The name of a custom section; empty if it is too long to be of interest.
fn custom_name<R: Read + Seek>(reader: &mut Reader<R>, end: u64) -> Result<Vec<u8>, Refusal> {
    let length = reader.number("a custom section's name")?;
    reader.name(length, end)
}

fn imports<R: Read + Seek>(reader: &mut Reader<R>, end: u64, survey: &mut Survey) -> Result<(), Refusal> {
    each_import(reader, end, |module, kind, least| {
        if survey.imports.len() < IMPORTS_MAX {
            survey.imports.insert(String::from_utf8_lossy(module).into_owned());
        }
        if kind == 2 {
            survey.pages = survey.pages.max(least);
            survey.memories += 1;
        }
    })
}

/// Calls `import` with the module, the kind and, for a table or a memory, the minimum of each import.
fn each_import<R: Read + Seek>(
    reader: &mut Reader<R>,
    end: u64,
    mut import: impl FnMut(&[u8], u8, u64),
) -> Result<(), Refusal> {
    for _ in 0..reader.number("the imports")? {
        let length = reader.number("an import's module")?;
        let module = reader.name(length, end)?;
        let length = reader.number("an import's name")?;
        reader.name(length, end)?;
        let kind = reader.byte("an import's kind")?;
        let mut least = 0;
        match kind {
            0 => drop(reader.number("a type")?),
            1 => {
                reference(reader)?;
                least = limits(reader)?;
            }
            2 => least = limits(reader)?,
            3 => {
                value(reader)?;
                reader.byte("mutability")?;
            }
            4 => {
                reader.byte("a tag's attribute")?;
                reader.number("a type")?;
            }
            _ => return Err(reader.malformed("an import's kind")),
        }
        import(&module, kind, least);
        reader.within(end)?;
    }
    Ok(())
}

fn memories<R: Read + Seek>(reader: &mut Reader<R>, end: u64, survey: &mut Survey) -> Result<(), Refusal> {
    for _ in 0..reader.number("the memories")? {
        survey.pages = survey.pages.max(limits(reader)?);
        survey.memories += 1;
        reader.within(end)?;
    }
    Ok(())
}

fn exports<R: Read + Seek>(reader: &mut Reader<R>, end: u64, survey: &mut Survey) -> Result<(), Refusal> {
    for _ in 0..reader.number("the exports")? {
        let length = reader.number("an export's name")?;
        let name = reader.name(length, end)?;
        let kind = reader.byte("an export's kind")?;
        reader.number("an export's index")?;
        reader.within(end)?;
        match (kind, name.as_slice()) {
            (0, b"_start") => survey.command = true,
            (0, b"_initialize") => survey.reactor = true,
            _ => {}
        }
    }
    Ok(())
}

/// Limits of a memory or table: the minimum.
fn limits<R: Read + Seek>(reader: &mut Reader<R>) -> Result<u64, Refusal> {
    let flags = reader.byte("limits")?;
    let least = reader.number("limits")?;
    if flags & 1 != 0 {
        reader.number("limits")?;
    }
    // A page size of its own (custom-page-sizes proposal): not pages as counted here.
    if flags & 8 != 0 {
        return Err(reader.malformed("limits"));
    }
    Ok(least)
}

fn value<R: Read + Seek>(reader: &mut Reader<R>) -> Result<(), Refusal> {
    reference(reader)
}

/// A value or reference type; `(ref ht)` and `(ref null ht)` carry a heap type.
fn reference<R: Read + Seek>(reader: &mut Reader<R>) -> Result<(), Refusal> {
    if let 0x63 | 0x64 = reader.byte("a type")? {
        reader.number("a heap type")?;
    }
    Ok(())
}

fn section(id: u8) -> &'static str {
    match id {
        0 => "a custom section",
        1 => "the type section",
        2 => "the import section",
        3 => "the function section",
        4 => "the table section",
        5 => "the memory section",
        6 => "the global section",
        7 => "the export section",
        8 => "the start section",
        9 => "the element section",
        10 => "the code section",
        11 => "the data section",
        12 => "the data count section",
        13 => "the tag section",
        _ => "a section of unknown kind",
    }
}

/// A cursor over the module that knows where it is and where the file ends.
struct Reader<R> {
    source: BufReader<R>,
    at: u64,
    size: u64,
}

impl<R: Read + Seek> Reader<R> {
    /// Moves to an offset, which is never behind by more than a name.
    fn go(&mut self, to: u64) -> Result<(), Refusal> {
        if self.at == 0 {
            self.source.seek(SeekFrom::Start(to)).map_err(Refusal::Read)?;
        } else {
            self.source
                .seek_relative(to as i64 - self.at as i64)
                .map_err(Refusal::Read)?;
        }
        self.at = to;
        Ok(())
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, Refusal> {
        let buffered = self.source.fill_buf().map_err(Refusal::Read)?;
        let Some(&byte) = buffered.first() else {
            return Err(Refusal::Truncated {
                what,
                offset: self.at,
                needed: 1,
                size: self.size,
            });
        };
        self.source.consume(1);
        self.at += 1;
        Ok(byte)
    }

    /// An unsigned LEB128 number of at most 64 bits.
    fn number(&mut self, what: &'static str) -> Result<u64, Refusal> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                // Clipped so that an offset added to it doesn't overflow; no file is that long.
                return Ok(value.min(u64::MAX / 4));
            }
        }
        Err(Refusal::Malformed { what, offset: start })
    }

    /// A name of `length` bytes; empty if it is too long to be of interest.
    fn name(&mut self, length: u64, end: u64) -> Result<Vec<u8>, Refusal> {
        let start = self.at;
        if length > end.saturating_sub(start) {
            return Err(self.malformed("a name"));
        }
        if length > NAME_MAX {
            self.go(start + length)?;
            return Ok(Vec::new());
        }
        let mut name = vec![0; length as usize];
        self.source.read_exact(&mut name).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Refusal::Truncated {
                what: "a name",
                offset: start,
                needed: length,
                size: self.size,
            },
            _ => Refusal::Read(error),
        })?;
        self.at += length;
        Ok(name)
    }

    fn within(&self, end: u64) -> Result<(), Refusal> {
        if self.at > end {
            Err(self.malformed("a section's content"))
        } else {
            Ok(())
        }
    }

    fn malformed(&self, what: &'static str) -> Refusal {
        Refusal::Malformed { what, offset: self.at }
    }
}

#[cfg(test)]
mod tests;
