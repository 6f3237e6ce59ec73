//! Which file the entrypoint is, and what it turns out to be: asked while the host's files are in sight.

use super::binfmt;
use super::limits::Bounds;
use super::module::{self, Kind, Refusal, Survey};
use super::open::{self, Resolver};
use crate::aot::{Digest, Hashing};
use crate::from_start::FromStart;
use crate::native;
use crate::recognise::{self, Evidence};
use crate::{Error, Guest};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;

/// As many bytes of a file as tell its kind.
pub const HEAD: usize = 64;

/// Opens the entrypoint if it is to be run as a module; `None` if the kernel is to execute it.
pub fn open(guest: &Guest, rootfs: BorrowedFd<'_>) -> Result<Option<File>, Error> {
    match find(guest, rootfs) {
        Ok(file) => Ok((!is_kernels(guest, &file)).then_some(file)),
        Err(error) if guest.evidence == Evidence::Marked => Err(error),
        Err(_) => Ok(None),
    }
}

/// Opens the entrypoint; refused as runc refuses a program that isn't there.
fn find(guest: &Guest, rootfs: BorrowedFd<'_>) -> Result<File, Error> {
    let program = &guest.args[0];
    let search = native::search_path(&guest.env);
    let found = open::find(rootfs, program, &guest.cwd, search, Resolver::Kernel);
    open::refusing(program, found)
}

/// Whether the entrypoint is executed natively because nobody said that it is a module, and it is none; or it is one, and the
/// kernel knows how to execute it. What can't be read is the kernel's matter, too.
pub fn is_kernels(guest: &Guest, file: &File) -> bool {
    if guest.evidence == Evidence::Marked {
        return false;
    }
    if !read_head(file, module::MAGIC.len()).is_ok_and(|head| head == *module::MAGIC) {
        return true;
    }
    let executable = file
        .metadata()
        .is_ok_and(|facts| facts.permissions().mode() & 0o111 != 0);
    if guest.evidence == Evidence::Content || !executable {
        return false;
    }
    let extension = guest.args[0].rsplit('.').next().unwrap_or_default();
    let interpreter = binfmt::interpreter(extension);
    if let Some(name) = &interpreter {
        tracing::debug!(
            "{}: left to the kernel, which has {name} for it (binfmt_misc)",
            guest.args[0]
        );
    }
    interpreter.is_some()
}

/// Says what the file is, and refuses what can't be run: `None` for a Linux program. With `identify`, the digest of the very
/// bytes that were looked at comes along, unless they can't be read in order.
pub fn inspect(file: &File, guest: &Guest, identify: bool) -> Result<Option<(Survey, Option<Digest>)>, Refusal> {
    survey(file, &Bounds::of(guest), identify).map_err(|refusal| by_name(refusal, &guest.args[0]))
}

/// Text can begin with anything: what is called `.wat` is taken for it.
fn by_name(refusal: Refusal, name: &str) -> Refusal {
    match refusal {
        Refusal::Unknown(_) | Refusal::Empty if recognise::names_text(name) => Refusal::Text,
        other => other,
    }
}

fn survey(file: &File, bounds: &Bounds, identify: bool) -> Result<Option<(Survey, Option<Digest>)>, Refusal> {
    let size = file.metadata().map_err(Refusal::Read)?.len();
    let head = read_head(file, HEAD).map_err(Refusal::Read)?;
    if module::kind(&head)? == Kind::Program {
        return Ok(None);
    }
    let mut hashing = Hashing::new(file);
    let surveyed = match identify {
        true => module::survey(&mut hashing, size),
        false => module::survey(file, size),
    };
    let (survey, digest) = match surveyed {
        // What is malformed is for the engine to refuse, in its words.
        Err(Refusal::Read(error)) if error.kind() == ErrorKind::NotSeekable => (module::survey(file, size)?, None),
        Ok(survey) if identify => {
            let (digest, length) = hashing.finish().map_err(Refusal::Read)?;
            (survey, (length == size).then_some(digest))
        }
        other => (other?, None),
    };
    bounds.check(&survey, file)?;
    Ok(Some((survey, digest)))
}

/// The first `most` bytes, or all if there are fewer.
fn read_head(file: &File, most: usize) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(most);
    FromStart::new(file).take(most as u64).read_to_end(&mut head)?;
    Ok(head)
}
