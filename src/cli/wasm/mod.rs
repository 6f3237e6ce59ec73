//! `proa wasm SUBVERB`: what concerns WebAssembly only, one file a sub-verb.

pub(super) mod stats;

pub(super) use stats::Figures;

use super::{Arity, Call, Error, help, print};

/// Runs the sub-verb that comes next on the command line.
pub(super) fn dispatch(call: &Call<'_>) -> Result<u8, Error> {
    use Arity::Exactly;
    let (verb, call) = call.next();
    match verb {
        "stats" => call.run("wasm stats", Exactly(1), None, stats::run),
        other => unknown(&call, "wasm", other),
    }
}

/// The sub-verbs, if one asks for help or names none.
fn unknown(call: &Call<'_>, verb: &'static str, given: &str) -> Result<u8, Error> {
    if matches!(given, "" | "-h" | "--help" | "help") {
        return print(help::group(verb).as_bytes());
    }
    call.set_up(&call.typed)?;
    Err(Error::UnknownVerb(format!("{verb} {given}")))
}
