//! containerd's CRI plugin.
//!
//! Where the runtime's table goes depends on the version that the configuration says it is of, not on containerd's:
//!
//! | `version` | plugin | imported files |
//! |---|---|---|
//! | 1, or none | `plugins.cri`, gone in containerd 2 | refused |
//! | 2 | `io.containerd.grpc.v1.cri` | containerd 1 replaces the plugin's whole table by that of the last file that has one |
//! | 3 and later | `io.containerd.cri.v1.runtime` | merged key by key, if they are of the same version |
//!
//! So version 2 is edited in the file that counts, and from version 3 on a directory that is imported takes a drop-in. containerd
//! 1 takes a `runtimes` table in the place of its own, with which `runc` goes unless it is named; containerd 2 keeps it.

use super::document::{self, Document, array, quoted, without_table};
use super::tree::Tree;
use super::{ANNOTATIONS, Edit, Error, Request, SystemdCgroup, Version, block};
use std::collections::VecDeque;
use std::path::{Component, Path, PathBuf};
use toml_edit::Item;

const FILE: &str = "/etc/containerd/config.toml";
/// Sorts behind what else may be in a directory.
const DROP_IN: &str = "90-proa.toml";
const VERSION_2: &str = "io.containerd.grpc.v1.cri";
const VERSION_3: &str = "io.containerd.cri.v1.runtime";

/// The files that containerd reads, in its order.
struct Files {
    main: PathBuf,
    all: Vec<Document>,
}

impl Files {
    fn read(tree: &Tree, request: &Request) -> Result<Self, Error> {
        let main = request.file_or(FILE);
        let mut all: Vec<Document> = Vec::new();
        let mut pending = VecDeque::from([main.clone()]);
        while let Some(path) = pending.pop_front() {
            if all.iter().any(|file| file.path == path) {
                continue;
            }
            let Some(text) = tree.read(&path)? else { continue };
            let file = Document::parse(&path, text, &request.name)?;
            for pattern in imports(&file) {
                pending.extend(matches(tree, &pattern)?);
            }
            all.push(file);
        }
        Ok(Self { main, all })
    }

    fn main(&self) -> Option<&Document> {
        self.all.iter().find(|file| file.path == self.main)
    }

    /// What the last file that has it says, as what comes later counts.
    fn last(&self, keys: &[&str]) -> Option<(&Document, &Item)> {
        self.all.iter().rev().find_map(|file| Some((file, file.get(keys)?)))
    }
}

fn runtime<'a>(plugin: &'a str, name: &'a str) -> [&'a str; 5] {
    ["plugins", plugin, "containerd", "runtimes", name]
}

/// `imports`, as absolute paths or patterns.
fn imports(file: &Document) -> Vec<PathBuf> {
    let list = file.get(&["imports"]).and_then(Item::as_array);
    let dir = file.path.parent().unwrap_or(Path::new("/"));
    let strings = list.into_iter().flatten().filter_map(|value| value.as_str());
    strings.map(|text| dir.join(text)).collect()
}

/// The files that an import means: `*` stands for any part of a name, as in Go's `filepath.Glob`.
fn matches(tree: &Tree, pattern: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.components() {
        let Component::Normal(part) = part else { continue };
        let text = part.to_string_lossy();
        let mut next = Vec::new();
        for dir in found {
            if !text.contains('*') {
                next.push(dir.join(part));
                continue;
            }
            let names = tree.list(&dir)?;
            next.extend(
                names
                    .iter()
                    .filter(|name| fits(&text, &name.to_string_lossy()))
                    .map(|name| dir.join(name)),
            );
        }
        found = next;
    }
    Ok(found)
}

/// Whether a name fits a pattern with any number of `*`.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name
            .strip_prefix(head)
            .is_some_and(|tail| (0..=tail.len()).any(|at| tail.is_char_boundary(at) && fits(rest, &tail[at..]))),
    }
}

