//! The kernel's part.

use super::{Check, State};
use crate::launch;
use crate::namespace::Kind;
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use proa_sys::clone::{self, Child, Clone, Side};
use proa_sys::errno::Raw;
use proa_sys::{exec, mount, security};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::OpenTreeFlags;
use std::os::fd::AsFd;

const AREA: &str = "kernel";

/// Bits of containers' usual capabilities and of what init does before it gives them up.
const WANTED: [caps::Capability; 12] = {
    use caps::Capability::*;
    [
        CAP_SYS_ADMIN,
        CAP_CHOWN,
        CAP_DAC_OVERRIDE,
        CAP_FOWNER,
        CAP_KILL,
        CAP_MKNOD,
        CAP_NET_ADMIN,
        CAP_SETGID,
        CAP_SETPCAP,
        CAP_SETUID,
        CAP_SYS_CHROOT,
        CAP_SYS_RESOURCE,
    ]
};

pub(super) fn checks(rootless: bool) -> Vec<Check> {
    let mut checks = namespaces(rootless);
    checks.extend([
        limit("user.max_user_namespaces", rootless),
        clone3(),
        openat(),
        mounts(),
        idmapped(),
        pidfd(),
        seccomp(),
        notify(),
        overlay(),
    ]);
    if !rootless {
        checks.push(capabilities());
    }
    checks
}

/// Makes a process in new namespaces, which ends at once: the errno, or how it ended.
fn try_clone(flags: u64) -> Result<(), clone::Error> {
    match clone::clone(&Clone {
        flags,
        into_cgroup: None,
    })? {
        Side::Child { .. } => exec::exit_now(0),
        Side::Parent(child) => Ok(reap(&child).map(drop)?),
    }
}

fn reap(child: &Child) -> Result<i32, Errno> {
    match waitpid(child.pid, None)? {
        WaitStatus::Exited(_, status) => Ok(status),
        _ => Err(Errno::ECHILD),
    }
}

fn namespaces(rootless: bool) -> Vec<Check> {
    let user = if rootless { Kind::User.flag() } else { 0 };
    let check = |kind: Kind| {
        let name = format!("namespace {kind:?}").to_lowercase();
        let required = matches!(kind, Kind::Mount | Kind::Pid) || (rootless && kind == Kind::User);
        // clone3(2) takes no time namespace for a new process that has no vdso page of its own: it is there or not.
        let tried = match kind {
            Kind::Time => std::fs::metadata("/proc/self/ns/time_for_children")
                .map(|_| "there".to_owned())
                .map_err(|error| error.to_string()),
            _ => try_clone(kind.flag() | user)
                .map(|()| "can be made".to_owned())
                .map_err(|errno| format!("clone3({kind:?}): {errno}")),
        };
        let fix = match kind {
            Kind::User => {
                "containers with a user namespace (rootless, userns) can't be made: see sysctl \
                           user.max_user_namespaces, kernel.unprivileged_userns_clone (Debian) and \
                           kernel.apparmor_restrict_unprivileged_userns (Ubuntu)"
            }
            _ => "build the kernel with it, or run proa with more privileges",
        };
        let check = Check::tried(AREA, name, tried, fix);
        if required { check.needed() } else { check }
    };
    Kind::ALL.into_iter().map(check).collect()
}

fn limit(name: &str, rootless: bool) -> Check {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim() == "0" => {
            let check = Check::missing(
                AREA,
                name,
                "0",
                format!("sysctl -w {name}=15000, for containers with a user namespace"),
            );
            if rootless { check.needed() } else { check }
        }
        Ok(text) => Check::ok(AREA, name, text.trim()),
        Err(error) => Check::missing(AREA, name, format!("{path}: {error}"), "a kernel with user namespaces"),
    }
}

