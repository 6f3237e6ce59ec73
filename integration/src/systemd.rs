//! The views with systemd: a manager of its own as pid 1, in which the test is a service.
//!
//! ```text
//!   stage (host pids)   as for the other views; relays what the test says, and kills pid 1 when the test is over
//!     boot -> systemd   pid 1: its own cgroup namespace over a delegated subtree, D-Bus, nothing else
//!       unit            the service; looks for processes left
//!         body          the test itself
//! ```
//!
//! Nothing of the host is written to but temporary files: `/` is read-only there, `/run` and `/dev` are private, and the
//! cgroup namespace ends at the test's own subtree.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::stage::{self, level};
use crate::{View, host, vars};

/// The service that a test is.
const SERVICE: &str = "proa-test.service";

/// The units there are. Nothing that a system usually boots is needed to make scopes.
const UNITS: [(&str, &str); 3] = [
    (
        "dbus.socket",
        "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    ),
    (
        "dbus.service",
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n\
         [Service]\nType=notify\nNotifyAccess=main\n\
         ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n",
    ),
    ("shutdown.target", "[Unit]\nDefaultDependencies=no\n"),
];

fn systemd() -> Result<PathBuf, String> {
    ["/lib/systemd/systemd", "/usr/lib/systemd/systemd"]
        .iter()
        .map(PathBuf::from)
        .find(|p| p.exists() && Path::new("/usr/bin/dbus-daemon").exists())
        .ok_or_else(|| "no systemd or no dbus-daemon found: apt-get install systemd dbus".to_owned())
}

/// The stage's part: starts pid 1, relays, and gives back the test's exit status.
pub fn supervise(dir: &Path) -> Result<ExitCode, String> {
    let fifo = |name: &str| -> Result<File, String> {
        let path = dir.join(name);
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        mkfifo(&path, Mode::from_bits_truncate(0o600)).map_err(|e| failed(e.into()))?;
        let options = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(options.bits()).open(&path);
        file.map_err(failed)
    };
    let (said, status) = (fifo("said")?, fifo("status")?);
    let mut pid1 = level("boot").spawn().map_err(|e| format!("start pid 1: {e}"))?;
    let pidfd = pidfd_open(Pid::from_child(&pid1), PidfdFlags::empty()).map_err(|e| format!("pidfd_open: {e}"))?;
    // No thread to relay: the kernel allows none to who has unshared its pid namespace.
    let reported = loop {
        let mut fds = [&said, &status].map(|file| PollFd::new(file, PollFlags::IN)).to_vec();
        fds.push(PollFd::new(&pidfd, PollFlags::IN));
        poll(&mut fds, None).map_err(|e| format!("poll: {e}"))?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().contains(PollFlags::IN)).collect();
        if ready[0] {
            relay(&said)?;
        } else if ready[1] || ready[2] {
            break ready[1];
        }
    };
    // Its namespace dies with pid 1; an orderly shutdown would only take time.
    let killed = pid1.kill().and_then(|()| pid1.wait());
    let ended = killed.map_err(|e| format!("end pid 1: {e}"))?;
    relay(&said)?;
    if !reported {
        return Err(format!("systemd ended by itself: {ended}"));
    }
    let code = io::read_to_string(&status).map_err(|e| format!("read the status: {e}"))?;
    let code: u8 = code.trim().parse().map_err(|e| format!("status {code:?}: {e}"))?;
    Ok(ExitCode::from(code))
}

/// Passes on what can be read without waiting.
fn relay(mut from: &File) -> Result<(), String> {
    match io::copy(&mut from, &mut io::stdout()) {
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(format!("relay the output: {e}")),
        _ => Ok(()),
    }
}

/// Pid 1 until it becomes systemd.
pub fn boot(tag: &str, view: View) -> Result<ExitCode, String> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| format!("prctl(PR_SET_PDEATHSIG): {e}"))?;
    let dir = stage::directory(tag);
    stage::proc_and_loopback()?;
    // What programs expect to be able to write to; the test's own directory must stay in sight.
    for at in ["/run", "/var/log", "/var/lib", "/var/tmp"]
        .iter()
        .filter(|at| !dir.starts_with(at))
    {
        stage::tmpfs(Path::new(at), "mode=755")?;
    }
    keep_writable(&std::env::temp_dir())?;
    own_cgroups(tag, view)?;
    let units = dir.join("units");
    fs::create_dir(&units).map_err(|e| format!("{}: {e}", units.display()))?;
    let service = (SERVICE, service(&dir)?);
    let all = UNITS.map(|(name, text)| (name, text.to_owned())).into_iter();
    for (name, text) in all.chain([service]) {
        fs::write(units.join(name), text).map_err(|e| format!("{name}: {e}"))?;
    }
    fs::create_dir_all("/run/dbus").map_err(|e| format!("/run/dbus: {e}"))?;
    read_only("/")?;
    bind_read_only("/proc/sys")?;
    let error = Command::new(systemd()?)
        .args(["--system", "--log-target=null", "--show-status=0"])
        .arg(format!("--unit={SERVICE}"))
        // What it takes for a reason to leave the machine's clock, console and sysctls alone.
        .env("container", "proa-test")
        // Transient units, too, are found only where it looks.
        .env(
            "SYSTEMD_UNIT_PATH",
            format!("{}:/run/systemd/transient:/run/systemd/system.control", units.display()),
        )
        .env("SYSTEMD_GENERATOR_PATH", &units)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .exec();
    Err(format!("exec systemd: {error}"))
}

