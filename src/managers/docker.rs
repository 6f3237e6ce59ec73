//! Docker: `daemon.json`, of which everything but our members stays as it is written.

use super::tree::Tree;
use super::{Edit, Error, Request, backup};
use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstObject, CstRootNode};
use serde_json::Value;
use std::path::{Path, PathBuf};

const SYSTEM: &str = "/etc/docker/daemon.json";

fn file(request: &Request) -> PathBuf {
    let usual = match &request.user {
        Some(config) => config.join("docker/daemon.json"),
        None => SYSTEM.into(),
    };
    request.file.clone().unwrap_or(usual)
}

/// The runtimes that we add: names and programs.
fn ours(request: &Request) -> Vec<(String, String)> {
    let mut ours = vec![(request.name.clone(), request.binary.to_string_lossy().into_owned())];
    let alias = request.alias.as_ref();
    ours.extend(alias.map(|alias| (request.alias_name(), alias.to_string_lossy().into_owned())));
    ours
}

/// The configuration as the daemon reads it: an object, of plain JSON.
fn parse(path: &Path, text: &str) -> Result<Value, Error> {
    let broken = |problem: String| Error::Broken {
        path: path.into(),
        problem,
    };
    let value: Value = serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
    let runtimes = value.get("runtimes");
    match value.is_object() && runtimes.is_none_or(Value::is_object) {
        true => Ok(value),
        false => Err(broken("it, or its `runtimes`, is not an object".into())),
    }
}

/// The members of the same text, with its spaces.
fn members(path: &Path, text: &str) -> Result<(CstRootNode, CstObject), Error> {
    let broken = |problem: String| Error::Broken {
        path: path.into(),
        problem,
    };
    let root = CstRootNode::parse(text, &ParseOptions::default()).map_err(|error| broken(error.to_string()))?;
    let object = root
        .object_value()
        .ok_or_else(|| broken("it is not an object".into()))?;
    Ok((root, object))
}

/// The text with these runtimes.
fn with(path: &Path, text: &str, runtimes: &[(String, String)]) -> Result<String, Error> {
    let (root, object) = members(path, text)?;
    let table = match object.object_value("runtimes") {
        Some(table) => table,
        None => {
            object.append("runtimes", CstInputValue::Object(Vec::new()));
            object.object_value_or_set("runtimes")
        }
    };
    for (name, program) in runtimes {
        let value = CstInputValue::Object(vec![("path".into(), CstInputValue::String(program.clone()))]);
        match table.get(name) {
            Some(member) => member.set_value(value),
            None => {
                table.append(name, value);
            }
        }
    }
    Ok(root.to_string())
}

/// The text without the runtimes of these names; `None` if nothing else is in it.
fn without(path: &Path, text: &str, names: &[String]) -> Result<Option<String>, Error> {
    let (root, object) = members(path, text)?;
    if let Some(table) = object.object_value("runtimes") {
        for name in names {
            if let Some(member) = table.get(name) {
                member.remove();
            }
        }
        if table.properties().is_empty()
            && let Some(member) = object.get("runtimes")
        {
            member.remove();
        }
    }
    Ok((!object.properties().is_empty()).then(|| root.to_string()))
}

pub fn add(tree: &Tree, request: &Request) -> Result<Edit, Error> {
    let path = file(request);
    let before = tree.read(&path)?;
    let ours = ours(request);
    let kept = tree.read(&backup(request, &path))?;
    // An empty file is what the daemon takes for none.
    let text = before
        .as_deref()
        .filter(|text| !text.trim().is_empty())
        .unwrap_or("{\n}\n");
    let value = parse(&path, text)?;
    let mut found = 0;
    for (name, program) in &ours {
        let Some(runtime) = value.get("runtimes").and_then(|all| all.get(name)) else {
            continue;
        };
        found += 1;
        let is_same = runtime.get("path").and_then(Value::as_str) == Some(program);
        if !is_same && !is_ours(runtime) {
            return Err(Error::Refused {
                line: line(text, name),
                problem: format!(
                    "the runtime {name:?} is configured already, as {runtime}; take it out, or choose another --runtime-name"
                ),
                path,
            });
        }
    }
    let after = match ours
        .iter()
        .all(|(name, program)| value["runtimes"][name]["path"] == program.as_str())
    {
        true => before.clone(),
        false => Some(with(&path, text, &ours)?),
    };
    let part = serde_json::to_string_pretty(&parse(&path, &with(&path, "{\n}\n", &ours)?)?).unwrap_or_default();
    Ok(Edit {
        path,
        pristine: before.is_some() && found == 0 && kept != before,
        before,
        after,
        part: format!("{part}\n"),
        notes: Vec::new(),
    })
}

