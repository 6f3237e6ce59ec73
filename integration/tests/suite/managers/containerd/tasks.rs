//! Containers and processes in them, as `ctr` handles them.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use proa_integration::ctx::eventually;
use proa_integration::{Ctx, View};

use super::super::{IMAGE, NO_HYBRID, V1, busybox};
use super::{Containerd, Release, containerd};

of_both! {
    containerd_runs_a_container .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_runs_a_container_on_a_terminal .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_execs_kills_and_measures .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_sees_the_exit_status .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_limits_pauses_and_resumes .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_tells_events .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_tells_of_the_end_of_memory .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_kills_one_process_or_all .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_hands_on_what_its_user_asks_for .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_has_systemd_make_the_cgroup .views(&[View::Systemd]).seconds(120).not_for(NO_HYBRID);
}

fn containerd_runs_a_container(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    // The last is a pause: ctr 1.6 may lose what is said last, with every runtime.
    let script = "echo hello $FROM_IMAGE $(hostname | wc -l); tty; echo no error >&2; sleep 0.2";
    let text = containerd.run(&["--rm"], &ctx.id(), &["sh", "-c", script]).ok();
    // stdout and stderr come by two ways: their order is open.
    for line in ["hello yes 1", "not a tty", "no error"] {
        assert!(text.lines().any(|l| l == line), "no {line:?} in {text}");
    }
}

