//! The levels between the runner and a test's body: the private namespaces, and their first process.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::{View, host, systemd, vars};

/// Where a test with that tag lives: a tmpfs in its private mount namespace.
pub fn directory(tag: &str) -> PathBuf {
    std::env::temp_dir().join(format!("proa-test-{tag}"))
}

/// What the cgroup is called in which a test's own processes are where they have no pid namespace to die with.
pub fn own_cgroup_name(tag: &str) -> String {
    format!("proa-stage-{tag}")
}

/// The outer level: makes the namespaces and starts pid 1 in them.
pub fn stage(tag: &str, view: View) -> Result<ExitCode, String> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| format!("prctl(PR_SET_PDEATHSIG): {e}"))?;
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET;
    if view.uses_the_machines_systemd() {
        // It knows processes only by its own numbers.
        flags -= CloneFlags::CLONE_NEWPID;
        enter_own_cgroup(tag)?;
    }
    unshare(flags).map_err(|e| format!("unshare({flags:?}): {e} (the tests need root)"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(|e| format!("make / private: {e}"))?;
    let dir = directory(tag);
    tmpfs(&dir, "mode=755")?;
    private_dev()?;
    cgroup_view(view)?;
    let code = if view.has_systemd() && !view.uses_the_machines_systemd() {
        systemd::supervise(&dir)?
    } else {
        let status = level("init").status().map_err(|e| format!("start pid 1: {e}"))?;
        pass_on(status)
    };
    umount2(&dir, MntFlags::MNT_DETACH).map_err(|e| format!("umount2({}): {e}", dir.display()))?;
    Ok(code)
}

/// A cgroup below that of the runner, whatever controllers it has: to find and end all that a test has started.
fn enter_own_cgroup(tag: &str) -> Result<(), String> {
    let groups = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("/proc/self/cgroup: {e}"))?;
    let path = groups.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default();
    let own = Path::new("/sys/fs/cgroup").join(path).join(own_cgroup_name(tag));
    let failed = |e: std::io::Error| format!("{}: {e}", own.display());
    fs::create_dir(&own).map_err(failed)?;
    fs::write(own.join("cgroup.procs"), "0").map_err(failed)
}

/// Pid 1 (or with the machine's systemd a subreaper): reaps what the runtime leaves to it, and reports what outlives the test.
pub fn init(view: View) -> Result<ExitCode, String> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| format!("prctl(PR_SET_PDEATHSIG): {e}"))?;
    if view.uses_the_machines_systemd() {
        nix::sys::prctl::set_child_subreaper(true).map_err(|e| format!("prctl(PR_SET_CHILD_SUBREAPER): {e}"))?;
        loopback()?;
    } else {
        proc_and_loopback()?;
    }
    let body = level("body").spawn().map_err(|e| format!("start the test: {e}"))?;
    let body = Pid::from_raw(body.id().cast_signed());
    let status = loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == body => break code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == body => {
                eprintln!("the test ended by {signal}");
                break 128 + signal as i32;
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(format!("waitpid: {e}")),
        }
    };
    let own = std::process::id();
    let left = processes_left(|pid, _| pid == own || !descends_from(pid, own));
    for process in &left {
        eprintln!("leak: process {process}");
    }
    Ok(if status == 0 && !left.is_empty() {
        ExitCode::from(3)
    } else {
        ExitCode::from(status.clamp(0, 255) as u8)
    })
}

/// The first that pid 1 does: `/proc` of its namespace, and a network that programs can talk to themselves over.
pub fn proc_and_loopback() -> Result<(), String> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).map_err(|e| format!("mount /proc: {e}"))?;
    loopback()
}

fn loopback() -> Result<(), String> {
    // Not earlier: the first process of a pid namespace must stay.
    let lo = Command::new(host::busybox()?)
        .args(["ip", "link", "set", "lo", "up"])
        .status();
    if !lo.as_ref().is_ok_and(ExitStatus::success) {
        return Err(format!("busybox ip link set lo up: {lo:?}"));
    }
    Ok(())
}

/// Whether `ancestor` has started that process, directly or not. In a pid namespace everything descends from its pid 1,
/// though what another namespace has put there has no parent that can be seen.
fn descends_from(pid: u32, ancestor: u32) -> bool {
    let parent = |pid: u32| -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("PPid:"))?;
        line.trim().parse().ok()
    };
    ancestor == 1 || std::iter::successors(Some(pid), |pid| parent(*pid)).any(|pid| pid == ancestor)
}

