//! The command line as callers see it: output, log, exit status. Nothing here needs root, a cgroup or a namespace.

use std::path::PathBuf;
use std::process::{Command, Output};

/// A directory for one test, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("proa-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// proa with a store of the test's own.
    fn proa(&self, args: &[&str]) -> Output {
        let root = self.path("root");
        std::fs::create_dir_all(&root).unwrap();
        proa(&[&["--root", root.to_str().unwrap()], args].concat())
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn proa(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_proa")).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The message of the one line on stderr.
fn message(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "an error is told once: {text}");
    let (_, quoted) = text.trim_end().split_once(" level=error msg=").expect(&text);
    if quoted.starts_with('"') {
        serde_json::from_str(quoted).unwrap()
    } else {
        quoted.into()
    }
}

fn fails(output: &Output, status: i32, expected: &str) {
    assert_eq!(message(output), expected);
    assert_eq!(output.status.code(), Some(status));
}

#[test]
fn the_version_is_what_engines_parse() {
    for flag in ["--version", "-v", "-version"] {
        let output = proa(&[flag]);
        assert!(output.status.success());
        let text = stdout(&output);
        assert!(
            text.starts_with("proa version ") && text.ends_with("\nspec: 1.3.0\n"),
            "{text}"
        );
    }
}

#[test]
fn help_is_no_error() {
    for args in [
        &[][..],
        &["--help"],
        &["help"],
        &["help", "run"],
        &["exec", "--help"],
        &["run", "-h"],
    ] {
        let output = proa(args);
        assert!(
            output.status.success() && stdout(&output).starts_with("NAME:"),
            "{args:?}"
        );
    }
}

#[test]
fn usage_errors() {
    let dir = Dir::new("usage");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["frobnicate"], 3, "No help topic for 'frobnicate'"),
        (
            &["state", "--frobnicate", "x"],
            1,
            "flag provided but not defined: -frobnicate",
        ),
        (&["create", "x", "--pid-file"], 1, "flag needs an argument: -pid-file"),
        (
            &["run", "--detach=perhaps", "x"],
            1,
            "invalid boolean value \"perhaps\" for -detach: parse error",
        ),
        (&["list", "--format", "xml"], 1, "invalid format option"),
        (
            &["create", "--preserve-fds", "-1", "x"],
            1,
            "proa create failed: --preserve-fds must not be negative: -1",
        ),
    ];
    for (args, status, expected) in cases {
        fails(&dir.proa(args), *status, expected);
    }
    for (args, requirement) in [
        (&["state"][..], "\"state\" requires exactly 1 argument(s)"),
        (&["state", "a", "b"], "\"state\" requires exactly 1 argument(s)"),
        (&["list", "a"], "\"list\" requires exactly 0 argument(s)"),
        (&["exec"], "\"exec\" requires a minimum of 1 argument(s)"),
        (&["kill", "a", "b", "c"], "\"kill\" requires a maximum of 2 argument(s)"),
    ] {
        let output = dir.proa(args);
        assert!(message(&output).ends_with(requirement), "{}", message(&output));
        assert_eq!(output.status.code(), Some(1));
        assert!(stdout(&output).starts_with("Incorrect Usage.\n"));
    }
}

#[test]
fn global_flags() {
    fails(
        &proa(&["--root", "/tmp/..", "list"]),
        1,
        "Option --root argument should not be set to /",
    );
    fails(&proa(&["--log-format", "xml", "list"]), 1, "invalid log-format: xml");
    let rootless = "invalid value \"maybe\" for --rootless: must be true, false or auto";
    fails(&proa(&["--rootless", "maybe", "list"]), 1, rootless);
    fails(&proa(&["--frob", "list"]), 1, "flag provided but not defined: -frob");
    let missing = proa(&["--root", "/nonexistent-proa-root", "list"]);
    assert!(message(&missing).starts_with("open /nonexistent-proa-root: No such file or directory"));
    // As with runc 1.5, they may stand behind the verb.
    let dir = Dir::new("globals");
    std::fs::create_dir(dir.path("root")).unwrap();
    assert!(
        proa(&["list", "--root", dir.path("root").to_str().unwrap(), "--debug"])
            .status
            .success()
    );
}

