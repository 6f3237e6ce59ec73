//! `create` and `run`, the parent's side: each phase consumes the one before and undoes itself if it is dropped.
//!
//! ```text
//! resolve -> Making (state directory, record, cgroup) -> spawn (a process) -> Created (it waits, and is recorded)
//! ```

use super::channel::{Channel, Message};
use super::code::{CacheDesk, Desk, Site};
use super::handover::{Handover, Middle};
use super::hooks;
use super::image::{self, Image};
use super::parent::{Attendant, Newborn};
use super::spawn::{self, Birth};
use super::terminal::{self, Offer};
use super::{CreateOptions, Error, parent, sdnotify, start};
use crate::cgroup::{self, Cgroup};
use crate::config::Config;
use crate::host::Host;
use crate::namespace::{Kind, enter, idmap, netdev};
use crate::plan::Plan;
use crate::process::rdt::Resctrl;
use crate::process::{self, Filter};
use crate::rootfs::{self, Sources};
use crate::state::{Record, Reservation, Store};
use crate::wasm;
use nix::sys::signal::Signal;
use oci_spec::runtime::{Hook, Hooks};
use proa_executor::Hull;
use proa_sys::clone::Child;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// How the container will be told to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartBy {
    /// By another invocation, over start.sock.
    Socket,
    /// By this one, over the channel.
    Channel,
}

/// A container that is created: its init waits.
#[derive(Debug)]
pub struct Created {
    /// What is known of it.
    pub record: Record,
    /// Its configuration.
    pub config: Config,
    /// Its init.
    pub init: Child,
    /// Where its terminal's master comes from.
    pub offer: Option<Offer>,
    channel: Channel,
    making: Making,
}

/// What exists so far and has to go if the container does not come to be.
#[derive(Debug, Default)]
pub(super) struct Making {
    pub(super) reservation: Option<Reservation>,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) init: Newborn,
    rdt: Option<process::rdt::Group>,
    mounts: Option<rootfs::SharedRoot>,
    poststop: Option<(Vec<Hook>, Record)>,
}

impl Making {
    /// Takes the id and makes the cgroup, whose place is recorded first: should this process be killed in between, whoever
    /// deletes the container finds it.
    pub(super) fn reserve(
        &mut self,
        store: &Store,
        config: &Config,
        plan: &Plan,
        host: &Host,
    ) -> Result<Record, Error> {
        let reservation = self.reservation.insert(store.reserve(&plan.id)?);
        let cgroup = Cgroup::prepare(&plan.cgroup)?;
        let mut record = parent::record(plan, host, cgroup.save())?;
        reservation.save_config(config)?;
        sdnotify::make_directory(reservation.dir())?;
        reservation.save(&record)?;
        let cgroup = self.cgroup.insert(cgroup.create()?);
        if cgroup.is_none() && !plan.namespaces.makes(Kind::Pid) {
            // runc's words, without the announcement that it will be an error some day.
            tracing::warn!(
                "Creating a rootless container with no cgroup and no private pid namespace. Such configuration is strongly \
                 discouraged (as it is impossible to properly kill all container's processes)"
            );
        }
        if cgroup.save() != record.cgroup {
            record.cgroup = cgroup.save();
            reservation.save(&record)?;
        }
        Ok(record)
    }

    /// The container exists: nothing is undone any more.
    pub(super) fn keep(mut self) {
        self.init.keep();
        self.rdt = None;
        self.mounts = None;
        self.poststop = None;
        if let Some(reservation) = self.reservation.take() {
            reservation.commit();
        }
        self.cgroup = None;
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut complaints = Vec::new();
        self.init.kill();
        if let Some(cgroup) = self.cgroup.take() {
            let emptied = cgroup.signal_all(Signal::SIGKILL).and_then(|()| cgroup.destroy());
            complaints.extend(emptied.err().map(|error| error.to_string()));
        }
        if let Some(root) = self.mounts.take() {
            complaints.extend(root.detach().err().map(|error| error.to_string()));
        }
        if let Some(group) = self.rdt.take() {
            let removed = Resctrl::find().and_then(|resctrl| resctrl.remove(&group));
            complaints.extend(removed.err().map(|error| error.to_string()));
        }
        if let Some((hooks, record)) = self.poststop.take() {
            start::run_poststop(&hooks, &record);
        }
        for complaint in complaints {
            tracing::warn!("undoing a container that failed: {complaint}");
        }
    }
}

