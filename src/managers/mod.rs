//! The container managers of a node, and the configuration by which they know proa.
//!
//! ```text
//! files as they are -> plan (reads only) -> Edit { file, before, after } -> printed | applied
//! ```
//!
//! An edit changes one file. In TOML and in k3s's templates what is ours stands between two comments, so that it can be taken
//! away whatever became of the rest, byte for byte, without remembering anything; JSON has no comments, so `daemon.json` is
//! edited value by value. A file that was there before is kept as well, below [`BACKUPS`], until our part is removed.

mod block;
mod containerd;
mod crio;
pub mod detect;
mod docker;
mod document;
mod k3s;
mod podman;
pub mod runtimeclass;
pub mod tree;

use detect::Found;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tree::Tree;

/// Where the files are kept that were there before, each under its own path. Not beside them: managers read whole directories.
pub const BACKUPS: &str = "/var/lib/proa/backup";

/// The annotations that reach the runtime by themselves nowhere, in containerd's patterns.
const ANNOTATIONS: [&str; 3] = ["run.oci.handler", "module.wasm.image/*", "proa.wasm/*"];

/// Why a manager's configuration was left alone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A user without a home.
    #[error("neither XDG_CONFIG_HOME nor HOME is set: where {0}'s configuration of this user is can't be told")]
    Homeless(Manager),
    /// There is none of that name.
    #[error("unknown manager {0:?}: containerd, crio, podman, docker, k3s or rke2")]
    UnknownManager(String),
    /// A file can't be read or written.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// It is not what it should be; nothing of it was changed.
    #[error("{path}: {problem}; it was left as it is", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The parser's words, with the line.
        problem: String,
    },
    /// It says something that only its owner can change.
    #[error("{path}:{line}: {problem}", path = path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What, and what can be done.
        problem: String,
    },
    /// RuntimeClass handlers are DNS labels, and the other managers' names are not wider.
    #[error(
        "--runtime-name {0:?}: must be lower-case letters, digits and '-', at most 63, with a letter or digit at both ends"
    )]
    Name(String),
    /// The managers call it by an absolute path, from directories of their own.
    #[error("--binary {0:?}: must be an absolute path of UTF-8 without control characters")]
    Binary(PathBuf),
}

/// A program that uses runtimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// containerd, for its CRI plugin.
    Containerd,
    /// CRI-O.
    Crio,
    /// podman.
    Podman,
    /// Docker's daemon.
    Docker,
    /// k3s, which brings a containerd of its own.
    K3s,
    /// RKE2, likewise.
    Rke2,
}

impl Manager {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Containerd,
        Self::Crio,
        Self::Podman,
        Self::Docker,
        Self::K3s,
        Self::Rke2,
    ];

    /// What it is called on proa's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio => "crio",
            Self::Podman => "podman",
            Self::Docker => "docker",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
        }
    }

    /// The names of the program whose version counts.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Containerd => &["containerd"],
            Self::Crio => &["crio"],
            Self::Podman => &["podman"],
            Self::Docker => &["dockerd"],
            Self::K3s => &["k3s"],
            Self::Rke2 => &["rke2"],
        }
    }

    /// How it is made to read its configuration again; what runs already goes on under all of them.
    pub fn restart(self) -> &'static str {
        match self {
            Self::Containerd => "systemctl restart containerd",
            Self::Crio => "systemctl reload crio",
            Self::Podman => "nothing has to be restarted: podman reads its configuration with every call",
            Self::Docker => "systemctl reload docker",
            Self::K3s => "systemctl restart k3s (on an agent: k3s-agent)",
            Self::Rke2 => "systemctl restart rke2-server (on an agent: rke2-agent)",
        }
    }

    /// Whether it calls proa under its other name, where everything is Wasm.
    pub fn takes_alias(self) -> bool {
        matches!(self, Self::Crio | Self::Podman | Self::Docker)
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Manager {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let known = Self::ALL.into_iter().find(|manager| manager.name() == name);
        known.ok_or_else(|| Error::UnknownManager(name.into()))
    }
}

/// A release, as far as configuration depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

