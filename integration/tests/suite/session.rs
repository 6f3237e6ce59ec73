//! Containers of an unprivileged user who has a session: the user's own systemd makes their scopes, or they live in cgroups
//! that were delegated to it. Wants such a session on the machine; the virtual machine of `make test-vm` has one.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use proa_integration::ctx::eventually;
use proa_integration::runner::{USER, user_bus};
use proa_integration::{Call, Ctx, Kind, Output, View, tests};
use serde_json::{Value, json};

use crate::rootless::{World, world};

const VIEW: &[View] = &[View::SystemdV2];
const OLD_RUNC: &[(Kind, &str)] = &[(Kind::Runc, "1.1 does less")];

tests! {
    a_users_scope_is_made_and_removed .views(VIEW).session();
    a_users_limits_are_properties_and_hold .views(VIEW).session().controllers(&["memory", "cpu", "pids"]);
    a_users_limits_are_updated .views(VIEW).session().controllers(&["memory", "cpu", "pids"]);
    a_users_exec_lands_in_the_scope .views(VIEW).session();
    a_user_pauses_and_kills .views(VIEW).session();
    a_users_slices_are_nested .views(VIEW).session();
    a_users_statistics_and_oom_events .views(VIEW).session().controllers(&["memory"]);
    the_bus_is_found_by_the_runtime_directory .views(VIEW).session();
    without_a_bus_it_is_an_error .views(VIEW).session();
    a_users_failed_create_leaves_no_unit .views(VIEW).session();
    a_user_divides_its_own_cgroup .views(VIEW).session().controllers(&["pids"]).not_for(OLD_RUNC);
    cgroupfs_in_a_delegated_scope .views(VIEW).session().controllers(&["memory", "pids"]);
    cgroupfs_at_a_delegated_path .views(VIEW).session().controllers(&["memory", "pids"]);
    cgroupfs_without_permission_runs_without_limits .views(VIEW).session();
    cgroupfs_without_permission_refuses_limits .views(VIEW).session();
}

struct Session<'a> {
    world: World<'a>,
    id: String,
    /// Arguments in front of the verb, besides `--root`.
    driver: &'static [&'static str],
    under: &'static [&'static str],
}

impl<'a> Session<'a> {
    fn new(ctx: &'a Ctx) -> Self {
        let world = world(ctx);
        world.bundle.args(&["sleep", "1000"]);
        Session {
            world,
            id: ctx.id(),
            driver: &["--systemd-cgroup"],
            under: &[],
        }
    }

    fn cgroupfs(ctx: &'a Ctx) -> Self {
        Session {
            driver: &[],
            ..Session::new(ctx)
        }
    }

    fn bare(&self, args: &[&str]) -> Call {
        let all = [&["--root", self.world.root.to_str().unwrap()], self.driver, args].concat();
        self.world
            .ctx
            .bare_call(&all)
            .under(self.under)
            .uid(USER)
            .env("HOME", "/tmp")
    }

    fn call(&self, args: &[&str]) -> Call {
        let runtime = user_bus().parent().unwrap().to_str().unwrap().to_owned();
        let bus = format!("unix:path={}", user_bus().display());
        self.bare(args)
            .env("XDG_RUNTIME_DIR", &runtime)
            .env("DBUS_SESSION_BUS_ADDRESS", &bus)
    }

    fn verb(&self, args: &[&str]) -> Output {
        self.call(&[args, &[&self.id]].concat()).output()
    }

    fn exec(&self, args: &[&str]) -> Output {
        self.call(&[&["exec", &self.id], args].concat()).output()
    }

    fn detached(&self) -> Call {
        self.call(&[
            "run",
            "--detach",
            "--bundle",
            self.world.bundle.dir.to_str().unwrap(),
            &self.id,
        ])
    }

    fn run(&self) -> Output {
        self.call(&["run", "--bundle", self.world.bundle.dir.to_str().unwrap(), &self.id])
            .output()
    }

    fn limit(&self, resources: &Value) -> &Self {
        for (key, value) in resources.as_object().unwrap() {
            self.world.bundle.set(&format!("/linux/resources/{key}"), value.clone());
        }
        self
    }

    /// The container's cgroup as the kernel tells.
    fn cgroup(&self) -> String {
        let pid = self.verb(&["state"]).ok().json()["pid"].as_u64().unwrap();
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        text.lines().find_map(|l| l.strip_prefix("0::")).unwrap().to_owned()
    }

