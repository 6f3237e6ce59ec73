//! The kernel's part: each test runs in a thread with mount, IPC, network and cgroup namespaces of its own, on a root
//! in a tmpfs of its own. Needs root.

use super::*;
use nix::sched::{CloneFlags, unshare};
use proa_sys::Errno;
use proa_sys::errno::Raw;
use rustix::fs::{FileType, Stat, lstat, stat};
use rustix::mount::{MountFlags, mount, mount_change};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU32, Ordering};

const HOST: Host = Host {
    euid: 0,
    egid: 0,
    rootless: false,
};

/// Runs `test` with a bundle directory (whose `rootfs` is there) in namespaces that end with it.
fn private(test: impl FnOnce(&Path) + Send + 'static) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "proa-rootfs-{}-{}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    );
    let dir = fs::canonicalize(std::env::temp_dir()).unwrap().join(name);
    fs::create_dir(&dir).unwrap();
    let bundle = dir.clone();
    let run = std::thread::spawn(move || {
        let new = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNET;
        unshare(new | CloneFlags::CLONE_NEWCGROUP).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("tmpfs", &bundle, "tmpfs", MountFlags::empty(), None).unwrap();
        for name in ["proc", "sys", "dev", "etc", "tmp"] {
            fs::create_dir_all(bundle.join("rootfs").join(name)).unwrap();
        }
        test(&bundle);
    });
    let result = run.join();
    fs::remove_dir(&dir).unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn proc_mount() -> Value {
    json!({"destination": "/proc", "type": "proc", "source": "proc"})
}

fn dev_mounts() -> Vec<Value> {
    vec![
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
    ]
}

/// What `runc spec` writes.
fn default_mounts() -> Vec<Value> {
    let mut all = vec![proc_mount()];
    all.extend(dev_mounts());
    all.extend([
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
               "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
               "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
               "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
               "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}),
    ]);
    all
}

fn namespaces() -> Value {
    json!([{"type": "mount"}, {"type": "ipc"}, {"type": "network"}, {"type": "cgroup"}])
}

fn spec(mounts: Vec<Value>, linux: Value) -> Spec {
    let mut linux = linux;
    if linux.get("namespaces").is_none() {
        linux["namespaces"] = namespaces();
    }
    serde_json::from_value(json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["true"]},
        "mounts": mounts,
        "linux": linux,
    }))
    .unwrap()
}

/// The whole way, with the plan as init gets it.
fn enter(bundle: &Path, spec: &Spec, options: Options) -> Result<(), Error> {
    let plan = ready(bundle, spec, options)?;
    mount_all(&plan, &|_, _| false)?.pivot()?.finish()
}

fn ready(bundle: &Path, spec: &Spec, options: Options) -> Result<Plan, Error> {
    let mut plan = super::plan(spec, bundle, &HOST, options)?;
    open_sources(&mut plan)?.deposit();
    Ok(serde_json::from_slice(&serde_json::to_vec(&plan).unwrap()).unwrap())
}

/// mountinfo's line of what is mounted on `path`, on top.
fn mounted(path: &str) -> Option<String> {
    let all = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    all.lines()
        .rfind(|line| line.split(' ').nth(4) == Some(path))
        .map(str::to_owned)
}

fn flags(path: &str) -> String {
    mounted(path)
        .unwrap_or_else(|| panic!("{path} is no mount"))
        .split(' ')
        .nth(5)
        .unwrap()
        .to_owned()
}

fn is_null(path: &str) -> bool {
    devices::is_null(&stat(path).unwrap())
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    result.unwrap_err().raw()
}

