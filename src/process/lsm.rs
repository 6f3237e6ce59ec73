//! AppArmor and SELinux, through the attributes of the process in procfs (proc_pid_attr(5)).
//!
//! The procfs is opened through pathrs: what is mounted on the container's /proc is the image's or the bundle's choice,
//! and a label written to a fake is a label not set (CVE-2019-16884, CVE-2019-19921, CVE-2025-52881).

use super::Error;
use pathrs::flags::OpenFlags;
use pathrs::procfs::{ProcfsBase, ProcfsHandle};
use std::io::{self, Write};
use std::path::Path;

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
pub(super) fn apparmor(profile: &str, at_execve: bool) -> Result<(), Error> {
    let (attribute, verb) = if at_execve {
        ("exec", "exec")
    } else {
        ("current", "changeprofile")
    };
    let command = format!("{verb} {profile}");
    // The directory of its own came with Linux 5.8; the shared attribute is AppArmor's only if no other LSM is first.
    let written = match write(&format!("attr/apparmor/{attribute}"), &command) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => write(&format!("attr/{attribute}"), &command),
        other => other,
    };
    written.map_err(|source| Error::AppArmor { command, source })
}

/// Writes SELinux label `label` to `attribute`: `exec` for the next execve(2), `current` for now, `keycreate` for keys.
pub(super) fn selinux(attribute: &'static str, label: &str) -> Result<(), Error> {
    write(&format!("attr/{attribute}"), label).map_err(|source| Error::Selinux {
        attribute,
        label: label.to_owned(),
        source,
    })
}

/// Writes `value` to `path` below /proc/thread-self, in one piece. Attributes belong to threads.
fn write(path: &str, value: &str) -> io::Result<()> {
    let error = |error: pathrs::error::Error| match error.kind() {
        pathrs::error::ErrorKind::OsError(Some(errno)) => io::Error::from_raw_os_error(errno),
        _ => io::Error::other(error),
    };
    let procfs = ProcfsHandle::new().map_err(error)?;
    let file = procfs
        .open(
            ProcfsBase::ProcThreadSelf,
            path,
            OpenFlags::O_WRONLY | OpenFlags::O_CLOEXEC,
        )
        .map_err(error)?;
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
        let error = apparmor("no-such-profile-of-proa", true).unwrap_err().to_string();
        assert!(
            error.contains("apparmor failed to apply profile: \"exec no-such-profile-of-proa\""),
            "{error}"
        );
        let error = selinux("exec", "no:such:label").unwrap_err().to_string();
        assert!(
            error.contains("can't set process label: write \"no:such:label\""),
            "{error}"
        );
    }
}
