//! podman: a drop-in of `containers.conf`, which is merged table by table; arrays replace each other.

use super::block;
use super::document::{self, Document, array, quoted};
use super::tree::Tree;
use super::{Edit, Error, Request};
use std::path::{Path, PathBuf};
use toml_edit::Item;

/// Sorts behind what else may be in the directory, so that the arrays here, which have the others' entries, are what counts.
const DROP_IN: &str = "containers.conf.d/90-proa.conf";
const SYSTEM: &str = "/etc/containers";
/// podman's own, unless a file says otherwise: the runtimes whose log it reads, and those that it asks for `--cgroups=disabled`.
const JSON: [&str; 7] = ["crun", "runc", "kata", "runsc", "youki", "krun", "ocijail"];
const NO_CGROUP: [&str; 2] = ["crun", "krun"];
const PLATFORMS: [&str; 3] = ["wasi/wasm", "wasi/wasm32", "wasi/wasm64"];

fn drop_in(request: &Request) -> PathBuf {
    let own = match &request.user {
        Some(config) => config.join("containers"),
        None => SYSTEM.into(),
    };
    request.file.clone().unwrap_or_else(|| own.join(DROP_IN))
}

pub fn add(tree: &Tree, request: &Request) -> Result<Edit, Error> {
    let path = drop_in(request);
    let files = others(tree, request, &path)?;
    let mut names = vec![request.name.clone()];
    let mut runtimes = format!("{} = {}\n", request.name, array(&[request.binary.to_string_lossy()]));
    let mut platforms = String::new();
    if let Some(alias) = &request.alias {
        let name = request.alias_name();
        runtimes.push_str(&format!("{name} = {}\n", array(&[alias.to_string_lossy()])));
        for platform in PLATFORMS {
            platforms.push_str(&format!("\"{platform}\" = {}\n", quoted(&name)));
        }
        platforms.insert_str(0, "\n[engine.platform_to_oci_runtime]\n");
        names.push(name);
    }
    let [json, no_cgroup] = [
        ("runtime_supports_json", &JSON[..]),
        ("runtime_supports_nocgroup", &NO_CGROUP),
    ]
    .map(|(key, usual)| {
        let mut list = listed(&files, key).unwrap_or_else(|| usual.iter().map(|name| (*name).to_owned()).collect());
        list.extend(
            names
                .iter()
                .filter(|name| !list.contains(name))
                .cloned()
                .collect::<Vec<_>>(),
        );
        format!("{key} = {}\n", array(&list))
    });
    let body = format!("[engine]\n{json}{no_cgroup}\n[engine.runtimes]\n{runtimes}{platforms}");
    document::put(tree, request, path, body, Vec::new())
}

/// What else podman reads, in its order.
fn others(tree: &Tree, request: &Request, own: &Path) -> Result<Vec<Document>, Error> {
    let mut paths = vec![PathBuf::from("/usr/share/containers/containers.conf")];
    let user = request.user.as_ref().map(|config| config.join("containers"));
    for dir in [Some(PathBuf::from(SYSTEM)), user].into_iter().flatten() {
        paths.push(dir.join("containers.conf"));
        let dir = dir.join("containers.conf.d");
        let names = tree.list(&dir)?;
        let names = names.iter().filter(|name| name.to_string_lossy().ends_with(".conf"));
        paths.extend(names.map(|name| dir.join(name)));
    }
    let mut files = Vec::new();
    for path in paths.iter().filter(|path| *path != own) {
        if let Some(text) = tree.read(path)? {
            let file = Document::parse(path, text, &request.name)?;
            refuse_other(&file, request)?;
            files.push(file);
        }
    }
    Ok(files)
}

/// A runtime of that name that is another program.
fn refuse_other(file: &Document, request: &Request) -> Result<(), Error> {
    let Some(item) = file.get(&["engine", "runtimes", &request.name]) else {
        return Ok(());
    };
    let paths = item.as_array().into_iter().flatten().filter_map(|value| value.as_str());
    if paths.into_iter().next() == request.binary.to_str() {
        return Ok(());
    }
    let problem = format!(
        "the runtime {:?} is configured already, as another program; take it out, or choose another --runtime-name",
        request.name
    );
    Err(file.refuse(item, problem))
}

