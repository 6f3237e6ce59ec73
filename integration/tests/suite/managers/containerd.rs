//! containerd's own client: the shim, the runtime and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proa_integration::console::Terminal;
use proa_integration::ctx::eventually;
use proa_integration::{Ctx, tests};

use super::{IMAGE, NO_HYBRID, Said, V1, WASM, busybox, busybox_with_guest, complaints, say};

tests! {
    containerd_runs_a_container .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_runs_a_container_on_a_terminal .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_execs_kills_and_measures .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_sees_the_exit_status .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_shows_why_a_container_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_limits_pauses_and_resumes .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_tells_events .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_runs_twenty_at_once .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_runs_wasm .views(V1).seconds(120).only_proa();
    containerd_execs_signals_and_measures_wasm .views(V1).seconds(120).only_proa();
    containerd_shows_why_wasm_did_not_start .views(V1).seconds(120).only_proa();
}

pub struct Containerd<'a> {
    ctx: &'a Ctx,
    daemon: Child,
    pub socket: PathBuf,
    namespace: String,
}

/// A containerd without CRI, with that image.
fn containerd<'a>(ctx: &'a Ctx, image: &Path) -> Containerd<'a> {
    let it = start(
        ctx,
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
        &[],
    );
    it.import(image);
    it
}

/// A containerd with this configuration, to which the test's directories are added.
pub fn start<'a>(ctx: &'a Ctx, config: &str, env: &[(&str, &str)]) -> Containerd<'a> {
    // A systemd of the view lives in /run.
    if !ctx.view.has_systemd() {
        ctx.tmpfs(Path::new("/run"), "mode=755");
    }
    let dir = ctx.mkdir("containerd");
    let socket = dir.join("c.sock");
    let places = format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n",
        dir.display()
    );
    assert!(config.contains("version = 2\n"), "{config}");
    let config = format!(
        "{}\n[grpc]\naddress = \"{}\"\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{}/opt\"\n",
        config.replacen("version = 2\n", &places, 1),
        socket.display(),
        dir.display()
    );
    fs::write(dir.join("config.toml"), config).unwrap();
    let log = fs::File::create(dir.join("log")).unwrap();
    let daemon = Command::new("containerd")
        .arg("--config")
        .arg(dir.join("config.toml"))
        .envs(env.iter().copied())
        // The shim's, which writes there what is to be executed; not every view has a /tmp that can be written.
        .env("TMPDIR", &dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("containerd");
    let it = Containerd {
        ctx,
        daemon,
        socket,
        namespace: ctx.cgroup_parent().trim_start_matches('/').to_owned(),
    };
    eventually("containerd", || (it.ctr(&["version"]).code == 0).then_some(()));
    it
}

impl Containerd<'_> {
    /// Uses another of containerd's namespaces; the CRI plugin's is `k8s.io`.
    pub fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.namespace);
        self
    }

    pub fn import(&self, image: &Path) {
        self.ctr(&[
            "images",
            "import",
            "--snapshotter",
            "overlayfs",
            image.to_str().unwrap(),
        ])
        .ok();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=1", "30", "ctr", "--address"])
            .arg(&self.socket)
            .args(["--namespace", &self.namespace])
            .args(args);
        command
    }

    pub fn ctr(&self, args: &[&str]) -> Said {
        say(&mut self.command(args), self.ctx)
    }

    fn run_args<'s>(&'s self, root: &'s str, flags: &[&'s str], id: &'s str, program: &[&'s str]) -> Vec<&'s str> {
        let runtime = self.ctx.subject.path.to_str().unwrap();
        let mut args = vec!["run", "--runc-binary", runtime, "--runc-root", root];
        args.extend(flags);
        args.extend([IMAGE, id]);
        args.extend(program);
        args
    }

    fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Said {
        let root = self.ctx.dir.join("runc-root");
        self.ctr(&self.run_args(root.to_str().unwrap(), flags, id, program))
    }

    /// Runs `ctr` on a terminal, of which `talk` sees the other side; ctr's exit status and all that was shown.
    fn on_a_terminal(&self, args: &[&str], talk: impl FnOnce(&mut Terminal)) -> Said {
        let (mut terminal, slave) = Terminal::open();
        let mut command = self.command(args);
        eprintln!("+ {command:?} (on a terminal)");
        let again = || slave.try_clone().unwrap();
        let mut child = command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
        drop((slave, command));
        talk(&mut terminal);
        let text = terminal.rest();
        let code = child.wait().unwrap().code().unwrap_or(-1);
        Said { code, text }
    }

    /// Whether the task is in that state.
    fn is(&self, id: &str, state: &str) -> bool {
        let list = self.ctr(&["task", "ls"]).ok();
        list.lines()
            .any(|l| l.starts_with(&format!("{id} ")) && l.contains(state))
    }

    fn kill(&self, signal: &str, id: &str) {
        self.ctr(&["task", "kill", "--signal", signal, id]).ok();
        eventually("the task's end", || self.is(id, "STOPPED").then_some(()));
    }

    /// Removes a stopped task and its container; the task's exit status.
    fn remove(&self, id: &str) -> i32 {
        let text = self.ctr(&["task", "rm", id]).ok();
        self.ctr(&["container", "rm", id]).ok();
        // Told in a warning only, when it is not 0.
        let status = text.split_once("non-zero exit code ").map_or("0", |(_, rest)| rest);
        status.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            complaints(&self.ctx.dir.join("containerd/log"));
        }
        self.daemon.kill().expect("containerd still runs");
        self.daemon.wait().expect("containerd");
    }
}

