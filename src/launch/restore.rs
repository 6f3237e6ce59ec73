//! `restore`: has CRIU make a checkpointed container's processes again, in a container that is new in all other respects.
//!
//! ```text
//! validate -> Making (state directory, record, cgroup) -> CRIU in the cgroup, in a mount namespace for it alone
//!   setup-namespaces: prestart and createRuntime hooks      orphan-pts-master: the terminal goes to whoever shows it
//!   post-restore: the container is recorded, its processes are about to go on
//! -> the pid file -> (detached: the end | wait, remove)
//! ```

use super::create::{Making, run_parent_hooks};
use super::criu::{self as common, CriuOptions, Directories};
use super::foreground::{self, Signals};
use super::parent::{self, Newborn};
use super::terminal::{self, Offer};
use super::{CreateOptions, Error, sdnotify, start};
use crate::config::Config;
use crate::criu::rpc::{CgroupRoot, ExternalMount, InheritFd, JoinNamespace, Options, Request, RequestType};
use crate::criu::{self, Worker, descriptors};
use crate::host::Host;
use crate::namespace::{Kind, enter};
use crate::plan::Plan;
use crate::rootfs;
use crate::state::{Record, Store};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;
use proa_executor::Hull;
use proa_executor::recognise::{self, Evidence};
use proa_sys::clone::Child;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

const LOG: &str = "restore.log";
/// Where the container's root is shown to CRIU, below the container's state directory.
const ROOT: &str = "criu-root";

/// The flags of `restore` alone, and those it shares with `run`.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// `--detach`
    pub detach: bool,
    /// `--no-subreaper`
    pub no_subreaper: bool,
    /// `--lsm-profile`
    pub lsm_profile: Option<String>,
    /// `--lsm-mount-context`
    pub lsm_mount_context: Option<String>,
}

/// Restores a container and (unless detached) waits for it; returns its exit status.
pub fn restore(
    store: &Store,
    create: &CreateOptions,
    criu: &CriuOptions,
    options: &RestoreOptions,
) -> Result<u8, Error> {
    let signals = (!options.detach).then(Signals::take).transpose()?;
    if !options.detach && !options.no_subreaper {
        foreground::become_subreaper()?;
    }
    let mut config = Config::load(&create.bundle)?;
    sdnotify::offer(&mut config.spec, &store.dir(&create.id)?)?;
    let host = Host::probe(create.rootless, create.driver == crate::cgroup::Driver::Systemd);
    if host.rootless {
        return Err(Error::RootlessCriu("restore"));
    }
    let mut plan = parent::resolve(&config, &host, create)?;
    // What is marked for Wasm or named so, and was a Linux program, can be restored; of a module there is no checkpoint.
    let guest = &plan.process.guest;
    if plan.hull != Hull::Native && guest.evidence == Evidence::Marked && recognise::names_binary(&guest.args[0]) {
        return Err(Error::WasmCriu("restore"));
    }
    plan.hull = Hull::Native;
    let offer = terminal::offer(options.detach, plan.process.terminal, create.console_socket.as_deref())?;
    let directories = Directories::open(criu, LOG, false)?;
    let streams = descriptors::load(&criu.image_path)?;
    let version = common::version()?;
    let mut opts = Options {
        lsm_profile: options.lsm_profile.clone(),
        lsm_mount_context: options.lsm_mount_context.clone(),
        evasive_devices: Some(true),
        rst_sibling: Some(true),
        ..directories.request(criu, &config, LOG)
    };
    check_lsm(options, version)?;
    opts.inherit_fd
        .extend(streams.into_iter().map(|(fd, key)| InheritFd { key, fd }));
    let namespaces = namespaces(&plan, version, &mut opts)?;

    let mut making = Making::default();
    let record = making.reserve(store, &config, &plan, &host)?;
    let restoring = Restoring {
        criu,
        directories: &directories,
        plan: &plan,
        config: &config,
        making: &mut making,
        record,
        terminal: Some(offer),
        master: None,
    };
    let (record, master) = restoring
        .run(opts, &namespaces)
        .map_err(|error| directories.explain(error))?;
    let pid = Pid::from_raw(record.pid);
    let init = Child {
        pid,
        pidfd: parent::pidfd_of(pid),
    };
    parent::announce(create.pid_file.as_deref(), None, &init)?;
    making.keep();
    let Some(signals) = signals else { return Ok(0) };
    let status = foreground::supervise(&init, signals, master, None)?;
    if foreground::delete(store, &record)? {
        start::poststop(&config, &record);
    }
    Ok(status)
}