#[test]
fn the_default_configuration() {
    private(|bundle| {
        let masked = json!([
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/timer_list",
            "/sys/firmware",
            "/nothing"
        ]);
        let readonly = json!([
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
            "/nothing"
        ]);
        let spec = spec(
            default_mounts(),
            json!({"maskedPaths": masked, "readonlyPaths": readonly}),
        );
        enter(bundle, &spec, Options::default()).unwrap();

        let root: Vec<_> = fs::read_dir("/").unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(root.len(), 5, "{root:?}");
        for (path, wanted) in [
            ("/proc", "rw,relatime"),
            ("/dev", "rw,nosuid"),
            ("/dev/pts", "rw,nosuid,noexec,relatime"),
            ("/dev/shm", "rw,nosuid,nodev,noexec,relatime"),
            ("/dev/mqueue", "rw,nosuid,nodev,noexec,relatime"),
            ("/sys", "ro,nosuid,nodev,noexec,relatime"),
            ("/sys/fs/cgroup", "ro,nosuid,nodev,noexec,relatime"),
            ("/proc/sys", "ro,relatime"),
            ("/proc/fs", "ro,relatime"),
        ] {
            assert_eq!(flags(path), wanted, "{path}");
        }
        for name in ["null", "zero", "full", "random", "urandom", "tty"] {
            let found = stat(format!("/dev/{name}")).unwrap();
            assert!(FileType::from_raw_mode(found.st_mode).is_char_device(), "{name}");
            assert_eq!(found.st_mode & 0o7777, 0o666, "{name}");
        }
        assert_eq!(fs::read_link("/dev/ptmx").unwrap(), Path::new("pts/ptmx"));
        assert_eq!(fs::read_link("/dev/fd").unwrap(), Path::new("/proc/self/fd"));
        assert_eq!(fs::read_link("/dev/stderr").unwrap(), Path::new("/proc/self/fd/2"));
        assert!(is_null("/proc/keys") && is_null("/proc/timer_list"));
        assert_eq!(errno(fs::write("/proc/sys/kernel/hostname", "x")), Errno::EROFS);
        if Path::new("/sys/firmware").exists() {
            assert_eq!(fs::read_dir("/sys/firmware").unwrap().count(), 0);
            assert_eq!(errno(fs::write("/sys/firmware/x", "")), Errno::EROFS);
        }
        let all = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!all.contains("shared:"), "{all}");
        assert_eq!(
            all.lines().filter(|line| line.split(' ').nth(4) == Some("/")).count(),
            1,
            "{all}"
        );
    });
}

#[test]
fn links_of_the_image_do_not_lead_out() {
    private(|bundle| {
        let root = bundle.join("rootfs");
        fs::create_dir(bundle.join("outside")).unwrap();
        fs::write(bundle.join("data"), "data").unwrap();
        symlink(bundle.join("outside"), root.join("absolute")).unwrap();
        symlink("../outside", root.join("etc/up")).unwrap();
        let file = bundle.join("data");
        let bind = |to: &str| json!({"destination": to, "source": file, "options": ["bind"]});
        enter(
            bundle,
            &spec(vec![proc_mount(), bind("/absolute/a"), bind("/etc/up/b")], json!({})),
            Options::default(),
        )
        .unwrap();
        assert_eq!(fs::read_to_string("/absolute/a").unwrap(), "data");
        assert_eq!(fs::read_to_string("/outside/b").unwrap(), "data");
        assert_eq!(fs::read_to_string(bundle.join("outside/a")).unwrap(), "data");
    });
}

#[test]
fn proc_goes_on_a_directory_only() {
    private(|bundle| {
        let root = bundle.join("rootfs");
        fs::remove_dir(root.join("proc")).unwrap();
        symlink("etc", root.join("proc")).unwrap();
        let error = enter(bundle, &spec(vec![proc_mount()], json!({})), Options::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("filesystem \"proc\" must be mounted on ordinary directory"),
            "{error}"
        );
        assert!(
            error.starts_with("error mounting \"proc\" to rootfs at \"/proc\" (mounts[0]): "),
            "{error}"
        );
    });
}

#[test]
fn nothing_goes_over_proc_by_a_link() {
    for (link, target, words) in [
        ("p", "/proc", "because it is not of type proc"),
        ("p", "proc/sys", "because it is inside /proc"),
        ("p", "proc/self/attr", "because it is inside /proc"),
    ] {
        private(move |bundle| {
            symlink(target, bundle.join("rootfs").join(link)).unwrap();
            let over = json!({"destination": format!("/{link}"), "type": "tmpfs", "source": "tmpfs"});
            let error = enter(bundle, &spec(vec![proc_mount(), over], json!({})), Options::default()).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        });
    }
    private(|bundle| {
        let over = json!({"destination": "/proc", "source": bundle.join("rootfs/etc"), "options": ["bind"]});
        let error = enter(bundle, &spec(vec![over], json!({})), Options::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"/proc\" cannot be mounted because it is not of type proc"),
            "{error}"
        );
    });
}

