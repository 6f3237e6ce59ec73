//! Where the Wasm hull and its engine are: asked by `proa`, before it starts a container's init.
//!
//! | what | looked for, first match counts |
//! |---|---|
//! | `proa-wasmedge` | beside proa; `../lib/proa/`; `../libexec/proa/` |
//! | the engine | `PROA_ENGINE_DIR`; `wasm.engine-dir` of the configuration file; `../lib/proa/engine`; `../engine/current` |
//!
//! A directory with its own dynamic loader (`ld.so`) is a private prefix: it starts the hull through that loader, so that an
//! engine built for a newer C library runs on an older system. Without one the hull is started through the system's loader.
//! In both cases the loader is told where to look first: in directories that `proa` has opened for it, so that nothing that is
//! mapped in a container is a file that can be written to. Without a directory the loader's cache says where the engine is.

use crate::wasm::loader_cache;
use proa_sys::mapped::Mapped;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Names the directory with the engine (`libwasmedge.so.0`); see [`crate::wasm`].
pub const ENGINE_DIR: &str = "PROA_ENGINE_DIR";
/// The path of that directory, for messages, where [`ENGINE_DIR`] is a name of what was opened.
pub const ENGINE_PLACE: &str = "PROA_ENGINE_PLACE";
/// The engine's name as the dynamic loader knows it.
pub const LIBRARY: &str = "libwasmedge.so.0";

/// The Wasm hull's file name.
const HULL: &str = "proa-wasmedge";
/// The dynamic loader of a private prefix, by a name that is the same on every architecture.
const LOADER: &str = "ld.so";

/// An argument of an init image, or the value of a variable of its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// As it stands.
    Text(OsString),
    /// To be opened by the caller and given as `/proc/self/fd/N`: the init image may be started as a user who can't get
    /// there by the path (root of a user namespace, and a checkout in the home directory of the host's root).
    Opened(PathBuf),
    /// Directories to be opened in that way, and given as a list with colons.
    Search(Vec<PathBuf>),
}

/// How to start an init image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The file to execute.
    pub program: PathBuf,
    /// argv, up to init's own arguments.
    pub args: Vec<Argument>,
    /// The environment of the hull itself, by name; nothing of the caller's environment (`LD_PRELOAD`) gets there.
    pub env: Vec<(&'static str, Argument)>,
}

impl Image {
    /// All that is opened for it. What the loader searches comes first.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let arguments = || self.args.iter().chain(self.env.iter().map(|(_, value)| value));
        let searched = arguments().flat_map(|argument| match argument {
            Argument::Search(paths) => &paths[..],
            _ => &[],
        });
        let opened = arguments().filter_map(|argument| match argument {
            Argument::Opened(path) => Some(path),
            _ => None,
        });
        searched.chain(opened).chain([&self.program]).map(PathBuf::as_path)
    }
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Wasm hull isn't installed.
    #[error("the init for Wasm, {HULL}, isn't installed; looked for {}", list(.looked_for))]
    NotFound {
        /// Paths tried.
        looked_for: Vec<PathBuf>,
    },
    /// proa doesn't know where it is itself.
    #[error("readlink /proc/self/exe: {0}")]
    Exe(std::io::Error),
}

/// How to start the Wasm hull that belongs to this executable. `configured` is the engine's directory by the configuration
/// file; what this process's environment says comes first.
pub fn wasm_hull(configured: Option<&Path>) -> Result<Image, Error> {
    let exe = std::env::current_exe().map_err(Error::Exe)?;
    let dir = std::env::var_os(ENGINE_DIR)
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from);
    locate(&exe, dir.as_deref().or(configured), Path::exists, System)
}

/// What the system has, asked only where there is no private prefix.
trait Loaders {
    /// The dynamic loader that a program names, with all links followed.
    fn of(&self, program: &Path) -> Option<PathBuf>;
    /// The directory where that finds the engine.
    fn engine(&self) -> Option<PathBuf>;
}

struct System;

impl Loaders for System {
    fn of(&self, program: &Path) -> Option<PathBuf> {
        let mut head = Vec::new();
        File::open(program).ok()?.take(4096).read_to_end(&mut head).ok()?;
        interpreter(&head)?.canonicalize().ok()
    }

    fn engine(&self) -> Option<PathBuf> {
        let cache = Mapped::open(&File::open(loader_cache::PATH).ok()?).ok()?;
        let library = loader_cache::find(&cache, LIBRARY)?;
        library.exists().then_some(library.parent()?.to_owned())
    }
}