/// Makes the container, up to where its init waits for the start.
pub fn create(store: &Store, options: &CreateOptions, start: StartBy, detach: bool) -> Result<Created, Error> {
    let preserve = parent::preserved_descriptors(parent::listen_fds(), options.preserve_fds)?;
    let mut config = Config::load(&options.bundle)?;
    sdnotify::offer(&mut config.spec, &store.dir(&options.id)?)?;
    let host = Host::probe(options.rootless, options.driver == cgroup::Driver::Systemd);
    let mut plan = parent::resolve(&config, &host, options)?;
    let site = Site {
        store: store.clone(),
        driver: options.driver,
        rootless: options.rootless,
    };
    let cache = CacheDesk::open(&mut plan.process.guest, &options.settings, site);
    let order = Order {
        config,
        host,
        plan,
        start,
        detach,
        preserve,
        inherit: Vec::new(),
        code: cache.as_ref().map(|cache| cache as &dyn Desk),
    };
    make(store, options, order)
}

/// What is to be made.
pub(super) struct Order<'a> {
    /// The configuration, to be stored.
    pub config: Config,
    /// The host it was resolved for.
    pub host: Host,
    /// The configuration resolved.
    pub plan: Plan,
    /// Who will start it.
    pub start: StartBy,
    /// Whether nobody waits for its end.
    pub detach: bool,
    /// How many descriptors after stdio its program inherits.
    pub preserve: u32,
    /// Further descriptors that its init inherits, under the same numbers.
    pub inherit: Vec<RawFd>,
    /// Who has compiled code for it.
    pub code: Option<&'a dyn Desk>,
}

/// Carries an order out; of `options` only what comes after resolving counts.
pub(super) fn make(store: &Store, options: &CreateOptions, order: Order<'_>) -> Result<Created, Error> {
    let Order {
        config,
        host,
        mut plan,
        start,
        detach,
        preserve,
        inherit,
        code,
    } = order;
    process::check_host(&plan.process)?;
    if let Some(policy) = &mut plan.process.guest.policy {
        wasm::plugins::resolve(policy)?;
    }
    let image = image::open_for(
        &mut plan.hull,
        &plan.process.guest,
        options.settings.wasm.engine_dir.as_deref(),
    )?;
    let offer = terminal::offer(detach, plan.process.terminal, options.console_socket.as_deref())?;

    // Compiling one may take seconds, in which nothing of the container is to be in anybody's way.
    let filter = plan
        .seccomp
        .as_ref()
        .map(|profile| parent::filter(profile, store))
        .transpose()?;

    let mut making = Making::default();
    let mut record = making.reserve(store, &config, &plan, &host)?;
    let (Some(reservation), Some(cgroup)) = (&mut making.reservation, &mut making.cgroup) else {
        unreachable!("reserve() made both");
    };

    plan.rootfs.set_cgroup(cgroup.path(""));

    let socket = match start {
        StartBy::Socket => Some(reservation.listen_start()?),
        StartBy::Channel => None,
    };
    // From here on the container is something that others can have seen: as with runc, poststop hooks follow whatever fails.
    let poststop = plan.hooks.poststop().clone().unwrap_or_default();
    making.poststop = (!poststop.is_empty()).then(|| (poststop, record.clone()));
    making.mounts = record.shared_root.clone();
    let sources = rootfs::open_sources(&mut plan.rootfs)?;
    let page = match plan.hull {
        // A compiler has no guest of which it could tell.
        Hull::Wasm if plan.process.guest.compile.is_none() => Some(OwnedFd::from(reservation.make_guest_page()?)),
        Hull::Wasm | Hull::Native => None,
    };
    plan.process.guest.status = page.as_ref().map(AsRawFd::as_raw_fd);
    let limited = plan.process.guest.memory_limit.is_some();
    let request = Spawning {
        console: offer.for_init.as_ref(),
        start: socket.as_ref(),
        preserve,
        inherit: &inherit,
        filter: filter.as_ref(),
        reservation,
        sources: &sources,
        page: page.as_ref(),
    };
    let (init, channel, early) = request
        .spawn(&mut plan, &mut record, &image, cgroup, &host, &mut making.init)
        .map_err(|error| explained(error, cgroup, &making.init, limited))?;
    let cgroup = &*cgroup;
    // Init has its own copy by now; only it may answer.
    drop(socket);

    record.pid = init.pid.as_raw();
    record.start_time = parent::start_time(init.pid)?;
    if parent::has_parent_hooks(&plan.hooks) {
        // The hooks may ask for the state.
        reservation.save(&record)?;
    }
    let attendant = Attendant {
        record: &record,
        pid: init.pid,
        listener: parent::listener(&config),
        status: "creating",
        sources: Some(&sources),
        code,
    };
    making.rdt = plan.process.rdt.clone();
    record.hull = attendant
        .until_created(&channel, early, &plan.process, Some(image), || {
            run_parent_hooks(&plan.hooks, &record)
        })
        .map_err(|error| explained(error, cgroup, &making.init, limited))?;
    match start {
        StartBy::Socket => reservation.save_created(&mut record)?,
        StartBy::Channel => reservation.save_complete(&mut record)?,
    }
    parent::announce(options.pid_file.as_deref(), options.pidfd_socket.as_deref(), &init)?;
    Ok(Created {
        record,
        config,
        channel,
        init,
        offer: Some(offer),
        making,
    })
}

