//! Wasm modules for tests: compiled from C, or made by hand where they are to be wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A component's first bytes: the magic, then layer 1 of version 13.
pub const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Compiles C for WASI (preview 1) into `dir`; the module's path. `flags` go to clang.
pub fn compile(dir: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let file = dir.join(format!("{name}.c"));
    let module = dir.join(format!("{name}.wasm"));
    fs::write(&file, source).expect("C source");
    let status = Command::new("clang")
        .args(["--target=wasm32-wasi", "-O1", "-o"])
        .arg(&module)
        .arg(&file)
        .args(flags)
        // Not every view has a /tmp that can be written.
        .env("TMPDIR", dir)
        .status();
    let status =
        status.unwrap_or_else(|e| panic!("clang: {e}: apt-get install clang lld wasi-libc libclang-rt-dev-wasm32"));
    assert!(status.success(), "clang {name}.c: {status}");
    module
}

/// One section of a module: its identity, the size of its content (LEB128) and that.
pub fn section(id: u8, content: &[u8]) -> Vec<u8> {
    let mut section = vec![id];
    let mut size = content.len();
    while size >= 0x80 {
        section.push(size as u8 | 0x80);
        size >>= 7;
    }
    section.push(size as u8);
    section.extend_from_slice(content);
    section
}
