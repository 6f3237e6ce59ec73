use super::*;
use std::io::Cursor;

/// A section: id, size (one byte), content.
fn part(id: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![id, u8::try_from(content.len()).unwrap()];
    bytes.extend_from_slice(content);
    bytes
}

fn name(text: &str) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(text.len()).unwrap()];
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn module(parts: &[Vec<u8>]) -> Vec<u8> {
    [b"\0asm\x01\0\0\0".to_vec(), parts.concat()].concat()
}

fn export(names: &[&str]) -> Vec<u8> {
    let mut content = vec![u8::try_from(names.len()).unwrap()];
    for text in names {
        content.extend(name(text));
        content.extend([0, 0]);
    }
    part(7, &content)
}

fn import(module: &str, tail: &[u8]) -> Vec<u8> {
    part(2, &[vec![1], name(module), name("field"), tail.to_vec()].concat())
}

fn look(bytes: &[u8]) -> Result<Survey, Refusal> {
    survey(Cursor::new(bytes), bytes.len() as u64)
}

#[test]
fn the_first_bytes_tell_the_kind() {
    assert_eq!(kind(b"\0asm\x01\0\0\0").unwrap(), Kind::Module);
    assert_eq!(kind(b"#!/bin/sh\n").unwrap(), Kind::Program);
    assert!(matches!(kind(b"\0asm\x0d\0\x01\0"), Err(Refusal::Component)));
    assert!(matches!(kind(b"\0asm\x02\0\0\0"), Err(Refusal::Version(2))));
    assert!(matches!(
        kind(b"\0asm\x01\0\0"),
        Err(Refusal::Truncated { needed: 8, size: 7, .. })
    ));
    assert!(matches!(
        kind(b"\0as"),
        Err(Refusal::Truncated { needed: 8, size: 3, .. })
    ));
    assert!(matches!(kind(b""), Err(Refusal::Empty)));
    assert!(matches!(kind(b"\n (module)"), Err(Refusal::Text)));
    assert!(matches!(kind(b";; text\n(module)"), Err(Refusal::Text)));
    assert!(matches!(kind(b"hello"), Err(Refusal::Unknown(head)) if head == "hello"));
}

