//! The behaviour of an OCI runtime, by capability; see `proa_integration` for the harness.

mod lifecycle;
mod mounts;
mod namespaces;

fn main() -> std::process::ExitCode {
    let all = [lifecycle::tests(), namespaces::tests(), mounts::tests()];
    proa_integration::main(all.into_iter().flatten().collect())
}
