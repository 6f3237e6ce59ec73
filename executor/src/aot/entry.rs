//! The file that keeps a piece of code: the engine's ELF library as it is, so that the dynamic loader can map it, and behind
//! it what tells whether it is whole and whose it is. A loader looks at no byte that the ELF header does not lead to.
//!
//! ```text
//! code        the library
//! target      what it was compiled for, as text (see `Target`)
//! length      of the target, 4 bytes, little-endian
//! length      of the code, 8 bytes, little-endian
//! digest      SHA-256 of all before and of the key's name
//! magic       8 bytes
//! ```
//!
//! One file, not two, so that it is there or not, and never in parts.

use super::{Digest, Key, Target};
use sha2::{Digest as _, Sha256};
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"proaAOT1";
/// Both lengths, the digest and the magic.
const TRAILER: usize = 4 + 8 + 32 + 8;
/// The longest target text.
const TARGET_MAX: u32 = 4096;
/// What every library begins with.
const ELF: &[u8; 4] = b"\x7fELF";

/// Why a file is not the entry that its name promises.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It can't be read.
    #[error("cannot read: {0}")]
    Read(#[from] io::Error),
    /// Not an entry, or not all of one.
    #[error("{0}")]
    Form(&'static str),
    /// Bytes have changed, or it is another key's.
    #[error("its digest is another")]
    Digest,
}

/// What an entry says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Bytes of code.
    pub code: u64,
    /// What it was compiled for.
    pub target: Target,
}

/// Writes an entry: `code`, which is read to its end, for `key` and `target`. Returns its size.
pub fn write(mut code: impl Read, key: &Key, target: &Target, mut to: impl Write) -> io::Result<u64> {
    let mut hash = Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match code.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hash.update(&buffer[..count]);
                to.write_all(&buffer[..count])?;
                length += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let text = target.as_str().as_bytes();
    let text_length = u32::try_from(text.len())
        .ok()
        .filter(|length| *length <= TARGET_MAX)
        .ok_or_else(|| io::Error::other("the description of the target is too long"))?;
    let mut rest = text.to_vec();
    rest.extend_from_slice(&text_length.to_le_bytes());
    rest.extend_from_slice(&length.to_le_bytes());
    hash.update(&rest);
    hash.update(key.to_string());
    rest.extend_from_slice(&hash.finalize());
    rest.extend_from_slice(MAGIC);
    to.write_all(&rest)?;
    to.flush()?;
    Ok(length + rest.len() as u64)
}

/// Puts the digest and the magic behind `hashed`, whatever that is.
#[cfg(any(test, fuzzing))]
pub(crate) fn seal(hashed: &[u8], key: &Key) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(hashed);
    hash.update(key.to_string());
    [hashed, &hash.finalize(), MAGIC].concat()
}

