//! Linux namespaces: which ones a container gets, how they are entered, and what is set up inside them (id maps, time
//! offsets, host and domain name, the loopback device, devices of the host).

pub mod enter;
pub mod idmap;
pub mod netdev;

use crate::host::Host;
use nix::errno::Errno;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use proa_sys::errno::words;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A kind of namespace, namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// user_namespaces(7)
    User,
    /// mount_namespaces(7)
    Mount,
    /// pid_namespaces(7)
    Pid,
    /// network_namespaces(7)
    Network,
    /// ipc_namespaces(7)
    Ipc,
    /// uts_namespaces(7)
    Uts,
    /// cgroup_namespaces(7)
    Cgroup,
    /// time_namespaces(7), Linux 5.6
    Time,
}

impl Kind {
    /// Every kind. The user namespace is first, as joining it can give the rights to join the others.
    pub const ALL: [Self; 8] = [
        Self::User,
        Self::Mount,
        Self::Pid,
        Self::Network,
        Self::Ipc,
        Self::Uts,
        Self::Cgroup,
        Self::Time,
    ];

    /// The `CLONE_NEW*` bit.
    pub fn flag(self) -> u64 {
        let flag = match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => proa_sys::clone::CLONE_NEWTIME as i32,
        };
        flag as u64
    }

    /// The file's name in `/proc/PID/ns`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }
}

impl From<LinuxNamespaceType> for Kind {
    fn from(kind: LinuxNamespaceType) -> Self {
        match kind {
            LinuxNamespaceType::User => Self::User,
            LinuxNamespaceType::Mount => Self::Mount,
            LinuxNamespaceType::Pid => Self::Pid,
            LinuxNamespaceType::Network => Self::Network,
            LinuxNamespaceType::Ipc => Self::Ipc,
            LinuxNamespaceType::Uts => Self::Uts,
            LinuxNamespaceType::Cgroup => Self::Cgroup,
            LinuxNamespaceType::Time => Self::Time,
        }
    }
}

/// One line of an id map, user_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many.
    pub size: u32,
}

impl From<&LinuxIdMapping> for IdMap {
    fn from(map: &LinuxIdMapping) -> Self {
        Self {
            container: map.container_id(),
            host: map.host_id(),
            size: map.size(),
        }
    }
}

/// An offset of a clock in a new time namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffset {
    /// `monotonic` or `boottime`.
    pub clock: String,
    /// Whole seconds.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
}

/// A namespace that exists already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Its kind.
    pub kind: Kind,
    /// A file that refers to it, e.g. `/proc/1/ns/net`.
    pub path: PathBuf,
}

/// The namespaces of a container, resolved and validated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The ones that are made.
    pub new: Vec<Kind>,
    /// The ones that exist.
    pub join: Vec<Join>,
    /// `linux.uidMappings`, for a new user namespace.
    pub uid_maps: Vec<IdMap>,
    /// `linux.gidMappings`, for a new user namespace.
    pub gid_maps: Vec<IdMap>,
    /// `linux.timeOffsets`, for a new time namespace.
    pub time_offsets: Vec<TimeOffset>,
    /// `hostname`.
    pub hostname: Option<String>,
    /// `domainname`.
    pub domainname: Option<String>,
    /// `linux.netDevices`, in the order in which they are moved.
    pub net_devices: Vec<netdev::NetDevice>,
}

/// Why namespaces can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration contradicts itself.
    #[error("{field}: {problem}")]
    Field {
        /// Where in config.json.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// A namespace file can't be opened.
    #[error("namespace path: open {path} (a {kind:?} namespace): {words}", path = path.display(), words = words(*errno))]
    Open {
        /// Its kind.
        kind: Kind,
        /// The file.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// A namespace can't be joined. Words are runc's.
    #[error("failed to setns into {kind} namespace {path:?}: {errno}", kind = kind.file_name(), errno = words(*errno))]
    Join {
        /// Its kind.
        kind: Kind,
        /// The file that should be one.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// A system call refused.
    #[error("{call}: {errno}")]
    Call {
        /// The call with its arguments.
        call: String,
        /// What it returned.
        errno: Errno,
    },
    /// A file that sets a namespace up refused what was written.
    #[error("write {text:?} to {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        text: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A network device can't be had. Words are runc's.
    #[error("move netDevice {device} to namespace {namespace}: {step}: {errno}", namespace = namespace.display())]
    NetDevice {
        /// Its name on the host.
        device: String,
        /// The file of the namespace it is for.
        namespace: PathBuf,
        /// What failed.
        step: String,
        /// Why.
        errno: Errno,
    },
    /// `newuidmap` or `newgidmap` failed.
    #[error("{command}: {problem}")]
    Helper {
        /// The command with its arguments.
        command: String,
        /// Its exit status and what it said.
        problem: String,
    },
}

fn field(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Field {
        field: field.into(),
        problem: problem.into(),
    }
}

/// Resolves `linux.namespaces` and what depends on it. Words are runc's where callers know them.
pub fn plan(spec: &Spec, host: &Host) -> Result<Plan, Error> {
    let mut plan = Plan {
        hostname: spec.hostname().clone(),
        domainname: spec.domainname().clone(),
        ..Plan::default()
    };
    let Some(linux) = spec.linux() else {
        return Err(field("linux", "is missing: a Linux container needs it"));
    };
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let kind = Kind::from(namespace.typ());
        if plan.has(kind) {
            return Err(field(
                format!("linux.namespaces[{index}]"),
                format!("malformed spec file: duplicated ns {kind:?}").to_lowercase(),
            ));
        }
        match namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty()) {
            Some(path) if !path.is_absolute() => {
                return Err(field(
                    format!("linux.namespaces[{index}].path"),
                    format!("{path:?} is not absolute"),
                ));
            }
            Some(path) => plan.join.push(Join {
                kind,
                path: path.into(),
            }),
            None => plan.new.push(kind),
        }
    }
    plan.join
        .sort_by_key(|join| Kind::ALL.iter().position(|kind| *kind == join.kind));
    if host.unprivileged() && !plan.has(Kind::User) {
        return Err(field("linux.namespaces", "rootless container requires user namespaces"));
    }
    plan.id_maps(linux.uid_mappings(), linux.gid_mappings())?;
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let name = format!("linux.timeOffsets.{clock}");
        if !plan.makes(Kind::Time) {
            return Err(field(
                name,
                "time namespace offsets specified, but time namespace isn't enabled in the config",
            ));
        }
        if clock != "monotonic" && clock != "boottime" {
            return Err(field(name, "is no clock of a time namespace: monotonic or boottime"));
        }
        plan.time_offsets.push(TimeOffset {
            clock: clock.clone(),
            seconds: offset.secs().unwrap_or(0),
            nanoseconds: offset.nanosecs().unwrap_or(0),
        });
    }
    if plan.hostname.as_deref().is_some_and(|name| !name.is_empty()) && !plan.has(Kind::Uts) {
        return Err(field(
            "hostname",
            "unable to set hostname without a private UTS namespace",
        ));
    }
    if plan.domainname.as_deref().is_some_and(|name| !name.is_empty()) && !plan.has(Kind::Uts) {
        return Err(field(
            "domainname",
            "unable to set domainname without a private UTS namespace",
        ));
    }
    if let Some(devices) = linux.net_devices() {
        plan.net_devices = netdev::plan(devices, plan.has(Kind::Network), host.rootless || host.unprivileged())?;
    }
    Ok(plan)
}

