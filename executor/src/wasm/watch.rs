//! What ends a guest from outside, and what looks at it while it runs: signals, the grace period after them, the deadline,
//! and the answers to who asks for present values.
//!
//! The kernel drops a signal to the first process of a pid namespace unless that process handles it (pid_namespaces(7)),
//! and a guest has no way to handle any: without a handler, `SIGTERM` to a Wasm container would do nothing. The handlers
//! end the process, wherever the guest is just then: an engine can be asked to stop, but only notices between instructions,
//! not in a system call, and in code compiled ahead of time only if that was compiled for it.
//!
//! ```text
//!   SIGTERM, SIGINT, no grace       -> _exit(128 + n)
//!   SIGTERM, SIGINT, grace          -> timer --SIGALRM(GRACE)--> _exit(128 + n)      (a second one: _exit at once)
//!   first instruction, deadline     -> timer --SIGALRM(DEADLINE)--> _exit(142)
//! ```
//!
//! The observer is a second thread, which waits on a futex of the status page for a request. With a grace period it is also
//! who handles `SIGTERM` and `SIGINT`: a system call that the guest is in just then is not interrupted (the engine would
//! hand the guest an error that it never asked for). Where there can't be one, for want of pids or by a seccomp filter,
//! nobody answers, and the first thread handles all signals.
#![allow(unsafe_code)]

use super::process::exit_now;
use crate::policy::Limits;
use crate::status::{Ended, Page};
use crate::text;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::time::Duration;

/// The exit status of a guest whose time was over: what a shell reports for `SIGALRM`.
pub const TIMED_OUT: i32 = 128 + libc::SIGALRM;

/// Those whose default is to end a process and that somebody sends on purpose; and `SIGABRT`, with which the C++ library
/// ends the engine when there is no memory.
const ENDING: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGABRT,
    Signal::SIGALRM,
    Signal::SIGTERM,
];

/// Those after which there is a grace period.
const ASKING: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// What a timer's signal carries: which one it is.
const DEADLINE: usize = 1;
const GRACE: usize = 2;

/// When a guest has run for so long, what only loading needed is given back: most of what is in memory at first. One that ends
/// sooner would pay for bringing back what its end needs.
const SETTLED: Duration = Duration::from_millis(20);
/// As much as the observer needs and the C library allows.
const OBSERVER_STACK: usize = 64 * 1024;

/// Reads the present values and notes them on the page. Called from signal handlers and from another thread.
pub type Sample = Box<dyn Fn(&Page) + Send + Sync>;

/// All that handlers and the observer need: made before the handlers are set, and never freed.
pub struct Watch {
    page: &'static Page,
    sample: Sample,
    /// What is said on stderr when the deadline is over: a line.
    deadline_line: String,
    deadline: Option<Timer>,
    grace: Option<Timer>,
    /// The signal whose grace period runs, or 0.
    asked: AtomicI32,
}

/// The one of this process, once its handlers are set.
static WATCH: AtomicPtr<Watch> = AtomicPtr::new(null_mut());

