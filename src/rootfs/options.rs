//! Mount options as the runtime-spec lists them (config.md, "Linux mount options"), which are those of mount(8).

use rustix::mount::{MountAttrFlags as Attr, MountFlags as Flag};
use serde::{Deserialize, Serialize};

/// `MS_POSIXACL`, which rustix has no name for.
const POSIXACL: Flag = Flag::from_bits_retain(1 << 16);
/// `MS_I_VERSION`.
const I_VERSION: Flag = Flag::from_bits_retain(1 << 23);
/// `MS_REMOUNT`.
pub(super) const REMOUNT: Flag = Flag::from_bits_retain(32);
/// `MS_SHARED`.
pub(super) const SHARED: u32 = 1 << 20;
/// `MS_SLAVE`.
pub(super) const SLAVE: u32 = 1 << 19;
/// `MS_PRIVATE`.
pub(super) const PRIVATE: u32 = 1 << 18;
/// `MS_UNBINDABLE`.
pub(super) const UNBINDABLE: u32 = 1 << 17;
/// `MS_REC`.
pub(super) const REC: u32 = 1 << 14;

/// What the options of one mount say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parsed {
    /// `MS_*` to set.
    pub flags: u32,
    /// `MS_*` that an option such as `rw` or `exec` asks to be off.
    pub cleared: u32,
    /// Changes of propagation, each one of the four types with or without `MS_REC`, in order.
    pub propagation: Vec<u32>,
    /// `MOUNT_ATTR_*` to set on the mount and all below it.
    pub recursive_set: u32,
    /// `MOUNT_ATTR_*` to clear on the mount and all below it.
    pub recursive_clear: u32,
    /// `tmpcopyup`: a tmpfs starts with what it hides.
    pub copy_up: bool,
    /// `idmap` (`false`) or `ridmap` (`true`).
    pub idmap: Option<bool>,
    /// `src-nofollow`, crun's: a source that is a symbolic link is itself mounted.
    pub source_nofollow: bool,
    /// `dest-nofollow`, crun's: a destination that is a symbolic link is itself the mount point.
    pub destination_nofollow: bool,
    /// Everything else, for the file system.
    pub data: String,
}

impl Parsed {
    pub(super) fn has(&self, flag: Flag) -> bool {
        self.flags & flag.bits() != 0
    }

    fn flag(&mut self, set: bool, flag: Flag) {
        let (to, from) = if set {
            (&mut self.flags, &mut self.cleared)
        } else {
            (&mut self.cleared, &mut self.flags)
        };
        *to |= flag.bits();
        *from &= !flag.bits();
    }

    fn recursive(&mut self, set: bool, attr: Attr) {
        if set {
            self.recursive_set |= attr.bits();
            self.recursive_clear &= !attr.bits();
        } else {
            self.recursive_clear |= attr.bits();
            self.recursive_set &= !attr.bits();
        }
    }

    /// The access-time mode is a field, not a set of bits: mount_setattr(2) wants it cleared whole before it is set.
    fn recursive_atime(&mut self, mode: Attr) {
        self.recursive_set &= !Attr::MOUNT_ATTR__ATIME.bits();
        self.recursive_set |= mode.bits();
        self.recursive_clear |= Attr::MOUNT_ATTR__ATIME.bits();
    }
}

/// Reads the options of one mount. What is no known option is data for the file system.
pub(super) fn parse<'a>(options: impl Iterator<Item = &'a str>) -> Parsed {
    let mut parsed = Parsed::default();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        if let Some((set, flag)) = mount_flag(option) {
            parsed.flag(set, flag);
        } else if let Some(propagation) = propagation(option) {
            parsed.propagation.push(propagation);
        } else if let Some((set, attr)) = recursive_attribute(option) {
            parsed.recursive(set, attr);
        } else if let Some(mode) = recursive_atime(option) {
            parsed.recursive_atime(mode);
        } else {
            match option {
                "defaults" | "" => {}
                "tmpcopyup" => parsed.copy_up = true,
                "idmap" => parsed.idmap = Some(false),
                "ridmap" => parsed.idmap = Some(true),
                "src-nofollow" => parsed.source_nofollow = true,
                "dest-nofollow" => parsed.destination_nofollow = true,
                other => data.push(other),
            }
        }
    }
    parsed.data = data.join(",");
    parsed
}

/// The value of `linux.rootfsPropagation` and of the propagation options of a mount.
pub(super) fn propagation(name: &str) -> Option<u32> {
    Some(match name {
        "shared" => SHARED,
        "rshared" => SHARED | REC,
        "slave" => SLAVE,
        "rslave" => SLAVE | REC,
        "private" => PRIVATE,
        "rprivate" => PRIVATE | REC,
        "unbindable" => UNBINDABLE,
        "runbindable" => UNBINDABLE | REC,
        _ => return None,
    })
}

