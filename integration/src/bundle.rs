//! Bundles: a busybox root file system and the configuration that `runc spec` writes, to be edited by each test.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::{View, host};

/// A bundle directory with its configuration.
pub struct Bundle {
    /// The bundle.
    pub dir: PathBuf,
    spec: RefCell<Value>,
}

impl Bundle {
    /// Makes a bundle in `dir`, whose container will live in the cgroup `cgroup`.
    pub fn new(dir: &Path, cgroup: &str, view: View, probe: &Path) -> Bundle {
        let rootfs = dir.join("rootfs");
        make_rootfs(&rootfs, probe);
        let bundle = Bundle {
            dir: dir.to_owned(),
            spec: RefCell::new(default_spec(cgroup, view)),
        };
        bundle.write();
        bundle
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// A path below the root file system.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.rootfs().join(inside.trim_start_matches('/'))
    }

    /// The configuration as it is now.
    pub fn spec(&self) -> Value {
        self.spec.borrow().clone()
    }

    /// Changes the configuration, also on disk.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) -> &Bundle {
        change(&mut self.spec.borrow_mut());
        self.write();
        self
    }

    /// Sets one field by its JSON pointer; missing objects on the way are made.
    pub fn set(&self, pointer: &str, value: Value) -> &Bundle {
        self.edit(|spec| {
            let mut at = spec;
            for key in pointer.trim_start_matches('/').split('/') {
                at = match key.parse::<usize>() {
                    Ok(index) if at.is_array() => &mut at[index],
                    _ => &mut at[key],
                };
            }
            *at = value;
        })
    }

    /// Sets the program and its arguments.
    pub fn args(&self, args: &[&str]) -> &Bundle {
        self.set("/process/args", json!(args))
    }

    /// Sets the program to a shell script.
    pub fn sh(&self, script: &str) -> &Bundle {
        self.args(&["sh", "-c", script])
    }

    /// Adds a mount.
    pub fn mount(&self, mount: Value) -> &Bundle {
        self.edit(|spec| spec["mounts"].as_array_mut().expect("mounts is a list").push(mount))
    }

    /// Adds a bind mount of `source` with these options.
    pub fn bind(&self, source: &Path, destination: &str, options: &[&str]) -> &Bundle {
        self.mount(json!({"destination": destination, "type": "bind", "source": source, "options": options}))
    }

    /// Takes the namespaces of these types out of the list.
    pub fn without_namespaces(&self, types: &[&str]) -> &Bundle {
        self.edit(|spec| {
            let list = spec["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces is a list");
            list.retain(|n| !types.iter().any(|t| n["type"] == *t));
        })
    }

    /// Adds a namespace to the list, joined when it has a path.
    pub fn namespace(&self, kind: &str, path: Option<&str>) -> &Bundle {
        self.without_namespaces(&[kind]).edit(|spec| {
            let entry = path.map_or_else(|| json!({"type": kind}), |p| json!({"type": kind, "path": p}));
            spec["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces is a list")
                .push(entry);
        })
    }

    /// A user namespace of its own in which root is `host` outside; the root file system is given to that id.
    pub fn userns(&self, host: u32) -> &Bundle {
        let map = json!([{"containerID": 0, "hostID": host, "size": 65536}]);
        let done = Command::new("chown")
            .arg("-R")
            .arg(format!("{host}:{host}"))
            .arg(self.rootfs())
            .status();
        assert!(done.expect("chown").success());
        self.namespace("user", None)
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map)
    }

    /// Makes the root file system writable.
    pub fn writable(&self) -> &Bundle {
        self.set("/root/readonly", json!(false))
    }

    /// Sets all five capability sets.
    pub fn caps(&self, names: &[&str]) -> &Bundle {
        for set in ["bounding", "effective", "permitted"] {
            self.set(&format!("/process/capabilities/{set}"), json!(names));
        }
        self
    }

    /// Writes a file into the root file system.
    pub fn file(&self, inside: &str, text: &str) -> &Bundle {
        let path = self.path(inside);
        fs::create_dir_all(path.parent().expect("below the root")).expect("directories of the root file system");
        fs::write(&path, text).expect("file of the root file system");
        self
    }

    fn write(&self) {
        let text = serde_json::to_vec_pretty(&*self.spec.borrow()).expect("a JSON value prints");
        fs::write(self.dir.join("config.json"), text).expect("config.json");
    }
}

/// Makes a busybox root file system with an `/etc` that knows three users, and the probe.
pub fn make_rootfs(rootfs: &Path, probe: &Path) {
    for dir in [
        "bin",
        "dev",
        "etc",
        "home/user",
        "proc",
        "root",
        "sys",
        "tmp",
        "var",
        "mnt",
    ] {
        fs::create_dir_all(rootfs.join(dir)).expect("directories of the root file system");
    }
    let busybox = host::busybox().expect("busybox");
    fs::copy(&busybox, rootfs.join("bin/busybox")).expect("copy busybox");
    fs::copy(probe, rootfs.join("bin/probe")).expect("copy the probe");
    let list = Command::new(&busybox)
        .arg("--list")
        .output()
        .expect("busybox --list")
        .stdout;
    for name in String::from_utf8_lossy(&list).lines().filter(|n| *n != "busybox") {
        symlink("busybox", rootfs.join("bin").join(name)).expect("applet");
    }
    let passwd =
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\nlost:x:1001:1001::/:/bin/sh\n";
    fs::write(rootfs.join("etc/passwd"), passwd).expect("passwd");
    fs::write(rootfs.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n").expect("group");
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("mode of /tmp");
}

/// What `runc spec` writes, without a terminal and with `true` as the program.
pub fn default_spec(cgroup: &str, view: View) -> Value {
    let caps = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut namespaces = json!([
        {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
    ]);
    if !view.has_v1() {
        namespaces
            .as_array_mut()
            .expect("a list")
            .push(json!({"type": "cgroup"}));
    }
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "testhost",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces,
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
