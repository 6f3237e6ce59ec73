//! Pods of a RuntimeClass, with what a kubelet says of them: probes, logs, metrics, `kubectl exec`, ends and restarts of Wasm
//! containers beside Linux ones.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proa_integration::ctx::eventually;
use proa_integration::{Ctx, wasm};
use serde_json::{Value, json};

use super::super::{V1, busybox_with_guest, image_with};
use super::streams::{STDERR, STDIN, STDOUT};
use super::{Cri, DRIVERS, Pod, Release, configuration, cri, cri_with, exec_request, own_network, path_with_runc};

of_both! {
    cri_has_wasm_pods_beside_runcs .views(V1).seconds(120).only_proa();
    cri_probes_a_wasm_container .views(V1).seconds(120).only_proa();
    cri_stops_and_restarts_a_wasm_container .views(DRIVERS).seconds(120).only_proa();
    cri_measures_a_wasm_container .views(V1).seconds(120).only_proa();
    cri_says_that_a_wasm_container_ran_out_of_memory .views(V1).seconds(120).only_proa();
    cri_streams_exec_into_a_wasm_container .views(V1).seconds(120).only_proa();
}

/// What a kubelet sends with a pod: its own labels and annotations, and the pod's.
fn pod_of_kubelet(name: &str, more: &Value) -> Value {
    let mut config = json!({
        "metadata": {"name": name, "uid": format!("{name}-uid"), "namespace": "default"},
        "labels": {
            "app": name, "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default",
            "io.kubernetes.pod.uid": format!("{name}-uid")
        },
        "annotations": {
            "run.oci.handler": "wasm", "kubernetes.io/config.source": "api",
            "kubernetes.io/config.seen": "2026-11-27T12:00:00.000000000Z"
        }
    });
    super::merge(&mut config, more);
    config
}

/// What a kubelet sends with a container that was started so many times before. Its log is in a directory of the container's.
fn container_of_kubelet(ctx: &Ctx, pod: &Pod, name: &str, attempt: u32) -> Value {
    ctx.mkdir(&format!("logs/{name}"));
    let pod = &pod.config["metadata"];
    json!({
        "metadata": {"name": name, "attempt": attempt},
        "log_path": format!("{name}/{attempt}.log"),
        "labels": {
            "io.kubernetes.container.name": name, "io.kubernetes.pod.name": pod["name"],
            "io.kubernetes.pod.namespace": pod["namespace"], "io.kubernetes.pod.uid": pod["uid"]
        },
        "annotations": {
            "io.kubernetes.container.hash": "8b1f0a2c", "io.kubernetes.container.restartCount": attempt.to_string(),
            "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
            "io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30"
        }
    })
}

impl Cri<'_> {
    fn start_of_kubelet(&mut self, pod: &Pod, name: &str, attempt: u32, command: &[&str]) -> String {
        let config = container_of_kubelet(self.ctx, pod, name, attempt);
        self.start_with(pod, name, command, &config)
    }
}

