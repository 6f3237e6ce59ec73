//! The runtime under containerd and podman, each started by the test with directories and sockets of its own.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proa_integration::bundle::make_rootfs;
use proa_integration::ctx::eventually;
use proa_integration::{Ctx, Kind, View, image, tests, wasm};
use serde_json::json;

const V1: &[View] = &[View::Hybrid];
/// With both of its cgroup managers; it wants a limit on processes, for which the machine's cgroup2 has no controller.
const PODMAN: &[View] = &[View::Hybrid, View::Systemd];

tests! {
    containerd_runs_a_container .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_execs_kills_and_measures .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_sees_the_exit_status .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_shows_why_a_container_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_limits_pauses_and_resumes .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_runs_a_container .views(PODMAN).seconds(120).not_for(NO_HYBRID);
    podman_execs_stops_and_removes .views(PODMAN).seconds(120).not_for(NO_HYBRID);
    podman_shows_logs_and_status .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_runs_wasm .views(V1).seconds(120).only_proa();
    podman_runs_wasm .views(V1).seconds(120).only_proa();
    podman_shows_why_a_container_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
}

const NO_HYBRID: &[(Kind, &str)] = &[(Kind::Crun, "refuses a hybrid layout")];
const IMAGE: &str = "example.test/busybox:latest";

/// A busybox image for Linux, made in the test's directory; with `hello.wasm` when the test has made one there.
fn busybox(ctx: &Ctx) -> PathBuf {
    let dir = ctx.mkdir("image");
    let rootfs = dir.join("rootfs");
    make_rootfs(&rootfs, &ctx.probe);
    if let Some(module) = ctx.dir.join("hello.wasm").canonicalize().ok().filter(|m| m.exists()) {
        fs::copy(module, rootfs.join("hello.wasm")).unwrap();
    }
    let config = json!({"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"]});
    image::archive(&dir, &rootfs, IMAGE, (image::architecture(), "linux"), &config)
}

/// What a foreign command said, both streams together, and its status.
#[derive(Debug)]
struct Said {
    code: i32,
    text: String,
}

impl Said {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.text);
        self.text
    }
}

fn say(command: &mut Command, ctx: &Ctx) -> Said {
    thread_local!(static COUNT: Cell<u32> = const { Cell::new(0) });
    let n = COUNT.replace(COUNT.get() + 1);
    let path = ctx.dir.join(format!("said{n}"));
    let file = fs::File::create(&path).unwrap();
    eprintln!("+ {command:?}");
    // A file, not a pipe: shims and monitors keep it open. The deadline turns a hang into a failure with its output.
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .status()
        .unwrap();
    let said = Said {
        code: status.code().unwrap_or(-1),
        text: fs::read_to_string(path).unwrap(),
    };
    if said.code != 0 {
        eprintln!("  {said:?}");
    }
    said
}

struct Containerd<'a> {
    ctx: &'a Ctx,
    daemon: Child,
    socket: PathBuf,
    namespace: String,
}

fn containerd(ctx: &Ctx) -> Containerd<'_> {
    ctx.tmpfs(Path::new("/run"), "mode=755");
    let dir = ctx.mkdir("containerd");
    let socket = dir.join("c.sock");
    let config = format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.nri.v1.nri\", \"io.containerd.snapshotter.v1.btrfs\", \
         \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.aufs\"]\n\
         [grpc]\naddress = \"{1}\"\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{0}/opt\"\n",
        dir.display(),
        socket.display()
    );
    fs::write(dir.join("config.toml"), config).unwrap();
    let log = fs::File::create(dir.join("log")).unwrap();
    let daemon = Command::new("containerd")
        .arg("--config")
        .arg(dir.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("containerd");
    let namespace = ctx.cgroup_parent().trim_start_matches('/').to_owned();
    let it = Containerd {
        ctx,
        daemon,
        socket,
        namespace,
    };
    eventually("containerd", || (it.ctr(&["version"]).code == 0).then_some(()));
    it.ctr(&[
        "images",
        "import",
        "--snapshotter",
        "overlayfs",
        busybox(ctx).to_str().unwrap(),
    ])
    .ok();
    it
}

impl Containerd<'_> {
    fn ctr(&self, args: &[&str]) -> Said {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=1", "30", "ctr", "--address"])
            .arg(&self.socket)
            .args(["--namespace", &self.namespace])
            .args(args);
        say(&mut command, self.ctx)
    }

    fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Said {
        let root = self.ctx.dir.join("runc-root");
        let mut args = vec![
            "run",
            "--runc-binary",
            self.ctx.subject.path.to_str().unwrap(),
            "--runc-root",
            root.to_str().unwrap(),
        ];
        args.extend(flags);
        args.extend([IMAGE, id]);
        args.extend(program);
        self.ctr(&args)
    }

    /// Ends the task and removes the container.
    fn remove(&self, id: &str) {
        self.ctr(&["task", "kill", "--signal", "KILL", id]);
        eventually("the task's end", || {
            self.ctr(&["task", "ls"]).text.contains("STOPPED").then_some(())
        });
        // Its status is the task's.
        self.ctr(&["task", "rm", id]);
        self.ctr(&["container", "rm", id]).ok();
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        self.daemon.kill().expect("containerd still runs");
        self.daemon.wait().expect("containerd");
    }
}

