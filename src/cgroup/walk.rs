//! Walking a cgroup and those below it, by descriptors: to find processes, to kill, to remove.
//!
//! Who is inside may nest cgroups so deeply that no path leads there (PATH_MAX). So each directory is opened from the one
//! above, and only one is kept open, as descriptors are few, too. The way back is `..`: cgroups are never moved to another
//! place, and as long as this one is open, removed or not, `..` leads to the one above.

use super::file;
use super::{Error, freezer};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use proa_sys::errno::Raw;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, XattrFlags, openat, unlinkat};
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long processes that were killed may take to leave. A process in the middle of a large exit can need seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// The extended attribute by which a container knows its cgroup again. Only who has CAP_SYS_ADMIN on the host sees and sets
/// it (xattr(7), "Trusted extended attributes"); cgroup file systems have had it since Linux 3.7.
const MARK: &str = "trusted.proa";

/// The longest path that is shown in an error.
const SHOWN: usize = 4096;

/// Marks the cgroup `path` as the container's that has just made or entered it: whose mark was there has lost it. False where
/// the caller may not, or where there is no such cgroup.
pub(super) fn mark(path: &Path, mark: &str) -> Result<bool, Error> {
    match rustix::fs::setxattr(path, MARK, mark.as_bytes(), XattrFlags::empty()).map_err(|errno| errno.raw()) {
        Ok(()) => Ok(true),
        Err(Errno::EPERM | Errno::EACCES | Errno::EROFS | Errno::EOPNOTSUPP | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Error::Call {
            call: "setxattr",
            path: path.to_owned(),
            errno,
        }),
    }
}

/// Whose a cgroup directory is.
pub(super) enum Found<'a> {
    /// The container's.
    Ours(Walk<'a>),
    /// Another container has made or entered a cgroup of this path since.
    Another,
    /// There is none.
    Nothing,
}

/// A place on the way through a cgroup and those below it.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    top: &'a Path,
    here: OwnedFd,
    /// For each directory from `top` to here: its children that are still to be walked, of which the last is walked now.
    left: Vec<Vec<CString>>,
}

/// Opens the cgroup `path`. Without a `mark` whatever is there counts as the container's.
pub(super) fn find<'a>(path: &'a Path, mark: Option<&str>) -> Result<Found<'a>, Error> {
    let failed = |call| {
        let path = path.to_owned();
        move |errno: rustix::io::Errno| Error::Call {
            call,
            path,
            errno: errno.raw(),
        }
    };
    let Some(here) = file::if_any(open_dir(CWD, path).map_err(failed("open")))? else {
        return Ok(Found::Nothing);
    };
    if let Some(mark) = mark {
        let mut found = [0u8; 128];
        match rustix::fs::fgetxattr(&here, MARK, &mut found) {
            Ok(length) if found[..length] == *mark.as_bytes() => {}
            Ok(_) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::RANGE) => return Ok(Found::Another),
            Err(errno) => return Err(failed("getxattr")(errno)),
        }
    }
    Ok(Found::Ours(Walk {
        top: path,
        here,
        left: Vec::new(),
    }))
}

