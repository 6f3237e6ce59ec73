//! `proa setup MANAGER`: what makes a container manager use proa, and `proa setup runtimeclass`.
//!
//! What is to be configured goes to stdout, everything about it to stderr.

use super::{Error, Globals, absolute_option, print};
use crate::managers::runtimeclass::{self, Options};
use crate::managers::tree::Tree;
use crate::managers::{self, Edit, Manager, Request, SystemdCgroup, detect};
use clap::Args;
use std::path::{Path, PathBuf};

/// Where `make install` puts proa: what is written into a tree that is not this host's.
const INSTALLED: &str = "/usr/local/bin/proa";
/// The name under which everything is Wasm.
const ALIAS: &str = "proa-wasm";

/// Why nothing was set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The value of a flag.
    #[error("invalid value {value:?} for --{flag}: must be {expected}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is understood.
        expected: &'static str,
    },
    /// Flags that exclude each other, or the object.
    #[error("--{flag} has no meaning for {what}")]
    Meaningless {
        /// The flag.
        flag: &'static str,
        /// What was to be set up.
        what: String,
    },
    /// Where this program is can't be told.
    #[error("readlink /proc/self/exe: {0}; --binary tells where proa is")]
    Executable(#[source] std::io::Error),
}

/// The command line.
#[derive(Args, Debug)]
pub struct SetupArgs {
    /// Write it, and keep a copy of the file as it was, instead of printing it
    #[arg(long)]
    write: bool,
    /// Take away what --write did
    #[arg(long)]
    remove: bool,
    /// What the runtime is called (Kubernetes: the handler)
    #[arg(long, default_value = "proa")]
    runtime_name: String,
    /// Where proa is (default: this program; with --sysroot /usr/local/bin/proa)
    #[arg(long)]
    binary: Option<PathBuf>,
    /// containerd's SystemdCgroup: yes, no, or auto, which is as it has it for its default runtime
    #[arg(long, default_value = "auto")]
    systemd_cgroup: String,
    /// The manager's configuration file, if not the usual one
    #[arg(long)]
    file: Option<PathBuf>,
    /// The root of an image that is being built, whose managers are meant
    #[arg(long)]
    sysroot: Option<PathBuf>,
    /// RuntimeClass: KEY=VALUE, a label of the nodes that have proa; may be repeated
    #[arg(long)]
    node_selector: Vec<String>,
    /// RuntimeClass: RESOURCE=QUANTITY, what a pod needs besides its containers; may be repeated
    #[arg(long)]
    overhead: Vec<String>,
    /// containerd, crio, podman, docker, k3s, rke2 or runtimeclass
    what: String,
}

pub(super) fn run(_: &Globals, args: SetupArgs) -> Result<u8, Error> {
    if args.what == "runtimeclass" {
        return runtime_class(&args);
    }
    let manager: Manager = args.what.parse()?;
    let pointless = [("node-selector", &args.node_selector), ("overhead", &args.overhead)];
    if let Some((flag, _)) = pointless.into_iter().find(|(_, given)| !given.is_empty()) {
        return Err(meaningless(flag, &args.what));
    }
    if args.write && args.remove {
        return Err(meaningless("write", "--remove"));
    }
    let root = absolute_option(args.sysroot.clone())?;
    let tree = Tree::open(root.as_deref().unwrap_or(Path::new("/"))).map_err(managers::Error::from)?;
    let request = request(&args, manager, &tree)?;
    match args.remove {
        true => remove(&tree, manager, &request),
        false => add(&tree, manager, &request, args.write),
    }
}

fn meaningless(flag: &'static str, what: &str) -> Error {
    let what = what.into();
    SetupError::Meaningless { flag, what }.into()
}

fn request(args: &SetupArgs, manager: Manager, tree: &Tree) -> Result<Request, Error> {
    let systemd_cgroup = match args.systemd_cgroup.as_str() {
        "auto" => SystemdCgroup::Auto,
        "yes" => SystemdCgroup::Yes,
        "no" => SystemdCgroup::No,
        other => {
            return Err(SetupError::Value {
                flag: "systemd-cgroup",
                value: other.into(),
                expected: "auto, yes or no",
            }
            .into());
        }
    };
    let binary = match (absolute_option(args.binary.clone())?, tree.is_host()) {
        (Some(given), _) => given,
        (None, true) => std::env::current_exe().map_err(SetupError::Executable)?,
        (None, false) => INSTALLED.into(),
    };
    let alias = binary.with_file_name(ALIAS);
    Ok(Request {
        name: args.runtime_name.clone(),
        alias: tree.is_program(&alias).then_some(alias),
        binary,
        systemd_cgroup,
        file: absolute_option(args.file.clone())?,
        user: managers::users_configuration(manager, tree)?,
    })
}