pub fn cri_has_wasm_pods_beside_runcs(ctx: &Ctx, release: Release) {
    let path = path_with_runc(ctx, release);
    let (image, mut config) = (busybox_with_guest(ctx), configuration(ctx, release));
    if ctx.view.has_systemd() {
        config += "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n";
    }
    let mut cri = cri_with(ctx, release, &image, &config, &[("PATH", &path)]);
    let config = cri.pod_config(&pod_of_kubelet("native", &json!({"annotations": {}})));
    let answer = cri.call("RunPodSandbox", json!({"config": config, "runtime_handler": "runc"}));
    let id = answer["pod_sandbox_id"].as_str().unwrap().to_owned();
    let native = Pod { id, config };
    let pod = cri.pod(&pod_of_kubelet("mixed", &json!({})));
    let runc = cri.start_of_kubelet(&native, "native", 0, &["sleep", "1000"]);
    let app = cri.start_of_kubelet(&pod, "app", 0, &["/guest.wasm", "loop"]);
    let sidecar = cri.start_of_kubelet(&pod, "sidecar", 0, &["sleep", "1000"]);
    let job = cri.start_of_kubelet(&pod, "job", 0, &["/guest.wasm", "a", "b"]);
    assert_eq!(cri.status(&job), 3);
    // A line each in the form that the kubelet reads: time, stream, whole or part, text.
    let log = cri.log("job/0.log");
    let mut lines: Vec<Vec<&str>> = log.lines().map(|line| line.splitn(4, ' ').collect()).collect();
    lines.sort_by_key(|line| line[1]);
    let said: Vec<&[&str]> = lines.iter().map(|line| &line[1..]).collect();
    assert_eq!(
        said,
        [["stderr", "F", "wasm to stderr"], ["stdout", "F", "wasm b"]],
        "{log}"
    );
    assert!(
        lines.iter().all(|line| line[0].contains('T') && line[0].contains('.')),
        "{log}"
    );
    cri.says("app/0.log", " stdout F ready\n");
    for id in [&sidecar, &runc] {
        assert_eq!(cri.exec(id, &["cat", "/proc/1/comm"]), (0, "sleep\n".to_owned()));
    }
    // What the guest is called among processes is the runtime's to choose; a shell it is not.
    let (code, name) = cri.exec(&app, &["cat", "/proc/1/comm"]);
    assert_eq!(code, 0);
    assert_ne!(name, "sleep\n");
    assert_eq!(cri.stop(&app, 30), 143);
    for id in [&sidecar, &runc] {
        assert_eq!(cri.stop(id, 0), 137);
    }
    cri.remove(&pod);
    cri.remove(&native);
}

/// Answers every request, with sockets as WasmEdge gives them; `/gone` ends it.
const SERVER: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#define SOCK(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name("sock_" #name)))
struct address { uint8_t *bytes; uint32_t length; };
struct data { const void *bytes; uint32_t length; };
SOCK(open) int sock_open(int family, int type, int *fd);
SOCK(bind) int sock_bind(int fd, struct address *address, int port);
SOCK(listen) int sock_listen(int fd, int backlog);
SOCK(accept) int sock_accept(int fd, int *accepted);
SOCK(recv) int sock_recv(int fd, struct data *to, int count, int flags, uint32_t *length, uint32_t *out);
SOCK(send) int sock_send(int fd, struct data *from, int count, int flags, uint32_t *length);

int main(void)
{
	static char text[4096];
	static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nhealthy\n";
	uint8_t any[4] = {0};
	struct address address = {any, 4};
	int fd, other;
	if (sock_open(1, 2, &fd) || sock_bind(fd, &address, 8080) || sock_listen(fd, 8))
		return 9;
	puts("listening");
	fflush(stdout);
	for (;;) {
		uint32_t length = 0, flags = 0;
		struct data to = {text, sizeof text - 1}, from = {answer, sizeof answer - 1};
		if (sock_accept(fd, &other))
			return 8;
		if (!sock_recv(other, &to, 1, 0, &length, &flags)) {
			text[length] = 0;
			if (!strncmp(text, "GET /gone", 9))
				return 5;
			sock_send(other, &from, 1, 0, &length);
		}
		close(other);
	}
}
"#;

fn image_with_server(ctx: &Ctx) -> PathBuf {
    let server = fs::read(wasm::compile(&ctx.dir, "server", SERVER, &[])).unwrap();
    image_with(ctx, &[("server.wasm", &server)])
}

/// A kubelet's `httpGet`: the first line of the answer.
fn http_get(address: &str, path: &str) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect((address, 8080))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // Whole: the guest takes what comes first for the request.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/1.34\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