/// The strings of the last array of that name.
fn listed(files: &[Document], key: &str) -> Option<Vec<String>> {
    let array = files.iter().rev().find_map(|file| file.get(&["engine", key]))?;
    let strings = Item::as_array(array)?.iter().filter_map(|value| value.as_str());
    Some(strings.map(str::to_owned).collect())
}

pub fn remove(tree: &Tree, request: &Request) -> Result<Edit, Error> {
    block::take(tree, request, drop_in(request))
}

#[cfg(test)]
mod tests {
    use super::super::Manager;
    use super::super::tests::{Scratch, request};

    const PATH: &str = "/etc/containers/containers.conf.d/90-proa.conf";

    fn engine(scratch: &Scratch, path: &str) -> toml::Table {
        let table: toml::Table = toml::from_str(&scratch.read(path).unwrap()).unwrap();
        table["engine"].as_table().unwrap().clone()
    }

    #[test]
    fn a_drop_in_is_made_and_goes_again() {
        let scratch = Scratch::new("podman");
        scratch.set_up(Manager::Podman, &request(), None);
        let engine = engine(&scratch, PATH);
        assert_eq!(engine["runtimes"]["proa"][0].as_str(), Some("/usr/local/bin/proa"));
        assert_eq!(
            engine["platform_to_oci_runtime"]["wasi/wasm"].as_str(),
            Some("proa-wasm")
        );
        let json = engine["runtime_supports_json"].as_array().unwrap();
        assert_eq!(
            (json.len(), json[0].as_str(), json[8].as_str()),
            (9, Some("crun"), Some("proa-wasm"))
        );
        scratch.take_down(Manager::Podman, &request());
        assert_eq!(scratch.files(), Vec::<String>::new());
    }

    #[test]
    fn without_the_other_name_no_runtime_is_promised_that_is_not_there() {
        let scratch = Scratch::new("podman-alias");
        let mut request = request();
        request.alias = None;
        scratch.set_up(Manager::Podman, &request, None);
        let engine = engine(&scratch, PATH);
        assert_eq!(engine["runtimes"].as_table().unwrap().len(), 1);
        assert!(!engine.contains_key("platform_to_oci_runtime"));
    }

    #[test]
    fn what_the_administrator_lists_stays_listed() {
        let scratch = Scratch::new("podman-lists");
        scratch.write(
            "/usr/share/containers/containers.conf",
            "[engine]\nruntime_supports_json = [\"never\"]\n",
        );
        scratch.write(
            "/etc/containers/containers.conf",
            "[engine]\nruntime_supports_json = [\"mine\", \"proa\"]\n",
        );
        scratch.set_up(Manager::Podman, &request(), None);
        let json = &engine(&scratch, PATH)["runtime_supports_json"];
        let json: Vec<_> = json
            .as_array()
            .unwrap()
            .iter()
            .filter_map(toml::Value::as_str)
            .collect();
        assert_eq!(json, ["mine", "proa", "proa-wasm"]);
    }

    #[test]
    fn a_users_podman_has_its_own_drop_in_below_the_systems() {
        let scratch = Scratch::new("podman-user");
        scratch.write(
            "/etc/containers/containers.conf",
            "[engine]\nruntime_supports_nocgroup = [\"mine\"]\n",
        );
        let mut request = request();
        request.user = Some("/home/me/.config".into());
        scratch.set_up(Manager::Podman, &request, None);
        let path = "/home/me/.config/containers/containers.conf.d/90-proa.conf";
        let list = &engine(&scratch, path)["runtime_supports_nocgroup"];
        assert_eq!(list[0].as_str(), Some("mine"));
        scratch.take_down(Manager::Podman, &request);
    }

    #[test]
    fn another_program_and_a_broken_file_are_refused_with_their_lines() {
        let scratch = Scratch::new("podman-refused");
        let path = "/etc/containers/containers.conf";
        scratch.write(path, "[engine.runtimes]\nproa = [\"/x\"]\n");
        let error = scratch.refused(Manager::Podman, &request(), None);
        assert!(error.starts_with(&format!("{path}:2: ")), "{error}");
        scratch.write(path, "[engine]\n\nx = \n");
        assert!(scratch.refused(Manager::Podman, &request(), None).contains("line 3"));
        scratch.write(path, "");
        // Somebody else's file of our name: its tables can't be had twice.
        scratch.write(PATH, "[engine]\nruntime = \"crun\"\n");
        assert!(scratch.refused(Manager::Podman, &request(), None).contains("line"));
    }
}
