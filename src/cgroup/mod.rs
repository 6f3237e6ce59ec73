//! cgroups: v2, v1 and hybrid; the drivers `cgroupfs` and `systemd`.
//!
//! [`plan`] is pure. [`Cgroup`] is a container's cgroup on the host, made by [`Prepared::create`], found again by
//! [`Cgroup::open`] from what the state file kept.
//!
//! On a hybrid host (v1 controllers, a v2 hierarchy beside them) the limits are v1's, as in runc. The container also gets a
//! cgroup in the v2 hierarchy if that can be made: it lets processes be born in it, killed at once, and waited for.

mod birth;
mod create;
mod dbus;
mod delegate;
mod describe;
mod devices;
mod error;
mod events;
mod file;
mod filter;
mod freezer;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod limits;
mod mounts;
mod paths;
mod signal;
mod stats;
mod stats_v1;
mod stats_v2;
mod systemd;
mod tree;
mod v1;
mod v2;
mod variant;
mod walk;

pub use birth::Birth;
pub use create::Prepared;
pub use describe::{describe, own_v2};
pub use error::Error;
pub use events::{OomEvent, OomEvents};
pub use stats::Stats;

use crate::host::Host;
use limits::Limits;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxResources, Spec};
use paths::{Place, Unit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use walk::Found;

/// Who makes the cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// proa writes to the cgroup file system.
    #[default]
    Cgroupfs,
    /// systemd makes a transient scope, asked over D-Bus (`--systemd-cgroup`).
    Systemd,
    /// Nobody: the container stays in its caller's cgroup (`--cgroup-manager disabled`, podman's `--cgroups=disabled`).
    Disabled,
}

/// Which cgroup a container gets and with which limits.
#[derive(Clone, Debug)]
pub struct Plan {
    id: String,
    place: Place,
    unit: Option<Unit>,
    /// From annotations `org.systemd.property.NAME`.
    properties: Vec<(String, dbus::Value)>,
    limits: Limits,
    rules: Vec<devices::Rule>,
    rootless: bool,
    /// Whether config.json names the cgroup. Then even an unprivileged caller must get it.
    explicit: bool,
    /// Who shall own the cgroup on v2.
    owner: Option<u32>,
    /// Whether there is to be no cgroup at all.
    disabled: bool,
}

/// What the state file keeps of a cgroup, enough to find it again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    driver: Driver,
    /// v1: the directory by the hierarchy's controllers, joined by commas.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    v1: BTreeMap<String, PathBuf>,
    /// The directory in the v2 hierarchy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unified: Option<PathBuf>,
    /// systemd's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    #[serde(default)]
    rootless: bool,
    #[serde(default)]
    explicit: bool,
    /// What its directories are marked with, see [`walk::mark`]; none where the caller could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
    /// Whether it is only where the cgroup is going to be: no process of the container is in it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    intended: bool,
}

/// The container's directory in a v1 hierarchy.
#[derive(Clone, Debug)]
struct Node {
    controllers: Vec<String>,
    path: PathBuf,
}

impl Node {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// A container's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    /// Empty on a host with v2 only.
    v1: Vec<Node>,
    /// The cgroup in the v2 hierarchy. `None` where there is no v2, or (without privileges) none could be made.
    unified: Option<PathBuf>,
    unit: Option<String>,
    rootless: bool,
    explicit: bool,
    /// What the directories that tell whose it is ([`Cgroup::marked`]) are marked with.
    mark: Option<String>,
    /// It is only where the cgroup is going to be.
    intended: bool,
    /// What is still to be done when the systemd driver gets a process.
    pending: Option<Box<create::Pending>>,
}

