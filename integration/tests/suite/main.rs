//! The behaviour of an OCI runtime, by capability; see `proa_integration` for the harness.

mod attacks;
mod bad_input;
mod cgroups;
mod checkpoint;
mod controllers;
mod exec;
mod failures;
mod fallbacks;
mod fds;
mod features;
mod harness;
mod hooks;
mod idmap;
mod lifecycle;
mod limits;
mod managers;
mod mounts;
mod namespaces;
mod netdev;
mod notify;
mod process;
mod rootless;
mod rootless_cgroups;
mod session;
mod systemd;
mod terminal;
mod upgrade;
mod wasm;

fn main() -> std::process::ExitCode {
    if std::env::var_os(harness::FAULTY).is_some() {
        return proa_integration::main(harness::faulty());
    }
    let all = [
        harness::tests(),
        lifecycle::tests(),
        limits::tests(),
        namespaces::tests(),
        netdev::tests(),
        mounts::tests(),
        idmap::tests(),
        process::tests(),
        hooks::tests(),
        terminal::tests(),
        fds::tests(),
        features::tests(),
        exec::tests(),
        failures::tests(),
        failures::exhausted::tests(),
        failures::killed::tests(),
        failures::refused::tests(),
        checkpoint::all(),
        notify::tests(),
        cgroups::tests(),
        controllers::tests(),
        rootless::tests(),
        rootless_cgroups::tests(),
        session::tests(),
        bad_input::tests(),
        attacks::tests(),
        systemd::tests(),
        wasm::all(),
        fallbacks::tests(),
        upgrade::tests(),
        managers::tests(),
    ];
    proa_integration::main(all.into_iter().flatten().collect())
}