/// The dynamic loader that a 64-bit ELF program names in its first bytes (elf(5), `PT_INTERP`).
fn interpreter(head: &[u8]) -> Option<&Path> {
    const CLASS_64: &[u8] = b"\x7fELF\x02";
    const PT_INTERP: u64 = 3;
    /// Executables have a dozen.
    const MOST: u64 = 64;
    let number = |at: usize, size: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(head.get(at..at.checked_add(size)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    if !head.starts_with(CLASS_64) {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    // What is beyond the first bytes is not looked at: a header of no size would be seen as often as there are headers.
    let mut headers = (0..count.min(MOST)).map_while(|index| {
        let at = usize::try_from(table.checked_add(index * size)?).ok()?;
        Some((at, number(at, 4)?))
    });
    let (header, _) = headers.find(|(_, kind)| *kind == PT_INTERP)?;
    let start = usize::try_from(number(header + 8, 8)?).ok()?;
    let end = start.checked_add(usize::try_from(number(header + 32, 8)?).ok()?)?;
    let name = head.get(start..end)?.strip_suffix(b"\0")?;
    Some(Path::new(OsStr::from_bytes(name))).filter(|path| path.is_absolute())
}

/// Where that hull is.
pub fn hull_path() -> Result<PathBuf, Error> {
    let exe = std::env::current_exe().map_err(Error::Exe)?;
    let hulls = hulls(&exe);
    match hulls.iter().find(|path| path.exists()) {
        Some(hull) => Ok(hull.clone()),
        None => Err(Error::NotFound {
            looked_for: hulls.into(),
        }),
    }
}

/// Where it is looked for.
fn hulls(exe: &Path) -> [PathBuf; 3] {
    let here = exe.parent().unwrap_or(Path::new("/"));
    let above = here.parent().unwrap_or(here);
    [
        here.join(HULL),
        above.join("lib/proa").join(HULL),
        above.join("libexec/proa").join(HULL),
    ]
}

fn locate(
    exe: &Path,
    engine_dir: Option<&Path>,
    exists: impl Fn(&Path) -> bool,
    system: impl Loaders,
) -> Result<Image, Error> {
    let here = exe.parent().unwrap_or(Path::new("/"));
    let above = here.parent().unwrap_or(here);
    let hulls = hulls(exe);
    let Some(hull) = hulls.iter().find(|path| exists(path)) else {
        return Err(Error::NotFound {
            looked_for: hulls.into(),
        });
    };
    let prefixes = match engine_dir {
        Some(dir) => vec![dir.to_owned()],
        None => vec![above.join("lib/proa/engine"), above.join("engine/current")],
    };
    let prefix = prefixes.iter().find(|prefix| exists(&prefix.join(LOADER)));
    if let Some(prefix) = prefix {
        let loader = prefix.join(LOADER);
        let mut image = through(loader, vec![prefix.clone()], hull, Some(prefix));
        let name = ["--argv0", HULL].map(|text| Argument::Text(text.into()));
        image.args.splice(3..3, name);
        return Ok(image);
    }
    let named = match engine_dir {
        Some(dir) => Some(dir.to_owned()),
        None => system.engine(),
    };
    // A directory that isn't there is for the hull to miss.
    let there = named.as_deref().filter(|dir| exists(dir));
    if let Some(loader) = system.of(hull)
        && let Some(libraries) = loader.parent()
    {
        let searched = there.into_iter().chain([libraries]).map(Path::to_owned).collect();
        let mut image = through(loader, searched, hull, there);
        if let (None, Some(dir)) = (there, &named) {
            image.env.push((ENGINE_DIR, Argument::Text(dir.into())));
        }
        return Ok(image);
    }
    let text = |text: &str| Argument::Text(text.into());
    Ok(Image {
        program: hull.clone(),
        args: vec![text(HULL), text("init")],
        env: named
            .map(|dir| (ENGINE_DIR, Argument::Text(dir.into())))
            .into_iter()
            .collect(),
    })
}

/// The hull, started through `loader`, which searches these directories first; `engine` is the one with the engine. Loaders know
/// `--argv0` since glibc 2.33 only.
fn through(loader: PathBuf, searched: Vec<PathBuf>, hull: &Path, engine: Option<&Path>) -> Image {
    let text = |text: &str| Argument::Text(text.into());
    let env = engine.into_iter().flat_map(|dir| {
        [
            (ENGINE_DIR, Argument::Opened(dir.to_owned())),
            (ENGINE_PLACE, Argument::Text(dir.into())),
        ]
    });
    Image {
        args: vec![
            Argument::Text(loader.clone().into()),
            text("--library-path"),
            Argument::Search(searched),
            Argument::Opened(hull.to_owned()),
            text("init"),
        ],
        program: loader,
        env: env.collect(),
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locate_with(engine_dir: Option<&str>, present: &[&str]) -> Result<Image, Error> {
        located(engine_dir, present, Has(None, None))
    }

    fn located(engine_dir: Option<&str>, present: &[&str], system: Has) -> Result<Image, Error> {
        let exists = |path: &Path| present.iter().any(|name| Path::new(name) == path);
        locate(Path::new("/usr/bin/proa"), engine_dir.map(Path::new), exists, system)
    }

    /// A system with this loader, which finds the engine there.
    struct Has(Option<&'static str>, Option<&'static str>);

    impl Loaders for Has {
        fn of(&self, _: &Path) -> Option<PathBuf> {
            self.0.map(PathBuf::from)
        }

        fn engine(&self) -> Option<PathBuf> {
            self.1.map(PathBuf::from)
        }
    }

    #[test]
    fn the_system_s_loader_searches_what_was_opened() {
        let present = ["/usr/bin/proa-wasmedge", "/usr/local/lib", "/e"];
        let of = |engine_dir, engine| located(engine_dir, &present, Has(Some("/usr/lib/x/ld.so.2"), engine)).unwrap();
        let image = of(None, Some("/usr/local/lib"));
        assert_eq!(image.program, Path::new("/usr/lib/x/ld.so.2"));
        let searched = |dirs: &[&str]| Argument::Search(dirs.iter().map(PathBuf::from).collect());
        let text = |text: &str| Argument::Text(text.into());
        let args = [
            text("/usr/lib/x/ld.so.2"),
            text("--library-path"),
            searched(&["/usr/local/lib", "/usr/lib/x"]),
            Argument::Opened("/usr/bin/proa-wasmedge".into()),
            text("init"),
        ];
        assert_eq!(image.args, args);
        let engine = |dir: &str| vec![(ENGINE_DIR, Argument::Opened(dir.into())), (ENGINE_PLACE, text(dir))];
        assert_eq!(image.env, engine("/usr/local/lib"));
        assert_eq!(of(Some("/e"), Some("/usr/local/lib")).env, engine("/e"));
        // What is not there is named by the hull.
        let image = of(Some("/nowhere"), None);
        assert_eq!(image.args[2], searched(&["/usr/lib/x"]));
        assert_eq!(image.env, [(ENGINE_DIR, text("/nowhere"))]);
        assert_eq!(of(None, None).env, []);
    }

    #[test]
    fn a_program_names_its_loader() {
        let head = std::fs::read("/proc/self/exe").unwrap();
        let found = interpreter(&head[..4096]).map(Path::exists);
        assert!(found != Some(false), "a loader that is there, or a static program");
        for length in 0..1024 {
            interpreter(&head[..length]);
        }
        let mut head = head[..4096].to_vec();
        let mut next = crate::fuzz::numbers(3);
        for _ in 0..2_000 {
            head[32 + next() as usize % 600] = next() as u8;
            interpreter(&head);
        }
        assert_eq!(interpreter(b"#!/bin/sh"), None);
    }

    #[test]
    fn the_hull_is_beside_proa_or_in_its_folders() {
        let image = locate_with(None, &["/usr/bin/proa-wasmedge", "/usr/lib/proa/proa-wasmedge"]).unwrap();
        let args = vec![Argument::Text(HULL.into()), Argument::Text("init".into())];
        assert_eq!(
            image,
            Image {
                program: "/usr/bin/proa-wasmedge".into(),
                args,
                env: vec![]
            }
        );
        let image = locate_with(None, &["/usr/lib/proa/proa-wasmedge"]).unwrap();
        assert_eq!(image.program, Path::new("/usr/lib/proa/proa-wasmedge"));
    }

    #[test]
    fn a_prefix_with_a_loader_starts_the_hull() {
        let image = locate_with(None, &["/usr/bin/proa-wasmedge", "/usr/lib/proa/engine/ld.so"]).unwrap();
        assert_eq!(image.program, Path::new("/usr/lib/proa/engine/ld.so"));
        let text = |text: &str| Argument::Text(text.into());
        let args = [
            text("/usr/lib/proa/engine/ld.so"),
            text("--library-path"),
            Argument::Search(vec!["/usr/lib/proa/engine".into()]),
            text("--argv0"),
            text(HULL),
            Argument::Opened("/usr/bin/proa-wasmedge".into()),
            text("init"),
        ];
        assert_eq!(image.args, args);
        let prefix = Argument::Opened("/usr/lib/proa/engine".into());
        assert_eq!(
            image.env,
            [
                ("PROA_ENGINE_DIR", prefix),
                (ENGINE_PLACE, text("/usr/lib/proa/engine"))
            ]
        );
    }

    #[test]
    fn the_environment_s_engine_is_the_only_one() {
        let present = ["/usr/bin/proa-wasmedge", "/usr/lib/proa/engine/ld.so", "/e/ld.so"];
        assert_eq!(
            locate_with(Some("/e"), &present).unwrap().program,
            Path::new("/e/ld.so")
        );
        // Without a loader of its own it is the hull's matter.
        let image = locate_with(Some("/f"), &present).unwrap();
        assert_eq!(image.program, Path::new("/usr/bin/proa-wasmedge"));
        assert_eq!(image.env, [("PROA_ENGINE_DIR", Argument::Text("/f".into()))]);
    }

    #[test]
    fn a_missing_hull_is_said_with_every_place() {
        let text = locate_with(None, &[]).unwrap_err().to_string();
        for place in [
            "/usr/bin/proa-wasmedge",
            "/usr/lib/proa/proa-wasmedge",
            "/usr/libexec/proa/proa-wasmedge",
        ] {
            assert!(text.contains(place), "{text}");
        }
    }
}