fn containerd_runs_a_container(ctx: &Ctx) {
    let containerd = containerd(ctx, &busybox(ctx));
    let script = "echo hello $FROM_IMAGE $(hostname | wc -l); tty; echo no error >&2";
    let text = containerd.run(&["--rm"], &ctx.id(), &["sh", "-c", script]).ok();
    assert!(
        text.contains("hello yes 1\nnot a tty\n") && text.contains("no error\n"),
        "{text}"
    );
}

fn containerd_runs_a_container_on_a_terminal(ctx: &Ctx) {
    let containerd = containerd(ctx, &busybox(ctx));
    let root = ctx.dir.join("runc-root");
    let (root, id) = (root.to_str().unwrap(), ctx.id());
    let args = containerd.run_args(root, &["--rm", "--tty"], &id, &["sh"]);
    let said = containerd.on_a_terminal(&args, |terminal| {
        terminal.type_in("tty; echo one$((1 + 1))\n");
        terminal.expect("one2");
        // Alone: what is said last of all may be lost between the shim and ctr.
        terminal.type_in("exit 9\n");
    });
    assert_eq!(said.code, 9, "{said:?}");
    assert!(
        said.text.contains("/dev/pts/0") || said.text.contains("/dev/console"),
        "{said:?}"
    );

    let id = ctx.id();
    containerd.run(&["--detach"], &id, &["sleep", "1000"]).ok();
    let args = ["task", "exec", "--tty", "--exec-id", "e1", &id, "sh"];
    let said = containerd.on_a_terminal(&args, |terminal| {
        terminal.type_in("stty size; echo one$((1 + 1))\n");
        terminal.expect("one2");
        terminal.type_in("exit 8\n");
    });
    assert_eq!(said.code, 8, "{said:?}");
    containerd.kill("KILL", &id);
    containerd.remove(&id);
}

fn containerd_sees_the_exit_status(ctx: &Ctx) {
    let containerd = containerd(ctx, &busybox(ctx));
    containerd.run(&["--rm"], &ctx.id(), &["sh", "-c", "exit 42"]).code(42);
    let program = "trap 'exit 143' TERM; trap 'exit 130' INT; while :; do sleep 0.01; done";
    for (signal, status) in [("TERM", 143), ("INT", 130), ("KILL", 137)] {
        let id = ctx.id();
        containerd.run(&["--detach"], &id, &["sh", "-c", program]).ok();
        // The traps are set once the shell has a child.
        eventually("the loop", || {
            (containerd.ctr(&["task", "ps", &id]).ok().lines().count() > 2).then_some(())
        });
        containerd.kill(signal, &id);
        assert_eq!(containerd.remove(&id), status, "{signal}");
    }
}

