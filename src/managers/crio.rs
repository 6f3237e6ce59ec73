//! CRI-O: a drop-in, which it merges with `crio.conf` key by key.

use super::document::{self, Document, array, quoted};
use super::tree::Tree;
use super::{Edit, Error, Request, Version, block};
use std::path::{Path, PathBuf};

const MAIN: &str = "/etc/crio/crio.conf";
const DIRECTORY: &str = "/etc/crio/crio.conf.d";
const DROP_IN: &str = "/etc/crio/crio.conf.d/90-proa.conf";
/// CRI-O takes these names, and no others that begin with them: for `run.oci.handler` it would not start. Before 1.30 it knows
/// neither, and lets the annotations through anyway; `proa.wasm/NAME` goes through everywhere.
const ALLOWED: [&str; 2] = ["run.oci.", "module.wasm.image/variant"];
const FIRST_THAT_FILTERS: Version = Version { major: 1, minor: 30 };

pub fn add(tree: &Tree, request: &Request, crio: Option<Version>) -> Result<Edit, Error> {
    let path = request.file_or(DROP_IN);
    let mut paths = vec![PathBuf::from(MAIN)];
    paths.extend(
        tree.list(Path::new(DIRECTORY))?
            .iter()
            .map(|name| Path::new(DIRECTORY).join(name)),
    );
    for other in paths.iter().filter(|other| **other != path) {
        let Some(text) = tree.read(other)? else { continue };
        let file = Document::parse(other, text, &request.name)?;
        if let Some(item) = file.get(&["crio", "runtime", "runtimes", &request.name]) {
            let problem = format!(
                "the runtime {:?} is configured already; take it out, or choose another --runtime-name",
                request.name
            );
            return Err(file.refuse(item, problem));
        }
    }
    let mut notes = Vec::new();
    let mut body = format!(
        "[crio.runtime.runtimes.{}]\nruntime_path = {}\nruntime_type = \"oci\"\nruntime_root = \"/run/proa\"\n",
        request.name,
        quoted(&request.binary.to_string_lossy())
    );
    match crio {
        Some(version) if version < FIRST_THAT_FILTERS => {}
        known => {
            if known.is_none() {
                notes.push(
                    "allowed_annotations is for CRI-O 1.30 and later; an earlier one wants that line away".into(),
                );
            }
            body.push_str(&format!("allowed_annotations = {}\n", array(&ALLOWED)));
        }
    }
    if let Some(alias) = &request.alias {
        let alias = quoted(&alias.to_string_lossy());
        body.push_str(&format!(
            "platform_runtime_paths = {{ \"wasi/wasm\" = {alias}, \"wasi/wasm32\" = {alias} }}\n"
        ));
    }
    document::put(tree, request, path, body, notes)
}

pub fn remove(tree: &Tree, request: &Request) -> Result<Edit, Error> {
    block::take(tree, request, request.file_or(DROP_IN))
}

#[cfg(test)]
mod tests {
    use super::super::Manager;
    use super::super::tests::{Scratch, request};
    use super::*;

    fn runtime(scratch: &Scratch) -> toml::Table {
        let text = scratch.read(DROP_IN).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        table["crio"]["runtime"]["runtimes"]["proa"].as_table().unwrap().clone()
    }

    #[test]
    fn a_drop_in_is_made_and_goes_again() {
        let scratch = Scratch::new("crio");
        scratch.write(MAIN, "[crio.runtime]\ndefault_runtime = \"crun\"\n");
        scratch.set_up(Manager::Crio, &request(), Some(Version { major: 1, minor: 33 }));
        let runtime = runtime(&scratch);
        assert_eq!(runtime["runtime_path"].as_str(), Some("/usr/local/bin/proa"));
        assert_eq!(
            runtime["platform_runtime_paths"]["wasi/wasm"].as_str(),
            Some("/usr/local/bin/proa-wasm")
        );
        let allowed: Vec<_> = runtime["allowed_annotations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_str().unwrap())
            .collect();
        assert_eq!(allowed, ["run.oci.", "module.wasm.image/variant"]);
        scratch.take_down(Manager::Crio, &request());
        assert_eq!(scratch.files(), [MAIN]);
    }

    #[test]
    fn an_old_crio_is_not_given_annotations_that_it_refuses_to_start_with() {
        let scratch = Scratch::new("crio-old");
        let mut request = request();
        request.alias = None;
        scratch.set_up(Manager::Crio, &request, Some(Version { major: 1, minor: 29 }));
        let runtime = runtime(&scratch);
        assert!(!runtime.contains_key("allowed_annotations") && !runtime.contains_key("platform_runtime_paths"));
        let edit = add(&scratch.tree(), &request, None).unwrap();
        assert!(edit.notes[0].contains("1.30"), "{edit:?}");
    }

    #[test]
    fn what_is_configured_elsewhere_or_broken_is_refused_with_its_line() {
        let scratch = Scratch::new("crio-refused");
        let path = "/etc/crio/crio.conf.d/10-mine.conf";
        scratch.write(path, "\n[crio.runtime.runtimes.proa]\nruntime_path = \"/x\"\n");
        let error = scratch.refused(Manager::Crio, &request(), None);
        assert!(error.starts_with(&format!("{path}:2: ")), "{error}");
        scratch.write(path, "[crio\n");
        assert!(scratch.refused(Manager::Crio, &request(), None).contains("line 1"));
    }
}
