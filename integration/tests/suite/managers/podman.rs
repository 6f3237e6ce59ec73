//! podman with its monitor, configured by a `containers.conf` as the document shows it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use proa_integration::console::Terminal;
use proa_integration::ctx::eventually;
use proa_integration::{Ctx, View, host, image, tests};
use serde_json::json;

use super::{GUEST, IMAGE, NO_HYBRID, Said, V1, WASM, busybox, busybox_with_guest, documented, say};

/// With both of its cgroup managers.
const PODMAN: &[View] = &[View::Hybrid, View::Systemd];

tests! {
    podman_runs_a_container .views(PODMAN).seconds(120).not_for(NO_HYBRID);
    podman_runs_a_container_on_a_terminal .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_confines_and_limits .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_execs_stops_and_removes .views(PODMAN).seconds(120).not_for(NO_HYBRID);
    podman_shows_logs_status_and_health .views(PODMAN).seconds(120).not_for(NO_HYBRID);
    podman_shows_why_a_container_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_runs_wasm .views(V1).seconds(120).only_proa();
    podman_execs_and_stops_wasm .views(PODMAN).seconds(120).only_proa();
    podman_runs_an_image_for_wasi .views(V1).seconds(120).only_proa();
    podman_shows_why_wasm_did_not_start .views(V1).seconds(120).only_proa();
}

pub struct Podman<'a> {
    ctx: &'a Ctx,
}

/// Where podman's containers and their monitors go.
fn cgroup_parent(ctx: &Ctx) -> String {
    if ctx.view.has_systemd() {
        "machine-podman.slice".to_owned()
    } else {
        ctx.cgroup_parent()
    }
}

pub fn podman<'a>(ctx: &'a Ctx, image: &Path) -> Podman<'a> {
    // A systemd of the view lives in /run.
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
    let config = documented(ctx, "podman", "toml");
    let more =
        "[engine]\nevents_logger = \"file\"\ncgroup_manager = \"cgroupfs\"\n[containers]\nlog_driver = \"k8s-file\"\n";
    fs::write(dir.join("containers.conf"), format!("{more}{config}")).unwrap();
    let it = Podman { ctx };
    it.load(image);
    it
}

impl Podman<'_> {
    fn load(&self, image: &Path) {
        let policy = self.ctx.dir.join("podman/policy.json");
        let [policy, image] = [policy.to_str().unwrap(), image.to_str().unwrap()];
        self.call(&["load", "--signature-policy", policy, "--input", image])
            .ok();
    }

    fn command(&self, runtime: &str, args: &[&str]) -> Command {
        let dir = self.ctx.dir.join("podman");
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=1", "30", "podman", "--log-level=error"])
            .args([
                "--runtime",
                runtime,
                "--storage-driver",
                "vfs",
                "--cgroup-manager",
                if self.ctx.view.has_systemd() {
                    "systemd"
                } else {
                    "cgroupfs"
                },
                "--root",
            ])
            .arg(dir.join("graph"))
            .arg("--runroot")
            .arg(dir.join("run"))
            .arg("--tmpdir")
            .arg(dir.join("tmp"))
            .args(args)
            .env("CONTAINERS_STORAGE_CONF", dir.join("storage.conf"))
            .env("CONTAINERS_CONF", dir.join("containers.conf"))
            .env("HOME", &dir)
            .env("XDG_RUNTIME_DIR", "/run")
            .env("TMPDIR", &self.ctx.dir);
        command
    }

    pub fn call(&self, args: &[&str]) -> Said {
        say(&mut self.command("proa", args), self.ctx)
    }

    fn run_args<'s>(parent: &'s str, flags: &[&'s str], image: &'s str, program: &[&'s str]) -> Vec<&'s str> {
        let mut args = vec![
            "run",
            "--network",
            "none",
            "--cgroup-parent",
            parent,
            "--ulimit",
            "host",
        ];
        args.extend(flags);
        args.push(image);
        args.extend(program);
        args
    }

    pub fn run(&self, flags: &[&str], program: &[&str]) -> Said {
        self.call(&Self::run_args(&cgroup_parent(self.ctx), flags, IMAGE, program))
    }

    /// The status and the exit status, as `inspect` has them.
    fn ended(&self, name: &str) -> String {
        self.call(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name])
            .ok()
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        self.call(&["rm", "--all", "--force", "--time", "0"]);
        // The monitor's own group below the parent, which podman leaves.
        for group in host::cgroups_with(self.ctx.cgroup_parent().trim_start_matches('/')) {
            if group.ends_with("conmon") {
                eventually("the monitor's end", || match fs::remove_dir(&group) {
                    Err(e) if e.kind() != ErrorKind::NotFound => None,
                    // Another monitor's cleaning up came first.
                    _ => Some(()),
                });
            }
        }
    }
}