impl Version {
    /// The first word that is a version, of what `--version` prints.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let mut numbers = word.trim_start_matches('v').splitn(3, '.');
            let major = numbers.next()?.parse().ok()?;
            let minor = numbers.next()?;
            let minor = minor.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
            Some(Self { major, minor })
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Whether systemd makes the containers' cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SystemdCgroup {
    /// As the manager's configuration has it for its default runtime.
    #[default]
    Auto,
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// What is to be configured.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the runtime is to be called by its users.
    pub name: String,
    /// Where proa is, as the manager will see it.
    pub binary: PathBuf,
    /// Where it is under the name that asks for Wasm, if it is there.
    pub alias: Option<PathBuf>,
    /// containerd's `SystemdCgroup`.
    pub systemd_cgroup: SystemdCgroup,
    /// The manager's file, if not its usual one.
    pub file: Option<PathBuf>,
    /// The configuration directory (`XDG_CONFIG_HOME`) of a user, whose podman or Docker it is.
    pub user: Option<PathBuf>,
}

impl Request {
    /// Refuses what a manager could misunderstand.
    pub fn check(&self) -> Result<(), Error> {
        check_name(&self.name)?;
        let text = self.binary.to_str();
        if !self.binary.is_absolute() || text.is_none_or(|text| text.chars().any(char::is_control)) {
            return Err(Error::Binary(self.binary.clone()));
        }
        Ok(())
    }

    /// The name of the runtime under which everything is Wasm.
    fn alias_name(&self) -> String {
        format!("{}-wasm", self.name)
    }

    /// The file of the request, or this one.
    fn file_or(&self, usual: &str) -> PathBuf {
        self.file.clone().unwrap_or_else(|| usual.into())
    }
}

/// The configuration directory of the caller, if not root, of a manager that has a configuration for each user.
pub fn users_configuration(manager: Manager, tree: &Tree) -> Result<Option<PathBuf>, Error> {
    let per_user = matches!(manager, Manager::Podman | Manager::Docker);
    if !tree.is_host() || !per_user || nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let set = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    config.map(Some).ok_or(Error::Homeless(manager))
}

/// Refuses what is not a DNS label.
pub fn check_name(name: &str) -> Result<(), Error> {
    let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    let fits = bytes.len() <= 63 && bytes.iter().all(|byte| label(*byte) || *byte == b'-');
    match fits && ends.is_some_and(|(first, last)| label(*first) && label(*last)) {
        true => Ok(()),
        false => Err(Error::Name(name.into())),
    }
}

/// What is to become of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// The file.
    pub path: PathBuf,
    /// Its text; `None` if it is not there.
    pub before: Option<String>,
    /// What it is to be; `None` if it is to be removed.
    pub after: Option<String>,
    /// Our part of it.
    pub part: String,
    /// `before` has nothing of ours: it is worth keeping.
    pub pristine: bool,
    /// What else the administrator should know.
    pub notes: Vec<String>,
}

impl Edit {
    /// Whether there is anything to do.
    pub fn changes(&self) -> bool {
        self.before != self.after
    }
}

/// Finds out how `manager` is to be told of the runtime. Nothing is written.
pub fn add(tree: &Tree, manager: Manager, request: &Request, found: Option<&Found>) -> Result<Edit, Error> {
    request.check()?;
    let version = found.and_then(|found| found.version);
    match manager {
        Manager::Containerd => containerd::add(tree, request, version),
        Manager::Crio => crio::add(tree, request, version),
        Manager::Podman => podman::add(tree, request),
        Manager::Docker => docker::add(tree, request),
        Manager::K3s | Manager::Rke2 => k3s::add(tree, request, manager),
    }
}

/// Finds out what takes away what [`add`] did. Nothing is written.
pub fn remove(tree: &Tree, manager: Manager, request: &Request) -> Result<Edit, Error> {
    request.check()?;
    let mut edit = match manager {
        Manager::Containerd => containerd::remove(tree, request),
        Manager::Crio => crio::remove(tree, request),
        Manager::Podman => podman::remove(tree, request),
        Manager::Docker => docker::remove(tree, request),
        Manager::K3s | Manager::Rke2 => k3s::remove(tree, request, manager),
    }?;
    if !edit.changes() {
        return Ok(edit);
    }
    let kept = tree.read(&backup(request, &edit.path))?;
    match (&kept, &edit.after) {
        // All that a block's absence can't tell is whether the last line before it had an end.
        (Some(kept), Some(after)) if kept.trim_end_matches('\n') == after.trim_end_matches('\n') => {
            edit.after = Some(kept.clone());
        }
        (Some(kept), None) if kept.trim().is_empty() => edit.after = Some(kept.clone()),
        _ => {}
    }
    Ok(edit)
}

