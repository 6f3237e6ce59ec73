//! What is decided of an entrypoint's file beside its own structure: by why it is in this hull at all, and by its name.

use super::binding::Library;
use super::binfmt;
use super::code;
use super::handler;
use super::inspection::Verdict;
use super::limits::Bounds;
use super::module::{self, Refusal};
use crate::aot::{Key, Options};
use crate::policy::Aot;
use crate::recognise::{self, Evidence};
use crate::{Error, Guest};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;

/// Whether the entrypoint is executed natively because nobody said that it is a module, and it is none; or it is one, and the
/// kernel knows how to execute it. What can't be read is the kernel's matter, too.
pub fn is_kernels(guest: &Guest, file: &File) -> bool {
    if guest.evidence == Evidence::Marked {
        return false;
    }
    let mut magic = [0; module::MAGIC.len()];
    if !handler::read_head(file, &mut magic).is_ok_and(|length| magic[..length] == *module::MAGIC) {
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

/// Text can begin with anything: what is called `.wat` is taken for it.
pub fn by_name(refusal: Refusal, name: &str) -> Refusal {
    match refusal {
        Refusal::Unknown(_) | Refusal::Empty if recognise::names_text(name) => Refusal::Text,
        other => other,
    }
}

/// What the handler would find of an entrypoint whose file is this one, with `library` as the engine.
pub fn verdict(guest: &Guest, file: &File, library: Option<&Library>) -> Result<Verdict, Error> {
    if is_kernels(guest, file) {
        return Ok(Verdict::Program);
    }
    let policy = guest.policy.as_deref().filter(|policy| policy.aot != Aot::Off);
    let trusted = policy.is_some_and(|policy| policy.trust_image_code);
    let (survey, digest) = match handler::inspect(file, &Bounds::of(guest), true) {
        Ok(Some(inspected)) => inspected,
        Ok(None) => return Ok(Verdict::Program),
        Err(Refusal::SharedLibrary) if trusted && guest.args[0].contains('/') => {
            return Ok(Verdict::Module { key: None });
        }
        Err(refusal) => {
            let cause = by_name(refusal, &guest.args[0]);
            let path = guest.args[0].clone();
            return Err(Error::Module { path, cause });
        }
    };
    let digest = digest.filter(|_| !trusted || survey.aot.is_empty());
    let target = policy
        .zip(library)
        .and_then(|(policy, library)| code::target(library, Options::of(policy)));
    let key = digest.zip(target);
    Ok(Verdict::Module {
        key: key.map(|(digest, target)| Key::new(digest, &target).to_string()),
    })
}
