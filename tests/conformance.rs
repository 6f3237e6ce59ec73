//! `docs/spec-conformance.md` says of every field of the runtime-spec what becomes of it and which test shows it. These tests
//! keep it whole: every field that the parser knows has a row, and every test that a row names exists.

use oci_spec::runtime::Spec;
use serde::Deserialize;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

type Error = de::value::Error;

/// A deserializer of nothing: it gives every type what that asks for, and notes the fields asked for on the way.
struct Tracer<'a> {
    path: String,
    fields: &'a RefCell<BTreeSet<String>>,
}

impl Tracer<'_> {
    fn at(&self, path: String) -> Self {
        Self { path, ..*self }
    }

    /// A text that the type at this path takes.
    fn text(&self) -> &'static str {
        match self.path.as_str() {
            path if path.contains("capabilities.") => "CAP_KILL",
            path if path.contains("execCPUAffinity") => "0",
            _ => "",
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(0 as $type)
        })*
    };
}

impl<'de> Deserializer<'de> for Tracer<'_> {
    type Error = Error;

    numbers! {
        deserialize_i8 visit_i8 i8  deserialize_i16 visit_i16 i16  deserialize_i32 visit_i32 i32
        deserialize_i64 visit_i64 i64  deserialize_u8 visit_u8 u8  deserialize_u16 visit_u16 u16
        deserialize_u32 visit_u32 u32  deserialize_u64 visit_u64 u64
        deserialize_f32 visit_f32 f32  deserialize_f64 visit_f64 f64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.text())
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(false)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let path = format!("{}[]", self.path);
        visitor.visit_seq(Once(Some(self.at(path))))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Members {
            names: ["*"].iter(),
            current: "",
            of: self,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Members {
            names: fields.iter(),
            current: "",
            of: self,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(First(variants[0]))
    }

    serde::forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// A list of one.
struct Once<'a>(Option<Tracer<'a>>);

impl<'de> SeqAccess<'de> for Once<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|item| seed.deserialize(item)).transpose()
    }
}

/// The members of a structure, or the one of a map.
struct Members<'a> {
    names: std::slice::Iter<'static, &'static str>,
    current: &'static str,
    of: Tracer<'a>,
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.names.next() else { return Ok(None) };
        self.current = name;
        seed.deserialize((*name).into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let path = format!("{}.{}", self.of.path, self.current);
        let path = path.trim_start_matches('.').to_owned();
        if self.current != "*" {
            self.of.fields.borrow_mut().insert(path.clone());
        }
        seed.deserialize(self.of.at(path))
    }
}

/// The first variant of an enumeration.
struct First(&'static str);

impl<'de> EnumAccess<'de> for First {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        Ok((seed.deserialize(self.0.into_deserializer())?, self))
    }
}

impl<'de> VariantAccess<'de> for First {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(de::Error::custom("no enumeration of the specification has content"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("no enumeration of the specification has content"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("no enumeration of the specification has content"))
    }
}

/// Every field that the types know, e.g. `linux.namespaces[].path`.
fn fields<T: for<'de> Deserialize<'de>>() -> BTreeSet<String> {
    let fields = RefCell::default();
    let tracer = Tracer {
        path: String::new(),
        fields: &fields,
    };
    if let Err(error) = T::deserialize(tracer) {
        panic!("{error}, after {:?}", fields.borrow().last());
    }
    fields.into_inner()
}

/// A row of a table whose first column names fields.
struct Row {
    fields: Vec<String>,
    tests: Vec<String>,
    becomes: String,
}

/// What stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The rows of the section `heading` of the document.
fn rows(heading: &str) -> Vec<Row> {
    let text = std::fs::read_to_string(root().join("docs/spec-conformance.md")).unwrap();
    let section = text
        .split(&format!("\n## {heading}\n"))
        .nth(1)
        .unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let [first, becomes, last] = cells[..] else {
                panic!("{line:?} has not three columns")
            };
            let mut fields: Vec<String> = Vec::new();
            for name in quoted(first) {
                let full = match (name.strip_prefix('.'), fields.first()) {
                    (Some(name), Some(first)) => match first.rsplit_once('.') {
                        Some((parent, _)) => format!("{parent}.{name}"),
                        None => name.to_owned(),
                    },
                    _ => name.to_owned(),
                };
                fields.push(full);
            }
            // No field and no verb has an underscore.
            let is_test = |name: &&str| name.contains('_');
            Row {
                fields,
                tests: quoted(last).filter(is_test).map(str::to_owned).collect(),
                becomes: becomes.to_owned(),
            }
        })
        .collect()
}

