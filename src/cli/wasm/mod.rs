//! `proa wasm SUBVERB`: what concerns WebAssembly only, one file a sub-verb.

mod cache;
mod compile;
mod inspect;
pub(super) mod stats;

pub(super) use stats::Figures;

use super::{Arity, Call, Error, help, print};

/// Runs the sub-verb that comes next on the command line.
pub(super) fn dispatch(call: &Call<'_>) -> Result<u8, Error> {
    use Arity::{AtLeast, Between, Exactly};
    let (verb, call) = call.next();
    match verb {
        "compile" => call.run("wasm compile", Exactly(1), None, compile::run),
        "inspect" => call.run("wasm inspect", Between(0, 1), None, inspect::run),
        "cache" => {
            let (verb, call) = call.next();
            match verb {
                "ls" => call.run("wasm cache ls", Exactly(0), None, cache::ls),
                "rm" => call.run("wasm cache rm", AtLeast(0), None, cache::rm),
                "prune" => call.run("wasm cache prune", Exactly(0), None, cache::prune),
                other => unknown(&call, "wasm cache", other),
            }
        }
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
