//! What the handler would find of an entrypoint's file, for who only asks ([`super::inspection`]).

use super::binding::Library;
use super::inspection::Verdict;
use super::module::Refusal;
use super::{code, entrypoint};
use crate::aot::{Key, Options};
use crate::policy::Aot;
use crate::{Error, Guest};
use std::fs::File;

/// What becomes of an entrypoint whose file is this one, with `library` as the engine.
pub fn verdict(guest: &Guest, file: &File, library: Option<&Library>) -> Result<Verdict, Error> {
    if entrypoint::is_kernels(guest, file) {
        return Ok(Verdict::Program);
    }
    let trusted = code::trusts_image(guest);
    let (survey, digest) = match entrypoint::inspect(file, guest, true) {
        Ok(Some(inspected)) => inspected,
        Ok(None) => return Ok(Verdict::Program),
        Err(Refusal::SharedLibrary) if trusted && guest.args[0].contains('/') => {
            return Ok(Verdict::Module { key: None });
        }
        Err(cause) => {
            let path = guest.args[0].clone();
            return Err(Error::Module { path, cause });
        }
    };
    let digest = digest.filter(|_| !trusted || survey.aot.is_empty());
    let policy = guest.policy.as_deref().filter(|policy| policy.aot != Aot::Off);
    let target = policy
        .zip(library)
        .and_then(|(policy, library)| code::target(library, Options::of(policy)));
    let key = digest.zip(target);
    Ok(Verdict::Module {
        key: key.map(|(digest, target)| Key::new(digest, &target).to_string()),
    })
}
