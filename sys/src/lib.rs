//! Raw Linux system calls that neither `nix` nor `rustix` wraps safely, and the only crate of the workspace in which
//! `unsafe` is allowed.
//!
//! One file per kernel subsystem. Every function is safe to call, takes owned or borrowed descriptors, and returns the
//! errno of the call it makes; callers add the object (path, id, field) to the message.

pub mod bpf;
pub mod clone;
pub mod errno;
pub mod exec;
pub mod fd;
pub mod mapped;
pub mod memory;
pub mod mount;
pub mod net;
pub mod security;
pub mod shared;
pub mod signal;
pub mod threads;

/// The error of a raw system call.
pub type Errno = nix::errno::Errno;
/// The result of a raw system call.
pub type Result<T> = std::result::Result<T, Errno>;