fn containerd_execs_kills_and_measures(ctx: &Ctx) {
    let containerd = containerd(ctx, &busybox(ctx));
    let id = ctx.id();
    containerd.run(&["--detach"], &id, &["sleep", "1000"]).ok();
    let exec = |exec: &str, flags: &[&str], script: &str| {
        let args = [&["task", "exec", "--exec-id", exec], flags, &[&id, "sh", "-c", script]].concat();
        containerd.ctr(&args)
    };
    assert_eq!(
        exec("e1", &[], "cat /proc/1/comm; echo $FROM_IMAGE").ok(),
        "sleep\nyes\n"
    );
    exec("e2", &[], "exit 9").code(9);
    assert_eq!(
        exec("e3", &["--cwd", "/tmp", "--user", "1000"], "pwd; id -u").ok(),
        "/tmp\n1000\n"
    );
    let said = containerd.ctr(&["task", "exec", "--exec-id", "e4", &id, "no-such-program"]);
    said.refused(&["no-such-program", "not found"]);
    let text = containerd.ctr(&["task", "metrics", &id]).ok();
    assert!(
        text.contains("memory.usage_in_bytes") && text.contains("pids.current"),
        "{text}"
    );
    assert!(containerd.is(&id, "RUNNING"));
    let text = containerd.ctr(&["task", "ps", &id]).ok();
    assert!(text.lines().count() >= 2, "{text}");
    containerd.kill("KILL", &id);
    assert_eq!(containerd.remove(&id), 137);
    assert_eq!(containerd.ctr(&["task", "ls", "--quiet"]).ok(), "");
}

fn containerd_limits_pauses_and_resumes(ctx: &Ctx) {
    let containerd = containerd(ctx, &busybox(ctx));
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
    assert!(containerd.is(&id, "PAUSED"));
    containerd.ctr(&["task", "resume", &id]).ok();
    assert!(containerd.is(&id, "RUNNING"));
    containerd.kill("KILL", &id);
    containerd.remove(&id);
}

fn containerd_shows_why_a_container_did_not_start(ctx: &Ctx) {
    // The shim reads the reason from the runtime's JSON log.
    let containerd = containerd(ctx, &busybox(ctx));
    let said = containerd.run(&["--rm"], &ctx.id(), &["no-such-program"]);
    said.refused(&["no-such-program", "not found"]);
    let said = containerd.run(&["--rm"], &ctx.id(), &["/etc/passwd"]);
    said.refused(&["/etc/passwd", "permission denied"]);
}

fn containerd_tells_events(ctx: &Ctx) {
    let containerd = containerd(ctx, &busybox(ctx));
    let told = ctx.dir.join("events");
    let mut listener = containerd
        .command(&["events"])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&told).unwrap())
        .spawn()
        .unwrap();
    let seen = |what: &str| {
        eventually(what, || fs::read_to_string(&told).unwrap().contains(what).then_some(()));
    };
    // Nothing tells when the listener listens: knock until it has heard.
    let mut n = 0;
    eventually("the listener", || {
        n += 1;
        containerd.ctr(&["images", "label", IMAGE, &format!("knock={n}")]).ok();
        fs::read_to_string(&told)
            .unwrap()
            .contains("/images/update")
            .then_some(())
    });
    let id = ctx.id();
    containerd
        .run(&["--detach", "--memory-limit", "16777216"], &id, &["sleep", "1000"])
        .ok();
    // The shim hears of the end of memory from the container's cgroup.
    containerd
        .ctr(&[
            "task",
            "exec",
            "--exec-id",
            "e1",
            &id,
            "sh",
            "-c",
            "exec tail /dev/zero",
        ])
        .code(137);
    containerd.kill("KILL", &id);
    containerd.remove(&id);
    for topic in [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/oom",
        "/tasks/exit",
        "/tasks/delete",
    ] {
        seen(topic);
    }
    seen("\"exit_status\":137");
    listener.kill().unwrap();
    listener.wait().unwrap();
}

