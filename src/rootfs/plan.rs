//! From config.json to a [`Plan`]: nothing here looks at the host.

use super::options::{self, Parsed};
use super::{Device, DeviceKind, Error, Id, Idmap, Kind, Mount, Options, Plan, sysctl};
use crate::host::Host;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType as Ns, Spec};
use rustix::mount::MountFlags as Flag;
use std::path::{Component, Path, PathBuf};

/// The files of procfs over which a container may mount something (lxcfs does, and CRIU): runc's list. Anything else in
/// `/proc` would let a bundle fake what the container's own security relies on.
const OVER_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// Builds the plan for a root that was found to be `root`; `host_net` tells whether a namespace path is the host's own
/// network namespace.
pub(super) fn build(
    spec: &Spec,
    bundle: &Path,
    root: PathBuf,
    host: &Host,
    options: Options,
    host_net: impl Fn(&Path) -> bool,
) -> Result<Plan, Error> {
    let spaces = Namespaces(spec);
    let private = spaces.find(Ns::Mount).is_some();
    let userns = spaces.find(Ns::User).is_some();
    let linux = spec.linux().as_ref();
    let list = |paths: Option<&Vec<String>>| paths.map(|paths| distinct(paths)).unwrap_or_default();
    let masked = list(linux.and_then(|l| l.masked_paths().as_ref()));
    let readonly_paths = list(linux.and_then(|l| l.readonly_paths().as_ref()));
    let restricts = !(masked.is_empty() && readonly_paths.is_empty());
    if restricts && !private {
        return Err(field(
            "linux.maskedPaths",
            "unable to restrict sys entries without a private MNT namespace",
        ));
    }
    let propagation = root_propagation(spec, options)?;
    if propagation != 0 && !private {
        return Err(field(
            "linux.rootfsPropagation",
            "needs a mount namespace: without one it would change the caller's mounts",
        ));
    }
    let mut mounts = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        mounts.push(build_mount(index, mount, spec, (bundle, &root), host)?);
    }
    // A /dev that is the host's is not ours to change.
    let setup_dev = !mounts
        .iter()
        .any(|m| m.kind == Kind::Bind && m.destination == Path::new("/dev"));
    Ok(Plan {
        root,
        root_readonly: spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false),
        private,
        userns,
        cgroupns: spaces.find(Ns::Cgroup).is_some(),
        cgroup: None,
        propagation,
        no_pivot: options.no_pivot,
        scratch: None,
        devices: if setup_dev { devices(spec)? } else { Vec::new() },
        setup_dev,
        mounts,
        masked,
        readonly_paths,
        sysctl: sysctls(spec, &spaces, host_net)?,
        label: linux
            .and_then(|l| l.mount_label().clone())
            .filter(|label| !label.is_empty()),
        cwd: spec.process().as_ref().map(|p| p.cwd().clone()),
    })
}

/// The namespaces of the configuration.
struct Namespaces<'a>(&'a Spec);

impl<'a> Namespaces<'a> {
    /// Whether there is one of this type, and the path of the one to be joined.
    fn find(&self, typ: Ns) -> Option<Option<&'a Path>> {
        let all = self.0.linux().as_ref()?.namespaces().as_ref()?;
        let found = all.iter().find(|n| n.typ() == typ)?;
        Some(found.path().as_deref().filter(|p| !p.as_os_str().is_empty()))
    }
}

/// Engines name paths twice; one mount hides a path as well as two.
fn distinct(paths: &[String]) -> Vec<PathBuf> {
    let mut seen = std::collections::HashSet::new();
    let paths = paths.iter().map(PathBuf::from);
    paths.filter(|path| seen.insert(path.clone())).collect()
}

fn field(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Field {
        field: field.into(),
        problem: problem.into(),
    }
}

fn root_propagation(spec: &Spec, options: Options) -> Result<u32, Error> {
    let name = spec
        .linux()
        .as_ref()
        .and_then(|l| l.rootfs_propagation().as_deref())
        .unwrap_or("");
    if name.is_empty() {
        return Ok(0);
    }
    let Some(flags) = options::propagation(name) else {
        return Err(field(
            "linux.rootfsPropagation",
            format!("rootfsPropagation={name} is not supported"),
        ));
    };
    if options.no_pivot && flags & options::PRIVATE != 0 {
        let problem = "rootfsPropagation of [r]private is not safe without pivot_root";
        return Err(field("linux.rootfsPropagation", problem));
    }
    Ok(flags)
}

