//! Which managers are installed, and which releases of them.

use super::tree::Tree;
use super::{Manager, Version};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where programs are, besides `PATH`.
const DIRECTORIES: [&str; 7] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/opt/bin",
];

/// A manager that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub manager: Manager,
    /// Its daemon, or podman itself; a path inside of the tree.
    pub program: PathBuf,
    /// What it says of itself. `None` in a tree that is not the host's: its programs are not run.
    pub version: Option<Version>,
}

/// One manager, if it is installed.
pub fn find(tree: &Tree, manager: Manager) -> Option<Found> {
    let program = manager.programs().iter().find_map(|name| which(tree, name))?;
    let version = tree.is_host().then(|| ask(&program)).flatten();
    Some(Found {
        manager,
        program,
        version,
    })
}

/// Every manager that is installed.
pub fn all(tree: &Tree) -> Vec<Found> {
    Manager::ALL.iter().filter_map(|manager| find(tree, *manager)).collect()
}

/// The path of a program, as the manager's users would find it.
pub fn which(tree: &Tree, name: &str) -> Option<PathBuf> {
    let path = tree
        .is_host()
        .then(|| std::env::var_os("PATH"))
        .flatten()
        .unwrap_or_default();
    let given: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    let dirs = given
        .iter()
        .map(PathBuf::as_path)
        .chain(DIRECTORIES.iter().map(Path::new));
    dirs.map(|dir| dir.join(name)).find(|path| tree.is_program(path))
}

/// What `PROGRAM --version` says; a program that fails has no version.
fn ask(program: &Path) -> Option<Version> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Version::find(&String::from_utf8_lossy(&output.stdout))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Scratch;
    use super::*;

    #[test]
    fn a_managers_daemon_is_found_in_a_tree_and_not_run() {
        let scratch = Scratch::new("detect");
        scratch.program(
            "/usr/bin/dockerd",
            "#!/bin/sh\necho ran >&2; echo Docker version 28.5.2\n",
        );
        scratch.write("/usr/bin/podman", "not executable");
        let found = all(&scratch.tree());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].manager, Manager::Docker);
        assert_eq!(found[0].program, Path::new("/usr/bin/dockerd"));
        assert_eq!(found[0].version, None);
    }
}
