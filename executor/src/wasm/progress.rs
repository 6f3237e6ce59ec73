//! How far a guest's start has come, for its status page and the log.

use super::binding::Gauge;
use super::watch::Sample;
use crate::status::{Page, Phase};
use crate::{Error, Guest};
use nix::errno::Errno;
use proa_sys::errno::words;
use std::os::fd::AsFd;
use std::time::Instant;

/// The page, and since when the present phase lasts.
pub struct Progress {
    /// Where it is told.
    pub page: &'static Page,
    since: Instant,
}

impl Progress {
    /// Maps the page that the parent has made for the guest, if it has.
    pub fn start(guest: &Guest) -> Result<Self, Error> {
        let failed = |errno: Errno| Error::Status(words(errno));
        let file = guest.status.map(proa_sys::fd::claim).transpose().map_err(failed)?;
        let page = Page::map(file.as_ref().map(AsFd::as_fd)).map_err(failed)?;
        Ok(Self {
            page: Box::leak(Box::new(page)),
            since: Instant::now(),
        })
    }

    /// Begins the next phase after a time that was nobody's, like the wait for `start`.
    pub fn resume(&mut self) {
        self.since = Instant::now();
    }

    /// Notes that a phase is over, and that the next begins.
    pub fn is_over(&mut self, phase: Phase) {
        let now = Instant::now();
        let microseconds = now.duration_since(self.since).as_micros() as u64;
        self.page.phase(phase, microseconds);
        tracing::debug!("wasm: {}: {microseconds} µs", phase.name());
        self.since = now;
    }

    /// What is read of a running guest.
    pub fn sample(&self, gauge: &'static Gauge) -> Sample {
        let since = self.since;
        Box::new(move |page| {
            page.phase(Phase::Run, since.elapsed().as_micros() as u64);
            if let Some(pages) = gauge.pages() {
                page.pages(pages);
            }
            if let Some(instructions) = gauge.instructions() {
                page.instructions(instructions);
            }
        })
    }
}
