//! Facts about the host that a plan needs, probed once per invocation and only when asked for.

use std::path::PathBuf;

/// What this host is.
#[derive(Clone, Debug)]
pub struct Host {
    /// The effective user id of the caller.
    pub euid: u32,
    /// The effective group id of the caller.
    pub egid: u32,
    /// Whether cgroups need not be had (`--rootless`): by default if the caller is not host root, that is, not uid 0, or
    /// uid 0 of a user namespace (`/proc/self/uid_map` is not the identity).
    pub rootless: bool,
}

impl Host {
    /// Probes the host; `rootless` is the caller's `--rootless`, `None` for `auto`; `systemd` is `--systemd-cgroup`.
    pub fn probe(rootless: Option<bool>, systemd: bool) -> Self {
        let euid = nix::unistd::geteuid().as_raw();
        let egid = nix::unistd::getegid().as_raw();
        let rootless = rootless.unwrap_or_else(|| match euid {
            // A user namespace that plays a whole machine has a systemd of its own, and no session of some user.
            0 if systemd => in_user_namespace() && in_users_session(),
            0 => in_user_namespace(),
            _ => true,
        });
        Self { euid, egid, rootless }
    }

    /// Whether proa has no rights at all beyond its user's. Uid 0 of a user namespace, as which podman calls for an
    /// unprivileged user, has them over what that namespace owns: it writes id maps itself, and needs no helper.
    pub fn unprivileged(&self) -> bool {
        self.euid != 0
    }
}

/// Whether this process is in a user namespace other than the initial one. Where `/proc` can't be read, it is taken for the
/// initial one, as runc does.
pub fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_identity(&map))
}

/// Whether there is a user's bus to ask for a scope, which is not root's own.
fn in_users_session() -> bool {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let bus = match (variable("DBUS_SESSION_BUS_ADDRESS"), variable("XDG_RUNTIME_DIR")) {
        (Some(address), _) => address,
        (None, Some(dir)) if PathBuf::from(&dir).join("bus").exists() => dir,
        _ => return false,
    };
    !bus.to_string_lossy().contains("/run/user/0")
}

/// Whether an id map (user_namespaces(7)) maps every id to itself, as in the initial user namespace.
fn is_identity(map: &str) -> bool {
    let mut fields = map.split_whitespace();
    fields.next() == Some("0") && fields.next() == Some("0") && fields.next() == Some("4294967295")
}

/// The directory of containers' states when `--root` is not given: `/run/proa`, or `$XDG_RUNTIME_DIR/proa` for a caller
/// that is not host root. The flag says whether it is the latter.
pub fn default_root() -> (PathBuf, bool) {
    let xdg = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    match xdg {
        Some(dir) if honours_xdg() => (PathBuf::from(dir).join("proa"), true),
        _ => (PathBuf::from("/run/proa"), false),
    }
}

/// The directory of compiled code when nothing says where: `/var/lib/proa/aot`, or `proa/aot` in the cache directory of a
/// caller that is not host root.
pub fn default_code_cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let own = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    match honours_xdg().then(own).flatten().filter(|dir| dir.is_absolute()) {
        Some(dir) => dir.join("proa/aot"),
        None => PathBuf::from("/var/lib/proa/aot"),
    }
}

/// Host root uses `/run/proa` even where a login session set `XDG_RUNTIME_DIR`: its containers outlive the session. Root of
/// a user namespace is a user, unless `USER` says that the namespace plays a whole machine.
fn honours_xdg() -> bool {
    if !nix::unistd::geteuid().is_root() {
        return true;
    }
    in_user_namespace() && std::env::var_os("USER").is_none_or(|user| user != "root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_range_is_the_identity() {
        assert!(is_identity("         0          0 4294967295\n"));
        assert!(!is_identity("         0       1000          1\n"));
        assert!(!is_identity("         0          0      65536\n"));
        assert!(!is_identity(""));
    }

    #[test]
    fn the_callers_word_on_rootless_counts() {
        for systemd in [true, false] {
            assert!(Host::probe(Some(true), systemd).rootless);
            assert!(!Host::probe(Some(false), systemd).rootless);
        }
    }
}
