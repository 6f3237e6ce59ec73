//! The five capability sets (capabilities(7)).
//!
//! The `caps` crate supplies names and numbers; its setters make two system calls a set and probe what they drop, which
//! at some forty capabilities would double the calls that confining a process takes.

use super::Error;
use nix::errno::Errno;
use oci_spec::runtime::LinuxCapabilities;
use proa_sys::errno::Raw;
use proa_sys::errno::words;
use proa_sys::security;
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

/// `process.capabilities`: each set a mask with bit n for capability number n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What execve(2) may ever give.
    pub bounding: u64,
    /// What is checked.
    pub effective: u64,
    /// What is kept over execve(2) of a file with the same inheritable capabilities.
    pub inheritable: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What is kept over execve(2).
    pub ambient: u64,
}

/// Capabilities up to CAP_AUDIT_READ are older than the oldest kernel supported; from this number on the kernel is asked.
const FIRST_UNSURE: u32 = 38;

impl Capabilities {
    /// The masks of `sets`; a set that is left out is empty, as in runc.
    pub(super) fn new(sets: &LinuxCapabilities) -> Result<Self, Error> {
        let mask = |name: &str, set: &Option<oci_spec::runtime::Capabilities>| {
            set.iter().flatten().try_fold(0u64, |mask, capability| {
                let number = number(&capability.to_string()).ok_or_else(|| {
                    Error::field(
                        format!("process.capabilities.{name}"),
                        format!("no number for {capability}"),
                    )
                })?;
                Ok::<u64, Error>(mask | 1 << number)
            })
        };
        Ok(Self {
            bounding: mask("bounding", sets.bounding())?,
            effective: mask("effective", sets.effective())?,
            inheritable: mask("inheritable", sets.inheritable())?,
            permitted: mask("permitted", sets.permitted())?,
            ambient: mask("ambient", sets.ambient())?,
        })
    }

    /// The sets without what this kernel doesn't have, which is worth a warning only, as in runc.
    pub(super) fn supported(self) -> Result<Self, Error> {
        let asked = self.bounding | self.effective | self.inheritable | self.permitted | self.ambient;
        let mut missing = 0;
        for number in bits(asked >> FIRST_UNSURE << FIRST_UNSURE) {
            match security::bounding_has(number) {
                Ok(_) => {}
                Err(Errno::EINVAL) => missing |= 1u64 << number,
                Err(source) => {
                    return Err(Error::Call {
                        call: format!("prctl(PR_CAPBSET_READ, {})", name(number)),
                        source,
                    });
                }
            }
        }
        if missing != 0 {
            let names: Vec<String> = bits(missing).map(name).collect();
            tracing::warn!("ignoring unknown or unavailable capabilities: [{}]", names.join(" "));
        }
        Ok(Self {
            bounding: self.bounding & !missing,
            effective: self.effective & !missing,
            inheritable: self.inheritable & !missing,
            permitted: self.permitted & !missing,
            ambient: self.ambient & !missing,
        })
    }

    /// Drops from the bounding set what it shall not have, also capabilities that have no name here yet.
    pub(super) fn limit_bounding(&self) -> Result<(), Error> {
        for number in (0..u64::BITS).filter(|number| self.bounding & 1 << number == 0) {
            match security::bounding_drop(number) {
                Ok(()) => {}
                // The kernel numbers capabilities without gaps: there are no more.
                Err(Errno::EINVAL) => break,
                // Without CAP_SETPCAP the set must be as wanted already.
                Err(Errno::EPERM) if security::bounding_has(number) == Ok(false) => {}
                Err(source) => {
                    let call = format!("unable to apply bounding set: prctl(PR_CAPBSET_DROP, {})", name(number));
                    return Err(Error::Call { call, source });
                }
            }
        }
        Ok(())
    }

    /// What the process of an unprivileged user has after execve(2) of a file without capabilities (capabilities(7)): the
    /// ambient ones. For a guest that runs in this process, where no execve takes the rest away.
    pub(super) fn after_exec(&self) -> Self {
        let kept = self.ambient & self.permitted & self.inheritable;
        Self {
            effective: kept,
            permitted: kept,
            ambient: kept,
            ..*self
        }
    }

