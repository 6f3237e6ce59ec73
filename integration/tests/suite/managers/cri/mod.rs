//! containerd's CRI plugin, as a kubelet uses it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proa_integration::ctx::eventually;
use proa_integration::{Ctx, Test, View, host, image};
use serde_json::{Value, json};

use super::containerd::{self, Containerd, Release};
use super::{IMAGE, documented};

mod kubernetes;
mod pods;
mod refusals;
mod security;
mod setup;
mod streams;
mod unified;
mod wasm;

/// With both cgroup drivers.
const DRIVERS: &[View] = &[View::Hybrid, View::Systemd];

/// The tests by the CRI.
pub fn tests() -> Vec<Test> {
    [
        pods::tests(),
        security::tests(),
        streams::tests(),
        refusals::tests(),
        wasm::tests(),
        kubernetes::tests(),
        setup::tests(),
        unified::tests(),
    ]
    .concat()
}

const PAUSE: &str = "registry.test/pause:1";

/// A client of the CRI.
struct Cri<'a> {
    ctx: &'a Ctx,
    client: Child,
    // Ended after the client: fields are dropped in their order.
    containerd: Containerd<'a>,
}

fn cri<'a>(ctx: &'a Ctx, release: Release, image: &Path) -> Cri<'a> {
    cri_with(ctx, release, image, &configuration(ctx, release), &[])
}

/// The same with a configuration and an environment of the daemon's.
fn cri_with<'a>(ctx: &'a Ctx, release: Release, image: &Path, config: &str, env: &[(&str, &str)]) -> Cri<'a> {
    let containerd = containerd::start(ctx, release, config, env).namespace("k8s.io");
    containerd.import(image);
    containerd.import(&pause(ctx));
    let helpers = Path::new(env!("CARGO_MANIFEST_DIR")).join("helpers");
    let descriptors = ctx.dir.join("cri.pb");
    let protoc = Command::new("protoc")
        .arg(format!("--descriptor_set_out={}", descriptors.display()))
        .arg(format!("--proto_path={}", helpers.display()))
        .arg("cri.proto")
        .status();
    assert!(protoc.expect("protoc: apt-get install protobuf-compiler").success());
    // The distribution's: it is the one that has the distribution's packages.
    let client = Command::new("/usr/bin/python3")
        .arg(helpers.join("cri.py"))
        .arg(descriptors)
        .arg(&containerd.socket)
        .arg((30 * proa_integration::patience()).to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut cri = Cri {
        ctx,
        client,
        containerd,
    };
    let version = cri.call("Version", json!({}));
    assert_eq!(version["runtime_name"], "containerd");
    for name in [IMAGE, PAUSE] {
        // The plugin hears of imported images by an event.
        eventually(name, || {
            cri.call("ImageStatus", json!({"image": {"image": name}}))
                .get("image")
                .map(drop)
        });
    }
    cri
}

/// A `PATH` with the system's runc first: the later one needs the later C library.
fn path_with_runc(ctx: &Ctx, release: Release) -> String {
    let bin = ctx.mkdir("runc");
    if !bin.join("runc").exists() {
        std::os::unix::fs::symlink("/usr/sbin/runc", bin.join("runc")).unwrap();
    }
    format!("{}:{}", bin.display(), release.path())
}

/// What the document shows for that release, and what is this test's: the sandbox image, the network, and no score below the
/// daemon's own, which needs a capability that not every host's root has.
fn configuration(ctx: &Ctx, release: Release) -> String {
    let heading = match release {
        Release::System => "containerd 1: the CRI plugin",
        Release::Newer => "containerd 2: the CRI plugin",
    };
    // The runtime's `--root`, which is as much a part of its options.
    let root = format!("Root = \"{}\"\n    BinaryName", ctx.dir.join("runc-root").display());
    let mut config = documented(ctx, heading, "toml").replace("BinaryName", &root);
    if ctx.view.has_systemd() {
        config = config.replace("BinaryName", "SystemdCgroup = true\n    BinaryName");
    }
    format!("{config}{}", own_configuration(ctx, release))
}

/// What the plugin is to know besides its runtimes.
fn own_configuration(ctx: &Ctx, release: Release) -> String {
    let network = network(ctx);
    match release {
        Release::System => {
            format!(
                "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\n\
                 stream_server_address = \"127.0.0.1\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{}\"\n",
                network.display()
            )
        }
        Release::Newer => {
            format!(
                "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{PAUSE}\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\"]\nstream_server_address = \"127.0.0.1\"\n\
                 [plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n\
                 [plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dirs = [\"/usr/lib/cni\"]\nconf_dir = \"{}\"\n",
                network.display()
            )
        }
    }
}

