//! The fuzz targets of this crate, library functions so that tests can replay their corpora: what a file of any content is
//! taken for, and which hull any annotations choose.

use crate::aot::{Key, Target, entry};
use crate::recognise::{self, Detect, HANDLER, VARIANT};
use crate::wasm::module::{self, AOT_SECTION, Kind};
use crate::{Hull, wasm::Refusal};
use std::collections::HashMap;
use std::io::Cursor;

/// Numbers that look random and are the same each time, for tests that mutate what they read.
#[cfg(test)]
pub fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        // The generator of Knuth's MMIX, whose upper bits are the better ones: they come to where a remainder takes them from.
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        state.rotate_right(32)
    }
}

/// Looks at `data` as a module, and at its words as annotations.
pub fn wasm(data: &[u8]) {
    recognise(data);
    let head = &data[..data.len().min(4096)];
    match module::kind(head) {
        Ok(Kind::Module) => assert!(data.starts_with(b"\0asm\x01\0\0\0")),
        Ok(Kind::Program) => return assert!(data.starts_with(b"#!") || data.starts_with(b"\x7fELF")),
        Err(refusal) => return assert!(!refusal.to_string().is_empty()),
    }
    let survey = match module::survey(Cursor::new(data), data.len() as u64) {
        Ok(survey) => survey,
        Err(Refusal::Read(error)) => panic!("{error}"),
        Err(refusal) => return assert!(!refusal.to_string().is_empty()),
    };
    // What it says must be in the file: nothing it remembers is larger.
    assert!(survey.imports.iter().map(String::len).sum::<usize>() <= 3 * data.len());
    let mut hidden = data.to_vec();
    for &offset in &survey.aot {
        assert!(data[offset as usize..].starts_with(AOT_SECTION), "at {offset}");
    }
    module::hide_aot(&mut hidden, &survey.aot);
    let again = module::survey(Cursor::new(&hidden), hidden.len() as u64).expect("only names changed");
    assert!(again.aot.is_empty(), "code that was compiled ahead of time is left");
    assert_eq!((again.command, again.pages), (survey.command, survey.pages));
    if survey.check(Some(0)).is_ok() {
        assert!(survey.command && survey.pages == 0);
    }
}

fn recognise(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut words = text.split('\n');
    let mut next = || words.next().unwrap_or_default();
    let (program, entrypoint) = (next(), next());
    let mut annotations = HashMap::new();
    for key in [HANDLER, VARIANT, "io.kubernetes.cri.container-type"] {
        let value = next();
        if !value.is_empty() {
            annotations.insert(key.to_owned(), value.to_owned());
        }
    }
    let sandbox = annotations.get("io.kubernetes.cri.container-type").map(String::as_str) == Some("sandbox");
    let handler = annotations.get(HANDLER).map(String::as_str);
    for detect in [Detect::Annotation, Detect::Name, Detect::Auto] {
        match recognise::decide(&annotations, program, entrypoint, detect) {
            Ok(decision) => {
                let native = entrypoint.is_empty() || sandbox || handler == Some("none");
                assert!(!native || decision.hull == Hull::Native);
            }
            Err(error) => assert!(error.to_string().contains(handler.unwrap_or("?")), "{error}"),
        }
    }
}

/// Looks at `data` as an engine's library, for which a stand-in of its compiler is made, and as the loader's cache.
#[cfg(feature = "engine")]
pub fn engine(data: &[u8]) {
    use crate::wasm::{loader_cache, stand_in};
    if let Some(path) = loader_cache::find(data, "libwasmedge.so.0") {
        assert!(path.is_absolute() && path.as_os_str().len() < data.len());
    }
    match stand_in::derive(data) {
        // A symbol is some 40 bytes and its name, an import's is in the data; names may overlap there.
        Ok(all) => {
            for one in all {
                assert!(one.symbols > 0 && one.symbols * size_of::<[u64; 3]>() <= data.len());
                assert!(one.image.len() <= (8 << 20) && one.image.starts_with(b"\x7fELF"));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Looks at `data` as a file of the cache of compiled code. Behind a first byte `S` it is sealed first, so that the fuzzer
/// gets behind the digest.
pub fn code(data: &[u8]) {
    let key = Key::new([7; 32], &Target::from_text("engine x\n"));
    let sealed;
    let data = match data.split_first() {
        Some((b'S', rest)) => {
            sealed = entry::seal(rest, &key);
            sealed.as_slice()
        }
        _ => data,
    };
    let size = data.len() as u64;
    let facts = match entry::verify(data, size, &key) {
        Ok(facts) => facts,
        Err(damage) => return assert!(!damage.to_string().is_empty()),
    };
    assert!(data.starts_with(b"\x7fELF"), "no library");
    // Under another name it is nothing, and with less of it neither.
    let other = Key::new([8; 32], &Target::from_text("engine x\n"));
    assert!(entry::verify(data, size, &other).is_err());
    assert!(entry::verify(&data[..data.len() - 1], size - 1, &key).is_err());
    let mut again = Vec::new();
    let code = &data[..facts.code as usize];
    entry::write(code, &key, &facts.target, &mut again).expect("what was read can be written");
    assert_eq!(again, data);
}

#[cfg(test)]
mod tests {
    fn replay(corpus: &str, target: fn(&[u8])) {
        let corpus = format!("{}/../fuzz/corpus/{corpus}", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for entry in std::fs::read_dir(&corpus).unwrap() {
            target(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{corpus} is empty");
    }

    #[test]
    fn the_corpora_are_replayed() {
        replay("wasm", super::wasm);
        replay("code", super::code);
    }

    #[test]
    #[cfg(feature = "engine")]
    fn the_corpus_of_engines_is_replayed() {
        replay("engine", super::engine);
    }

    /// Each byte wrong in turn, and ends too early.
    #[test]
    #[cfg(feature = "engine")]
    fn a_damaged_engine_is_no_harm() {
        let good = include_bytes!("../../fuzz/corpus/engine/imports.so");
        for at in 0..good.len() {
            let mut bytes = good.to_vec();
            bytes[at] ^= 0xff;
            super::engine(&bytes);
            if at % 8 == 0 {
                super::engine(&good[..at]);
            }
        }
    }
}