/// CRIU before 3.16 takes these and does the wrong thing. Words are runc's.
fn check_lsm(options: &RestoreOptions, version: u32) -> Result<(), Error> {
    if options.lsm_profile.is_some() {
        common::at_least(version, 31_600, "--lsm-profile requires at least CRIU 3.16: ")?;
    }
    if options.lsm_mount_context.is_some() {
        common::at_least(version, 31_600, "--lsm-mount-context requires at least CRIU 3.16: ")?;
    }
    Ok(())
}

/// Tells CRIU of the namespaces that are to be joined; returns what it has to inherit for that.
fn namespaces(plan: &Plan, version: u32, opts: &mut Options) -> Result<Vec<OwnedFd>, Error> {
    let mut open = Vec::new();
    for join in &plan.namespaces.join {
        match join.kind {
            // CRIU left them alone at the checkpoint, and finds them by a name.
            Kind::Network | Kind::Pid => {
                common::require_external(version, join.kind, "the restoration")?;
                let file = File::open(&join.path).map_err(|source| Error::NoNamespace {
                    kind: join.kind,
                    path: join.path.clone(),
                    source,
                })?;
                opts.inherit_fd.push(InheritFd {
                    key: common::external_key(join.kind),
                    fd: file.as_raw_fd(),
                });
                open.push(file.into());
            }
            Kind::Cgroup => return Err(Error::JoinCgroupNamespace(join.path.clone())),
            kind => opts.join_ns.push(JoinNamespace {
                ns: kind.file_name().into(),
                ns_file: common::text(&join.path)?,
            }),
        }
    }
    Ok(open)
}

/// A container that is being restored.
struct Restoring<'a> {
    criu: &'a CriuOptions,
    directories: &'a Directories,
    plan: &'a Plan,
    config: &'a Config,
    making: &'a mut Making,
    record: Record,
    terminal: Option<Offer>,
    master: Option<OwnedFd>,
}