/// The directory of a CNI configuration: a pair of devices a pod, no bridge, no packet filter.
fn network(ctx: &Ctx) -> PathBuf {
    let dir = ctx.mkdir("cni");
    let config = json!({
        "cniVersion": "0.4.0", "name": "pair", "plugins": [{
            "type": "ptp",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "192.0.2.0/24"}]], "dataDir": dir.join("leases")}
        }]
    });
    fs::write(dir.join("pair.conflist"), config.to_string()).unwrap();
    dir
}

/// The image of a pod's first container.
fn pause(ctx: &Ctx) -> PathBuf {
    let dir = ctx.mkdir("pause");
    let program = host::compile_helper("pause", &ctx.mkdir("helpers")).unwrap();
    let rootfs = dir.join("rootfs");
    fs::create_dir_all(&rootfs).unwrap();
    fs::copy(program, rootfs.join("pause")).unwrap();
    let config = json!({"Entrypoint": ["/pause"]});
    image::archive(&dir, &rootfs, PAUSE, (image::architecture(), "linux"), &config)
}

/// Puts what `change` has into `value`, objects key by key.
fn merge(value: &mut Value, change: &Value) {
    match (value, change) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, change) in from {
                merge(into.entry(key).or_insert(Value::Null), change);
            }
        }
        (value, change) => *value = change.clone(),
    }
}

/// What makes a pod have a network of its own.
fn own_network() -> Value {
    json!({"hostname": "pod", "linux": {"security_context": {"namespace_options": {"network": "POD"}}}})
}

/// A pod, and its configuration, which a kubelet gives again with each container.
struct Pod {
    id: String,
    config: Value,
}

