//! How this host has control groups, for people.

use super::Error;
use super::file;
use super::mounts::Layout;
use super::systemd::Manager;
use nix::unistd::{AccessFlags, access};
use std::fs::File;

/// What can be said of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// v1, v2 or hybrid.
    pub mode: &'static str,
    /// The controllers of the v1 hierarchies.
    pub v1: Vec<String>,
    /// The controllers that v2 has for cgroups below the caller's own.
    pub v2: Vec<String>,
    /// Cgroups can be made by writing there (`cgroupfs`).
    pub writable: bool,
    /// The version of the systemd that answers on the bus, or why none does.
    pub systemd: Result<String, String>,
}

/// Looks at the caller's own place among them; `rootless` asks the user's systemd.
pub fn describe(rootless: bool) -> Result<Description, Error> {
    let layout = Layout::probe()?;
    let v1: Vec<String> = layout.v1.iter().flat_map(|it| it.controllers.clone()).collect();
    let v2 = match &layout.v2 {
        Some(v2) => file::read(&v2.own_dir().join("cgroup.controllers")).unwrap_or_default(),
        None => String::new(),
    };
    let mut places = layout
        .v1
        .iter()
        .chain(&layout.v2)
        .map(super::mounts::Hierarchy::own_dir);
    Ok(Description {
        mode: match (v1.is_empty(), layout.v2.is_some()) {
            (true, _) => "v2",
            (false, true) => "hybrid",
            (false, false) => "v1",
        },
        v1,
        v2: v2.split_whitespace().map(str::to_owned).collect(),
        writable: places.all(|place| access(&place, AccessFlags::W_OK).is_ok()),
        systemd: Manager::connect(rootless)
            .and_then(|mut manager| manager.version_text())
            .map_err(|error| error.to_string()),
    })
}

/// The caller's own cgroup of v2, if there is v2.
pub fn own_v2() -> Option<File> {
    let v2 = Layout::probe().ok()?.v2?;
    File::open(v2.own_dir()).ok()
}