#[test]
fn bind_mounts_and_their_flags() {
    private(bind_mounts);
}

fn bind_mounts(bundle: &Path) {
    let source = bundle.join("volume");
    fs::create_dir_all(source.join("below")).unwrap();
    mount("tmpfs", source.join("below"), "tmpfs", MountFlags::NODEV, None).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let bind =
        |to: &str, options: &[&str]| json!({"destination": to, "type": "none", "source": source, "options": options});
    let file = json!({"destination": "/new/dir/file", "source": "volume/file", "options": ["bind", "ro"]});
    let mounts = vec![
        proc_mount(),
        bind("/ro", &["rbind", "ro", "nosuid"]),
        bind("/rro", &["rbind", "rro"]),
        bind("/plain", &["bind"]),
        bind("/atime", &["bind", "noatime"]),
        bind("/shared", &["rbind", "rshared"]),
        file,
    ];
    enter(bundle, &spec(mounts, json!({})), Options::default()).unwrap();
    assert_eq!(flags("/ro"), "ro,nosuid,relatime");
    assert_eq!(flags("/ro/below"), "rw,nodev,relatime");
    assert_eq!(
        (flags("/rro"), flags("/rro/below")),
        ("ro,relatime".into(), "ro,nodev,relatime".into())
    );
    assert_eq!(flags("/plain"), "rw,relatime");
    assert!(mounted("/plain/below").is_none());
    assert_eq!(flags("/atime"), "rw,noatime");
    assert!(mounted("/shared").unwrap().contains(" shared:") && mounted("/shared/below").unwrap().contains(" shared:"));
    assert!(!mounted("/ro").unwrap().contains(" shared:"));
    assert_eq!(fs::read_to_string("/new/dir/file").unwrap(), "content");
    assert_eq!(flags("/new/dir/file"), "ro,relatime");
}

#[test]
fn tmpcopyup_copies_what_it_hides() {
    private(|bundle| {
        let root = bundle.join("rootfs/etc");
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "x").unwrap();
        fs::set_permissions(root.join("sub/file"), fs::Permissions::from_mode(0o4711)).unwrap();
        std::os::unix::fs::chown(root.join("sub"), Some(7), Some(8)).unwrap();
        symlink("/nowhere", root.join("link")).unwrap();
        fs::hard_link(root.join("sub/file"), root.join("second")).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o751)).unwrap();
        let tmpfs = json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"]});
        enter(bundle, &spec(vec![proc_mount(), tmpfs], json!({})), Options::default()).unwrap();
        assert_eq!(flags("/etc"), "ro,relatime");
        assert_eq!(fs::metadata("/etc").unwrap().mode() & 0o7777, 0o751);
        let file = fs::metadata("/etc/sub/file").unwrap();
        assert_eq!((file.mode() & 0o7777, file.nlink()), (0o4711, 2));
        assert_eq!(fs::metadata("/etc/sub").unwrap().uid(), 7);
        assert_eq!(fs::read_link("/etc/link").unwrap(), Path::new("/nowhere"));
    });
}

#[test]
fn devices_of_the_configuration() {
    private(|bundle| {
        let devices = json!([
            {"path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 3, "gid": 4},
            {"path": "/dev/pipe", "type": "p"},
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o620},
        ]);
        let mut mounts = vec![proc_mount()];
        mounts.extend(dev_mounts());
        enter(bundle, &spec(mounts, json!({"devices": devices})), Options::default()).unwrap();
        let fuse: Stat = lstat("/dev/sub/fuse").unwrap();
        assert_eq!((fuse.st_mode, fuse.st_uid, fuse.st_gid), (0o020600, 3, 4));
        assert_eq!(fuse.st_rdev, rustix::fs::makedev(10, 229));
        assert!(FileType::from_raw_mode(lstat("/dev/pipe").unwrap().st_mode).is_fifo());
        assert_eq!(lstat("/dev/null").unwrap().st_mode, 0o020620);
    });
    private(|bundle| {
        fs::write(bundle.join("rootfs/dev/null"), "").unwrap();
        let error = enter(bundle, &spec(vec![proc_mount()], json!({})), Options::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"/dev/null\" exists already and is another kind of file"),
            "{error}"
        );
    });
}

