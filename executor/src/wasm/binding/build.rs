//! Which build of the engine is loaded.

use super::{Library, Object};
use libc::{c_int, dl_phdr_info, size_t};
use std::ffi::c_void;

/// A note's type and owner that say what it is (elf(5), `NT_GNU_BUILD_ID`).
const BUILD_ID: u32 = 3;
const OWNER: &[u8] = b"GNU\0";

/// As the machine's own objects have it.
#[cfg(target_pointer_width = "64")]
type ProgramHeader = libc::Elf64_Phdr;
/// As the machine's own objects have it.
#[cfg(target_pointer_width = "32")]
type ProgramHeader = libc::Elf32_Phdr;

struct Search {
    /// An address in the library.
    within: usize,
    found: Option<String>,
}

impl Library {
    /// The build id that the linker gave the loaded library, in hexadecimal; `None` if it gave none.
    pub fn build_id(&self) -> Option<String> {
        let mut search = Search {
            within: self.functions.version_get as Object as usize,
            found: None,
        };
        // SAFETY: the callback gets the pointer to `search` back, which outlives the call, and nobody else uses it meanwhile.
        unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
        search.found
    }
}

/// Called for each loaded object; ends the search at the one that was meant.
unsafe extern "C" fn look(info: *mut dl_phdr_info, _size: size_t, data: *mut c_void) -> c_int {
    // SAFETY: the dynamic loader passes a valid description, and the pointer that `build_id` gave.
    let (info, search) = unsafe { (&*info, &mut *data.cast::<Search>()) };
    // SAFETY: the object has this many program headers there.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let start = |header: &ProgramHeader| (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
    let holds = headers.iter().any(|header| {
        let from = start(header);
        header.p_type == libc::PT_LOAD && (from..from + header.p_memsz as usize).contains(&search.within)
    });
    if !holds {
        return 0;
    }
    for header in headers.iter().filter(|header| header.p_type == libc::PT_NOTE) {
        // SAFETY: notes that a program header names are mapped (they are in a PT_LOAD segment) and never written to.
        let notes = unsafe { std::slice::from_raw_parts(start(header) as *const u8, header.p_filesz as usize) };
        search.found = search.found.take().or_else(|| build_id(notes));
    }
    1
}

/// Finds the build id among notes: each is three words (lengths of owner and content, type), the owner and the content, both
/// filled up to words.
fn build_id(mut notes: &[u8]) -> Option<String> {
    loop {
        let (head, rest) = notes.split_at_checked(12)?;
        let word = |at: usize| head[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or(0);
        let (owner_length, length) = (word(0) as usize, word(4) as usize);
        let (owner, rest) = rest.split_at_checked(owner_length.next_multiple_of(4))?;
        let content = rest.get(..length)?;
        if word(8) == BUILD_ID && owner == OWNER {
            return Some(content.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(kind: u32, owner: &[u8], content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [owner.len() as u32, content.len() as u32, kind] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        for part in [owner, content] {
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_build_id_is_found_among_notes() {
        let id = note(BUILD_ID, OWNER, &[0xab, 1, 2]);
        assert_eq!(build_id(&id).as_deref(), Some("ab0102"));
        let other = [note(1, b"GNU\0", &[1; 16]), note(BUILD_ID, b"Go\0\0", b"x"), id.clone()].concat();
        assert_eq!(build_id(&other).as_deref(), Some("ab0102"));
        for length in 0..id.len() - 1 {
            assert_eq!(build_id(&id[..length]), None, "{length}");
        }
    }
}