/// Resolves `linux.cgroupsPath` and `linux.resources` for container `id`.
pub fn plan(spec: &Spec, id: &str, driver: Driver, host: &Host) -> Result<Plan, Error> {
    let linux = spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let path = path.map(|path| path.to_string_lossy().into_owned());
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let systemd = driver == Driver::Systemd;
    let rules = limits::rules(resources, devices::default_rules(linux))?;
    // Rules that can't be had must be refused before anything is made.
    devices::Emulator::new(&rules)?;
    let limits = resources.map(Limits::new).unwrap_or_default();
    let disabled = driver == Driver::Disabled;
    if disabled && limits.is_set() {
        return Err(Error::Field {
            field: "linux.resources".into(),
            problem: "has limits, which need a cgroup, and the cgroup manager is disabled".into(),
        });
    }
    Ok(Plan {
        id: id.to_owned(),
        place: Place::new(path.as_deref(), id),
        unit: if systemd {
            Some(Unit::new(path.as_deref(), id)?)
        } else {
            None
        },
        properties: if systemd {
            systemd::annotated(spec.annotations().as_ref())?
        } else {
            Vec::new()
        },
        limits,
        rules,
        rootless: host.rootless,
        explicit: path.is_some_and(|path| !path.is_empty()),
        owner: delegate::owner(spec),
        disabled,
    })
}