/// The service's unit file: this executable with this environment, and its output where the stage reads it.
fn service(dir: &Path) -> Result<String, String> {
    let exe = std::env::current_exe().map_err(|e| format!("/proc/self/exe: {e}"))?;
    let plain = |name: &String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && name != vars::LEVEL;
    let names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(plain)
        .collect();
    Ok(format!(
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.service\nAfter=dbus.service\n\
         [Service]\nType=oneshot\nExecStart={exe}\nEnvironment={level}=unit\nPassEnvironment={names}\n\
         StandardOutput=file:{said}\nStandardError=inherit\n",
        exe = exe.display(),
        level = vars::LEVEL,
        names = names.join(" "),
        said = dir.join("said").display(),
    ))
}

/// The service: runs the test and looks for what it left running.
pub fn unit(tag: &str) -> Result<ExitCode, String> {
    let status = level("body").status();
    let code = match &status {
        Ok(status) => stage::code_of(*status),
        Err(_) => 1,
    };
    let own = std::process::id();
    let left = stage::processes_left(|pid, name| pid == own || matches!(name, "systemd" | "dbus-daemon"));
    for process in &left {
        eprintln!("leak: process {process}");
    }
    let code = if code == 0 && !left.is_empty() { 3 } else { code };
    let path = stage::directory(tag).join("status");
    let mut fifo = OpenOptions::new()
        .write(true)
        .open(&path)
        .map_err(|e| format!("{}: {e}", path.display()))?;
    write!(fifo, "{code}").map_err(|e| format!("{}: {e}", path.display()))?;
    status.map_err(|e| format!("start the test: {e}"))?;
    Ok(ExitCode::SUCCESS)
}

/// Moves this process into a cgroup of the test's own in every hierarchy, makes that the top of what can be seen, and mounts
/// what the view has.
fn own_cgroups(tag: &str, view: View) -> Result<(), String> {
    let hierarchies = host::hierarchies();
    for (at, _) in &hierarchies {
        let own = at.join(format!("proa-test-{tag}"));
        let failed = |e: io::Error| format!("{}: {e}", own.display());
        fs::create_dir_all(&own).map_err(failed)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // v1's cpuset takes no process before it has processors and memory.
            if let Ok(value) = fs::read_to_string(at.join(file)) {
                fs::write(own.join(file), value.trim()).map_err(failed)?;
            }
        }
        fs::write(own.join("cgroup.procs"), "0").map_err(failed)?;
    }
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(|e| format!("unshare(CLONE_NEWCGROUP): {e}"))?;
    let top = Path::new("/sys/fs/cgroup");
    umount2(top, MntFlags::MNT_DETACH).map_err(|e| format!("umount {}: {e}", top.display()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if !view.has_v1() {
        return mount(Some("cgroup2"), top, Some("cgroup2"), flags, None::<&str>)
            .map_err(|e| format!("mount cgroup2 on {}: {e}", top.display()));
    }
    stage::tmpfs(top, "mode=755")?;
    for (at, options) in hierarchies
        .iter()
        .filter_map(|(at, options)| Some((at, options.as_ref()?)))
    {
        fs::create_dir(at).map_err(|e| format!("{}: {e}", at.display()))?;
        let options = options.replace("name=", "none,name=");
        mount(Some("cgroup"), at, Some("cgroup"), flags, Some(options.as_str()))
            .map_err(|e| format!("mount cgroup ({options}) on {}: {e}", at.display()))?;
    }
    Ok(())
}

fn read_only(at: &str) -> Result<(), String> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, at, None::<&str>, flags, None::<&str>).map_err(|e| format!("make {at} read-only: {e}"))
}

/// Makes a directory a mount of its own, with those below it, which a read-only `/` does not concern.
fn keep_writable(at: &Path) -> Result<(), String> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(at), at, None::<&str>, flags, None::<&str>).map_err(|e| format!("bind {}: {e}", at.display()))
}

fn bind_read_only(at: &str) -> Result<(), String> {
    mount(Some(at), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|e| format!("bind {at}: {e}"))?;
    read_only(at)
}