fn podman_runs_a_container(ctx: &Ctx) {
    let podman = podman(ctx, &busybox(ctx));
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
    let podman = podman(ctx, &busybox(ctx));
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
    assert_eq!(podman.ended("it"), "exited 3\n");
    podman.call(&["start", "it"]).ok();
    podman.call(&["pause", "it"]).ok();
    podman.call(&["unpause", "it"]).ok();
    podman.call(&["kill", "it"]).ok();
    podman.call(&["wait", "it"]).ok();
    podman.call(&["rm", "it"]).ok();
    assert_eq!(podman.call(&["ps", "--all", "--quiet"]).ok(), "");
}

fn podman_shows_logs_status_and_health(ctx: &Ctx) {
    let podman = podman(ctx, &busybox(ctx));
    let script = "echo to stdout; echo to stderr >&2; exit 5";
    podman
        .run(
            &["--detach", "--name", "it", "--annotation", "a.b/c=d"],
            &["sh", "-c", script],
        )
        .ok();
    assert_eq!(podman.call(&["wait", "it"]).ok(), "5\n");
    let text = podman.call(&["logs", "it"]).ok();
    assert!(text.contains("to stdout\n") && text.contains("to stderr\n"), "{text}");
    assert_eq!(podman.ended("it"), "exited 5\n");
    let text = podman
        .call(&["inspect", "--format", "{{json .Config.Annotations}}", "it"])
        .ok();
    assert!(text.contains("\"a.b/c\":\"d\""), "{text}");

    let flags = [
        "--detach",
        "--name",
        "ill",
        "--health-cmd",
        "test -e /well",
        "--health-interval",
        "disable",
    ];
    podman.run(&flags, &["sleep", "1000"]).ok();
    podman.call(&["healthcheck", "run", "ill"]).code(1);
    podman.call(&["exec", "ill", "touch", "/well"]).ok();
    podman.call(&["healthcheck", "run", "ill"]).ok();
    let text = podman
        .call(&["stats", "--no-stream", "--format", "{{.PIDs}}", "ill"])
        .ok();
    assert_eq!(text, "1\n");
    let text = podman.call(&["top", "ill", "comm"]).ok();
    assert!(text.contains("sleep"), "{text}");
}

fn podman_runs_a_container_on_a_terminal(ctx: &Ctx) {
    let podman = podman(ctx, &busybox(ctx));
    let parent = cgroup_parent(ctx);
    let args = Podman::run_args(&parent, &["--rm", "--interactive", "--tty", "--init"], IMAGE, &["sh"]);
    let (mut terminal, slave) = Terminal::open();
    let mut command = podman.command("proa", &args);
    let again = || slave.try_clone().unwrap();
    let mut child = command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
    drop((slave, command));
    terminal.expect("# ");
    terminal.type_in("tty; stty rows 33 cols 99; stty size; echo $$; cat /proc/1/comm; exit 9\n");
    let text = terminal.rest();
    assert_eq!(child.wait().unwrap().code(), Some(9), "{text}");
    assert!(text.contains("/dev/pts/0") && text.contains("33 99"), "{text}");
    // Not the shell but the init that podman puts in front.
    assert!(!text.contains("\r\n1\r\n"), "{text}");
}

