//! The `proa` command, and the init of native containers.

use proa::launch::compile;
use proa_executor::native::NativeHandler;
use std::ffi::OsString;
use std::process::ExitCode;

proa_sys::main!(run);

fn run() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Before anything of the command line is touched: init starts with every container.
    match arguments.get(1) {
        Some(verb) if verb == "init" => proa::launch::init::main(&arguments[2..], &mut NativeHandler::new()),
        Some(verb) if verb == compile::VERB => compile::main(&arguments[2..]),
        _ => proa::cli::main(),
    }
}
