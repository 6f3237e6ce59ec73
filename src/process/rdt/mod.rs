//! `linux.intelRdt`: a resource group of the resctrl file system (Documentation/filesystems/resctrl.rst).
//!
//! No machine this is built on has the hardware. The tests work on a directory laid out like that file system; the kernel's
//! side of it was never met.

mod stats;

pub use stats::Stats;

use super::Error;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIntelRdt;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Where resctrl is mounted, unless somebody mounted it elsewhere.
const DEFAULT: &str = "/sys/fs/resctrl";

/// The resctrl file system of this host.
#[derive(Clone, Debug)]
pub struct Resctrl {
    root: PathBuf,
}

/// The group that a container's processes belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The directory below resctrl's: `closID`, else the container's id; `/` is resctrl's own, the default group.
    pub name: String,
    /// Whether `closID` names the group: then it isn't ours to remove.
    pub shared: bool,
    /// `l3CacheSchema`, `memBwSchema` and `schemata`, in the order in which they are written; may be empty.
    pub schemata: Vec<String>,
    /// `l3CacheSchema` is given: the host must have cache allocation (CAT).
    pub needs_cat: bool,
    /// `memBwSchema` is given: the host must have memory bandwidth allocation (MBA).
    pub needs_mba: bool,
    /// The monitoring group below it, if `enableMonitoring`.
    pub monitor: Option<String>,
    /// The container runs already (`exec`): the group is as it is.
    pub running: bool,
}

impl Resctrl {
    /// Looks for it at the usual place, then anywhere (runtime-spec: "in the runtime mount namespace").
    pub fn find() -> Result<Self, Error> {
        const RDTGROUP_SUPER_MAGIC: u64 = 0x0765_5821;
        let missing = || Error::NoRdt { path: DEFAULT.into() };
        match rustix::fs::statfs(DEFAULT) {
            Ok(fs) if fs.f_type as u64 & 0xffff_ffff == RDTGROUP_SUPER_MAGIC => Ok(Self { root: DEFAULT.into() }),
            // The kernel makes the directory only if the hardware can do it.
            Err(rustix::io::Errno::NOENT) => Err(missing()),
            _ => {
                let mounts = read(Path::new("/proc/self/mountinfo"))?;
                let root = mount_point(&mounts).ok_or_else(missing)?;
                Ok(Self { root })
            }
        }
    }

    /// Cache allocation (CAT) is there.
    pub fn has_cat(&self) -> bool {
        self.root.join("info/L3").exists()
    }

    /// Memory bandwidth allocation (MBA) is there.
    pub fn has_mba(&self) -> bool {
        self.root.join("info/MB").exists()
    }

    fn path(&self, group: &Group) -> PathBuf {
        match group.name.as_str() {
            "/" => self.root.clone(),
            name => self.root.join(name),
        }
    }

    fn monitor_path(&self, group: &Group) -> Option<PathBuf> {
        let name = group.monitor.as_ref()?;
        Some(self.path(group).join("mon_groups").join(name))
    }

    /// Whether the hardware has what `group` needs. Worded as runc words it.
    pub fn check(&self, group: &Group) -> Result<(), Error> {
        let refuse = |field: &str, what: &str| {
            let field = format!("intelRdt.{field}");
            let problem = format!("is specified in config, but Intel RDT/{what} is not enabled");
            Err(Error::Rdt { field, problem })
        };
        match group {
            _ if group.needs_cat && !self.has_cat() => refuse("l3CacheSchema", "CAT"),
            _ if group.needs_mba && !self.has_mba() => refuse("memBwSchema", "MBA"),
            _ => Ok(()),
        }
    }

