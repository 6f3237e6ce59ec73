//! A system call of the runtime that fails, one after the other.

/// The tests of this module.
pub fn tests() -> Vec<proa_integration::Test> {
    Vec::new()
}
