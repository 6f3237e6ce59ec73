//! A stand-in for the compiler library of an engine: what the engine's dynamic loader needs of libLLVM, and nothing else.
//!
//! Debian's `libwasmedge.so.0` is linked to libLLVM, 130 MB, which is used to compile modules. To interpret them, or to run
//! what was compiled before, not one function of it is called; but the loader maps it, with what it needs in turn, relocates
//! it and runs its initialisers: nine tenths of the time and of the memory that a small module takes. glibc takes a library
//! as loaded if an object with its SONAME is (dl-load.c, `_dl_map_object`). So an object is made that has that SONAME and
//! defines, in the versions that the engine asks for, each symbol that the engine imports from there. It is derived from
//! the engine's own table of imports, so that it fits whatever engine is installed; the engine itself is untouched.
//!
//! ```text
//! R    ELF and program headers, .gnu.hash, .dynsym, .dynstr, .gnu.version, .gnu.version_d
//! RW   .dynamic; zeroed bytes, where every variable is
//! ---  one address for each function, in pages without any right: to call one is a SIGSEGV at that address, and the
//!      symbol with that value says which function it was
//! ```
//!
//! Nothing in it is code, so that it may be where nothing may be executed. Reading is done by `object`; its writer sorts all
//! names to share their endings, which takes longer than everything here.

mod write;

use object::elf::{self, FileHeader64};
use object::endian::LittleEndian;
use object::read::elf::{Dyn, FileHeader, SectionTable, Sym};

/// What the names of an engine's compiler libraries begin with, as in `libLLVM.so.21.1` and `libLLVM-17.so.1`.
const COMPILER: &[u8] = b"libLLVM";
/// More of them than this, no engine needs.
const NEEDED_MAX: usize = 8;
/// More symbols than this, no engine imports: WasmEdge 0.17.1 has 576 of LLVM's.
const IMPORTS_MAX: usize = 16 << 10;
/// Nor in more versions.
const VERSIONS_MAX: usize = 64;
/// The most bytes that the names of all imports have; those of WasmEdge 0.17.1 have 37 KiB.
const NAMES_MAX: usize = 4 << 20;

type Elf = FileHeader64<LittleEndian>;

/// An object that stands in for a library.
#[derive(Debug)]
pub struct StandIn {
    /// The SONAME of that library.
    pub soname: String,
    /// How many symbols it defines.
    pub symbols: usize,
    /// The object.
    pub image: Vec<u8>,
}

/// Why there is no stand-in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a library, or a damaged one.
    #[error("it can't be read: {0}")]
    Malformed(#[from] object::read::Error),
    /// Of another kind of machine than those that are known here.
    #[error("it is for another machine than x86-64 and AArch64")]
    Machine,
    /// It is linked without a compiler library, or one is part of it.
    #[error("it needs no compiler library")]
    NotNeeded,
    /// What is imported from this library can't be told from the rest.
    #[error("its imports from {0} have no version")]
    Unversioned(String),
    /// No engine needs that many.
    #[error("it needs more than {NEEDED_MAX} compiler libraries")]
    TooMany,
    /// No engine imports that much from one library.
    #[error(
        "it imports more than {IMPORTS_MAX} symbols, {NAMES_MAX} bytes of names, or {VERSIONS_MAX} versions from {0}"
    )]
    TooLarge(String),
}

/// Stand-ins for all compiler libraries that `library`, a file's content, needs.
pub fn derive(library: &[u8]) -> Result<Vec<StandIn>, Error> {
    let header = Elf::parse(library)?;
    let machine = header.e_machine(LittleEndian);
    // The largest pages that kernels for these have.
    let page = match machine {
        elf::EM_X86_64 => 4 << 10,
        elf::EM_AARCH64 => 64 << 10,
        _ => return Err(Error::Machine),
    };
    let sections = header.sections(LittleEndian, library)?;
    let needed = needed(&sections, library)?;
    if needed.is_empty() {
        return Err(Error::NotNeeded);
    }
    needed
        .into_iter()
        .map(|soname| {
            let imports = Imports::of(&sections, library, soname)?;
            Ok(StandIn {
                soname: text(soname),
                symbols: imports.symbols.len(),
                image: write::object(machine, page, soname, &imports),
            })
        })
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The compiler libraries among those that the library asks the loader for (`DT_NEEDED`).
fn needed<'data>(sections: &SectionTable<'data, Elf>, library: &'data [u8]) -> Result<Vec<&'data [u8]>, Error> {
    let Some((entries, strings)) = sections.dynamic(LittleEndian, library)? else {
        return Ok(Vec::new());
    };
    let strings = sections.strings(LittleEndian, library, strings)?;
    let mut found = Vec::new();
    for entry in entries.iter().filter(|entry| entry.tag(LittleEndian) == elf::DT_NEEDED) {
        let name = entry.string(LittleEndian, strings)?;
        if name.starts_with(COMPILER) && !found.contains(&name) {
            found.push(name);
        }
    }
    if found.len() > NEEDED_MAX {
        return Err(Error::TooMany);
    }
    Ok(found)
}

/// What a library imports from one other, in the order that a hash table of GNU's kind wants.
struct Imports<'data> {
    symbols: Vec<Symbol<'data>>,
    /// The names of the versions that the symbols have.
    versions: Vec<&'data [u8]>,
    /// How many buckets the table has.
    buckets: u32,
}

struct Symbol<'data> {
    name: &'data [u8],
    hash: u32,
    kind: elf::SymbolType,
    /// Counted from 0.
    version: usize,
}

impl<'data> Imports<'data> {
    fn of(sections: &SectionTable<'data, Elf>, library: &'data [u8], from: &[u8]) -> Result<Self, Error> {
        let table = sections.symbols(LittleEndian, library, elf::SHT_DYNSYM)?;
        let unversioned = || Error::Unversioned(text(from));
        let known = sections.versions(LittleEndian, library)?.ok_or_else(unversioned)?;
        let mut versions = Vec::new();
        let mut symbols = Vec::new();
        let mut names = 0;
        for (index, symbol) in table.enumerate().skip(1) {
            let wanted = known.version_index(LittleEndian, index).index();
            let version = match known.version(wanted)? {
                Some(version) if version.file() == Some(from) && symbol.is_undefined(LittleEndian) => version.name(),
                _ => continue,
            };
            let name = symbol.name(LittleEndian, table.strings())?;
            names += name.len();
            if symbols.len() == IMPORTS_MAX || names > NAMES_MAX || versions.len() > VERSIONS_MAX {
                return Err(Error::TooLarge(text(from)));
            }
            let version = versions.iter().position(|known| *known == version).unwrap_or_else(|| {
                versions.push(version);
                versions.len() - 1
            });
            symbols.push(Symbol {
                name,
                hash: elf::gnu_hash(name),
                kind: symbol.st_type(),
                version,
            });
        }
        if symbols.is_empty() {
            return Err(unversioned());
        }
        // As many as symbols, and odd: most have one.
        let buckets = symbols.len() as u32 | 1;
        symbols.sort_by_cached_key(|symbol| symbol.hash % buckets);
        Ok(Self {
            symbols,
            versions,
            buckets,
        })
    }
}

#[cfg(test)]
mod tests;