pub fn add(tree: &Tree, request: &Request, containerd: Option<Version>) -> Result<Edit, Error> {
    let files = Files::read(tree, request)?;
    for file in &files.all {
        enabled(file)?;
    }
    let version = version(&files, containerd)?;
    let plugin = if version > 2 { VERSION_3 } else { VERSION_2 };
    if let Some(edit) = by_hand(&files, plugin, request)? {
        return Ok(edit);
    }
    let mut notes = Vec::new();
    let (path, target) = target(&files, plugin, version);
    let mut body = String::new();
    if target.is_none_or(Document::is_bare) {
        body.push_str(&format!("version = {version}\n\n"));
    }
    body.push_str(&tables(&files, plugin, request, &mut notes));
    document::put_in(target, request, path, body, notes)
}

/// Refuses where the plugin is switched off, as Docker's package has it.
fn enabled(file: &Document) -> Result<(), Error> {
    let Some(item) = file.get(&["disabled_plugins"]) else {
        return Ok(());
    };
    let disabled = item.as_array().into_iter().flatten().filter_map(|value| value.as_str());
    match disabled.into_iter().find(|name| ["cri", VERSION_2, VERSION_3].contains(name)) {
        Some(name) => Err(file.refuse(
            item,
            format!(
                "disabled_plugins has {name:?}: this containerd serves no Kubernetes, and `proa setup docker` is what Docker needs; \
                 for Kubernetes take it out of the list first (`containerd config default` shows a whole configuration)"
            ),
        )),
        None => Ok(()),
    }
}

/// The version of the configuration: what it says, or for a new one the latest that this containerd knows.
fn version(files: &Files, containerd: Option<Version>) -> Result<i64, Error> {
    let two = Version { major: 2, minor: 0 };
    let Some(main) = files.main().filter(|main| !main.is_bare()) else {
        return Ok(if containerd >= Some(two) { 3 } else { 2 });
    };
    let Some(item) = main.get(&["version"]) else {
        return Err(Error::Refused {
            path: main.path.clone(),
            line: 1,
            problem: "it says no `version`, so it is of version 1, which containerd 2 does not read; \
                      `containerd config migrate` makes a later one of it"
                .into(),
        });
    };
    match item.as_integer() {
        Some(version) if version > 2 && containerd.is_some_and(|containerd| containerd < two) => Err(main.refuse(
            item,
            format!("containerd 1 passes silently over the tables of `version = {version}`: it has to be 2"),
        )),
        Some(version @ 2..) => Ok(version),
        _ => Err(main.refuse(
            item,
            "of this `version` containerd 2 reads nothing; `containerd config migrate` makes a later one of it".into(),
        )),
    }
}

/// The table of that name that stands outside of our block. Nothing is to be done if it means the same program.
fn by_hand(files: &Files, plugin: &str, request: &Request) -> Result<Option<Edit>, Error> {
    let both = [VERSION_2, VERSION_3].map(|plugin| runtime(plugin, &request.name));
    let Some((file, item)) = both.iter().find_map(|keys| files.last(keys)) else {
        return Ok(None);
    };
    let named = binary(item);
    if named == request.binary.to_str() && file.get(&runtime(plugin, &request.name)).is_some() {
        return Ok(Some(Edit {
            path: file.path.clone(),
            before: Some(file.text.clone()),
            after: Some(file.text.clone()),
            notes: vec![format!(
                "{}:{}: the runtime {:?} is configured already, by hand; it is left as it is",
                file.path.display(),
                file.line(item),
                request.name
            )],
            ..Edit::default()
        }));
    }
    let problem = format!(
        "the runtime {:?} is configured already, with BinaryName {:?}; take it out, or choose another --runtime-name",
        request.name,
        named.unwrap_or("")
    );
    Err(file.refuse(item, problem))
}

fn binary(runtime: &Item) -> Option<&str> {
    runtime.get("options")?.get("BinaryName")?.as_str()
}

/// The file to write to, and what is in it if it is there.
fn target<'a>(files: &'a Files, plugin: &str, version: i64) -> (PathBuf, Option<&'a Document>) {
    let ours = files.all.iter().find(|file| file.block.is_some());
    let counts = || files.last(&["plugins", plugin]).map(|(file, _)| file);
    let existing = match ours {
        Some(file) => Some(file),
        None if version == 2 => counts().or_else(|| files.main()),
        None => match drop_in(files) {
            Some(path) => return (path.clone(), files.all.iter().find(|file| file.path == path)),
            None => files.main(),
        },
    };
    let path = existing.map_or_else(|| files.main.clone(), |file| file.path.clone());
    (path, existing)
}

