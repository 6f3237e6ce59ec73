//! The behaviour of an OCI runtime, by capability; see `proa_integration` for the harness.

mod exec;
mod fds;
mod hooks;
mod lifecycle;
mod mounts;
mod namespaces;
mod process;
mod terminal;

fn main() -> std::process::ExitCode {
    let all = [
        lifecycle::tests(),
        namespaces::tests(),
        mounts::tests(),
        process::tests(),
        hooks::tests(),
        terminal::tests(),
        fds::tests(),
        exec::tests(),
    ];
    proa_integration::main(all.into_iter().flatten().collect())
}
