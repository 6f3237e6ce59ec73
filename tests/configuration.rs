//! `docs/configuration.md` has a row for every key of the configuration file and for every annotation, no row of anything else, and an
//! example that is one.

use proa::wasm::Settings;
use proa::wasm::annotations::{NAMES, PREFIX};
use std::collections::BTreeSet;
use std::path::Path;

/// What no table has.
const NO_KEY: &str = "no-such-key";

/// The keys of a table, which the parser tells when it meets another one; `None` if it is no table.
fn keys(table: &str) -> Option<Vec<String>> {
    let header = if table.is_empty() {
        String::new()
    } else {
        format!("[{table}]\n")
    };
    let error = toml::from_str::<Settings>(&format!("{header}{NO_KEY} = 1"))
        .expect_err("there is no such key")
        .to_string();
    let (_, expected) = error.split_once(&format!("unknown field `{NO_KEY}`, expected "))?;
    let names = expected.split('`').skip(1).step_by(2);
    Some(names.map(str::to_owned).collect())
}

/// All keys that are no tables, in full.
fn all_keys(table: &str, into: &mut BTreeSet<String>) {
    for key in keys(table).expect("a table") {
        let full = if table.is_empty() {
            key
        } else {
            format!("{table}.{key}")
        };
        match keys(&full) {
            Some(_) => all_keys(&full, into),
            None => drop(into.insert(full)),
        }
    }
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    std::fs::read_to_string(path).unwrap()
}

/// What the first column of a section's table names.
fn rows(heading: &str) -> Vec<String> {
    let text = document();
    let section = text
        .split(&format!("\n## {heading}\n"))
        .nth(1)
        .unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned()).collect()
}

fn same(what: &str, known: &BTreeSet<String>, rows: &[String]) {
    let documented: BTreeSet<String> = rows.iter().cloned().collect();
    assert_eq!(documented.len(), rows.len(), "{what}: one is in two rows");
    let missing: Vec<_> = known.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(known).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "{what}: without a row {missing:?}; rows of none {invented:?}"
    );
}

#[test]
fn every_key_has_a_row_and_every_row_a_key() {
    let mut known = BTreeSet::new();
    all_keys("", &mut known);
    assert!(
        known.contains("wasm.detect") && known.contains("wasm.limits.fuel"),
        "{known:?}"
    );
    same("keys", &known, &rows("Keys"));
}

#[test]
fn every_annotation_has_a_row_and_every_row_an_annotation() {
    let known = NAMES.iter().map(|(name, _)| format!("{PREFIX}{name}")).collect();
    same("annotations", &known, &rows("Annotations"));
}

#[test]
fn the_example_is_a_configuration_with_every_key() {
    let text = document();
    let example = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    toml::from_str::<Settings>(example).unwrap_or_else(|error| panic!("{error}"));
    fn leaves(value: &toml::Value, path: &str, into: &mut BTreeSet<String>) {
        match value.as_table() {
            Some(table) => table.iter().for_each(|(key, value)| {
                let full = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                leaves(value, &full, into);
            }),
            None => drop(into.insert(path.to_owned())),
        }
    }
    let mut used = BTreeSet::new();
    leaves(&toml::from_str(example).unwrap(), "", &mut used);
    let mut known = BTreeSet::new();
    all_keys("", &mut known);
    assert_eq!(used, known);
}
