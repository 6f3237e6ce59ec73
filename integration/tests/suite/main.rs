//! The behaviour of an OCI runtime, by capability; see `proa_integration` for the harness.

mod bad_input;
mod cgroups;
mod exec;
mod fds;
mod hooks;
mod lifecycle;
mod mounts;
mod namespaces;
mod process;
mod security;
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
        cgroups::tests(),
        bad_input::tests(),
        security::tests(),
    ];
    proa_integration::main(all.into_iter().flatten().collect())
}
