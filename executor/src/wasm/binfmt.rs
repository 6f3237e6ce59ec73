//! Interpreters for WebAssembly that the administrator registered with the kernel (binfmt_misc): with those, a module is
//! a program that execve(2) can execute, and who relies on that must not find it run by another engine because of its name.
//!
//! Read by paths of the host, while those are in sight, and only once a module was found.

use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Where the kernel shows what is registered (Documentation/admin-guide/binfmt-misc.rst).
pub const PATH: &str = "/proc/sys/fs/binfmt_misc";

/// `BINFMTFS_MAGIC` of linux/magic.h.
const MAGIC: u32 = 0x4249_4e4d;
/// How every module begins.
const MODULE: &[u8] = b"\0asm\x01\0\0\0";
/// No entry is longer: the kernel takes at most a page when one is registered.
const ENTRY_MAX: u64 = 16 * 1024;

/// The name of an entry that is enabled and takes modules, if the kernel shows one. `extension` is that of the entrypoint's
/// name.
pub fn interpreter(extension: &str) -> Option<String> {
    // Opened as a path only: it must not set off an automount, which a process of the host would have to answer.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, PATH, flags, Mode::empty()).ok()?;
    // Not mounted, or not yet, and so nothing that this process could be sent to.
    fstatfs(&directory).ok().filter(|facts| facts.f_type as u32 == MAGIC)?;
    find(Path::new(PATH), extension)
}

fn find(directory: &Path, extension: &str) -> Option<String> {
    let read = |name: &std::ffi::OsStr| {
        let mut text = Vec::new();
        let file = File::open(directory.join(name)).ok()?;
        file.take(ENTRY_MAX).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    };
    if read("status".as_ref())?.trim() != "enabled" {
        return None;
    }
    let entries = std::fs::read_dir(directory).ok()?;
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    let mut takers: Vec<String> = names
        .filter(|name| name != "status" && name != "register")
        .filter(|name| read(name).is_some_and(|entry| takes_modules(&entry, extension)))
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    takers.sort_unstable();
    takers.into_iter().next()
}

/// Whether an entry, as the kernel prints it, is enabled and matches a module.
fn takes_modules(entry: &str, extension: &str) -> bool {
    let value = |key: &str| entry.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    if entry.lines().next() != Some("enabled") {
        return false;
    }
    if let Some(wanted) = value("extension ") {
        return wanted.strip_prefix('.').unwrap_or(wanted) == extension;
    }
    let Some(magic) = value("magic ").and_then(bytes) else {
        return false;
    };
    let mask = value("mask ").and_then(bytes);
    let offset = value("offset ")
        .and_then(|text| text.parse::<usize>().ok())
        .unwrap_or(0);
    let Some(module) = MODULE.get(offset..).filter(|rest| rest.len() >= magic.len()) else {
        return false;
    };
    !magic.is_empty()
        && magic.iter().enumerate().all(|(at, byte)| {
            let mask = mask.as_ref().and_then(|mask| mask.get(at)).copied().unwrap_or(0xff);
            (module[at] ^ byte) & mask == 0
        })
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WASM: &str = "enabled\ninterpreter /usr/bin/wasmtime\nflags: F\noffset 0\nmagic 0061736d\n";

    #[test]
    fn an_entry_for_modules_is_told_from_others() {
        for (entry, takes) in [
            (WASM, true),
            (&WASM.replace("enabled", "disabled"), false),
            (&WASM.replace("0061736d", "0061736d01000000"), true),
            (&WASM.replace("0061736d", "0061736d0d000100"), false),
            (&WASM.replace("0061736d", "7f454c46"), false),
            (&WASM.replace("0061736d", "006173ff\nmask ffffff00"), true),
            (&WASM.replace("offset 0", "offset 4"), false),
            (&WASM.replace("offset 0", "offset 4000000000"), false),
            (&WASM.replace("0061736d", "zz"), false),
            (&WASM.replace("0061736d", ""), false),
            ("enabled\ninterpreter /x\nflags: \nextension .wasm\n", true),
            ("enabled\ninterpreter /x\nflags: \nextension .WASM\n", false),
            ("enabled\ninterpreter /x\nflags: \nextension .jar\n", false),
            ("", false),
        ] {
            assert_eq!(takes_modules(entry, "wasm"), takes, "{entry}");
        }
    }

    #[test]
    fn the_whole_table_can_be_off() {
        let directory = std::env::temp_dir().join(format!("proa-binfmt-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("wasm"), WASM).unwrap();
        std::fs::write(directory.join("register"), WASM).unwrap();
        let found = [("enabled\n", Some("wasm".to_owned())), ("disabled\n", None)].map(|(status, expected)| {
            std::fs::write(directory.join("status"), status).unwrap();
            (find(&directory, "wasm"), expected)
        });
        std::fs::remove_dir_all(&directory).unwrap();
        for (found, expected) in found {
            assert_eq!(found, expected);
        }
        assert_eq!(find(&directory, "wasm"), None);
    }
}
