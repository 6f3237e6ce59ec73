//! Where the Wasm hull and its engine are: asked by `proa`, before it starts a container's init.
//!
//! | what | looked for, first match counts |
//! |---|---|
//! | `proa-wasmedge` | beside proa; `../lib/proa/`; `../libexec/proa/` |
//! | the engine | `PROA_ENGINE_DIR`; `wasm.engine-dir` of the configuration file; `../lib/proa/engine`; `../engine/current` |
//!
//! A directory with its own dynamic loader (`ld.so`) is a private prefix: it starts the hull through that loader, so that an
//! engine built for a newer C library runs on an older system. Without one the hull starts as it is, and without a directory
//! the system's loader finds the engine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Names the directory with the engine (`libwasmedge.so.0`); see [`crate::wasm`].
pub const ENGINE_DIR: &str = "PROA_ENGINE_DIR";

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
    locate(&exe, dir.as_deref().or(configured), Path::exists)
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

fn locate(exe: &Path, engine_dir: Option<&Path>, exists: impl Fn(&Path) -> bool) -> Result<Image, Error> {
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
    let text = |text: &str| Argument::Text(text.into());
    if let Some(prefix) = prefixes.iter().find(|prefix| exists(&prefix.join(LOADER))) {
        let loader = prefix.join(LOADER);
        return Ok(Image {
            args: vec![
                Argument::Text(loader.clone().into()),
                text("--library-path"),
                Argument::Opened(prefix.clone()),
                text("--argv0"),
                text(HULL),
                Argument::Opened(hull.clone()),
                text("init"),
            ],
            program: loader,
            env: vec![(ENGINE_DIR, Argument::Opened(prefix.clone()))],
        });
    }
    Ok(Image {
        program: hull.clone(),
        args: vec![text(HULL), text("init")],
        env: engine_dir
            .map(|dir| (ENGINE_DIR, Argument::Text(dir.into())))
            .into_iter()
            .collect(),
    })
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
        let exists = |path: &Path| present.iter().any(|name| Path::new(name) == path);
        locate(Path::new("/usr/bin/proa"), engine_dir.map(Path::new), exists)
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
            Argument::Opened("/usr/lib/proa/engine".into()),
            text("--argv0"),
            text(HULL),
            Argument::Opened("/usr/bin/proa-wasmedge".into()),
            text("init"),
        ];
        assert_eq!(image.args, args);
        let prefix = Argument::Opened("/usr/lib/proa/engine".into());
        assert_eq!(image.env, [("PROA_ENGINE_DIR", prefix)]);
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