/// Why init was not made: whatever step failed for it, if the kernel has killed it for want of memory, that is the reason. Where
/// the cgroup that could tell is gone, a SIGKILL under a limit of memory tells.
fn explained(error: Error, cgroup: &Cgroup, init: &Newborn, limited: bool) -> Error {
    let killed = || limited && init.was_killed(matches!(error, Error::InitGone));
    if !cgroup.was_out_of_memory().unwrap_or_else(killed) {
        return error;
    }
    tracing::debug!("{error}");
    Error::OutOfMemory
}

impl Created {
    /// Whether the kernel has killed a process of it because it had all the memory that it may have.
    pub(super) fn was_beyond_its_memory(&self) -> bool {
        let cgroup = self.making.cgroup.as_ref();
        cgroup.is_some_and(|cgroup| cgroup.was_out_of_memory() == Some(true) && cgroup.has_met_its_memory_limit())
    }

    /// Tells init to execute the program, and learns how that went.
    pub fn start(&mut self) -> Result<(), Error> {
        parent::tell_start(&self.channel)?;
        Attendant {
            record: &self.record,
            pid: self.init.pid,
            listener: parent::listener(&self.config),
            status: "creating",
            sources: None,
            code: None,
        }
        .until_running(&self.channel)?;
        if let Some(reservation) = &self.making.reservation {
            reservation.save_created(&mut self.record)?;
        }
        Ok(())
    }

    /// Leaves the container to itself: from now on nothing is undone.
    pub fn keep(self) -> (Record, Config) {
        self.making.keep();
        (self.record, self.config)
    }
}

/// What the new process is given besides the plan.
struct Spawning<'a> {
    console: Option<&'a OwnedFd>,
    start: Option<&'a OwnedFd>,
    preserve: u32,
    inherit: &'a [RawFd],
    filter: Option<&'a Filter>,
    reservation: &'a mut Reservation,
    sources: &'a Sources,
    page: Option<&'a OwnedFd>,
}

/// What the parent has to do for a new process before that may go on.
#[derive(Clone, Copy)]
struct Settling {
    /// There is a process in the middle.
    middle: bool,
    /// There is a new user namespace, to be mapped.
    map_ids: bool,
    /// The process has to be put into its cgroup by pid.
    attach: bool,
    /// The container's process waits for `Go` when all this is done.
    wait: bool,
}

impl Settling {
    fn new(plan: &Plan, attach: bool) -> Self {
        let middle = plan.namespaces.needs_middle();
        let map_ids = plan.namespaces.makes(Kind::User);
        // Nothing in the container may look for a network device before it is there.
        let held = attach || !plan.namespaces.net_devices.is_empty();
        let wait = held || (map_ids && !middle);
        Self {
            middle,
            map_ids,
            attach,
            wait,
        }
    }
}