fn sysctls(
    spec: &Spec,
    spaces: &Namespaces<'_>,
    host_net: impl Fn(&Path) -> bool,
) -> Result<Vec<(String, String)>, Error> {
    let Some(wanted) = spec
        .linux()
        .as_ref()
        .and_then(|l| l.sysctl().as_ref())
        .filter(|all| !all.is_empty())
    else {
        return Ok(Vec::new());
    };
    let owned = sysctl::Owned {
        ipc: spaces.find(Ns::Ipc).is_some(),
        uts: spaces.find(Ns::Uts).is_some(),
        user: spaces.find(Ns::User).is_some(),
        net: spaces.find(Ns::Network).is_some_and(|path| !path.is_some_and(host_net)),
    };
    let mut all = Vec::new();
    for (key, value) in wanted {
        all.push((sysctl::file(key, owned)?, value.clone()));
    }
    // A map has no order; the kernel's answer to a bad set of values should not depend on it.
    all.sort();
    Ok(all)
}

fn build_mount(
    index: usize,
    mount: &oci_spec::runtime::Mount,
    spec: &Spec,
    (bundle, root): (&Path, &Path),
    host: &Host,
) -> Result<Mount, Error> {
    let at = |name: &str| format!("mounts[{index}].{name}");
    let destination = clean(mount.destination());
    // As with runc, a destination may be given as the path that it has on the host.
    let destination = match destination.strip_prefix(root) {
        Ok(inside) if root != Path::new("/") => Path::new("/").join(inside),
        _ => destination,
    };
    if !mount.destination().is_absolute() {
        let written = mount.destination().display();
        tracing::warn!(
            "mount destination {written} is not absolute: it is taken as {}",
            destination.display()
        );
    }
    if destination == Path::new("/") {
        return Err(field(
            at("destination"),
            "mounting over the root of the container is not allowed",
        ));
    }
    let text = mount.options().iter().flatten().map(String::as_str);
    let mut options = options::parse(text);
    let typ = mount.typ().as_deref().unwrap_or("");
    let bind = options.has(Flag::BIND) || typ == "bind";
    let kind = match typ {
        _ if bind => Kind::Bind,
        "" => return Err(field(at("type"), "a mount that is no bind mount needs a type")),
        "cgroup" => Kind::Cgroup,
        name => Kind::Fs(name.into()),
    };
    let mut source = mount.source().clone().unwrap_or_default();
    if bind {
        if source.as_os_str().is_empty() {
            return Err(field(at("source"), "a bind mount needs a source"));
        }
        options.flags |= Flag::BIND.bits();
        source = bundle.join(source);
    }
    if options.copy_up && kind != Kind::Fs("tmpfs".into()) {
        return Err(field(at("options"), "tmpcopyup is only for tmpfs"));
    }
    check_proc(&at("destination"), &destination, &kind)?;
    check_owner_options(&at("options"), &options, spec, host)?;
    let idmap = idmap(index, mount, &options, bind, spec, host)?;
    Ok(Mount {
        index,
        destination,
        source,
        kind,
        options,
        idmap,
        opened: None,
        locked: None,
    })
}

/// `path` made absolute (runc takes a relative destination as one below `/`), without `.`, and with `..` taken by its
/// letters, as runc's filepath.Clean does.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// What may be mounted on `destination` (where symbolic links led to it) if that is `/proc` or in it. A bind mount on
/// `/proc` itself passes here: its source is looked at once it is open.
pub(super) fn check_proc(field_name: &str, destination: &Path, kind: &Kind) -> Result<(), Error> {
    let Ok(inside) = destination.strip_prefix("/proc") else {
        return Ok(());
    };
    if inside.as_os_str().is_empty() {
        return match kind {
            Kind::Bind => Ok(()),
            Kind::Fs(name) if name == "proc" => Ok(()),
            _ => Err(field(
                field_name,
                format!("{destination:?} cannot be mounted because it is not of type proc"),
            )),
        };
    }
    if OVER_PROC.iter().any(|allowed| destination == Path::new(allowed)) {
        return Ok(());
    }
    Err(field(
        field_name,
        format!("{destination:?} cannot be mounted because it is inside /proc"),
    ))
}

