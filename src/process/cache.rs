//! Compiled seccomp programs on disk, by the content of their profile.
//!
//! What is read here decides what a container may do, so an entry is believed only if nobody but the caller can have
//! written it, and if it is whole: a file of the caller's, writable by no one else, whose digest covers the key and the
//! program. Anything else is a miss.

use oci_spec::runtime::LinuxSeccomp;
use proa_seccomp::Program;
use rustix::fs::{AtFlags, Mode, OFlags};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// SHA-256 of what the program is made from.
pub(super) type Key = [u8; 32];

/// The longest file: 4096 instructions of 8 bytes, the digest, and the program's own header.
const LONGEST: u64 = 4096 * 8 + 32 + 64;

/// How many programs are kept. Hosts have a handful of profiles; whoever makes them up as they go shall not fill /run.
const MOST_ENTRIES: usize = 256;

/// The key of `profile`. Where notifications go is left out: it changes no instruction, and differs with every pod.
pub(super) fn key(profile: &LinuxSeccomp) -> serde_json::Result<Key> {
    let mut profile = profile.clone();
    profile.set_listener_path(None).set_listener_metadata(None);
    let mut hash = Sha256::new();
    hash.update(concat!("proa ", env!("CARGO_PKG_VERSION"), "\0"));
    hash.update(std::env::consts::ARCH);
    hash.update(proa_seccomp::library_version());
    // A field of the profile at a time would be faster, and wrong as soon as the specification has another one.
    hash.update(serde_json::to_vec(&profile)?);
    Ok(hash.finalize().into())
}

/// The program kept under `key` in `directory`, if there is one to be believed.
pub(super) fn load(directory: &Path, key: &Key) -> Option<Program> {
    // NONBLOCK: a pipe in its place must not hang the caller.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(directory.join(name(key)), flags, Mode::empty()).ok()?);
    let stat = rustix::fs::fstat(&file).ok()?;
    let size = u64::try_from(stat.st_size).ok()?;
    if !is_ours(&stat, rustix::fs::FileType::RegularFile) || size > LONGEST {
        return None;
    }
    let mut bytes = Vec::with_capacity(size as usize + 1);
    file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    let (digest, program) = bytes.split_first_chunk::<32>()?;
    if *digest != self::digest(key, program) {
        return None;
    }
    Program::decode(program)
}

/// Keeps `program` under `key` in `directory`, which is made if missing.
pub(super) fn store(directory: &Path, key: &Key, program: &Program) -> io::Result<()> {
    let directory = open_directory(directory)?;
    make_room(&directory)?;
    let temporary = format!(".{}.{}", std::process::id(), name(key));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(&directory, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
    let program = program.encode();
    let mut bytes = digest(key, &program).to_vec();
    bytes.extend(program);
    // No fsync: after a crash the digest tells a torn file, and the rename makes a whole one visible at once.
    let written = File::from(file).write_all(&bytes);
    let kept = written.and_then(|()| Ok(rustix::fs::renameat(&directory, &temporary, &directory, name(key))?));
    if kept.is_err() {
        rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty())?;
    }
    kept
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).recursive(true).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    if !is_ours(&rustix::fs::fstat(&directory)?, rustix::fs::FileType::Directory) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "not a directory that only its owner, the caller, may write to",
        ));
    }
    Ok(directory)
}

/// Empties a full cache: which entries are worth keeping isn't known, and all of them can be had again.
fn make_room(directory: &OwnedFd) -> io::Result<()> {
    let mut entries = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory.as_fd())? {
        let name = entry?.file_name().to_owned();
        if name.to_bytes().ends_with(b".bpf") {
            entries.push(name);
        }
    }
    if entries.len() >= MOST_ENTRIES {
        for name in entries {
            match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

fn is_ours(stat: &rustix::fs::Stat, kind: rustix::fs::FileType) -> bool {
    let others_write = Mode::WGRP | Mode::WOTH;
    rustix::fs::FileType::from_raw_mode(stat.st_mode) == kind
        && stat.st_uid == rustix::process::geteuid().as_raw()
        && !Mode::from_raw_mode(stat.st_mode).intersects(others_write)
}

fn name(key: &Key) -> String {
    let mut name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    name.push_str(".bpf");
    name
}

/// Covers the key, so that one profile's program can't be passed off as another's by renaming.
fn digest(key: &Key, program: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(key).chain_update(program).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("proa-cache-{}-{name}", std::process::id()));
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).expect("the scratch directory can be removed");
        }
    }

    fn profile(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    fn program() -> Program {
        Program {
            instructions: vec![6, 0, 0, 0, 0, 0, 0xff, 0x7f],
            flags: 4,
            notify: false,
        }
    }

    #[test]
    fn what_is_stored_is_found_again_under_its_own_key_only() {
        let scratch = Scratch::new("found");
        let key = [7; 32];
        assert_eq!(load(&scratch.0, &key), None);
        store(&scratch.0, &key, &program()).unwrap();
        assert_eq!(load(&scratch.0, &key), Some(program()));
        assert_eq!(load(&scratch.0, &[8; 32]), None);
        // Another profile's program under this name.
        std::fs::rename(scratch.0.join(name(&key)), scratch.0.join(name(&[8; 32]))).unwrap();
        assert_eq!(load(&scratch.0, &[8; 32]), None);
        assert_eq!(
            std::fs::metadata(&scratch.0).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn damage_is_a_miss() {
        let scratch = Scratch::new("damage");
        let key = [7; 32];
        store(&scratch.0, &key, &program()).unwrap();
        let path = scratch.0.join(name(&key));
        let whole = std::fs::read(&path).unwrap();
        for index in [0, 31, 32, 40, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[index] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(load(&scratch.0, &key), None, "byte {index}");
        }
        std::fs::write(&path, &whole[..whole.len() - 8]).unwrap();
        assert_eq!(load(&scratch.0, &key), None);
        std::fs::write(&path, b"").unwrap();
        assert_eq!(load(&scratch.0, &key), None);
        // And is repaired by the next one who compiles.
        store(&scratch.0, &key, &program()).unwrap();
        assert_eq!(load(&scratch.0, &key), Some(program()));
    }

    #[test]
    fn what_others_may_write_to_is_not_believed() {
        let scratch = Scratch::new("others");
        let key = [7; 32];
        store(&scratch.0, &key, &program()).unwrap();
        let path = scratch.0.join(name(&key));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(load(&scratch.0, &key), None);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(load(&scratch.0, &key).is_some());
        let elsewhere = scratch.0.join("elsewhere");
        std::fs::rename(&path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert_eq!(load(&scratch.0, &key), None);
        std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(store(&scratch.0, &key, &program()).is_err());
    }

    #[test]
    fn a_full_cache_is_emptied() {
        let scratch = Scratch::new("full");
        for index in 0..=MOST_ENTRIES {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&(index as u16).to_be_bytes());
            store(&scratch.0, &key, &program()).unwrap();
        }
        assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 1);
    }

    #[test]
    fn the_key_is_of_the_rules_and_not_of_the_listener() {
        let one = profile(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"}));
        let same = profile(
            serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x",
            "listenerMetadata": "pod"}),
        );
        let other = profile(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": []}));
        let key = |profile| key(profile).unwrap();
        assert_eq!(key(&one), key(&same));
        assert_ne!(key(&one), key(&other));
    }
}