/// Whoever shares the directory of a node exchanges it for a link before it gets its owner and mode.
#[test]
fn a_node_that_was_exchanged_is_not_given_away() {
    private(|bundle| {
        let victim = bundle.join("victim");
        fs::write(&victim, "").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&victim, bundle.join("node")).unwrap();
        let device = Device {
            path: "/vol/node".into(),
            kind: DeviceKind::Char,
            major: 1,
            minor: 5,
            mode: 0o4777,
            uid: 1,
            gid: 1,
        };
        let dir = resolve::open_dir(bundle).unwrap();
        let error = devices::give(&device, dir.as_fd(), Path::new("node")).unwrap_err();
        assert!(error.to_string().contains("was exchanged"), "{error}");
        let found = fs::metadata(&victim).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid()), (0o600, 0));
        fs::remove_file(bundle.join("node")).unwrap();
        rustix::fs::mknodat(&dir, "node", FileType::CharacterDevice, Mode::RUSR, device.number()).unwrap();
        devices::give(&device, dir.as_fd(), Path::new("node")).unwrap();
        let node = lstat(bundle.join("node")).unwrap();
        assert_eq!((node.st_mode & 0o7777, node.st_uid), (0o4777, 1));
    });
}

#[test]
fn devices_of_a_user_namespace_are_the_hosts() {
    private(|bundle| {
        let mut mounts = vec![proc_mount()];
        mounts.extend(dev_mounts());
        let mut plan = super::plan(&spec(mounts, json!({})), bundle, &HOST, Options::default()).unwrap();
        plan.userns = true;
        mount_all(&plan, &|_, _| false)
            .unwrap()
            .pivot()
            .unwrap()
            .finish()
            .unwrap();
        assert!(is_null("/dev/null") && mounted("/dev/null").is_some() && mounted("/dev/tty").is_some());
    });
}

#[test]
fn a_dev_of_the_host_stays_as_it_is() {
    private(|bundle| {
        fs::create_dir(bundle.join("dev")).unwrap();
        let dev = json!({"destination": "/dev", "source": "dev", "options": ["rbind"]});
        enter(bundle, &spec(vec![proc_mount(), dev], json!({})), Options::default()).unwrap();
        assert_eq!(fs::read_dir("/dev").unwrap().count(), 0);
    });
}

#[test]
fn id_mapped_bind_mount() {
    private(|bundle| {
        fs::create_dir(bundle.join("volume")).unwrap();
        std::os::unix::fs::chown(bundle.join("volume"), Some(1000), Some(1001)).unwrap();
        let map = |id| json!([{"containerID": id, "hostID": 70_000, "size": 1}]);
        let volume = json!({"destination": "/volume", "source": "volume", "options": ["bind", "idmap", "ro"],
                            "uidMappings": map(1000), "gidMappings": map(1001)});
        enter(bundle, &spec(vec![proc_mount(), volume], json!({})), Options::default()).unwrap();
        let volume = fs::metadata("/volume").unwrap();
        assert_eq!((volume.uid(), volume.gid()), (70_000, 70_000));
        assert_eq!(flags("/volume"), "ro,relatime,idmapped");
    });
}

#[test]
fn console() {
    private(|bundle| {
        let mut mounts = vec![proc_mount()];
        mounts.extend(dev_mounts());
        let plan = ready(bundle, &spec(mounts, json!({})), Options::default()).unwrap();
        let mounted = mount_all(&plan, &|_, _| false).unwrap();
        let console = mounted.console().unwrap();
        mounted.pivot().unwrap().finish().unwrap();
        let slave = rustix::fs::fstat(&console.slave).unwrap();
        assert_eq!(stat("/dev/console").unwrap().st_rdev, slave.st_rdev);
        rustix::io::write(&console.slave, b"hello").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&console.master, &mut buffer[..]).unwrap(), 5);
        let name = fs::read_link(format!("/proc/self/fd/{}", console.slave.as_raw_fd())).unwrap();
        assert_eq!(name, Path::new("/dev/pts/0"));
    });
}

