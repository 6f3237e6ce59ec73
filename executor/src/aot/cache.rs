//! The directory of compiled code: one file a key, which is replaced and removed but never changed.
//!
//! What is mapped from here runs as a container's first process. So the directory and each file must belong to root, or to
//! the caller, and be writable by nobody else; and each file's digest is looked at each time. What is not as it should be is as
//! good as absent.

use super::entry::{self, Damage, Facts};
use super::{Key, Target};
use crate::from_start::FromStart;
use proa_sys::errno::Raw;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The permissions of the directory, of its files, and what nobody else may have: code is no secret, and a container's user
/// has to be able to map it.
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
const OTHERS_WRITE: u32 = 0o022;
const OTHERS: u32 = 0o077;
/// When a use is noted again: for telling what was used lately an hour is exact enough, and a start then writes nothing.
const TOUCH_EVERY: Duration = Duration::from_secs(3600);
/// How long a failure is remembered: other limits, another load of the machine, or a signal from outside that looked like a crash
/// may make the next try succeed.
const FAILURE_KEPT: Duration = Duration::from_secs(24 * 3600);
/// The ends of other files' names.
const FAILED: &str = ".failed";
const LOCK: &str = ".lock";
/// The lock of all entries.
const ALL: &str = ".all.lock";
/// What names of files begin with that are being made.
const NEW: &str = ".new-";
/// The longest reason that is kept of a module that doesn't compile.
const REASON_MAX: u64 = 1024;

/// Why the cache can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call failed.
    #[error("cache of compiled code: {call} {path}: {source}", path = path.display())]
    File {
        /// The call.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others than its owner could have put something there.
    #[error("cache of compiled code: {path} {problem}: it is not used", path = path.display())]
    Untrusted {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Somebody holds a lock and does not give it back.
    #[error("cache of compiled code: {path}: another process keeps it locked")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// More than all entries together may have.
    #[error("cache of compiled code: {path}: {size} bytes of code are more than the {max} that the cache may have", path = path.display())]
    TooLarge {
        /// The directory.
        path: PathBuf,
        /// Bytes of the entry.
        size: u64,
        /// Bytes of the cache.
        max: u64,
    },
}

/// How to wait for a lock that another process has: locks the open file (flock(2), `LOCK_EX`), or says false if it is not to be
/// had. Whoever holds one may be stopped for ever, so that this has to end, and to hear the signals that are to end the caller.
pub type Wait<'a, E> = dyn Fn(BorrowedFd<'_>) -> Result<bool, E> + 'a;

/// Does not wait.
pub fn at_once<E>(_: BorrowedFd<'_>) -> Result<bool, E> {
    Ok(false)
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    directory: OwnedFd,
    path: PathBuf,
}

/// What was looked for.
#[derive(Debug)]
pub enum Found {
    /// It is there, whole and ours.
    Code(Facts),
    /// It isn't there.
    Nothing,
    /// There is something that is not to be used, for this reason.
    Unusable(String),
}

/// An entry as it is listed.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its key.
    pub key: Key,
    /// Bytes on the disk.
    pub size: u64,
    /// When it was last used, or made.
    pub used: SystemTime,
    /// When it was made.
    pub made: SystemTime,
    /// What it says of itself, or what is wrong with it.
    pub facts: Result<Facts, String>,
}

/// The right to make one key's code, until it is dropped or its last process ends.
#[derive(Debug)]
pub struct Lock {
    file: OwnedFd,
}

/// The right to compile, of which there are only some.
#[derive(Debug)]
pub struct Turn {
    name: String,
    lock: Lock,
}

impl Lock {
    /// Takes over a lock from the process that this one was started by.
    pub fn inherited(file: OwnedFd) -> Self {
        Self { file }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Cache {
    /// Opens the directory; `None` if there is none.
    pub fn open(path: &Path) -> Result<Option<Self>, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(failed("open", path))?,
        };
        let stat = rustix::fs::fstat(&directory).map_err(failed("fstat", path))?;
        if let Some(problem) = distrust(&stat) {
            return Err(Error::Untrusted {
                path: path.into(),
                problem,
            });
        }
        Ok(Some(Self {
            directory,
            path: path.into(),
        }))
    }

    /// Opens the directory, which is made if there is none.
    pub fn make(path: &Path) -> Result<Self, Error> {
        let io = |call| {
            move |source| Error::File {
                call,
                path: path.into(),
                source,
            }
        };
        if let Some(cache) = Self::open(path)? {
            return Ok(cache);
        }
        let mut builder = std::fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(path)
            .map_err(io("mkdir"))?;
        let gone = || io("open")(std::io::ErrorKind::NotFound.into());
        let cache = Self::open(path)?.ok_or_else(gone)?;
        // The caller's umask may have taken what a container's user needs.
        rustix::fs::fchmod(&cache.directory, Mode::from_raw_mode(DIRECTORY_MODE)).map_err(failed("chmod", path))?;
        Ok(cache)
    }

