//! The container's init when the entrypoint is WebAssembly: the same steps as the native init, then the engine.

use proa_executor::wasm::WasmHandler;

fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match arguments.iter().position(|argument| argument == "init") {
        Some(at) => proa::launch::init::main(&arguments[at + 1..], &mut WasmHandler::new()),
        None => {
            eprintln!("proa-wasmedge is started by proa, as the init of a Wasm container; it has no use by itself");
            std::process::ExitCode::FAILURE
        }
    }
}
