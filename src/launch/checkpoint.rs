//! `checkpoint`: has CRIU save a running container's processes.

use super::criu::{self as common, CriuOptions, Directories};
use super::{Error, start};
use crate::criu::rpc::{ExternalMount, Features, Options, PageServer, Request, RequestType};
use crate::criu::{self, Worker, descriptors};
use crate::host::Host;
use crate::namespace::{self, Kind};
use crate::rootfs;
use crate::state::{Action, Container, Store};
use nix::unistd::Pid;
use proa_executor::Hull;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

const LOG: &str = "dump.log";

/// The flags of `checkpoint` alone.
#[derive(Clone, Debug, Default)]
pub struct CheckpointOptions {
    /// `--parent-path`, relative to the images' directory.
    pub parent_path: Option<String>,
    /// `--leave-running`
    pub leave_running: bool,
    /// `--tcp-skip-in-flight`
    pub tcp_skip_in_flight: bool,
    /// `--link-remap`
    pub link_remap: bool,
    /// `--pre-dump`
    pub pre_dump: bool,
    /// `--page-server`
    pub page_server: Option<(String, u16)>,
    /// `--status-fd`
    pub status_fd: Option<RawFd>,
    /// `--rootless`: `None` is `auto`.
    pub rootless: Option<bool>,
}

/// Checkpoints container `id`, and removes it unless it is to go on.
///
/// No lock is taken: with `--lazy-pages` CRIU may have to wait for long, and the container is to be deletable meanwhile.
pub fn checkpoint(store: &Store, id: &str, criu: &CriuOptions, options: &CheckpointOptions) -> Result<(), Error> {
    // CRIU needs the host's root, whoever manages the cgroups.
    let host = Host::probe(options.rootless, false);
    if host.rootless {
        return Err(Error::RootlessCriu("checkpoint"));
    }
    let container = store.open(id)?;
    container.require(Action::Checkpoint)?;
    if container.record.hull != Hull::Native {
        return Err(Error::WasmCriu("checkpoint"));
    }
    let mut dump = Dump::prepare(&container, &host, criu, options)?;
    dump.run()?;
    if !options.leave_running && !options.pre_dump {
        remove(store, &container);
    }
    Ok(())
}

/// Removes what CRIU has left of a container whose processes it has ended. As with runc, the checkpoint is there and can be
/// used whatever goes wrong now.
fn remove(store: &Store, container: &Container) {
    let removed = || -> Result<bool, Error> {
        let cgroup = container.cgroup()?;
        if cgroup.is_frozen()? {
            // CRIU leaves a paused container's cgroup frozen, and in v1's the dead would not go.
            cgroup.thaw()?;
        }
        super::foreground::delete(store, &container.record)
    };
    match removed().and_then(|removed| Ok(removed.then(|| container.config()).transpose()?)) {
        Ok(Some(config)) => start::poststop(&config, &container.record),
        Ok(None) => {}
        Err(error) => tracing::warn!("the container is checkpointed, and could not be deleted: {error}"),
    }
}

/// A dump that may begin.
struct Dump<'a> {
    criu: &'a CriuOptions,
    directories: Directories,
    request: Request,
    status: Option<OwnedFd>,
    streams: Option<[String; 3]>,
}

impl<'a> Dump<'a> {
    /// Validates what is asked for, and looks at the container.
    fn prepare(
        container: &Container,
        host: &Host,
        criu: &'a CriuOptions,
        options: &CheckpointOptions,
    ) -> Result<Self, Error> {
        let config = container.config()?;
        let pid = container.record.pid;
        // First: everything that this process was given is to be closed in what it starts.
        let status = match options.status_fd.filter(|_| criu.lazy_pages) {
            Some(fd) => Some(status_fd(fd)?),
            None => None,
        };
        let version = common::version()?;
        let external = external_namespaces(&config.spec, host, version)?;
        let mut streams = None;
        let mut mounts = Vec::new();
        if !options.pre_dump {
            mounts = external_mounts(container, &config.spec, host)?;
            let pids = container.cgroup()?.pids()?;
            streams = Some(descriptors::find(Pid::from_raw(pid), &pids));
        }
        if options.pre_dump {
            let wanted = Features {
                mem_track: Some(true),
                ..Features::default()
            };
            criu::require_feature(wanted, "MemTrack")?;
        }
        if criu.lazy_pages {
            let wanted = Features {
                lazy_pages: Some(true),
                ..Features::default()
            };
            criu::require_feature(wanted, "LazyPages")?;
        }
        let directories = Directories::open(criu, LOG, true)?;
        let opts = Options {
            root: Some(common::text(&container.record.rootfs)?),
            pid: Some(pid),
            leave_running: Some(options.leave_running),
            tcp_skip_in_flight: Some(options.tcp_skip_in_flight),
            link_remap: Some(options.link_remap),
            freeze_cgroup: freezer(container, version)?,
            ps: options.page_server.as_ref().map(|(address, port)| PageServer {
                address: Some(address.clone()),
                port: Some(i32::from(*port)),
            }),
            parent_img: options.parent_path.clone(),
            track_mem: options.parent_path.as_ref().map(|_| true),
            // From 3.15 on there is a notification.
            status_fd: status.as_ref().filter(|_| version < 31_500).map(AsRawFd::as_raw_fd),
            external,
            ext_mnt: mounts,
            ..directories.request(criu, &config, LOG)
        };
        let kind = match options.pre_dump {
            true => RequestType::PreDump,
            false => RequestType::Dump,
        };
        Ok(Self {
            criu,
            directories,
            request: Request {
                r#type: kind.into(),
                opts: Some(opts),
                ..Request::default()
            },
            status,
            streams,
        })
    }

