//! Making a container's cgroup, with either driver.

use super::devices::Rule;
use super::limits::Limits;
use super::mounts::{Hierarchy, Layout, join};
use super::paths::{Unit, expand_slice};
use super::{Cgroup, Error, Node, Plan, Saved, dbus, delegate, file, freezer, systemd, tree, v1, v2};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::path::{Path, PathBuf};

/// What the systemd driver does when there is a process.
#[derive(Debug)]
pub(super) struct Pending {
    id: String,
    unit: Unit,
    properties: Vec<(String, dbus::Value)>,
    limits: Limits,
    rules: Vec<Rule>,
    owner: Option<u32>,
    layout: Layout,
}

/// A cgroup that is about to be made. Where it will be can be remembered first, so that whoever is killed while making it
/// leaves nothing that nobody knows of.
#[derive(Debug)]
pub struct Prepared<'a> {
    plan: &'a Plan,
    layout: Layout,
    expected: Cgroup,
}

impl<'a> Prepared<'a> {
    /// Finds out where the cgroup will be, and that no process is in it: what is there from now on is the container's.
    pub(super) fn new(plan: &'a Plan) -> Result<Self, Error> {
        let mut expected = empty(plan);
        if plan.disabled {
            let layout = Layout::default();
            return Ok(Self { plan, layout, expected });
        }
        let layout = Layout::probe()?;
        // systemd makes its units itself.
        if plan.unit.is_none() {
            let legacy = layout.is_legacy();
            expected.unified = layout.v2.as_ref().map(|v2| match legacy {
                true => plan.place.in_v1(v2),
                false => plan.place.in_v2(v2),
            });
            let node = |hierarchy: &Hierarchy| Node {
                controllers: hierarchy.controllers.clone(),
                path: plan.place.in_v1(hierarchy),
            };
            expected.v1 = layout.v1.iter().filter(|_| legacy).map(node).collect();
            check_unused(expected.main().unwrap_or(Path::new("")), false)?;
        }
        expected.intended = true;
        Ok(Self { plan, layout, expected })
    }

    /// What the state file has to keep meanwhile.
    pub fn save(&self) -> Saved {
        self.expected.save()
    }

    /// Makes the cgroup and applies the limits. With the systemd driver the scope needs a process: it is made by
    /// [`Cgroup::attach`]. Removes what it made if it fails.
    pub fn create(self) -> Result<Cgroup, Error> {
        if self.plan.disabled {
            return Ok(self.expected);
        }
        create(self.plan, &self.layout)
    }
}

/// Makes the cgroup that `plan` asks for in the hierarchies of `layout`.
fn create(plan: &Plan, layout: &Layout) -> Result<Cgroup, Error> {
    if layout.is_legacy() && !plan.limits.unified.is_empty() {
        return Err(Error::NoUnified);
    }
    if layout.is_legacy() && !plan.rootless && !layout.v1.iter().any(|hierarchy| hierarchy.has("devices")) {
        return Err(Error::NoDevices);
    }
    if let Some(unit) = &plan.unit {
        return prepare_unit(plan, unit, layout);
    }
    let mut made = Vec::new();
    let result = match &layout.v2 {
        Some(v2) if !layout.is_legacy() => create_v2(plan, v2, &mut made),
        _ => create_v1(plan, layout, &mut made),
    };
    let result = result.and_then(|mut cgroup| cgroup.mark().map(|()| cgroup));
    if result.is_err() {
        tree::unmake(&made);
    }
    result
}

fn empty(plan: &Plan) -> Cgroup {
    Cgroup {
        v1: Vec::new(),
        unified: None,
        unit: None,
        rootless: plan.rootless,
        explicit: plan.explicit,
        mark: None,
        intended: false,
        pending: None,
    }
}

/// What an unprivileged caller may be denied without an error.
fn is_denied(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::EACCES | Errno::EPERM | Errno::EROFS))
}

fn create_v2(plan: &Plan, hierarchy: &Hierarchy, made: &mut Vec<PathBuf>) -> Result<Cgroup, Error> {
    let path = plan.place.in_v2(hierarchy);
    let fresh = match tree::make(&path, made) {
        Err(error) if plan.rootless && !plan.explicit && is_denied(&error) => {
            if !plan.limits.is_set() {
                return Ok(empty(plan));
            }
            return Err(Error::Rootless {
                path,
                errno: error.errno().unwrap_or(Errno::EACCES),
            });
        }
        result => result?,
    };
    if !fresh {
        check_unused(&path, freezer::is_frozen_v2(&path)?)?;
    }
    v2::enable_controllers(&hierarchy.mount, &path)?;
    // Children of the top are always of type "domain".
    if path.parent() != Some(&hierarchy.mount) {
        v2::check_type(&path, &plan.limits)?;
    }
    v2::apply(&path, &plan.limits)?;
    v2::devices(&path, &plan.rules, fresh, plan.rootless)?;
    delegate::give(&path, plan.owner, plan.rootless)?;
    Ok(Cgroup {
        unified: Some(path),
        ..empty(plan)
    })
}