pub fn cri_probes_a_wasm_container(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &image_with_server(ctx));
    let pod = cri.pod(&pod_of_kubelet("server", &own_network()));
    let id = cri.start_of_kubelet(&pod, "app", 0, &["/server.wasm"]);
    let status = cri.call("PodSandboxStatus", json!({"pod_sandbox_id": pod.id}));
    let address = status["status"]["network"]["ip"].as_str().unwrap().to_owned();
    // tcpSocket and httpGet, until it is ready, and then each time.
    eventually("the port", || TcpStream::connect((&*address, 8080)).ok());
    for _ in 0..3 {
        assert_eq!(http_get(&address, "/healthz").unwrap(), "HTTP/1.1 200 OK");
    }
    // exec: a Linux program of the image, its status and its time.
    assert_eq!(
        cri.exec(&id, &["sh", "-c", "netstat -ltn | grep -c :8080"]),
        (0, "1\n".to_owned())
    );
    assert_eq!(cri.exec(&id, &["test", "-e", "/no/such/file"]).0, 1);
    let slow = json!({"container_id": id, "cmd": ["sleep", "1234"], "timeout": 1});
    let error = cri.ask("ExecSync", &slow).unwrap_err();
    assert!(error.contains("timeout 1s exceeded"), "{error}");
    assert!(
        !cri.exec(&id, &["ps"]).1.contains("1234"),
        "the probe that took too long is gone"
    );
    assert_eq!(
        http_get(&address, "/healthz").unwrap(),
        "HTTP/1.1 200 OK",
        "and the guest is not"
    );
    // What a liveness probe finds when the guest has ended.
    http_get(&address, "/gone").unwrap_or_default();
    assert_eq!(cri.status(&id), 5);
    assert!(TcpStream::connect((&*address, 8080)).is_err());
    assert!(cri.ask("ExecSync", &slow).is_err());
    cri.remove(&pod);
}

pub fn cri_stops_and_restarts_a_wasm_container(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox_with_guest(ctx));
    let pod = cri.pod(&pod_of_kubelet("pod", &json!({})));
    let sidecar = cri.start_of_kubelet(&pod, "sidecar", 0, &["sleep", "1000"]);
    let crashed = cri.start_of_kubelet(&pod, "app", 0, &["/guest.wasm", "trap"]);
    let status = cri.ended(&crashed);
    assert_eq!(
        (&status["exit_code"], &status["reason"]),
        (&json!(134), &json!("Error")),
        "{status}"
    );
    assert!(
        cri.log("app/0.log").contains("unreachable"),
        "the cause is in the container's log"
    );
    // Again in the same pod, and the first one is removed when the kubelet comes to it.
    let again = cri.start_of_kubelet(&pod, "app", 1, &["/guest.wasm", "loop"]);
    cri.says("app/1.log", " stdout F ready\n");
    cri.call("RemoveContainer", json!({"container_id": crashed}));
    assert_eq!(cri.exec(&sidecar, &["true"]).0, 0, "the sidecar lives");
    let start = Instant::now();
    assert_eq!(cri.stop(&again, 60), 143);
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "it waited: {:?}",
        start.elapsed()
    );
    // And with the pod, whose grace period is not asked for.
    let left = cri.start_of_kubelet(&pod, "app", 2, &["/guest.wasm", "loop"]);
    cri.says("app/2.log", " stdout F ready\n");
    cri.call("StopPodSandbox", json!({"pod_sandbox_id": pod.id}));
    assert_eq!(cri.status(&left), 137);
    cri.remove(&pod);
}

