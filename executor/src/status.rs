//! What a Wasm container's first process tells of its guest, on a page that it shares with whoever asks: a file in the
//! container's state directory, mapped before the process is confined ([`Page`]), and read from outside without the
//! guest's noticing ([`Snapshot`]).
//!
//! The layout is fixed and has a version: 64-bit words in the machine's byte order, no pointers, strings in fields of fixed
//! length. For a reader it is untrusted input: a guest that broke out of the engine can write anything to it. It can lie
//! then, about itself; a reader bounds and cleans what it reads.
//!
//! ```text
//!   word   0  MAGIC                 8  how the guest ended ([`Ended`]), 0 while it runs
//!          1  VERSION               9  with which exit status
//!          2  request (reader's)   10  linear memory, pages       12  instructions
//!          3  answer (process's)   11  the most pages it may have 13  whether they are counted
//!          4  phases begun         14  how the code is executed ([`Code`])
//!         16… microseconds of each [`Phase`]
//!         32… the engine's name and version, 64 bytes
//!         64… how it ended in words, 512 bytes
//! ```

use proa_sys::shared::{Shared, WORD};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes of the file.
pub const SIZE: usize = 4096;

const MAGIC: u64 = u64::from_be_bytes(*b"proawasm");
const VERSION: u64 = 1;

const VERSION_WORD: usize = 1;
const REQUEST: usize = 2;
const ANSWER: usize = 3;
const BEGUN: usize = 4;
const ENDED: usize = 8;
const EXIT: usize = 9;
const PAGES: usize = 10;
const PAGES_MAX: usize = 11;
const INSTRUCTIONS: usize = 12;
const COUNTED: usize = 13;
const CODE: usize = 14;
const PHASES: usize = 16;
const ENGINE: Field = Field { first: 32, words: 8 };
const DETAIL: Field = Field { first: 64, words: 64 };

/// A string's place; it ends with a zero byte, or with the field.
#[derive(Clone, Copy)]
struct Field {
    first: usize,
    words: usize,
}

/// The steps from the module's file to the guest's end, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The file is found in the container's root and looked at.
    Find,
    /// The engine is loaded.
    Engine,
    /// Compiled code is looked for in the cache, and made if that is waited for.
    Code,
    /// The module is read, and its limits are put into it; not if its compiled code is used.
    Read,
    /// The engine parses the module, or maps code compiled ahead of time.
    Load,
    /// The engine validates it.
    Validate,
    /// The engine links it and makes its memories and tables.
    Instantiate,
    /// The guest runs.
    Run,
}

/// All phases, in order.
pub const ALL_PHASES: [Phase; 8] = [
    Phase::Find,
    Phase::Engine,
    Phase::Code,
    Phase::Read,
    Phase::Load,
    Phase::Validate,
    Phase::Instantiate,
    Phase::Run,
];

impl Phase {
    /// Its name, as shown and logged.
    pub fn name(self) -> &'static str {
        match self {
            Self::Find => "find",
            Self::Engine => "engine",
            Self::Code => "code",
            Self::Read => "read",
            Self::Load => "load",
            Self::Validate => "validate",
            Self::Instantiate => "instantiate",
            Self::Run => "run",
        }
    }
}

/// Declares an enumeration whose members have a number on the page and a name.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$member_doc:meta])* $member:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$member_doc])* $member = $number,)* }

        impl $name {
            /// Its name, as shown.
            pub fn name(self) -> &'static str {
                match self { $(Self::$member => $text,)* }
            }

            fn from_number(number: u64) -> Option<Self> {
                match number { $($number => Some(Self::$member),)* _ => None }
            }
        }
    };
}

numbered! {
    /// How a guest ended.
    Ended {
        /// `_start` returned, or the guest called `proc_exit`.
        Exit = 1, "exit";
        /// It did what WebAssembly forbids.
        Trap = 2, "trap";
        /// Its time was over.
        Deadline = 3, "deadline";
        /// Its instructions were used up.
        Fuel = 4, "fuel";
        /// A signal that ends a process.
        Signal = 5, "signal";
        /// Something failed before its first instruction.
        Failed = 6, "failed";
    }
}

numbered! {
    /// How a module's code is executed.
    Code {
        /// Instruction by instruction: nothing was compiled, or compiled code isn't wanted.
        Interpreted = 1, "interpreted";
        /// Compiled code from the cache.
        CacheHit = 2, "cache-hit";
        /// Interpreted, as the cache has no code for this module.
        CacheMiss = 3, "cache-miss";
        /// Compiled code that came with the image, which the administrator trusts.
        Image = 4, "image";
    }
}

/// The page as the process that runs the guest has it. All of it can be called from a signal handler, and from any thread.
#[derive(Debug)]
pub struct Page(Shared);