fn containerd_runs_twenty_at_once(ctx: &Ctx) {
    let containerd = containerd(ctx, &busybox(ctx));
    let ids: Vec<String> = (0..20).map(|_| ctx.id()).collect();
    let root = ctx.dir.join("runc-root");
    let children: Vec<Child> = ids
        .iter()
        .map(|id| {
            let script = format!("echo this is {id}; exit 5");
            let args = containerd.run_args(root.to_str().unwrap(), &["--rm"], id, &["sh", "-c", &script]);
            let out = fs::File::create(ctx.dir.join(format!("out-{id}"))).unwrap();
            let mut command = containerd.command(&args);
            command
                .stdin(Stdio::null())
                .stdout(out.try_clone().unwrap())
                .stderr(out);
            command.spawn().unwrap()
        })
        .collect();
    for (id, mut child) in ids.iter().zip(children) {
        let status = child.wait().unwrap();
        let text = fs::read_to_string(ctx.dir.join(format!("out-{id}"))).unwrap();
        assert_eq!((status.code(), text), (Some(5), format!("this is {id}\n")));
    }
    assert_eq!(containerd.ctr(&["task", "ls", "--quiet"]).ok(), "");
    assert_eq!(containerd.ctr(&["container", "ls", "--quiet"]).ok(), "");
    let left: Vec<_> = fs::read_dir(root.join(&containerd.namespace))
        .unwrap()
        .flatten()
        .collect();
    let left: Vec<_> = left
        .iter()
        .filter(|e| !e.file_name().to_string_lossy().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn containerd_runs_wasm(ctx: &Ctx) {
    let containerd = containerd(ctx, &busybox_with_guest(ctx));
    let flags = [&["--rm"], WASM].concat();
    let text = containerd
        .run(&flags, &ctx.id(), &["/guest.wasm", "one", "two"])
        .code(3);
    assert!(
        text.contains("wasm two\n") && text.contains("wasm to stderr\n"),
        "{text}"
    );
    let text = containerd.run(&flags, &ctx.id(), &["/guest.wasm", "trap"]).code(134);
    assert!(text.contains("unreachable"), "{text}");

    let root = ctx.dir.join("runc-root");
    let (flags, id) = ([&["--rm", "--tty"], WASM].concat(), ctx.id());
    let args = containerd.run_args(root.to_str().unwrap(), &flags, &id, &["/guest.wasm", "ask"]);
    let said = containerd.on_a_terminal(&args, |terminal| {
        terminal.expect("terminal: yes");
        terminal.type_in("the answer\n");
        terminal.expect("heard the answer");
    });
    assert_eq!(said.code, 7, "{said:?}");
}

fn containerd_execs_signals_and_measures_wasm(ctx: &Ctx) {
    let containerd = containerd(ctx, &busybox_with_guest(ctx));
    let flags = [&["--detach"], WASM].concat();
    for (signal, status) in [("TERM", 143), ("INT", 130), ("KILL", 137)] {
        let id = ctx.id();
        containerd.run(&flags, &id, &["/guest.wasm", "loop"]).ok();
        if signal == "TERM" {
            let exec = |exec: &str, program: &[&str]| {
                containerd.ctr(&[&["task", "exec", "--exec-id", exec, &id], program].concat())
            };
            assert_eq!(exec("e1", &["sh", "-c", "echo $FROM_IMAGE"]).ok(), "yes\n");
            let text = exec("e2", &["/guest.wasm", "again"]).code(2);
            assert!(text.contains("wasm again\n"), "{text}");
            let text = containerd.ctr(&["task", "metrics", &id]).ok();
            assert!(text.contains("memory.usage_in_bytes"), "{text}");
            containerd.ctr(&["task", "pause", &id]).ok();
            assert!(containerd.is(&id, "PAUSED"));
            containerd.ctr(&["task", "resume", &id]).ok();
        }
        containerd.kill(signal, &id);
        assert_eq!(containerd.remove(&id), status, "{signal}");
    }
}

fn containerd_shows_why_wasm_did_not_start(ctx: &Ctx) {
    let no_engine = ctx.mkdir("no-engine");
    let config = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
    let image = busybox_with_guest(ctx);
    let flags = [&["--rm"], WASM].concat();
    {
        let containerd = start(ctx, config, &[]);
        containerd.import(&image);
        let said = containerd.run(&flags, &ctx.id(), &["/component.wasm"]);
        said.refused(&["/component.wasm", "component"]);
        let said = containerd.run(&flags, &ctx.id(), &["/absent.wasm"]);
        said.refused(&["/absent.wasm"]);
        let other = ["--rm", "--annotation", "run.oci.handler=wasmtime"];
        let said = containerd.run(&other, &ctx.id(), &["/guest.wasm"]);
        said.refused(&["run.oci.handler=wasmtime", "WasmEdge"]);
        assert_eq!(containerd.ctr(&["task", "ls", "--quiet"]).ok(), "");
    }
    // The shim inherits containerd's environment, and proa the shim's.
    let containerd = start(ctx, config, &[("PROA_ENGINE_DIR", no_engine.to_str().unwrap())]);
    let said = containerd.run(&flags, &ctx.id(), &["/guest.wasm"]);
    said.refused(&["libwasmedge.so.0", no_engine.to_str().unwrap(), "apt"]);
}