/// Whether a runtime's program is proa under one of its names, wherever it was.
fn is_ours(runtime: &Value) -> bool {
    let program = runtime.get("path").and_then(Value::as_str).map(Path::new);
    let name = program.and_then(Path::file_name).and_then(|name| name.to_str());
    matches!(name, Some("proa" | "proa-wasm"))
}

/// The first line that has that name in quotes.
fn line(text: &str, name: &str) -> usize {
    let quoted = format!("\"{name}\"");
    text.lines().position(|line| line.contains(&quoted)).unwrap_or(0) + 1
}

pub fn remove(tree: &Tree, request: &Request) -> Result<Edit, Error> {
    let path = file(request);
    let before = tree.read(&path)?;
    let mut edit = Edit {
        path: path.clone(),
        after: before.clone(),
        before: before.clone(),
        ..Edit::default()
    };
    let Some(text) = before.filter(|text| !text.trim().is_empty()) else {
        return Ok(edit);
    };
    let value = parse(&path, &text)?;
    let mut there = Vec::new();
    for name in [request.name.clone(), request.alias_name()] {
        let Some(runtime) = value.get("runtimes").and_then(|all| all.get(&name)) else {
            continue;
        };
        if !is_ours(runtime) && runtime.get("path").and_then(Value::as_str) != request.binary.to_str() {
            return Err(Error::Refused {
                line: line(&text, &name),
                problem: format!("the runtime {name:?} is not proa, but {runtime}: it is left as it is"),
                path,
            });
        }
        let program = runtime["path"].as_str().unwrap_or_default().to_owned();
        there.push((name, program));
    }
    if there.is_empty() {
        return Ok(edit);
    }
    if value.get("default-runtime").and_then(Value::as_str) == Some(&request.name) {
        return Err(Error::Refused {
            line: line(&text, "default-runtime"),
            problem: format!(
                "default-runtime is {:?}: the daemon would not start without it",
                request.name
            ),
            path,
        });
    }
    // To the byte, if nobody else has changed anything since: then ours is all that the kept text lacks.
    let kept = tree.read(&backup(request, &path))?;
    let names: Vec<String> = there.iter().map(|(name, _)| name.clone()).collect();
    edit.after = match kept {
        Some(kept) if kept.trim().is_empty() && with(&path, "{\n}\n", &there)? == text => Some(kept),
        Some(kept) if !kept.trim().is_empty() && with(&path, &kept, &there)? == text => Some(kept),
        _ => without(&path, &text, &names)?,
    };
    Ok(edit)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Scratch, request};
    use super::super::{BACKUPS, Manager};
    use super::*;

    const OWN: &str = "{\n\t\"log-driver\":\"json-file\",\n\t\"log-opts\": { \"max-size\": \"10m\" }\n}\n";

    #[test]
    fn a_new_file_is_made_and_goes_again() {
        let scratch = Scratch::new("docker-new");
        scratch.set_up(Manager::Docker, &request(), None);
        let value = parse(Path::new("x"), &scratch.read(SYSTEM).unwrap()).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"runtimes": {
                "proa": {"path": "/usr/local/bin/proa"}, "proa-wasm": {"path": "/usr/local/bin/proa-wasm"}
            }})
        );
        scratch.take_down(Manager::Docker, &request());
        assert_eq!(scratch.files(), Vec::<String>::new());
    }

    #[test]
    fn what_is_there_keeps_its_order_and_its_spaces() {
        let theirs = "{\"runtimes\": {\"other\": {\"path\": \"/o\"}}, \"z\": 1, \"a\": 2}";
        for (at, text) in [OWN, theirs, "{}", "{ }\n", " \n", ""].iter().enumerate() {
            let scratch = Scratch::new(&format!("docker-keep-{at}"));
            scratch.write(SYSTEM, text);
            scratch.set_up(Manager::Docker, &request(), None);
            let now = scratch.read(SYSTEM).unwrap();
            let value = parse(Path::new("x"), &now).unwrap();
            assert_eq!(
                value["runtimes"]["proa"]["path"].as_str(),
                Some("/usr/local/bin/proa"),
                "{now}"
            );
            let parts = [
                "\t\"log-driver\":\"json-file\",",
                "\"log-opts\": { \"max-size\": \"10m\" }",
                "\"z\": 1, \"a\": 2",
            ];
            for part in parts.iter().filter(|part| text.contains(*part)) {
                assert!(now.contains(part), "{now}");
            }
            assert_eq!(scratch.take_down(Manager::Docker, &request()), None, "{text:?}");
            assert_eq!(scratch.read(SYSTEM).as_deref(), Some(*text));
            assert_eq!(scratch.files(), [SYSTEM]);
        }
    }

    #[test]
    fn what_others_wrote_meanwhile_stays() {
        let scratch = Scratch::new("docker-foreign");
        scratch.write(SYSTEM, OWN);
        scratch.set_up(Manager::Docker, &request(), None);
        let now = scratch.read(SYSTEM).unwrap().replacen('{', "{\n\t\"debug\": true,", 1);
        scratch.write(SYSTEM, &now);
        assert!(
            scratch
                .take_down(Manager::Docker, &request())
                .unwrap()
                .starts_with(BACKUPS)
        );
        let value = parse(Path::new("x"), &scratch.read(SYSTEM).unwrap()).unwrap();
        let mut expected: Value = serde_json::from_str(OWN).unwrap();
        expected["debug"] = true.into();
        assert_eq!(value, expected);
    }

    #[test]
    fn another_path_of_proa_takes_the_place_of_the_first() {
        let scratch = Scratch::new("docker-again");
        scratch.write(SYSTEM, OWN);
        scratch.set_up(Manager::Docker, &request(), None);
        let mut other = request();
        other.binary = "/opt/bin/proa".into();
        scratch.set_up(Manager::Docker, &other, None);
        let value = parse(Path::new("x"), &scratch.read(SYSTEM).unwrap()).unwrap();
        assert_eq!(value["runtimes"]["proa"]["path"].as_str(), Some("/opt/bin/proa"));
        assert_eq!(scratch.take_down(Manager::Docker, &other), None);
        assert_eq!(scratch.read(SYSTEM).as_deref(), Some(OWN));
    }

    #[test]
    fn what_is_broken_or_somebody_elses_is_refused_with_its_line() {
        for (at, (text, words)) in [
            ("{\n\"a\": 1,\n}\n", &["line 3", SYSTEM][..]),
            ("{ // x\n}", &["line 1"]),
            ("[]", &["not an object"]),
            ("{\"runtimes\": []}", &["not an object"]),
            (
                "{\n \"runtimes\": {\n  \"proa\": {\"path\": \"/bin/x\"}}}",
                &[":3:", "/bin/x", "--runtime-name"],
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let scratch = Scratch::new(&format!("docker-refused-{at}"));
            scratch.write(SYSTEM, text);
            let error = scratch.refused(Manager::Docker, &request(), None);
            for word in words {
                assert!(error.contains(word), "no {word:?} in {error}");
            }
        }
    }

    #[test]
    fn the_daemons_default_is_not_taken_from_it() {
        let scratch = Scratch::new("docker-default");
        scratch.set_up(Manager::Docker, &request(), None);
        let now = scratch
            .read(SYSTEM)
            .unwrap()
            .replacen('{', "{\n  \"default-runtime\": \"proa\",", 1);
        scratch.write(SYSTEM, &now);
        let error = remove(&scratch.tree(), &request()).unwrap_err().to_string();
        assert!(error.contains(":2: ") && error.contains("default-runtime"), "{error}");
    }
}