impl Walk<'_> {
    /// The pids in this cgroup and those below it.
    pub(super) fn pids(mut self) -> Result<Vec<Pid>, Error> {
        let mut all = BTreeSet::new();
        'cgroups: loop {
            all.extend(self.own_pids()?);
            let children = self.children()?;
            self.left.push(children);
            while !self.descend()? {
                if self.left.len() == 1 {
                    break 'cgroups;
                }
                self.ascend()?;
                self.done();
            }
        }
        Ok(all.into_iter().map(Pid::from_raw).collect())
    }

    /// Kills everything in this v2 cgroup and below at once. False where the kernel (before 5.14) has no `cgroup.kill`.
    pub(super) fn kill(&self) -> Result<bool, Error> {
        let name = "cgroup.kill";
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let written = match openat(&self.here, name, flags, Mode::empty()) {
            Ok(file) => file::write_fd(file, "1"),
            Err(errno) => Err(errno.raw()),
        };
        match written {
            Ok(()) => Ok(true),
            // ENOENT also if the cgroup is gone; EOPNOTSUPP in a threaded one.
            Err(Errno::ENOENT | Errno::EOPNOTSUPP) => Ok(false),
            Err(Errno::ENODEV) => Ok(true),
            Err(errno) => Err(Error::Call {
                call: "write 1 to",
                path: self.top.join(name),
                errno,
            }),
        }
    }

    /// Removes this cgroup with those below it, waiting for processes that are about to leave.
    pub(super) fn remove(mut self, unified: bool) -> Result<(), Error> {
        loop {
            let children = self.children()?;
            self.left.push(children);
            while !self.remove_children()? {
                if self.left.len() == 1 {
                    return self.leave(CWD, self.top, &self.here, unified);
                }
                let emptied = self.ascend()?;
                if let Some(name) = self.child() {
                    self.leave(
                        &self.here,
                        Path::new(OsStr::from_bytes(name.to_bytes())),
                        &emptied,
                        unified,
                    )?;
                }
                self.done();
            }
        }
    }

    /// The child that is walked now.
    fn child(&self) -> Option<&CStr> {
        self.left.last()?.last().map(CString::as_c_str)
    }

    /// That child needs no more to be done.
    fn done(&mut self) {
        if let Some(left) = self.left.last_mut() {
            left.pop();
        }
    }

    /// Goes on to a child of this cgroup that is left. False if none is. What vanishes meanwhile is left out.
    fn descend(&mut self) -> Result<bool, Error> {
        while let Some(name) = self.child() {
            let opened = open_dir(&self.here, name).map_err(|errno| self.failed("open", errno.raw()));
            if let Some(child) = file::if_any(opened)? {
                self.here = child;
                return Ok(true);
            }
            self.done();
        }
        Ok(false)
    }

    /// Goes back to the cgroup above; returns the one that is left.
    fn ascend(&mut self) -> Result<OwnedFd, Error> {
        let above = open_dir(&self.here, c"..").map_err(|errno| self.failed("open", errno.raw()))?;
        self.left.pop();
        Ok(std::mem::replace(&mut self.here, above))
    }

    /// Removes children of this cgroup up to one that does not go, and goes on to that one. False if none is left.
    fn remove_children(&mut self) -> Result<bool, Error> {
        while let Some(name) = self.child() {
            match unlinkat(&self.here, name, AtFlags::REMOVEDIR).map_err(|errno| errno.raw()) {
                Ok(()) | Err(Errno::ENOENT) => self.done(),
                Err(Errno::EBUSY | Errno::ENOTEMPTY | Errno::EROFS | Errno::EACCES | Errno::EPERM) => {
                    return self.descend();
                }
                Err(errno) => {
                    let path = self.shown();
                    return Err(Error::Remove { path, errno });
                }
            }
        }
        Ok(false)
    }

    /// Removes the cgroup `name` in `above`, which is open as `emptied` and has none below it.
    fn leave(&self, above: impl AsFd, name: &Path, emptied: &OwnedFd, unified: bool) -> Result<(), Error> {
        let refused = |errno| Error::Remove {
            path: self.shown(),
            errno,
        };
        let give_up = Instant::now() + PATIENCE;
        let mut round = 0u32;
        loop {
            match unlinkat(&above, name, AtFlags::REMOVEDIR).map_err(|errno| errno.raw()) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EBUSY) if Instant::now() < give_up => {}
                Err(errno) => return Err(refused(errno)),
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if unified && !freezer::wait_for_event(emptied, &self.shown(), "populated", 0, left)? {
                return Err(refused(Errno::EBUSY));
            }
            if unified || !wait_for_exits(&self.pids_in(emptied)?, left) {
                // No process to wait for: the kernel is still letting go of the last one, for which it has no sign.
                freezer::pause(round);
                round += 1;
            }
        }
    }

    fn own_pids(&self) -> Result<Vec<i32>, Error> {
        self.pids_in(&self.here)
    }

    /// The pids in the cgroup `dir` itself.
    fn pids_in(&self, dir: &OwnedFd) -> Result<Vec<i32>, Error> {
        // A threaded cgroup refuses `cgroup.procs`: its threads belong to processes of the domain above.
        let text = match file::read_at(dir, Path::new("cgroup.procs")) {
            Err(Errno::EOPNOTSUPP) => file::read_at(dir, Path::new("cgroup.threads")),
            result => result,
        };
        let text = file::if_any(text.map_err(|errno| self.failed("read cgroup.procs of", errno)))?;
        // 0 is a process of another pid namespace: nothing that a signal could reach.
        Ok(text
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid > 0)
            .collect())
    }

    /// The names of the cgroups in this one.
    fn children(&self) -> Result<Vec<CString>, Error> {
        let list = || -> rustix::io::Result<Vec<CString>> {
            let mut names = Vec::new();
            for entry in Dir::read_from(&self.here)? {
                let entry = entry?;
                let name = entry.file_name();
                if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
                    names.push(name.to_owned());
                }
            }
            Ok(names)
        };
        let listed = list().map_err(|errno| self.failed("readdir", errno.raw()));
        Ok(file::if_any(listed)?.unwrap_or_default())
    }

    fn failed(&self, call: &'static str, errno: Errno) -> Error {
        let path = self.shown();
        Error::Call { call, path, errno }
    }

    /// The path of the child that is walked now, or of this cgroup; without its middle if that is too long.
    fn shown(&self) -> PathBuf {
        let names = self.left.iter().filter_map(|left| left.last());
        let below: Vec<&OsStr> = names.map(|name| OsStr::from_bytes(name.to_bytes())).collect();
        let length: usize = below.iter().map(|name| name.len() + 1).sum();
        match below.last() {
            Some(last) if self.top.as_os_str().len() + length > SHOWN => self.top.join("...").join(last),
            _ => self.top.iter().chain(below).collect(),
        }
    }
}

