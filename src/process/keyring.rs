//! The session keyring (session-keyring(7)): a container must not see its caller's.

use super::{Error, lsm};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use proa_sys::security;
use serde::{Deserialize, Serialize};
use std::ffi::CString;

/// The session keyring of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyring {
    /// `_ses.ID`, as in runc; an `exec` joins it by this name.
    pub name: String,
    /// Permission bits to add (keyctl(2), KEYCTL_SETPERM); none for an `exec`.
    pub permissions: Option<u32>,
}

/// `KEY_OTH_SEARCH` and `KEY_USR_SEARCH` of linux/keyctl.h: to be joined by an `exec`, a keyring must be found by it. In a
/// user namespace the searcher isn't the owner.
const OTHER_SEARCH: u32 = 0x0000_0008;
const USER_SEARCH: u32 = 0x0008_0000;

/// `KEY_SPEC_SESSION_KEYRING` of linux/keyctl.h.
pub(super) const SESSION_KEYRING: i32 = -3;

impl Keyring {
    pub(super) fn new(id: &str, spec: &Spec, exec: bool) -> Self {
        let namespaces = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_deref())
            .unwrap_or_default();
        let userns = namespaces
            .iter()
            .any(|namespace| namespace.typ() == LinuxNamespaceType::User);
        let permissions = if userns { OTHER_SEARCH } else { USER_SEARCH };
        Self {
            name: format!("_ses.{id}"),
            permissions: (!exec).then_some(permissions),
        }
    }
}

/// Joins the session keyring, or makes it, with SELinux label `label`. Keyrings that the kernel doesn't have (`ENOSYS`) are
/// not worth failing for, as with runc: they are marginal protection beside credentials. Any other failure is fatal, also
/// `EPERM` of an outer container's seccomp filter, where `--no-new-keyring` says that none is wanted.
pub(super) fn join(keyring: &Keyring, label: Option<&str>, procfs: Option<&lsm::Procfs>) -> Result<(), Error> {
    let field = || Error::field("id", "contains nul byte (\\x00)");
    let name = CString::new(keyring.name.as_str()).map_err(|_| field())?;
    if let Some(label) = label {
        lsm::selinux("keycreate", label, procfs)?;
    }
    let joined = security::keyring_join(&name);
    if label.is_some() {
        lsm::selinux("keycreate", "", procfs)?;
    }
    match joined {
        Ok(_) => {}
        Err(errno @ Errno::ENOSYS) => {
            tracing::warn!("keyctl(KEYCTL_JOIN_SESSION_KEYRING, {:?}): {errno}", keyring.name);
            return Ok(());
        }
        Err(source) => {
            let call = format!(
                "unable to join session keyring: unable to create session key: keyctl(KEYCTL_JOIN_SESSION_KEYRING, {:?})",
                keyring.name
            );
            return Err(Error::Call { call, source });
        }
    };
    match keyring.permissions {
        Some(added) => add_permissions(added),
        None => Ok(()),
    }
}

/// Adds permission bits to the session keyring. It has a name of its own for the kernel because joining a keyring that the
/// process is in already returns no serial number.
fn add_permissions(added: u32) -> Result<(), Error> {
    let call = |call: &str| format!("unable to mod keyring permissions: keyctl({call}, KEY_SPEC_SESSION_KEYRING)");
    let description = security::key_describe(SESSION_KEYRING).map_err(Error::call(call("KEYCTL_DESCRIBE")))?;
    let now = permissions(&description).ok_or_else(|| Error::Call {
        call: call("KEYCTL_DESCRIBE"),
        source: Errno::EBADMSG,
    })?;
    security::key_set_permissions(SESSION_KEYRING, now | added).map_err(Error::call(call("KEYCTL_SETPERM")))
}

/// The fourth field of a key's description.
fn permissions(description: &[u8]) -> Option<u32> {
    let field = std::str::from_utf8(description).ok()?.split(';').nth(3)?;
    u32::from_str_radix(field, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_the_fourth_field_in_hexadecimal() {
        assert_eq!(permissions(b"keyring;0;0;3f030000;_ses.a;b\0"), Some(0x3f03_0000));
        assert_eq!(permissions(b"keyring;0;0"), None);
        assert_eq!(permissions(b"keyring;0;0;x;y"), None);
    }

    #[test]
    fn an_exec_joins_and_a_container_opens_its_keyring_to_searches() {
        let spec = Spec::default();
        assert_eq!(
            Keyring::new("c", &spec, false),
            Keyring {
                name: "_ses.c".into(),
                permissions: Some(0x80000)
            }
        );
        assert_eq!(Keyring::new("c", &spec, true).permissions, None);
        let rootless = Spec::rootless(1000, 1000);
        assert_eq!(Keyring::new("c", &rootless, false).permissions, Some(8));
    }
}