const CONFIGURATION: [&str; 3] = ["config.md", "config-linux.md", "Other platforms"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Whether `row` is for `field`: by its name, or by that of a section with all that is in it.
fn covers(row: &str, field: &str) -> bool {
    row == field
        || row
            .strip_suffix(".*")
            .is_some_and(|section| field.starts_with(&format!("{section}.")))
}

#[test]
fn every_field_has_a_row_and_every_row_a_field() {
    let mut known = fields::<Spec>();
    // Sections that the parser doesn't know.
    known.extend(["freebsd", "freebsd.devices"].map(str::to_owned));
    let rows: Vec<String> = CONFIGURATION
        .iter()
        .flat_map(|section| rows(section))
        .flat_map(|row| row.fields)
        .collect();
    let missing: Vec<&String> = known
        .iter()
        .filter(|field| !rows.iter().any(|row| covers(row, field)))
        .collect();
    assert!(missing.is_empty(), "fields without a row: {missing:#?}");
    let invented: Vec<&String> = rows
        .iter()
        .filter(|row| !known.iter().any(|field| covers(row, field)))
        .collect();
    assert!(invented.is_empty(), "rows of no field: {invented:#?}");
    let mut seen = BTreeSet::new();
    let twice: Vec<&String> = rows.iter().filter(|row| !seen.insert(*row)).collect();
    assert!(twice.is_empty(), "in two rows: {twice:#?}");
}

#[test]
fn what_is_done_is_shown_by_tests_that_exist() {
    let mut functions = BTreeSet::new();
    for dir in ["src", "seccomp", "executor", "sys", "integration/tests", "tests"] {
        read_functions(&root().join(dir), &mut functions);
    }
    let sections = CONFIGURATION
        .iter()
        .chain(["runtime.md", "features.md, features-linux.md"].iter());
    for row in sections.flat_map(|section| rows(section)) {
        let unknown: Vec<&String> = row.tests.iter().filter(|test| !functions.contains(*test)).collect();
        assert!(unknown.is_empty(), "{:?} names {unknown:?}", row.fields);
        assert!(
            ["done", "as runc", "ignored", "other"].contains(&row.becomes.as_str()),
            "{:?} is {:?}",
            row.fields,
            row.becomes
        );
    }
    for row in CONFIGURATION.iter().flat_map(|section| rows(section)) {
        // Nothing on a machine without SELinux shows it.
        let shown = !row.tests.is_empty() || row.fields == ["linux.mountLabel"];
        let done = matches!(row.becomes.as_str(), "done" | "as runc");
        assert!(shown || !done, "nothing shows {:?}", row.fields);
    }
}

/// The names of the functions in the sources below `dir` that come right after `#[test]`, or that are in a suite's list.
fn read_functions(dir: &Path, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_functions(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let name = |line: &str| {
                let rest = line.trim().strip_prefix("fn ")?;
                Some(rest.split('(').next()?.to_owned())
            };
            let after_attribute = text.lines().zip(text.lines().skip(1));
            into.extend(
                after_attribute
                    .filter(|(line, _)| line.trim() == "#[test]")
                    .filter_map(|(_, next)| name(next)),
            );
            let listed = text.split("tests! {").nth(1).and_then(|rest| rest.split("\n}").next());
            let listed = listed.unwrap_or_default().lines().map(str::trim);
            into.extend(
                listed
                    .filter_map(|line| line.split([' ', ';', '.']).next())
                    .map(str::to_owned),
            );
        }
    }
}