fn create_v1(plan: &Plan, layout: &Layout, made: &mut Vec<PathBuf>) -> Result<Cgroup, Error> {
    let mut cgroup = empty(plan);
    let mut fresh_devices = false;
    for hierarchy in &layout.v1 {
        let path = plan.place.in_v1(hierarchy);
        let fresh = match tree::make(&path, made) {
            Err(error) if plan.rootless && !plan.explicit && is_denied(&error) => continue,
            result => result?,
        };
        let node = Node {
            controllers: hierarchy.controllers.clone(),
            path,
        };
        if !fresh {
            let frozen = node.has("freezer") && freezer::is_frozen_v1(&node.path)?;
            check_unused(if node.has("devices") { &node.path } else { Path::new("") }, frozen)?;
        }
        fresh_devices |= fresh && node.has("devices");
        if node.has("cpuset") {
            v1::fill_cpuset(&node.path, &hierarchy.mount, &plan.limits, fresh)?;
        }
        cgroup.v1.push(node);
    }
    if let Some(v2) = &layout.v2 {
        let path = plan.place.in_v1(v2);
        // runc leaves this hierarchy alone: what is refused in it is no reason to fail.
        match !plan.rootless || v2.may_enter(&path) {
            false => tracing::debug!("no cgroup in the v2 hierarchy: may not enter {}", path.display()),
            true => match tree::make(&path, made) {
                Ok(_) => cgroup.unified = Some(path),
                Err(error) => tracing::debug!("no cgroup in the v2 hierarchy: {error}"),
            },
        }
    }
    apply_v1(&cgroup, &plan.limits, &plan.rules, fresh_devices)?;
    Ok(cgroup)
}

fn apply_v1(cgroup: &Cgroup, limits: &Limits, rules: &[Rule], fresh_devices: bool) -> Result<(), Error> {
    v1::apply(&cgroup.v1, cgroup.unified.as_deref(), limits)?;
    let Some(path) = cgroup.node("devices") else {
        return Ok(());
    };
    match v1::devices(path, rules, fresh_devices) {
        // Device nodes of the host can't be made or opened from a user namespace anyhow.
        Err(error) if cgroup.rootless && is_denied(&error) => Ok(()),
        result => result,
    }
}

/// A cgroup that was there before must not have processes, nor freeze those that come.
fn check_unused(path: &Path, frozen: bool) -> Result<(), Error> {
    if !path.as_os_str().is_empty() && tree::exists(path) {
        let pids = tree::pids(path)?;
        if !pids.is_empty() {
            return Err(Error::NotEmpty(pids.len()));
        }
    }
    if frozen { Err(Error::Frozen) } else { Ok(()) }
}

/// Finds out where systemd will put the unit.
fn prepare_unit(plan: &Plan, unit: &Unit, layout: &Layout) -> Result<Cgroup, Error> {
    if !systemd::is_running() {
        return Err(Error::NoSystemd);
    }
    if layout.is_legacy() && plan.rootless {
        return Err(Error::RootlessSystemdV1);
    }
    let slice = expand_slice(unit.slice.as_deref().unwrap_or(systemd::default_slice(plan.rootless)))?;
    // A user's manager has a cgroup of its own, in which its slices are.
    let base = if plan.rootless {
        systemd::Manager::connect(true)?.control_group()?
    } else {
        String::new()
    };
    let inner = format!("{base}/{}/{}", slice.trim_matches('/'), unit.name);
    let mut cgroup = Cgroup {
        unit: Some(unit.name.clone()),
        ..empty(plan)
    };
    if layout.is_legacy() {
        let node = |hierarchy: &Hierarchy| Node {
            controllers: hierarchy.controllers.clone(),
            path: join(&hierarchy.mount, &inner),
        };
        cgroup.v1 = layout.v1.iter().map(node).collect();
    }
    cgroup.unified = layout.v2.as_ref().map(|v2| join(&v2.mount, &inner));
    let frozen = cgroup.is_frozen()?;
    check_unused(cgroup.main().unwrap_or(Path::new("")), frozen)?;
    cgroup.pending = Some(Box::new(Pending {
        id: plan.id.clone(),
        unit: unit.clone(),
        properties: plan.properties.clone(),
        limits: plan.limits.clone(),
        rules: plan.rules.clone(),
        owner: plan.owner,
        layout: layout.clone(),
    }));
    Ok(cgroup)
}