fn clone3() -> Check {
    let into = crate::cgroup::own_v2().and_then(|directory| {
        let what = Clone {
            flags: 0,
            into_cgroup: Some(directory.as_fd()),
        };
        match clone::clone(&what).ok()? {
            Side::Child { in_cgroup } => exec::exit_now(u8::from(!in_cgroup)),
            Side::Parent(child) => Some((reap(&child), child.pidfd.is_some())),
        }
    });
    let (name, fix) = (
        "clone3, CLONE_INTO_CGROUP",
        "Linux 5.7: without it, and on cgroup v1, a container's process enters its cgroup after it was made, which takes longer",
    );
    match into {
        Some((Ok(0), true)) => Check::ok(AREA, name, "works"),
        Some((Ok(0), false)) => Check::missing(AREA, name, "no pidfd from it", fix),
        Some((Ok(_), _)) => Check::missing(AREA, name, "the process is not born in the cgroup", fix),
        Some((Err(errno), _)) => Check::missing(AREA, name, errno.to_string(), fix),
        None => Check::missing(AREA, name, "there is no cgroup v2 to be born in", fix),
    }
}

fn openat() -> Check {
    let tried = openat2(
        CWD,
        "/",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    );
    let fix = "Linux 5.6: without it, paths in a container's root are resolved step by step, which takes longer";
    Check::tried(AREA, "openat2", tried.map(|_| "works".to_owned()), fix)
}

fn tree() -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, "/", flags).map_err(|errno| errno.raw())
}

fn mounts() -> Check {
    let tried = tree().and_then(|tree| mount::set_read_only(tree.as_fd()));
    let fix = "Linux 5.12 and CAP_SYS_ADMIN: without open_tree and mount_setattr, mount(2) is used";
    Check::tried(AREA, "mount API", tried.map(|()| "works".to_owned()), fix)
}

fn idmapped() -> Check {
    let tried = || -> Result<(), Errno> {
        let map = "0 1000 1000\n";
        let os = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let namespace = mount::user_namespace(map, map).map_err(os)?;
        let attributes = mount::Attributes {
            set: nix::libc::MOUNT_ATTR_IDMAP,
            userns: Some(namespace.as_fd()),
            ..mount::Attributes::default()
        };
        mount::mount_setattr(tree()?.as_fd(), false, &attributes)
    };
    let fix = "Linux 5.12 and a file system that has them: volumes with uidMappings are refused without";
    let found = "work on the root file system".to_owned();
    Check::tried(AREA, "id-mapped mounts", tried().map(|()| found), fix)
}

fn pidfd() -> Check {
    let own = rustix::process::getpid();
    let tried = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty());
    let fix = "Linux 5.3: without it, ends of processes are looked for in intervals";
    Check::tried(AREA, "pidfd", tried.map(|_| "works".to_owned()), fix)
}

fn seccomp() -> Check {
    match security::seccomp_knows(0) {
        true => Check::ok(AREA, "seccomp", "filters can be installed"),
        false => Check::missing(
            AREA,
            "seccomp",
            "the kernel takes no filters",
            "build the kernel with CONFIG_SECCOMP_FILTER: bundles with a profile (most have one) are refused",
        ),
    }
}

fn notify() -> Check {
    match security::seccomp_knows(security::SECCOMP_NEW_LISTENER) {
        true => Check::ok(AREA, "seccomp notify", "listeners can be had"),
        false => Check::missing(
            AREA,
            "seccomp notify",
            "no listeners",
            "Linux 5.0: SCMP_ACT_NOTIFY is refused without",
        ),
    }
}

fn overlay() -> Check {
    let found = "proa is executed from a read-only overlay".to_owned();
    let fix =
        "Linux 5.2, overlayfs and CAP_SYS_ADMIN: without it, proa is copied into memory for each container (600 µs)";
    Check::tried(AREA, "overlayfs", launch::sealed_by_overlay().map(|()| found), fix)
}

fn capabilities() -> Check {
    let lacks =
        |capability: &caps::Capability| !caps::has_cap(None, caps::CapSet::Effective, *capability).unwrap_or(false);
    let missing: Vec<String> = WANTED.into_iter().filter(lacks).map(|it| it.to_string()).collect();
    if missing.is_empty() {
        return Check::ok(AREA, "capabilities", "all that init makes use of");
    }
    let fix = "what needs them is refused by the kernel (CAP_SYS_RESOURCE: raising resource limits)";
    let check = Check::missing(AREA, "capabilities", format!("without {}", missing.join(", ")), fix);
    match missing.iter().any(|name| name == "CAP_SYS_ADMIN") {
        true => check.needed(),
        false => Check {
            state: State::Missing,
            ..check
        },
    }
}
