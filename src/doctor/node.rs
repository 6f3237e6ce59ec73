//! Control groups, where proa keeps things, the engine, and the managers.

use super::{Check, Question};
use crate::cgroup;
use crate::launch::{self, inspect};
use crate::managers::tree::Tree;
use crate::managers::{self, Request, SystemdCgroup, detect};
use crate::wasm::Settings;
use proa_executor::aot::Cache;
use proa_executor::locate;
use proa_executor::wasm::inspection::Landlock;
use std::path::Path;

/// The name under which everything is Wasm.
const ALIAS: &str = "proa-wasm";
/// As many bytes of state as some thousand containers need.
const ENOUGH: u64 = 16 << 20;

pub(super) fn checks(question: &Question<'_>) -> Vec<Check> {
    let mut checks = cgroups(question.rootless);
    checks.push(state(question.root));
    let (path, settings) = &question.settings;
    checks.push(configuration(path, settings));
    let none = Settings::default();
    let settings = settings.as_ref().map_or(&none, |settings| *settings);
    checks.extend(wasm(settings));
    checks.push(cache(&launch::code_directory(settings)));
    checks.extend(all_managers());
    checks
}

fn cgroups(rootless: bool) -> Vec<Check> {
    const AREA: &str = "cgroup";
    let found = match cgroup::describe(rootless) {
        Ok(found) => found,
        Err(error) => {
            let fix = "mount cgroup2 at /sys/fs/cgroup; rootless containers without limits can do without";
            let check = Check::missing(AREA, "mode", error.to_string(), fix);
            return vec![if rootless { check } else { check.needed() }];
        }
    };
    let shown = |names: &[String]| match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(" "),
    };
    let controllers = match found.mode {
        "v1" => shown(&found.v1),
        "v2" => shown(&found.v2),
        _ => format!("v1: {}; v2: {}", shown(&found.v1), shown(&found.v2)),
    };
    let all = [found.v1, found.v2].concat();
    let lacking: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !all.iter().any(|it| it == name))
        .collect();
    let delegation = match found.writable {
        true => Check::ok(AREA, "delegation", "cgroups can be made in the caller's own"),
        false => Check::missing(
            AREA,
            "delegation",
            "the caller's own cgroup can't be written to",
            "use --systemd-cgroup, or have systemd delegate (Delegate=yes); containers without limits can do without",
        ),
    };
    vec![
        Check::ok(AREA, "mode", found.mode),
        match lacking.is_empty() {
            true => Check::ok(AREA, "controllers", controllers),
            false => Check::missing(
                AREA,
                "controllers",
                format!("{controllers}; without {}", lacking.join(", ")),
                "limits by these are refused; enable them in cgroup.subtree_control of the cgroups above",
            ),
        },
        delegation,
        Check::tried(
            AREA,
            "systemd",
            found.systemd,
            "needed for --systemd-cgroup only, the managers' usual choice",
        ),
    ]
}

/// The file system that `path` is going to be on.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn state(root: &Path) -> Check {
    let (area, name) = ("state", "state root");
    let place = existing(root);
    let facts = match rustix::fs::statvfs(place) {
        Ok(facts) => facts,
        Err(errno) => {
            return Check::failed(
                area,
                name,
                format!("{}: {errno}", root.display()),
                "choose another --root",
            );
        }
    };
    let free = facts.f_bavail * facts.f_frsize;
    let shown = format!("{}, {} MiB free", root.display(), free >> 20);
    let writable = nix::unistd::access(place, nix::unistd::AccessFlags::W_OK);
    match writable {
        Err(errno) => Check::failed(
            area,
            name,
            format!("{}: {errno}", place.display()),
            "choose another --root",
        ),
        Ok(()) if free < ENOUGH => Check::missing(area, name, shown, "make room: a container's state takes some KiB"),
        Ok(()) => Check::ok(area, name, shown),
    }
}

fn configuration(path: &Path, settings: &Result<&Settings, String>) -> Check {
    let name = "configuration file";
    match settings {
        Ok(_) if !path.exists() => Check::ok(
            "state",
            name,
            format!("{} is not there: the defaults hold", path.display()),
        ),
        Ok(_) => Check::ok("state", name, format!("{} is valid", path.display())),
        Err(error) => Check::failed(
            "state",
            name,
            error.clone(),
            "correct it: until then no container is created",
        ),
    }
}

