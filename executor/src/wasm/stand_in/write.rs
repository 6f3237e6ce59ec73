//! The bytes of a stand-in: a shared object as glibc's loader reads one, which looks at program headers and the dynamic
//! section and at no section header. The tables are in the System V ABI and its gABI, the hash table and the versions in
//! GNU's additions (binutils and the LSB describe them).

use super::{Elf, Imports, Symbol};
use object::elf::{self, FileHeader64};
use object::endian::{LittleEndian, U64};
use object::pod::{Pod, bytes_of};

/// The bytes where every variable is. How many each should have isn't known: imports have no size.
const DATA: u64 = 512;
/// The same for a variable that each thread has of its own.
const THREAD_DATA: u64 = 64;
/// By how much a hash is shifted for its second bit in the Bloom filter.
const BLOOM_SHIFT: u32 = 6;

type Header = elf::ProgramHeader64<LittleEndian>;
type Entry = elf::Dyn64<LittleEndian>;

/// What follows the headers, in this order; each table is aligned for its entries.
struct Tables {
    hash: Vec<u8>,
    strings: Vec<u8>,
    versions: Vec<u8>,
    definitions: Vec<u8>,
    /// Where each symbol's name is in `strings`.
    names: Vec<u32>,
    soname: u32,
}

/// Where everything is. In the first part, offsets in the file and addresses are the same.
struct Layout {
    hash: u64,
    symbols: u64,
    strings: u64,
    versions: u64,
    definitions: u64,
    /// The end of the first part.
    constant: u64,
    /// The dynamic section in the file, and its address: on the next page, at the same place in it.
    dynamic: u64,
    dynamic_address: u64,
    data: u64,
    functions: u64,
    page: u64,
}

/// What was handed out to the symbols of each kind.
#[derive(Default)]
struct Given {
    functions: u64,
    thread_data: u64,
}

/// The object for pages of this size that defines all of `imports`.
pub fn object(machine: elf::Machine, page: u64, soname: &[u8], imports: &Imports<'_>) -> Vec<u8> {
    let tables = Tables::of(soname, imports);
    let layout = Layout::of(&tables, imports.symbols.len(), page);
    let (symbols, given) = symbols(&tables, &layout, &imports.symbols);
    let mut image = Vec::with_capacity(layout.dynamic as usize + DYNAMIC * size_of::<Entry>());
    put(&mut image, &header(machine));
    for header in headers(&layout, &given) {
        put(&mut image, &header);
    }
    let parts = [
        (layout.hash, &tables.hash),
        (layout.symbols, &symbols),
        (layout.strings, &tables.strings),
        (layout.versions, &tables.versions),
        (layout.definitions, &tables.definitions),
        (layout.dynamic, &dynamic(&tables, &layout, imports.versions.len())),
    ];
    for (at, part) in parts {
        image.resize(at as usize, 0);
        image.extend_from_slice(part);
    }
    image
}

fn put<T: Pod>(bytes: &mut Vec<u8>, value: &T) {
    bytes.extend_from_slice(bytes_of(value));
}

impl Tables {
    fn of(soname: &[u8], imports: &Imports<'_>) -> Self {
        let length = imports.symbols.iter().map(|symbol| symbol.name.len() + 1).sum();
        let mut strings = Vec::with_capacity(length);
        strings.push(0);
        let mut add = |string: &[u8]| {
            let at = strings.len() as u32;
            strings.extend_from_slice(string);
            strings.push(0);
            at
        };
        let soname_at = add(soname);
        let mut definitions = Vec::new();
        // The first is the object itself.
        let all = [(soname, soname_at)].into_iter();
        let all = all
            .chain(imports.versions.iter().map(|name| (*name, add(name))))
            .collect::<Vec<_>>();
        for (index, (name, at)) in all.iter().enumerate() {
            define(&mut definitions, index, name, *at, index + 1 == all.len());
        }
        let names = imports.symbols.iter().map(|symbol| add(symbol.name)).collect();
        let indices = imports
            .symbols
            .iter()
            .map(|symbol| FIRST_VERSION + symbol.version as u16);
        Self {
            hash: hash(imports),
            versions: [0].into_iter().chain(indices).flat_map(u16::to_le_bytes).collect(),
            definitions,
            names,
            soname: soname_at,
            strings,
        }
    }
}

/// The number of the first version after that of the object itself.
const FIRST_VERSION: u16 = 2;

