//! `config.json` as written: read once, parsed once, judged only where the verb itself would make no sense.

use oci_spec::runtime::{Capability, Process, Spec};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A bundle's `config.json`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The parsed document.
    pub spec: Spec,
    /// The document's bytes, kept to be stored beside the container's state.
    pub raw: Vec<u8>,
}

/// Why a `config.json` can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file. Worded as runc words it.
    #[error("JSON specification file {file} not found in {dir}", dir = dir.display())]
    NotFound {
        /// The file's name.
        file: String,
        /// The directory it should be in.
        dir: PathBuf,
    },
    /// The file can't be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not valid JSON or not a runtime-spec configuration.
    #[error("{path}: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field has a value that the runtime-spec does not know.
    #[error("{path}: {field}: {what}{source}", path = path.display(), what = runcs_words(field))]
    Value {
        /// The file.
        path: PathBuf,
        /// Where in the document, e.g. `linux.seccomp.defaultAction`.
        field: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A field's value can't be used.
    #[error("{field}: {problem}")]
    Field {
        /// Where in the document, e.g. `process.cwd`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The document is `null`. Worded as runc words it.
    #[error("config cannot be null")]
    Null,
    /// There is no `process`. Worded as runc words it.
    #[error("process property must not be empty")]
    NoProcess,
    /// There is no `process.cwd`. Worded as runc words it.
    #[error("Cwd property must not be empty")]
    NoCwd,
    /// `process.cwd` is relative. Worded as runc words it.
    #[error("Cwd must be an absolute path: {0:?}")]
    RelativeCwd(PathBuf),
    /// There is no program to run. Worded as runc words it.
    #[error("args must not be empty")]
    NoArgs,
}

impl Config {
    /// Reads `config.json` of the bundle directory `bundle`, and refuses it if its process could never be run.
    pub fn load(bundle: &Path) -> Result<Self, Error> {
        let config = Self::load_file(&bundle.join("config.json"))?;
        config.process()?;
        Ok(config)
    }

    /// Reads the configuration at `path`.
    pub fn load_file(path: &Path) -> Result<Self, Error> {
        let raw = crate::files::read(path).map_err(|source| match source.kind() {
            ErrorKind::NotFound => Error::NotFound {
                file: path.file_name().unwrap_or_default().to_string_lossy().into(),
                dir: path.parent().unwrap_or(Path::new("/")).into(),
            },
            _ => Error::Read {
                path: path.into(),
                source,
            },
        })?;
        let config = Self::parse(raw, path)?;
        check_version(config.spec.version())?;
        Ok(config)
    }

    /// Parses `raw`; `path` is for messages.
    pub fn parse(raw: Vec<u8>, path: &Path) -> Result<Self, Error> {
        let mut config = match serde_json::from_slice(&raw) {
            Ok(spec) => Self { spec, raw },
            Err(_) => Self::parse_leniently(&raw, path)?,
        };
        config.forget_absent_pids_limit();
        config.find_huge_page_sizes()?;
        Ok(config)
    }

    /// oci-spec's types make a limit of 0 out of `"pids": {}`, which asks for none. Only the document can tell.
    fn forget_absent_pids_limit(&mut self) {
        let linux = self.spec.linux_mut().as_mut();
        let Some(resources) = linux.and_then(|linux| linux.resources_mut().as_mut()) else {
            return;
        };
        if resources.pids().is_none_or(|pids| pids.limit() != 0) {
            return;
        }
        let document: Value = serde_json::from_slice(&self.raw).unwrap_or_default();
        if document
            .pointer("/linux/resources/pids/limit")
            .is_none_or(Value::is_null)
        {
            resources.set_pids(None);
        }
    }

    /// oci-spec's types take a missing `pageSize` for an empty one. Go, to which the case of a key means nothing, reads the
    /// `pagesize` that is found in the wild (runc's own tests have it).
    fn find_huge_page_sizes(&mut self) -> Result<(), Error> {
        let linux = self.spec.linux_mut().as_mut();
        let resources = linux.and_then(|linux| linux.resources_mut().as_mut());
        let Some(limits) = resources.and_then(|resources| resources.hugepage_limits_mut().as_mut()) else {
            return Ok(());
        };
        if limits.iter().all(|limit| !limit.page_size().is_empty()) {
            return Ok(());
        }
        let document: Value = serde_json::from_slice(&self.raw).unwrap_or_default();
        for (index, limit) in limits.iter_mut().enumerate() {
            let written = document.pointer(&format!("/linux/resources/hugepageLimits/{index}"));
            let size = written.and_then(Value::as_object).and_then(|written| {
                let found = written.iter().find(|(key, _)| key.eq_ignore_ascii_case("pageSize"))?;
                found.1.as_str().filter(|size| !size.is_empty())
            });
            let size = size.ok_or_else(|| Error::Field {
                field: format!("linux.resources.hugepageLimits[{index}].pageSize"),
                problem: "is missing".into(),
            })?;
            limit.set_page_size(size.into());
        }
        Ok(())
    }

    /// Parses a document that oci-spec's types refuse, after putting right what runc would accept. The cleaned document
    /// becomes `raw`, so that later verbs parse it directly and warn no more.
    fn parse_leniently(raw: &[u8], path: &Path) -> Result<Self, Error> {
        let mut document: Value = serde_json::from_slice(raw).map_err(|source| Error::Parse {
            path: path.into(),
            source,
        })?;
        if document.is_null() {
            return Err(Error::Null);
        }
        without_nulls(&mut document);
        if let Some(process) = document.get_mut("process") {
            complete_process(process);
        }
        let spec = typed(&document, path)?;
        Ok(Self {
            spec,
            raw: document.to_string().into_bytes(),
        })
    }

    /// The container's process, if it is one that can be run.
    pub fn process(&self) -> Result<&Process, Error> {
        let process = self.spec.process().as_ref().ok_or(Error::NoProcess)?;
        check_process(process)?;
        Ok(process)
    }
}

/// Reads the `process` object at `path`, as `exec --process` gives it.
pub fn load_process(path: &Path) -> Result<Process, Error> {
    let raw = std::fs::read(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })?;
    let process = match serde_json::from_slice(&raw) {
        Ok(process) => process,
        Err(_) => {
            let mut document: Value = serde_json::from_slice(&raw).map_err(|source| Error::Parse {
                path: path.into(),
                source,
            })?;
            without_nulls(&mut document);
            complete_process(&mut document);
            typed(&document, path)?
        }
    };
    check_process(&process)?;
    Ok(process)
}