/// Where the text of that file is kept that it had before.
pub fn backup(request: &Request, path: &Path) -> PathBuf {
    let base = match &request.user {
        Some(config) => config.join("proa/backup"),
        None => BACKUPS.into(),
    };
    base.join(path.strip_prefix("/").unwrap_or(path))
}

/// Keeps what was there before, then puts what is to be in its place. The path of the copy, if one was made.
pub fn write(tree: &Tree, request: &Request, edit: &Edit) -> Result<Option<PathBuf>, Error> {
    let put = || tree.replace(&edit.path, edit.before.as_deref(), edit.after.as_deref(), None);
    let Some(before) = edit.before.as_deref().filter(|_| edit.pristine) else {
        put()?;
        return Ok(None);
    };
    let kept = backup(request, &edit.path);
    let earlier = tree.read(&kept)?;
    tree.replace(&kept, earlier.as_deref(), Some(before), Some(&edit.path))?;
    match put() {
        Ok(()) => Ok(Some(kept)),
        Err(error) => {
            // A copy of what is still there is of no use. The first failure is what is told.
            tree.replace(&kept, Some(before), earlier.as_deref(), None).ok();
            Err(error.into())
        }
    }
}

/// Takes our part away, and the copy if it is what is there again. The path of the copy, if it is not.
pub fn restore(tree: &Tree, request: &Request, edit: &Edit) -> Result<Option<PathBuf>, Error> {
    tree.replace(&edit.path, edit.before.as_deref(), edit.after.as_deref(), None)?;
    let copy = backup(request, &edit.path);
    match tree.read(&copy)? {
        Some(kept) if edit.after.as_ref() == Some(&kept) => {
            tree.replace(&copy, Some(&kept), None, None)?;
            Ok(None)
        }
        kept => Ok(kept.map(|_| copy)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A private root with the files that a test writes.
    pub struct Scratch(PathBuf);

    impl Scratch {
        pub fn new(name: &str) -> Self {
            let base = std::env::temp_dir().join(format!("proa-managers-{}-{name}", std::process::id()));
            fs::create_dir_all(base.join("root")).unwrap();
            Self(base)
        }

        pub fn path(&self) -> PathBuf {
            self.0.join("root")
        }

        pub fn tree(&self) -> Tree {
            Tree::open(&self.path()).unwrap()
        }

        pub fn write(&self, path: &str, text: &str) -> PathBuf {
            let outside = self.tree().outside(Path::new(path));
            fs::create_dir_all(outside.parent().unwrap()).unwrap();
            fs::write(&outside, text).unwrap();
            outside
        }

        pub fn program(&self, path: &str, text: &str) {
            let outside = self.write(path, text);
            fs::set_permissions(outside, fs::Permissions::from_mode(0o755)).unwrap();
        }

        pub fn read(&self, path: &str) -> Option<String> {
            self.tree().read(Path::new(path)).unwrap()
        }

        /// Every file below the root.
        pub fn files(&self) -> Vec<String> {
            fn walk(dir: &Path, root: &Path, into: &mut Vec<String>) {
                for entry in fs::read_dir(dir).unwrap() {
                    let path = entry.unwrap().path();
                    match path.is_dir() {
                        true => walk(&path, root, into),
                        false => into.push(format!("/{}", path.strip_prefix(root).unwrap().display())),
                    }
                }
            }
            let mut files = Vec::new();
            walk(&self.path(), &self.path(), &mut files);
            files.sort();
            files
        }

        /// Writes what `add` finds; what it wrote to, and that a second time changes nothing.
        pub fn set_up(&self, manager: Manager, request: &Request, version: Option<Version>) -> Edit {
            let found = Found {
                manager,
                program: "/usr/bin/x".into(),
                version,
            };
            let tree = self.tree();
            let edit = add(&tree, manager, request, Some(&found)).unwrap();
            super::write(&tree, request, &edit).unwrap();
            let again = add(&tree, manager, request, Some(&found)).unwrap();
            assert!(!again.changes(), "not idempotent: {again:?}");
            assert!(!again.pristine, "a copy of our own part would be kept");
            edit
        }

        pub fn take_down(&self, manager: Manager, request: &Request) -> Option<PathBuf> {
            let tree = self.tree();
            let edit = remove(&tree, manager, request).unwrap();
            assert!(edit.changes(), "{edit:?}");
            let left = restore(&tree, request, &edit).unwrap();
            let again = remove(&tree, manager, request).unwrap();
            assert!(!again.changes(), "{again:?}");
            left
        }

        /// The refusal's words; and that nothing was written.
        pub fn refused(&self, manager: Manager, request: &Request, version: Option<Version>) -> String {
            let before: Vec<_> = self
                .files()
                .iter()
                .map(|path| (path.clone(), self.read(path)))
                .collect();
            let found = Found {
                manager,
                program: "/usr/bin/x".into(),
                version,
            };
            let error = add(&self.tree(), manager, request, Some(&found)).unwrap_err();
            let after: Vec<_> = self
                .files()
                .iter()
                .map(|path| (path.clone(), self.read(path)))
                .collect();
            assert_eq!(before, after);
            error.to_string()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    pub fn request() -> Request {
        Request {
            name: "proa".into(),
            binary: "/usr/local/bin/proa".into(),
            alias: Some("/usr/local/bin/proa-wasm".into()),
            systemd_cgroup: SystemdCgroup::Auto,
            file: None,
            user: None,
        }
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let cases = [
            (
                "containerd github.com/containerd/containerd/v2 2.1.9+unknown ",
                Some((2, 1)),
            ),
            (
                "containerd containerd.io v1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da",
                Some((1, 7)),
            ),
            ("crio version 1.33.0\nVersion: 1.33.0", Some((1, 33))),
            ("Docker version 28.5.2+dfsg1, build ecc6942", Some((28, 5))),
            (
                "k3s version v1.32.3+k3s1 (079ffa8d)\ngo version go1.23.6",
                Some((1, 32)),
            ),
            ("podman version 5.8.6", Some((5, 8))),
            ("nothing", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(major, minor)| Version { major, minor });
            assert_eq!(Version::find(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_no_copy() {
        let scratch = Scratch::new("unwritten");
        let path = "/etc/docker/daemon.json";
        scratch.write(path, "{}");
        let tree = scratch.tree();
        let edit = add(&tree, Manager::Docker, &request(), None).unwrap();
        scratch.write(path, "{ }");
        let error = super::write(&tree, &request(), &edit).unwrap_err();
        assert!(error.to_string().contains("just been changed"), "{error}");
        assert_eq!(scratch.files(), [path]);
        assert_eq!(scratch.read(path).as_deref(), Some("{ }"));
    }

    #[test]
    fn the_document_shows_what_is_written() {
        let document = include_str!("../../docs/managers.md");
        for (manager, version) in [
            (Manager::Containerd, Version { major: 1, minor: 6 }),
            (Manager::Containerd, Version { major: 2, minor: 1 }),
            (Manager::Podman, Version { major: 5, minor: 8 }),
            (Manager::Docker, Version { major: 28, minor: 5 }),
        ] {
            let scratch = Scratch::new(&format!("document-{manager}-{}", version.major));
            let edit = scratch.set_up(manager, &request(), Some(version));
            assert!(
                document.contains(&format!("\n{}```\n", edit.part)),
                "{manager} {version}: {}",
                edit.part
            );
        }
    }

    #[test]
    fn names_and_paths_that_a_manager_could_misunderstand_are_refused() {
        let with = |name: &str, binary: &str| {
            let (name, binary) = (name.to_owned(), binary.into());
            Request {
                name,
                binary,
                ..request()
            }
            .check()
        };
        with("proa-2", "/opt/it's \"quoted\"/proa").unwrap();
        for name in ["", "-", "a-", "Proa", "a.b", "a\"]\n[x", "ä", &"a".repeat(64)] {
            assert!(matches!(with(name, "/proa"), Err(Error::Name(_))), "{name}");
        }
        for binary in ["proa", "", "/x\ny"] {
            assert!(matches!(with("proa", binary), Err(Error::Binary(_))), "{binary}");
        }
    }
}