/// Appends the definition of a version (`.gnu.version_d`), counted from 0.
fn define(definitions: &mut Vec<u8>, index: usize, name: &[u8], name_at: u32, last: bool) {
    let (own, aux) = (
        size_of::<elf::Verdef<LittleEndian>>() as u32,
        size_of::<elf::Verdaux<LittleEndian>>() as u32,
    );
    put(
        definitions,
        &elf::Verdef::<LittleEndian> {
            vd_version: elf::VER_DEF_CURRENT.into(),
            vd_flags: if index == 0 {
                elf::VER_FLG_BASE
            } else {
                elf::VersionFlags(0)
            }
            .into(),
            vd_ndx: elf::VersionIndex(index as u16 + 1).into(),
            vd_cnt: 1.into(),
            vd_hash: elf::hash(name).into(),
            vd_aux: own.into(),
            vd_next: if last { 0 } else { own + aux }.into(),
        },
    );
    put(
        definitions,
        &elf::Verdaux::<LittleEndian> {
            vda_name: name_at.into(),
            vda_next: 0.into(),
        },
    );
}

/// The hash table (`.gnu.hash`): a Bloom filter, by which the loader knows of most names that they are not here; the first
/// symbol of each bucket; and each symbol's hash, the last of a bucket with its lowest bit set.
fn hash(imports: &Imports<'_>) -> Vec<u8> {
    let symbols = &imports.symbols;
    // Some 16 bits a symbol.
    let words = (symbols.len() / 4).next_power_of_two();
    let mut bloom = vec![0u64; words];
    let mut buckets = vec![0u32; imports.buckets as usize];
    for (index, symbol) in symbols.iter().enumerate() {
        let word = &mut bloom[symbol.hash as usize / 64 % words];
        *word |= 1 << (symbol.hash % 64) | 1 << ((symbol.hash >> BLOOM_SHIFT) % 64);
        let bucket = &mut buckets[(symbol.hash % imports.buckets) as usize];
        if *bucket == 0 {
            *bucket = index as u32 + 1;
        }
    }
    let mut table = Vec::new();
    put(
        &mut table,
        &elf::GnuHashHeader::<LittleEndian> {
            bucket_count: imports.buckets.into(),
            symbol_base: 1.into(),
            bloom_count: (words as u32).into(),
            bloom_shift: BLOOM_SHIFT.into(),
        },
    );
    table.extend(bloom.into_iter().flat_map(u64::to_le_bytes));
    table.extend(buckets.into_iter().flat_map(u32::to_le_bytes));
    let bucket = |symbol: &Symbol<'_>| symbol.hash % imports.buckets;
    for (index, symbol) in symbols.iter().enumerate() {
        let last = symbols.get(index + 1).is_none_or(|next| bucket(next) != bucket(symbol));
        table.extend_from_slice(&(symbol.hash & !1 | u32::from(last)).to_le_bytes());
    }
    table
}

impl Layout {
    fn of(tables: &Tables, symbols: usize, page: u64) -> Self {
        let mut end = size_of::<Elf>() + HEADERS * size_of::<Header>();
        let mut place = |size: usize, alignment: usize| {
            let at = end.next_multiple_of(alignment);
            end = at + size;
            at as u64
        };
        let hash = place(tables.hash.len(), 8);
        let symbols = place((1 + symbols) * size_of::<elf::Sym64<LittleEndian>>(), 8);
        let strings = place(tables.strings.len(), 1);
        let versions = place(tables.versions.len(), 2);
        let definitions = place(tables.definitions.len(), 4);
        let constant = place(0, 1);
        let dynamic = place(DYNAMIC * size_of::<Entry>(), 8);
        let dynamic_address = dynamic + page;
        let data = dynamic_address + (DYNAMIC * size_of::<Entry>()) as u64;
        Self {
            hash,
            symbols,
            strings,
            versions,
            definitions,
            constant,
            dynamic,
            dynamic_address,
            data,
            functions: (data + DATA).next_multiple_of(page),
            page,
        }
    }
}

