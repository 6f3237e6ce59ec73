//! containerd's CRI plugin, as a kubelet uses it: a pod with a Linux sidecar and a Wasm container, its pause container native.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proa_integration::ctx::eventually;
use proa_integration::{Ctx, View, host, image, tests};
use serde_json::{Value, json};

use super::containerd::{self, Containerd, Release};
use super::{IMAGE, NO_HYBRID, V1, busybox, busybox_with_guest, documented};

/// With both cgroup drivers.
const DRIVERS: &[View] = &[View::Hybrid, View::Systemd];

tests! {
    cri_runs_a_linux_pod .views(DRIVERS).seconds(120).not_for(NO_HYBRID);
    cri_runs_wasm_beside_a_linux_sidecar .views(DRIVERS).seconds(120).only_proa();
    cri_gives_a_pod_its_own_network .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_shares_a_pods_pid_namespace .views(V1).seconds(120).only_proa();
    cri_shows_why_a_container_did_not_start .views(V1).seconds(120).only_proa();
}

const PAUSE: &str = "registry.test/pause:1";

/// A client of the CRI.
struct Cri<'a> {
    ctx: &'a Ctx,
    client: Child,
    // Ended after the client: fields are dropped in their order.
    _containerd: Containerd<'a>,
}

fn cri<'a>(ctx: &'a Ctx, image: &Path) -> Cri<'a> {
    let mut config = documented(ctx, "containerd: the CRI plugin", "toml");
    if ctx.view.has_systemd() {
        config = config.replace("BinaryName", "SystemdCgroup = true\n    BinaryName");
    }
    // The sandbox image of this test; and no score below the daemon's own, which needs a capability that not every host's
    // root has.
    let more = format!(
        "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\n\
         stream_server_address = \"127.0.0.1\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{}\"\n",
        network(ctx).display()
    );
    let containerd = containerd::start(ctx, Release::System, &format!("{config}{more}"), &[]).namespace("k8s.io");
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
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut cri = Cri {
        ctx,
        client,
        _containerd: containerd,
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
    fs::create_dir(&rootfs).unwrap();
    fs::copy(program, rootfs.join("pause")).unwrap();
    let config = json!({"Entrypoint": ["/pause"]});
    image::archive(&dir, &rootfs, PAUSE, (image::architecture(), "linux"), &config)
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

    fn pod(&mut self, annotations: Value, pid: &'static str) -> Pod {
        self.pod_with(annotations, Namespaces { network: "NODE", pid })
    }

    fn pod_with(&mut self, annotations: Value, namespaces: Namespaces) -> Pod {
        let logs = self.ctx.mkdir("logs");
        let parent = if self.ctx.view.has_systemd() {
            "kubepods.slice".to_owned()
        } else {
            self.ctx.cgroup_parent()
        };
        // As a kubelet does: on the node's network the name is the node's.
        let hostname = if namespaces.network == "NODE" { "" } else { "pod" };
        let config = json!({
            "metadata": {"name": "pod", "uid": "uid", "namespace": "default"},
            "hostname": hostname, "log_directory": logs, "annotations": annotations,
            "linux": {
                "cgroup_parent": parent,
                "security_context": {
                    "namespace_options": namespaces.json(),
                    "seccomp": {"profile_type": "RuntimeDefault"}
                }
            }
        });
        let answer = self.call("RunPodSandbox", json!({"config": config, "runtime_handler": "proa"}));
        let id = answer["pod_sandbox_id"].as_str().unwrap().to_owned();
        Pod { id, config, namespaces }
    }

    fn create(&mut self, pod: &Pod, name: &str, command: &[&str]) -> String {
        let config = json!({
            "metadata": {"name": name}, "image": {"image": IMAGE}, "command": command, "log_path": name,
            "envs": [{"key": "FROM_POD", "value": "yes"}],
            "linux": {
                "resources": {"memory_limit_in_bytes": 128 << 20, "cpu_shares": 512, "oom_score_adj": 500},
                "security_context": {
                    "namespace_options": pod.namespaces.json(),
                    "seccomp": {"profile_type": "RuntimeDefault"},
                    "masked_paths": ["/proc/kcore"], "readonly_paths": ["/proc/sys"]
                }
            }
        });
        let request = json!({"pod_sandbox_id": pod.id, "config": config, "sandbox_config": pod.config});
        let answer = self.call("CreateContainer", request);
        answer["container_id"].as_str().unwrap().to_owned()
    }

    fn start(&mut self, pod: &Pod, name: &str, command: &[&str]) -> String {
        let id = self.create(pod, name, command);
        self.call("StartContainer", json!({"container_id": id}));
        id
    }

    fn exec(&mut self, id: &str, command: &[&str]) -> (i64, String) {
        let answer = self.call("ExecSync", json!({"container_id": id, "cmd": command, "timeout": 10}));
        let code = answer["exit_code"].as_i64().unwrap_or(0);
        (code, unbase64(answer["stdout"].as_str().unwrap_or_default()))
    }

    /// The exit status, once the container has one.
    fn status(&mut self, id: &str) -> i64 {
        eventually("the container's end", || {
            let answer = self.call("ContainerStatus", json!({"container_id": id}));
            let status = &answer["status"];
            (status["state"] == "CONTAINER_EXITED").then(|| status["exit_code"].as_i64().unwrap_or(0))
        })
    }

    fn stop(&mut self, id: &str, timeout: u32) -> i64 {
        self.call("StopContainer", json!({"container_id": id, "timeout": timeout}));
        self.status(id)
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.ctx.dir.join("logs").join(name)).unwrap()
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

struct Pod {
    id: String,
    config: Value,
    namespaces: Namespaces,
}

/// Whose namespaces a pod's containers have. The network `NODE` is the test's own namespace; `POD` is made with CNI.
#[derive(Clone, Copy)]
struct Namespaces {
    network: &'static str,
    pid: &'static str,
}

impl Namespaces {
    fn json(self) -> Value {
        json!({"network": self.network, "pid": self.pid})
    }
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

fn cri_runs_a_linux_pod(ctx: &Ctx) {
    let mut cri = cri(ctx, &busybox(ctx));
    let pod = cri.pod(json!({}), "CONTAINER");
    let script = "trap 'echo bye; exit 3' TERM; echo hello $FROM_POD; echo aside >&2; while :; do sleep 0.05; done";
    let id = cri.start(&pod, "main", &["sh", "-c", script]);
    assert_eq!(
        cri.exec(&id, &["sh", "-c", "cat /proc/1/comm; exit 4"]),
        (4, "sh\n".to_owned())
    );
    for line in [" stdout F hello yes\n", " stderr F aside\n"] {
        eventually(line, || cri.log("main").contains(line).then_some(()));
    }
    let stats = cri.call("ContainerStats", json!({"container_id": id}))["stats"].take();
    for pointer in ["/cpu/usage_core_nano_seconds/value", "/memory/working_set_bytes/value"] {
        let value = stats.pointer(pointer).and_then(Value::as_str).unwrap_or("0");
        assert!(value.parse::<u64>().unwrap() > 0, "{pointer} in {stats}");
    }
    let limit = ["cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    assert_eq!(cri.exec(&id, &limit), (0, format!("{}\n", 128 << 20)));
    let resources = json!({"memory_limit_in_bytes": 64 << 20});
    cri.call(
        "UpdateContainerResources",
        json!({"container_id": id, "linux": resources}),
    );
    assert_eq!(cri.exec(&id, &limit), (0, format!("{}\n", 64 << 20)));
    assert_eq!(cri.stop(&id, 10), 3);
    assert!(cri.log("main").contains(" stdout F bye\n"));
    cri.call("RemoveContainer", json!({"container_id": id}));
    cri.remove(&pod);
}

fn cri_runs_wasm_beside_a_linux_sidecar(ctx: &Ctx) {
    let mut cri = cri(ctx, &busybox_with_guest(ctx));
    for (n, annotations) in [
        json!({"run.oci.handler": "wasm"}),
        json!({"module.wasm.image/variant": "compat-smart"}),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = cri.pod(annotations, "CONTAINER");
        let name = |what: &str| format!("{what}{n}");
        let sidecar = cri.start(&pod, &name("sidecar"), &["sh", "-c", "echo a shell; exec sleep 1000"]);
        let looping = cri.start(&pod, &name("loop"), &["/guest.wasm", "loop"]);
        let ended = cri.start(&pod, &name("ended"), &["/guest.wasm", "one", "two"]);
        assert_eq!(cri.status(&ended), 3);
        assert!(cri.log(&name("ended")).contains(" stdout F wasm two\n"));
        assert!(cri.log(&name("ended")).contains(" stderr F wasm to stderr\n"));
        assert_eq!(cri.exec(&sidecar, &["cat", "/proc/1/comm"]), (0, "sleep\n".to_owned()));
        assert_eq!(
            cri.exec(&looping, &["sh", "-c", "echo $FROM_POD"]),
            (0, "yes\n".to_owned())
        );
        assert_eq!(
            cri.exec(&looping, &["/guest.wasm", "again"]),
            (2, "wasm again\n".to_owned())
        );
        let stats = cri.call("ContainerStats", json!({"container_id": looping}));
        assert!(
            stats.pointer("/stats/memory/working_set_bytes/value").is_some(),
            "{stats}"
        );
        assert_eq!(cri.stop(&looping, 10), 143);
        assert_eq!(cri.stop(&sidecar, 0), 137);
        cri.remove(&pod);
    }
}

fn cri_gives_a_pod_its_own_network(ctx: &Ctx) {
    let mut cri = cri(ctx, &busybox(ctx));
    let namespaces = Namespaces {
        network: "POD",
        pid: "CONTAINER",
    };
    let pod = cri.pod_with(json!({}), namespaces);
    let [one, other] = ["one", "other"].map(|name| cri.start(&pod, name, &["sleep", "1000"]));
    let (_, addresses) = cri.exec(&one, &["ip", "-4", "addr"]);
    assert!(
        addresses.contains("192.0.2.") && addresses.contains("127.0.0.1"),
        "{addresses}"
    );
    assert_eq!(cri.exec(&other, &["ip", "-4", "addr"]), (0, addresses));
    assert_eq!(cri.exec(&other, &["hostname"]), (0, "pod\n".to_owned()));
    cri.remove(&pod);
}

fn cri_shares_a_pods_pid_namespace(ctx: &Ctx) {
    let mut cri = cri(ctx, &busybox_with_guest(ctx));
    let pod = cri.pod(json!({"run.oci.handler": "wasm"}), "POD");
    let sidecar = cri.start(&pod, "sidecar", &["sleep", "1000"]);
    let looping = cri.start(&pod, "loop", &["/guest.wasm", "loop"]);
    let (_, seen) = cri.exec(&sidecar, &["ps", "-o", "comm"]);
    assert!(seen.contains("pause") && seen.contains("sleep"), "{seen}");
    assert_eq!(cri.exec(&looping, &["cat", "/proc/1/comm"]), (0, "pause\n".to_owned()));
    assert_eq!(cri.stop(&looping, 10), 143);
    assert_eq!(cri.stop(&sidecar, 10), 143);
    cri.remove(&pod);
}

fn cri_shows_why_a_container_did_not_start(ctx: &Ctx) {
    let mut cri = cri(ctx, &busybox_with_guest(ctx));
    let pod = cri.pod(json!({"run.oci.handler": "wasm-smart"}), "CONTAINER");
    for (name, command, cause) in [
        ("absent", "no-such-program", "no-such-program"),
        ("component", "/component.wasm", "component"),
    ] {
        let id = cri.create(&pod, name, &[command]);
        let error = cri.ask("StartContainer", &json!({"container_id": id})).unwrap_err();
        assert!(error.contains(command) && error.contains(cause), "{error}");
    }
    cri.remove(&pod);
}
