//! What an administrator and a container's annotations say of Wasm containers: the configuration file ([`settings`]), and
//! how the two together become the [`proa_executor::policy::Policy`] of one container ([`annotations`]).

pub mod annotations;
pub mod facts;
pub mod plugins;
pub mod settings;
pub mod units;

pub use settings::Settings;

use oci_spec::runtime::Spec;
use proa_executor::policy::Policy;
use std::path::PathBuf;

/// The policy of a Wasm process of the container `spec`: the administrator's file, narrowed by the annotations. It holds for
/// the container's first process and for each that `exec` adds.
pub fn policy(settings: &Settings, spec: &Spec) -> Result<Policy, annotations::Error> {
    let none = Default::default();
    let annotations = spec.annotations().as_ref().unwrap_or(&none);
    annotations::policy(settings, annotations, mounts(spec))
}

/// The destinations of the bundle's mounts.
#[derive(Debug, Default)]
pub struct Mounts {
    /// Those that have content of their own, and whether each is read-only.
    pub content: Vec<(PathBuf, bool)>,
    /// The kernel's file systems, and what is below `/dev`.
    pub interfaces: Vec<PathBuf>,
}

fn mounts(spec: &Spec) -> Mounts {
    const KERNEL: [&str; 6] = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"];
    let mut found = Mounts::default();
    for mount in spec.mounts().as_deref().unwrap_or_default() {
        let destination = mount.destination().clone();
        let kind = mount.typ().as_deref().unwrap_or_default();
        if KERNEL.contains(&kind) || destination.starts_with("/dev") {
            found.interfaces.push(destination);
            continue;
        }
        let options = mount.options().as_deref().unwrap_or_default();
        let read_only = options.iter().rev().find_map(|option| match option.as_str() {
            "ro" | "rro" => Some(true),
            "rw" | "rrw" => Some(false),
            _ => None,
        });
        found.content.push((destination, read_only.unwrap_or(false)));
    }
    found
}
