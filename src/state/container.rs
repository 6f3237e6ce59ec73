//! One container's directory: reserved, read, locked, changed, removed.

use super::lock::Lock;
use super::{Action, Creator, Error, Record, Status, VERSION, process, require};
use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::process::rdt::{Group, Resctrl};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

const RECORD: &str = "state.json";
const CONFIG: &str = "config.json";
/// The socket on which init listens until it is started.
pub const START_SOCKET: &str = "start.sock";

/// The page on which a Wasm container's first process tells of its guest.
pub(super) const GUEST: &str = "guest.page";

/// How long a process may take to die of SIGKILL: as long as runc gives it.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A new container's directory, locked. Removed again when dropped, unless [`Reservation::commit`] was called.
#[derive(Debug)]
pub struct Reservation {
    dir: PathBuf,
    lock: Option<Lock>,
}

impl Reservation {
    pub(super) fn new(dir: PathBuf) -> Result<Self, Error> {
        let mut reservation = Self { dir, lock: None };
        let file = open_dir(&reservation.dir).map_err(Error::file("open", &reservation.dir))?;
        reservation.lock = Some(lock(file, &reservation.dir)?);
        Ok(reservation)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stores the configuration for `exec`, `update`, `delete`.
    pub fn save_config(&self, config: &Config) -> Result<(), Error> {
        write_atomically(&self.dir.join(CONFIG), &config.raw)
    }

    /// Stores the record: once before the container's process exists (pid 0: `creating`, so that a `delete` finds the cgroup
    /// if this process is killed), and once it waits for `start`.
    pub fn save(&self, record: &Record) -> Result<(), Error> {
        save_record(&self.dir, record)
    }

    /// Stores that the container is complete, and will be started right away: from then on it can be signalled and executed
    /// in, which may come faster than the news that the program runs.
    pub fn save_complete(&self, record: &mut Record) -> Result<(), Error> {
        record.created = crate::logging::timestamp();
        if let Some(creator) = &mut record.creator {
            creator.complete = true;
        }
        self.save(record)
    }

    /// Stores that the container is created, and its creator done.
    pub fn save_created(&self, record: &mut Record) -> Result<(), Error> {
        if record.creator.is_some_and(|creator| !creator.complete) {
            record.created = crate::logging::timestamp();
        }
        record.creator = None;
        self.save(record)
    }

    /// In a copy of the process that reserved it: closes the lock, which stays held by that one.
    pub fn abandon(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.abandon();
        }
    }

    /// Makes the socket on which init will listen for `start`, for init to inherit.
    pub fn listen_start(&self) -> Result<OwnedFd, Error> {
        let path = || self.dir.join(START_SOCKET);
        let failed = |call| move |errno: Errno| Error::file(call, &path())(errno.into());
        let dir = open_dir(&self.dir).map_err(Error::file("open", &self.dir))?;
        let fd =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(failed("socket"))?;
        // The file gets the socket's own mode (unix(7)): whatever the caller's umask and the mode of a `--root` that was there
        // before, nobody else may connect, which takes the right to write.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("fchmod"))?;
        start_address(&dir)
            .and_then(|address| bind(fd.as_raw_fd(), &address))
            .map_err(failed("bind"))?;
        Backlog::new(16)
            .and_then(|backlog| listen(&fd, backlog))
            .map_err(failed("listen"))?;
        Ok(fd)
    }

    /// Makes the file of a Wasm guest's status page, for init to inherit.
    pub fn make_guest_page(&self) -> Result<File, Error> {
        let path = self.dir.join(GUEST);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        file.set_len(proa_executor::status::SIZE as u64)
            .map_err(Error::file("ftruncate", &path))?;
        Ok(file)
    }