fn open_dir(dir: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// Waits until one of these processes of a v1 cgroup has ended. False if there is none that could be waited for.
fn wait_for_exits(pids: &[i32], patience: Duration) -> bool {
    for pid in pids.iter().filter_map(|pid| rustix::process::Pid::from_raw(*pid)) {
        match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(fd) => {
                let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
                // A zombie's descriptor is ready at once though its cgroup may still be busy.
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                let was_ready = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
                if !was_ready {
                    // However the wait ended, the caller looks at the cgroup again.
                    poll(&mut fds, timeout).ok();
                    return true;
                }
            }
            // Gone by now; or Linux before 5.3, which has none: then the caller waits in small steps.
            Err(_) => continue,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No cgroups, but directories that are walked in the same way.
    fn nested(name: &str, depth: usize, component: &str) -> PathBuf {
        let top = std::env::temp_dir().join(format!("proa-walk-{name}-{}", std::process::id()));
        std::fs::create_dir(&top).unwrap();
        let mut here = open_dir(CWD, top.as_path()).unwrap();
        for level in 0..depth {
            rustix::fs::mkdirat(&here, "sibling", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&here, component, Mode::RWXU).unwrap();
            here = open_dir(&here, component).unwrap();
            let procs = openat(&here, "cgroup.procs", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            file::write_fd(procs, &format!("{}\n", 100_000 + level)).unwrap();
        }
        top
    }

    fn ours(path: &Path) -> Walk<'_> {
        match find(path, None).unwrap() {
            Found::Ours(walk) => walk,
            _ => panic!("{} is not there", path.display()),
        }
    }

    #[test]
    fn every_cgroup_is_seen_however_deep_it_is() {
        let component = "n".repeat(255);
        let top = nested("seen", 2000, &component);
        assert_eq!(ours(&top).pids().unwrap().len(), 2000);
        // An ordinary file keeps a directory; a cgroup's files go with it.
        let mut walk = ours(&top);
        walk.left.push(vec![CString::new(component.clone()).unwrap()]);
        let mut depth = 0;
        while walk.descend().unwrap() {
            unlinkat(&walk.here, "cgroup.procs", AtFlags::empty()).unwrap();
            walk.left.push(vec![CString::new(component.clone()).unwrap()]);
            depth += 1;
        }
        assert_eq!(depth, 2000);
        assert!(walk.shown().as_os_str().len() < SHOWN);
        ours(&top).remove(false).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn what_is_not_there_is_nothing() {
        assert!(matches!(
            find(Path::new("/nonexistent/x"), Some("m")).unwrap(),
            Found::Nothing
        ));
    }
}
