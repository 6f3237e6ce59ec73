//! Turns the seccomp profile of an OCI bundle (`linux.seccomp`, runtime-spec 1.3 config-linux.md#seccomp) into the
//! classic BPF program that seccomp(2) installs.
//!
//! The crate reads and writes no file: a profile goes in, a program comes out.

#![forbid(unsafe_code)]

use oci_spec::runtime::LinuxSeccomp;

/// A compiled filter, ready for seccomp(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// `struct sock_filter` records (8 bytes each) in the machine's byte order.
    pub instructions: Vec<u8>,
    /// The `SECCOMP_FILTER_FLAG_*` bits that the profile asks for.
    pub flags: u64,
    /// Whether a rule uses `SCMP_ACT_NOTIFY`, so that installing returns a listener descriptor.
    pub notify: bool,
}

/// What is wrong with a profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Placeholder until the compiler lands.
    #[error("linux.seccomp: {0}")]
    Profile(String),
}

/// Compiles `profile` for the running architecture and the ones the profile lists.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, Error> {
    let _ = profile;
    todo!()
}