fn containerd_runs_a_container_on_a_terminal(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    let (root, id) = (containerd.root(), ctx.id());
    let args = containerd.run_args(&root, &["--rm", "--tty"], &id, &["sh"]);
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

    let id = containerd.detached(&[], &["sleep", "1000"]);
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

fn containerd_sees_the_exit_status(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    containerd.run(&["--rm"], &ctx.id(), &["sh", "-c", "exit 42"]).code(42);
    let program = "trap 'exit 143' TERM; trap 'exit 130' INT; while :; do sleep 0.01; done";
    for (signal, status) in [("TERM", 143), ("INT", 130), ("KILL", 137)] {
        let id = containerd.detached(&[], &["sh", "-c", program]);
        // The traps are set once the shell has a child.
        eventually("the loop", || {
            (containerd.ctr(&["task", "ps", &id]).ok().lines().count() > 2).then_some(())
        });
        containerd.kill(signal, &id);
        assert_eq!(containerd.remove(&id), status, "{signal}");
    }
}

fn containerd_execs_kills_and_measures(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    let id = containerd.detached(&[], &["sleep", "1000"]);
    let exec = |exec: &str, flags: &[&str], script: &str| {
        let args = [&["task", "exec", "--exec-id", exec], flags, &[&id, "sh", "-c", script]].concat();
        containerd.ctr(&args)
    };
    assert_eq!(
        exec("e1", &[], "cat /proc/1/comm; echo $FROM_IMAGE; sleep 0.2").ok(),
        "sleep\nyes\n"
    );
    exec("e2", &[], "exit 9").code(9);
    assert_eq!(
        exec("e3", &["--cwd", "/tmp", "--user", "1000"], "pwd; id -u; sleep 0.2").ok(),
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

fn containerd_limits_pauses_and_resumes(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    let id = containerd.detached(&["--memory-limit", "33554432"], &["sleep", "1000"]);
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

/// A listener to a daemon's events.
struct Events {
    listener: Child,
    told: PathBuf,
}

impl Events {
    fn of(ctx: &Ctx, containerd: &Containerd) -> Events {
        let told = ctx.dir.join("events");
        let listener = containerd
            .command(&["events"])
            .stdin(Stdio::null())
            .stdout(fs::File::create(&told).unwrap())
            .spawn()
            .unwrap();
        let events = Events { listener, told };
        // Nothing tells when the listener listens: knock until it has heard.
        let mut n = 0;
        eventually("the listener", || {
            n += 1;
            containerd.ctr(&["images", "label", IMAGE, &format!("knock={n}")]).ok();
            events.said().contains("/images/update").then_some(())
        });
        events
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.told).unwrap()
    }

    /// Waits for an event about the container, on that topic and with that text.
    #[track_caller]
    fn tells(&self, id: &str, topic: &str, text: &str) {
        let about = format!("\"container_id\":\"{id}\"");
        let is_it = |line: &str| line.contains(topic) && line.contains(&about) && line.contains(text);
        eventually(&format!("{topic} of {id} with {text:?}"), || {
            self.said().lines().any(is_it).then_some(())
        });
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.listener.kill().expect("ctr events");
        self.listener.wait().expect("ctr events");
    }
}

fn containerd_tells_events(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    let events = Events::of(ctx, &containerd);
    let id = containerd.detached(&[], &["sleep", "1000"]);
    let exec = ["task", "exec", "--exec-id", "e1", &id, "sh", "-c", "exit 9"];
    containerd.ctr(&exec).code(9);
    containerd.ctr(&["task", "pause", &id]).ok();
    containerd.ctr(&["task", "resume", &id]).ok();
    containerd.kill("KILL", &id);
    containerd.remove(&id);
    // Not /tasks/delete: the shim of 2.1 may have gone before that is handed on.
    for (topic, text) in [
        ("/tasks/create", "\"pid\""),
        ("/tasks/start", "\"pid\""),
        ("/tasks/exec-added", "\"exec_id\":\"e1\""),
        ("/tasks/exec-started", "\"exec_id\":\"e1\""),
        ("/tasks/exit", "\"exit_status\":9"),
        ("/tasks/paused", ""),
        ("/tasks/resumed", ""),
        ("/tasks/exit", "\"exit_status\":137"),
    ] {
        events.tells(&id, topic, text);
    }
}

fn containerd_tells_of_the_end_of_memory(ctx: &Ctx, release: Release) {
    // The shim hears of it from the container's cgroup.
    let containerd = containerd(ctx, release, &busybox(ctx));
    let events = Events::of(ctx, &containerd);
    let limited = ["--memory-limit", "16777216"];
    let eat = ["sh", "-c", "exec tail /dev/zero"];
    let id = containerd.detached(&limited, &["sleep", "1000"]);
    let exec = [&["task", "exec", "--exec-id", "e1", &id], &eat[..]].concat();
    containerd.ctr(&exec).code(137);
    events.tells(&id, "/tasks/oom", "");
    assert!(
        containerd.is(&id, "RUNNING"),
        "a process of it was killed, not its init"
    );
    containerd.kill("KILL", &id);
    containerd.remove(&id);

    // The init itself, once the shim has had its look.
    let script = "tail /dev/zero; while ! test -e /go; do sleep 0.05; done; exec tail /dev/zero";
    let id = containerd.detached(&limited, &["sh", "-c", script]);
    events.tells(&id, "/tasks/oom", "");
    let go = ["task", "exec", "--exec-id", "e1", &id, "touch", "/go"];
    containerd.ctr(&go).ok();
    events.tells(&id, "/tasks/exit", "\"exit_status\":137");
    assert_eq!(containerd.remove(&id), 137);
}

fn containerd_kills_one_process_or_all(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    let id = containerd.detached(&[], &["sh", "-c", "sleep 1000 & sleep 1000 & wait; sleep 1001"]);
    let processes = || containerd.ctr(&["task", "ps", &id]).ok().lines().count() - 1;
    let args = ["task", "exec", "--detach", "--exec-id", "e1", &id, "sleep", "1000"];
    containerd.ctr(&args).ok();
    eventually("init, two children, one executed", || (processes() == 4).then_some(()));
    containerd
        .ctr(&["task", "kill", "--signal", "KILL", "--exec-id", "e1", &id])
        .ok();
    eventually("the executed one's end", || (processes() == 3).then_some(()));
    containerd.kill("KILL", &id);
    assert_eq!(containerd.remove(&id), 137);

    // In a pid namespace that outlives the init, as in a pod that shares one.
    let joined = format!("pid:/proc/{}/ns/pid", std::process::id());
    let id = containerd.detached(&["--with-ns", &joined], &["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    let processes = || containerd.ctr(&["task", "ps", &id]).ok().lines().count() - 1;
    eventually("init, two children", || (processes() == 3).then_some(()));
    containerd.ctr(&["task", "kill", "--all", "--signal", "KILL", &id]).ok();
    eventually("the task's end", || containerd.is(&id, "STOPPED").then_some(()));
    eventually("the children's end", || (processes() == 0).then_some(()));
    assert_eq!(containerd.remove(&id), 137);
    let id = containerd.detached(
        &["--with-ns", &joined],
        &["sh", "-c", "sleep 1000 & sleep 1000 & sleep 0.5"],
    );
    eventually("the task's end", || containerd.is(&id, "STOPPED").then_some(()));
    assert_eq!(containerd.remove(&id), 0);
    assert_eq!(containerd.left(), [""; 0], "children of an init that has ended");
}

fn containerd_hands_on_what_its_user_asks_for(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    let shared = ctx.mkdir("shared");
    fs::write(shared.join("file"), "from the host").unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:ro", shared.display());
    let shell = |flags: &[&str], script: &str| {
        let script = format!("{script}; sleep 0.2");
        containerd
            .run(&[&["--rm"], flags].concat(), &ctx.id(), &["sh", "-c", &script])
            .ok()
    };
    let status = |field: &str| format!("sed -n 's/^{field}:.//p' /proc/self/status");
    assert_eq!(
        shell(
            &["--mount", &mount],
            "cat /mnt/file; touch /mnt/x 2>/dev/null || echo , ro"
        ),
        "from the host, ro\n"
    );
    assert_eq!(shell(&["--read-only"], "touch /x 2>/dev/null || echo ro"), "ro\n");
    // The ctr of 1.6 has no such flags.
    if release == Release::Newer {
        assert_eq!(shell(&["--user", "1000:1001"], "id -u; id -g"), "1000\n1001\n");
        assert_eq!(shell(&["--hostname", "other"], "hostname"), "other\n");
    }
    assert_eq!(
        shell(&["--cwd", "/tmp", "--env", "A=b c"], "pwd; echo $A"),
        "/tmp\nb c\n"
    );
    assert_eq!(
        shell(&["--cap-drop", "CAP_CHOWN"], "chown 1 /tmp 2>/dev/null || echo no"),
        "no\n"
    );
    assert_eq!(
        shell(&["--cap-add", "CAP_SYS_ADMIN"], "mount -t tmpfs x /mnt && echo yes"),
        "yes\n"
    );
    assert_eq!(shell(&["--seccomp"], &status("Seccomp")), "2\n");
    assert_eq!(shell(&[], &status("NoNewPrivs")), "1\n");
    assert_eq!(shell(&["--allow-new-privs"], &status("NoNewPrivs")), "0\n");
    assert_eq!(shell(&["--device", "/dev/fuse"], "ls /dev/fuse"), "/dev/fuse\n");
    assert_eq!(shell(&["--privileged"], "mount -t tmpfs x /mnt && echo yes"), "yes\n");
    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(shell(&["--net-host"], "readlink /proc/self/ns/net").trim(), own);
    let joined = format!("network:/proc/{}/ns/net", std::process::id());
    assert_eq!(shell(&["--with-ns", &joined], "readlink /proc/self/ns/net").trim(), own);
    let limits = ["--cpu-quota", "50000", "--cpu-period", "100000", "--cpu-shares", "512"];
    let id = containerd.detached(&limits, &["sleep", "1000"]);
    let group = ctx.cgroup_dir("cpu", &format!("{}/{id}", ctx.cgroup_parent()));
    for (file, value) in [
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.shares", "512"),
    ] {
        assert_eq!(fs::read_to_string(group.join(file)).unwrap().trim(), value, "{file}");
    }
    containerd.kill("KILL", &id);
    containerd.remove(&id);
    // With these, containerd 1.6 forgets which runtime was asked for.
    if release == Release::Newer {
        let ids = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
        let said = shell(&ids, "cat /proc/self/uid_map; stat -c %u:%g /bin; id -u");
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words, ["0", "100000", "65536", "0:0", "0"], "a user namespace");
        assert_eq!(shell(&["--no-pivot"], "ls /bin/busybox"), "/bin/busybox\n");
    }

    // A root directory instead of an image.
    let root = ctx.dir.join("image/rootfs");
    let (own, id) = (containerd.root(), ctx.id());
    let mut args = containerd.run_args(
        &own,
        &["--rm", "--rootfs"],
        &id,
        &["/bin/sh", "-c", "echo here; sleep 0.2"],
    );
    let image = args.iter().position(|arg| *arg == IMAGE).unwrap();
    args[image] = root.to_str().unwrap();
    assert_eq!(containerd.ctr(&args).ok(), "here\n");
}

fn containerd_has_systemd_make_the_cgroup(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    let name = ctx.id();
    let cgroup = format!("machine.slice:ctr:{name}");
    let flags = [
        "--runc-systemd-cgroup",
        "--cgroup",
        &cgroup,
        "--memory-limit",
        "33554432",
    ];
    let id = containerd.detached(&flags, &["sleep", "1000"]);
    let unit = format!("ctr-{name}.scope");
    assert!(
        ctx.systemctl(&["show", "--property=ActiveState", &unit])
            .contains("=active")
    );
    assert!(
        ctx.systemctl(&["show", "--property=MemoryLimit,MemoryMax", &unit])
            .contains("=33554432")
    );
    let group = fs::read_to_string(format!("/proc/{}/cgroup", containerd.pid(&id))).unwrap();
    assert!(group.contains(&format!("/machine.slice/{unit}")), "{group}");
    let exec = ["task", "exec", "--exec-id", "e1", &id, "sh", "-c", "exit 3"];
    containerd.ctr(&exec).code(3);
    containerd.ctr(&["task", "pause", &id]).ok();
    containerd.ctr(&["task", "resume", &id]).ok();
    containerd.kill("KILL", &id);
    assert_eq!(containerd.remove(&id), 137);
    assert!(!ctx.systemctl(&["list-units", "--all", "--plain"]).contains(&unit));
}
