//! The `proa` command.

fn main() -> std::process::ExitCode {
    proa::cli::main()
}
