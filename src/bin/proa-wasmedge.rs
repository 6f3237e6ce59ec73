//! The container's init when the entrypoint is WebAssembly: the same steps as the native init, then the engine.

fn main() -> std::process::ExitCode {
    todo!()
}
