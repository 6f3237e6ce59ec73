//! What a piece of code was compiled from, by what, and for which processor.

use super::{Options, cpu};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::str::FromStr;

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// The version of what is hashed for a target, to be raised when code of before must not be used any more.
const FORMAT: u32 = 1;

/// Names a piece of code: the digest of its module, and half the digest of its [`Target`]. Written as
/// `MODULE-TARGET` in hexadecimal, which is the name of its file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    module: Digest,
    target: [u8; 16],
}

/// A text that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a key of compiled code: 64 and 32 hexadecimal digits with a hyphen between")]
pub struct KeyError(pub String);

/// What code depends on besides its module, as text, one `name value` a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(String);

impl Target {
    /// Code of the engine of this version and build, for this processor, with these options.
    pub fn new(version: &str, build: &str, options: Options) -> Self {
        let Options {
            cost,
            count,
            table_elements,
        } = options;
        let tables = table_elements.map_or("any".to_owned(), |limit| limit.to_string());
        let cpu = cpu::features();
        Self(format!(
            "format {FORMAT}\nengine WasmEdge {version}\nbuild {build}\ncpu {cpu}\ncost {cost}\ncount {count}\ntables {tables}\n"
        ))
    }

    /// Takes a text that [`Target::as_str`] gave.
    pub fn from_text(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value of a line.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
    }
}

impl Key {
    /// The key of the code for `target` of the module with this digest.
    pub fn new(module: Digest, target: &Target) -> Self {
        let digest = Sha256::digest(target.as_str());
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self { module, target: half }
    }

    /// The module's digest.
    pub fn module(&self) -> &Digest {
        &self.module
    }

    /// The name of its file.
    pub fn file_name(&self) -> String {
        format!("{self}.so")
    }

    /// The key whose code has this file name.
    pub fn of_file(name: &str) -> Option<Self> {
        name.strip_suffix(".so")?.parse().ok()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, &self.module)?;
        f.write_str("-")?;
        hex(f, &self.target)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let parse = || {
            let (module, target) = text.split_once('-')?;
            Some(Self {
                module: unhex(module)?,
                target: unhex(target)?,
            })
        };
        parse().ok_or_else(|| KeyError(text.to_owned()))
    }
}

/// Exactly as many lower-case digits as `N` bytes have: a key has one name.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

/// Reads a file once, from its start and in order, for two who want to know of it: whoever reads from this one, which may
/// skip ahead, and the digest, which skips nothing. So what the reader has seen is what the digest stands for, even if
/// somebody writes to the file meanwhile.
#[derive(Debug)]
pub struct Hashing<R> {
    source: R,
    hash: Sha256,
    at: u64,
    /// For what is skipped.
    buffer: Vec<u8>,
}

impl<R: Read> Hashing<R> {
    /// Reads from `source`.
    pub fn new(source: R) -> Self {
        Self {
            source,
            hash: Sha256::new(),
            at: 0,
            buffer: Vec::new(),
        }
    }

    /// Reads the rest; the digest of all of it, and its length.
    pub fn finish(mut self) -> io::Result<(Digest, u64)> {
        self.skip(u64::MAX)?;
        Ok((self.hash.finalize().into(), self.at))
    }

    fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(128 * 1024, 0);
        let skipped = loop {
            let most = buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            match self.read(&mut buffer[..most]) {
                Ok(0) => break Ok(()),
                Ok(count) => bytes -= count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.buffer = buffer;
        skipped
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

impl<R: Read> Seek for Hashing<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        match target {
            Some(target) if target >= self.at => {
                self.skip(target - self.at)?;
                Ok(self.at)
            }
            _ => Err(io::ErrorKind::NotSeekable.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn key(byte: u8) -> Key {
        Key::new([byte; 32], &Target::from_text("x"))
    }

    #[test]
    fn a_key_has_one_name() {
        let key = key(0xab);
        let text = key.to_string();
        assert_eq!(text.len(), 97);
        assert_eq!(text.parse(), Ok(key));
        assert_eq!(Key::of_file(&format!("{text}.so")), Some(key));
        let others = [
            text.to_uppercase(),
            text[1..].to_owned(),
            format!("{text}0"),
            format!(" {text}"),
            text.replace('-', "_"),
            text.replacen('a', "g", 1),
            String::new(),
            "-".to_owned(),
        ];
        for other in others {
            assert!(other.parse::<Key>().is_err(), "{other}");
        }
    }

    #[test]
    fn everything_that_code_depends_on_changes_the_key() {
        let options = Options::default();
        let target = Target::new("0.17.1", "abc", options);
        let cost = Options { cost: true, ..options };
        let tables = |limit| Options {
            table_elements: Some(limit),
            ..options
        };
        let count = Options { count: true, ..options };
        let all = [
            Key::new([1; 32], &target),
            Key::new([2; 32], &target),
            Key::new([1; 32], &Target::new("0.17.2", "abc", options)),
            Key::new([1; 32], &Target::new("0.17.1", "abd", options)),
            Key::new([1; 32], &Target::new("0.17.1", "abc", cost)),
            Key::new([1; 32], &Target::new("0.17.1", "abc", count)),
            Key::new([1; 32], &Target::new("0.17.1", "abc", tables(1))),
            Key::new([1; 32], &Target::new("0.17.1", "abc", tables(2))),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
        assert_eq!(all[0], Key::new([1; 32], &Target::new("0.17.1", "abc", options)));
        assert_eq!(target.get("engine"), Some("WasmEdge 0.17.1"));
        assert!(target.get("cpu").is_some_and(|cpu| cpu.len() > 8));
    }

    #[test]
    fn the_digest_is_of_all_bytes_however_they_are_read() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let expected: Digest = Sha256::digest(&bytes).into();
        let (digest, length) = Hashing::new(Cursor::new(&bytes)).finish().unwrap();
        assert_eq!((digest, length), (expected, 300_000));
        let mut skipping = Hashing::new(Cursor::new(&bytes));
        let mut two = [0; 2];
        skipping.seek(SeekFrom::Start(1000)).unwrap();
        skipping.read_exact(&mut two).unwrap();
        assert_eq!(two, bytes[1000..1002]);
        assert_eq!(skipping.seek(SeekFrom::Current(200_000)).unwrap(), 201_002);
        assert!(skipping.seek(SeekFrom::Start(5)).is_err());
        assert_eq!(skipping.seek(SeekFrom::Start(400_000)).unwrap(), 300_000);
        assert_eq!(skipping.finish().unwrap().0, expected);
    }
}