fn mount_flag(option: &str) -> Option<(bool, Flag)> {
    Some(match option {
        "acl" => (true, POSIXACL),
        "async" => (false, Flag::SYNCHRONOUS),
        "atime" => (false, Flag::NOATIME),
        "bind" => (true, Flag::BIND),
        "dev" => (false, Flag::NODEV),
        "diratime" => (false, Flag::NODIRATIME),
        "dirsync" => (true, Flag::DIRSYNC),
        "exec" => (false, Flag::NOEXEC),
        "iversion" => (true, I_VERSION),
        "lazytime" => (true, Flag::LAZYTIME),
        "loud" => (false, Flag::SILENT),
        "mand" => (true, Flag::PERMIT_MANDATORY_FILE_LOCKING),
        "noacl" => (false, POSIXACL),
        "noatime" => (true, Flag::NOATIME),
        "nodev" => (true, Flag::NODEV),
        "nodiratime" => (true, Flag::NODIRATIME),
        "noexec" => (true, Flag::NOEXEC),
        "noiversion" => (false, I_VERSION),
        "nolazytime" => (false, Flag::LAZYTIME),
        "nomand" => (false, Flag::PERMIT_MANDATORY_FILE_LOCKING),
        "norelatime" => (false, Flag::RELATIME),
        "nostrictatime" => (false, Flag::STRICTATIME),
        "nosuid" => (true, Flag::NOSUID),
        "nosymfollow" => (true, Flag::NOSYMFOLLOW),
        "rbind" => (true, Flag::BIND.union(Flag::REC)),
        "relatime" => (true, Flag::RELATIME),
        "remount" => (true, REMOUNT),
        "ro" => (true, Flag::RDONLY),
        "rw" => (false, Flag::RDONLY),
        "silent" => (true, Flag::SILENT),
        "strictatime" => (true, Flag::STRICTATIME),
        "suid" => (false, Flag::NOSUID),
        "symfollow" => (false, Flag::NOSYMFOLLOW),
        "sync" => (true, Flag::SYNCHRONOUS),
        _ => return None,
    })
}

fn recursive_attribute(option: &str) -> Option<(bool, Attr)> {
    Some(match option {
        "rro" => (true, Attr::MOUNT_ATTR_RDONLY),
        "rrw" => (false, Attr::MOUNT_ATTR_RDONLY),
        "rnosuid" => (true, Attr::MOUNT_ATTR_NOSUID),
        "rsuid" => (false, Attr::MOUNT_ATTR_NOSUID),
        "rnodev" => (true, Attr::MOUNT_ATTR_NODEV),
        "rdev" => (false, Attr::MOUNT_ATTR_NODEV),
        "rnoexec" => (true, Attr::MOUNT_ATTR_NOEXEC),
        "rexec" => (false, Attr::MOUNT_ATTR_NOEXEC),
        "rnodiratime" => (true, Attr::MOUNT_ATTR_NODIRATIME),
        "rdiratime" => (false, Attr::MOUNT_ATTR_NODIRATIME),
        "rnosymfollow" => (true, Attr::MOUNT_ATTR_NOSYMFOLLOW),
        "rsymfollow" => (false, Attr::MOUNT_ATTR_NOSYMFOLLOW),
        _ => return None,
    })
}

/// The negations go back to the kernel's default, relatime (which is 0).
fn recursive_atime(option: &str) -> Option<Attr> {
    Some(match option {
        "rrelatime" | "rnorelatime" | "ratime" | "rnostrictatime" => Attr::MOUNT_ATTR_RELATIME,
        "rnoatime" => Attr::MOUNT_ATTR_NOATIME,
        "rstrictatime" => Attr::MOUNT_ATTR_STRICTATIME,
        _ => return None,
    })
}

/// Every option that is understood here rather than handed to the file system, sorted, for `features`.
pub fn known() -> Vec<&'static str> {
    let mut all = vec![
        "defaults",
        "tmpcopyup",
        "idmap",
        "ridmap",
        "src-nofollow",
        "dest-nofollow",
    ];
    all.extend([
        "acl",
        "async",
        "atime",
        "bind",
        "dev",
        "diratime",
        "dirsync",
        "exec",
        "iversion",
        "lazytime",
        "loud",
        "mand",
        "noacl",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "noiversion",
        "nolazytime",
        "nomand",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "nosymfollow",
        "rbind",
        "relatime",
        "remount",
        "ro",
        "rw",
        "silent",
        "strictatime",
        "suid",
        "symfollow",
        "sync",
    ]);
    all.extend([
        "shared",
        "rshared",
        "slave",
        "rslave",
        "private",
        "rprivate",
        "unbindable",
        "runbindable",
    ]);
    all.extend([
        "rro",
        "rrw",
        "rnosuid",
        "rsuid",
        "rnodev",
        "rdev",
        "rnoexec",
        "rexec",
        "rnodiratime",
        "rdiratime",
        "rnosymfollow",
        "rsymfollow",
        "rrelatime",
        "rnorelatime",
        "ratime",
        "rnostrictatime",
        "rnoatime",
        "rstrictatime",
    ]);
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Parsed {
        parse(options.iter().copied())
    }

    #[test]
    fn later_options_override_earlier_ones() {
        let parsed = of(&["ro", "rw"]);
        assert_eq!((parsed.flags, parsed.cleared), (0, Flag::RDONLY.bits()));
        let parsed = of(&["exec", "noexec"]);
        assert_eq!((parsed.flags, parsed.cleared), (Flag::NOEXEC.bits(), 0));
    }

    #[test]
    fn what_is_unknown_is_data() {
        let parsed = of(&["nosuid", "mode=755", "size=65536k", "newinstance"]);
        assert_eq!(parsed.data, "mode=755,size=65536k,newinstance");
        assert_eq!(parsed.flags, Flag::NOSUID.bits());
    }

    #[test]
    fn recursive_atime_clears_the_whole_field() {
        let parsed = of(&["rro", "rnoatime"]);
        assert_eq!(
            parsed.recursive_set,
            (Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NOATIME).bits()
        );
        assert_eq!(parsed.recursive_clear, Attr::MOUNT_ATTR__ATIME.bits());
        assert_eq!(of(&["rnoatime", "ratime"]).recursive_set, 0);
    }

    #[test]
    fn propagation_is_kept_in_order() {
        assert_eq!(of(&["rbind", "rslave", "shared"]).propagation, [SLAVE | REC, SHARED]);
    }

    #[test]
    fn every_known_option_is_recognised() {
        for option in known() {
            assert_eq!(of(&[option]).data, "", "{option}");
        }
        assert_eq!(known().len(), 66);
    }
}