impl Page {
    /// Maps `file`, of [`SIZE`] bytes, or memory that nobody else sees.
    pub fn map(file: Option<std::os::fd::BorrowedFd<'_>>) -> Result<Self, proa_sys::Errno> {
        const WORDS: NonZeroUsize = NonZeroUsize::new(SIZE / WORD).expect("a page has words");
        let shared = match file {
            Some(file) => Shared::map(file, WORDS)?,
            None => Shared::anonymous(WORDS)?,
        };
        let page = Self(shared);
        page.set(VERSION_WORD, VERSION);
        page.set(0, MAGIC);
        Ok(page)
    }

    /// There is no guest after all: nothing is to be read here.
    pub fn clear(&self) {
        self.set(0, 0);
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.0.words()[index]
    }

    fn set(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }

    /// Notes that a phase is over (or, for [`Phase::Run`], goes on) after so many microseconds.
    pub fn phase(&self, phase: Phase, microseconds: u64) {
        self.set(PHASES + phase as usize, microseconds);
        self.word(BEGUN).fetch_max(phase as u64 + 1, Ordering::Release);
    }

    /// Notes the engine's name and version.
    pub fn engine(&self, name: &str) {
        self.text(ENGINE, &[name.as_bytes()]);
    }

    /// Notes how the code is executed.
    pub fn code(&self, code: Code) {
        self.set(CODE, code as u64);
    }

    /// Notes the size of the linear memory, in pages.
    pub fn pages(&self, pages: u64) {
        self.set(PAGES, pages);
    }

    /// Notes the most pages that it may have.
    pub fn most_pages(&self, pages: u64) {
        self.set(PAGES_MAX, pages);
    }

    /// Notes how many instructions were executed.
    pub fn instructions(&self, instructions: u64) {
        self.set(INSTRUCTIONS, instructions);
        self.set(COUNTED, 1);
    }

    /// Notes how the guest ended, with which exit status, and in words, which are `detail` joined. The first to call it
    /// says the truth: a guest ends once.
    pub fn ended(&self, how: Ended, status: i32, detail: &[&[u8]]) {
        if self.word(ENDED).load(Ordering::Acquire) == 0 {
            self.set(EXIT, u64::from(status as u32));
            self.text(DETAIL, detail);
            self.set(ENDED, how as u64);
        }
    }

    /// Waits until somebody asks for present values, who then waits for [`Page::answer`]. Returns the request, or `None` if
    /// nobody did for as long as `timeout`.
    pub fn wait_request(&self, last: u64, timeout: Option<Duration>) -> Result<Option<u64>, proa_sys::Errno> {
        loop {
            match self.word(REQUEST).load(Ordering::Acquire) {
                same if same == last => {
                    if !self.0.wait(REQUEST, last, timeout)? {
                        return Ok(None);
                    }
                }
                request => return Ok(Some(request)),
            }
        }
    }

    /// Says that the values are of the time of `request` or later.
    pub fn answer(&self, request: u64) -> Result<(), proa_sys::Errno> {
        self.set(ANSWER, request);
        self.0.wake(ANSWER)
    }

    fn text(&self, field: Field, parts: &[&[u8]]) {
        let mut bytes = parts
            .iter()
            .flat_map(|part| part.iter().copied())
            .filter(|byte| *byte != 0);
        for index in field.first..field.first + field.words {
            let word: [u8; WORD] = std::array::from_fn(|_| bytes.next().unwrap_or(0));
            self.set(index, u64::from_ne_bytes(word));
        }
    }
}

/// What a page said at some moment, cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The engine's name and version; empty if it was not loaded.
    pub engine: String,
    /// How the module's code is executed; `None` if it was not loaded.
    pub code: Option<Code>,
    /// The phases that are over, or for [`Phase::Run`] under way, with their microseconds.
    pub phases: Vec<(Phase, u64)>,
    /// The linear memory's size in pages, if it is known.
    pub pages: Option<u64>,
    /// The most pages it may have, if there is a bound.
    pub most_pages: Option<u64>,
    /// The instructions executed, if they are counted.
    pub instructions: Option<u64>,
    /// How the guest ended: how, with which exit status, in words.
    pub ended: Option<(Ended, u8, String)>,
    /// Which request the values answer.
    pub answer: u64,
}

impl Snapshot {
    /// Reads the bytes of a page; `None` if they are not of this version, or nobody has written to them yet.
    pub fn parse(bytes: &[u8; SIZE]) -> Option<Self> {
        let word = |index: usize| {
            let bytes = bytes[index * WORD..].first_chunk().copied();
            u64::from_ne_bytes(bytes.unwrap_or_default())
        };
        if (word(0), word(VERSION_WORD)) != (MAGIC, VERSION) {
            return None;
        }
        let text = |field: Field| clean(&bytes[field.first * WORD..(field.first + field.words) * WORD]);
        let known = |value: u64| (value != 0).then_some(value);
        let begun = word(BEGUN).min(ALL_PHASES.len() as u64) as usize;
        Some(Self {
            engine: text(ENGINE),
            code: Code::from_number(word(CODE)),
            phases: ALL_PHASES[..begun]
                .iter()
                .map(|phase| (*phase, word(PHASES + *phase as usize)))
                .collect(),
            pages: known(word(PAGES)),
            most_pages: known(word(PAGES_MAX)),
            instructions: (word(COUNTED) == 1).then(|| word(INSTRUCTIONS)),
            ended: Ended::from_number(word(ENDED)).map(|how| (how, word(EXIT) as u8, text(DETAIL))),
            answer: word(ANSWER),
        })
    }
}

