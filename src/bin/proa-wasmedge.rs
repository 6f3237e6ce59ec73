//! The container's init when the entrypoint is WebAssembly: the same steps as the native init, then the engine.

use proa::launch::inspect;
use proa_executor::wasm::{WasmHandler, inspection};

proa_sys::main!(run);

fn run() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let verb = arguments
        .iter()
        .position(|argument| argument == "init" || argument == inspect::VERB);
    match verb.map(|at| (&arguments[at], &arguments[at + 1..])) {
        Some((verb, rest)) if verb == inspect::VERB => inspect::main(rest, inspection::answer),
        Some((_, rest)) => proa::launch::init::main(rest, &mut WasmHandler::new()),
        None => {
            eprintln!("proa-wasmedge is started by proa, as the init of a Wasm container; it has no use by itself");
            std::process::ExitCode::FAILURE
        }
    }
}
