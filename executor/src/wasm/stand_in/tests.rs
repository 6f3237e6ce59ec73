//! That glibc's loader takes a stand-in for the library, and that it is one: for a library that imports every kind of symbol
//! in two versions, which the loader binds all at once (`executor/tests/fixtures/imports`).

use super::*;
use crate::wasm::binding::SharedObject;
use crate::wasm::engine::load_stand_in;
use std::ffi::CString;
use std::path::PathBuf;

const IMPORTS: &[u8] = include_bytes!("../../../../fuzz/corpus/engine/imports.so");

fn derived(library: &[u8]) -> StandIn {
    let mut all = derive(library).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// The library with some of its bytes, which it has once, replaced.
fn changed(from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places = || {
        IMPORTS
            .windows(from.len())
            .enumerate()
            .filter(|(_, window)| *window == from)
    };
    assert_eq!(places().count(), 1, "{}", text(from));
    let mut bytes = IMPORTS.to_vec();
    let at = places().next().unwrap().0;
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn what_is_imported_from_the_compiler_is_defined() {
    let stand_in = derived(IMPORTS);
    assert_eq!(stand_in.soname, "libLLVM.so.99.1");
    assert_eq!(stand_in.symbols, 5);
    for name in ["first", "second", "old", "variable", "of_thread", "LLVM_1", "LLVM_99.1"] {
        let name = format!("\0{name}\0");
        assert!(
            stand_in
                .image
                .windows(name.len())
                .any(|window| window == name.as_bytes()),
            "{name:?}"
        );
    }
    let name = b"environ";
    assert!(!stand_in.image.windows(name.len()).any(|window| window == name));
}

/// One test: what is loaded is loaded for the whole process.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_loader_takes_it_for_the_library() {
    let path: PathBuf = std::env::temp_dir().join(format!("proa-imports-{}.so", std::process::id()));
    std::fs::write(&path, IMPORTS).unwrap();
    let name = CString::new(path.to_str().unwrap()).unwrap();
    let load_with = |stand_in: &StandIn| {
        let _held = load_stand_in(stand_in).unwrap();
        SharedObject::load(&name).map(drop)
    };
    let refused = SharedObject::load(&name).unwrap_err();
    assert!(
        refused.contains("libLLVM.so.99.1: cannot open shared object file"),
        "{refused}"
    );

    assert_eq!(load_with(&derived(IMPORTS)), Ok(()));

    // It is gone with the last that held it; and each symbol and version is looked at.
    for (from, to, word) in [
        ("\0first\0", "\0fixed\0", "undefined symbol: first"),
        ("\0variable\0", "\0variety.\0", "undefined symbol: variable"),
        ("\0of_thread\0", "\0of_thresh\0", "undefined symbol: of_thread"),
        ("\0LLVM_1\0", "\0LLVM_2\0", "version `LLVM_1' not found"),
    ] {
        let other = derived(&changed(from.as_bytes(), to.as_bytes()));
        let refused = load_with(&other).unwrap_err();
        assert!(refused.contains(word), "{refused}");
    }
    std::fs::remove_file(path).unwrap();
}

/// Each function has an address of its own, which tells it from the others when it is called.
#[test]
fn functions_differ_and_are_where_nothing_may_be_executed() {
    let image = derived(IMPORTS).image;
    let header = Elf::parse(&*image).unwrap();
    let segments = header.program_headers(LittleEndian, &*image).unwrap();
    let mut last = None;
    for segment in segments
        .iter()
        .filter(|segment| segment.p_type.get(LittleEndian) == elf::PT_LOAD)
    {
        let flags = segment.p_flags.get(LittleEndian).0;
        assert_eq!(flags & elf::PF_X.0, 0);
        last = Some((
            flags,
            segment.p_vaddr.get(LittleEndian),
            segment.p_memsz.get(LittleEndian),
        ));
    }
    // `first`, `second` and `old`.
    let (flags, start, size) = last.unwrap();
    assert_eq!((flags, size), (0, 3));
    let values = image
        .windows(8)
        .step_by(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .filter(|value| (start..start + size).contains(value))
        .collect::<std::collections::HashSet<_>>();
    assert_eq!(values.len(), 3);
}

#[test]
fn what_has_no_stand_in_is_said() {
    let malformed = |bytes: &[u8]| match derive(bytes) {
        Err(error @ Error::Malformed(_)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(malformed(b"").starts_with("it can't be read: "));
    assert!(malformed(b"\x7fELF").starts_with("it can't be read: "));
    malformed(&IMPORTS[..IMPORTS.len() - 1]);

    let mut other_machine = IMPORTS.to_vec();
    other_machine[18] = 243;
    assert_eq!(derive(&other_machine).unwrap_err(), Error::Machine);

    let not_needed = changed(b"\0libLLVM.so.99.1\0", b"\0libelse.so.99.1\0");
    assert_eq!(derive(&not_needed).unwrap_err(), Error::NotNeeded);

    // The table of needed versions names another file than the list of needed ones: no import is from the latter.
    let header = Elf::parse(IMPORTS).unwrap();
    let sections = header.sections(LittleEndian, IMPORTS).unwrap();
    let (_, versions) = sections
        .enumerate()
        .find(|(_, section)| section.sh_type.get(LittleEndian) == elf::SHT_GNU_VERSYM)
        .unwrap();
    let (at, size) = (versions.sh_offset.get(LittleEndian), versions.sh_size.get(LittleEndian));
    let mut unversioned = IMPORTS.to_vec();
    unversioned[at as usize..][..size as usize].fill(0);
    assert_eq!(
        derive(&unversioned).unwrap_err(),
        Error::Unversioned("libLLVM.so.99.1".to_owned())
    );
}
