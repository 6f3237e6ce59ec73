//! The behaviour of an OCI runtime, by capability; see `proa_integration` for the harness.

mod lifecycle;

fn main() -> std::process::ExitCode {
    let all = [lifecycle::tests()];
    proa_integration::main(all.into_iter().flatten().collect())
}
