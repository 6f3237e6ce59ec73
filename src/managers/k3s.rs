//! k3s and RKE2: a template of the configuration of the containerd that they bring.
//!
//! A template of ours begins with their own (`base`), so that what they configure stays; one that is there is extended. Which of
//! the two names they read depends on their release: `config-v3.toml.tmpl` since they bring containerd 2, and then before the
//! other. What they have made of it last time, `config.toml`, tells.

use super::document::{array, quoted};
use super::tree::Tree;
use super::{ANNOTATIONS, Edit, Error, Manager, Request, SystemdCgroup, block};
use std::path::{Path, PathBuf};

fn directory(manager: Manager) -> PathBuf {
    format!("/var/lib/rancher/{manager}/agent/etc/containerd").into()
}

/// The version of the last configuration that was made of a template.
fn made(tree: &Tree, dir: &Path) -> Result<Option<i64>, Error> {
    let Some(text) = tree.read(&dir.join("config.toml"))? else {
        return Ok(None);
    };
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("version")?.trim_start().strip_prefix('='));
    Ok(version.and_then(|number| number.trim().parse().ok()))
}

/// The template, whether its base is of version 3, and what there is to say.
fn template(tree: &Tree, request: &Request, manager: Manager) -> Result<(PathBuf, bool, Vec<String>), Error> {
    let is_later = |path: &Path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().contains("-v3"))
    };
    if let Some(path) = &request.file {
        return Ok((path.clone(), is_later(path), Vec::new()));
    }
    let dir = directory(manager);
    let [later, earlier] = ["config-v3.toml.tmpl", "config.toml.tmpl"].map(|name| dir.join(name));
    let made = made(tree, &dir)?;
    Ok(match made {
        Some(3..) if tree.exists(&later) || !tree.exists(&earlier) => (later, true, Vec::new()),
        // A release that brings containerd 1 does not look at the later name.
        Some(2) => (earlier, false, Vec::new()),
        _ if tree.exists(&later) => (later, true, Vec::new()),
        _ if tree.exists(&earlier) => (earlier, false, Vec::new()),
        _ => {
            let note = format!(
                "{manager} has not made {} yet, so its release is not known: config.toml.tmpl is what all of them read",
                dir.join("config.toml").display()
            );
            (earlier, false, vec![note])
        }
    })
}

pub fn add(tree: &Tree, request: &Request, manager: Manager) -> Result<Edit, Error> {
    let (path, later, notes) = template(tree, request, manager)?;
    let before = tree.read(&path)?;
    let at = match &before {
        Some(text) => block::find(&path, text, &request.name)?,
        None => None,
    };
    let text = before.as_deref().unwrap_or_default();
    let rest = at
        .as_ref()
        .map_or_else(|| text.to_owned(), |at| block::without(text, at));
    let plugin = if later {
        "io.containerd.cri.v1.runtime"
    } else {
        "io.containerd.grpc.v1.cri"
    };
    let table = format!("plugins.\"{plugin}\".containerd.runtimes.{}", request.name);
    if let Some(line) = rest.lines().position(|line| is_header(line, &table)) {
        return Err(Error::Refused {
            path,
            line: line + 1,
            problem: format!("the runtime {:?} is configured already, by hand", request.name),
        });
    }
    let mut body = String::new();
    if rest.trim().is_empty() {
        body.push_str("{{ template \"base\" . }}\n\n");
    }
    let systemd = match request.systemd_cgroup {
        // What the template gives runc.
        SystemdCgroup::Auto => "{{ .SystemdCgroup }}",
        SystemdCgroup::Yes => "true",
        SystemdCgroup::No => "false",
    };
    body.push_str(&format!(
        "[{table}]\n  runtime_type = \"io.containerd.runc.v2\"\n  pod_annotations = {annotations}\n  \
         container_annotations = {annotations}\n  [{table}.options]\n    BinaryName = {binary}\n    SystemdCgroup = {systemd}\n",
        annotations = array(&ANNOTATIONS),
        // In a template two braces are not text.
        binary = quoted(&request.binary.to_string_lossy()).replace("{{", "{{ \"{{\" }}"),
    ));
    let after = block::put(text, at.as_ref(), &block::wrap(&request.name, &body));
    Ok(Edit {
        path,
        pristine: before.is_some() && at.is_none(),
        before,
        after: Some(after),
        part: body,
        notes,
    })
}