    /// Removes the directory without opening it once more: it may have failed for want of descriptors.
    fn remove_files(&self) -> std::io::Result<()> {
        if let Some(lock) = &self.lock {
            for name in [RECORD, CONFIG, START_SOCKET, GUEST] {
                match rustix::fs::unlinkat(lock.file(), name, rustix::fs::AtFlags::empty()) {
                    Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        std::fs::remove_dir(&self.dir)
    }

    /// Keeps the directory and releases the lock.
    pub fn commit(mut self) {
        self.dir.clear();
        drop(self.lock.take());
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.dir.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir).or_else(|_| self.remove_files()) {
            tracing::warn!("rmdir {}: {error}", self.dir.display());
        }
    }
}

/// A container that exists.
#[derive(Debug)]
pub struct Container {
    dir: PathBuf,
    file: File,
    /// What was written at create.
    pub record: Record,
    // `delete` asks three times; parsing it costs as much as removing the cgroup.
    config: RefCell<Option<Rc<Config>>>,
}

impl Container {
    pub(super) fn open(dir: PathBuf) -> Result<Self, Error> {
        let file = open_dir(&dir).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Error::NotFound,
            _ => Error::file("open", &dir)(error),
        })?;
        let record = load_record(&dir)?;
        Ok(Self {
            dir,
            file,
            record,
            config: RefCell::default(),
        })
    }

