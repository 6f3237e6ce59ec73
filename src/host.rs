//! Facts about the host that a plan needs, probed once per invocation and only when asked for.

/// What this host is.
#[derive(Clone, Debug)]
pub struct Host {
    /// The effective user id of the caller.
    pub euid: u32,
    /// The effective group id of the caller.
    pub egid: u32,
    /// Whether proa may not do what host root may: not uid 0, or uid 0 of a user namespace (`/proc/self/uid_map` is not
    /// the identity), or `--rootless true`.
    pub rootless: bool,
}
