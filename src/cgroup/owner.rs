//! Who owns a container's cgroup: runtime-spec, config-linux.md, "Cgroup ownership". A container that may write to its
//! cgroup can then divide it, as an unprivileged user, among groups of its own.

use super::{Error, file};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{Uid, fchownat};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use std::path::{Component, Path};

/// What the kernel says may be given to a less privileged user (cgroups(7), since Linux 4.15).
const LIST: &str = "/sys/kernel/cgroup/delegate";
/// The same where the kernel says nothing.
const USUAL: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

/// The host's id of the user who is to own the cgroup: who executes the container's process, if the container gets a cgroup
/// namespace of its own and its cgroup mounted for writing. `None`: it stays the caller's.
pub(super) fn of(spec: &Spec) -> Option<u32> {
    let linux = spec.linux().as_ref()?;
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let find = |typ| namespaces.iter().find(|namespace| namespace.typ() == typ);
    let own = find(LinuxNamespaceType::Cgroup).is_some_and(|namespace| namespace.path().is_none());
    if !own || !spec.mounts().iter().flatten().any(is_writable_cgroup) {
        return None;
    }
    let user = spec.process().as_ref()?.user().uid();
    if find(LinuxNamespaceType::User).is_none() {
        return Some(user);
    }
    // A user that is not mapped (or by a namespace that is there already) is nobody here.
    let map = linux.uid_mappings().as_deref().unwrap_or_default();
    map.iter().find_map(|range| {
        let offset = user.checked_sub(range.container_id())?;
        (offset < range.size()).then(|| range.host_id().checked_add(offset))?
    })
}

fn is_writable_cgroup(mount: &Mount) -> bool {
    // The same place however it is written.
    let at = mount
        .destination()
        .components()
        .filter(|part| *part != Component::CurDir);
    let read_only = mount.options().iter().flatten().any(|option| option == "ro");
    mount.source().as_deref() == Some(Path::new("cgroup"))
        && at.eq(Path::new("/sys/fs/cgroup").components())
        && !read_only
}

/// Gives the cgroup `dir` with the files that may be delegated to `uid`.
pub(super) fn give(dir: &Path, uid: u32, rootless: bool) -> Result<(), Error> {
    let list = file::read(Path::new(LIST)).unwrap_or_else(|_| USUAL.to_owned());
    let files = list.lines().filter(|name| !name.is_empty() && !name.contains('/'));
    for path in std::iter::once(dir.to_owned()).chain(files.map(|name| dir.join(name))) {
        match fchownat(
            AT_FDCWD,
            &path,
            Some(Uid::from_raw(uid)),
            None,
            AtFlags::AT_SYMLINK_NOFOLLOW,
        ) {
            Ok(()) => {}
            // A file of a controller that is not enabled.
            Err(Errno::ENOENT) if path != dir => {}
            // Who is unprivileged can give nothing to the further users that it has mapped, and keeps it.
            Err(Errno::EPERM) if rootless => return Ok(()),
            Err(errno) => {
                let call = "chown";
                return Err(Error::Call { call, path, errno });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn owner(change: impl FnOnce(&mut Value)) -> Option<u32> {
        let mut spec = json!({"ociVersion": "1.2.0",
            "process": {"cwd": "/", "args": ["a"], "user": {"uid": 1000, "gid": 1000}},
            "mounts": [{"destination": "/sys/fs/cgroup/", "type": "cgroup", "source": "cgroup", "options": ["nosuid"]}],
            "linux": {"namespaces": [{"type": "cgroup"}, {"type": "user"}],
                "uidMappings": [{"containerID": 0, "hostID": 5, "size": 1}, {"containerID": 1, "hostID": 200000, "size": 2000}]}});
        change(&mut spec);
        of(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn it_is_the_process_user_on_the_host() {
        assert_eq!(owner(|_| {}), Some(200_999));
        assert_eq!(owner(|s| s["process"]["user"]["uid"] = json!(0)), Some(5));
        assert_eq!(owner(|s| s["process"]["user"]["uid"] = json!(2001)), None, "not mapped");
        assert_eq!(
            owner(|s| s["linux"]["namespaces"] = json!([{"type": "cgroup"}])),
            Some(1000)
        );
    }

    #[test]
    fn nobody_where_the_container_may_not_write() {
        assert_eq!(owner(|s| s["mounts"][0]["options"] = json!(["nosuid", "ro"])), None);
        assert_eq!(owner(|s| s["mounts"][0]["destination"] = json!("/cgroup")), None);
        assert_eq!(owner(|s| s["mounts"][0]["source"] = json!("cgroup2")), None);
        assert_eq!(owner(|s| s["mounts"] = json!([])), None);
        assert_eq!(owner(|s| s["linux"]["namespaces"] = json!([{"type": "user"}])), None);
        let joined = json!([{"type": "cgroup", "path": "/proc/1/ns/cgroup"}]);
        assert_eq!(owner(|s| s["linux"]["namespaces"] = joined), None);
    }
}