fn wasm(settings: &Settings) -> Vec<Check> {
    const AREA: &str = "wasm";
    let hull = match locate::hull_path() {
        Ok(path) => Check::ok(AREA, "hull", path.display().to_string()),
        Err(error) => {
            let fix = "install proa-wasmedge beside proa; Linux containers can do without";
            return vec![Check::missing(AREA, "hull", error.to_string(), fix)];
        }
    };
    let get = "apt install libwasmedge0 (Debian 13 or later), dnf install wasmedge (Fedora), or proa's scripts/setup-engine; \
               Linux containers can do without";
    let inspection = match inspect::engine(settings) {
        Ok(inspection) => inspection,
        Err(error) => return vec![hull, Check::missing(AREA, "engine", error.to_string(), get)],
    };
    let landlock = inspection.landlock.map(|what| match what {
        Landlock::Directories => "guests can be narrowed to directories".to_owned(),
        Landlock::DirectoriesAndPorts => "guests can be narrowed to directories and ports".to_owned(),
    });
    let fix = "Linux 5.13 (6.7 for ports), built with it and booted with lsm=…,landlock: guests that are narrowed are refused \
               without";
    let landlock = Check::tried(AREA, "landlock", landlock, fix);
    let engine = match inspection.engine {
        Err(error) => vec![Check::missing(AREA, "engine", error, get)],
        Ok(engine) => {
            let load = match engine.with_compiler {
                None => Check::ok(AREA, "engine load", "without its compiler (docs/decisions/0008)"),
                Some(reason) => Check::missing(
                    AREA,
                    "engine load",
                    format!("with its compiler: {reason}"),
                    "it works, and takes several times as long and as much memory",
                ),
            };
            let compiled = match engine.build_id {
                Some(id) => Check::ok(AREA, "compiled code", format!("can be kept, for build {id}")),
                None => Check::missing(
                    AREA,
                    "compiled code",
                    "the engine's library has no build id",
                    "modules are interpreted; take a distribution's build",
                ),
            };
            vec![Check::ok(AREA, "engine", engine.version), load, compiled]
        }
    };
    [hull, landlock].into_iter().chain(engine).collect()
}

fn cache(directory: &Path) -> Check {
    let (area, name) = ("wasm", "code cache");
    let shown = directory.display();
    match Cache::open(directory) {
        Ok(None) => Check::ok(
            area,
            name,
            format!("{shown} is not there yet; it is made when it is needed"),
        ),
        Ok(Some(cache)) => match cache.list() {
            Ok(entries) => {
                let size: u64 = entries.iter().map(|entry| entry.size).sum();
                Check::ok(
                    area,
                    name,
                    format!("{shown}: {} entries, {} MiB", entries.len(), size >> 20),
                )
            }
            Err(error) => Check::missing(area, name, error.to_string(), "remove the directory; it is made anew"),
        },
        Err(error) => Check::missing(
            area,
            name,
            error.to_string(),
            "make it root's, and writable by nobody else; until then modules are interpreted",
        ),
    }
}

fn all_managers() -> Vec<Check> {
    const AREA: &str = "manager";
    let tree = match Tree::open(Path::new("/")) {
        Ok(tree) => tree,
        Err(error) => {
            return vec![Check::missing(
                AREA,
                "all",
                error.to_string(),
                "run it where / can be read",
            )];
        }
    };
    let found = detect::all(&tree);
    if found.is_empty() {
        return vec![Check::ok(AREA, "all", "none is installed here")];
    }
    found.iter().map(|found| manager(&tree, found)).collect()
}

/// Whether `proa setup` would still have something to do.
fn manager(tree: &Tree, found: &detect::Found) -> Check {
    const AREA: &str = "manager";
    let name = found.manager.name();
    let version = found.version.map_or_else(String::new, |version| format!(" {version}"));
    let shown = format!("{}{version}", found.program.display());
    let fix = format!("proa setup {name} --write");
    let binary = match std::env::current_exe() {
        Ok(binary) => binary,
        Err(error) => return Check::missing(AREA, name, format!("{shown}; readlink /proc/self/exe: {error}"), fix),
    };
    let alias = binary.with_file_name(ALIAS);
    let request = managers::users_configuration(found.manager, tree).map(|user| Request {
        name: "proa".into(),
        alias: tree.is_program(&alias).then_some(alias),
        binary,
        systemd_cgroup: SystemdCgroup::Auto,
        file: None,
        user,
    });
    match request.and_then(|request| managers::add(tree, found.manager, &request, Some(found))) {
        Ok(edit) if edit.changes() => {
            let found = format!("{shown}; {} does not have this proa", edit.path.display());
            Check::missing(AREA, name, found, fix)
        }
        Ok(edit) => Check::ok(AREA, name, format!("{shown}; {} has proa", edit.path.display())),
        Err(error) => Check::missing(AREA, name, format!("{shown}; {error}"), fix),
    }
}