#[test]
fn console_is_not_mounted_on_a_link() {
    private(|bundle| {
        let root = bundle.join("rootfs");
        symlink("/proc/sys/kernel/core_pattern", root.join("dev/console")).unwrap();
        let mounts = vec![proc_mount(), dev_mounts().remove(1)];
        let plan = ready(bundle, &spec(mounts, json!({})), Options::default()).unwrap();
        let error = mount_all(&plan, &|_, _| false)
            .unwrap()
            .console()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"/dev/console\" is") && error.contains("symbolic link"),
            "{error}"
        );
    });
    private(|bundle| {
        fs::create_dir(bundle.join("rootfs/dev/pts")).unwrap();
        fs::write(bundle.join("rootfs/dev/pts/ptmx"), "").unwrap();
        let plan = ready(bundle, &spec(vec![proc_mount()], json!({})), Options::default()).unwrap();
        let error = mount_all(&plan, &|_, _| false)
            .unwrap()
            .console()
            .unwrap_err()
            .to_string();
        assert!(error.contains("is not the multiplexer of a devpts"), "{error}");
    });
}

#[test]
fn no_pivot() {
    private(|bundle| {
        let spec = spec(default_mounts(), json!({"maskedPaths": ["/proc/keys"]}));
        enter(bundle, &spec, Options { no_pivot: true }).unwrap();
        assert!(is_null("/proc/keys"));
        assert!(!bundle.exists());
        let all = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert_eq!(
            all.lines()
                .filter(|line| line.contains(" - proc ") && line.contains(" /proc "))
                .count(),
            1,
            "{all}"
        );
    });
}

#[test]
fn a_read_only_root_and_a_missing_cwd() {
    private(|bundle| {
        let mut spec = spec(vec![proc_mount()], json!({}));
        let mut root = spec.root().clone().unwrap();
        root.set_readonly(Some(true));
        spec.set_root(Some(root));
        spec.process_mut().as_mut().unwrap().set_cwd("/a/b".into());
        enter(bundle, &spec, Options::default()).unwrap();
        assert!(Path::new("/a/b").is_dir());
        assert_eq!(errno(fs::write("/x", "")), Errno::EROFS);
    });
}

#[test]
fn sysctls_reach_the_own_namespace() {
    private(|bundle| {
        let linux = json!({"sysctl": {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"},
                           "readonlyPaths": ["/proc/sys"]});
        enter(bundle, &spec(vec![proc_mount()], linux), Options::default()).unwrap();
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
        assert_eq!(fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap(), "1\n");
    });
    // No procfs in the container: one that is mounted nowhere does it.
    private(|bundle| {
        let linux = json!({"sysctl": {"net.ipv4.ip_forward": "1"}});
        enter(bundle, &spec(vec![], linux), Options::default()).unwrap();
        let proc = procfs::Procfs::detached().unwrap();
        let flags = rustix::fs::OFlags::RDONLY;
        let file = rustix::fs::openat(&proc, "sys/net/ipv4/ip_forward", flags, Mode::empty()).unwrap();
        let mut byte = [0];
        rustix::io::read(&file, &mut byte[..]).unwrap();
        assert_eq!(&byte, b"1");
    });
}

#[test]
fn a_mount_over_a_file_of_proc_is_noticed() {
    private(|_| {
        let path = "/proc/sys/kernel/shm_rmid_forced";
        mount("/proc/sys/kernel/shmmni", path, "", MountFlags::BIND, None).unwrap();
        let proc = procfs::Procfs::host().unwrap();
        let error = proc.open_for_writing("sys/kernel/shm_rmid_forced").unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EXDEV));
        mount("tmpfs", "/proc", "tmpfs", MountFlags::empty(), None).unwrap();
        assert!(procfs::Procfs::host().is_err());
    });
}

#[test]
fn final_propagation() {
    for (name, wanted) in [("rshared", "shared:"), ("unbindable", "unbindable"), ("rslave", "")] {
        private(move |bundle| {
            enter(
                bundle,
                &spec(vec![proc_mount()], json!({"rootfsPropagation": name})),
                Options::default(),
            )
            .unwrap();
            let line = mounted("/").unwrap();
            let tags = line
                .split(" - ")
                .next()
                .unwrap()
                .split(' ')
                .skip(6)
                .collect::<Vec<_>>()
                .join(" ");
            assert!(
                if wanted.is_empty() {
                    tags.is_empty()
                } else {
                    tags.starts_with(wanted)
                },
                "{line}"
            );
        });
    }
}