/// Refuses a process that no runtime could start.
pub fn check_process(process: &Process) -> Result<(), Error> {
    match process.cwd() {
        cwd if cwd.as_os_str().is_empty() => return Err(Error::NoCwd),
        cwd if !cwd.is_absolute() => return Err(Error::RelativeCwd(cwd.clone())),
        _ => {}
    }
    match process.args() {
        Some(args) if !args.is_empty() => Ok(()),
        _ => Err(Error::NoArgs),
    }
}

/// Any 1.x document is read: the specification only adds within a major version. A document without a version is taken for
/// 1.0, as runc does.
fn check_version(version: &str) -> Result<(), Error> {
    let major = version.split('.').next().unwrap_or_default();
    if version.is_empty() || major == "1" {
        return Ok(());
    }
    let problem = format!("unsupported version {version:?}, this runtime reads 1.0 to 1.3");
    Err(Error::Field {
        field: "ociVersion".into(),
        problem,
    })
}

/// Parses with the path of a wrong value in the error. Too slow for every document: only for refused ones.
fn typed<T: serde::de::DeserializeOwned>(document: &Value, path: &Path) -> Result<T, Error> {
    serde_path_to_error::deserialize(document).map_err(|error| Error::Value {
        path: path.into(),
        field: error.path().to_string(),
        source: error.into_inner(),
    })
}

/// What runc calls a wrong value, where callers look for it.
fn runcs_words(field: &str) -> &'static str {
    match field {
        "linux.memoryPolicy" | "linux.memoryPolicy.mode" => "invalid memory policy mode: ",
        _ if field.starts_with("linux.memoryPolicy.flags") => "invalid memory policy flag: ",
        _ => "",
    }
}