/// A new file in a directory that the main one imports as a whole.
fn drop_in(files: &Files) -> Option<PathBuf> {
    let patterns = imports(files.main()?);
    patterns.into_iter().find_map(|pattern| {
        let last = pattern.file_name()?.to_str()?;
        let dir = pattern.parent()?;
        let plain = !dir.to_str()?.contains('*');
        (plain && last.contains('*') && fits(last, DROP_IN)).then(|| dir.join(DROP_IN))
    })
}

fn tables(files: &Files, plugin: &str, request: &Request, notes: &mut Vec<String>) -> String {
    let mut body = String::new();
    let containerd = ["plugins", plugin, "containerd"];
    let under = |key| files.last(&[containerd.as_slice(), &[key]].concat());
    let default = under("default_runtime_name")
        .and_then(|(_, item)| item.as_str())
        .unwrap_or("runc");
    if plugin == VERSION_2 && default == "runc" && under("runtimes").is_none() {
        // containerd's own words for it.
        body.push_str(&format!(
            "# containerd 1 has no other runtimes than those that are named here: its default one has to be.\n\
             [plugins.\"{plugin}\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\n"
        ));
    }
    let options = runtime(plugin, default);
    let options = [options.as_slice(), &["options", "SystemdCgroup"]].concat();
    let theirs = files.last(&options).and_then(|(_, item)| item.as_bool());
    let systemd = match request.systemd_cgroup {
        SystemdCgroup::Yes => true,
        SystemdCgroup::No => false,
        SystemdCgroup::Auto => theirs.unwrap_or_else(|| {
            notes.push(format!(
                "the runtime {default:?} says nothing of SystemdCgroup, so proa gets cgroupfs; where the kubelet's cgroupDriver is systemd, give --systemd-cgroup yes"
            ));
            false
        }),
    };
    let table = format!("plugins.\"{plugin}\".containerd.runtimes.{}", request.name);
    body.push_str(&format!(
        "[{table}]\n  runtime_type = \"io.containerd.runc.v2\"\n  pod_annotations = {annotations}\n  \
         container_annotations = {annotations}\n  [{table}.options]\n    BinaryName = {binary}\n",
        annotations = array(&ANNOTATIONS),
        binary = quoted(&request.binary.to_string_lossy()),
    ));
    if systemd {
        body.push_str("    SystemdCgroup = true\n");
    }
    body
}