#[test]
fn a_library_is_not_a_program() {
    let mut elf = [0u8; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[16] = 3;
    assert!(matches!(kind(&elf), Err(Refusal::SharedLibrary)));
    elf[25] = 0x10;
    assert_eq!(kind(&elf).unwrap(), Kind::Program);
    elf[25] = 0;
    elf[16] = 2;
    assert_eq!(kind(&elf).unwrap(), Kind::Program);
    assert_eq!(kind(b"\x7fELF").unwrap(), Kind::Program);
}

#[test]
fn exports_tell_commands_from_reactors() {
    let command = look(&module(&[export(&["memory", "_start"])])).unwrap();
    assert!(command.check(None).is_ok());
    let both = look(&module(&[export(&["_initialize", "_start"])])).unwrap();
    assert!(both.check(None).is_ok());
    let reactor = look(&module(&[export(&["_initialize", "run"])])).unwrap();
    assert!(matches!(reactor.check(None), Err(Refusal::Reactor)));
    let neither = look(&module(&[])).unwrap();
    assert!(matches!(neither.check(None), Err(Refusal::NotCommand)));
    // A global of that name is no function.
    let global = part(7, &[vec![1], name("_start"), vec![3, 0]].concat());
    assert!(!look(&module(&[global])).unwrap().command);
}

#[test]
fn every_cut_of_a_module_is_refused_or_loses_whole_sections() {
    let whole = module(&[
        import("wasi_snapshot_preview1", &[0, 0]),
        part(5, &[1, 0, 2]),
        export(&["_start"]),
    ]);
    let mut bounds = vec![8];
    while let Some(&last) = bounds.last() {
        if last >= whole.len() {
            break;
        }
        bounds.push(last + 2 + usize::from(whole[last + 1]));
    }
    assert_eq!(bounds.last(), Some(&whole.len()));
    for end in 8..whole.len() {
        let cut = look(&whole[..end]);
        if bounds.contains(&end) {
            assert!(cut.is_ok(), "{end}");
        } else {
            assert!(matches!(cut, Err(Refusal::Truncated { .. })), "{end}: {cut:?}");
        }
    }
}

#[test]
fn memory_is_counted_wherever_it_comes_from() {
    assert_eq!(look(&module(&[part(5, &[1, 0, 17])])).unwrap().pages, 17);
    assert_eq!(look(&module(&[part(5, &[2, 1, 3, 9, 0, 5])])).unwrap().pages, 5);
    assert_eq!(
        look(&module(&[import("env", &[2, 3, 0x80, 0x02, 0x80, 0x04])]))
            .unwrap()
            .pages,
        256
    );
    assert_eq!(look(&module(&[import("env", &[1, 0x70, 0, 4])])).unwrap().pages, 0);
}

#[test]
fn the_memory_limit_bounds_the_first_pages() {
    let survey = look(&module(&[part(5, &[1, 0, 16]), export(&["_start"])])).unwrap();
    assert!(survey.check(Some(16 * PAGE)).is_ok());
    assert!(survey.check(None).is_ok());
    let refused = survey.check(Some(16 * PAGE - 1)).unwrap_err();
    assert!(matches!(refused, Refusal::Memory { pages: 16, .. }));
    assert!(refused.to_string().contains("1048576 bytes"), "{refused}");
}

#[test]
fn imports_are_named() {
    let survey = look(&module(&[import("env", &[0, 0]), export(&["_start"])])).unwrap();
    assert_eq!(survey.foreign_imports(), ["env"]);
    assert!(survey.check(None).is_ok());
    for foreign in ["wasi_unstable", "wasi:cli/run@0.2.0"] {
        let survey = look(&module(&[import(foreign, &[0, 0]), export(&["_start"])])).unwrap();
        assert!(matches!(survey.check(None), Err(Refusal::Imports(name)) if name == foreign));
    }
}

#[test]
fn sections_of_compiled_code_are_few() {
    let compiled = || part(0, &name("wasmedge"));
    let with = |count: usize| look(&module(&[export(&["_start"]), compiled().repeat(count)]));
    assert_eq!(with(AOT_SECTIONS_MAX).unwrap().aot.len(), AOT_SECTIONS_MAX);
    let refused = with(AOT_SECTIONS_MAX + 1).unwrap_err().to_string();
    assert_eq!(refused, "more than 16 custom sections called \"wasmedge\"");
}

#[test]
fn code_compiled_ahead_of_time_is_found_and_hidden() {
    let aot = part(0, &[name("wasmedge"), b"native code".to_vec()].concat());
    let other = part(0, &[name("wasmedg"), b"x".to_vec()].concat());
    let mut bytes = module(&[other, aot, export(&["_start"])]);
    let found = look(&bytes).unwrap().aot;
    assert_eq!(found.len(), 1);
    hide_aot(&mut bytes, &found);
    let hidden = look(&bytes).unwrap();
    assert!(hidden.aot.is_empty() && hidden.command);
    assert!(bytes.windows(8).any(|window| window == b"_asmedge"));
    // An offset beyond the module, were it to shrink between two looks, changes nothing.
    hide_aot(&mut bytes, &[1 << 40]);
}

#[test]
fn unknown_content_is_left_to_the_engine() {
    let odd = part(2, &[1, 3, b'e', b'n', b'v', 1, b'f', 77]);
    assert!(look(&module(&[odd, export(&["_start"])])).unwrap().command);
    assert!(
        look(&module(&[part(200, &[1, 2, 3]), export(&["_start"])]))
            .unwrap()
            .command
    );
}

#[test]
fn lengths_beyond_reason_do_no_harm() {
    // A section size of five bytes of 0xff, an export count of four thousand million, a name longer than its section.
    let mut endless = module(&[]);
    endless.extend([7, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(look(&endless), Err(Refusal::Truncated { .. })));
    endless.extend([0xff; 12]);
    assert!(look(&endless).is_err());
    let many = module(&[part(7, &[0xff, 0xff, 0xff, 0xff, 0x0f])]);
    assert!(look(&many).is_err());
    let long = module(&[part(7, &[1, 0x7f, b'a', 0, 0]), export(&["_start"])]);
    assert!(look(&long).unwrap().command);
    let number = module(&[vec![
        7, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1,
    ]]);
    assert!(matches!(look(&number), Err(Refusal::Malformed { .. })));
    assert!(matches!(survey(Cursor::new(b""), 1 << 32), Err(Refusal::TooLarge(_))));
}

#[test]
fn no_bytes_make_it_panic() {
    let whole = module(&[
        part(0, &name("wasmedge")),
        import("wasi_snapshot_preview1", &[2, 1, 1, 2]),
        part(5, &[1, 0, 2]),
        export(&["_start", "_initialize"]),
        part(8, &[0]),
    ]);
    let mut next = crate::fuzz::numbers(0x9e37_79b9_7f4a_7c15);
    let mut refused = 0;
    for _ in 0..50_000 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            let at = 8 + next() as usize % (bytes.len() - 8);
            bytes[at] = next() as u8;
        }
        bytes.truncate(8 + next() as usize % (2 * bytes.len()));
        refused += usize::from(look(&bytes).is_err());
    }
    assert!(refused > 1000, "{refused}");
}
