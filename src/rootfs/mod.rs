//! The container's file system: mounts, devices, pivot_root, masked and read-only paths.
//!
//! [`plan`] is pure. [`open_sources`] runs in the parent. The rest runs in the container's init, in its new mount
//! namespace, as phases that consume each other: [`mount_all`] -> [`Mounted`] -> [`Entered`].

use crate::host::Host;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// The file system of a container, resolved and validated: flags parsed, devices merged with the default ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {}

impl Plan {
    /// The root file system's directory on the host, absolute.
    pub fn root(&self) -> &Path {
        todo!()
    }
}

/// What the command line says about the file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// `--no-pivot`: MS_MOVE and chroot(2) instead of pivot_root(2).
    pub no_pivot: bool,
}

/// Why the file system can't be made; names the field (`mounts[3].options`), the path, and the call.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// The pseudo-terminal of a container: the master for the caller, the slave to become stdin, stdout and stderr.
#[derive(Debug)]
pub struct Console {
    /// The master, to be sent over the console socket.
    pub master: OwnedFd,
    /// The slave.
    pub slave: OwnedFd,
}

/// Resolves `root`, `mounts`, `linux.devices`, `linux.maskedPaths`, `linux.readonlyPaths`, `linux.rootfsPropagation`,
/// `linux.sysctl`, `linux.mountLabel` against `bundle` (absolute).
pub fn plan(spec: &Spec, bundle: &Path, host: &Host, options: Options) -> Result<Plan, Error> {
    let _ = (spec, bundle, host, options);
    todo!()
}

/// In the parent, before the clone: opens the mount sources that the container's init could not open or clone itself
/// (bind sources under a user namespace, id-mapped mounts) as detached mounts, and notes their descriptor numbers in
/// `plan`. The descriptors must stay open, and be inherited by init under the same numbers.
pub fn open_sources(plan: &mut Plan) -> Result<Vec<OwnedFd>, Error> {
    let _ = plan;
    todo!()
}

/// Sets the root's propagation, makes the root file system a mount point, makes every mount, device node and default
/// symlink below it.
pub fn mount_all(plan: &Plan) -> Result<Mounted<'_>, Error> {
    let _ = plan;
    todo!()
}

/// All mounts are made below the root file system; the host's root is still the process's root.
#[derive(Debug)]
pub struct Mounted<'a> {
    plan: &'a Plan,
    root: OwnedFd,
}

impl<'a> Mounted<'a> {
    /// An `O_PATH` descriptor of the container's root, with the mounts on top.
    pub fn root(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.root.as_fd()
    }

    /// Allocates a pseudo-terminal in the container's devpts and bind-mounts its slave on `/dev/console`.
    pub fn console(&self) -> Result<Console, Error> {
        let _ = self.plan;
        todo!()
    }

    /// Makes the container's root the process's root and detaches the host's.
    pub fn pivot(self) -> Result<Entered<'a>, Error> {
        todo!()
    }
}

/// The process's root is the container's.
#[derive(Debug)]
pub struct Entered<'a> {
    /// The plan.
    pub plan: &'a Plan,
}

impl Entered<'_> {
    /// Sets the root's final propagation, writes the sysctls, makes paths read-only and masks them, makes the root
    /// read-only. After this the file system is as the bundle says.
    pub fn finish(self) -> Result<(), Error> {
        todo!()
    }
}

/// `exec --tty`: allocates a pseudo-terminal in the devpts of the container that this process has joined.
pub fn console_of_running() -> Result<Console, Error> {
    todo!()
}