    fn dir(&self) -> PathBuf {
        PathBuf::from(format!("/sys/fs/cgroup{}", self.cgroup()))
    }

    #[track_caller]
    fn files(&self, wanted: &[(&str, &str)]) {
        let dir = self.dir();
        for (file, value) in wanted {
            let text = fs::read_to_string(dir.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert_eq!(text.trim(), *value, "{file}");
        }
    }

    /// A property of a unit of the user's systemd.
    fn property(&self, unit: &str, name: &str) -> String {
        let runtime = user_bus().parent().unwrap().to_owned();
        let mut command = Command::new("setpriv");
        command.args([
            &format!("--reuid={USER}"),
            &format!("--regid={USER}"),
            "--clear-groups",
            "--",
        ]);
        command.args(["systemctl", "--user", "show", "--value", "--property", name, unit]);
        let out = command.env("XDG_RUNTIME_DIR", runtime).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    fn scope(&self) -> String {
        let prefix = if self.world.ctx.subject.kind == Kind::Runc {
            "runc"
        } else {
            "proa"
        };
        format!("{prefix}-{}.scope", self.id)
    }

    /// Deletes the container; its cgroup and its unit must go with it.
    #[track_caller]
    fn delete(&self) {
        let dir = self.dir();
        self.verb(&["delete", "--force"]).ok();
        assert!(!dir.exists(), "{}", dir.display());
        assert_eq!(self.property(&self.scope(), "LoadState"), "not-found");
    }
}

fn top() -> String {
    format!("/user.slice/user-{USER}.slice/user@{USER}.service")
}

const MIB: i64 = 1 << 20;

fn a_users_scope_is_made_and_removed(ctx: &Ctx) {
    let session = Session::new(ctx);
    session.detached().output().ok();
    assert_eq!(session.cgroup(), format!("{}/user.slice/{}", top(), session.scope()));
    for (name, value) in [("ActiveState", "active"), ("Delegate", "yes"), ("Slice", "user.slice")] {
        assert_eq!(session.property(&session.scope(), name), value, "{name}");
    }
    session.delete();
    // In the foreground nothing is left either.
    session.world.bundle.sh("exit 3");
    session.run().code(3);
    assert_eq!(session.property(&session.scope(), "LoadState"), "not-found");
}

fn a_users_limits_are_properties_and_hold(ctx: &Ctx) {
    let session = Session::new(ctx);
    session
        .world
        .bundle
        .sh("probe eat 64; echo status $? >/dev/shm/ate; sleep 1000");
    session.limit(
        &json!({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}, "pids": {"limit": 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000}}),
    );
    session.detached().output().ok();
    session.files(&[
        ("memory.max", "33554432"),
        ("memory.swap.max", "0"),
        ("pids.max", "20"),
        ("cpu.weight", "59"),
        ("cpu.max", "50000 100000"),
    ]);
    for (name, value) in [
        ("MemoryMax", "33554432"),
        ("TasksMax", "20"),
        ("CPUWeight", "59"),
        ("CPUQuotaPerSecUSec", "500ms"),
    ] {
        assert_eq!(session.property(&session.scope(), name), value, "{name}");
    }
    eventually("the greedy one's end", || {
        (session.exec(&["cat", "/dev/shm/ate"]).stdout == "status 137\n").then_some(())
    });
    session.delete();
}

fn a_users_limits_are_updated(ctx: &Ctx) {
    let session = Session::new(ctx);
    session.limit(&json!({"memory": {"limit": 32 * MIB}}));
    session.detached().output().ok();
    let flags = [
        "update",
        "--memory",
        "50331648",
        "--pids-limit",
        "30",
        "--cpu-quota",
        "20000",
        "--cpu-period",
        "100000",
    ];
    session.verb(&flags).ok();
    session.files(&[
        ("memory.max", "50331648"),
        ("pids.max", "30"),
        ("cpu.max", "20000 100000"),
    ]);
    assert_eq!(session.property(&session.scope(), "MemoryMax"), "50331648");
    session.delete();
}

fn a_users_exec_lands_in_the_scope(ctx: &Ctx) {
    let session = Session::new(ctx);
    session.detached().output().ok();
    session
        .call(&["exec", "--detach", &session.id, "sleep", "1000"])
        .output()
        .ok();
    let procs = session.dir().join("cgroup.procs");
    eventually("two processes", || {
        (fs::read_to_string(&procs).unwrap().lines().count() == 2).then_some(())
    });
    assert_eq!(session.exec(&["id", "-u"]).ok().text(), "0");
    session.delete();
}

fn a_user_pauses_and_kills(ctx: &Ctx) {
    let session = Session::new(ctx);
    session.detached().output().ok();
    session.verb(&["pause"]).ok();
    assert_eq!(session.verb(&["state"]).ok().json()["status"], "paused");
    session.verb(&["resume"]).ok();
    let unit = session.scope();
    session.call(&["kill", &session.id, "KILL"]).output().ok();
    eventually("stopped", || {
        (session.verb(&["state"]).ok().json()["status"] == "stopped").then_some(())
    });
    session.verb(&["delete"]).ok();
    assert_eq!(session.property(&unit, "LoadState"), "not-found");
}

fn a_users_slices_are_nested(ctx: &Ctx) {
    let session = Session::new(ctx);
    let path = format!("app-boxes.slice:p:{}", session.id);
    session.world.bundle.set("/linux/cgroupsPath", json!(path));
    session.detached().output().ok();
    assert_eq!(
        session.cgroup(),
        format!("{}/app.slice/app-boxes.slice/p-{}.scope", top(), session.id)
    );
    session.delete();
    session.world.bundle.set("/linux/cgroupsPath", json!("a/b"));
    session.run().refused(&["slice:prefix:name"]);
}

fn a_users_statistics_and_oom_events(ctx: &Ctx) {
    let session = Session::new(ctx);
    session
        .world
        .bundle
        .sh("until [ -e /dev/shm/go ]; do sleep 0.1; done; probe eat 64; sleep 1000");
    session.limit(&json!({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}}));
    session.detached().output().ok();
    let data = session.verb(&["events", "--stats"]).ok().json()["data"].clone();
    assert_eq!(data["memory"]["usage"]["limit"], 16 * MIB);
    assert!(data["cpu"]["usage"]["total"].as_u64() > Some(0), "{data}");
    let mut running = session.call(&["events", "--interval", "200ms", &session.id]).spawn();
    eventually("a sample", || running.stdout().contains("stats").then_some(()));
    session.exec(&["touch", "/dev/shm/go"]).ok();
    eventually("the oom event", || {
        running.stdout().contains("\"type\":\"oom\"").then_some(())
    });
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    session.delete();
}