fn add(tree: &Tree, manager: Manager, request: &Request, write: bool) -> Result<u8, Error> {
    let found = detect::find(tree, manager);
    let edit = managers::add(tree, manager, request, found.as_ref())?;
    match &found {
        None => tell(&format!("{manager} is not installed here: this is what it would need")),
        Some(found) => {
            let version = found.version.map_or_else(String::new, |version| format!(" {version}"));
            tell(&format!("{manager}{version}, {}", found.program.display()));
        }
    }
    if !tree.is_program(&request.binary) {
        tell(&format!("{} is not there yet", request.binary.display()));
    }
    if manager.takes_alias() && request.alias.is_none() {
        let alias = request.binary.with_file_name(ALIAS);
        tell(&format!(
            "{alias} is not there, so no runtime is configured under which everything is Wasm; `ln -s {name} {alias}` makes it",
            alias = alias.display(),
            name = request.binary.file_name().unwrap_or_default().to_string_lossy(),
        ));
    }
    edit.notes.iter().for_each(|note| tell(note));
    let path = edit.path.display();
    match (edit.changes(), write) {
        (false, _) => tell(&format!("{path} has it already")),
        (true, false) => {
            let verb = if edit.before.is_some() {
                "would be added to"
            } else {
                "would be written to"
            };
            tell(&format!("this {verb} {path} by --write:"));
        }
        (true, true) => {
            if let Some(copy) = managers::write(tree, request, &edit)? {
                tell(&format!("{path} as it was is kept in {}", copy.display()));
            }
            tell(&format!("{path} is written{}", restart(tree, manager, request)));
        }
    }
    match write {
        true => Ok(0),
        false => print(edit.part.as_bytes()),
    }
}

fn remove(tree: &Tree, manager: Manager, request: &Request) -> Result<u8, Error> {
    let edit: Edit = managers::remove(tree, manager, request)?;
    edit.notes.iter().for_each(|note| tell(note));
    let path = edit.path.display();
    if !edit.changes() {
        tell(&format!("{path} has nothing of the runtime {:?}", request.name));
        return Ok(0);
    }
    if let Some(copy) = managers::restore(tree, request, &edit)? {
        tell(&format!(
            "{path} was changed by others since: only proa's part is gone, and {} has what was there before it",
            copy.display()
        ));
    }
    let verb = if edit.after.is_some() {
        "is as it was without proa"
    } else {
        "is removed"
    };
    tell(&format!("{path} {verb}{}", restart(tree, manager, request)));
    Ok(0)
}

/// What has to be done for it to count; nothing in an image, whose managers do not run.
fn restart(tree: &Tree, manager: Manager, request: &Request) -> String {
    match (tree.is_host(), &request.user) {
        (false, _) => String::new(),
        (true, Some(_)) => format!(
            "; then: {}",
            manager.restart().replace("systemctl ", "systemctl --user ")
        ),
        (true, None) => format!("; then: {}", manager.restart()),
    }
}

fn runtime_class(args: &SetupArgs) -> Result<u8, Error> {
    let acts = [
        ("write", args.write),
        ("remove", args.remove),
        ("sysroot", args.sysroot.is_some()),
    ];
    if let Some((flag, _)) = acts.into_iter().find(|(_, given)| *given) {
        return Err(meaningless(flag, "runtimeclass"));
    }
    let options = Options {
        node_selector: pairs("node-selector", &args.node_selector)?,
        overhead: pairs("overhead", &args.overhead)?,
    };
    managers::check_name(&args.runtime_name)?;
    print(runtimeclass::yaml(&args.runtime_name, &options).as_bytes())
}

fn pairs(flag: &'static str, given: &[String]) -> Result<Vec<(String, String)>, SetupError> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty())?;
        Some((key.to_owned(), value.to_owned()))
    };
    let wrong = |text: &String| SetupError::Value {
        flag,
        value: text.clone(),
        expected: "KEY=VALUE",
    };
    given.iter().map(|text| pair(text).ok_or_else(|| wrong(text))).collect()
}

/// To stderr, where it is in nobody's way.
fn tell(text: &str) {
    eprintln!("{}", proa_executor::text::lines(text));
}
