//! How a process gets into a container's cgroup.

use super::file;
use super::{Cgroup, Error, Node, dbus, paths, systemd};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// How the container's first process gets into its cgroup.
#[derive(Debug, Default)]
pub struct Birth {
    /// A v2 cgroup directory for clone3(2)'s `CLONE_INTO_CGROUP` (Linux 5.7). `None` where there is no v2 cgroup.
    pub into: Option<OwnedFd>,
    /// Files into which the new process itself writes `0` first thing. On v1 these are the hierarchies' `tasks` files:
    /// a single-threaded process that moves *itself* through `tasks` spares the kernel the global
    /// `cgroup_threadgroup_rwsem` (kernel/cgroup/cgroup.c, `cgroup_procs_write_start`), which costs ten milliseconds on a
    /// busy machine.
    pub join: Vec<OwnedFd>,
    /// For a kernel without `CLONE_INTO_CGROUP`: the v2 `cgroup.procs` in which to write `0` instead of using `into`.
    pub into_fallback: Option<OwnedFd>,
    /// Whether [`Cgroup::attach`] has to be called with the new process's pid before it may go on (systemd driver).
    pub by_pid: bool,
    /// The cgroup below the unit's that `attach` is to be told, from `/`.
    pub below: String,
    /// Whether a permission error from `into` or `join` is to be ignored: an unprivileged caller who asked for no cgroup.
    pub optional: bool,
}

impl Cgroup {
    /// How a process starts in this cgroup, or (`exec --cgroup`) in those at `subs` below it: `PATH` for all hierarchies,
    /// or `CONTROLLER[,CONTROLLER]:PATH` for some (v1).
    pub fn birth(&self, subs: &[String]) -> Result<Birth, Error> {
        if self.pending.is_some() {
            return Ok(Birth {
                by_pid: true,
                ..Birth::default()
            });
        }
        let subs = Subs::parse(subs, &self.v1)?;
        if self.rootless && self.unit.is_some() && subs.everywhere.is_none() {
            return Ok(self.by_the_manager("/"));
        }
        let mut birth = Birth {
            optional: self.rootless && !self.explicit,
            ..Birth::default()
        };
        for node in &self.v1 {
            let sub = subs.of(node);
            let path = paths::below(&node.path, sub)?;
            let tasks = self.tolerate(file::open_for_write(&path.join("tasks")), &path);
            birth.join.extend(tasks.map_err(|error| joining(sub, error))?);
        }
        if let Some(path) = &self.unified {
            let sub = if self.is_legacy() {
                subs.everywhere.unwrap_or("")
            } else {
                subs.unified()
            };
            let path = paths::below(path, sub)?;
            match open_dir(&path) {
                // On a hybrid host nothing depends on it.
                Err(_) if self.is_legacy() => {}
                opened => {
                    let opened = self.tolerate(opened, &path);
                    birth.enter(opened.map_err(|error| joining(sub, error))?, &path);
                }
            }
        }
        Ok(birth)
    }

    /// As [`Cgroup::birth`], for an `exec`: as with runc, an unprivileged caller's goes where the caller is if it may not
    /// enter the container's cgroup, unless it named one below.
    pub fn birth_of_exec(&self, subs: &[String]) -> Result<Birth, Error> {
        let mut birth = self.birth(subs)?;
        birth.optional |= self.rootless && subs.is_empty();
        Ok(birth)
    }

    /// Whether this is a v2 cgroup that takes no processes: it gives controllers to cgroups below it, or the container's
    /// init has left and removed it.
    pub fn is_left(&self) -> Result<bool, Error> {
        let Some(path) = self.unified.as_ref().filter(|_| !self.is_legacy()) else {
            return Ok(false);
        };
        let file = path.join("cgroup.subtree_control");
        match file::read(&file) {
            Ok(controllers) => Ok(!controllers.trim().is_empty()),
            Err(Errno::ENOENT) => Ok(true),
            Err(errno) => Err(Error::Call {
                call: "read",
                path: file,
                errno,
            }),
        }
    }

    /// How a process starts in the v2 cgroup that `init` is in now. For `exec` when the container's cgroup takes no
    /// processes ([`Cgroup::is_left`]): its init has moved, mostly to one below.
    pub fn birth_beside(&self, init: Pid) -> Result<Birth, Error> {
        let mut birth = Birth {
            optional: self.rootless && !self.explicit,
            ..Birth::default()
        };
        let layout = super::mounts::Layout::probe()?;
        let (Some(hierarchy), false) = (layout.v2, self.is_legacy()) else {
            return Ok(birth);
        };
        let file = PathBuf::from(format!("/proc/{init}/cgroup"));
        let text = file::read(&file).map_err(|errno| Error::Call {
            call: "read",
            path: file,
            errno,
        })?;
        let own = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        let path = super::mounts::Hierarchy {
            own: own.to_owned(),
            ..hierarchy
        }
        .own_dir();
        if self.rootless
            && self.unit.is_some()
            && let Some(Ok(below)) = self.unified.as_ref().map(|unit| path.strip_prefix(unit))
        {
            return Ok(self.by_the_manager(&format!("/{}", below.display())));
        }
        birth.enter(self.tolerate(open_dir(&path), &path)?, &path);
        Ok(birth)
    }

