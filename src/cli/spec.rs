//! `proa spec`: the configuration that runc's `spec` writes, tabs and all.

use super::{Error, Globals, SPEC_VERSION};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const TEMPLATE: &str = include_str!("spec.json.in");

/// Why no configuration was written.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It would overwrite one. Worded as runc words it.
    #[error("File {0} exists. Remove it first")]
    Exists(PathBuf),
    /// The file can't be written.
    #[error("open {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What the template's gaps depend on.
struct Host {
    unified: bool,
    uid: u32,
    gid: u32,
}

pub(super) fn run(_: &Globals, args: liboci_cli::Spec) -> Result<u8, Error> {
    let host = Host {
        unified: unified(),
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
    };
    let text = if args.rootless { rootless(&host) } else { rootful(&host) };
    let path = args.bundle.unwrap_or_default().join("config.json");
    write(&path, &text)?;
    Ok(0)
}

fn write(path: &Path, text: &str) -> Result<(), SpecError> {
    let failed = |source| SpecError::Write {
        path: path.into(),
        source,
    };
    let mut options = File::options();
    // Who writes to it says what a container may do: nobody else, whatever the umask.
    let new = options.write(true).create_new(true).mode(0o644).open(path);
    let mut file = new.map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => SpecError::Exists(path.into()),
        _ => failed(source),
    })?;
    file.write_all(text.as_bytes()).map_err(failed)
}

/// Whether `/sys/fs/cgroup` is a cgroup2: only there a cgroup namespace is asked for.
fn unified() -> bool {
    nix::sys::statfs::statfs("/sys/fs/cgroup")
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
}

fn rootful(host: &Host) -> String {
    let resources = "\t\t\"resources\": {\n\t\t\t\"devices\": [\n\t\t\t\t{\n\t\t\t\t\t\"allow\": false,\n\
                     \t\t\t\t\t\"access\": \"rwm\"\n\t\t\t\t}\n\t\t\t]\n\t\t},\n";
    let mut kinds = vec!["pid", "network", "ipc", "uts", "mount"];
    kinds.extend(host.unified.then_some("cgroup"));
    let sys = mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]);
    fill(
        ",\n\t\t\t\t\"gid=5\"",
        &sys,
        &format!("{resources}{}", namespaces(&kinds)),
    )
}

/// For a user without privileges: a user namespace with the one mapping that needs no helper, no network namespace (nobody
/// could connect it), the host's /sys (a new one can't be mounted then), no gid that is not mapped, no device rules.
fn rootless(host: &Host) -> String {
    let map = |name: &str, id: u32| {
        format!(
            "\t\t\"{name}\": [\n\t\t\t{{\n\t\t\t\t\"containerID\": 0,\n\t\t\t\t\"hostID\": {id},\n\
             \t\t\t\t\"size\": 1\n\t\t\t}}\n\t\t],\n"
        )
    };
    let mut kinds = vec!["pid", "ipc", "uts", "mount"];
    kinds.extend(host.unified.then_some("cgroup"));
    kinds.push("user");
    let sys = mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]);
    let maps = [map("uidMappings", host.uid), map("gidMappings", host.gid)].concat();
    fill("", &sys, &format!("{maps}{}", namespaces(&kinds)))
}

fn fill(gid: &str, sys: &str, linux: &str) -> String {
    TEMPLATE
        .replace("@VERSION@", SPEC_VERSION)
        .replace("@GID@", gid)
        .replace("@SYS@", sys)
        .replace("@LINUX@", linux)
}

fn namespaces(kinds: &[&str]) -> String {
    let all: Vec<String> = kinds
        .iter()
        .map(|kind| format!("\t\t\t{{\n\t\t\t\t\"type\": \"{kind}\"\n\t\t\t}}"))
        .collect();
    format!("\t\t\"namespaces\": [\n{}\n\t\t],\n", all.join(",\n"))
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> String {
    let options: Vec<String> = options.iter().map(|option| format!("\t\t\t\t\"{option}\"")).collect();
    format!(
        "\t\t{{\n\t\t\t\"destination\": \"{destination}\",\n\t\t\t\"type\": \"{kind}\",\n\
         \t\t\t\"source\": \"{source}\",\n\t\t\t\"options\": [\n{}\n\t\t\t]\n\t\t}},\n",
        options.join(",\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxNamespaceType, Spec};

    const HOST: Host = Host {
        unified: true,
        uid: 1000,
        gid: 100,
    };

    fn parsed(text: &str) -> Spec {
        assert!(!text.contains('@') && text.ends_with("\t}\n}"));
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_default_is_a_configuration() {
        let spec = parsed(&rootful(&HOST));
        assert_eq!(spec.version(), SPEC_VERSION);
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 6);
        assert!(linux.resources().is_some() && linux.uid_mappings().is_none());
        assert_eq!(spec.mounts().as_ref().unwrap().len(), 7);
        let hybrid = parsed(&rootful(&Host { unified: false, ..HOST }));
        assert_eq!(hybrid.linux().as_ref().unwrap().namespaces().as_ref().unwrap().len(), 5);
    }

    #[test]
    fn rootless_needs_no_privilege() {
        let spec = parsed(&rootless(&HOST));
        let linux = spec.linux().as_ref().unwrap();
        let kinds: Vec<_> = linux
            .namespaces()
            .as_ref()
            .unwrap()
            .iter()
            .map(|one| one.typ())
            .collect();
        assert!(kinds.contains(&LinuxNamespaceType::User) && !kinds.contains(&LinuxNamespaceType::Network));
        assert!(linux.resources().is_none());
        assert_eq!(linux.uid_mappings().as_ref().unwrap()[0].host_id(), 1000);
        assert_eq!(linux.gid_mappings().as_ref().unwrap()[0].host_id(), 100);
        let options = spec
            .mounts()
            .as_ref()
            .unwrap()
            .iter()
            .filter_map(|mount| mount.options().as_ref())
            .flatten();
        assert!(options.clone().all(|option| !option.starts_with("gid=")));
        assert!(options.clone().any(|option| option == "rbind"));
    }
}