/// Whether the line begins that table, in either kind of quotes.
fn is_header(line: &str, table: &str) -> bool {
    let plain = |text: &str| text.replace(['"', '\'', ' '], "");
    plain(line.trim()) == format!("[{}]", plain(table))
}

pub fn remove(tree: &Tree, request: &Request, manager: Manager) -> Result<Edit, Error> {
    let dir = directory(manager);
    let paths = match &request.file {
        Some(path) => vec![path.clone()],
        None => ["config-v3.toml.tmpl", "config.toml.tmpl"]
            .map(|name| dir.join(name))
            .into(),
    };
    let mut nothing = Edit::default();
    for path in paths {
        let edit = block::take(tree, request, path)?;
        if edit.changes() {
            return Ok(edit);
        }
        nothing = edit;
    }
    Ok(nothing)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Scratch, request};
    use super::*;

    const DIR: &str = "/var/lib/rancher/k3s/agent/etc/containerd";

    #[test]
    fn a_template_of_the_release_is_made_and_goes_again() {
        for (made, name, plugin) in [
            (
                Some("# x\nversion = 3\n"),
                "config-v3.toml.tmpl",
                "io.containerd.cri.v1.runtime",
            ),
            (Some("version = 2\n"), "config.toml.tmpl", "io.containerd.grpc.v1.cri"),
            (None, "config.toml.tmpl", "io.containerd.grpc.v1.cri"),
        ] {
            let scratch = Scratch::new(&format!("k3s-{}", made.map_or(0, str::len)));
            if let Some(text) = made {
                scratch.write(&format!("{DIR}/config.toml"), text);
            }
            let edit = scratch.set_up(Manager::K3s, &request(), None);
            assert_eq!(edit.path, Path::new(DIR).join(name));
            assert_eq!(edit.notes.is_empty(), made.is_some());
            let text = scratch.read(&format!("{DIR}/{name}")).unwrap();
            assert!(
                text.contains("{{ template \"base\" . }}") && text.contains(plugin),
                "{text}"
            );
            // As the template engine has it.
            let text = text.replace("{{ template \"base\" . }}", "version = 3");
            let config: toml::Table = toml::from_str(&text.replace("{{ .SystemdCgroup }}", "true")).unwrap();
            let runtime = &config["plugins"][plugin]["containerd"]["runtimes"]["proa"];
            assert_eq!(runtime["options"]["BinaryName"].as_str(), Some("/usr/local/bin/proa"));
            scratch.take_down(Manager::K3s, &request());
            assert_eq!(scratch.read(&format!("{DIR}/{name}")), None);
        }
    }

    #[test]
    fn an_administrators_template_is_extended_and_restored() {
        let scratch = Scratch::new("rke2");
        let path = "/var/lib/rancher/rke2/agent/etc/containerd/config.toml.tmpl";
        let own = "{{ template \"base\" . }}\n{{ if .IsRunningInUserNS }}\n# x\n{{ end }}";
        scratch.write(path, own);
        scratch.set_up(Manager::Rke2, &request(), None);
        let text = scratch.read(path).unwrap();
        assert_eq!(text.matches("template \"base\"").count(), 1, "{text}");
        assert_eq!(scratch.take_down(Manager::Rke2, &request()), None);
        assert_eq!(scratch.read(path).as_deref(), Some(own));
    }

    #[test]
    fn a_table_by_hand_is_refused_with_its_line() {
        let scratch = Scratch::new("k3s-hand");
        let own = "{{ template \"base\" . }}\n  [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.\"proa\"]\n";
        scratch.write(&format!("{DIR}/config.toml.tmpl"), own);
        let error = scratch.refused(Manager::K3s, &request(), None);
        assert!(error.contains("config.toml.tmpl:2: "), "{error}");
    }
}