    /// The container's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Takes the container's lock, waiting for it, and reads the record again. [`Error::Busy`] while it is being created.
    pub fn lock(self) -> Result<Locked, Error> {
        // If its creator was killed, what still holds the lock is on its way to let go: the creator's copy that was to
        // become init.
        let creating = self.record.creator.is_some_and(Creator::lives);
        let Self { dir, file, record, .. } = self;
        let file = match Lock::try_take(file) {
            Ok(locked) => locked,
            Err((_, Errno::EWOULDBLOCK)) if creating => return Err(Error::Busy(record.id)),
            Err((file, Errno::EWOULDBLOCK)) => lock(file, &dir)?,
            Err((_, errno)) => return Err(Error::file("flock", &dir)(errno.into())),
        };
        // Whoever held the lock may have deleted the container, and someone else may have made a new one of that name.
        let ours = file.file().metadata().map_err(Error::file("stat", &dir))?;
        match std::fs::symlink_metadata(&dir) {
            Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => {}
            Ok(_) => return Err(Error::NotFound),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Error::NotFound),
            Err(error) => return Err(Error::file("stat", &dir)(error)),
        }
        let record = load_record(&dir)?;
        let again = open_dir(&dir).map_err(Error::file("open", &dir))?;
        Ok(Locked {
            container: Self {
                dir,
                file: again,
                record,
                // What was read before may have been changed by whoever held the lock.
                config: RefCell::default(),
            },
            _lock: file,
        })
    }

    /// The status, from the kernel.
    pub fn status(&self) -> Status {
        if self.record.pid == 0 {
            return Status::Creating;
        }
        if !self.alive() {
            return Status::Stopped;
        }
        if self.record.creator.is_some_and(|creator| !creator.complete) {
            Status::Creating
        } else if self.frozen() {
            Status::Paused
        } else if self.waits() {
            Status::Created
        } else {
            Status::Running
        }
    }

    /// Fails for a container of a newer proa ([`super::VERSION`]).
    pub fn require_known(&self) -> Result<(), Error> {
        match self.record.version {
            0..=VERSION => Ok(()),
            version => Err(Error::Newer {
                id: self.record.id.clone(),
                version,
            }),
        }
    }

    /// Whether `action` may be done now, and by this proa.
    pub fn require(&self, action: Action) -> Result<Status, Error> {
        self.require_known()?;
        let status = self.status();
        require(action, self.id(), status)?;
        Ok(status)
    }

    /// Whether init still runs; a zombie does not.
    pub fn alive(&self) -> bool {
        process::alive(self.record.pid, self.record.start_time)
    }

    /// Whether the cgroup is frozen. A cgroup that can't be asked (gone, or not ours to read) counts as not frozen: `state`
    /// of a rootless container must not fail for it.
    fn frozen(&self) -> bool {
        match self.cgroup().and_then(|cgroup| Ok(cgroup.is_frozen()?)) {
            Ok(frozen) => frozen,
            Err(error) => {
                tracing::debug!("cgroup of {}: {error}", self.id());
                false
            }
        }
    }

    /// Whether init still listens for `start`.
    fn waits(&self) -> bool {
        // A full backlog (init is stopped or slow) is someone who listens.
        match self.connect_start(SockFlag::SOCK_NONBLOCK) {
            Ok(_) | Err(Errno::EAGAIN) => true,
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => false,
            // The question could not be asked (no descriptor, no memory left): once init is started, the socket is removed.
            Err(_) => self.dir.join(START_SOCKET).exists(),
        }
    }

    /// Connects to init's start socket. The path goes through a descriptor of the directory: a `--root` may be longer than
    /// the 108 bytes of a socket address (unix(7)).
    pub fn connect_start(&self, flags: SockFlag) -> Result<OwnedFd, Errno> {
        let fd = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | flags,
            None,
        )?;
        connect(fd.as_raw_fd(), &start_address(&self.file)?)?;
        Ok(fd)
    }

    /// Removes the start socket, once nobody listens on it. Through the descriptor of the directory: the container may have
    /// been deleted since, and another of the same id been created.
    pub fn remove_start(&self) -> Result<(), Error> {
        match rustix::fs::unlinkat(&self.file, START_SOCKET, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::file("unlink", &self.dir.join(START_SOCKET))(errno.into())),
        }
    }

    /// A pidfd of init, known to be of that very process; `None` on a kernel before 5.3.
    pub fn pidfd(&self) -> Result<Option<OwnedFd>, Error> {
        let pidfd = match process::pidfd(self.record.pid) {
            Ok(pidfd) => Some(pidfd),
            Err(Errno::ENOSYS) => None,
            Err(Errno::ESRCH) => return Err(Error::NotRunning),
            Err(source) => {
                let path = PathBuf::from(format!("/proc/{}", self.record.pid));
                return Err(Error::file("pidfd_open", &path)(source.into()));
            }
        };
        // Read after the descriptor is open: whatever happens to the pid now, the descriptor is of the right process.
        if process::looks_alive(self.record.pid, self.record.start_time)? {
            Ok(pidfd)
        } else {
            Err(Error::NotRunning)
        }
    }

    /// The stored configuration, read when it is first asked for.
    pub fn config(&self) -> Result<Rc<Config>, Error> {
        if let Some(config) = &*self.config.borrow() {
            return Ok(Rc::clone(config));
        }
        let config = Rc::new(Config::load_file(&self.dir.join(CONFIG))?);
        *self.config.borrow_mut() = Some(Rc::clone(&config));
        Ok(config)
    }

    /// The container's cgroup.
    pub fn cgroup(&self) -> Result<Cgroup, Error> {
        Ok(Cgroup::open(&self.record.cgroup)?)
    }

    /// The container's resctrl group, if its configuration wants one and this host has resctrl (still).
    pub fn rdt(&self) -> Result<Option<(Resctrl, Group)>, Error> {
        let config = self.config()?;
        let linux = config.spec.linux().as_ref();
        let Some(wanted) = linux.and_then(|linux| linux.intel_rdt().as_ref()) else {
            return Ok(None);
        };
        let group = Group::new(wanted, self.id()).map_err(Error::Rdt)?;
        Ok(Resctrl::find().ok().map(|resctrl| (resctrl, group)))
    }

    /// Sends `signal` to init. SIGKILL goes to every process if they don't die with init because it is not the init of a
    /// pid namespace of their own.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        if signal != Signal::SIGKILL as i32 {
            return process::signal(self.record.pid, self.record.start_time, signal);
        }
        if self.own_pid_namespace() {
            process::signal(self.record.pid, self.record.start_time, signal)?;
        } else {
            let all = self
                .cgroup()
                .and_then(|cgroup| cgroup.signal_all(Signal::SIGKILL).map_err(Error::KillAll));
            // A rootless container may have no cgroup of its own; then init is all that can be found.
            match (all, process::signal(self.record.pid, self.record.start_time, signal)) {
                (Ok(()), _) | (Err(_), Ok(())) => {}
                (Err(error), Err(_)) if self.alive() => return Err(error),
                (Err(_), Err(error)) => return Err(error),
            }
        }
        // On cgroup v1 a frozen process does not even die of SIGKILL.
        if self.frozen() {
            self.cgroup()?.thaw()?;
        }
        Ok(())
    }

    /// Whether the container has a pid namespace of its own, according to its configuration.
    fn own_pid_namespace(&self) -> bool {
        use oci_spec::runtime::LinuxNamespaceType::Pid;
        let Ok(config) = self.config() else { return false };
        let linux = config.spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
        namespaces.is_some_and(|all| all.iter().any(|one| one.typ() == Pid && one.path().is_none()))
    }
}

