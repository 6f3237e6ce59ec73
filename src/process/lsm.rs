//! AppArmor and SELinux, through the attributes of the process in procfs (proc_pid_attr(5)).
//!
//! The procfs is opened through pathrs: what is mounted on the container's /proc is the image's or the bundle's choice,
//! and a label written to a fake is a label not set (CVE-2019-16884, CVE-2019-19921, CVE-2025-52881).

use super::Error;
use pathrs::flags::OpenFlags;
use pathrs::procfs::{ProcfsBase, ProcfsHandle};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// A procfs in which this process finds itself. For one that is going to join a container, whose procfs does not show it:
/// opened before, and closed before others may look at this process, as it shows the host's processes.
#[derive(Debug)]
pub struct Procfs(ProcfsHandle);

impl Procfs {
    /// Opens it.
    pub fn open() -> io::Result<Self> {
        ProcfsHandle::new().map(Self).map_err(io_error)
    }

    /// Opens `path` of this process, or of this thread.
    pub(super) fn file(&self, base: ProcfsBase, path: &str, flags: OpenFlags) -> io::Result<File> {
        self.0.open(base, path, flags | OpenFlags::O_CLOEXEC).map_err(io_error)
    }
}

/// Calls `then` with `procfs`, or with one of the namespaces that this process is in.
pub(super) fn with<T>(procfs: Option<&Procfs>, then: impl FnOnce(&Procfs) -> io::Result<T>) -> io::Result<T> {
    match procfs {
        Some(procfs) => then(procfs),
        None => then(&Procfs::open()?),
    }
}

fn io_error(error: pathrs::error::Error) -> io::Error {
    match error.kind() {
        pathrs::error::ErrorKind::OsError(Some(errno)) => io::Error::from_raw_os_error(errno),
        _ => io::Error::other(error),
    }
}

/// Whether the host's AppArmor is on.
pub(super) fn has_apparmor() -> bool {
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
    Path::new("/sys/kernel/security/apparmor").exists() && enabled.is_ok_and(|enabled| enabled.starts_with(b"Y"))
}

/// Whether the host's SELinux is on: its file system is mounted.
pub(super) fn has_selinux() -> bool {
    const SELINUX_MAGIC: u64 = 0xf97c_ff8c;
    rustix::fs::statfs("/sys/fs/selinux").is_ok_and(|fs| fs.f_type as u64 & 0xffff_ffff == SELINUX_MAGIC)
}

/// Puts the process under AppArmor profile `profile`: at the next execve(2), or at once.
pub(super) fn apparmor(profile: &str, at_execve: bool, procfs: Option<&Procfs>) -> Result<(), Error> {
    let (attribute, verb) = if at_execve {
        ("exec", "exec")
    } else {
        ("current", "changeprofile")
    };
    let command = format!("{verb} {profile}");
    // The directory of its own came with Linux 5.8; the shared attribute is AppArmor's only if no other LSM is first.
    let written = match write(&format!("attr/apparmor/{attribute}"), &command, procfs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => write(&format!("attr/{attribute}"), &command, procfs),
        other => other,
    };
    written.map_err(|source| Error::AppArmor { command, source })
}

/// Writes SELinux label `label` to `attribute`: `exec` for the next execve(2), `current` for now, `keycreate` for keys.
pub(super) fn selinux(attribute: &'static str, label: &str, procfs: Option<&Procfs>) -> Result<(), Error> {
    write(&format!("attr/{attribute}"), label, procfs).map_err(|source| Error::Selinux {
        attribute,
        label: label.to_owned(),
        source,
    })
}

/// Writes `value` to `path` below /proc/thread-self, in one piece. Attributes belong to threads.
fn write(path: &str, value: &str, procfs: Option<&Procfs>) -> io::Result<()> {
    let file = with(procfs, |procfs| {
        procfs.file(ProcfsBase::ProcThreadSelf, path, OpenFlags::O_WRONLY)
    })?;
    // An empty value is a write of nothing, which the kernel takes as "none"; write_all would not even try.
    let written = (&file).write(value.as_bytes())?;
    if written == value.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_label_is_an_error_that_names_it() {
        // Whatever the LSM is here, none has such a profile or label.
        let error = apparmor("no-such-profile-of-proa", true, None).unwrap_err().to_string();
        assert!(
            error.contains("apparmor failed to apply profile: \"exec no-such-profile-of-proa\""),
            "{error}"
        );
        let error = selinux("exec", "no:such:label", None).unwrap_err().to_string();
        assert!(
            error.contains("can't set process label: write \"no:such:label\""),
            "{error}"
        );
    }
}