#[test]
fn a_container_that_is_not_there() {
    let dir = Dir::new("missing");
    for args in [
        &["state", "c1"][..],
        &["start", "c1"],
        &["kill", "c1", "KILL"],
        &["kill", "c1", "FOO"],
        &["delete", "c1"],
        &["ps", "c1"],
        &["pause", "c1"],
        &["resume", "c1"],
        &["update", "c1", "--pids-limit", "-1"],
        &["events", "--stats", "c1"],
    ] {
        fails(&dir.proa(args), 1, "container does not exist");
    }
    fails(
        &dir.proa(&["exec", "c1", "true"]),
        255,
        "exec failed: container does not exist",
    );
    assert!(dir.proa(&["delete", "--force", "c1"]).status.success());
    assert!(dir.proa(&["delete", "c1", "-f"]).status.success());
}

#[test]
fn bad_ids() {
    let dir = Dir::new("ids");
    let victim = dir.write("victim/keep", "");
    let long = "x".repeat(300);
    for id in ["../victim", "a/b", "..", ".", "a b", &long] {
        for args in [
            &["state", id][..],
            &["delete", "--force", id],
            &["start", id],
            &["kill", id],
        ] {
            fails(&dir.proa(args), 1, &format!("invalid container ID format: {id:?}"));
        }
    }
    fails(&dir.proa(&["state", ""]), 1, "container id cannot be empty");
    assert!(victim.exists());
}