    /// Only systemd may move a process of ours into a scope that has another delegate above it.
    fn by_the_manager(&self, below: &str) -> Birth {
        Birth {
            optional: !self.explicit,
            by_pid: true,
            below: below.to_owned(),
            ..Birth::default()
        }
    }

    /// Makes the systemd scope around `pid`, waits for systemd's job, applies the limits systemd doesn't know.
    ///
    /// After an error [`Cgroup::destroy`] undoes what was done; a unit that was not made here is left alone.
    ///
    /// With a scope that is there already (`exec` without privileges) asks systemd to move `pid` into it, or into the cgroup
    /// `below` it.
    pub fn attach(&mut self, pid: Pid, below: &str) -> Result<(), Error> {
        if let Some(pending) = self.pending.take() {
            return super::create::attach(self, *pending, pid);
        }
        let Some(unit) = &self.unit else { return Ok(()) };
        match systemd::Manager::connect(self.rootless)?.attach(unit, below, pid) {
            Err(Error::Dbus(dbus::Error::Remote { .. })) if self.rootless && !self.explicit => Ok(()),
            result => result,
        }
    }

    /// Puts a process that runs already into the cgroup, to have its children there (`restore`).
    ///
    /// After an error [`Cgroup::destroy`] undoes what was done.
    pub fn take_in(&mut self, pid: Pid) -> Result<(), Error> {
        if self.pending.is_some() {
            return self.attach(pid, "");
        }
        let directories = self.v1.iter().map(|node| &node.path).chain(&self.unified);
        for directory in directories {
            super::create::enter(directory, pid)?;
        }
        Ok(())
    }

    /// runc's rule: an unprivileged caller who named no cgroup does not fail for want of permission.
    fn tolerate<T>(&self, result: Result<T, Errno>, path: &Path) -> Result<Option<T>, Error> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Errno::EACCES | Errno::EPERM | Errno::EROFS) if self.rootless && !self.explicit => Ok(None),
            Err(errno) => Err(Error::Call {
                call: "open",
                path: path.to_owned(),
                errno,
            }),
        }
    }
}

impl Birth {
    fn enter(&mut self, dir: Option<OwnedFd>, path: &Path) {
        self.into_fallback = dir
            .as_ref()
            .and_then(|_| file::open_for_write(&path.join("cgroup.procs")).ok());
        self.into = dir;
    }
}

/// The error for a cgroup that the caller named.
fn joining(sub: &str, error: Error) -> Error {
    match error {
        Error::Call { path, errno, .. } if !sub.is_empty() => Error::Join { path, errno },
        other => other,
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    open(
        path,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// `exec --cgroup` taken apart.
struct Subs<'a> {
    everywhere: Option<&'a str>,
    by_controller: Vec<(&'a str, &'a str)>,
}

impl<'a> Subs<'a> {
    fn parse(subs: &'a [impl AsRef<str>], nodes: &[Node]) -> Result<Self, Error> {
        let mut parsed = Self {
            everywhere: None,
            by_controller: Vec::new(),
        };
        for sub in subs {
            match sub.as_ref().split_once(':') {
                None => parsed.everywhere = Some(sub.as_ref()),
                Some((controllers, path)) => {
                    parsed
                        .by_controller
                        .extend(controllers.split(',').map(|controller| (controller, path)));
                }
            }
        }
        let known = |controller: &str| {
            if nodes.is_empty() {
                controller.is_empty()
            } else {
                nodes.iter().any(|node| node.has(controller))
            }
        };
        match parsed.by_controller.iter().find(|(controller, _)| !known(controller)) {
            Some((controller, _)) => Err(Error::UnknownController((*controller).to_owned())),
            None => Ok(parsed),
        }
    }

    fn of(&self, node: &Node) -> &'a str {
        let named = self.by_controller.iter().find(|(controller, _)| node.has(controller));
        named.map(|(_, path)| *path).or(self.everywhere).unwrap_or("")
    }

    fn unified(&self) -> &'a str {
        self.by_controller
            .first()
            .map(|(_, path)| *path)
            .or(self.everywhere)
            .unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_cgroups_by_controller() {
        let node = |names: &[&str]| Node {
            controllers: names.iter().map(|name| (*name).to_owned()).collect(),
            path: "/cg".into(),
        };
        let nodes = [node(&["cpu", "cpuacct"]), node(&["memory"])];
        let subs = Subs::parse(&["cpu,memory:a", "b"], &nodes).unwrap();
        assert_eq!((subs.of(&nodes[0]), subs.of(&nodes[1])), ("a", "a"));
        let subs = Subs::parse(&["cpu:a"], &nodes).unwrap();
        assert_eq!((subs.of(&nodes[0]), subs.of(&nodes[1])), ("a", ""));
        assert!(matches!(
            Subs::parse(&["nope:a"], &nodes),
            Err(Error::UnknownController(_))
        ));
    }
}