impl Watch {
    /// From now on `SIGTERM` and its kind end this process with status 128 + n (after the grace period), a write to a closed
    /// pipe fails with `EPIPE` (which WASI can express), children that were left to this process are reaped by the kernel,
    /// and nothing is blocked. `path` is the module's, for messages.
    pub fn set(page: &'static Page, limits: &Limits, path: &str, sample: Sample) -> Result<&'static Self, Errno> {
        let timer = |after: Duration, what| (!after.is_zero()).then(|| Timer::new(after, what)).transpose();
        let deadline = limits.deadline.map(|after| after.max(Duration::from_nanos(1)));
        let watch: &'static Self = Box::leak(Box::new(Self {
            page,
            sample,
            deadline_line: match deadline {
                Some(after) => format!("proa: wasm deadline: {after:?} are over in {}\n", text::line(path)),
                None => String::new(),
            },
            deadline: timer(deadline.unwrap_or_default(), DEADLINE)?,
            grace: timer(limits.grace, GRACE)?,
            asked: AtomicI32::new(0),
        }));
        WATCH.store(std::ptr::from_ref(watch).cast_mut(), Ordering::Release);
        set_handlers()?;
        let nothing = SigSet::empty();
        nothing.thread_set_mask()?;
        Ok(watch)
    }

    /// Makes the observer, if that is possible, from which on somebody answers requests. The process has no right to lose
    /// any more: a thread has its own credentials and filters.
    pub fn observe(&'static self) {
        // It is born with this thread's mask.
        let asking: SigSet = ASKING.into_iter().collect();
        let all = SigSet::all();
        let made = all
            .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)
            .and_then(|before| {
                let made = spawn(self);
                let mine = match (&made, &self.grace) {
                    (Ok(()), Some(_)) => asking,
                    _ => before,
                };
                mine.thread_set_mask()?;
                made
            });
        if let Err(errno) = made {
            tracing::debug!("no observer of the guest: {errno}");
            proa_sys::memory::release();
        }
    }

    /// The guest's first instruction is next.
    pub fn start(&self) {
        if let Some(deadline) = &self.deadline
            && deadline.arm().is_err()
        {
            // Refused by a filter that allowed to make it: a guest without its bound must not run.
            self.out_of_time();
        }
    }

    /// Notes the present values on the page.
    pub fn look(&self) {
        (self.sample)(self.page);
    }

    fn on_signal(&self, signal: c_int, timer: Option<usize>) {
        match (timer, &self.grace) {
            (Some(DEADLINE), _) => self.out_of_time(),
            (Some(GRACE), _) => self.signalled(self.asked.load(Ordering::Acquire)),
            (_, Some(grace)) if ASKING.iter().any(|asking| *asking as c_int == signal) => {
                let first = self.asked.swap(signal, Ordering::AcqRel) == 0;
                if !first || grace.arm().is_err() {
                    self.signalled(signal);
                }
            }
            _ => self.signalled(signal),
        }
    }

    fn signalled(&self, signal: c_int) -> ! {
        self.look();
        let status = 128 + signal;
        let name = Signal::try_from(signal).map_or("a timer", Signal::as_str);
        self.page.ended(Ended::Signal, status, &[name.as_bytes()]);
        exit_now(status)
    }

    fn out_of_time(&self) -> ! {
        self.look();
        let line = self.deadline_line.as_bytes();
        self.page.ended(Ended::Deadline, TIMED_OUT, &[detail(line)]);
        say(line);
        exit_now(TIMED_OUT)
    }
}

/// A line for stderr without its `proa: wasm KIND: ` and its end.
fn detail(line: &[u8]) -> &[u8] {
    let start = line.windows(2).enumerate().filter(|(_, two)| *two == b": ").nth(1);
    let start = start.map_or(0, |(at, _)| at + 2);
    line[start..].strip_suffix(b"\n").unwrap_or(&line[start..])
}

/// Writes a line to stderr if that takes it at once: the process that reads it may be why the guest is late.
fn say(line: &[u8]) {
    let mut stderr = libc::pollfd {
        fd: libc::STDERR_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: poll(2) and write(2) are async-signal-safe; one valid pollfd; pointer and length are of one slice. A pipe that
    // is ready takes up to PIPE_BUF bytes without blocking, and a line is shorter.
    unsafe {
        if libc::poll(&raw mut stderr, 1, 0) == 1 && stderr.revents & libc::POLLOUT != 0 {
            let length = line.len().min(libc::PIPE_BUF);
            // Whether somebody reads it or not, the process ends.
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length);
        }
    }
}

fn set_handlers() -> Result<(), Errno> {
    // No handler interrupts another. A system call that was interrupted goes on, where the kernel can do that.
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_RESTART;
    let ending = SigAction::new(SigHandler::SigAction(handle), flags, SigSet::all());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    let actions = ENDING.map(|signal| (signal, &ending));
    let ignored = [(Signal::SIGPIPE, &ignore), (Signal::SIGCHLD, &ignore)];
    for (signal, action) in actions.into_iter().chain(ignored) {
        // SAFETY: the handler calls async-signal-safe functions only (see there); the process has no other handlers for
        // these.
        unsafe { sigaction(signal, action) }?;
    }
    Ok(())
}

/// Atomic loads and stores, timer_settime(2), poll(2), write(2) and _exit(2), and the two functions of the engine that a
/// [`Sample`] calls, which load a number: async-signal-safe, all of them.
extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the handlers are set after it is stored, and it is never freed.
    let Some(watch) = (unsafe { WATCH.load(Ordering::Acquire).as_ref() }) else {
        exit_now(128 + signal);
    };
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo, whose value is of a timer if its code says so.
    let timer = unsafe {
        let info = &*info;
        (info.si_code == libc::SI_TIMER).then(|| info.si_value().sival_ptr as usize)
    };
    watch.on_signal(signal, timer);
}