pub fn remove(tree: &Tree, request: &Request) -> Result<Edit, Error> {
    // A block can be taken out of a file that is broken otherwise, too.
    let main = request.file_or(FILE);
    let text = tree.read(&main)?;
    if let Some(text) = &text
        && let Some(at) = block::find(&main, text, &request.name)?
    {
        return Ok(block::removed(main, text.clone(), &at));
    }
    let files = Files::read(tree, request)?;
    for file in &files.all {
        if let Some(at) = &file.block {
            return Ok(block::removed(file.path.clone(), file.text.clone(), at));
        }
    }
    for plugin in [VERSION_2, VERSION_3] {
        let keys = runtime(plugin, &request.name);
        if let Some((file, item)) = files.last(&keys) {
            let named = binary(item).unwrap_or_default();
            let program = Path::new(named)
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if !program.starts_with("proa") {
                return Err(file.refuse(item, format!("BinaryName {named:?} is not proa: it is left as it is")));
            }
            let after = without_table(&file.path, &file.text, &keys)?;
            return Ok(Edit {
                path: file.path.clone(),
                before: Some(file.text.clone()),
                after: Some(after),
                notes: vec![format!(
                    "{}: the comments around proa's part are gone; the table of the runtime {:?} was taken out, and nothing else",
                    file.path.display(),
                    request.name
                )],
                ..Edit::default()
            });
        }
    }
    Ok(Edit {
        path: main,
        before: text.clone(),
        after: text,
        ..Edit::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Scratch, request};
    use super::super::{Manager, add, remove, restore};
    use super::*;

    const ONE: Option<Version> = Some(Version { major: 1, minor: 6 });
    const TWO: Option<Version> = Some(Version { major: 2, minor: 1 });
    /// Debian's, for both releases.
    const DEBIAN: &str = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    \
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n      conf_dir = \"/etc/cni/net.d\"\n";

    fn parsed(text: &str) -> toml::Table {
        toml::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn runtimes(text: &str, plugin: &str) -> toml::Table {
        let table = parsed(text)["plugins"][plugin]["containerd"]["runtimes"].clone();
        table.as_table().unwrap().clone()
    }

    #[test]
    fn a_new_configuration_is_of_the_version_that_this_containerd_knows_and_goes_again() {
        for (release, version, plugin, names) in [
            (ONE, 2, VERSION_2, vec!["proa", "runc"]),
            (None, 2, VERSION_2, vec!["proa", "runc"]),
            (TWO, 3, VERSION_3, vec!["proa"]),
        ] {
            let scratch = Scratch::new(&format!("containerd-new-{release:?}"));
            scratch.set_up(Manager::Containerd, &request(), release);
            let text = scratch.read(FILE).unwrap();
            assert_eq!(parsed(&text)["version"].as_integer(), Some(version));
            let mut found: Vec<String> = runtimes(&text, plugin).keys().cloned().collect();
            found.sort();
            assert_eq!(found, names);
            assert_eq!(scratch.take_down(Manager::Containerd, &request()), None);
            assert_eq!(scratch.files(), Vec::<String>::new());
        }
    }

    #[test]
    fn the_distributions_configuration_is_extended_and_restored_to_the_byte() {
        // With and without an end of the last line, and with what an administrator may write.
        for (at, text) in [DEBIAN, DEBIAN.trim_end(), &format!("# mine\n{DEBIAN}\n\n# end\n")]
            .iter()
            .enumerate()
        {
            let scratch = Scratch::new(&format!("containerd-debian-{at}"));
            scratch.write(FILE, text);
            let edit = scratch.set_up(Manager::Containerd, &request(), ONE);
            let now = scratch.read(FILE).unwrap();
            assert!(now.starts_with(text.trim_end()), "{now}");
            assert!(runtimes(&now, VERSION_2).contains_key("runc"), "{now}");
            assert!(
                edit.notes.iter().any(|note| note.contains("SystemdCgroup")),
                "{:?}",
                edit.notes
            );
            let copy = scratch.read(&format!("{}{FILE}", super::super::BACKUPS));
            assert_eq!(copy.as_deref(), Some(*text));
            assert_eq!(scratch.take_down(Manager::Containerd, &request()), None);
            assert_eq!(scratch.read(FILE).as_deref(), Some(*text));
            assert_eq!(scratch.files(), [FILE]);
        }
    }

    #[test]
    fn what_others_wrote_meanwhile_stays() {
        let scratch = Scratch::new("containerd-foreign");
        scratch.write(FILE, DEBIAN);
        scratch.set_up(Manager::Containerd, &request(), ONE);
        let now = scratch.read(FILE).unwrap();
        let more = "\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n";
        scratch.write(FILE, &format!("# theirs\n{now}{more}"));
        let left = scratch.take_down(Manager::Containerd, &request());
        assert_eq!(scratch.read(FILE), Some(format!("# theirs\n{DEBIAN}{more}")));
        assert_eq!(
            left,
            Some(PathBuf::from(format!("{}{FILE}", super::super::BACKUPS))),
            "the copy is of use still"
        );
    }

    #[test]
    fn another_programs_rewriting_does_not_keep_it_from_going() {
        let scratch = Scratch::new("containerd-rewritten");
        scratch.write(FILE, DEBIAN);
        scratch.set_up(Manager::Containerd, &request(), ONE);
        // Without a comment, as a program writes that reads the file and writes it anew.
        let now = scratch.read(FILE).unwrap();
        let rewritten: String = now
            .split_inclusive('\n')
            .filter(|line| !line.starts_with('#'))
            .collect();
        scratch.write(FILE, &rewritten);
        let found = add(&scratch.tree(), Manager::Containerd, &request(), None).unwrap();
        assert!(!found.changes() && found.notes[0].contains("by hand"), "{found:?}");
        let edit = remove(&scratch.tree(), Manager::Containerd, &request()).unwrap();
        restore(&scratch.tree(), &request(), &edit).unwrap();
        let left = runtimes(&scratch.read(FILE).unwrap(), VERSION_2);
        assert!(!left.contains_key("proa") && left.contains_key("runc"), "{left:?}");
    }

    #[test]
    fn the_cgroup_driver_follows_the_default_runtime() {
        let theirs = |name: &str, value: bool| {
            format!(
                "version = 2\n[plugins.\"{VERSION_2}\".containerd]\ndefault_runtime_name = \"{name}\"\n\
                 [plugins.\"{VERSION_2}\".containerd.runtimes.{name}]\nruntime_type = \"io.containerd.runc.v2\"\n\
                 [plugins.\"{VERSION_2}\".containerd.runtimes.{name}.options]\nSystemdCgroup = {value}\n"
            )
        };
        for (text, asked, expected) in [
            (theirs("runc", true), SystemdCgroup::Auto, true),
            (theirs("runc", false), SystemdCgroup::Auto, false),
            (theirs("nvidia", true), SystemdCgroup::Auto, true),
            (theirs("runc", true), SystemdCgroup::No, false),
            (theirs("runc", false), SystemdCgroup::Yes, true),
        ] {
            let scratch = Scratch::new(&format!("containerd-driver-{}", text.len() + asked as usize));
            scratch.write(FILE, &text);
            let mut request = request();
            request.systemd_cgroup = asked;
            let edit = scratch.set_up(Manager::Containerd, &request, ONE);
            let runtimes = runtimes(&scratch.read(FILE).unwrap(), VERSION_2);
            assert_eq!(runtimes.len(), 2, "no runc is added where runtimes are: {runtimes:?}");
            let options = &runtimes["proa"]["options"];
            assert_eq!(
                options.get("SystemdCgroup").and_then(toml::Value::as_bool),
                expected.then_some(true)
            );
            assert_eq!(edit.notes, Vec::<String>::new());
        }
    }

    #[test]
    fn an_imported_directory_takes_a_drop_in_from_version_3_on() {
        let scratch = Scratch::new("containerd-imports-3");
        let main = "version = 3\nimports = ['conf.d/*.toml']\n";
        scratch.write(FILE, main);
        scratch.write(
            "/etc/containerd/conf.d/10-driver.toml",
            &format!("version = 3\n[plugins.'{VERSION_3}'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"),
        );
        let edit = scratch.set_up(Manager::Containerd, &request(), TWO);
        assert_eq!(edit.path, Path::new("/etc/containerd/conf.d/90-proa.toml"));
        let text = scratch.read("/etc/containerd/conf.d/90-proa.toml").unwrap();
        assert_eq!(parsed(&text)["version"].as_integer(), Some(3));
        let runtimes = runtimes(&text, VERSION_3);
        assert_eq!(runtimes["proa"]["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(
            scratch.read(FILE).as_deref(),
            Some(main),
            "the main file is not touched"
        );
        scratch.take_down(Manager::Containerd, &request());
        assert_eq!(scratch.files(), ["/etc/containerd/conf.d/10-driver.toml", FILE]);
    }

    #[test]
    fn version_2_is_edited_in_the_imported_file_that_counts() {
        let scratch = Scratch::new("containerd-imports-2");
        scratch.write(
            FILE,
            &format!("imports = [\"/etc/containerd/conf.d/*.toml\"]\n{DEBIAN}"),
        );
        let counts = "/etc/containerd/conf.d/20-b.toml";
        for path in ["/etc/containerd/conf.d/10-a.toml", counts] {
            scratch.write(
                path,
                &format!("version = 2\n[plugins.\"{VERSION_2}\"]\nsandbox_image = \"{path}\"\n"),
            );
        }
        let before = scratch.read(counts);
        let edit = scratch.set_up(Manager::Containerd, &request(), ONE);
        assert_eq!(edit.path, Path::new(counts));
        scratch.take_down(Manager::Containerd, &request());
        assert_eq!(scratch.read(counts), before);
    }

    #[test]
    fn what_cannot_be_extended_is_refused_with_its_line() {
        let hand = |binary: &str| {
            format!(
                "version = 2\n\n[plugins.\"{VERSION_2}\".containerd.runtimes.proa]\n\
                 options = {{ BinaryName = \"{binary}\" }}\n"
            )
        };
        for (at, (text, release, words)) in [
            ("version = 2\n[plugins\n", ONE, &["line 2", FILE][..]),
            ("disabled_plugins = [\"cri\"]\n", ONE, &[":1:", "setup docker"]),
            ("# x\n[plugins.cri]\na = 1\n", ONE, &["no `version`", "config migrate"]),
            ("version = 1\n", ONE, &[":1:", "config migrate"]),
            ("\nversion = 3\n", ONE, &[":2:", "has to be 2"]),
            ("version = \"2\"\n", ONE, &[":1:"]),
            ("version = 2\nplugins = { x = 1 }\n", ONE, &["line"]),
            (
                &hand("/usr/bin/other"),
                ONE,
                &[":3:", "/usr/bin/other", "--runtime-name"],
            ),
            ("version = 2\n# BEGIN proa setup: proa\n", ONE, &[":2:", "END"]),
        ]
        .into_iter()
        .enumerate()
        {
            let scratch = Scratch::new(&format!("containerd-refused-{at}"));
            scratch.write(FILE, text);
            let error = scratch.refused(Manager::Containerd, &request(), release);
            for word in words {
                assert!(error.contains(word), "no {word:?} in {error}");
            }
        }
        let scratch = Scratch::new("containerd-by-hand");
        scratch.write(FILE, &hand("/usr/local/bin/proa"));
        let edit = add(&scratch.tree(), Manager::Containerd, &request(), None).unwrap();
        assert!(!edit.changes() && edit.notes[0].contains(":3:"), "{edit:?}");
        scratch.write(FILE, &hand("/usr/bin/other"));
        assert!(remove(&scratch.tree(), Manager::Containerd, &request()).is_err());
    }

    #[test]
    fn a_broken_file_gives_up_our_part_all_the_same() {
        let scratch = Scratch::new("containerd-broken-remove");
        scratch.write(FILE, DEBIAN);
        scratch.set_up(Manager::Containerd, &request(), ONE);
        let broken = format!("{}[plugins\n", scratch.read(FILE).unwrap());
        scratch.write(FILE, &broken);
        let edit = remove(&scratch.tree(), Manager::Containerd, &request()).unwrap();
        restore(&scratch.tree(), &request(), &edit).unwrap();
        assert_eq!(scratch.read(FILE), Some(format!("{DEBIAN}[plugins\n")));
    }

    #[test]
    fn another_binary_takes_the_place_of_the_first() {
        let scratch = Scratch::new("containerd-again");
        scratch.write(FILE, DEBIAN);
        scratch.set_up(Manager::Containerd, &request(), ONE);
        let mut other = request();
        other.binary = "/opt/proa".into();
        scratch.set_up(Manager::Containerd, &other, ONE);
        let runtimes = runtimes(&scratch.read(FILE).unwrap(), VERSION_2);
        assert_eq!(runtimes["proa"]["options"]["BinaryName"].as_str(), Some("/opt/proa"));
        other.name = "proa-2".into();
        scratch.set_up(Manager::Containerd, &other, ONE);
        scratch.take_down(Manager::Containerd, &request());
        scratch.take_down(Manager::Containerd, &other);
        assert_eq!(scratch.read(FILE).as_deref(), Some(DEBIAN));
    }

    #[test]
    fn patterns_are_gos() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", "a.toml.bak", false),
            ("*", "", true),
            ("a*b*c", "aXbYbc", true),
            ("a*b*c", "acb", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