/// Drops members that are `null`: for Go's decoder, and so for the tools that write bundles, null is absent.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// What runc lets pass in a `process`: no `user`, no `cwd` (which then is refused by name), the kernel's own name of a
/// scheduler flag that the specification shortens, capabilities that this build doesn't know (newer engines list all of the
/// newest kernel's).
fn complete_process(process: &mut Value) {
    let Value::Object(process) = process else { return };
    process
        .entry("user")
        .or_insert_with(|| Value::Object(Default::default()));
    process.entry("cwd").or_insert_with(|| "".into());
    if let Some(Value::Object(user)) = process.get_mut("user") {
        user.entry("uid").or_insert_with(|| 0.into());
        user.entry("gid").or_insert_with(|| 0.into());
    }
    if let Some(Value::Array(flags)) = process.get_mut("scheduler").and_then(|it| it.get_mut("flags")) {
        for flag in flags.iter_mut().filter(|flag| *flag == "SCHED_FLAG_RESET_ON_FORK") {
            *flag = "SCHED_RESET_ON_FORK".into();
        }
    }
    let Some(Value::Object(sets)) = process.get_mut("capabilities") else {
        return;
    };
    let mut unknown: Vec<String> = Vec::new();
    for set in sets.values_mut() {
        let Value::Array(names) = set else { continue };
        names.retain(|name| {
            let known = serde_json::from_value::<Capability>(name.clone()).is_ok() || !name.is_string();
            if let (false, Value::String(name)) = (known, name)
                && !unknown.contains(name)
            {
                unknown.push(name.clone());
            }
            known
        });
    }
    if !unknown.is_empty() {
        tracing::warn!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(text.as_bytes().to_vec(), Path::new("config.json"))
    }

    #[test]
    fn unknown_capabilities_are_dropped_not_refused() {
        let text = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","args":["x"],"user":{"uid":1,"gid":2},
            "capabilities":{"bounding":["CAP_KILL","CAP_FROM_THE_FUTURE"],"ambient":null}}}"#;
        let config = parse(text).unwrap();
        let sets = config.process().unwrap().capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert!(sets.bounding().as_ref().unwrap().contains(&Capability::Kill));
        assert_eq!(config.process().unwrap().user().gid(), 2);
        assert!(
            !String::from_utf8(config.raw.clone()).unwrap().contains("FUTURE"),
            "later verbs must not warn again"
        );
    }

    #[test]
    fn an_absent_pids_limit_is_not_zero() {
        let limit = |pids: &str| {
            let text = format!(r#"{{"ociVersion": "1.0.2", "linux": {{"resources": {{"pids": {pids}}}}}}}"#);
            let config = parse(&text).unwrap();
            let resources = config.spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
            resources.pids().as_ref().map(|pids| pids.limit())
        };
        let texts = ["{}", r#"{"limit": null}"#, r#"{"limit": 0}"#, r#"{"limit": 7}"#];
        assert_eq!(texts.map(limit), [None, None, Some(0), Some(7)]);
    }

    #[test]
    fn a_huge_page_size_has_a_key_in_any_case_and_is_not_left_out() {
        let sizes = |limits: &str| {
            let text =
                format!(r#"{{"ociVersion": "1.0.2", "linux": {{"resources": {{"hugepageLimits": {limits}}}}}}}"#);
            parse(&text).map(|config| {
                let resources = config.spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
                let limits = resources.hugepage_limits().iter().flatten();
                limits.map(|limit| limit.page_size().clone()).collect::<Vec<_>>()
            })
        };
        let given = r#"[{"pageSize": "2MB", "limit": 1}, {"pagesize": "1GB", "limit": 2}]"#;
        assert_eq!(sizes(given).unwrap(), ["2MB", "1GB"]);
        assert_eq!(
            sizes(r#"[{"pageSize": "2MB", "limit": 1}, {"limit": 2}]"#)
                .unwrap_err()
                .to_string(),
            "linux.resources.hugepageLimits[1].pageSize: is missing"
        );
    }

    #[test]
    fn what_go_lets_pass_passes() {
        let config = parse(r#"{"process":{"cwd":"/","args":["x"]},"mounts":[{"destination":"/proc","options":null}]}"#);
        let config = config.unwrap();
        assert_eq!(config.process().unwrap().user().uid(), 0);
        assert_eq!(config.spec.mounts().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn the_kernels_name_of_a_scheduler_flag_passes() {
        let text = r#"{"process":{"cwd":"/","args":["x"],
            "scheduler":{"policy":"SCHED_DEADLINE","flags":["SCHED_FLAG_RESET_ON_FORK"]}}}"#;
        let config = parse(text).unwrap();
        let scheduler = config.process().unwrap().scheduler().as_ref().unwrap();
        assert_eq!(scheduler.flags().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn errors_name_the_field() {
        let error = parse(r#"{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_MAYBE"}}}"#)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("config.json: linux.seccomp.defaultAction: unknown variant"),
            "{error}"
        );
        let error = parse(r#"{"process":{"args":"sh","cwd":"/"}}"#).unwrap_err().to_string();
        assert!(error.starts_with("config.json: process.args: invalid type"), "{error}");
        let error = parse("{\"process\":").unwrap_err().to_string();
        assert!(error.contains("EOF while parsing"), "{error}");
        assert_eq!(parse("null").unwrap_err().to_string(), "config cannot be null");
    }

    #[test]
    fn a_process_must_be_runnable() {
        let process = |text: &str| parse(text).unwrap().process().map(drop).unwrap_err().to_string();
        assert_eq!(process("{}"), "process property must not be empty");
        assert_eq!(
            process(r#"{"process":{"args":["x"]}}"#),
            "Cwd property must not be empty"
        );
        assert_eq!(
            process(r#"{"process":{"args":["x"],"cwd":"a"}}"#),
            "Cwd must be an absolute path: \"a\""
        );
        assert_eq!(
            process(r#"{"process":{"args":[],"cwd":"/"}}"#),
            "args must not be empty"
        );
    }

    #[test]
    fn versions() {
        for good in ["1.0.0", "1.0.2-dev", "1.3.0", "1.9", ""] {
            check_version(good).unwrap();
        }
        for bad in ["2.0.0", "0.9", "x", "10.0.0"] {
            let error = check_version(bad).unwrap_err().to_string();
            assert!(error.starts_with("ociVersion: unsupported version"), "{error}");
        }
    }
}