    /// Makes the group where it is missing, moves `pid` into it, and sets its schemata.
    pub(super) fn join(&self, group: &Group, pid: Pid) -> Result<(), Error> {
        let path = self.path(group);
        if group.running {
            return self.join_running(group, pid);
        }
        if group.shared && group.schemata.is_empty() {
            // Somebody else's, who has to have made it.
            std::fs::metadata(&path).map_err(|source| Error::File {
                action:
                    "clos dir not accessible (must be pre-created when schemata, l3CacheSchema and memBwSchema are \
                         empty): stat"
                        .into(),
                path: path.clone(),
                source,
            })?;
        } else {
            make(&path)?;
        }
        self.write(&path.join("tasks"), &pid.to_string())?;
        if let Some(monitor) = self.monitor_path(group) {
            make(&monitor)?;
            self.write(&monitor.join("tasks"), &pid.to_string())?;
        }
        self.set_schemata(group)
    }

    /// The process of an `exec`, whose parent is not in the group. A group that went away meanwhile is no error, as in runc.
    fn join_running(&self, group: &Group, pid: Pid) -> Result<(), Error> {
        let dirs = [Some(self.path(group)), self.monitor_path(group)];
        for dir in dirs.into_iter().flatten().filter(|dir| dir.is_dir()) {
            self.write(&dir.join("tasks"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Writes the group's schemata, all of them at once, if there are any.
    pub fn set_schemata(&self, group: &Group) -> Result<(), Error> {
        if group.schemata.is_empty() {
            return Ok(());
        }
        let lines: String = group.schemata.iter().map(|line| format!("{line}\n")).collect();
        self.write(&self.path(group).join("schemata"), &lines)
    }

    /// Removes what [`super::tune`] made; called when the container is deleted. What is gone already is no error.
    pub fn remove(&self, group: &Group) -> Result<(), Error> {
        // The monitoring group of a group of its own goes with that one.
        let path = if group.shared {
            self.monitor_path(group)
        } else {
            Some(self.path(group))
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

    fn write(&self, path: &Path, value: &str) -> Result<(), Error> {
        // Not std::fs::write, which would create: a file that isn't there is told by name.
        let written = std::fs::File::options()
            .write(true)
            .open(path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|source| {
            // The kernel's own words about what it didn't like.
            let status = std::fs::read_to_string(self.root.join("info/last_cmd_status")).unwrap_or_default();
            let action = format!("write {value:?} (last_cmd_status: {:?}) to", status.trim());
            Error::File {
                action,
                path: path.to_owned(),
                source,
            }
        })
    }
}

impl Group {
    /// Resolves `linux.intelRdt` of container `id`.
    pub fn new(config: &LinuxIntelRdt, id: &str) -> Result<Self, Error> {
        let clos = config.clos_id().as_deref().filter(|clos| !clos.is_empty());
        if let Some(clos) = clos.filter(|clos| (clos.len() > 1 && clos.contains('/')) || matches!(*clos, "." | "..")) {
            return Err(Error::field(
                "linux.intelRdt.closID",
                format!("invalid intelRdt.ClosID {clos:?}"),
            ));
        }
        let given = |schema: &Option<String>| schema.as_ref().is_some_and(|schema| !schema.is_empty());
        let old = [config.l3_cache_schema(), config.mem_bw_schema()];
        let lines = old.into_iter().flatten().chain(config.schemata().iter().flatten());
        Ok(Self {
            name: clos.unwrap_or(id).to_owned(),
            shared: clos.is_some(),
            schemata: lines.filter(|line| !line.is_empty()).cloned().collect(),
            needs_cat: given(config.l3_cache_schema()),
            needs_mba: given(config.mem_bw_schema()),
            monitor: config.enable_monitoring().unwrap_or(false).then(|| id.to_owned()),
            running: false,
        })
    }

    /// The group of a container that runs, to be entered by another process.
    pub fn of_running(config: &LinuxIntelRdt, id: &str) -> Result<Self, Error> {
        let group = Self::new(config, id)?;
        Ok(Self { running: true, ..group })
    }
}

/// The first mount of resctrl in `mountinfo`.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (file_system.split(' ').next() == Some("resctrl"))
            .then(|| PathBuf::from(crate::rootfs::procfs::unescape(point)))
    })
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

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File {
        action: "read".into(),
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::fs;

    /// A directory like resctrl with the groups `c1` and `gold`, in which every file takes what is written.
    pub(super) struct Fake(pub Resctrl);

    impl Fake {
        pub(super) fn new(name: &str, features: &[&str]) -> Self {
            let root = std::env::temp_dir().join(format!("proa-resctrl-{name}-{}", std::process::id()));
            for group in ["", "c1", "gold"] {
                for dir in [
                    group.to_owned(),
                    format!("{group}/mon_groups/c1").trim_matches('/').to_owned(),
                ] {
                    fs::create_dir_all(root.join(&dir)).unwrap();
                    fs::write(root.join(&dir).join("tasks"), "").unwrap();
                }
                fs::write(root.join(group).join("schemata"), "").unwrap();
            }
            for feature in features {
                fs::create_dir_all(root.join("info").join(feature)).unwrap();
            }
            fs::create_dir_all(root.join("info")).unwrap();
            fs::write(root.join("info/last_cmd_status"), "ok\n").unwrap();
            Self(Resctrl { root })
        }

        pub(super) fn path(&self, path: &str) -> PathBuf {
            self.0.root.join(path)
        }

        fn text(&self, path: &str) -> String {
            fs::read_to_string(self.path(path)).unwrap()
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0.root).unwrap();
        }
    }

    fn config(json: Value) -> LinuxIntelRdt {
        serde_json::from_value(json).unwrap()
    }

    fn group(json: Value) -> Result<Group, Error> {
        Group::new(&config(json), "c1")
    }

    #[test]
    fn a_group_is_the_containers_own_unless_named() {
        let own = group(json!({"l3CacheSchema": "L3:0=f", "schemata": ["MB:0=20"]})).unwrap();
        assert_eq!((own.name.as_str(), own.shared), ("c1", false));
        assert_eq!(own.schemata, ["L3:0=f", "MB:0=20"]);
        let named = group(json!({"closID": "gold", "enableMonitoring": true})).unwrap();
        assert_eq!((named.name.as_str(), named.shared), ("gold", true));
        assert!(named.schemata.is_empty());
        let resctrl = Resctrl { root: DEFAULT.into() };
        let monitor = resctrl.monitor_path(&named).unwrap();
        assert_eq!(monitor, Path::new("/sys/fs/resctrl/gold/mon_groups/c1"));
        let default = group(json!({"closID": "/"})).unwrap();
        assert_eq!(resctrl.path(&default), Path::new(DEFAULT));
    }

    #[test]
    fn a_name_can_not_lead_elsewhere() {
        for name in ["..", ".", "a/b", "/etc", "//"] {
            assert!(group(json!({"closID": name})).is_err(), "{name}");
        }
    }

    #[test]
    fn a_process_joins_before_the_schemata_are_set() {
        let fake = Fake::new("join", &["L3", "MB"]);
        let wanted = json!({"memBwSchema": "MB:0=20", "l3CacheSchema": "L3:0=f", "schemata": ["L2:0=3"],
            "enableMonitoring": true});
        let own = group(wanted).unwrap();
        fake.0.check(&own).unwrap();
        fake.0.join(&own, Pid::from_raw(42)).unwrap();
        assert_eq!(fake.text("c1/schemata"), "L3:0=f\nMB:0=20\nL2:0=3\n");
        assert_eq!(
            (fake.text("c1/tasks"), fake.text("c1/mon_groups/c1/tasks")),
            ("42".into(), "42".into())
        );
        assert_eq!(fake.text("schemata"), "");
    }

    #[test]
    fn a_named_group_without_schemata_must_exist_and_is_left_as_it_is() {
        let fake = Fake::new("named", &["L3"]);
        fake.0
            .join(&group(json!({"closID": "gold"})).unwrap(), Pid::from_raw(7))
            .unwrap();
        assert_eq!(
            (fake.text("gold/tasks"), fake.text("gold/schemata")),
            ("7".into(), String::new())
        );
        let missing = fake
            .0
            .join(&group(json!({"closID": "silver"})).unwrap(), Pid::from_raw(7));
        let problem = missing.unwrap_err().to_string();
        assert!(
            problem.contains("must be pre-created") && problem.contains("silver"),
            "{problem}"
        );
    }

    #[test]
    fn an_exec_joins_the_group_and_changes_nothing() {
        let fake = Fake::new("exec", &["L3"]);
        let wanted = config(json!({"schemata": ["L3:0=f"], "enableMonitoring": true}));
        fake.0
            .join(&Group::of_running(&wanted, "c1").unwrap(), Pid::from_raw(9))
            .unwrap();
        assert_eq!(
            (fake.text("c1/tasks"), fake.text("c1/mon_groups/c1/tasks")),
            ("9".into(), "9".into())
        );
        assert_eq!(fake.text("c1/schemata"), "");
        fake.0
            .join(&Group::of_running(&wanted, "gone").unwrap(), Pid::from_raw(9))
            .unwrap();
    }

    #[test]
    fn only_what_was_made_is_removed() {
        let fake = Fake::new("remove", &[]);
        let empty = |path: &str| {
            for file in fs::read_dir(fake.path(path)).unwrap() {
                let file = file.unwrap().path();
                if file.is_file() {
                    fs::remove_file(file).unwrap()
                } else {
                    fs::remove_dir_all(file).unwrap()
                }
            }
        };
        empty("gold/mon_groups/c1");
        empty("c1");
        fake.0
            .remove(&group(json!({"closID": "gold", "enableMonitoring": true})).unwrap())
            .unwrap();
        assert!(fake.path("gold/tasks").exists() && !fake.path("gold/mon_groups/c1").exists());
        let own = group(json!({"enableMonitoring": true})).unwrap();
        fake.0.remove(&own).unwrap();
        assert!(!fake.path("c1").exists());
        fake.0.remove(&own).unwrap();
    }

    #[test]
    fn what_the_hardware_lacks_is_refused_in_runcs_words() {
        let fake = Fake::new("lacks", &["MB"]);
        let problem = |json| fake.0.check(&group(json).unwrap()).unwrap_err().to_string();
        assert_eq!(
            problem(json!({"l3CacheSchema": "L3:0=f"})),
            "intelRdt.l3CacheSchema is specified in config, but Intel RDT/CAT is not enabled"
        );
        fs::remove_dir(fake.path("info/MB")).unwrap();
        assert_eq!(
            problem(json!({"memBwSchema": "MB:0=20"})),
            "intelRdt.memBwSchema is specified in config, but Intel RDT/MBA is not enabled"
        );
    }

    #[test]
    fn what_the_kernel_refuses_is_told_in_its_words() {
        let fake = Fake::new("refuses", &["L3"]);
        fs::write(fake.path("info/last_cmd_status"), "mask f outside of range\n").unwrap();
        fs::remove_file(fake.path("c1/schemata")).unwrap();
        let own = group(json!({"schemata": ["L3:0=f"]})).unwrap();
        let problem = fake.0.set_schemata(&own).unwrap_err().to_string();
        assert!(
            problem.contains("mask f outside of range") && problem.contains("c1/schemata"),
            "{problem}"
        );
    }

    #[test]
    fn it_is_found_wherever_it_is_mounted() {
        let mounts = "22 1 0:5 / /sys rw - sysfs sysfs rw\n30 22 0:30 / /my\\040rdt rw shared:1 - resctrl resctrl rw\n";
        assert_eq!(mount_point(mounts), Some("/my rdt".into()));
        assert_eq!(mount_point("22 1 0:5 / /resctrl rw - sysfs resctrl rw\n"), None);
    }
}