fn podman_confines_and_limits(ctx: &Ctx) {
    let podman = podman(ctx, &busybox(ctx));
    let volume = ctx.mkdir("volume");
    fs::write(volume.join("file"), "of the host\n").unwrap();
    let [read, write] = ["ro", "rw"].map(|mode| format!("{}:/{mode}:{mode}", volume.display()));
    let flags = [
        "--rm",
        "--name",
        "it",
        "--user",
        "1000:1000",
        "--read-only",
        "--cap-drop",
        "all",
        "--volume",
        &read,
        "--volume",
        &write,
        "--memory",
        "64m",
        "--pids-limit",
        "50",
        "--cpus",
        "0.5",
        "--workdir",
        "/tmp",
        "--tmpfs",
        "/scratch:size=1m",
        "--security-opt",
        "no-new-privileges",
        "--device",
        "/dev/null:/dev/another",
        "--sysctl",
        "kernel.msgmax=4096",
    ];
    let script = "id -u; pwd; touch /no 2>&1; touch /ro/no 2>&1; touch /tmp/yes /scratch/yes && cat /ro/file; \
        grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/sys/kernel/msgmax; echo x >/dev/another; \
        cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us";
    let text = podman.run(&flags, &["sh", "-c", script]).ok();
    let expected = "1000\n/tmp\ntouch: /no: Read-only file system\ntouch: /ro/no: Read-only file system\nof the host\n\
        CapBnd:\t0000000000000000\n";
    assert!(
        text.starts_with("1000\n/tmp\ntouch: /no: Read-only file system\n"),
        "{text}"
    );
    for line in expected
        .lines()
        .chain(["NoNewPrivs:\t1", "Seccomp:\t2", "4096", "67108864", "50", "50000"])
    {
        assert!(text.lines().any(|l| l == line), "no {line:?} in {text}");
    }
}

fn podman_shows_why_a_container_did_not_start(ctx: &Ctx) {
    let podman = podman(ctx, &busybox(ctx));
    let said = podman.run(&["--rm"], &["no-such-program"]);
    assert_eq!(said.code, 127, "{said:?}");
    said.refused(&["no-such-program"]);
    let said = podman.run(&["--rm"], &["/etc/passwd"]);
    assert_eq!(said.code, 126, "{said:?}");
    podman.run(&["--detach", "--name", "it"], &["sleep", "1000"]).ok();
    assert_eq!(podman.call(&["exec", "it", "no-such-program"]).code, 127);
    assert_eq!(podman.call(&["exec", "it", "/etc/passwd"]).code, 126);
}

fn podman_runs_wasm(ctx: &Ctx) {
    let podman = podman(ctx, &busybox_with_guest(ctx));
    let text = podman
        .run(&[&["--rm"], WASM].concat(), &["/guest.wasm", "one", "two"])
        .code(3);
    assert!(text.contains("wasm two"), "{text}");
    let parent = cgroup_parent(ctx);
    // No annotation but the other name.
    let args = Podman::run_args(&parent, &["--rm"], IMAGE, &["/guest.wasm", "by name"]);
    let text = say(&mut podman.command("proa-wasm", &args), ctx).code(2);
    assert!(text.contains("wasm by name"), "{text}");

    let flags = [&["--rm", "--interactive", "--tty"], WASM].concat();
    let args = Podman::run_args(&parent, &flags, IMAGE, &["/guest.wasm", "ask"]);
    let (mut terminal, slave) = Terminal::open();
    let mut command = podman.command("proa", &args);
    let again = || slave.try_clone().unwrap();
    let mut child = command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
    drop((slave, command));
    terminal.expect("terminal: yes");
    terminal.type_in("the answer\n");
    let text = terminal.rest();
    assert_eq!(child.wait().unwrap().code(), Some(7), "{text}");
    assert!(text.contains("heard the answer"), "{text}");
}

