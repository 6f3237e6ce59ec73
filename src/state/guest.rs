//! What is known of a Wasm container's guest from outside: the page that its first process writes to
//! ([`proa_executor::status`]), which nobody has to believe, and what the kernel says of how it ended.

use super::container::GUEST;
use super::{Container, Error, Status};
use proa_executor::Hull;
use proa_executor::status::{Bell, SIZE, Snapshot};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// How long a running guest's process may take to answer: it has to be scheduled, on a busy machine and within the
/// container's share of it.
const PATIENCE: Duration = Duration::from_millis(250);

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// `exit`, `trap`, `deadline`, `fuel`, `signal`, `failed`; `oom` and `killed` if the process could not say it itself.
    pub how: &'static str,
    /// The exit status, as a shell reports it, if it is known.
    pub status: Option<u8>,
    /// In words; may be empty.
    pub detail: String,
}

impl Ending {
    /// Whether something stopped the guest, as opposed to its own end and to a signal that somebody sent.
    pub fn is_stopped(&self) -> bool {
        !matches!(self.how, "exit" | "signal" | "killed")
    }

    /// As annotations for `state`.
    pub fn annotations(&self) -> BTreeMap<&'static str, String> {
        let mut all = BTreeMap::from([("proa.wasm/ended", self.how.to_owned())]);
        if let Some(status) = self.status {
            all.insert("proa.wasm/ended-status", status.to_string());
        }
        if !self.detail.is_empty() {
            all.insert("proa.wasm/ended-detail", self.detail.clone());
        }
        all
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.how)?;
        if let Some(status) = self.status {
            write!(f, " (status {status})")?;
        }
        match self.detail.as_str() {
            "" => Ok(()),
            detail => write!(f, ": {detail}"),
        }
    }
}

impl Container {
    /// What the page says; `None` for a container without one, and before its first process has written to it.
    pub fn guest(&self) -> Result<Option<Snapshot>, Error> {
        let Some(file) = self.guest_page()? else {
            return Ok(None);
        };
        self.read_guest(&file)
    }

    /// As [`Container::guest`], with the present values of a running guest, if its process answers. The guest does not
    /// notice.
    pub fn guest_now(&self) -> Result<Option<Snapshot>, Error> {
        let Some(file) = self.guest_page()? else {
            return Ok(None);
        };
        match self.status() {
            Status::Running => self.ask_guest(&file)?,
            // A frozen process can't answer; another has nothing new to say.
            _ => return self.read_guest(&file),
        }
        self.read_guest(&file)
    }

    /// How the guest of a stopped container ended; `None` for one that isn't Wasm, or never came so far.
    pub fn ending(&self) -> Result<Option<Ending>, Error> {
        let Some(page) = self.guest()? else {
            return Ok(None);
        };
        if let Some((how, status, detail)) = page.ended {
            let (how, status) = (how.name(), Some(status));
            return Ok(Some(Ending { how, status, detail }));
        }
        // It had no time for a word.
        let out_of_memory = self
            .cgroup()
            .is_ok_and(|cgroup| cgroup.was_out_of_memory() == Some(true));
        let (how, status, detail) = match out_of_memory {
            true => ("oom", Some(137), "the kernel has killed it for want of memory"),
            false => ("killed", None, ""),
        };
        let detail = detail.into();
        Ok(Some(Ending { how, status, detail }))
    }

    fn guest_page(&self) -> Result<Option<File>, Error> {
        if self.record.hull != Hull::Wasm {
            return Ok(None);
        }
        let path = self.guest_path();
        match crate::files::open_own(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("open", &path)(error)),
        }
    }

    fn guest_path(&self) -> PathBuf {
        self.dir().join(GUEST)
    }

    fn read_guest(&self, file: &File) -> Result<Option<Snapshot>, Error> {
        let mut bytes = [0; SIZE];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(Snapshot::parse(&bytes)),
            // Whoever could shorten it has nothing to tell.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(Error::file("read", &self.guest_path())(error)),
        }
    }

    /// Asks the guest's process to bring the page up to date, and waits for it for a while.
    fn ask_guest(&self, file: &File) -> Result<(), Error> {
        let failed = |call| move |error: std::io::Error| Error::file(call, &self.guest_path())(error);
        let Some(before) = self.read_guest(file)?.map(|page| page.answer) else {
            return Ok(());
        };
        let bell = Bell::map(file.as_fd()).map_err(|errno| failed("mmap")(errno.into()))?;
        let request = before.wrapping_add(1);
        file.write_all_at(&request.to_ne_bytes(), Bell::REQUEST_AT)
            .map_err(failed("write"))?;
        match bell.ring(before, PATIENCE) {
            Ok(true) => {}
            Ok(false) => tracing::debug!("the Wasm guest of {} does not answer", self.id()),
            Err(errno) => return Err(failed("futex")(errno.into())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_told_in_a_line_and_as_annotations() {
        let ending = Ending {
            how: "deadline",
            status: Some(142),
            detail: "5s are over in /app.wasm".into(),
        };
        assert_eq!(ending.to_string(), "deadline (status 142): 5s are over in /app.wasm");
        assert!(ending.is_stopped());
        let annotations = ending.annotations();
        assert_eq!(annotations["proa.wasm/ended"], "deadline");
        assert_eq!(annotations["proa.wasm/ended-status"], "142");
        let exit = Ending {
            how: "exit",
            status: Some(0),
            detail: String::new(),
        };
        assert_eq!(
            (exit.to_string().as_str(), exit.annotations().len()),
            ("exit (status 0)", 2)
        );
        assert!(!exit.is_stopped());
        let killed = Ending {
            how: "killed",
            status: None,
            ..exit
        };
        assert_eq!((killed.to_string().as_str(), killed.annotations().len()), ("killed", 1));
    }
}
