//! `--version`, `--help`, and what is shown for a wrong command line.

use super::{SPEC_VERSION, print};
use crate::launch;
use clap::Command;

/// The commit that the build was made from, if the build says so.
pub const COMMIT: Option<&str> = option_env!("PROA_COMMIT");

/// In runc's shape: engines parse the first word's line, `commit:` and `spec:`.
pub fn version() -> String {
    let commit = COMMIT
        .filter(|commit| !commit.is_empty())
        .map_or(String::new(), |commit| format!("commit: {commit}\n"));
    format!(
        "proa version {}\n{commit}spec: {SPEC_VERSION}\n",
        env!("CARGO_PKG_VERSION")
    )
}

const COMMANDS: &[(&str, &str)] = &[
    ("checkpoint", "checkpoint a running container"),
    ("create", "create a container"),
    (
        "delete",
        "delete any resources held by the container often used with detached container",
    ),
    (
        "events",
        "display container events such as OOM notifications, cpu, memory, and IO usage statistics",
    ),
    ("doctor", "look what this host has of what containers need"),
    ("exec", "execute new process inside the container"),
    (
        "kill",
        "kill sends the specified signal (default: SIGTERM) to the container's init process",
    ),
    ("list", "lists containers started by proa with the given root"),
    ("pause", "pause suspends all processes inside the container"),
    ("ps", "ps displays the processes running inside a container"),
    ("restore", "restore a container from a previous checkpoint"),
    ("resume", "resumes all processes that have been previously paused"),
    ("run", "create and run a container"),
    (
        "setup",
        "print or write the configuration by which a container manager uses proa, or a RuntimeClass",
    ),
    ("spec", "create a new specification file"),
    ("start", "executes the user defined process in a created container"),
    ("state", "output the state of a container"),
    ("update", "update container resource constraints"),
    ("features", "show the enabled features"),
    ("wasm", "what concerns WebAssembly only: compile, inspect, cache, stats"),
    ("help, h", "Shows a list of commands or help for one command"),
];

/// Verbs of more than one word.
const SUB_COMMANDS: &[(&str, &str)] = &[
    (
        "wasm inspect",
        "explain what would become of a bundle, or of a module, and why",
    ),
    (
        "wasm compile",
        "compile a module ahead of time, into the cache or a file",
    ),
    ("wasm cache ls", "list the cache of compiled code"),
    ("wasm cache rm", "remove entries of the cache of compiled code"),
    (
        "wasm cache prune",
        "remove what is old or too much in the cache of compiled code",
    ),
    ("wasm stats", "show what a Wasm container's guest does and has done"),
];

/// `{}` is the name that proa was called by.
const GENERAL: &str = "\
NAME:
   {} - Open Container Initiative runtime for Linux and WebAssembly entrypoints

proa is called by container engines, or by hand, exactly as runc is. A container is described by a bundle: a directory with
a specification file named \"config.json\" and a root filesystem.

To start a new instance of a container:

    # {} run [ -b bundle ] <container-id>

USAGE:
   {} [global options] command [command options] [arguments...]

COMMANDS:
";

const GLOBAL: &str = "
GLOBAL OPTIONS:
   --debug             enable debug logging
   --log-level value   set how much is logged ('error', 'warning', 'info' or 'debug') (default: \"info\")
   --log value         set the log file to write proa logs to (default is '/dev/stderr')
   --log-format value  set the log format ('text' (default), or 'json') (default: \"text\")
   --root value        root directory for storage of container state (this should be located in tmpfs) (default: \"/run/proa\")
   --systemd-cgroup    enable systemd cgroup support, expects cgroupsPath to be of form \"slice:prefix:name\"
   --cgroup-manager value  who makes cgroups: 'cgroupfs', 'systemd', or 'disabled' for none
   --rootless value    ignore cgroup permission errors ('true', 'false', or 'auto') (default: \"auto\")
   --config value      configuration file (default: \"/etc/proa/config.toml\", if there is one)
   --engine-cache value  where WebAssembly compiled ahead of time is kept (default: \"/var/lib/proa/aot\")
   --wasm-detect value  which entrypoints are WebAssembly without an annotation: 'annotation' (none), 'name' (*.wasm), or 'auto' (by content)
   --help, -h          show help
   --version, -v       print the version
";

/// What `proa --help` prints.
pub fn general() -> String {
    let commands: String = COMMANDS
        .iter()
        .map(|(name, about)| format!("   {name:<12}{about}\n"))
        .collect();
    format!("{}{commands}{GLOBAL}", GENERAL.replace("{}", &launch::program()))
}

/// What `proa GROUP --help` prints.
pub fn group(group: &str) -> String {
    let program = launch::program();
    let commands: String = SUB_COMMANDS
        .iter()
        .filter(|(name, _)| name.strip_prefix(group).is_some_and(|rest| rest.starts_with(' ')))
        .map(|(name, about)| format!("   {name:<20}{about}\n"))
        .collect();
    let about = about(group).map_or(String::new(), |about| format!(" - {about}"));
    format!("NAME:\n   {program} {group}{about}\n\nCOMMANDS:\n{commands}")
}

fn about(verb: &str) -> Option<&'static str> {
    COMMANDS
        .iter()
        .chain(SUB_COMMANDS)
        .find(|(name, _)| *name == verb)
        .map(|(_, about)| *about)
}

/// What `proa VERB --help` prints.
pub fn verb(command: &mut Command) -> String {
    let name = command.get_name().to_owned();
    let about = about(&name).unwrap_or_default();
    let program = launch::program();
    let mut shown = command.clone().bin_name(format!("{program} {name}"));
    format!("NAME:\n   {program} {name} - {about}\n\n{}", shown.render_help())
}

/// On stdout, as runc does; the error itself goes to the log.
pub fn incorrect_usage(command: Option<&mut Command>) {
    let help = command.map_or_else(general, verb);
    // The error that is reported next is worth more than a closed stdout.
    print(format!("Incorrect Usage.\n\n{help}").as_bytes()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_has_runcs_shape() {
        let text = version();
        let mut lines = text.lines();
        assert_eq!(
            lines.next().unwrap(),
            format!("proa version {}", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(lines.next_back().unwrap(), format!("spec: {SPEC_VERSION}"));
    }

    #[test]
    fn every_command_is_listed() {
        let text = general();
        for verb in ["create", "features", "restore", "setup", "--rootless"] {
            assert!(text.contains(&format!("   {verb}")), "{verb}");
        }
    }
}