/// A container whose lock is held: the only one that can be changed.
#[derive(Debug)]
pub struct Locked {
    container: Container,
    _lock: Lock,
}

impl std::ops::Deref for Locked {
    type Target = Container;

    fn deref(&self) -> &Container {
        &self.container
    }
}

impl Locked {
    /// Stores a changed record.
    pub fn save(&mut self, record: Record) -> Result<(), Error> {
        save_record(&self.dir, &record)?;
        self.container.record = record;
        Ok(())
    }

    /// Stores a changed configuration.
    pub fn save_config(&self, raw: &[u8]) -> Result<(), Error> {
        write_atomically(&self.dir.join(CONFIG), raw)?;
        *self.config.borrow_mut() = None;
        Ok(())
    }

    /// Kills every process and waits until they have ended.
    pub fn kill(&self) -> Result<(), Error> {
        match self.signal(Signal::SIGKILL as i32) {
            Ok(()) | Err(Error::NotRunning) => {}
            Err(error) => return Err(error),
        }
        match process::wait_gone(self.record.pid, self.record.start_time, KILL_TIMEOUT) {
            true => Ok(()),
            false => Err(Error::StillRunning),
        }
    }

    /// Removes the cgroup, after having killed what is left in it, and then the directory. In this order, so that a failure
    /// leaves a container that can be deleted again.
    pub fn destroy(self) -> Result<(), Error> {
        let cgroup = self.cgroup()?;
        if self.record.pid == 0 || !self.own_pid_namespace() {
            kill_all(&cgroup)?;
        }
        cgroup.destroy().map_err(Error::RemoveCgroup)?;
        if let Some(root) = &self.record.shared_root {
            root.detach().map_err(Error::RemoveMounts)?;
        }
        self.remove_rdt()?;
        remove_dir(&self.dir)
    }
}

impl Locked {
    /// Removes the resctrl group that was made for the container, if one was.
    fn remove_rdt(&self) -> Result<(), Error> {
        // Without a configuration (a create that was killed early) no process was ever put into a group.
        let Ok(Some((resctrl, group))) = self.rdt() else {
            return Ok(());
        };
        resctrl.remove(&group).map_err(Error::RemoveRdt)
    }
}

/// Kills what is in a cgroup, again for what was forked meanwhile, and waits for the end of it.
fn kill_all(cgroup: &Cgroup) -> Result<(), Error> {
    let deadline = std::time::Instant::now() + KILL_TIMEOUT;
    loop {
        let pids = cgroup.pids().map_err(Error::KillAll)?;
        let Some(first) = pids.first() else { return Ok(()) };
        cgroup.signal_all(Signal::SIGKILL).map_err(Error::KillAll)?;
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let gone = match process::Stat::read(first.as_raw()) {
            Some(stat) => process::wait_gone(first.as_raw(), stat.start_time, left),
            None => true,
        };
        if !gone || left.is_zero() {
            return Err(Error::StillRunning);
        }
    }
}