/// A timer that sends this process `SIGALRM`, once: timer_create(2).
struct Timer {
    id: libc::timer_t,
    after: libc::timespec,
}

// SAFETY: a timer's identity is a number that any thread may use.
unsafe impl Send for Timer {}
// SAFETY: as above.
unsafe impl Sync for Timer {}

impl Timer {
    /// `what` comes with the signal. It is set once in vain: where a seccomp filter refuses that, the guest is not started.
    fn new(after: Duration, what: usize) -> Result<Self, Errno> {
        let mut id = MaybeUninit::uninit();
        // SAFETY: a plain structure of numbers, for which all zeros are valid.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGALRM;
        event.sigev_value.sival_ptr = what as *mut c_void;
        // SAFETY: both pointers are valid during the call.
        Errno::result(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, id.as_mut_ptr()) })?;
        let after = libc::timespec {
            tv_sec: libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        // SAFETY: timer_create succeeded.
        let id = unsafe { id.assume_init() };
        let timer = Self { id, after };
        timer.set(libc::timespec { tv_sec: 0, tv_nsec: 0 })?;
        Ok(timer)
    }

    fn arm(&self) -> Result<(), Errno> {
        self.set(self.after)
    }

    fn set(&self, after: libc::timespec) -> Result<(), Errno> {
        let once = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: after,
        };
        // SAFETY: the timer exists as long as the process; the structure is valid during the call.
        Errno::result(unsafe { libc::timer_settime(self.id, 0, &raw const once, null_mut()) }).map(drop)
    }
}

/// Makes the observer's thread. Not by the standard library, whose threads come with a signal stack and a name.
fn spawn(watch: &'static Watch) -> Result<(), Errno> {
    let mut attributes = MaybeUninit::uninit();
    let mut thread = MaybeUninit::uninit();
    let check = |code: c_int| match code {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    };
    // SAFETY: the attributes are initialised by the first call and used by the others only if it succeeded; the thread gets
    // a pointer to what lives forever.
    unsafe {
        check(libc::pthread_attr_init(attributes.as_mut_ptr()))?;
        check(libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), OBSERVER_STACK))?;
        check(libc::pthread_attr_setdetachstate(
            attributes.as_mut_ptr(),
            libc::PTHREAD_CREATE_DETACHED,
        ))?;
        let argument = std::ptr::from_ref(watch).cast_mut().cast();
        check(libc::pthread_create(
            thread.as_mut_ptr(),
            attributes.as_ptr(),
            observe,
            argument,
        ))
    }
}

/// The observer.
extern "C" fn observe(watch: *mut c_void) -> *mut c_void {
    // SAFETY: it was made of a reference to what lives forever.
    let watch = unsafe { &*watch.cast_const().cast::<Watch>() };
    if watch.grace.is_some() {
        let asking: SigSet = ASKING.into_iter().collect();
        if asking.thread_unblock().is_err() {
            return null_mut();
        }
    }
    let (mut last, mut timeout) = (0, Some(SETTLED));
    // An error: the page can't be waited on (a seccomp filter). Then nobody answers.
    while let Ok(request) = watch.page.wait_request(last, timeout) {
        let Some(request) = request else {
            proa_sys::memory::release();
            timeout = None;
            continue;
        };
        watch.look();
        if watch.page.answer(request).is_err() {
            break;
        }
        last = request;
    }
    // With a grace period it has signals to handle all the same.
    while watch.grace.is_some() {
        // SAFETY: ppoll(2) without descriptors, timeout and mask waits for a signal.
        unsafe { libc::ppoll(null_mut(), 0, null(), null()) };
    }
    null_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_detail() {
        assert_eq!(
            detail(b"proa: wasm deadline: 5s are over in /a: b\n"),
            b"5s are over in /a: b"
        );
        assert_eq!(detail(b""), b"");
    }

    #[test]
    fn a_timer_can_be_made_and_set() {
        let timer = Timer::new(Duration::from_secs(3600), DEADLINE).unwrap();
        timer.arm().unwrap();
        timer.set(libc::timespec { tv_sec: 0, tv_nsec: 0 }).unwrap();
    }
}
