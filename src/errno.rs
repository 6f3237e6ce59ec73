//! How a system call's failure is told.

use nix::errno::Errno;

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
    }
}
