//! The command line: runc's grammar, one file a verb.

/// Parses the command line, runs the verb, and maps its result to an exit status.
pub fn main() -> std::process::ExitCode {
    todo!()
}