    fn busy(&self) -> Error {
        Error::Busy {
            path: self.path.clone(),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn open_file(&self, name: &str) -> Result<(File, Stat), Errno> {
        // Not to wait for what is no regular file.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // To look at a file is not to use it.
        let file = match rustix::fs::openat(&self.directory, name, flags | OFlags::NOATIME, Mode::empty()) {
            // Root's, and the caller is another.
            Err(Errno::PERM) => rustix::fs::openat(&self.directory, name, flags, Mode::empty())?,
            other => other?,
        };
        let stat = rustix::fs::fstat(&file)?;
        Ok((file.into(), stat))
    }

    /// Looks for the code of `key`, and at all of it. What is found was used now.
    pub fn find(&self, key: &Key) -> Found {
        let (file, stat) = match self.open_file(&key.file_name()) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Found::Nothing,
            Err(errno) => return Found::Unusable(format!("open: {}", errno.raw())),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Found::Unusable("it is no regular file".into());
        }
        if let Some(problem) = distrust(&stat) {
            return Found::Unusable(problem);
        }
        match entry::verify(&file, stat.st_size as u64, key) {
            Ok(facts) => {
                self.touch(&file, &stat);
                Found::Code(facts)
            }
            Err(damage) => Found::Unusable(damage.to_string()),
        }
    }

    /// What has become of `key`, for who holds its lock now and looked before: whether there is code, or it was tried and there
    /// can't be any. `None` if it is to be made.
    pub fn outcome(&self, key: &Key) -> Option<bool> {
        match self.find(key) {
            Found::Code(_) => Some(true),
            _ => self.failure(key).map(|_| false),
        }
    }

    /// Notes that an entry was used. On a file system that can't be written to, nothing is removed for its age either.
    fn touch(&self, file: &File, stat: &Stat) {
        let lately = used(stat).elapsed().is_ok_and(|age| age < TOUCH_EVERY);
        if lately {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: now.as_secs() as i64,
                tv_nsec: now.subsec_nanos().into(),
            },
            last_modification: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
        };
        if let Err(errno) = rustix::fs::futimens(file, &times) {
            tracing::debug!("{}: futimens: {errno}", self.path.display());
        }
    }