#[test]
fn a_root_that_is_none() {
    private(|bundle| {
        fs::write(bundle.join("file"), "").unwrap();
        symlink("/", bundle.join("link")).unwrap();
        symlink("rootfs", bundle.join("inner")).unwrap();
        for (path, words) in [
            ("absent", "invalid rootfs: stat "),
            ("file", "not a directory"),
            ("link", "not an absolute path, or a symlink"),
            ("inner", "not an absolute path, or a symlink"),
            ("link/etc", "not an absolute path, or a symlink"),
            ("", "root must be specified"),
        ] {
            let mut spec = spec(vec![], json!({}));
            let mut root = spec.root().clone().unwrap();
            root.set_path(path.into());
            spec.set_root(Some(root));
            let error = super::plan(&spec, bundle, &HOST, Options::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains(words), "{path}: {error}");
        }
    });
}

#[test]
fn a_file_system_that_the_kernel_has_not() {
    private(|bundle| {
        let odd = json!({"destination": "/etc", "type": "nosuchfs", "source": "x"});
        let error = enter(bundle, &spec(vec![proc_mount(), odd], json!({})), Options::default()).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENODEV));
        let text = error.to_string();
        assert!(
            text.starts_with("error mounting \"x\" to rootfs at \"/etc\" (mounts[1]): ") && text.contains("nosuchfs")
        );
        assert!(text.ends_with(": no such device"), "{text}");
    });
}

/// Makes the kernel as old as the calls that are missing say.
fn without(calls: &[&str]) {
    let mut filter = libseccomp::ScmpFilterContext::new(libseccomp::ScmpAction::Allow).unwrap();
    for call in calls {
        let number = libseccomp::ScmpSyscall::from_name(call).unwrap();
        filter
            .add_rule(libseccomp::ScmpAction::Errno(Errno::ENOSYS as i32), number)
            .unwrap();
    }
    filter.load().unwrap();
}

const NEW_API: [&str; 7] = [
    "open_tree",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "mount_setattr",
    "openat2",
];

#[test]
fn without_the_new_mount_api() {
    private(|bundle| {
        without(&NEW_API);
        let source = bundle.join("volume");
        fs::create_dir_all(source.join("below")).unwrap();
        mount("tmpfs", source.join("below"), "tmpfs", MountFlags::NODEV, None).unwrap();
        symlink("..", bundle.join("rootfs/etc/up")).unwrap();
        let mut mounts = default_mounts();
        let bind = |to: &str, options: &[&str]| json!({"destination": to, "source": source, "options": options});
        mounts.push(bind("/etc/up/ro", &["rbind", "ro", "nosuid", "rshared"]));
        fs::write(bundle.join("data"), "").unwrap();
        mounts
            .push(json!({"destination": "/data", "source": bundle.join("data"), "options": ["bind", "ro", "private"]}));
        fs::write(bundle.join("rootfs/tmp/file"), "").unwrap();
        mounts.push(
            json!({"destination": "/tmp", "type": "tmpfs", "source": "x", "options": ["tmpcopyup", "ro", "shared"]}),
        );
        let linux = json!({"maskedPaths": ["/proc/keys", "/sys/firmware", "/proc/acpi", "/x"], "readonlyPaths": ["/proc/sys", "/x"],
                           "sysctl": {"net.ipv4.ip_forward": "1"}});
        let plan = ready(bundle, &spec(mounts, linux), Options::default()).unwrap();
        let mounts = mount_all(&plan, &|_, _| false).unwrap();
        let console = mounts.console().unwrap();
        mounts.pivot().unwrap().finish().unwrap();
        assert_eq!(
            stat("/dev/console").unwrap().st_rdev,
            rustix::fs::fstat(&console.slave).unwrap().st_rdev
        );
        assert_eq!(flags("/ro"), "ro,nosuid,relatime");
        assert!(mounted("/ro/below").unwrap().contains(" shared:"));
        assert_eq!(flags("/data"), "ro,relatime");
        assert_eq!(flags("/tmp"), "ro,relatime");
        assert!(mounted("/tmp").unwrap().contains(" shared:") && Path::new("/tmp/file").exists());
        assert!(is_null("/proc/keys"));
        assert_eq!(flags("/proc/sys"), "ro,relatime");
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
    });
}