pub fn cri_measures_a_wasm_container(ctx: &Ctx, release: Release) {
    let limit = 128_u64 << 20;
    let mut cri = cri(ctx, release, &busybox_with_guest(ctx));
    let pod = cri.pod(&pod_of_kubelet("pod", &own_network()));
    let id = cri.start_of_kubelet(&pod, "app", 0, &["/guest.wasm", "loop"]);
    let sidecar = cri.start_of_kubelet(&pod, "sidecar", 0, &["sleep", "1000"]);
    let number = |value: &Value| value.as_str().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let cpu = |stats: &Value| number(&stats["cpu"]["usage_core_nano_seconds"]["value"]);
    let memory = |stats: &Value| number(&stats["memory"]["working_set_bytes"]["value"]);
    let mut stats = |id: &str| cri.call("ContainerStats", json!({"container_id": id}))["stats"].take();
    let (start, before) = (Instant::now(), cpu(&stats(&id)));
    // Its guest never rests: half a second of a processor is used, and not more than has passed.
    let used = eventually("time used", || {
        let used = cpu(&stats(&id)) - before;
        (used > 500_000_000).then_some(used)
    });
    assert!(u128::from(used) < start.elapsed().as_nanos() + 1_000_000_000, "{used}");
    let app = stats(&id);
    assert!((256 << 10..limit).contains(&memory(&app)), "{app}");
    let idle = stats(&sidecar);
    assert!(cpu(&idle) < cpu(&app) && memory(&idle) < memory(&app), "{idle} {app}");
    let all = cri.call("ListContainerStats", json!({}));
    assert_eq!(all["stats"].as_array().map(Vec::len), Some(2), "{all}");
    let pods = cri.call("PodSandboxStats", json!({"pod_sandbox_id": pod.id}))["stats"]["linux"].take();
    assert!(cpu(&pods) >= used && memory(&pods) >= memory(&app) / 2, "{pods}");
    assert_eq!(pods["containers"].as_array().map(Vec::len), Some(2), "{pods}");
    assert_eq!(cri.stop(&id, 30), 143);
    assert_eq!(cri.stop(&sidecar, 0), 137);
    cri.remove(&pod);
}

pub fn cri_says_that_a_wasm_container_ran_out_of_memory(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox_with_guest(ctx));
    let pod = cri.pod(&pod_of_kubelet("pod", &json!({})));
    let mut config = container_of_kubelet(ctx, &pod, "app", 0);
    config["linux"] = json!({"resources": {"memory_limit_in_bytes": 48 << 20, "memory_swap_limit_in_bytes": 48 << 20}});
    let id = cri.start_with(&pod, "app", &["/guest.wasm", "loop"], &config);
    cri.says("app/0.log", " stdout F ready\n");
    assert_eq!(cri.exec(&id, &["tail", "/dev/zero"]).0, 137);
    cri.hears_of_memory(&id);
    // The guest's own memory can't pass the limit. Files in memory can: the engine is the largest process then, as long as who
    // writes them has no buffer worth the name.
    let fill = exec_request(&id, &["dd", "if=/dev/zero", "of=/dev/shm/file", "bs=4k"]);
    cri.ask("ExecSync", &fill).ok();
    cri.ends_for_memory(&id);
    cri.remove(&pod);
}

pub fn cri_streams_exec_into_a_wasm_container(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox_with_guest(ctx));
    let pod = cri.pod(&pod_of_kubelet("pod", &json!({})));
    let id = cri.start_of_kubelet(&pod, "app", 0, &["/guest.wasm", "loop"]);
    // kubectl exec -it app -- sh
    let request = json!({"container_id": id, "cmd": ["sh"], "stdin": true, "stdout": true, "tty": true});
    let mut stream = cri.stream("Exec", request);
    stream.send(STDIN, "tty; echo $FROM_POD$((1 + 1)); exit 7\n");
    stream.expect(STDOUT, "yes2");
    assert_eq!(stream.exit_status(), 7);
    assert!(stream.text(STDOUT).contains("/dev/pts/"), "{}", stream.text(STDOUT));
    // kubectl exec app -- /guest.wasm: another module beside it, with streams of its own.
    let request =
        json!({"container_id": id, "cmd": ["/guest.wasm", "ask"], "stdin": true, "stdout": true, "stderr": true});
    let mut stream = cri.stream("Exec", request);
    stream.expect(STDOUT, "terminal: no\n");
    stream.send(STDIN, "the line\n");
    assert_eq!(stream.exit_status(), 7);
    assert!(
        stream.text(STDOUT).contains("heard the line"),
        "{}",
        stream.text(STDOUT)
    );
    assert_eq!(stream.text(STDERR), "");
    assert_eq!(cri.stop(&id, 30), 143);
    cri.remove(&pod);
}