fn containerd_runs_a_container(ctx: &Ctx) {
    let containerd = containerd(ctx);
    let text = containerd
        .run(
            &["--rm"],
            &ctx.id(),
            &["sh", "-c", "echo hello $FROM_IMAGE $(hostname | wc -l)"],
        )
        .ok();
    assert!(text.contains("hello yes"), "{text}");
}

fn containerd_sees_the_exit_status(ctx: &Ctx) {
    let containerd = containerd(ctx);
    let said = containerd.run(&["--rm"], &ctx.id(), &["sh", "-c", "exit 42"]);
    assert_eq!(said.code, 42, "{said:?}");
}

fn containerd_execs_kills_and_measures(ctx: &Ctx) {
    let containerd = containerd(ctx);
    let id = ctx.id();
    containerd.run(&["--detach"], &id, &["sleep", "1000"]).ok();
    let text = containerd
        .ctr(&[
            "task",
            "exec",
            "--exec-id",
            "e1",
            &id,
            "sh",
            "-c",
            "cat /proc/1/comm; echo $FROM_IMAGE",
        ])
        .ok();
    assert_eq!(text, "sleep\nyes\n");
    assert_eq!(
        containerd
            .ctr(&["task", "exec", "--exec-id", "e2", &id, "sh", "-c", "exit 9"])
            .code,
        9
    );
    let text = containerd.ctr(&["task", "metrics", &id]).ok();
    assert!(
        text.contains("memory.usage_in_bytes") && text.contains("pids.current"),
        "{text}"
    );
    let text = containerd.ctr(&["task", "ls"]).ok();
    assert!(
        text.lines().any(|l| l.starts_with(&id) && l.contains("RUNNING")),
        "{text}"
    );
    let text = containerd.ctr(&["task", "ps", &id]).ok();
    assert!(text.lines().count() >= 2, "{text}");
    containerd.ctr(&["task", "kill", "--signal", "KILL", &id]).ok();
    eventually("STOPPED", || {
        containerd.ctr(&["task", "ls"]).text.contains("STOPPED").then_some(())
    });
    containerd.remove(&id);
}

fn containerd_limits_pauses_and_resumes(ctx: &Ctx) {
    let containerd = containerd(ctx);
    let id = ctx.id();
    containerd
        .run(&["--detach", "--memory-limit", "33554432"], &id, &["sleep", "1000"])
        .ok();
    let group = ctx.cgroup_dir("memory", &format!("{}/{id}", ctx.cgroup_parent()));
    assert_eq!(
        fs::read_to_string(group.join("memory.limit_in_bytes")).unwrap().trim(),
        "33554432"
    );
    containerd.ctr(&["task", "pause", &id]).ok();
    assert!(containerd.ctr(&["task", "ls"]).ok().contains("PAUSED"));
    containerd.ctr(&["task", "resume", &id]).ok();
    assert!(containerd.ctr(&["task", "ls"]).ok().contains("RUNNING"));
    containerd.remove(&id);
}

fn containerd_shows_why_a_container_did_not_start(ctx: &Ctx) {
    // The shim reads the reason from the runtime's JSON log.
    let containerd = containerd(ctx);
    let said = containerd.run(&["--rm"], &ctx.id(), &["no-such-program"]);
    assert_ne!(said.code, 0);
    assert!(
        said.text.contains("no-such-program") && said.text.contains("not found"),
        "{said:?}"
    );
}

struct Podman<'a> {
    ctx: &'a Ctx,
}

fn podman(ctx: &Ctx) -> Podman<'_> {
    if !ctx.view.has_systemd() {
        ctx.tmpfs(Path::new("/run"), "mode=755");
    }
    let dir = ctx.mkdir("podman");
    fs::write(
        dir.join("policy.json"),
        r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
    )
    .unwrap();
    fs::write(
        dir.join("storage.conf"),
        format!(
            "[storage]\ndriver = \"vfs\"\nrunroot = \"{0}/run\"\ngraphroot = \"{0}/graph\"\n",
            dir.display()
        ),
    )
    .unwrap();
    fs::write(
        dir.join("containers.conf"),
        "[engine]\nevents_logger = \"file\"\ncgroup_manager = \"cgroupfs\"\n[containers]\nlog_driver = \"k8s-file\"\n",
    )
    .unwrap();
    let it = Podman { ctx };
    it.call(&[
        "load",
        "--signature-policy",
        dir.join("policy.json").to_str().unwrap(),
        "--input",
        busybox(ctx).to_str().unwrap(),
    ])
    .ok();
    it
}