impl Cri<'_> {
    fn ask(&mut self, method: &str, request: &Value) -> Result<Value, String> {
        eprintln!("+ {method} {request}");
        let stdin = self.client.stdin.as_mut().unwrap();
        writeln!(stdin, "{}", json!([method, request])).unwrap();
        let mut line = String::new();
        // One line is asked for and one answered: nothing is left in the buffer.
        BufReader::new(self.client.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        eprintln!("  {}", line.trim());
        let mut answer: Value = serde_json::from_str(&line).unwrap();
        match answer.get("error") {
            Some(error) => Err(error.to_string()),
            None => Ok(answer["ok"].take()),
        }
    }

    #[track_caller]
    fn call(&mut self, method: &str, request: Value) -> Value {
        self.ask(method, &request).unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    /// A pod on the node's network with a pid namespace for each container, changed by what `change` has.
    fn pod(&mut self, change: &Value) -> Pod {
        let config = self.pod_config(change);
        let answer = self.call("RunPodSandbox", json!({"config": config, "runtime_handler": "proa"}));
        let id = answer["pod_sandbox_id"].as_str().unwrap().to_owned();
        Pod { id, config }
    }

    fn pod_config(&self, change: &Value) -> Value {
        let logs = self.ctx.mkdir("logs");
        let parent = if self.ctx.view.has_systemd() {
            "/kubepods.slice".to_owned()
        } else {
            self.ctx.cgroup_parent()
        };
        let mut config = json!({
            "metadata": {"name": "pod", "uid": "uid", "namespace": "default"},
            "log_directory": logs,
            "linux": {
                "cgroup_parent": parent,
                "security_context": {
                    "namespace_options": {"network": "NODE", "pid": "CONTAINER"},
                    "seccomp": {"profile_type": "RuntimeDefault"}
                }
            }
        });
        merge(&mut config, change);
        config
    }

    fn create(&mut self, pod: &Pod, name: &str, command: &[&str]) -> String {
        self.create_with(pod, name, command, &json!({})).unwrap()
    }

    /// A container as a kubelet asks for it, changed by what `change` has.
    fn create_with(&mut self, pod: &Pod, name: &str, command: &[&str], change: &Value) -> Result<String, String> {
        let mut config = json!({
            "metadata": {"name": name}, "image": {"image": IMAGE}, "command": command, "log_path": name,
            "envs": [{"key": "FROM_POD", "value": "yes"}],
            "linux": {
                "resources": {"memory_limit_in_bytes": 128 << 20, "cpu_shares": 512, "oom_score_adj": 500},
                "security_context": {
                    "namespace_options": pod.config["linux"]["security_context"]["namespace_options"],
                    "seccomp": {"profile_type": "RuntimeDefault"},
                    "masked_paths": ["/proc/kcore"], "readonly_paths": ["/proc/sys"]
                }
            }
        });
        merge(&mut config, change);
        let request = json!({"pod_sandbox_id": pod.id, "config": config, "sandbox_config": pod.config});
        let answer = self.ask("CreateContainer", &request)?;
        Ok(answer["container_id"].as_str().unwrap().to_owned())
    }

    fn start(&mut self, pod: &Pod, name: &str, command: &[&str]) -> String {
        self.start_with(pod, name, command, &json!({}))
    }

    fn start_with(&mut self, pod: &Pod, name: &str, command: &[&str], change: &Value) -> String {
        let id = self.create_with(pod, name, command, change).unwrap();
        self.call("StartContainer", json!({"container_id": id}));
        id
    }

    /// Runs a shell script to its end in a container of its own, which must succeed; what it wrote.
    #[track_caller]
    fn shell(&mut self, pod: &Pod, name: &str, script: &str, change: &Value) -> String {
        let id = self.start_with(pod, name, &["sh", "-c", script], change);
        let status = self.status(&id);
        let log = self.log(name);
        self.call("RemoveContainer", json!({"container_id": id}));
        assert_eq!(status, 0, "{log}");
        // Time, stream and `F` (a whole line) stand before each line.
        log.lines()
            .map(|line| format!("{}\n", line.splitn(4, ' ').nth(3).unwrap_or_default()))
            .collect()
    }

    fn exec(&mut self, id: &str, command: &[&str]) -> (i64, String) {
        let answer = self.call("ExecSync", exec_request(id, command));
        let code = answer["exit_code"].as_i64().unwrap_or(0);
        (code, unbase64(answer["stdout"].as_str().unwrap_or_default()))
    }

    /// The container's status, once it has ended.
    fn ended(&mut self, id: &str) -> Value {
        eventually("the container's end", || {
            let mut answer = self.call("ContainerStatus", json!({"container_id": id}));
            (answer["status"]["state"] == "CONTAINER_EXITED").then(|| answer["status"].take())
        })
    }

    /// The exit status, once the container has one.
    fn status(&mut self, id: &str) -> i64 {
        self.ended(id)["exit_code"].as_i64().unwrap_or(0)
    }

    /// Waits until containerd knows that the kernel has killed a process of the running container for want of memory. Only then
    /// may the init be killed so: the end of a cgroup's last process lets systemd remove it, maybe before the shim has read why.
    fn hears_of_memory(&mut self, id: &str) {
        eventually("the word of the killed process", || {
            let answer = self.call("ContainerStatus", json!({"container_id": id}));
            let status = &answer["status"];
            assert_eq!(status["state"], "CONTAINER_RUNNING", "{status}");
            (status["reason"] == "OOMKilled").then_some(())
        });
    }

    #[track_caller]
    fn ends_for_memory(&mut self, id: &str) {
        let status = self.ended(id);
        assert_eq!(
            (&status["exit_code"], &status["reason"]),
            (&json!(137), &json!("OOMKilled")),
            "{status}"
        );
    }

    fn stop(&mut self, id: &str, timeout: u32) -> i64 {
        self.call("StopContainer", json!({"container_id": id, "timeout": timeout}));
        self.status(id)
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.ctx.dir.join("logs").join(name)).unwrap()
    }

    /// Waits for this text in a container's log.
    #[track_caller]
    fn says(&self, name: &str, text: &str) {
        eventually(text, || self.log(name).contains(text).then_some(()));
    }

    fn remove(&mut self, pod: &Pod) {
        self.call("StopPodSandbox", json!({"pod_sandbox_id": pod.id}));
        self.call("RemovePodSandbox", json!({"pod_sandbox_id": pod.id}));
    }
}

impl Drop for Cri<'_> {
    fn drop(&mut self) {
        // Its end is the end of its stdin.
        drop(self.client.stdin.take());
        self.client.wait().expect("the client");
    }
}

fn exec_request(id: &str, command: &[&str]) -> Value {
    json!({"container_id": id, "cmd": command, "timeout": 10 * proa_integration::patience()})
}

/// What `bytes` are in JSON.
fn unbase64(text: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<usize> = text
        .bytes()
        .filter_map(|b| ALPHABET.iter().position(|a| *a == b))
        .collect();
    let bytes = digits.chunks(4).flat_map(|four| {
        let bits = four.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - four.len()));
        bits.to_be_bytes()
            .into_iter()
            .skip(5)
            .take(four.len() - 1)
            .collect::<Vec<u8>>()
    });
    String::from_utf8(bytes.collect()).unwrap()
}
