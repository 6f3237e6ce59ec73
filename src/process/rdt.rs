//! `linux.intelRdt`: a resource group of the resctrl file system (Documentation/filesystems/resctrl.rst).
//!
//! Tried on no hardware that has it: the machines this is built on lack resctrl, where asking for it is an error.

use super::Error;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIntelRdt;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Where resctrl is mounted.
const ROOT: &str = "/sys/fs/resctrl";

/// The group that a container's processes belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The directory below resctrl's: `closID`, else the container's id.
    pub name: String,
    /// Whether `closID` names the group: then it isn't ours to remove.
    pub shared: bool,
    /// What to write to the group's `schemata`, a schema a line; may be empty.
    pub schemata: String,
    /// The monitoring group below it, if `enableMonitoring`.
    pub monitor: Option<String>,
}

/// Whether this host has resctrl.
pub(super) fn require() -> Result<(), Error> {
    const RDTGROUP_SUPER_MAGIC: u64 = 0x0765_5821;
    match rustix::fs::statfs(ROOT) {
        Ok(fs) if fs.f_type as u64 & 0xffff_ffff == RDTGROUP_SUPER_MAGIC => Ok(()),
        _ => Err(Error::NoRdt { path: ROOT.into() }),
    }
}

impl Group {
    /// Resolves `linux.intelRdt` of container `id`.
    pub fn new(config: &LinuxIntelRdt, id: &str) -> Result<Self, Error> {
        let clos = config.clos_id().as_deref().filter(|clos| !clos.is_empty());
        if let Some(clos) = clos.filter(|clos| clos.contains('/') || matches!(*clos, "." | "..")) {
            return Err(Error::field(
                "linux.intelRdt.closID",
                format!("invalid intelRdt.ClosID {clos:?}"),
            ));
        }
        let old = [config.l3_cache_schema(), config.mem_bw_schema()];
        let lines = old.into_iter().flatten().chain(config.schemata().iter().flatten());
        let schemata: String = lines
            .filter(|line| !line.is_empty())
            .map(|line| format!("{line}\n"))
            .collect();
        Ok(Self {
            name: clos.unwrap_or(id).to_owned(),
            shared: clos.is_some(),
            schemata,
            monitor: config.enable_monitoring().unwrap_or(false).then(|| id.to_owned()),
        })
    }

    fn path(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    fn monitor_path(&self) -> Option<PathBuf> {
        self.monitor
            .as_ref()
            .map(|name| self.path().join("mon_groups").join(name))
    }

    /// Makes the group where it is missing, sets its schemata, and moves `pid` into it.
    pub(super) fn join(&self, pid: Pid) -> Result<(), Error> {
        let path = self.path();
        // A shared group without schemata is somebody else's, who has to have made it.
        if !self.shared || !self.schemata.is_empty() {
            make(&path)?;
        }
        write(&path.join("tasks"), &pid.to_string())?;
        if !self.schemata.is_empty() {
            write(&path.join("schemata"), &self.schemata)?;
        }
        if let Some(monitor) = self.monitor_path() {
            make(&monitor)?;
            write(&monitor.join("tasks"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Removes what [`super::tune`] made; called when the container is deleted. What is gone already is no error.
    pub fn remove(&self) -> Result<(), Error> {
        let path = if self.shared {
            self.monitor_path()
        } else {
            Some(self.path())
        };
        let Some(path) = path else { return Ok(()) };
        match std::fs::remove_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::File {
                action: "rmdir".into(),
                path,
                source,
            }),
            _ => Ok(()),
        }
    }
}

fn make(path: &Path) -> Result<(), Error> {
    match std::fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Error::File {
            action: "mkdir".into(),
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    std::fs::write(path, value).map_err(|source| {
        // The kernel's own words about what it didn't like.
        let status = std::fs::read_to_string(Path::new(ROOT).join("info/last_cmd_status")).unwrap_or_default();
        let action = format!("write {value:?} (last_cmd_status: {:?}) to", status.trim());
        Error::File {
            action,
            path: path.to_owned(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(json: serde_json::Value) -> Result<Group, Error> {
        Group::new(&serde_json::from_value(json).unwrap(), "c1")
    }

    #[test]
    fn a_group_is_the_containers_own_unless_named() {
        let own = group(serde_json::json!({"l3CacheSchema": "L3:0=f", "schemata": ["MB:0=20"]})).unwrap();
        assert_eq!(
            (own.name.as_str(), own.shared, own.schemata.as_str()),
            ("c1", false, "L3:0=f\nMB:0=20\n")
        );
        let named = group(serde_json::json!({"closID": "gold", "enableMonitoring": true})).unwrap();
        assert_eq!(
            (named.name.as_str(), named.shared, named.schemata.as_str()),
            ("gold", true, "")
        );
        assert_eq!(
            named.monitor_path().unwrap(),
            Path::new("/sys/fs/resctrl/gold/mon_groups/c1")
        );
    }

    #[test]
    fn a_name_can_not_lead_elsewhere() {
        for name in ["..", ".", "a/b", "/etc"] {
            assert!(group(serde_json::json!({"closID": name})).is_err(), "{name}");
        }
    }
}
