//! The errno of a failed system call: whoever wraps it, and how it is told.

use crate::Errno;

/// The errno of a system call, whoever wraps it.
pub trait Raw {
    /// It; EIO for what is no system call's.
    fn raw(&self) -> Errno;
}

impl Raw for rustix::io::Errno {
    fn raw(&self) -> Errno {
        Errno::from_raw(self.raw_os_error())
    }
}

impl Raw for Errno {
    fn raw(&self) -> Errno {
        *self
    }
}

impl Raw for std::io::Error {
    fn raw(&self) -> Errno {
        self.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
    }
}

/// errno in the words that Go's runtime, and so every caller of runc, knows: strerror(3) without the capital.
pub fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    match text.as_bytes() {
        [first, second, ..] if first.is_ascii_uppercase() && second.is_ascii_lowercase() => {
            text[..1].to_ascii_lowercase() + &text[1..]
        }
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_go() {
        assert_eq!(words(Errno::ENOENT), "no such file or directory");
        assert_eq!(words(Errno::ERANGE), "numerical result out of range");
        assert_eq!(words(Errno::EXDEV), "invalid cross-device link");
        assert_eq!(words(Errno::ENOMEM), "cannot allocate memory");
        assert_eq!(words(Errno::EIO), "input/output error");
        assert_eq!(words(Errno::ELOOP), "too many levels of symbolic links");
    }
}