impl Cgroup {
    /// Prepares to make the cgroup that `plan` asks for.
    pub fn prepare(plan: &Plan) -> Result<Prepared<'_>, Error> {
        Prepared::new(plan)
    }

    /// Finds a container's cgroup again.
    pub fn open(saved: &Saved) -> Result<Self, Error> {
        let node = |(controllers, path): (&String, &PathBuf)| Node {
            controllers: controllers.split(',').map(str::to_owned).collect(),
            path: path.clone(),
        };
        Ok(Self {
            v1: saved.v1.iter().map(node).collect(),
            unified: saved.unified.clone(),
            unit: saved.unit.clone(),
            rootless: saved.rootless,
            explicit: saved.explicit,
            mark: saved.mark.clone(),
            intended: saved.intended,
            pending: None,
        })
    }

    /// What the state file has to keep.
    pub fn save(&self) -> Saved {
        Saved {
            driver: if self.unit.is_some() {
                Driver::Systemd
            } else {
                Driver::Cgroupfs
            },
            v1: self
                .v1
                .iter()
                .map(|node| (node.controllers.join(","), node.path.clone()))
                .collect(),
            unified: self.unified.clone(),
            unit: self.unit.clone(),
            rootless: self.rootless,
            explicit: self.explicit,
            mark: self.mark.clone(),
            intended: self.intended || self.pending.is_some(),
        }
    }

    /// Changes limits (`proa update`). Device rules are left as they are, as runc does.
    pub fn update(&mut self, resources: &LinuxResources) -> Result<(), Error> {
        let mut limits = Limits::new(resources);
        let legacy = self.is_legacy();
        if legacy && !limits.unified.is_empty() {
            return Err(Error::NoUnified);
        }
        if let Some(path) = self.unified.as_deref().filter(|_| !legacy) {
            v2::complete(path, &mut limits)?;
        }
        if let Some(unit) = &self.unit {
            if let Some(path) = self
                .unified
                .as_deref()
                .filter(|_| !legacy && limits.check_before_update)
            {
                // systemd would apply it at once, and a container killed for it has no unit any more.
                v1::check_usage(file::Dir(path), limits.memory, limits.swap, "memory.current")?;
            }
            systemd::Manager::connect(self.rootless)?.set(unit, legacy, &mut limits)?;
        }
        self.apply(&limits)
    }

    /// Writes the limits.
    fn apply(&self, limits: &Limits) -> Result<(), Error> {
        match &self.unified {
            _ if self.is_legacy() => v1::apply(&self.v1, self.unified.as_deref(), limits),
            Some(path) => v2::apply(path, limits),
            // No cgroup at all (rootless): what isn't asked for needn't be refused.
            None => v1::apply(&[], None, limits),
        }
    }

    /// Freezes every process of the cgroup and returns when the kernel says that they are.
    pub fn freeze(&self) -> Result<(), Error> {
        match (self.node("freezer"), &self.unified) {
            (Some(path), _) => freezer::freeze_v1(path),
            (None, Some(path)) => freezer::freeze_v2(path),
            (None, None) => Err(Error::NoFreezer),
        }
    }

    /// Undoes [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<(), Error> {
        match (self.node("freezer"), &self.unified) {
            (Some(path), _) => freezer::thaw_v1(path),
            (None, Some(path)) => freezer::thaw_v2(path),
            (None, None) => Err(Error::NoFreezer),
        }
    }

    /// Whether the cgroup is frozen (`state` says `paused`).
    pub fn is_frozen(&self) -> Result<bool, Error> {
        match (self.node("freezer"), &self.unified) {
            (Some(path), _) => freezer::is_frozen_v1(path),
            (None, Some(path)) => freezer::is_frozen_v2(path),
            (None, None) => Ok(false),
        }
    }

    /// The pids of every process in the cgroup and the cgroups below it. None if there is another container's by now.
    pub fn pids(&self) -> Result<Vec<Pid>, Error> {
        match self.main().map(|path| self.find(path)).transpose()? {
            Some(Found::Ours(walk)) => walk.pids(),
            Some(Found::Another | Found::Nothing) | None => Ok(Vec::new()),
        }
    }

    /// Sends `signal` to every process in the cgroup and below; SIGKILL by `cgroup.kill` where the kernel has it. Another
    /// container's that has the same path by now is left alone.
    pub fn signal_all(&self, signal: Signal) -> Result<(), Error> {
        if !self.is_ours()? {
            return Ok(());
        }
        let killed = match self.unified.as_deref().map(|path| self.find(path)).transpose()? {
            Some(Found::Ours(walk)) if signal == Signal::SIGKILL => walk.kill()?,
            _ => false,
        };
        if killed && !self.is_legacy() {
            return Ok(());
        }
        // Frozen, the cgroup can't fork faster than it is read. (A container without a freezer gets the best there is.)
        let was_frozen = self.is_frozen()?;
        let froze = !killed && !was_frozen && self.freeze().is_ok();
        let sent = signal::send(|| self.pids(), signal);
        // A v1 freezer keeps even SIGKILL waiting.
        let thawed = if froze || (was_frozen && signal == Signal::SIGKILL) {
            self.thaw()
        } else {
            Ok(())
        };
        sent.and(thawed)
    }

    /// Removes the cgroup with all below it; what is gone already, or another container's by now, is no error. Fails while
    /// processes are left.
    pub fn destroy(&self) -> Result<(), Error> {
        if self.intended {
            let paths = self.unified.iter().chain(self.v1.iter().map(|node| &node.path));
            return paths.map(PathBuf::as_path).try_for_each(tree::remove_unused);
        }
        if !self.is_ours()? {
            tracing::debug!("the cgroup is another container's by now");
            return Ok(());
        }
        let stopped = match &self.unit {
            Some(unit) if self.pending.is_none() => {
                systemd::Manager::connect(self.rootless).and_then(|mut manager| manager.stop(unit))
            }
            _ => Ok(()),
        };
        // v2 first: it tells when the last process is gone, which v1 does not.
        if let Some(path) = &self.unified {
            tree::remove(path, true)?;
        }
        // Last the one that tells whose they are: should this be interrupted, that is still to be known.
        let main = self.main().filter(|_| self.is_legacy()).map(Path::to_owned);
        let others = self
            .v1
            .iter()
            .map(|node| &node.path)
            .filter(|path| Some(*path) != main.as_ref());
        for path in others.chain(&main) {
            tree::remove(path, false)?;
        }
        stopped
    }

    /// Marks the cgroup, which has just been made or entered, so that whoever had it before knows that it is no more its own.
    fn mark(&mut self) -> Result<(), Error> {
        self.intended = false;
        let mark = mark_of_this_moment();
        let mut marked = true;
        for path in self.marked() {
            marked &= walk::mark(path, &mark)?;
        }
        self.mark = marked.then_some(mark);
        Ok(())
    }

    /// The directories that tell whose the cgroup is.
    fn marked(&self) -> impl Iterator<Item = &Path> {
        let unified = self.unified.as_deref().filter(|_| self.is_legacy());
        self.main().into_iter().chain(unified)
    }

    fn find<'a>(&self, path: &'a Path) -> Result<Found<'a>, Error> {
        match self.intended {
            true => Ok(Found::Another),
            false => walk::find(path, self.mark.as_deref()),
        }
    }

    /// Whether no directory that could tell tells that the cgroup is another container's by now.
    fn is_ours(&self) -> Result<bool, Error> {
        for path in self.marked() {
            if let Found::Another = self.find(path)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The directory of the v2 cgroup, or of the v1 hierarchy with `controller` (empty: the one that is asked for pids).
    pub fn path(&self, controller: &str) -> Option<&Path> {
        match controller {
            _ if !self.is_legacy() => self.unified.as_deref(),
            "" => self.main(),
            controller => self.node(controller),
        }
    }

    /// Whether there is none at all: an unprivileged caller asked for none and could make none.
    pub fn is_none(&self) -> bool {
        self.v1.is_empty() && self.unified.is_none() && self.unit.is_none() && self.pending.is_none()
    }

    /// On a v1 host, the container's directory in each hierarchy, by the name that a `cgroup` mount shows it under.
    pub fn hierarchies(&self) -> Vec<(String, PathBuf)> {
        if !self.is_legacy() {
            return Vec::new();
        }
        let named = |node: &Node| {
            let name = node.controllers.join(",");
            (name.trim_start_matches("name=").to_owned(), node.path.clone())
        };
        let unified = self.unified.iter().map(|path| ("unified".to_owned(), path.clone()));
        self.v1.iter().map(named).chain(unified).collect()
    }

    /// Whether limits are v1's.
    fn is_legacy(&self) -> bool {
        !self.v1.is_empty()
    }

    /// The directory in the v1 hierarchy with `controller`.
    fn node(&self, controller: &str) -> Option<&Path> {
        self.v1
            .iter()
            .find(|node| node.has(controller))
            .map(|node| node.path.as_path())
    }

    /// The directory that is asked which processes there are: v1's devices, as in runc, for a container can't leave it.
    fn main(&self) -> Option<&Path> {
        let first = || self.v1.first().map(|node| node.path.as_path());
        self.node("devices").or_else(first).or(self.unified.as_deref())
    }
}

/// Different from that of every other process and every other moment.
fn mark_of_this_moment() -> String {
    format!("{} {}", std::process::id(), crate::logging::timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_and_opened() {
        let text = r#"{"driver":"cgroupfs","v1":{"cpu,cpuacct":"/cg/cpu/a","memory":"/cg/memory/a"},
            "unified":"/cg/unified/a","rootless":false,"explicit":true}"#;
        let saved: Saved = serde_json::from_str(text).unwrap();
        let cgroup = Cgroup::open(&saved).unwrap();
        assert_eq!(cgroup.path("cpuacct"), Some(Path::new("/cg/cpu/a")));
        assert_eq!(cgroup.path("pids"), None);
        assert_eq!(cgroup.save(), saved);
        assert_eq!(
            serde_json::from_str::<Saved>(&serde_json::to_string(&saved).unwrap()).unwrap(),
            saved
        );
    }

    fn host() -> Host {
        Host {
            euid: 0,
            egid: 0,
            rootless: false,
        }
    }

    #[test]
    fn a_plan_without_a_linux_section() {
        let spec: Spec = serde_json::from_str(r#"{"ociVersion": "1.2.0"}"#).unwrap();
        let plan = plan(&spec, "c1", Driver::Cgroupfs, &host()).unwrap();
        assert_eq!(plan.place, Place::Relative("c1".into()));
        assert!(!plan.explicit && !plan.limits.is_set());
        assert_eq!(plan.rules, devices::default_rules(None));
    }

    #[test]
    fn device_rules_are_judged_before_anything_is_made() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.2.0", "linux": {"resources": {"devices": [
                {"allow": true, "type": "c", "access": "rwm"},
                {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "w"}]}}}"#,
        )
        .unwrap();
        let error = plan(&spec, "c1", Driver::Cgroupfs, &host()).unwrap_err();
        assert!(matches!(error, Error::PunchedHole { .. }), "{error}");
    }
}