/// Bytes up to the first zero as text for a terminal: what is no character, or none that is seen, becomes `?`.
fn clean(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let visible = |letter: char| match letter {
        '\u{fffd}' => '?',
        letter if crate::text::is_obeyed(letter) => '?',
        letter => letter,
    };
    String::from_utf8_lossy(&bytes[..end]).chars().map(visible).collect()
}

/// The reader's side of a request for present values: where it is in the file, and which words tell of the answer. What
/// lies there is never touched in this process's memory, only by system calls: see [`Shared::map`].
#[derive(Debug)]
pub struct Bell(Shared);

impl Bell {
    /// Offset of the word to count up, and then [`Bell::ring`].
    pub const REQUEST_AT: u64 = (REQUEST * WORD) as u64;

    /// Maps the page's file.
    pub fn map(file: std::os::fd::BorrowedFd<'_>) -> Result<Self, proa_sys::Errno> {
        const WORDS: NonZeroUsize = NonZeroUsize::new(SIZE / WORD).expect("a page has words");
        Shared::map(file, WORDS).map(Self)
    }

    /// Wakes the process that waits for a request, and waits until it has answered something else than `before`; false
    /// if it does not in time.
    pub fn ring(&self, before: u64, patience: Duration) -> Result<bool, proa_sys::Errno> {
        self.0.wake(REQUEST)?;
        self.0.wait(ANSWER, before, Some(patience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(page: &Page) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        for (at, word) in bytes.chunks_exact_mut(WORD).zip(page.0.words()) {
            at.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let page = Page::map(None).unwrap();
        page.engine("WasmEdge 0.17.1");
        page.code(Code::Interpreted);
        page.phase(Phase::Find, 12);
        page.phase(Phase::Engine, 3400);
        page.pages(17);
        let running = Snapshot::parse(&bytes(&page)).unwrap();
        assert_eq!(running.phases, [(Phase::Find, 12), (Phase::Engine, 3400)]);
        assert_eq!(
            (running.pages, running.most_pages, running.instructions),
            (Some(17), None, None)
        );
        assert_eq!((running.engine.as_str(), running.ended), ("WasmEdge 0.17.1", None));
        page.instructions(0);
        page.ended(Ended::Trap, 134, &[b"unreachable", b" in ", b"/app.wasm"]);
        page.ended(Ended::Exit, 0, &[b"later"]);
        let ended = Snapshot::parse(&bytes(&page)).unwrap();
        assert_eq!(ended.instructions, Some(0));
        assert_eq!(ended.ended, Some((Ended::Trap, 134, "unreachable in /app.wasm".into())));
        page.clear();
        assert_eq!(Snapshot::parse(&bytes(&page)), None);
    }

    #[test]
    fn texts_are_cut_and_cleaned() {
        let page = Page::map(None).unwrap();
        page.engine(&"x".repeat(1000));
        page.ended(Ended::Exit, 0, &[b"a\x1b[2Jb\xff\0c\n"]);
        let read = Snapshot::parse(&bytes(&page)).unwrap();
        assert_eq!(read.engine, "x".repeat(ENGINE.words * WORD));
        assert_eq!(read.ended.unwrap().2, "a?[2Jb?c?");
    }

    #[test]
    fn any_bytes_are_read_without_harm() {
        assert_eq!(Snapshot::parse(&[0; SIZE]), None);
        let mut next = crate::fuzz::numbers(1);
        for _ in 0..2000 {
            let mut random = [0u8; SIZE];
            for word in random.chunks_exact_mut(8) {
                let value = next();
                // Small numbers too, which mean something.
                let value = if value >> 63 == 0 { value } else { value >> 60 };
                word.copy_from_slice(&value.to_ne_bytes());
            }
            random[..8].copy_from_slice(&MAGIC.to_ne_bytes());
            random[8..16].copy_from_slice(&VERSION.to_ne_bytes());
            let read = Snapshot::parse(&random).unwrap();
            assert!(read.phases.len() <= ALL_PHASES.len());
            assert!(!read.engine.chars().any(char::is_control));
        }
    }

    #[test]
    fn a_request_is_answered() {
        let page = Page::map(None).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let request = page.wait_request(0, None).unwrap().unwrap();
                page.pages(5);
                page.answer(request).unwrap();
            });
            page.set(REQUEST, 1);
            page.0.wake(REQUEST).unwrap();
            while page.word(ANSWER).load(Ordering::Acquire) != 1 {
                page.0.wait(ANSWER, 0, None).unwrap();
            }
        });
        assert_eq!(Snapshot::parse(&bytes(&page)).unwrap().pages, Some(5));
    }
}