impl Restoring<'_> {
    /// Has CRIU do it. Returns the record and, if this process shows it, the terminal's master.
    fn run(mut self, mut opts: Options, namespaces: &[OwnedFd]) -> Result<(Record, Option<OwnedFd>), Error> {
        let root = self.state_directory()?.join(ROOT);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&root);
        made.map_err(Error::path("mkdir", &root))?;
        // CRIU wants it without symbolic links.
        let root = std::fs::canonicalize(&root).map_err(Error::path("realpath", &root))?;
        opts.root = Some(common::text(&root)?);
        opts.ext_mnt = self.external_mounts()?;

        apart(|| Ok(self.plan.rootfs.make_mount_points()?))?;
        let keep: Vec<RawFd> = namespaces.iter().map(AsRawFd::as_raw_fd).collect();
        // Nobody shows a terminal's streams before it is there.
        let stdio = !self.plan.process.terminal;
        let (mut worker, directories) = apart(|| {
            rootfs::show_root(self.plan.rootfs.root(), &root)?;
            let directories = self.directories.reopen(self.criu)?;
            Ok((Worker::start(stdio, &keep)?, directories))
        })?;
        directories.name(&mut opts);
        opts.cg_root = self.enter_cgroup(worker.pid())?;
        let request = Request {
            r#type: RequestType::Restore.into(),
            opts: Some(opts),
            ..Request::default()
        };
        tracing::debug!("CRIU options: {:?}", request.opts);
        worker.request(&request, |notify, descriptor| match (notify.script(), descriptor) {
            ("setup-namespaces", _) => self.namespaces_are_there(notify.pid()),
            ("post-restore", _) => self.restored(notify.pid()),
            ("orphan-pts-master", Some(master)) => self.show_terminal(master),
            _ => Ok(()),
        })?;
        let ended = worker.finish()?;
        if !ended.success() {
            return Err(criu::Error::Status(ended).into());
        }
        std::fs::remove_dir(&root).map_err(Error::path("rmdir", &root))?;
        if self.record.pid == 0 {
            return Err(criu::Error::Response("nothing was said of a restored process".into()).into());
        }
        Ok((self.record, self.master))
    }

    fn state_directory(&self) -> Result<&Path, Error> {
        self.making
            .reservation
            .as_ref()
            .map(|own| own.dir())
            .ok_or(Error::InitGone)
    }

    /// What of the host is mounted where CRIU left a mount out.
    fn external_mounts(&self) -> Result<Vec<ExternalMount>, Error> {
        let hierarchies = self.making.cgroup.as_ref().map(|cgroup| cgroup.hierarchies());
        let outside = self.plan.rootfs.external(&hierarchies.unwrap_or_default())?;
        let mut mounts = outside
            .into_iter()
            .map(|mount| {
                Ok(ExternalMount {
                    key: common::text(&mount.destination)?,
                    val: common::text(&mount.source)?,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        if self.plan.rootfs.masks() {
            let null = || "/dev/null".to_owned();
            mounts.push(ExternalMount {
                key: null(),
                val: null(),
            });
        }
        Ok(mounts)
    }

    /// Puts CRIU into the container's cgroup, and tells where that is: what it restores comes to be there or below.
    fn enter_cgroup(&mut self, criu: Pid) -> Result<Vec<CgroupRoot>, Error> {
        let cgroup = self.making.cgroup.as_mut().ok_or(Error::InitGone)?;
        cgroup.take_in(criu)?;
        if cgroup.save() != self.record.cgroup {
            self.record.cgroup = cgroup.save();
        }
        let path = format!("/proc/{criu}/cgroup");
        let text = std::fs::read_to_string(&path).map_err(Error::path("read", &path))?;
        let mut roots = Vec::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            if let (Some(controllers), Some(path)) = (fields.next(), fields.next()) {
                roots.extend(controllers.split(',').map(|controller| CgroupRoot {
                    ctrl: Some(controller.to_owned()),
                    path: path.to_owned(),
                }));
            }
        }
        Ok(roots)
    }

    /// The first process is there, with its namespaces, and nothing in them yet.
    fn namespaces_are_there(&mut self, pid: i32) -> Result<(), Error> {
        if self.plan.namespaces.makes(Kind::Network) {
            // CRIU was told to leave the network namespace empty. Addresses of `lo` are there only once it is up, and what
            // listens on one comes next.
            let own = enter::open_of(nix::unistd::getpid().as_raw(), Kind::Network)?;
            enter::join(Kind::Network, enter::open_of(pid, Kind::Network)?.as_fd())?;
            let up = enter::loopback_up();
            enter::join(Kind::Network, own.as_fd())?;
            up?;
        }
        if !parent::has_parent_hooks(&self.plan.hooks) {
            return Ok(());
        }
        self.record.pid = pid;
        self.record.start_time = parent::start_time(Pid::from_raw(pid))?;
        if let Some(reservation) = &self.making.reservation {
            // The hooks may ask for the state.
            reservation.save(&self.record)?;
        }
        run_parent_hooks(&self.plan.hooks, &self.record)
    }

    /// All processes are there, and go on when this is done.
    fn restored(&mut self, pid: i32) -> Result<(), Error> {
        let init = Pid::from_raw(pid);
        self.making.init = Newborn::of(init);
        self.record.pid = pid;
        self.record.start_time = parent::start_time(init)?;
        let Some(reservation) = &self.making.reservation else {
            return Err(Error::InitGone);
        };
        if let Some(master) = &self.master {
            // Not before: CRIU has given the terminal the modes that it had.
            terminal::keep_newlines(master.as_fd())?;
        }
        if let Some(config) = with_time_namespace(self.config, self.plan, pid)? {
            reservation.save_config(&config)?;
        }
        Ok(reservation.save_created(&mut self.record)?)
    }

    fn show_terminal(&mut self, master: OwnedFd) -> Result<(), Error> {
        if let Some(offer) = self.terminal.take() {
            self.master = offer.deliver(master)?;
        }
        Ok(())
    }
}

/// Runs `act` in a mount namespace of its own, and comes back: what is mounted there the host never sees, and it is gone with
/// the last process in it, however that ends.
fn apart<T>(act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    use rustix::fs::{Mode, OFlags};
    let open = |path: &'static str, flags: OFlags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::path("open", path)(errno.into()))
    };
    let namespace = open("/proc/self/ns/mnt", OFlags::RDONLY)?;
    // setns(2) goes to the root of the namespace, which need not be ours.
    let (root, cwd) = (open("/", OFlags::PATH)?, open(".", OFlags::PATH)?);
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::call("unshare(CLONE_NEWNS)"))?;
    let done = rootfs::keep_mounts_private().map_err(Error::from).and_then(|()| act());
    setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(Error::call("setns(own mount namespace)"))?;
    let back = rustix::process::fchdir(&root)
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::fchdir(&cwd));
    back.map_err(|errno| Error::path("chroot", "/")(errno.into()))?;
    done
}

/// The configuration with a time namespace, if CRIU has put the container into one so that its clocks go on where they
/// stopped: then `exec` has to join it.
fn with_time_namespace(config: &Config, plan: &Plan, pid: i32) -> Result<Option<Config>, Error> {
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/time")).ok();
    if plan.namespaces.has(Kind::Time) || of(&pid.to_string()) == of("self") {
        return Ok(None);
    }
    let path = Path::new("config.json");
    let parse = |source| crate::config::Error::Parse {
        path: path.into(),
        source,
    };
    let mut document: serde_json::Value = serde_json::from_slice(&config.raw).map_err(parse)?;
    if let Some(namespaces) = document["linux"]["namespaces"].as_array_mut() {
        namespaces.push(serde_json::json!({"type": "time"}));
    }
    let raw = serde_json::to_vec(&document).map_err(parse)?;
    Ok(Some(Config::parse(raw, path)?))
}