fn the_bus_is_found_by_the_runtime_directory(ctx: &Ctx) {
    let session = Session::new(ctx);
    let runtime = user_bus().parent().unwrap().to_str().unwrap().to_owned();
    let bundle = session.world.bundle.dir.to_str().unwrap();
    let run = session.bare(&["run", "--detach", "--bundle", bundle, &session.id]);
    run.env("XDG_RUNTIME_DIR", &runtime)
        .env("DBUS_SESSION_BUS_ADDRESS", "")
        .output()
        .ok();
    session.delete();
}

fn without_a_bus_it_is_an_error(ctx: &Ctx) {
    let session = Session::new(ctx);
    let bundle = session.world.bundle.dir.to_str().unwrap();
    let run = session.bare(&["run", "--bundle", bundle, &session.id]);
    let run = run
        .env("XDG_RUNTIME_DIR", "/nowhere")
        .env("DBUS_SESSION_BUS_ADDRESS", "");
    run.output().refused(&["DBUS_SESSION_BUS_ADDRESS"]);
    let run = session.bare(&["run", "--bundle", bundle, &session.id]);
    run.env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere/bus")
        .output()
        .refused(&["dbus"]);
    assert_eq!(
        fs::read_dir(&session.world.root)
            .unwrap()
            .flatten()
            .filter(|e| e.path().ends_with(&session.id))
            .count(),
        0
    );
}

fn a_users_failed_create_leaves_no_unit(ctx: &Ctx) {
    let session = Session::new(ctx);
    session.world.bundle.args(&["/no/such/program"]);
    session.run().refused(&["no such file"]);
    assert_eq!(session.property(&session.scope(), "LoadState"), "not-found");
    assert!(!session.world.root.join(&session.id).exists());
}