pub(super) fn remove_debris(dir: &Path, id: &str) -> Result<bool, Error> {
    let file = match open_dir(dir) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(false),
        Err(error) => return Err(Error::file("open", dir)(error)),
    };
    let _lock = match Lock::try_take(file) {
        Ok(locked) => locked,
        Err((_, Errno::EWOULDBLOCK)) => return Err(Error::Busy(id.into())),
        Err((_, errno)) => return Err(Error::file("flock", dir)(errno.into())),
    };
    if dir.join(RECORD).exists() {
        return Ok(false);
    }
    remove_dir(dir)?;
    Ok(true)
}

fn start_address(dir: &File) -> Result<UnixAddr, Errno> {
    UnixAddr::new(format!("/proc/self/fd/{}/{START_SOCKET}", dir.as_raw_fd()).as_str())
}

fn open_dir(dir: &Path) -> std::io::Result<File> {
    File::options()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
        .open(dir)
}

fn lock(file: File, dir: &Path) -> Result<Lock, Error> {
    Lock::wait(file).map_err(|errno| Error::file("flock", dir)(errno.into()))
}

fn remove_dir(dir: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file("rmdir", dir)(error)),
        _ => Ok(()),
    }
}

fn load_record(dir: &Path) -> Result<Record, Error> {
    let path = dir.join(RECORD);
    let raw = crate::files::read_own(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::NotFound,
        _ => Error::file("read", &path)(error),
    })?;
    serde_json::from_slice(&raw).map_err(|source| match serde_json::from_slice(&raw) {
        Ok(Form { id, version }) if version > VERSION => Error::Newer { id, version },
        _ => Error::Corrupt { path, source },
    })
}

/// What every version of the record has.
#[derive(serde::Deserialize)]
struct Form {
    id: String,
    version: u32,
}

fn save_record(dir: &Path, record: &Record) -> Result<(), Error> {
    let path = dir.join(RECORD);
    let raw = serde_json::to_vec(record).map_err(|source| Error::Corrupt {
        path: path.clone(),
        source,
    })?;
    write_atomically(&path, &raw)
}