/// Reads all of an entry of `size` bytes and says whether it is whole and `key`'s.
pub fn verify(mut from: impl Read, size: u64, key: &Key) -> Result<Facts, Damage> {
    let short = Damage::Form("it is too short");
    let Some(hashed) = size.checked_sub(40) else {
        return Err(short);
    };
    let mut hash = Sha256::new();
    let mut tail = Tail::default();
    let mut start = [0; 4];
    let mut left = hashed;
    let mut buffer = vec![0; 128 * 1024];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match from.read(&mut buffer[..most]) {
            Ok(0) => return Err(short),
            Ok(count) => {
                let bytes = &buffer[..count];
                if left == hashed {
                    start[..count.min(4)].copy_from_slice(&bytes[..count.min(4)]);
                }
                hash.update(bytes);
                tail.take(bytes);
                left -= count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut end = [0; 40];
    from.read_exact(&mut end)?;
    let (digest, magic) = end.split_at(32);
    if magic != MAGIC {
        return Err(Damage::Form("it does not end as an entry does"));
    }
    hash.update(key.to_string());
    let computed: Digest = hash.finalize().into();
    if digest != computed {
        return Err(Damage::Digest);
    }
    if &start != ELF {
        return Err(Damage::Form("it has no library"));
    }
    let (code, text) = tail.parse(hashed).ok_or(Damage::Form("its lengths don't fit"))?;
    let text = String::from_utf8(text).map_err(|_| Damage::Form("its target is no text"))?;
    Ok(Facts {
        code,
        target: Target::from_text(&text),
    })
}

/// Reads only what an entry says of itself, without looking whether it is whole: for lists.
pub fn describe(from: &std::fs::File, size: u64) -> Result<Facts, Damage> {
    use std::os::unix::fs::FileExt;
    let most = (TARGET_MAX as usize + TRAILER) as u64;
    let length = size.min(most);
    let mut bytes = vec![0; length as usize];
    from.read_exact_at(&mut bytes, size - length)?;
    let Some((hashed, end)) = bytes.len().checked_sub(40).map(|at| bytes.split_at(at)) else {
        return Err(Damage::Form("it is too short"));
    };
    if !end.ends_with(MAGIC) {
        return Err(Damage::Form("it does not end as an entry does"));
    }
    let mut tail = Tail::default();
    tail.take(hashed);
    let (code, text) = tail.parse(size - 40).ok_or(Damage::Form("its lengths don't fit"))?;
    let text = String::from_utf8(text).map_err(|_| Damage::Form("its target is no text"))?;
    Ok(Facts {
        code,
        target: Target::from_text(&text),
    })
}

/// The last bytes of what went by: the target and both lengths.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    const MOST: usize = TARGET_MAX as usize + 12;

    fn take(&mut self, bytes: &[u8]) {
        self.0
            .extend_from_slice(&bytes[bytes.len().saturating_sub(Self::MOST)..]);
        let surplus = self.0.len().saturating_sub(Self::MOST);
        self.0.drain(..surplus);
    }

    /// The length of the code and the target's bytes, if they make up `hashed` bytes.
    fn parse(self, hashed: u64) -> Option<(u64, Vec<u8>)> {
        let (rest, code) = self.0.split_last_chunk::<8>()?;
        let (rest, text) = rest.split_last_chunk::<4>()?;
        let (code, text) = (u64::from_le_bytes(*code), u32::from_le_bytes(*text));
        let whole = code.checked_add(u64::from(text))?.checked_add(12)? == hashed;
        let start = rest.len().checked_sub(text as usize)?;
        whole.then(|| (code, rest[start..].to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key {
        Key::new([byte; 32], &Target::from_text("x"))
    }

    fn entry(code: &[u8], text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let size = write(code, &key(1), &Target::from_text(text), &mut bytes).unwrap();
        assert_eq!(size, bytes.len() as u64);
        bytes
    }

    fn check(bytes: &[u8], key: &Key) -> Result<Facts, Damage> {
        verify(bytes, bytes.len() as u64, key)
    }

    #[test]
    fn what_was_written_is_read() {
        for length in [4, 5, 4000, 131_072, 300_000] {
            let mut code = ELF.to_vec();
            code.resize(length, 7);
            let text = "engine x\n".repeat(20);
            let bytes = entry(&code, &text);
            let facts = check(&bytes, &key(1)).unwrap();
            assert_eq!((facts.code, facts.target.as_str()), (length as u64, text.as_str()));
            assert!(bytes.starts_with(&code));
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let bytes = entry(b"\x7fELF and some code", "engine x\n");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(check(&changed, &key(1)).is_err(), "byte {at}");
        }
        for length in 0..bytes.len() {
            assert!(check(&bytes[..length], &key(1)).is_err(), "{length} bytes");
            assert!(
                check(&bytes[length..], &key(1)).is_err() || length == 0,
                "from {length}"
            );
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(check(&longer, &key(1)).is_err());
        assert!(matches!(verify(&bytes[..9], 100, &key(1)), Err(Damage::Form(_))));
    }

    #[test]
    fn an_entry_is_of_one_key_only() {
        let bytes = entry(b"\x7fELF", "");
        assert!(check(&bytes, &key(1)).is_ok());
        assert!(matches!(check(&bytes, &key(2)), Err(Damage::Digest)));
    }

    #[test]
    fn what_is_no_library_is_no_entry() {
        assert!(matches!(check(&entry(b"text", ""), &key(1)), Err(Damage::Form(_))));
        assert!(matches!(check(&entry(b"", ""), &key(1)), Err(Damage::Form(_))));
        let long = "x".repeat(TARGET_MAX as usize + 1);
        assert!(write(&b"\x7fELF"[..], &key(1), &Target::from_text(&long), Vec::new()).is_err());
    }
}
