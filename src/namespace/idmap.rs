//! The id maps of a user namespace, written from outside: `/proc/PID/{uid,gid}_map`, or newuidmap(1) and newgidmap(1)
//! where the caller may not.

use super::{Error, IdMap, Plan};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Writes the maps of the new user namespace of `pid`.
///
/// An unprivileged caller may map only its own id (user_namespaces(7)), and its group only once setgroups(2) is denied;
/// everything else needs the setuid helpers and `/etc/subuid`.
pub fn write(plan: &Plan, pid: Pid, privileged: bool, euid: u32, egid: u32) -> Result<(), Error> {
    let own_uid = privileged || is_own(&plan.uid_maps, euid);
    let own_gid = privileged || is_own(&plan.gid_maps, egid);
    if own_uid {
        write_file(pid, "uid_map", lines(&plan.uid_maps))?;
    } else {
        helper("newuidmap", pid, &plan.uid_maps)?;
    }
    if own_gid {
        if !privileged {
            write_file(pid, "setgroups", "deny".into())?;
        }
        write_file(pid, "gid_map", lines(&plan.gid_maps))
    } else {
        helper("newgidmap", pid, &plan.gid_maps)
    }
}

/// Whether the kernel lets an unprivileged process with `id` write this map itself.
pub(crate) fn is_own(maps: &[IdMap], id: u32) -> bool {
    matches!(maps, [map] if map.host == id && map.size == 1)
}

pub(crate) fn lines(maps: &[IdMap]) -> String {
    maps.iter()
        .map(|map| format!("{} {} {}\n", map.container, map.host, map.size))
        .collect()
}

fn write_file(pid: Pid, name: &str, text: String) -> Result<(), Error> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    std::fs::write(&path, &text).map_err(|source| Error::Write { path, text, source })
}

/// The ranges as newuidmap(1) takes them, after the pid.
pub(crate) fn arguments(maps: &[IdMap]) -> impl Iterator<Item = String> {
    maps.iter()
        .flat_map(|map| [map.container, map.host, map.size].map(|number| number.to_string()))
}

fn helper(program: &str, pid: Pid, maps: &[IdMap]) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.arg(pid.to_string()).stdin(Stdio::null());
    command.args(arguments(maps));
    let shown = format!("{command:?}").replace('"', "");
    let failed = |problem| Error::Helper {
        command: shown.clone(),
        problem,
    };
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(format!(
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_single_own_id_is_written_without_help() {
        let own = IdMap {
            container: 0,
            host: 1000,
            size: 1,
        };
        assert!(is_own(&[own], 1000));
        assert!(!is_own(&[own], 1001));
        assert!(!is_own(
            &[
                own,
                IdMap {
                    container: 1,
                    host: 100_000,
                    size: 65536
                }
            ],
            1000
        ));
        assert!(!is_own(&[IdMap { size: 2, ..own }], 1000));
    }

    #[test]
    fn one_line_a_range() {
        let maps = [
            IdMap {
                container: 0,
                host: 1000,
                size: 1,
            },
            IdMap {
                container: 1,
                host: 100_000,
                size: 65536,
            },
        ];
        assert_eq!(lines(&maps), "0 1000 1\n1 100000 65536\n");
    }
}