#[test]
fn a_bundle_that_is_none() {
    let dir = Dir::new("bundle");
    let bundle = dir.path("bundle");
    let create = |dir: &Dir| dir.proa(&["create", "c1", "--bundle", dir.path("bundle").to_str().unwrap()]);
    assert!(message(&create(&dir)).starts_with(&format!("proa create failed: chdir {}: No such", bundle.display())));
    std::fs::create_dir(&bundle).unwrap();
    let expected = format!(
        "proa create failed: JSON specification file config.json not found in {}",
        bundle.display()
    );
    fails(&create(&dir), 1, &expected);
    for (config, expected) in [
        ("{", "config.json: EOF while parsing"),
        ("null", "config cannot be null"),
        (r#"{"ociVersion":"1.0.0"}"#, "process property must not be empty"),
        (r#"{"process":{"args":["x"]}}"#, "Cwd property must not be empty"),
        (
            r#"{"process":{"args":["x"],"cwd":"tmp"}}"#,
            "Cwd must be an absolute path",
        ),
        (r#"{"process":{"args":[],"cwd":"/"}}"#, "args must not be empty"),
        (r#"{"ociVersion":"2.0.0"}"#, "ociVersion: unsupported version \"2.0.0\""),
        (r#"{"process":{"args":7}}"#, "config.json: process.args: invalid type"),
        (
            r#"{"linux":{"seccomp":{"defaultAction":"X"}}}"#,
            "config.json: linux.seccomp.defaultAction: unknown variant",
        ),
    ] {
        dir.write("bundle/config.json", config);
        let output = create(&dir);
        assert!(message(&output).contains(expected), "{}", message(&output));
        assert_eq!(output.status.code(), Some(1));
    }
    assert_eq!(
        std::fs::read_dir(dir.path("root")).unwrap().count(),
        0,
        "nothing is left"
    );
}

#[test]
fn the_log_hears_every_error_once_in_the_shape_containerd_reads() {
    let dir = Dir::new("log");
    let log = dir.path("log.json");
    let args = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    for (verb, expected) in [
        (&["state", "c1"][..], "container does not exist"),
        (&["state", "--frob", "c1"], "flag provided but not defined: -frob"),
        (&["frob"], "No help topic for 'frob'"),
    ] {
        std::fs::remove_file(&log).ok();
        let output = dir.proa(&[&args[..], verb].concat());
        assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("{expected}\n"));
        let text = std::fs::read_to_string(&log).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (line["level"].as_str(), line["msg"].as_str()),
            (Some("error"), Some(expected))
        );
        let time = line["time"].as_str().unwrap();
        assert!(
            time.len() == 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T',
            "{time}"
        );
    }
    let unwritable = dir.proa(&["--log", "/nonexistent/log", "list"]);
    assert!(message(&unwritable).starts_with("open /nonexistent/log: No such file"));
}

/// Writes the state of a container whose init has ended.
fn ended(dir: &Dir, id: &str) {
    let record = serde_json::json!({
        "ociVersion": "1.2.0", "id": id, "pid": i32::MAX, "startTime": 1, "bundle": "/bundle", "rootfs": "/bundle/rootfs",
        "created": "2026-11-22T20:27:19.5Z", "annotations": {"b": "2", "a": "1"}, "owner": 0,
        "cgroup": serde_json::to_value(proa::cgroup::Saved::default()).unwrap(), "hull": "Native", "terminal": false
    });
    dir.write(&format!("root/{id}/state.json"), &record.to_string());
    dir.write(
        &format!("root/{id}/config.json"),
        r#"{"ociVersion":"1.2.0","process":{"args":["x"],"cwd":"/"},"linux":{"namespaces":[{"type":"pid"}]}}"#,
    );
}

#[test]
fn state_has_runcs_shape() {
    let dir = Dir::new("state");
    ended(&dir, "c1");
    let expected = "{\n  \"ociVersion\": \"1.2.0\",\n  \"id\": \"c1\",\n  \"pid\": 0,\n  \"status\": \"stopped\",\n  \
                    \"bundle\": \"/bundle\",\n  \"rootfs\": \"/bundle/rootfs\",\n  \
                    \"created\": \"2026-11-22T20:27:19.5Z\",\n  \"annotations\": {\n    \"a\": \"1\",\n    \
                    \"b\": \"2\"\n  },\n  \"owner\": \"\"\n}";
    assert_eq!(stdout(&dir.proa(&["state", "c1"])), expected);
}

#[test]
fn list_has_runcs_shape() {
    let dir = Dir::new("list");
    assert_eq!(stdout(&dir.proa(&["list", "-f", "json"])), "null\n");
    ended(&dir, "c2");
    ended(&dir, "a-rather-long-id");
    // Neither a foreign file nor a directory without state stops the listing.
    dir.write("root/file", "");
    dir.write("root/half/other", "");
    assert_eq!(stdout(&dir.proa(&["list", "-q"])), "a-rather-long-id\nc2\n");
    let table = stdout(&dir.proa(&["list"]));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        lines[0],
        "ID                 PID         STATUS      BUNDLE      CREATED                  OWNER"
    );
    assert_eq!(
        lines[2],
        "c2                 0           stopped     /bundle     2026-11-22T20:27:19.5Z   root"
    );
    let json: serde_json::Value = serde_json::from_slice(&dir.proa(&["list", "--format=json"]).stdout).unwrap();
    assert_eq!(json[1]["id"], "c2");
    assert_eq!(json[1]["owner"], "root");
}

#[test]
fn a_container_that_has_ended() {
    let dir = Dir::new("ended");
    ended(&dir, "c1");
    fails(
        &dir.proa(&["start", "c1"]),
        1,
        "cannot start a container that has stopped",
    );
    fails(
        &dir.proa(&["exec", "c1", "x"]),
        255,
        "exec failed: cannot exec in a stopped container",
    );
    fails(&dir.proa(&["kill", "c1"]), 1, "container not running");
    assert!(
        dir.proa(&["kill", "--all", "c1", "KILL"]).status.success(),
        "obsolete, and no error"
    );
    fails(&dir.proa(&["kill", "c1", "FOO"]), 1, "unknown signal \"FOO\"");
    fails(&dir.proa(&["pause", "c1"]), 1, "container not running");
    fails(&dir.proa(&["resume", "c1"]), 1, "container not paused");
    fails(
        &dir.proa(&["update", "c1", "--memory", "1g"]),
        1,
        "container not running",
    );
    fails(
        &dir.proa(&["update", "c1", "--memory", "1x"]),
        1,
        "invalid value for memory: \"1x\"",
    );
    fails(
        &dir.proa(&["events", "--stats", "c1"]),
        1,
        "container with id c1 is not running",
    );
    fails(
        &dir.proa(&["events", "--interval", "0", "c1"]),
        1,
        "duration interval must be greater than 0",
    );
}

#[test]
fn what_a_killed_create_left_is_deleted() {
    let dir = Dir::new("debris");
    dir.write("root/c1/config.json", "{}");
    fails(&dir.proa(&["state", "c1"]), 1, "container does not exist");
    fails(&dir.proa(&["delete", "c1"]), 1, "container does not exist");
    assert!(!dir.path("root/c1").exists());
    dir.write("root/c1/config.json", "{}");
    assert!(dir.proa(&["delete", "--force", "c1"]).status.success());
    assert!(!dir.path("root/c1").exists());
}

#[test]
fn a_state_that_is_damaged_is_named() {
    let dir = Dir::new("damaged");
    let state = dir.write("root/c1/state.json", "{\"id\":");
    let said = message(&dir.proa(&["state", "c1"]));
    assert!(
        said.starts_with(&format!("{}: EOF while parsing", state.display())),
        "{said}"
    );
}

#[test]
fn checkpoint_and_restore_judge_their_flags_before_anything_else() {
    for (args, expected) in [
        (
            ["checkpoint", "--page-server=x", "c1"],
            "Use --page-server ADDRESS:PORT to specify page server",
        ),
        (
            ["checkpoint", "--parent-path=/x", "c1"],
            "--parent-path must be relative",
        ),
        (
            ["checkpoint", "--manage-cgroups-mode=x", "c1"],
            "invalid manage-cgroups-mode value",
        ),
        (
            ["restore", "--empty-ns=ipc", "c1"],
            "namespace \"ipc\" is not supported",
        ),
        // How podman finds out whether a container can be restored into a pod.
        (
            ["restore", "c1", "--lsm-mount-context"],
            "flag needs an argument: -lsm-mount-context",
        ),
    ] {
        let output = proa(&args);
        assert_eq!(message(&output), expected, "{args:?}");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
    }
    for verb in ["checkpoint", "restore"] {
        assert_eq!(proa(&[verb, "--help"]).status.code(), Some(0), "{verb}");
    }
}

#[test]
fn spec_writes_a_configuration_and_overwrites_none() {
    let dir = Dir::new("spec");
    let bundle = dir.0.to_str().unwrap();
    assert!(dir.proa(&["spec", "-b", bundle]).status.success());
    let text = std::fs::read_to_string(dir.path("config.json")).unwrap();
    assert!(
        text.starts_with("{\n\t\"ociVersion\": \"1.3.0\",\n\t\"process\": {\n\t\t\"terminal\": true,"),
        "{text}"
    );
    assert!(proa::config::Config::load(&dir.0).unwrap().process().is_ok());
    let again = dir.proa(&["spec", "--bundle", bundle]);
    fails(&again, 1, &format!("File {bundle}/config.json exists. Remove it first"));
    std::fs::remove_file(dir.path("config.json")).unwrap();
    assert!(dir.proa(&["spec", "--rootless", "--bundle", bundle]).status.success());
    let text = std::fs::read_to_string(dir.path("config.json")).unwrap();
    assert!(text.contains("\"uidMappings\"") && !text.contains("\"network\""));
}

#[test]
fn features_is_a_features_document() {
    let output = proa(&["features"]);
    let features: oci_spec::runtime::Features = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(features.oci_version_min(), "1.0.0");
    assert!(stdout(&output).starts_with("{\n    \"ociVersionMin\": \"1.0.0\",\n    \"ociVersionMax\": \"1.3.0\",\n"));
}

#[test]
fn a_user_of_a_machine_has_a_store_of_their_own() {
    let dir = Dir::new("xdg");
    let mut command = Command::new(env!("CARGO_BIN_EXE_proa"));
    command
        .args(["list", "-q"])
        .env("XDG_RUNTIME_DIR", &dir.0)
        .env("USER", "me");
    command.output().unwrap();
    // Host root keeps to /run/proa, whoever logged in.
    let host_root = nix::unistd::geteuid().is_root() && !proa::host::in_user_namespace();
    assert_eq!(dir.path("proa").exists(), !host_root);
}