    /// Makes these the process's effective, permitted, inheritable and ambient sets.
    pub(super) fn apply(&self) -> Result<(), Error> {
        if self.set().is_err() {
            self.grantable()?.set()?;
        }
        security::ambient_clear().map_err(Error::call("prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)"))?;
        for number in bits(self.ambient) {
            if let Err(errno) = security::ambient_raise(number) {
                // Less than asked for, never more; containers that ask for what they can't have are common.
                let cause = words(errno);
                tracing::warn!("can't raise ambient capability {}: {cause}", name(number));
            }
        }
        Ok(())
    }

    /// As [`Capabilities::apply`], with one more that may be made effective by [`regain`].
    pub(super) fn apply_with(&self, kept: CapabilitySet) -> Result<(), Error> {
        Self {
            permitted: self.permitted | kept.bits(),
            ..*self
        }
        .apply()
    }

    fn set(&self) -> Result<(), Error> {
        let sets = CapabilitySets {
            effective: CapabilitySet::from_bits_retain(self.effective),
            permitted: CapabilitySet::from_bits_retain(self.permitted),
            inheritable: CapabilitySet::from_bits_retain(self.inheritable),
        };
        rustix::thread::set_capabilities(None, sets).map_err(|errno| Error::Call {
            call: format!(
                "unable to apply caps: can't apply capabilities: capset(effective {:#x}, permitted {:#x}, inheritable {:#x})",
                self.effective, self.permitted, self.inheritable
            ),
            source: errno.raw(),
        })
    }

    /// The sets without what this process was not given itself. "Runtimes SHOULD NOT fail if the container configuration
    /// requests capabilities that cannot be granted, for example, if the runtime operates in a restricted environment"
    /// (config.md#linux-process): a warning says what is missing.
    fn grantable(&self) -> Result<Self, Error> {
        let now = rustix::thread::capabilities(None).map_err(|errno| Error::Call {
            call: "capget()".into(),
            source: errno.raw(),
        })?;
        let own = now.permitted.bits();
        let inheritable = own | now.inheritable.bits();
        let missing = (self.effective | self.permitted) & !own | self.inheritable & !inheritable;
        if missing != 0 {
            let names: Vec<String> = bits(missing).map(name).collect();
            tracing::warn!("ignoring capabilities that can't be granted: [{}]", names.join(" "));
        }
        Ok(Self {
            effective: self.effective & own,
            permitted: self.permitted & own,
            inheritable: self.inheritable & inheritable,
            ..*self
        })
    }
}

/// Makes every permitted capability effective.
pub(super) fn regain() -> Result<(), Error> {
    let call = "capset(effective = permitted)";
    let errno = |errno: rustix::io::Errno| Error::Call {
        call: call.into(),
        source: errno.raw(),
    };
    let mut sets = rustix::thread::capabilities(None).map_err(errno)?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).map_err(errno)
}

/// The number of the capability that the specification calls `CAP_{name}`.
fn number(name: &str) -> Option<u8> {
    format!("CAP_{name}")
        .parse::<caps::Capability>()
        .ok()
        .map(|capability| capability.index())
}

/// `CAP_...`, or the number if it has no name here.
fn name(number: u32) -> String {
    let known = caps::all()
        .into_iter()
        .find(|capability| u32::from(capability.index()) == number);
    known.map_or_else(|| number.to_string(), |capability| capability.to_string())
}

fn bits(mask: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |number| mask & 1 << number != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_become_masks_and_missing_sets_are_empty() {
        let sets: LinuxCapabilities = serde_json::from_value(serde_json::json!({
            "bounding": ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
        }))
        .unwrap();
        let it = Capabilities::new(&sets).unwrap();
        assert_eq!(it.bounding, 1 | 1 << 40);
        assert_eq!((it.effective, it.permitted), (1 << 5, 1 << 5));
        assert_eq!((it.inheritable, it.ambient), (0, 0));
    }

    #[test]
    fn every_capability_of_the_specification_has_a_number() {
        for capability in caps::all() {
            let name = capability.to_string();
            let json = serde_json::json!({"bounding": [name]});
            let sets: LinuxCapabilities = serde_json::from_value(json).unwrap();
            assert_eq!(
                Capabilities::new(&sets).unwrap().bounding,
                capability.bitmask(),
                "{name}"
            );
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_left_out() {
        let all = Capabilities {
            bounding: !0,
            effective: 1 << 63,
            ..Default::default()
        };
        let it = all.supported().unwrap();
        assert_eq!(it.effective, 0);
        assert_eq!(it.bounding & 1 << 63, 0);
        assert_ne!(it.bounding & 1 << 37, 0);
    }
}