/// `uid=` and `gid=` of ids that the user namespace has not: the kernel would only say EINVAL (runc's words).
fn check_owner_options(at: &str, options: &Parsed, spec: &Spec, host: &Host) -> Result<(), Error> {
    let Some(linux) = spec.linux().as_ref().filter(|_| host.unprivileged()) else {
        return Ok(());
    };
    for option in options.data.split(',') {
        let (kind, id, maps) = match option.split_once('=') {
            Some(("uid", id)) => ("uid", id, linux.uid_mappings()),
            Some(("gid", id)) => ("gid", id, linux.gid_mappings()),
            _ => continue,
        };
        let (Ok(id), Some(maps)) = (id.parse::<u32>(), maps.as_ref()) else {
            continue;
        };
        if !maps
            .iter()
            .any(|m| id >= m.container_id() && id - m.container_id() < m.size())
        {
            let problem = format!(
                "cannot specify {kind}={id} mount option for rootless container: user namespaces enabled, but no mapping \
                 found for {kind} {id}"
            );
            return Err(field(at, problem));
        }
    }
    Ok(())
}

fn idmap(
    index: usize,
    mount: &oci_spec::runtime::Mount,
    options: &Parsed,
    bind: bool,
    spec: &Spec,
    host: &Host,
) -> Result<Option<Idmap>, Error> {
    let at = format!("mounts[{index}]");
    let own = |maps: &Option<Vec<LinuxIdMapping>>| maps.clone().unwrap_or_default();
    let (mut uids, mut gids) = (own(mount.uid_mappings()), own(mount.gid_mappings()));
    if options.idmap.is_none() && uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    if !bind {
        return Err(field(at, "id-mapped mounts are only supported for bind-mounts"));
    }
    if host.unprivileged() {
        return Err(field(at, "id-mapped mounts are not supported for rootless containers"));
    }
    let recursive = options.idmap == Some(true);
    if uids.is_empty() && gids.is_empty() {
        let spaces = Namespaces(spec);
        let linux = spec.linux().as_ref();
        match spaces.find(Ns::User) {
            Some(Some(path)) => {
                return Ok(Some(Idmap {
                    recursive,
                    maps: None,
                    path: Some(path.into()),
                    opened: None,
                    by_parent: false,
                }));
            }
            Some(None) => {
                uids = own(linux.map_or(&None, |l| l.uid_mappings()));
                gids = own(linux.map_or(&None, |l| l.gid_mappings()));
            }
            None => {
                return Err(field(
                    at,
                    "id-mapped mounts need uidMappings and gidMappings or a user namespace",
                ));
            }
        }
    }
    if uids.is_empty() || gids.is_empty() {
        return Err(field(
            at,
            "id-mapped mounts must specify both uidMappings and gidMappings",
        ));
    }
    let text = |maps: &[LinuxIdMapping]| -> String {
        maps.iter()
            .map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size()))
            .collect()
    };
    Ok(Some(Idmap {
        recursive,
        maps: Some((text(&uids), text(&gids))),
        path: None,
        opened: None,
        by_parent: false,
    }))
}

/// The devices every container has (config-linux.md, "Default Devices"), those of `linux.devices` in their place.
fn devices(spec: &Spec) -> Result<Vec<Device>, Error> {
    let mut all = Vec::new();
    for (index, device) in spec
        .linux()
        .as_ref()
        .and_then(|l| l.devices().as_ref())
        .into_iter()
        .flatten()
        .enumerate()
    {
        if let Some(device) = build_device(index, device)? {
            all.push(device);
        }
    }
    let default = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    for (name, major, minor) in default {
        let path = Path::new("/dev").join(name);
        if !all.iter().any(|d| d.path == path) {
            all.push(Device {
                path,
                kind: DeviceKind::Char,
                major,
                minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
            });
        }
    }
    Ok(all)
}

fn build_device(index: usize, device: &LinuxDevice) -> Result<Option<Device>, Error> {
    let at = |name: &str| format!("linux.devices[{index}].{name}");
    if device.path().as_os_str().is_empty() {
        return Ok(None);
    }
    let path = clean(device.path());
    // ptmx is a link into the container's own devpts.
    if path == Path::new("/dev/ptmx") {
        return Ok(None);
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => return Err(field(at("type"), "\"a\" is not a valid device type")),
    };
    let number = |name: &str, value: i64| -> Result<u32, Error> {
        u32::try_from(value).map_err(|_| field(at(name), format!("{value} is not a device number")))
    };
    Ok(Some(Device {
        path,
        kind,
        major: number("major", device.major())?,
        minor: number("minor", device.minor())?,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0) as Id,
        gid: device.gid().unwrap_or(0) as Id,
    }))
}

#[cfg(test)]
mod tests;