/// Has systemd make the scope with `pid` in it, then does what systemd doesn't.
///
/// After an error `cgroup` holds what there is to be undone, by killing the processes and [`Cgroup::destroy`]: `pid` waits for
/// its parent and would keep systemd waiting, too, if the unit were stopped here.
pub(super) fn attach(cgroup: &mut Cgroup, pending: Pending, pid: Pid) -> Result<(), Error> {
    let mut limits = pending.limits.clone();
    let Pending {
        unit, rules, layout, ..
    } = &pending;
    if let Err(error) = start_unit(&pending, &mut limits, cgroup.rootless, pid) {
        // Not made, or somebody else's of the same name: that must not be stopped.
        if !is_in_unit(pid, &unit.name) {
            *cgroup = Cgroup {
                v1: Vec::new(),
                unified: None,
                unit: None,
                mark: None,
                pending: None,
                ..*cgroup
            };
        }
        return Err(error);
    }
    if layout.is_legacy() {
        complete_v1(cgroup, layout, &limits, rules, pid)?;
    } else {
        complete_v2(cgroup, layout, &limits, &pending)?;
    }
    cgroup.mark()
}

/// Asks systemd for the unit and rounds `limits` to what it can express.
fn start_unit(pending: &Pending, limits: &mut Limits, rootless: bool, pid: Pid) -> Result<(), Error> {
    let legacy = pending.layout.is_legacy();
    let mut manager = systemd::Manager::connect(rootless)?;
    let mut asked = systemd::scope(&pending.unit, &pending.id, rootless, legacy, pid);
    asked.extend(pending.properties.iter().cloned());
    asked.extend(manager.limits(legacy, limits)?);
    asked.extend(manager.devices(&pending.rules)?);
    manager.start(&pending.unit.name, &asked)
}

/// Whether `pid` is in the cgroup of a unit of that name, in any hierarchy. A process that is gone is not.
fn is_in_unit(pid: Pid, unit: &str) -> bool {
    let text = file::read(Path::new(&format!("/proc/{pid}/cgroup"))).unwrap_or_default();
    text.lines().any(|line| line.split('/').any(|part| part == unit))
}

fn complete_v2(cgroup: &Cgroup, layout: &Layout, limits: &Limits, pending: &Pending) -> Result<(), Error> {
    let (Some(path), Some(hierarchy)) = (&cgroup.unified, &layout.v2) else {
        return Err(Error::NoCgroupMount);
    };
    v2::enable_controllers(&hierarchy.mount, path)?;
    v2::apply(path, limits)?;
    v2::devices(path, &pending.rules, false, cgroup.rootless)?;
    delegate::give(path, pending.owner, cgroup.rootless)
}

/// systemd makes its scope only in the hierarchies it knows, and there only where a property asks for it.
fn complete_v1(cgroup: &mut Cgroup, layout: &Layout, limits: &Limits, rules: &[Rule], pid: Pid) -> Result<(), Error> {
    let mut made = Vec::new();
    for node in cgroup.v1.iter().filter(|node| !node.has("name=systemd")) {
        tree::make(&node.path, &mut made)?;
        if node.has("cpuset") {
            let top = layout
                .v1
                .iter()
                .find(|hierarchy| hierarchy.has("cpuset"))
                .map(|hierarchy| &hierarchy.mount);
            v1::fill_cpuset(&node.path, top.unwrap_or(&node.path), limits, false)?;
        }
        enter(&node.path, pid)?;
    }
    if let Some(path) = cgroup.unified.take() {
        // A systemd that runs hybrid has made it; one that runs v1 leaves that hierarchy alone.
        if tree::make(&path, &mut made).and_then(|_| enter(&path, pid)).is_ok() {
            cgroup.unified = Some(path);
        }
    }
    apply_v1(cgroup, limits, rules, false)
}

pub(super) fn enter(dir: &Path, pid: Pid) -> Result<(), Error> {
    let path = dir.join("cgroup.procs");
    file::write(&path, &pid.to_string()).map_err(|errno| {
        let (field, value) = ("linux.cgroupsPath", pid.to_string());
        Error::Write {
            field,
            path,
            value,
            errno,
        }
    })
}
