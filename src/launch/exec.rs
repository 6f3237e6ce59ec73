//! `exec`: another process in the namespaces, the cgroup and the confinement of a running container.

use super::channel::{Channel, Message};
use super::code::{CacheDesk, Desk, Site};
use super::handover::{Handover, JoinProcess, Middle};
use super::image::{self, Image};
use super::parent::{Attendant, Newborn};
use super::spawn::{self, Birth};
use super::{Error, ExecOptions, foreground, parent, terminal};
use crate::config::Config;
use crate::namespace::Kind;
use crate::process::{self, Filter};
use crate::state::{Container, Store};
use crate::wasm::Settings;
use nix::unistd::Pid;
use proa_executor::Hull;
use proa_executor::recognise::{self, Evidence};
use proa_sys::clone::Child;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Runs a process in the container; returns its exit status, or 0 if detached.
pub fn exec(store: &Store, container: &Container, config: &Config, options: &ExecOptions) -> Result<u8, Error> {
    // What systemd passed is for the container's init.
    let preserve = parent::preserved_descriptors(0, options.preserve_fds)?;
    let mut plan = process::plan(
        &options.process,
        &config.spec,
        container.id(),
        process::Options {
            no_new_keyring: container.record.no_new_keyring,
            exec: true,
            unprivileged: !nix::unistd::geteuid().is_root(),
        },
    )?;
    let (mut hull, evidence) = hull(container, config, &plan.guest.args, &options.settings)?;
    plan.guest.evidence = evidence;
    if hull == Hull::Wasm {
        // What holds for the container's first process holds for a module beside it: from the annotations as they were at
        // `create`, under the administrator's file as it is now.
        let mut policy = crate::wasm::policy(&options.settings, &config.spec).map_err(crate::plan::Error::from)?;
        crate::wasm::plugins::resolve(&mut policy)?;
        plan.guest.policy = Some(Box::new(policy));
    }
    let site = Site {
        store: store.clone(),
        driver: options.driver,
        rootless: options.rootless,
    };
    let cache = CacheDesk::open(&mut plan.guest, &options.settings, site);
    let linux = config.spec.linux().as_ref();
    let filter = linux
        .and_then(|linux| linux.seccomp().as_ref())
        .map(|profile| parent::filter(profile, store))
        .transpose()?;
    let offer = terminal::offer(options.detach, plan.terminal, options.console_socket.as_deref())?;
    let signals = (!options.detach).then(foreground::Signals::take).transpose()?;

    let mut newborn = Newborn::default();
    let image = image::open_for(&mut hull, &plan.guest, options.settings.wasm.engine_dir.as_deref())?;
    let request = Request {
        container,
        config,
        plan: &plan,
        filter: filter.as_ref(),
        preserve,
        cache: cache.as_ref(),
    };
    let mut image = Some(image);
    let console = offer.for_init.as_ref();
    let (child, channel, early) = request.spawn(&mut image, &options.cgroup, console, &mut newborn)?;
    let mut attendant = request.attendant(child.pid);
    if image.is_none() {
        // It is among the container's processes by now, which may have taken it over: it has no more to ask for.
        attendant.code = None;
    }
    attendant.until_created(&channel, early, &plan, image, || Ok(()))?;
    parent::announce(options.pid_file.as_deref(), options.pidfd_socket.as_deref(), &child)?;
    let master = offer.receive()?;
    parent::tell_start(&channel)?;
    if let Err(error) = attendant.until_running(&channel) {
        return Err(error.seen(|| foreground::show(master.as_ref(), plan.terminal)));
    }
    newborn.keep();
    match signals {
        None => Ok(0),
        Some(signals) => foreground::supervise(&child, signals, master, None),
    }
}

struct Request<'a> {
    container: &'a Container,
    config: &'a Config,
    plan: &'a process::Plan,
    filter: Option<&'a Filter>,
    preserve: u32,
    cache: Option<&'a CacheDesk>,
}