    fn run(&mut self) -> Result<(), Error> {
        if let Some(streams) = &self.streams {
            descriptors::save(&self.criu.image_path, streams)?;
        }
        tracing::debug!("CRIU options: {:?}", self.request.opts);
        let dumped = self.dump();
        dumped.map_err(|error| self.directories.explain(error))
    }

    fn dump(&mut self) -> Result<(), Error> {
        let mut worker = Worker::start(false, &[])?;
        let status = &mut self.status;
        worker.request(&self.request, |notify, _| {
            if notify.script() == "status-ready"
                && let Some(status) = status.take()
                && let Err(errno) = nix::unistd::write(&status, &[0])
            {
                // Whoever wanted to know has gone.
                tracing::warn!("write(--status-fd): {errno}");
            }
            Ok::<(), Error>(())
        })?;
        let ended = worker.finish()?;
        // After a pre-dump CRIU waits for the next request, and that none comes it takes for a failure.
        if !ended.success() && self.request.r#type() != RequestType::PreDump {
            return Err(criu::Error::Status(ended).into());
        }
        Ok(())
    }
}

/// `--status-fd`, which has to be open and writable.
fn status_fd(number: RawFd) -> Result<OwnedFd, Error> {
    let failed = |problem: String| Error::StatusFd { number, problem };
    let fd = proa_sys::fd::claim(number).map_err(|errno| match proa_sys::fd::is_open(number) {
        // The log's, say.
        true => failed("it is not one that was open when proa was started".into()),
        false => failed(errno.desc().to_lowercase()),
    })?;
    let flags = rustix::fs::fcntl_getfl(fd.as_fd()).map_err(|errno| failed(errno.to_string()))?;
    if (flags & rustix::fs::OFlags::RWMODE) == rustix::fs::OFlags::RDONLY {
        return Err(failed("not writable".into()));
    }
    Ok(fd)
}

/// The network and pid namespaces that the container joined: they are not its own, and have to be there when it is restored.
fn external_namespaces(spec: &oci_spec::runtime::Spec, host: &Host, version: u32) -> Result<Vec<String>, Error> {
    let plan = namespace::plan(spec, host)?;
    let joined = plan.join.iter();
    let joined = joined.filter(|join| matches!(join.kind, Kind::Network | Kind::Pid));
    joined
        .map(|join| {
            common::require_external(version, join.kind, "checkpointing")?;
            let inode = std::fs::metadata(&join.path)
                .map_err(Error::path("stat", &join.path))?
                .ino();
            let key = common::external_key(join.kind);
            Ok(format!("{}[{inode}]:{key}", join.kind.file_name()))
        })
        .collect()
}

/// The mounts that CRIU is to leave alone: those from outside and the covers of masked files.
fn external_mounts(
    container: &Container,
    spec: &oci_spec::runtime::Spec,
    host: &Host,
) -> Result<Vec<ExternalMount>, Error> {
    let record = &container.record;
    let plan = rootfs::plan(spec, &record.bundle, host, rootfs::Options::default())?;
    let notify = super::sdnotify::mounted(container.dir());
    let outside = plan.external(&container.cgroup()?.hierarchies())?;
    let own = outside.into_iter().map(|mount| mount.destination).chain(notify);
    let mut mounts = own
        .map(|path| {
            Ok(ExternalMount {
                key: common::text(&path)?,
                val: common::text(&path)?,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    for path in plan.masked_files(record.pid)? {
        mounts.push(ExternalMount {
            key: common::text(&path)?,
            val: "/dev/null".into(),
        });
    }
    Ok(mounts)
}

/// The cgroup whose freezer CRIU may use to stop the processes; without one it stops them one by one.
fn freezer(container: &Container, version: u32) -> Result<Option<String>, Error> {
    let cgroup = container.cgroup()?;
    let legacy = !cgroup.hierarchies().is_empty();
    if !legacy && version < 31_400 {
        return Ok(None);
    }
    cgroup.path("freezer").map(common::text).transpose()
}