/// The symbol table (`.dynsym`).
fn symbols(tables: &Tables, layout: &Layout, symbols: &[Symbol<'_>]) -> (Vec<u8>, Given) {
    let mut given = Given::default();
    let mut table = vec![0; size_of::<elf::Sym64<LittleEndian>>()];
    for (symbol, name) in symbols.iter().zip(&tables.names) {
        let value = match symbol.kind {
            elf::STT_OBJECT => layout.data,
            elf::STT_TLS => {
                given.thread_data += THREAD_DATA;
                given.thread_data - THREAD_DATA
            }
            _ => {
                given.functions += 1;
                layout.functions + given.functions - 1
            }
        };
        put(
            &mut table,
            &elf::Sym64::<LittleEndian> {
                st_name: (*name).into(),
                st_info: elf::SymbolInfo::new(elf::STB_GLOBAL, symbol.kind),
                st_other: elf::SymbolOther::default(),
                // Any section, as long as it is one: there are none.
                st_shndx: elf::SymbolSection(1).into(),
                st_value: value.into(),
                st_size: 0.into(),
            },
        );
    }
    (table, given)
}

fn header(machine: elf::Machine) -> Elf {
    FileHeader64 {
        e_ident: elf::Ident {
            magic: elf::ELFMAG,
            class: elf::ELFCLASS64,
            data: elf::ELFDATA2LSB,
            version: elf::EV_CURRENT,
            os_abi: elf::ELFOSABI_SYSV,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: elf::ET_DYN.into(),
        e_machine: machine.into(),
        e_version: 1.into(),
        e_entry: 0.into(),
        e_phoff: (size_of::<Elf>() as u64).into(),
        e_shoff: 0.into(),
        e_flags: elf::FileFlags::default().into(),
        e_ehsize: (size_of::<Elf>() as u16).into(),
        e_phentsize: (size_of::<Header>() as u16).into(),
        e_phnum: (HEADERS as u16).into(),
        e_shentsize: 0.into(),
        e_shnum: 0.into(),
        e_shstrndx: elf::SHN_UNDEF.into(),
    }
}

/// How many program headers there are.
const HEADERS: usize = 6;

fn headers(layout: &Layout, given: &Given) -> [Header; HEADERS] {
    let make =
        |kind: elf::ProgramType, flags: elf::ProgramFlags, offset, address, in_file, in_memory, alignment| Header {
            p_type: kind.into(),
            p_flags: flags.into(),
            p_offset: U64::new(LittleEndian, offset),
            p_vaddr: U64::new(LittleEndian, address),
            p_paddr: U64::new(LittleEndian, address),
            p_filesz: U64::new(LittleEndian, in_file),
            p_memsz: U64::new(LittleEndian, in_memory),
            p_align: U64::new(LittleEndian, alignment),
        };
    let (read, none) = (elf::PF_R, elf::ProgramFlags(0));
    let write = elf::ProgramFlags(elf::PF_R.0 | elf::PF_W.0);
    let size = (DYNAMIC * size_of::<Entry>()) as u64;
    let (at, address, page) = (layout.dynamic, layout.dynamic_address, layout.page);
    let functions = layout.functions;
    [
        make(elf::PT_LOAD, read, 0, 0, layout.constant, layout.constant, page),
        // Before 2.35, glibc writes into the dynamic section.
        make(elf::PT_LOAD, write, at, address, size, size + DATA, page),
        // At least one byte: an empty part is none.
        make(
            elf::PT_LOAD,
            none,
            functions,
            functions,
            0,
            given.functions.max(1),
            page,
        ),
        make(elf::PT_DYNAMIC, write, at, address, size, size, 8),
        make(elf::PT_TLS, read, at, address, 0, given.thread_data, 16),
        // Without it, glibc takes it that the stack has to be executable.
        make(elf::PT_GNU_STACK, write, 0, 0, 0, 0, 16),
    ]
}

/// How many entries the dynamic section has.
const DYNAMIC: usize = 10;

fn dynamic(tables: &Tables, layout: &Layout, versions: usize) -> Vec<u8> {
    let entries: [(elf::DynamicTag, u64); DYNAMIC] = [
        (elf::DT_SONAME, tables.soname.into()),
        (elf::DT_GNU_HASH, layout.hash),
        (elf::DT_SYMTAB, layout.symbols),
        (elf::DT_SYMENT, size_of::<elf::Sym64<LittleEndian>>() as u64),
        (elf::DT_STRTAB, layout.strings),
        (elf::DT_STRSZ, tables.strings.len() as u64),
        (elf::DT_VERSYM, layout.versions),
        (elf::DT_VERDEF, layout.definitions),
        (elf::DT_VERDEFNUM, versions as u64 + 1),
        (elf::DT_NULL, 0),
    ];
    let mut table = Vec::new();
    for (tag, value) in entries {
        put(
            &mut table,
            &Entry {
                d_tag: tag.into(),
                d_val: value.into(),
            },
        );
    }
    table
}