impl Request<'_> {
    fn attendant(&self, pid: Pid) -> Attendant<'_> {
        Attendant {
            record: &self.container.record,
            pid,
            listener: parent::listener(self.config),
            status: "running",
            sources: None,
            code: self.cache.map(|cache| cache as &dyn Desk),
        }
    }

    fn spawn(
        &self,
        image: &mut Option<Image>,
        sub_cgroups: &[String],
        console: Option<&OwnedFd>,
        newborn: &mut Newborn,
    ) -> Result<(Child, Channel, Vec<Message>), Error> {
        let record = &self.container.record;
        let mut cgroup = self.container.cgroup()?;
        // An init that manages cgroups of its own has moved to one of those; runc goes there, too.
        let entry = match sub_cgroups.is_empty() && cgroup.is_left()? {
            true => cgroup.birth_beside(Pid::from_raw(record.pid))?,
            false => cgroup.birth_of_exec(sub_cgroups)?,
        };
        let attach = entry.by_pid.then(|| entry.below.clone());
        let pidfd = self.container.pidfd()?;
        let kinds: Vec<Kind> = self.kinds().collect();
        let number = |fd: &Option<OwnedFd>| fd.as_ref().map(AsRawFd::as_raw_fd);

        let mut birth = Birth {
            inherit: (3..3 + self.preserve as RawFd).collect(),
            ..Birth::default()
        };
        birth
            .inherit
            .extend(number(&pidfd).into_iter().chain(console.map(AsRawFd::as_raw_fd)));
        let needs_middle = kinds.contains(&Kind::Pid) || kinds.contains(&Kind::User);
        let middle = needs_middle.then(Middle::default);
        // The first process looks at a module and loads the engine: what the image makes that cost is the container's. Its
        // child is born where it is.
        birth.wait = attach.is_some();
        birth.enter(entry);
        let loaded = image.as_ref().ok_or(Error::InitGone)?;
        let handover = Handover {
            proa: super::handover::VERSION.into(),
            image: loaded.numbers().collect(),
            middle,
            join: Vec::new(),
            join_process: Some(JoinProcess {
                pidfd: number(&pidfd),
                pid: record.pid,
                start_time: record.start_time,
                kinds,
            }),
            new_cgroup_namespace: false,
            loopback: false,
            hostname: None,
            domainname: None,
            rootfs: None,
            process: self.plan.clone(),
            parent_hooks: false,
            create_container: Vec::new(),
            start_container: Vec::new(),
            state: None,
            console: console.map(AsRawFd::as_raw_fd),
            start_socket: None,
            preserve: self.preserve,
            debug: crate::logging::debug(),
        };
        let has_middle = handover.middle.is_some();
        let memfd = handover.write(self.filter.map(|filter| &filter.program))?;
        let (channel, init) = Channel::pair()?;
        birth.title = spawn::title_room(&self.plan.guest);
        let mut early = Vec::new();
        let mut ours = Some(channel);
        let mut child = spawn::spawn(loaded, &birth, &init, &memfd, || ours = None)?;
        let channel = ours.ok_or(Error::InitGone)?;
        *newborn = Newborn::of(child.pid);
        drop(init);
        if let Some(below) = attach {
            cgroup.attach(child.pid, &below)?;
            parent::tell_go(&channel)?;
        }
        if has_middle {
            // What the one in the middle has got by then, its child inherits.
            let mut serve = |pid, message| match message {
                Message::Ready => {
                    process::tune_but_processes(self.plan, pid)?;
                    parent::tell_go(&channel)?;
                    drop(image.take());
                    Ok(())
                }
                message => self.attendant(pid).serve(&channel, message),
            };
            (child, early) = parent::replace_middle(&channel, newborn, child.pidfd.as_ref(), Some(&mut serve))?;
        }
        Ok((child, channel, early))
    }

    /// The container's namespaces.
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        let linux = self.config.spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
        namespaces
            .into_iter()
            .flatten()
            .map(|namespace| Kind::from(namespace.typ()))
    }
}

/// Whether a process with these arguments may be a module, so that it matters what the administrator says: nothing is looked
/// at for a Linux program, even in a Wasm container.
pub fn may_be_module(args: &[String]) -> bool {
    args.first().is_some_and(|program| recognise::names_binary(program))
}

/// Which executable runs the process, and what that goes by: the rules are those of the container's first process, but that
/// only names which end in `.wasm` count.
fn hull(
    container: &Container,
    config: &Config,
    args: &[String],
    settings: &Settings,
) -> Result<(Hull, Evidence), Error> {
    if !may_be_module(args) {
        return Ok((Hull::Native, Evidence::Marked));
    }
    let none = HashMap::new();
    let annotations = config.spec.annotations().as_ref().unwrap_or(&none);
    let decision = recognise::decide(annotations, &parent::program(), &args[0], settings.wasm.detect)
        .map_err(crate::plan::Error::from)?;
    // Beside a module there may be another one, whatever told what the first one is.
    match decision.hull {
        Hull::Native => Ok((container.record.hull, Evidence::Marked)),
        Hull::Wasm => Ok((Hull::Wasm, decision.evidence)),
    }
}