/// What still runs in this pid namespace, once the dying had a second to die. `ours` knows, by pid and name, what belongs.
pub fn processes_left(ours: impl Fn(u32, &str) -> bool) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(1) * crate::patience();
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(s) if s != WaitStatus::StillAlive) {}
        let left: Vec<String> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().to_string_lossy().parse::<u32>().ok())
            .filter(|pid| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                !ours(*pid, name.trim())
            })
            .map(|pid| {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                format!("{pid}: {}", String::from_utf8_lossy(&command).replace('\0', " "))
            })
            .collect();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// This executable as another level.
pub fn level(name: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(vars::LEVEL, name);
    command
}

fn pass_on(status: ExitStatus) -> ExitCode {
    ExitCode::from(code_of(status))
}

/// The exit status of a level; 1 if a signal ended it.
pub fn code_of(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code.clamp(0, 255) as u8,
        (None, signal) => {
            eprintln!("ended by signal {signal:?}");
            1
        }
    }
}

/// Mounts a tmpfs.
pub fn tmpfs(at: &Path, options: &str) -> Result<(), String> {
    fs::create_dir_all(at).map_err(|e| format!("{}: {e}", at.display()))?;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options))
        .map_err(|e| format!("mount tmpfs on {}: {e}", at.display()))
}

/// A /dev whose nodes are the test's own: a runtime that changes or removes one cannot hurt the host.
fn private_dev() -> Result<(), String> {
    tmpfs(Path::new("/dev"), "mode=755,size=64m")?;
    let nodes = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    for (name, major, minor) in nodes.into_iter().chain([("fuse", 10, 229)]) {
        let path = Path::new("/dev").join(name);
        mknod(
            &path,
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(0o666),
            makedev(major, minor),
        )
        .map_err(|e| format!("mknod({}): {e}", path.display()))?;
        // The mode that mknod gets is cut by the umask.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    for (name, target) in links {
        symlink(target, Path::new("/dev").join(name)).map_err(|e| format!("/dev/{name}: {e}"))?;
    }
    for (name, kind, options) in [
        ("pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("shm", "tmpfs", "mode=1777"),
        ("mqueue", "mqueue", ""),
    ] {
        let at = Path::new("/dev").join(name);
        fs::create_dir(&at).map_err(|e| format!("{}: {e}", at.display()))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some(kind), &at, Some(kind), flags, Some(options)).map_err(|e| format!("mount {kind}: {e}"))?;
    }
    Ok(())
}

/// A tmpfs of the test's own over the host's, with the same hierarchies: crun, for one, makes directories for v1 controllers
/// that are not mounted, and they would stay on the host.
fn private_cgroup_top() -> Result<(), String> {
    let (top, copy) = (Path::new("/sys/fs/cgroup"), Path::new("/dev/cgroup"));
    if !host::mounts().iter().any(|at| Path::new(at).parent() == Some(top)) {
        return Ok(());
    }
    fs::create_dir(copy).map_err(|e| format!("{}: {e}", copy.display()))?;
    tmpfs(copy, "mode=755")?;
    for entry in fs::read_dir(top)
        .map_err(|e| format!("{}: {e}", top.display()))?
        .flatten()
    {
        let (from, to) = (entry.path(), copy.join(entry.file_name()));
        let failed = |e: String| format!("{}: {e}", from.display());
        if let Ok(target) = fs::read_link(&from) {
            symlink(target, &to).map_err(|e| failed(e.to_string()))?;
        } else if host::mounts().iter().any(|at| Path::new(at) == from) {
            fs::create_dir(&to).map_err(|e| failed(e.to_string()))?;
            mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|e| failed(format!("bind: {e}")))?;
        }
    }
    mount(Some(copy), top, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|e| format!("move {} to {}: {e}", copy.display(), top.display()))?;
    fs::remove_dir(copy).map_err(|e| format!("{}: {e}", copy.display()))
}

fn cgroup_view(view: View) -> Result<(), String> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if matches!(view, View::Hybrid | View::V1) {
        private_cgroup_top()?;
    }
    match view {
        // Its pid 1 sees to it.
        View::Systemd | View::SystemdV2 => Ok(()),
        View::Hybrid => Ok(()),
        View::V1 if !host::mounts().iter().any(|m| m == "/sys/fs/cgroup/unified") => Ok(()),
        View::V1 => umount2(unified, MntFlags::MNT_DETACH).map_err(|e| format!("umount {}: {e}", unified.display())),
        // The suite that tests the harness is in this view already, and the kernel mounts nothing twice at one place.
        View::V2 if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => Ok(()),
        View::V2 => {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), flags, None::<&str>)
                .map_err(|e| format!("mount cgroup2 on /sys/fs/cgroup: {e}"))
        }
    }
}
