//! Raw Linux system calls that neither `nix` nor `rustix` wraps safely, and the only crate of the workspace in which
//! `unsafe` is allowed.
//!
//! One file per kernel subsystem. Every function is safe to call, takes owned or borrowed descriptors, and returns the
//! errno of the call it makes; callers add the object (path, id, field) to the message.

pub mod bpf;
pub mod clone;
pub mod exec;
pub mod fd;
pub mod memory;
pub mod mount;
pub mod net;
pub mod security;
pub mod signal;

/// The error of a raw system call.
pub type Errno = nix::errno::Errno;
/// The result of a raw system call.
pub type Result<T> = std::result::Result<T, Errno>;

/// An errno in the words that Go's runtime, and so every caller of runc, knows: strerror(3) without the capital.
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
    use super::{Errno, words};

    #[test]
    fn errnos_have_the_words_of_go() {
        assert_eq!(words(Errno::EIO), "input/output error");
        assert_eq!(words(Errno::ENOMEM), "cannot allocate memory");
        assert_eq!(words(Errno::ELOOP), "too many levels of symbolic links");
        assert_eq!(words(Errno::EXDEV), "invalid cross-device link");
        assert_eq!(words(Errno::ENOSYS), "function not implemented");
    }
}