/// Readers see the old content or the new, whole. No fsync(2): the store belongs on a tmpfs, and after a power cut no
/// container is left to remember.
fn write_atomically(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let written = (|| {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        std::fs::rename(&temporary, path)
    })();
    written.map_err(|error| {
        // What matters is the first failure.
        std::fs::remove_file(&temporary).ok();
        Error::file("write", path)(error)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("proa-state-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn record(id: &str, pid: i32, start_time: u64) -> Record {
        Record {
            version: VERSION,
            oci_version: "1.3.0".into(),
            id: id.into(),
            pid,
            creator: (pid == 0).then(|| Creator::this_process().unwrap()),
            start_time,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            shared_root: None,
            created: crate::logging::timestamp(),
            annotations: Default::default(),
            owner: 0,
            cgroup: Default::default(),
            hull: proa_executor::Hull::Native,
            terminal: false,
            no_new_keyring: false,
        }
    }

    #[test]
    fn an_id_is_taken_once_and_given_back_on_failure() {
        let dir = Dir::new("reserve");
        let store = Store::new(dir.0.join("deep/root"));
        let first = store.reserve("c1").unwrap();
        assert!(matches!(store.reserve("c1"), Err(Error::Exists)));
        assert!(matches!(store.open("c1"), Err(Error::NotFound)));
        assert!(
            matches!(store.remove_debris("c1"), Err(Error::Busy(_))),
            "its creator lives"
        );
        drop(first);
        assert!(store.ids().unwrap().is_empty());
        store.reserve("c1").unwrap().commit();
        assert!(store.remove_debris("c1").unwrap(), "nobody holds it");
        assert!(!store.remove_debris("c1").unwrap());
    }

    #[test]
    fn a_record_is_read_back_and_its_status_is_the_kernels() {
        let dir = Dir::new("status");
        let store = Store::new(&dir.0);
        let reservation = store.reserve("c1").unwrap();
        reservation.save(&record("c1", 0, 0)).unwrap();
        let creating = store.open("c1").unwrap();
        assert_eq!(creating.status(), Status::Creating);
        assert!(matches!(creating.lock(), Err(Error::Busy(id)) if id == "c1"));

        reservation.save(&record("c1", i32::MAX, 1)).unwrap();
        reservation.commit();
        let container = store.open("c1").unwrap();
        assert_eq!(container.status(), Status::Stopped);
        assert!(matches!(container.signal(15), Err(Error::NotRunning)));
        assert!(
            store.remove_debris("c1").is_ok_and(|removed| !removed),
            "a record is no debris"
        );
        let left = std::fs::read_dir(container.dir()).unwrap().count();
        assert_eq!(left, 1, "no temporary file is left");
    }

    #[test]
    fn records_of_other_versions_are_read_or_refused_by_name() {
        let dir = Dir::new("version");
        let store = Store::new(&dir.0);
        let reservation = store.reserve("c1").unwrap();
        let mut json = serde_json::to_value(record("c1", i32::MAX, 1)).unwrap();
        let mut open = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
            change(json.as_object_mut().unwrap());
            write_atomically(&reservation.dir().join(RECORD), json.to_string().as_bytes()).unwrap();
            store.open("c1")
        };
        let of_before = open(&|json| drop(json.remove("version"))).unwrap();
        assert_eq!(of_before.record.version, 0);
        of_before.require(Action::Delete).unwrap();
        // What is known of it is as good as ever: it can be looked at and signalled.
        let newer = open(&|json| drop(json.insert("version".into(), 7.into()))).unwrap();
        assert_eq!(newer.status(), Status::Stopped);
        let error = newer.require(Action::Delete).unwrap_err().to_string();
        let words = "container c1 was made by a newer proa (state version 7, this one knows 1 and older)";
        assert!(error.starts_with(words), "{error}");
        // One that can't be read is told by the same words, and not as damaged.
        let unreadable = open(&|json| drop(json.remove("cgroup"))).unwrap_err().to_string();
        assert!(unreadable.starts_with(words), "{unreadable}");
        let damaged = open(&|json| drop(json.insert("version".into(), 1.into()))).unwrap_err();
        assert!(matches!(damaged, Error::Corrupt { .. }), "{damaged}");
    }

    #[test]
    fn the_start_socket_is_reached_by_any_path() {
        let dir = Dir::new(&"x".repeat(200));
        let store = Store::new(&dir.0);
        let reservation = store.reserve("c1").unwrap();
        reservation.save(&record("c1", i32::MAX, 1)).unwrap();
        let container = store.open("c1").unwrap();
        assert!(!container.waits());
        let listener = reservation.listen_start().unwrap();
        for _ in 0..20 {
            assert!(container.waits(), "also with a full backlog");
        }
        drop(listener);
        // A child of another test has a copy until it executes something.
        let closed = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            !container.waits()
        });
        assert!(closed, "the file is there, nobody listens");
    }

    #[test]
    fn the_lock_excludes_and_notices_a_deleted_container() {
        let dir = Dir::new("lock");
        let store = Store::new(&dir.0);
        let reservation = store.reserve("c1").unwrap();
        reservation.save(&record("c1", i32::MAX, 1)).unwrap();
        reservation.commit();
        let (stale, locked) = (store.open("c1").unwrap(), store.open("c1").unwrap().lock().unwrap());
        let other = open_dir(locked.dir()).unwrap();
        assert!(matches!(Lock::try_take(other), Err((_, Errno::EWOULDBLOCK))));
        remove_dir(locked.dir()).unwrap();
        drop(locked);
        assert!(matches!(stale.lock(), Err(Error::NotFound)));
    }

    #[test]
    fn a_full_disk_names_the_file_and_leaves_nothing() {
        let dir = Dir::new("full");
        let missing = dir.0.join("gone/state.json");
        let error = write_atomically(&missing, b"{}").unwrap_err().to_string();
        assert!(error.starts_with(&format!("write {}", missing.display())), "{error}");
        assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
    }
}
