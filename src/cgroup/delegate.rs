//! Who owns a container's cgroup (config-linux.md#cgroup-ownership): a container that sees its cgroup in a namespace of its own and
//! may write there, such as one that runs systemd, gets to make cgroups below it.

use super::Error;
use super::file::Dir;
use nix::errno::Errno;
use nix::unistd::{Uid, chown};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};
use std::path::{Component, Path, PathBuf};

/// What cgroups(7) lists for kernels that don't say themselves (before 4.15).
const FILES: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

/// The user on the host who is to own the cgroup: the one who executes the container's process, if the configuration has a
/// new cgroup namespace and a writable cgroup file system at its place. `None`: it stays as it is made.
pub(super) fn owner(spec: &Spec) -> Option<u32> {
    let linux = spec.linux().as_ref()?;
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let find = |kind| namespaces.iter().find(|namespace| namespace.typ() == kind);
    let own_namespace = find(LinuxNamespaceType::Cgroup)?.path().is_none();
    let writable = spec.mounts().iter().flatten().any(is_writable_cgroup);
    if !own_namespace || !writable {
        return None;
    }
    let user = spec.process().as_ref()?.user().uid();
    match find(LinuxNamespaceType::User) {
        None => Some(user),
        Some(_) => on_host(user, linux.uid_mappings().as_deref().unwrap_or_default()),
    }
}

fn is_writable_cgroup(mount: &Mount) -> bool {
    let is = |path: Option<&Path>, what: &str| path.is_some_and(|path| clean(path) == Path::new(what));
    let options = mount.options().as_deref().unwrap_or_default();
    let last = options.iter().rfind(|option| matches!(option.as_str(), "ro" | "rw"));
    is(mount.source().as_deref(), "cgroup")
        && is(Some(mount.destination()), "/sys/fs/cgroup")
        && last.is_none_or(|option| option == "rw")
}

fn clean(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

/// `user` of the container as the host sees it.
fn on_host(user: u32, maps: &[LinuxIdMapping]) -> Option<u32> {
    maps.iter().find_map(|map| {
        let offset = user.checked_sub(map.container_id())?;
        (offset < map.size())
            .then(|| map.host_id().checked_add(offset))
            .flatten()
    })
}

/// Gives the cgroup `path` of v2 to `owner`: the directory, and the files that the kernel names for this.
pub(super) fn give(path: &Path, owner: Option<u32>, rootless: bool) -> Result<(), Error> {
    let Some(owner) = owner else { return Ok(()) };
    // Older kernels have none, and a container that proa runs in need not show it.
    let listed = std::fs::read_to_string("/sys/kernel/cgroup/delegate").ok();
    let files: Vec<&str> = match &listed {
        Some(listed) => listed.lines().collect(),
        None => FILES.to_vec(),
    };
    let all = std::iter::once(path.to_owned()).chain(files.into_iter().filter_map(|file| Dir(path).file(file).ok()));
    for path in all {
        match chown(&path, Some(Uid::from_raw(owner)), None) {
            // Not every cgroup has every file.
            Ok(()) | Err(Errno::ENOENT) => {}
            // Only root may give away. The cgroup stays the caller's, who is root of the container's user namespace.
            Err(Errno::EPERM) if rootless => return Ok(()),
            Err(errno) => {
                return Err(Error::Call {
                    call: "chown",
                    path,
                    errno,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn owner_of(namespaces: Value, mount: Value, maps: Value) -> Option<u32> {
        let spec = json!({
            "process": {"cwd": "/", "args": ["x"], "user": {"uid": 7, "gid": 0}},
            "mounts": [mount],
            "linux": {"namespaces": namespaces, "uidMappings": maps}
        });
        owner(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn only_a_writable_cgroup_in_a_namespace_of_its_own_is_given_away() {
        let cgroup = |options: Value| json!({"destination": "/sys/fs/cgroup/", "type": "cgroup", "source": "cgroup", "options": options});
        let own = || json!([{"type": "cgroup"}, {"type": "user"}]);
        let maps = || json!([{"containerID": 0, "hostID": 1000, "size": 1}, {"containerID": 1, "hostID": 100_000, "size": 100}]);
        assert_eq!(owner_of(own(), cgroup(json!(["nosuid"])), maps()), Some(100_006));
        assert_eq!(owner_of(own(), cgroup(json!(["ro", "rw"])), maps()), Some(100_006));
        assert_eq!(owner_of(own(), cgroup(json!(["rw", "ro"])), maps()), None);
        assert_eq!(
            owner_of(json!([{"type": "cgroup"}]), cgroup(json!([])), json!([])),
            Some(7)
        );
        assert_eq!(owner_of(json!([{"type": "user"}]), cgroup(json!([])), maps()), None);
        let joined = json!([{"type": "cgroup", "path": "/proc/1/ns/cgroup"}]);
        assert_eq!(owner_of(joined, cgroup(json!([])), json!([])), None);
        let elsewhere = json!({"destination": "/cgroup", "source": "cgroup"});
        assert_eq!(owner_of(own(), elsewhere, maps()), None);
        let unmapped = json!([{"containerID": 0, "hostID": 1000, "size": 7}]);
        assert_eq!(owner_of(own(), cgroup(json!([])), unmapped), None);
    }
}