/// What a path led to once is used by its descriptor from then on: nothing that looks the path up again could be led elsewhere.
#[test]
fn each_path_is_looked_up_once() {
    private(|bundle| {
        let source = bundle.join("volume");
        fs::create_dir_all(source.join("a/b")).unwrap();
        fs::write(source.join("file"), "").unwrap();
        symlink("/etc", bundle.join("rootfs/link")).unwrap();
        let bind = |to: &str, options: &[&str]| json!({"destination": to, "source": source, "options": options});
        let tmpfs = |to: &str, options: &[&str]| json!({"destination": to, "type": "tmpfs", "source": "tmpfs", "options": options});
        let mut mounts = default_mounts();
        mounts.extend([
            bind("/volume", &["rbind", "rw"]),
            tmpfs("/volume/a", &["tmpcopyup", "ro", "rslave"]),
            tmpfs("/link/new", &["tmpcopyup", "ro", "rnoexec"]),
            bind("/bound", &["bind", "ro", "private", "rnosuid"]),
        ]);
        let devices = json!([{"path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "uid": 3}]);
        let linux = json!({"maskedPaths": ["/proc/keys", "/proc/timer_list", "/sys/firmware", "/volume/file"],
                           "readonlyPaths": ["/proc/sys", "/bound/a"], "devices": devices,
                           "sysctl": {"net.ipv4.ip_forward": "1"}});
        let mut spec = spec(mounts, linux);
        spec.process_mut().as_mut().unwrap().set_cwd("/link/x/y".into());
        let plan = ready(bundle, &spec, Options::default()).unwrap();
        resolve::LOOKED_UP.take();
        let mounted = mount_all(&plan, &|_, _| false).unwrap();
        mounted.console().unwrap();
        mounted.pivot().unwrap().finish().unwrap();
        let root = bundle.join("rootfs");
        let mut all: Vec<_> = resolve::LOOKED_UP.take();
        for path in &mut all {
            if let Ok(inside) = path.strip_prefix(&root) {
                *path = Path::new("/").join(inside);
            }
        }
        let count = all.len();
        all.sort();
        let looked_up = all.clone();
        all.dedup();
        assert_eq!(all.len(), count, "{looked_up:?}");
        for path in [
            "/dev",
            "/volume/a",
            "/link/new",
            "/volume/file",
            "/bound/a",
            "/link/x/y",
            "/dev/null",
            "/dev/console",
        ] {
            assert!(all.iter().any(|one| one == Path::new(path)), "{path}: {all:?}");
        }
        assert!(flags("/volume/a").starts_with("ro") && flags("/etc/new").starts_with("ro,"));
    });
}

/// Before Linux 5.2 a file that was mounted upon is found by its path only.
#[test]
fn another_file_is_not_taken_for_the_one_that_was_mounted() {
    private(|bundle| {
        without(&NEW_API);
        let dir = bundle.join("rootfs/etc");
        for name in ["source", "here", "there"] {
            fs::write(dir.join(name), name).unwrap();
        }
        let root = Root::new(resolve::open_dir(&dir).unwrap());
        let mount = |at: &str, found: &str| {
            let place = root.lookup(Path::new(at), false)?.unwrap().fd;
            let path = dir.join("source");
            let source = tree::Source::Path {
                path: &path,
                nofollow: false,
            };
            tree::bind_classic(source, false, place.as_fd(), Path::new(found), &root)
        };
        let refused = |result: Result<OwnedFd, Error>| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("was exchanged"), "{error}");
        };
        mount("/here", "/here").unwrap();
        refused(mount("/there", "/source"));
        // The same file on another mount of it.
        refused(mount("/there", "/here"));
    });
}

#[test]
fn the_id_of_a_mount_is_told_in_two_ways() {
    for path in ["/", "/proc", "/dev"] {
        let fd = resolve::open_dir(Path::new(path)).unwrap();
        assert_eq!(
            tree::mount_id(fd.as_fd()).unwrap(),
            tree::mount_id_classic(fd.as_fd()).unwrap()
        );
    }
}

#[test]
fn without_mount_setattr() {
    private(|bundle| {
        without(&["mount_setattr"]);
        let source = bundle.join("volume");
        fs::create_dir(&source).unwrap();
        let bind = |options: &[&str]| json!({"destination": "/volume", "source": source, "options": options});
        let linux = json!({"maskedPaths": ["/proc/keys"], "readonlyPaths": ["/proc/sys"]});
        let error = enter(
            bundle,
            &spec(vec![proc_mount(), bind(&["bind", "rro"])], linux.clone()),
            Options::default(),
        );
        assert_eq!(error.unwrap_err().errno(), Some(Errno::ENOSYS));
        let mounts = vec![proc_mount(), bind(&["bind", "ro", "nodev", "noatime", "slave"])];
        enter(bundle, &spec(mounts, linux), Options::default()).unwrap();
        assert_eq!(flags("/volume"), "ro,nodev,noatime");
        assert_eq!(flags("/proc/sys"), "ro,relatime");
    });
}

#[test]
fn links_of_the_image_without_openat2() {
    private(|bundle| {
        without(&["openat2"]);
        let root = bundle.join("rootfs");
        symlink(bundle, root.join("out")).unwrap();
        symlink("/proc/sys", root.join("p")).unwrap();
        fs::write(bundle.join("data"), "data").unwrap();
        let over = |to: &str| json!({"destination": to, "source": "data", "options": ["bind"]});
        let error = enter(
            bundle,
            &spec(vec![proc_mount(), over("/p/x")], json!({})),
            Options::default(),
        )
        .unwrap_err();
        assert!(
            error.to_string().contains("inside /proc") || error.errno().is_some(),
            "{error}"
        );
        enter(
            bundle,
            &spec(vec![proc_mount(), over("/out/a")], json!({})),
            Options::default(),
        )
        .unwrap();
        assert_eq!(fs::read_to_string(bundle.join("a")).unwrap(), "data");
    });
}

#[test]
fn dev_is_no_link() {
    private(|bundle| {
        fs::remove_dir(bundle.join("rootfs/dev")).unwrap();
        symlink("etc", bundle.join("rootfs/dev")).unwrap();
        let error = enter(bundle, &spec(vec![proc_mount()], json!({})), Options::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("\"/dev\" is reached through a symbolic link"), "{error}");
        assert!(!bundle.join("rootfs/etc/null").exists());
    });
}

/// The same in a user namespace with one id, where gid 5 is not mapped and no device can be made.
#[test]
fn in_a_user_namespace() {
    let exe = std::env::current_exe().unwrap();
    let output = std::process::Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
        ])
        .arg(exe)
        .args(["--exact", "rootfs::tests::inside_a_user_namespace", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

const INSIDE: &str = "PROA_TEST_INSIDE_USER_NAMESPACE";

/// The inner half of [`in_a_user_namespace`], nothing on its own.
#[test]
fn inside_a_user_namespace() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    private(|bundle| {
        let source = bundle.join("volume");
        fs::create_dir(&source).unwrap();
        mount("tmpfs", &source, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, None).unwrap();
        let mut mounts = default_mounts();
        mounts.push(json!({"destination": "/v", "source": source, "options": ["rbind", "ro", "rprivate"]}));
        let mut namespaces = namespaces();
        namespaces.as_array_mut().unwrap().push(json!({"type": "user"}));
        let linux = json!({"namespaces": namespaces, "maskedPaths": ["/proc/keys", "/sys/firmware"],
                           "readonlyPaths": ["/proc/sys"], "sysctl": {"net.ipv4.ip_forward": "1"}});
        let plan = ready(bundle, &spec(mounts, linux), Options::default()).unwrap();
        let mounts = mount_all(&plan, &|_, _| false).unwrap();
        mounts.console().unwrap();
        mounts.pivot().unwrap().finish().unwrap();
        assert!(is_null("/dev/null") && is_null("/proc/keys"));
        assert_eq!(flags("/proc/sys"), "ro,relatime");
        assert!(flags("/v").starts_with("ro,"));
        assert!(mounted("/dev/console").is_some());
    });
}