impl Podman<'_> {
    fn call(&self, args: &[&str]) -> Said {
        let dir = self.ctx.dir.join("podman");
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=1", "30", "podman", "--log-level=error", "--runtime"])
            .arg(&self.ctx.subject.path);
        command
            .arg("--root")
            .arg(dir.join("graph"))
            .arg("--runroot")
            .arg(dir.join("run"))
            .arg("--tmpdir")
            .arg(dir.join("tmp"));
        command
            .args(["--storage-driver", "vfs", "--cgroup-manager"])
            .arg(if self.ctx.view.has_systemd() {
                "systemd"
            } else {
                "cgroupfs"
            })
            .args(args);
        command
            .env("CONTAINERS_STORAGE_CONF", dir.join("storage.conf"))
            .env("CONTAINERS_CONF", dir.join("containers.conf"));
        command
            .env("HOME", &dir)
            .env("XDG_RUNTIME_DIR", "/run")
            .env("TMPDIR", &self.ctx.dir);
        say(&mut command, self.ctx)
    }

    fn run(&self, flags: &[&str], program: &[&str]) -> Said {
        let parent = if self.ctx.view.has_systemd() {
            "machine-podman.slice".to_owned()
        } else {
            self.ctx.cgroup_parent()
        };
        let mut args = vec![
            "run",
            "--network",
            "none",
            "--cgroup-parent",
            &parent,
            "--ulimit",
            "host",
        ];
        args.extend(flags);
        args.push(IMAGE);
        args.extend(program);
        self.call(&args)
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        self.call(&["rm", "--all", "--force", "--time", "0"]);
        // The monitor's own group below the parent, which podman leaves.
        for group in proa_integration::host::cgroups_with(self.ctx.cgroup_parent().trim_start_matches('/')) {
            if group.ends_with("conmon") {
                eventually("the monitor's end", || fs::remove_dir(&group).ok());
            }
        }
    }
}

fn podman_runs_a_container(ctx: &Ctx) {
    let podman = podman(ctx);
    let text = podman
        .run(
            &["--rm", "--hostname", "under-podman"],
            &["sh", "-c", "echo hello $FROM_IMAGE from $(hostname)"],
        )
        .ok();
    assert!(text.ends_with("hello yes from under-podman\n"), "{text}");
    assert_eq!(podman.run(&["--rm"], &["sh", "-c", "exit 42"]).code, 42);
}

fn podman_execs_stops_and_removes(ctx: &Ctx) {
    let podman = podman(ctx);
    podman
        .run(
            &["--detach", "--name", "it", "--memory", "64m"],
            &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"],
        )
        .ok();
    assert_eq!(
        podman
            .call(&["exec", "it", "sh", "-c", "cat /proc/1/comm; echo $FROM_IMAGE"])
            .ok(),
        "sh\nyes\n"
    );
    assert_eq!(
        podman.call(&["exec", "--user", "1000", "it", "id", "-u"]).ok(),
        "1000\n"
    );
    assert_eq!(podman.call(&["exec", "it", "sh", "-c", "exit 9"]).code, 9);
    podman.call(&["stop", "--time", "5", "it"]).ok();
    assert_eq!(
        podman
            .call(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "it"])
            .ok(),
        "exited 3\n"
    );
    podman.call(&["start", "it"]).ok();
    podman.call(&["pause", "it"]).ok();
    podman.call(&["unpause", "it"]).ok();
    podman.call(&["kill", "it"]).ok();
    podman.call(&["wait", "it"]).ok();
    podman.call(&["rm", "it"]).ok();
    assert_eq!(podman.call(&["ps", "--all", "--quiet"]).ok(), "");
}

fn podman_shows_logs_and_status(ctx: &Ctx) {
    let podman = podman(ctx);
    podman
        .run(
            &["--detach", "--name", "it"],
            &["sh", "-c", "echo to stdout; echo to stderr >&2; exit 5"],
        )
        .ok();
    assert_eq!(podman.call(&["wait", "it"]).ok(), "5\n");
    let text = podman.call(&["logs", "it"]).ok();
    assert!(text.contains("to stdout\n") && text.contains("to stderr\n"), "{text}");
}

fn podman_shows_why_a_container_did_not_start(ctx: &Ctx) {
    let podman = podman(ctx);
    let said = podman.run(&["--rm"], &["no-such-program"]);
    assert_eq!(said.code, 127, "{said:?}");
    assert!(said.text.contains("no-such-program"), "{said:?}");
    let said = podman.run(&["--rm"], &["/etc/passwd"]);
    assert_eq!(said.code, 126, "{said:?}");
}

const HELLO: &str =
    "#include <stdio.h>\nint main(int argc, char **argv) { printf(\"wasm %s\\n\", argv[argc - 1]); return argc; }\n";
const WASM: &[&str] = &["--annotation", "run.oci.handler=wasm"];

fn containerd_runs_wasm(ctx: &Ctx) {
    wasm::compile(&ctx.dir, "hello", HELLO, &[]);
    let containerd = containerd(ctx);
    let said = containerd.run(&[&["--rm"], WASM].concat(), &ctx.id(), &["/hello.wasm", "one", "two"]);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.text.contains("wasm two"), "{said:?}");
}

fn podman_runs_wasm(ctx: &Ctx) {
    wasm::compile(&ctx.dir, "hello", HELLO, &[]);
    let podman = podman(ctx);
    let said = podman.run(&[&["--rm"], WASM].concat(), &["/hello.wasm", "one", "two"]);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.text.contains("wasm two"), "{said:?}");
}
