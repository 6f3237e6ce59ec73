//! Where the dynamic loader finds a library by its name: `/etc/ld.so.cache`, as ldconfig(8) writes it (glibc,
//! sysdeps/generic/dl-cache.h). To ask the loader itself is to load the library.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The file.
pub const PATH: &str = "/etc/ld.so.cache";

/// How the table begins. glibc before 2.32 has an older one in front of it.
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// The table's head, and each entry.
const HEAD: usize = 48;
const ENTRY: usize = 24;
/// The libraries for this kind of process: `FLAG_ELF_LIBC6` and the architecture's.
const FLAGS: u32 = if cfg!(target_arch = "aarch64") { 0x0a03 } else { 0x0303 };

/// The path of the library `name` in a cache of this content, if it is there.
pub fn find<'cache>(cache: &'cache [u8], name: &str) -> Option<&'cache Path> {
    let start = cache.windows(MAGIC.len()).position(|window| window == MAGIC)?;
    // Offsets of strings count from here.
    let table = &cache[start..];
    let count = u32_at(table, MAGIC.len())? as usize;
    let entries = table.get(HEAD..)?.chunks_exact(ENTRY).take(count);
    let mut found = None;
    for entry in entries {
        let key = u32_at(entry, 4)?;
        if u32_at(entry, 0)? != FLAGS || string_at(table, key)? != name.as_bytes() {
            continue;
        }
        found = Some(Path::new(OsStr::from_bytes(string_at(table, u32_at(entry, 8)?)?)));
        // Others are for processors that have more than the least.
        if entry[16..] == [0; 8] {
            break;
        }
    }
    found.filter(|path| path.is_absolute())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn string_at(table: &[u8], at: u32) -> Option<&[u8]> {
    let rest = table.get(at as usize..)?;
    rest.iter().position(|byte| *byte == 0).map(|end| &rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache with these entries: flags, hwcap, name, path.
    fn cache(entries: &[(u32, u64, &str, &str)]) -> Vec<u8> {
        let mut table = MAGIC.to_vec();
        table.extend_from_slice(&(entries.len() as u32).to_ne_bytes());
        table.resize(HEAD, 0);
        let mut strings = Vec::new();
        let first = HEAD + entries.len() * ENTRY;
        for (flags, hwcap, name, path) in entries {
            table.extend_from_slice(&flags.to_ne_bytes());
            for string in [name, path] {
                table.extend_from_slice(&((first + strings.len()) as u32).to_ne_bytes());
                strings.extend_from_slice(string.as_bytes());
                strings.push(0);
            }
            table.extend_from_slice(&[0; 4]);
            table.extend_from_slice(&hwcap.to_ne_bytes());
        }
        table.extend_from_slice(&strings);
        table
    }

    #[test]
    fn a_library_is_found_by_its_name_and_architecture() {
        let mut bytes = cache(&[
            (0x0003, 0, "libx.so.0", "/lib32/libx.so.0"),
            (FLAGS, 0, "libx.so.01", "/lib/libx.so.01"),
            (FLAGS, 1 << 62, "libx.so.0", "/lib/newer/libx.so.0"),
            (FLAGS, 0, "libx.so.0", "/lib/libx.so.0"),
            (FLAGS, 0, "libx.so.0", "/usr/lib/libx.so.0"),
            (FLAGS, 0, "liby.so", "lib/liby.so"),
        ]);
        for old in ["", "ld.so-1.7.0 and what else an old table has"] {
            bytes.splice(0..0, old.bytes());
            assert_eq!(find(&bytes, "libx.so.0"), Some(Path::new("/lib/libx.so.0")));
            assert_eq!(find(&bytes, "libz.so"), None);
            assert_eq!(find(&bytes, "liby.so"), None, "not an absolute path");
        }
    }

    #[test]
    fn a_damaged_cache_has_no_library() {
        let bytes = cache(&[(FLAGS, 0, "libx.so.0", "/lib/libx.so.0")]);
        for length in 0..bytes.len() {
            assert_eq!(find(&bytes[..length], "libx.so.0"), None, "{length} bytes");
        }
        let mut bytes = bytes;
        bytes[HEAD + 4..HEAD + 8].fill(0xff);
        assert_eq!(find(&bytes, "libx.so.0"), None);
    }

    /// Every system has the C library in its cache, if it has one.
    #[test]
    fn this_system_s_c_library_is_found() {
        if let Ok(bytes) = std::fs::read(PATH) {
            let path = find(&bytes, "libc.so.6").expect("libc.so.6 in the cache");
            assert!(path.exists(), "{path:?}");
        }
    }
}