impl Spawning<'_> {
    /// Clones, and does from outside what the new process can't: id maps, the systemd scope, network devices.
    fn spawn(
        self,
        plan: &mut Plan,
        record: &mut Record,
        image: &Image,
        cgroup: &mut Cgroup,
        host: &Host,
        newborn: &mut Newborn,
    ) -> Result<(Child, Channel, Vec<Message>), Error> {
        let joins = enter::open(&plan.namespaces)?;
        let entry = cgroup.birth(&[])?;
        let settling = Settling::new(plan, entry.by_pid);
        let (mut birth, middle) = self.birth(plan, &joins, settling);
        birth.enter(entry);
        let handover = self.handover(plan, record, image, middle, &joins);
        let memfd = handover.write(self.filter.map(|filter| &filter.program))?;
        let (channel, init) = Channel::pair()?;
        birth.title = spawn::title_room(&plan.process.guest);
        let mut ours = Some(channel);
        let mut child = spawn::spawn(image, &birth, &init, &memfd, || {
            ours = None;
            self.reservation.abandon();
        })?;
        let channel = ours.ok_or(Error::InitGone)?;
        *newborn = Newborn::of(child.pid);
        drop(init);

        let mut early = Vec::new();
        if settling.map_ids {
            if settling.middle {
                parent::expect(&channel, |message| matches!(message, Message::NeedMaps))?;
            }
            idmap::write(&plan.namespaces, child.pid, host)?;
        }
        if settling.middle {
            if settling.map_ids {
                parent::tell_go(&channel)?;
            }
            (child, early) = parent::replace_middle(&channel, newborn, child.pidfd.as_ref(), None)?;
        }
        if settling.attach {
            cgroup.attach(child.pid, "/")?;
            // Before it goes on, or nobody would know by what to find its processes should this one be killed.
            record.cgroup = cgroup.save();
            self.reservation.save(record)?;
        }
        netdev::move_all(&plan.namespaces, &joins, child.pid)?;
        if settling.wait {
            parent::tell_go(&channel)?;
        }
        Ok((child, channel, early))
    }

    /// What the new process is cloned into and inherits, and what it does first if it only stands in the middle.
    fn birth(&self, plan: &Plan, joins: &[(Kind, OwnedFd)], settling: Settling) -> (Birth, Option<Middle>) {
        let namespaces = &plan.namespaces;
        let number = |fd: &OwnedFd| fd.as_raw_fd();
        let mut inherit: Vec<RawFd> = self.sources.inherited().collect();
        inherit.extend(joins.iter().map(|(_, fd)| number(fd)));
        inherit.extend(self.console.into_iter().chain(self.start).chain(self.page).map(number));
        inherit.extend(3..3 + self.preserve as RawFd);
        inherit.extend(self.inherit);
        let new = plan.cloned_namespaces();
        if !settling.middle {
            return (
                Birth {
                    inherit,
                    new,
                    wait: settling.wait,
                    ..Birth::default()
                },
                None,
            );
        }
        let opened = |kind: Kind| joins.iter().find(|(other, _)| *other == kind).map(|(_, fd)| number(fd));
        let middle = Middle {
            join_user: opened(Kind::User),
            join_pid: opened(Kind::Pid),
            new_user: settling.map_ids,
            in_user_namespace: namespaces.has(Kind::User),
            time: namespaces.makes(Kind::Time).then(|| namespaces.time_offsets.clone()),
            new: new.into_iter().filter(|kind| *kind != Kind::User).collect(),
            wait: settling.wait,
        };
        (
            Birth {
                inherit,
                ..Birth::default()
            },
            Some(middle),
        )
    }

    fn handover(
        &self,
        plan: &mut Plan,
        record: &Record,
        image: &Image,
        middle: Option<Middle>,
        joins: &[(Kind, OwnedFd)],
    ) -> Handover {
        let namespaces = &plan.namespaces;
        Handover {
            proa: super::handover::VERSION.into(),
            image: image.numbers().collect(),
            middle,
            join: joins
                .iter()
                .map(|(kind, fd)| enter::Opened {
                    kind: *kind,
                    fd: fd.as_raw_fd(),
                })
                .collect(),
            join_process: None,
            new_cgroup_namespace: namespaces.makes(Kind::Cgroup),
            loopback: namespaces.makes(Kind::Network),
            hostname: namespaces.hostname.clone(),
            domainname: namespaces.domainname.clone(),
            rootfs: Some(plan.rootfs.clone()),
            process: plan.process.clone(),
            parent_hooks: parent::has_parent_hooks(&plan.hooks),
            create_container: plan.hooks.create_container().clone().unwrap_or_default(),
            start_container: plan.hooks.start_container().clone().unwrap_or_default(),
            state: parent::has_init_hooks(&plan.hooks).then(|| hooks::state(record, "creating", 0)),
            console: self.console.map(AsRawFd::as_raw_fd),
            start_socket: self.start.map(AsRawFd::as_raw_fd),
            preserve: self.preserve,
            debug: crate::logging::debug(),
        }
    }
}

/// `prestart` and `createRuntime`: all mounts are made, and init waits.
#[allow(deprecated, reason = "prestart hooks are deprecated, yet what Docker uses")]
pub(super) fn run_parent_hooks(hooks: &Hooks, record: &Record) -> Result<(), Error> {
    let state = hooks::state(record, "creating", record.pid);
    hooks::run_all(
        "prestart",
        hooks.prestart().as_deref().unwrap_or_default(),
        &state,
        None,
    )?;
    hooks::run_all(
        "createRuntime",
        hooks.create_runtime().as_deref().unwrap_or_default(),
        &state,
        None,
    )?;
    Ok(())
}