impl Plan {
    /// Whether the container has this namespace of its own or joins another's.
    pub fn has(&self, kind: Kind) -> bool {
        self.makes(kind) || self.joins(kind)
    }

    /// Whether this namespace is made.
    pub fn makes(&self, kind: Kind) -> bool {
        self.new.contains(&kind)
    }

    /// Whether this namespace is joined by path.
    pub fn joins(&self, kind: Kind) -> bool {
        self.join.iter().any(|join| join.kind == kind)
    }

    /// Whether the first process can't be cloned right into its namespaces: a joined pid namespace takes only the
    /// *children* of the process that joins it; a joined user namespace must own the ones that are made; and a time
    /// namespace's offsets must be written before it has its first process.
    pub fn needs_middle(&self) -> bool {
        self.joins(Kind::User) || self.joins(Kind::Pid) || self.makes(Kind::Time)
    }

    fn id_maps(&mut self, uid: &Option<Vec<LinuxIdMapping>>, gid: &Option<Vec<LinuxIdMapping>>) -> Result<(), Error> {
        let maps = |maps: &Option<Vec<LinuxIdMapping>>| maps.iter().flatten().map(IdMap::from).collect::<Vec<_>>();
        (self.uid_maps, self.gid_maps) = (maps(uid), maps(gid));
        match (
            self.makes(Kind::User),
            self.uid_maps.is_empty(),
            self.gid_maps.is_empty(),
        ) {
            (true, true, _) => Err(field(
                "linux.uidMappings",
                "User namespaces enabled, but no uid mappings found.",
            )),
            (true, _, true) => Err(field(
                "linux.gidMappings",
                "User namespaces enabled, but no gid mapping found.",
            )),
            (false, false, _) | (false, _, false) if !self.joins(Kind::User) => Err(field(
                "linux.uidMappings",
                "User namespace mappings specified, but user namespace isn't enabled in the config",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(json: serde_json::Value) -> Result<Plan, Error> {
        let root = Host {
            euid: 0,
            egid: 0,
            rootless: false,
        };
        plan(&serde_json::from_value(json).unwrap(), &root)
    }

    #[test]
    fn default_namespaces_are_made_by_one_clone() {
        let plan = plan_of(serde_json::json!({"hostname": "h", "linux": {"namespaces": [
            {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]}}))
        .unwrap();
        assert_eq!(plan.new, [Kind::Pid, Kind::Network, Kind::Ipc, Kind::Uts, Kind::Mount]);
        assert!(!plan.needs_middle());
    }

    #[test]
    fn a_joined_pid_namespace_needs_a_process_in_the_middle() {
        let plan = plan_of(serde_json::json!({"linux": {"namespaces": [
            {"type": "mount"}, {"type": "pid", "path": "/proc/1/ns/pid"}]}}))
        .unwrap();
        assert!(plan.needs_middle());
    }

    #[test]
    fn contradictions_name_their_field() {
        for (json, expected) in [
            (serde_json::json!({}), "linux: "),
            (
                serde_json::json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "mount"}]}}),
                "linux.namespaces[1]",
            ),
            (
                serde_json::json!({"linux": {"namespaces": [{"type": "mount", "path": "x"}]}}),
                "linux.namespaces[0].path",
            ),
            (
                serde_json::json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "user"}]}}),
                "linux.uidMappings",
            ),
            (
                serde_json::json!({"hostname": "h", "linux": {"namespaces": [{"type": "mount"}]}}),
                "hostname: ",
            ),
            (
                serde_json::json!({"linux": {"namespaces": [{"type": "pid"}], "netDevices": {"eth0": {}}}}),
                "linux.netDevices: unable to move network devices without a NET namespace",
            ),
            (
                serde_json::json!({"linux": {"namespaces": [{"type": "mount"}], "timeOffsets": {"boottime": {"secs": 1}}}}),
                "linux.timeOffsets.boottime",
            ),
        ] {
            let message = plan_of(json).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