fn a_user_divides_its_own_cgroup(ctx: &Ctx) {
    let session = Session::new(ctx);
    session
        .world
        .bundle
        .namespace("cgroup", None)
        .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}))
        .sh(
            "cd /sys/fs/cgroup && mkdir init work && echo 1 >init/cgroup.procs && echo +pids >cgroup.subtree_control && \
             echo 7 >work/pids.max && cat work/pids.max; exec sleep 1000",
        );
    let said = ctx.dir.join("said");
    session.detached().stdout_to(&said).output().ok();
    eventually("a limit of its own", || {
        (fs::read_to_string(&said).unwrap() == "7\n").then_some(())
    });
    // The scope itself takes no process any more: an exec goes where init has gone.
    let text = session.exec(&["cat", "/proc/self/cgroup"]).ok().stdout.clone();
    assert!(text.lines().any(|l| l == "0::/init"), "{text}");
    session.verb(&["delete", "--force"]).ok();
    assert_eq!(session.property(&session.scope(), "LoadState"), "not-found");
}

/// The caller runs in a scope of the user's; beside it is where the user may make groups.
fn cgroupfs_in_a_delegated_scope(ctx: &Ctx) {
    let session = Session {
        under: &[
            "systemd-run",
            "--user",
            "--scope",
            "--quiet",
            "--collect",
            "-p",
            "Delegate=yes",
        ],
        ..Session::cgroupfs(ctx)
    };
    session.limit(&json!({"memory": {"limit": 32 * MIB}, "pids": {"limit": 20}}));
    session.detached().output().ok();
    assert_eq!(session.cgroup(), format!("{}/app.slice/{}", top(), session.id));
    session.files(&[("memory.max", "33554432"), ("pids.max", "20")]);
    session.verb(&["update", "--pids-limit", "9"]).ok();
    session.files(&[("pids.max", "9")]);
    assert_eq!(session.exec(&["id", "-u"]).ok().text(), "0");
    session.verb(&["pause"]).ok();
    session.verb(&["resume"]).ok();
    session.delete();
}

/// A group that root has given to the user, as an administrator would without systemd.
fn cgroupfs_at_a_delegated_path(ctx: &Ctx) {
    let path = format!("{}/users", ctx.cgroup_parent());
    let parent = ctx.cgroup_dir("", &ctx.cgroup_parent());
    let dir = ctx.cgroup_dir("", &path);
    fs::create_dir_all(&dir).unwrap();
    fs::write(parent.parent().unwrap().join("cgroup.subtree_control"), "+memory +pids").unwrap();
    fs::write(parent.join("cgroup.subtree_control"), "+memory +pids").unwrap();
    // The user must be able to move its processes from where they are: the common ancestor is the delegated group itself.
    fs::create_dir(dir.join("caller")).unwrap();
    for at in [dir.clone(), dir.join("caller")] {
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            std::os::unix::fs::chown(at.join(file), Some(USER), Some(USER)).unwrap();
        }
    }
    let session = Session::cgroupfs(ctx);
    session
        .world
        .bundle
        .set("/linux/cgroupsPath", json!(format!("{path}/mine")));
    session.limit(&json!({"memory": {"limit": 32 * MIB}, "pids": {"limit": 20}}));
    fs::write(dir.join("caller/cgroup.procs"), std::process::id().to_string()).unwrap();
    session.detached().output().ok();
    assert_eq!(session.cgroup(), format!("{path}/mine"));
    session.files(&[("memory.max", "33554432"), ("pids.max", "20")]);
    assert_eq!(session.exec(&["id", "-u"]).ok().text(), "0");
    session.delete();
    fs::write("/sys/fs/cgroup/cgroup.procs", std::process::id().to_string()).unwrap();
    for at in [dir.join("caller"), dir, parent] {
        fs::remove_dir(&at).unwrap();
    }
}

fn cgroupfs_without_permission_runs_without_limits(ctx: &Ctx) {
    let session = Session::cgroupfs(ctx);
    session.detached().output().ok();
    assert_eq!(session.exec(&["id", "-u"]).ok().text(), "0");
    session.verb(&["delete", "--force"]).ok();
}

fn cgroupfs_without_permission_refuses_limits(ctx: &Ctx) {
    let session = Session::cgroupfs(ctx);
    session.limit(&json!({"pids": {"limit": 20}}));
    session
        .run()
        .refused(&["rootless needs no limits + no cgrouppath when no permission is granted for cgroups"]);
    session
        .world
        .bundle
        .set("/linux/cgroupsPath", json!("/not-yours/at-all"));
    session.run().refused(&["permission denied"]);
    assert!(!fs::exists("/sys/fs/cgroup/not-yours").unwrap());
}