fn podman_execs_and_stops_wasm(ctx: &Ctx) {
    let podman = podman(ctx, &busybox_with_guest(ctx));
    let flags = [
        &[
            "--detach",
            "--name",
            "it",
            "--memory",
            "128m",
            "--read-only",
            "--user",
            "1000",
        ],
        WASM,
    ]
    .concat();
    podman.run(&flags, &["/guest.wasm", "loop"]).ok();
    assert_eq!(
        podman.call(&["exec", "it", "sh", "-c", "id -u; echo $FROM_IMAGE"]).ok(),
        "1000\nyes\n"
    );
    let text = podman.call(&["exec", "it", "/guest.wasm", "again"]).code(2);
    assert!(text.contains("wasm again\n"), "{text}");
    eventually("the log", || {
        podman.call(&["logs", "it"]).text.contains("ready").then_some(())
    });
    podman.call(&["pause", "it"]).ok();
    podman.call(&["unpause", "it"]).ok();
    podman.call(&["stop", "--time", "10", "it"]).ok();
    assert_eq!(podman.ended("it"), "exited 143\n");
    podman.call(&["start", "it"]).ok();
    podman.call(&["kill", "--signal", "INT", "it"]).ok();
    assert_eq!(podman.call(&["wait", "it"]).ok(), "130\n");
    podman.call(&["rm", "it"]).ok();
}

fn podman_runs_an_image_for_wasi(ctx: &Ctx) {
    let podman = podman(ctx, &busybox(ctx));
    let dir = ctx.mkdir("wasi");
    let rootfs = ctx.mkdir("wasi/rootfs");
    let module = proa_integration::wasm::compile(&dir, "guest", GUEST, &[]);
    fs::copy(module, rootfs.join("guest.wasm")).unwrap();
    let name = "example.test/guest:latest";
    let config = json!({"Entrypoint": ["/guest.wasm"]});
    let annotations = json!({"module.wasm.image/variant": "compat"});
    let archive = image::annotated(&dir, &rootfs, name, ("wasm", "wasi"), &config, &annotations);
    let policy = ctx.dir.join("podman/policy.json");
    let archive = format!("oci-archive:{}", archive.display());
    let [policy, platform] = [policy.to_str().unwrap(), "wasi/wasm"];
    podman
        .call(&["pull", "--platform", platform, "--signature-policy", policy, &archive])
        .ok();
    let parent = cgroup_parent(ctx);
    let flags = ["--rm", "--platform", platform, "--pull", "never"];
    let args = Podman::run_args(&parent, &flags, name, &["from an image"]);
    // By the name, and by the annotation of the image, which podman hands on.
    for runtime in ["proa-wasm", "proa"] {
        let text = say(&mut podman.command(runtime, &args), ctx).code(2);
        assert!(text.contains("wasm from an image"), "{text}");
    }
}

fn podman_shows_why_wasm_did_not_start(ctx: &Ctx) {
    let podman = podman(ctx, &busybox_with_guest(ctx));
    let flags = [&["--rm"], WASM].concat();
    podman
        .run(&flags, &["/component.wasm"])
        .refused(&["/component.wasm", "component"]);
    podman.run(&flags, &["/absent.wasm"]).refused(&["/absent.wasm"]);
    // The monitor hands no environment on, so what can be missing is the init.
    let alone = ctx.mkdir("alone").join("proa");
    fs::copy(&ctx.subject.path, &alone).unwrap();
    let parent = cgroup_parent(ctx);
    let args = Podman::run_args(&parent, &flags, IMAGE, &["/guest.wasm"]);
    let said = say(&mut podman.command(alone.to_str().unwrap(), &args), ctx);
    said.refused(&[
        "proa-wasmedge",
        "isn't installed",
        alone.parent().unwrap().to_str().unwrap(),
    ]);
}