    /// Keeps `code`, read from its start, as the code of `key`, in place of what was there; the caller has the key's lock. So that all entries together have
    /// at most `max` bytes, those that were not used for the longest time are removed.
    pub fn publish<E: From<Error>>(
        &self,
        key: &Key,
        target: &Target,
        code: &File,
        max: u64,
        wait: &Wait<'_, E>,
    ) -> Result<u64, E> {
        let name = key.file_name();
        let io = |call| {
            let path = self.at(&name);
            move |source| Error::File { call, path, source }
        };
        let temporary = format!("{NEW}{key}");
        // One that was killed at it, and held the key's lock as this caller does, may have left it.
        self.unlink(&temporary)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("create", &self.at(&temporary)))?;
        let file = File::from(file);
        let written = (|| -> Result<u64, E> {
            let size = entry::write(FromStart::new(code), key, target, &file).map_err(io("write"))?;
            if size > max {
                let path = self.path.clone();
                return Err(Error::TooLarge { path, size, max }.into());
            }
            rustix::fs::fchmod(&file, Mode::from_raw_mode(FILE_MODE)).map_err(failed("chmod", &self.at(&name)))?;
            // Whole or not there, also after the machine has lost its power.
            file.sync_all().map_err(io("fsync"))?;
            self.make_room(max - size, Some(key), wait)?;
            rustix::fs::renameat(&self.directory, temporary.as_str(), &self.directory, name.as_str())
                .map_err(failed("rename", &self.at(&name)))?;
            Ok(size)
        })();
        self.unlink(&match &written {
            Ok(_) => format!("{key}{FAILED}"),
            Err(_) => temporary,
        })?;
        written
    }

    /// Removes the entries that were used longest ago until the others have at most `max` bytes; `spared` is about to be
    /// replaced. What it removed.
    fn make_room<E: From<Error>>(&self, max: u64, spared: Option<&Key>, wait: &Wait<'_, E>) -> Result<Vec<Listed>, E> {
        let Some(alone) = self.exclusively(wait)? else {
            return Err(self.busy().into());
        };
        let mut all = self.list()?;
        all.retain(|one| Some(&one.key) != spared);
        all.sort_by_key(|one| one.used);
        let mut total: u64 = all.iter().map(|one| one.size).sum();
        let mut removed = Vec::new();
        for one in all {
            if total <= max {
                break;
            }
            tracing::debug!("{}: removing {}, to make room", self.path.display(), one.key);
            self.unlink(&one.key.file_name())?;
            total -= one.size;
            removed.push(one);
        }
        self.release(ALL, alone)?;
        Ok(removed)
    }

    /// Removes entries that were not used for `older`, then those that were used longest ago until at most `max` bytes are
    /// left; and what processes that were killed have left. What it removed of the entries.
    pub fn prune<E: From<Error>>(
        &self,
        max: Option<u64>,
        older: Option<Duration>,
        wait: &Wait<'_, E>,
    ) -> Result<Vec<Listed>, E> {
        let mut removed = Vec::new();
        if let Some(older) = older {
            let stale = |one: &Listed| one.used.elapsed().is_ok_and(|age| age >= older);
            for one in self.list()?.into_iter().filter(stale) {
                self.remove(&one.key)?;
                removed.push(one);
            }
        }
        self.sweep(wait)?;
        removed.extend(self.make_room(max.unwrap_or(u64::MAX), None, wait)?);
        Ok(removed)
    }

    /// Removes an entry, and what is known of its failures. Whether there was one.
    pub fn remove(&self, key: &Key) -> Result<bool, Error> {
        let failed = self.unlink(&format!("{key}{FAILED}"))?;
        Ok(self.unlink(&key.file_name())? || failed)
    }

    fn unlink(&self, name: &str) -> Result<bool, Error> {
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed("unlink", &self.at(name))(errno)),
        }
    }

    /// Names that `wanted` accepts.
    fn names(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, Error> {
        let unread = |errno| failed("readdir", &self.path)(errno);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.directory).map_err(unread)? {
            let entry = entry.map_err(unread)?;
            if let Ok(name) = entry.file_name().to_str()
                && wanted(name)
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Whether there is no entry at all.
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.names(|name| Key::of_file(name).is_some())?.is_empty())
    }

    /// All entries, in the order of their keys.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut all = Vec::new();
        for name in self.names(|name| Key::of_file(name).is_some())? {
            let Some(key) = Key::of_file(&name) else { continue };
            let (file, stat) = match self.open_file(&name) {
                Ok(opened) => opened,
                // Removed just now, or nothing that could be an entry.
                Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => continue,
                Err(errno) => return Err(failed("open", &self.at(&name))(errno)),
            };
            let facts = match distrust(&stat) {
                Some(problem) => Err(problem),
                None => entry::describe(&file, stat.st_size as u64).map_err(|damage: Damage| damage.to_string()),
            };
            all.push(Listed {
                key,
                size: stat.st_size as u64,
                used: used(&stat),
                made: time(stat.st_mtime, stat.st_mtime_nsec),
                facts,
            });
        }
        all.sort_by_key(|one| one.key);
        Ok(all)
    }

    /// Removes what processes that were killed have left: half-made files, and locks that nobody holds.
    fn sweep<E: From<Error>>(&self, wait: &Wait<'_, E>) -> Result<(), E> {
        let Some(alone) = self.exclusively(wait)? else {
            return Ok(());
        };
        for name in self.names(|name| name.starts_with(NEW))? {
            let lock = format!(".{}{LOCK}", &name[NEW.len()..]);
            if let Some(_held) = self.take(&lock, &at_once)? {
                self.unlink(&name)?;
            }
        }
        for name in self.names(|name| name.ends_with(LOCK))? {
            if let Some(lock) = self.take(&name, &at_once)? {
                self.release(&name, lock)?;
            }
        }
        Ok(self.release(ALL, alone)?)
    }

    /// Held while entries are counted and removed. `None`: whoever has it does not give it back.
    fn exclusively<E: From<Error>>(&self, wait: &Wait<'_, E>) -> Result<Option<Lock>, E> {
        self.take(ALL, wait)
    }

    /// Takes the right to make the code of `key`; `None` if `wait` says that it is not to be had.
    pub fn lock<E: From<Error>>(&self, key: &Key, wait: &Wait<'_, E>) -> Result<Option<Lock>, E> {
        self.take(&format!(".{key}{LOCK}"), wait)
    }

    /// Takes one of the rights to compile, of which there are `count`: one that is free, or, as `wait` says, the one that this
    /// key's number falls to.
    pub fn turn<E: From<Error>>(&self, key: &Key, count: NonZeroU32, wait: &Wait<'_, E>) -> Result<Option<Turn>, E> {
        let name = |number: u32| format!(".turn-{number}{LOCK}");
        for name in (0..count.get()).map(name) {
            if let Some(lock) = self.take(&name, &at_once)? {
                return Ok(Some(Turn { name, lock }));
            }
        }
        let name = name(u32::from(key.module()[0]) % count);
        Ok(self.take(&name, wait)?.map(|lock| Turn { name, lock }))
    }

    /// Gives a turn back and removes its file.
    pub fn end_turn(&self, turn: Turn) -> Result<(), Error> {
        self.release(&turn.name, turn.lock)
    }

    /// Locks a file of the directory which nobody but its owner can open: flock(2) asks for no right but that.
    fn take<E: From<Error>>(&self, name: &str, wait: &Wait<'_, E>) -> Result<Option<Lock>, E> {
        let path = self.at(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut made_anew = false;
        loop {
            let file = rustix::fs::openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)
                .map_err(failed("open", &path))?;
            let own = rustix::fs::fstat(&file).map_err(failed("fstat", &path))?;
            if distrust(&own).is_some() || own.st_mode & OTHERS != 0 {
                if made_anew {
                    // The file system gives all files one mode.
                    let problem = format!("has mode {:04o}: others can lock it", own.st_mode & 0o7777);
                    return Err(Error::Untrusted { path, problem }.into());
                }
                // Of a cache that was copied, say: others may have it open, and in this directory they make no other.
                self.unlink(name)?;
                made_anew = true;
                continue;
            }
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if !wait(file.as_fd())? => return Ok(None),
                Err(Errno::WOULDBLOCK) => {}
                other => other.map_err(failed("flock", &path))?,
            }
            // Whoever had it may have removed the file, and another one may hold a new one.
            let same = rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW);
            if same.is_ok_and(|same| (same.st_dev, same.st_ino) == (own.st_dev, own.st_ino)) {
                return Ok(Some(Lock { file }));
            }
        }
    }

    /// Gives a key's lock back and removes its file.
    pub fn unlock(&self, key: &Key, lock: Lock) -> Result<(), Error> {
        self.release(&format!(".{key}{LOCK}"), lock)
    }

    fn release(&self, name: &str, lock: Lock) -> Result<(), Error> {
        self.unlink(name)?;
        drop(lock);
        Ok(())
    }

    /// Remembers that `key`'s module does not compile, so that not every start tries again.
    pub fn mark_failed(&self, key: &Key, reason: &str) -> Result<(), Error> {
        let name = format!("{key}{FAILED}");
        self.unlink(&name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(FILE_MODE);
        let file = rustix::fs::openat(&self.directory, name.as_str(), flags, mode)
            .map_err(failed("create", &self.at(&name)))?;
        let path = self.at(&name);
        let written = File::from(file).write_all(reason.as_bytes());
        written.map_err(|source| Error::File {
            call: "write",
            path,
            source,
        })
    }

    /// All keys whose modules did not compile, and why.
    pub fn failures(&self) -> Result<Vec<(Key, String)>, Error> {
        let names = self.names(|name| name.ends_with(FAILED))?;
        let keys = names.iter().filter_map(|name| name.strip_suffix(FAILED)?.parse().ok());
        let mut all: Vec<(Key, String)> = keys.filter_map(|key| Some((key, self.failure(&key)?))).collect();
        all.sort_by_key(|(key, _)| *key);
        Ok(all)
    }

    /// Why `key`'s module did not compile, if it was tried lately.
    pub fn failure(&self, key: &Key) -> Option<String> {
        let (file, stat) = self.open_file(&format!("{key}{FAILED}")).ok()?;
        let age = time(stat.st_mtime, stat.st_mtime_nsec).elapsed().unwrap_or_default();
        if distrust(&stat).is_some() || age > FAILURE_KEPT {
            return None;
        }
        let mut reason = Vec::new();
        let read = file.take(REASON_MAX).read_to_end(&mut reason);
        read.ok().map(|_| String::from_utf8_lossy(&reason).into_owned())
    }
}

impl AsFd for Cache {
    /// The directory, below which an entry's file is named by its key.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn flock(file: &OwnedFd, operation: FlockOperation) -> Result<(), Errno> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Why what has these facts can't be trusted, if so.
fn distrust(stat: &Stat) -> Option<String> {
    let caller = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != caller {
        return Some(format!("belongs to uid {}, neither root nor the caller", stat.st_uid));
    }
    let mode = stat.st_mode & 0o7777;
    (mode & OTHERS_WRITE != 0).then(|| format!("has mode {mode:04o}: others can write to it"))
}

/// When it was read or written last, as far as the file system notes it.
fn used(stat: &Stat) -> SystemTime {
    time(stat.st_atime, stat.st_atime_nsec).max(time(stat.st_mtime, stat.st_mtime_nsec))
}

#[allow(
    clippy::useless_conversion,
    clippy::unnecessary_cast,
    reason = "types differ by architecture"
)]
fn time(seconds: impl TryInto<u64>, nanoseconds: impl TryInto<u32>) -> SystemTime {
    let since = Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
    UNIX_EPOCH + since
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::File {
        call,
        path: path.into(),
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests;
