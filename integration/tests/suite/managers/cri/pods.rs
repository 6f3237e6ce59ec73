//! Pods and Linux containers in them: their life, their namespaces, their resources.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proa_integration::Ctx;
use proa_integration::ctx::eventually;
use serde_json::{Value, json};

use super::super::{NO_HYBRID, V1, busybox, own_namespaces, show_namespaces};
use super::{DRIVERS, Release, cri, own_network};

of_both! {
    cri_runs_a_linux_pod .views(DRIVERS).seconds(120).not_for(NO_HYBRID);
    cri_gives_a_pod_its_own_network .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_shares_the_hosts_namespaces .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_shares_namespaces_in_a_pod .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_sets_a_pods_sysctls .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_mounts_volumes .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_limits_and_updates_resources .views(DRIVERS).seconds(120).not_for(NO_HYBRID);
    cri_measures_pods_and_containers .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_ends_a_container_in_its_grace_period .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_says_that_memory_ran_out .views(DRIVERS).seconds(120).not_for(NO_HYBRID);
    cri_finds_its_pods_again .views(DRIVERS).seconds(120).not_for(NO_HYBRID);
    @newer cri_gives_a_pod_a_user_namespace .views(V1).seconds(120).not_for(NO_HYBRID);
}

pub fn cri_runs_a_linux_pod(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
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
    let file = match ctx.view.has_v1() {
        true => "memory/memory.limit_in_bytes",
        false => "memory.max",
    };
    let limit = ["cat", &format!("/sys/fs/cgroup/{file}")];
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

fn cri_gives_a_pod_its_own_network(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&own_network());
    let [one, other] = ["one", "other"].map(|name| cri.start(&pod, name, &["sleep", "1000"]));
    // Whether there is a carrier yet is not the question.
    let inet = ["sh", "-c", "ip -4 addr | grep inet"];
    let (_, addresses) = cri.exec(&one, &inet);
    assert!(
        addresses.contains("192.0.2.") && addresses.contains("127.0.0.1"),
        "{addresses}"
    );
    assert_eq!(cri.exec(&other, &inet), (0, addresses));
    assert_eq!(cri.exec(&other, &["hostname"]), (0, "pod\n".to_owned()));
    cri.remove(&pod);
}

/// A pod's configuration with these namespaces.
fn namespaces(options: Value) -> Value {
    json!({"linux": {"security_context": {"namespace_options": options}}})
}

const KINDS: [&str; 5] = ["net", "pid", "ipc", "uts", "mnt"];

fn cri_shares_the_hosts_namespaces(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let own = own_namespaces(&KINDS);
    for (n, (options, shared)) in [
        (
            json!({"network": "NODE", "pid": "CONTAINER", "ipc": "POD"}),
            [true, false, false],
        ),
        (
            json!({"network": "NODE", "pid": "NODE", "ipc": "POD"}),
            [true, true, false],
        ),
        (
            json!({"network": "NODE", "pid": "NODE", "ipc": "NODE"}),
            [true, true, true],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut change = namespaces(options);
        change["metadata"] = json!({"uid": format!("uid{n}")});
        let pod = cri.pod(&change);
        let name = format!("main{n}");
        // The children of an init in the host's pid namespace must end with it all the same.
        let id = cri.start(&pod, &name, &["sh", "-c", "sleep 1234 & sleep 1234 & wait"]);
        let (_, said) = cri.exec(&id, &["sh", "-c", &show_namespaces(&KINDS)]);
        let seen: Vec<&str> = said.lines().collect();
        for (at, shared) in shared.into_iter().enumerate() {
            assert_eq!(seen[at] == own[at], shared, "{seen:?} {own:?}");
        }
        assert_ne!(seen[4], own[4], "the mount namespace is never the host's");
        // Without a handler a pid 1 ignores SIGTERM; in the host's pid namespace the shell is none.
        assert_eq!(cri.stop(&id, 1), if shared[1] { 143 } else { 137 });
        cri.remove(&pod);
        let left = || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            let is_it =
                |p: &fs::DirEntry| fs::read(p.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x001234\0");
            processes.filter(is_it).count()
        };
        eventually("the children's end", || (left() == 0).then_some(()));
    }
}

fn cri_shares_namespaces_in_a_pod(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let show = show_namespaces(&KINDS);
    let links = ["sh", "-c", &show];
    let pod = cri.pod(&own_network());
    let one = cri.start(&pod, "one", &["sleep", "1000"]);
    let two = cri.start(&pod, "two", &["sleep", "1000"]);
    let seen = [&one, &two].map(|id| cri.exec(id, &links).1);
    let [one_sees, two_sees] = seen.each_ref().map(|s| s.lines().collect::<Vec<_>>());
    for (at, shared) in [true, false, true, true, false].into_iter().enumerate() {
        assert_eq!(one_sees[at] == two_sees[at], shared, "{seen:?}");
    }
    // A container to look into another with, as `kubectl debug --target` makes.
    let target = namespaces(json!({"network": "POD", "pid": "TARGET", "target_id": one}));
    let debugger = cri.start_with(&pod, "debugger", &["sleep", "2000"], &target);
    let (_, said) = cri.exec(&debugger, &links);
    assert_eq!(
        said.lines().nth(1),
        Some(one_sees[1]),
        "the pid namespace of the target"
    );
    assert_eq!(cri.exec(&debugger, &["cat", "/proc/1/cmdline"]).1, "sleep\x001000\0");
    for id in [&debugger, &two, &one] {
        assert_eq!(cri.stop(id, 0), 137);
    }
    cri.remove(&pod);
}

fn cri_gives_a_pod_a_user_namespace(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let ids = json!([{"host_id": 100000, "container_id": 0, "length": 65536}]);
    let options = json!({"network": "POD", "userns_options": {"mode": "POD", "uids": ids, "gids": ids}});
    let change = json!({"hostname": "pod", "linux": {"security_context": {"namespace_options": options}}});
    let answer = cri.call("Status", json!({}));
    let handlers = answer["runtime_handlers"].as_array().unwrap();
    let proa = handlers.iter().find(|h| h["name"] == "proa").unwrap();
    assert_eq!(
        proa["features"],
        json!({"recursive_read_only_mounts": true, "user_namespaces": true}),
        "what `features` tells"
    );
    let pod = cri.pod(&change);
    let volume = ctx.mkdir("volume");
    fs::write(volume.join("file"), "").unwrap();
    let mounts =
        json!({"mounts": [{"container_path": "/mnt", "host_path": volume, "uidMappings": ids, "gidMappings": ids}]});
    let id = cri.start_with(&pod, "main", &["sleep", "1000"], &mounts);
    let said = cri
        .exec(
            &id,
            &[
                "sh",
                "-c",
                "cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u:%g /bin/busybox",
            ],
        )
        .1;
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "100000", "65536", "0", "0:0"]);
    let (_, addresses) = cri.exec(&id, &["ip", "-4", "addr"]);
    assert!(addresses.contains("192.0.2."), "{addresses}");
    // The pod's root is the pod's own uid on the host; the volume is mounted with the mapping.
    assert_eq!(
        cri.exec(&id, &["sh", "-c", "stat -c %u /mnt/file; touch /mnt/new && echo made"])
            .1,
        "0\nmade\n"
    );
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(volume.join("new")).unwrap());
    assert_eq!(owner, 0, "an idmapped mount writes as the host's root");
    assert_eq!(cri.stop(&id, 0), 137);
    cri.remove(&pod);
}

fn cri_sets_a_pods_sysctls(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let mut change = own_network();
    change["linux"]["sysctls"] = json!({"net.ipv4.ip_unprivileged_port_start": "1", "kernel.shm_rmid_forced": "1"});
    let pod = cri.pod(&change);
    let files = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(cri.shell(&pod, "main", files, &json!({})), "1\n1\n");
    cri.remove(&pod);
}

fn cri_mounts_volumes(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let volume = ctx.mkdir("volume");
    ctx.tmpfs(&volume, "mode=755");
    fs::create_dir(volume.join("below")).unwrap();
    ctx.host_mount(&["--make-shared"], &volume);
    ctx.tmpfs(&volume.join("below"), "mode=755");
    let mount = |more: Value| {
        let mut mount = json!({"container_path": "/mnt", "host_path": volume});
        super::merge(&mut mount, &more);
        json!({"mounts": [mount]})
    };
    let script = "touch /mnt/x 2>/dev/null && echo top; touch /mnt/below/x 2>/dev/null && echo below; true";
    assert_eq!(cri.shell(&pod, "rw", script, &mount(json!({}))), "top\nbelow\n");
    assert_eq!(
        cri.shell(&pod, "ro", script, &mount(json!({"readonly": true}))),
        "below\n"
    );
    if release == Release::Newer {
        let change = mount(json!({"readonly": true, "recursive_read_only": true}));
        assert_eq!(cri.shell(&pod, "rro", script, &change), "");
    }
    // Propagation, both ways: a mount made on the host after the start, and one made in a container.
    let slave = mount(json!({"propagation": "PROPAGATION_HOST_TO_CONTAINER"}));
    let slave = cri.start_with(&pod, "slave", &["sleep", "1000"], &slave);
    let private = cri.start_with(&pod, "private", &["sleep", "1000"], &mount(json!({})));
    let late = volume.join("late");
    fs::create_dir(&late).unwrap();
    ctx.tmpfs(&late, "mode=755");
    fs::write(late.join("file"), "").unwrap();
    assert_eq!(cri.exec(&slave, &["ls", "/mnt/late"]).1, "file\n");
    assert_eq!(cri.exec(&private, &["ls", "/mnt/late"]).1, "");
    let mut shared = mount(json!({"propagation": "PROPAGATION_BIDIRECTIONAL"}));
    shared["linux"] = json!({"security_context": {"capabilities": {"add_capabilities": ["SYS_ADMIN"]}}});
    let shared = cri.start_with(&pod, "shared", &["sleep", "1000"], &shared);
    let inside = "mkdir /mnt/inner && mount -t tmpfs x /mnt/inner && touch /mnt/inner/file";
    assert_eq!(cri.exec(&shared, &["sh", "-c", inside]), (0, String::new()));
    assert!(volume.join("inner/file").exists(), "the mount comes out");
    assert_eq!(cri.exec(&slave, &["ls", "/mnt/inner"]).1, "file\n");
    assert_eq!(cri.exec(&shared, &["umount", "/mnt/inner"]).0, 0);
    for id in [&slave, &private, &shared] {
        assert_eq!(cri.stop(id, 0), 137);
    }
    cri.remove(&pod);
}

fn cri_limits_and_updates_resources(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let change = json!({"linux": {"resources": {
        "cpu_period": 100000, "cpu_quota": 50000, "cpu_shares": 2048, "cpuset_cpus": "0-1", "memory_limit_in_bytes": 64 << 20,
        "memory_swap_limit_in_bytes": 64 << 20
    }}});
    let id = cri.start_with(&pod, "main", &["sleep", "1000"], &change);
    let files = "cd /sys/fs/cgroup; cat cpu/cpu.cfs_period_us cpu/cpu.cfs_quota_us cpu/cpu.shares cpuset/cpuset.cpus \
                 memory/memory.limit_in_bytes; cat /proc/1/oom_score_adj";
    let read = ["sh", "-c", files];
    let now = |values: [&str; 5]| (0, format!("{}\n500\n", values.join("\n")));
    assert_eq!(
        cri.exec(&id, &read),
        now(["100000", "50000", "2048", "0-1", "67108864"])
    );
    let mut update = |resources: Value, expected: [&str; 5]| {
        cri.call(
            "UpdateContainerResources",
            json!({"container_id": id, "linux": resources}),
        );
        assert_eq!(cri.exec(&id, &read), now(expected));
    };
    update(
        json!({"cpu_quota": 25000, "cpu_period": 50000}),
        ["50000", "25000", "2048", "0-1", "67108864"],
    );
    update(json!({"cpu_shares": 512}), ["50000", "25000", "512", "0-1", "67108864"]);
    update(json!({"cpuset_cpus": "0"}), ["50000", "25000", "512", "0", "67108864"]);
    // Both up and down, with swap, which cannot be below memory at any time.
    let memory = |bytes: u32| json!({"memory_limit_in_bytes": bytes, "memory_swap_limit_in_bytes": bytes});
    update(memory(128 << 20), ["50000", "25000", "512", "0", "134217728"]);
    update(memory(32 << 20), ["50000", "25000", "512", "0", "33554432"]);
    let request = json!({"container_id": id, "linux": {"cpuset_cpus": "4096"}});
    let error = cri.ask("UpdateContainerResources", &request).unwrap_err();
    assert!(error.contains("cpuset"), "{error}");
    assert_eq!(cri.stop(&id, 0), 137);
    cri.remove(&pod);
}

fn cri_measures_pods_and_containers(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&own_network());
    let id = cri.start(&pod, "main", &["sh", "-c", "while :; do :; done"]);
    let number = |value: &Value| value.as_str().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let cpu = |stats: &Value| number(&stats["stats"]["cpu"]["usage_core_nano_seconds"]["value"]);
    let before = cpu(&cri.call("ContainerStats", json!({"container_id": id})));
    eventually("time used", || {
        let stats = cri.call("ContainerStats", json!({"container_id": id}));
        assert!(
            number(&stats["stats"]["memory"]["working_set_bytes"]["value"]) > 0,
            "{stats}"
        );
        (cpu(&stats) > before + 100_000_000).then_some(())
    });
    let stats = cri.call("PodSandboxStats", json!({"pod_sandbox_id": pod.id}))["stats"]["linux"].take();
    assert_eq!(stats["containers"].as_array().map(Vec::len), Some(1), "{stats}");
    assert!(
        number(&stats["cpu"]["usage_core_nano_seconds"]["value"]) > before,
        "{stats}"
    );
    assert!(number(&stats["process"]["process_count"]["value"]) > 0, "{stats}");
    assert_eq!(cri.stop(&id, 0), 137);
    cri.remove(&pod);
}

fn cri_ends_a_container_in_its_grace_period(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let polite = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let id = cri.start(&pod, "polite", &["sh", "-c", polite]);
    cri.says("polite", "ready");
    let start = Instant::now();
    assert_eq!(cri.stop(&id, 30), 3);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    cri.says("polite", "bye");
    // A pid 1 without a handler, with a child: killed after the time.
    let id = cri.start(&pod, "deaf", &["sh", "-c", "sleep 1000 & echo ready; wait; sleep 1000"]);
    cri.says("deaf", "ready");
    let start = Instant::now();
    assert_eq!(cri.stop(&id, 1), 137);
    assert!((1..10).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    // ExecSync's own time.
    let id = cri.start(&pod, "main", &["sleep", "1000"]);
    let request = json!({"container_id": id, "cmd": ["sleep", "1234"], "timeout": 1});
    let error = cri.ask("ExecSync", &request).unwrap_err();
    assert!(error.contains("timeout 1s exceeded"), "{error}");
    assert!(
        !cri.exec(&id, &["ps"]).1.contains("1234"),
        "what took too long has been killed"
    );
    assert_eq!(cri.stop(&id, 0), 137);
    cri.remove(&pod);
}

pub fn cri_says_that_memory_ran_out(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let limit = json!({"linux": {"resources": {"memory_limit_in_bytes": 16 << 20}}});
    let script = "tail /dev/zero; while ! test -e /go; do sleep 0.05; done; exec tail /dev/zero";
    let id = cri.start_with(&pod, "main", &["sh", "-c", script], &limit);
    cri.hears_of_memory(&id);
    assert_eq!(cri.exec(&id, &["touch", "/go"]).0, 0);
    cri.ends_for_memory(&id);
    cri.remove(&pod);
}

pub fn cri_finds_its_pods_again(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let id = cri.start(&pod, "main", &["sleep", "1000"]);
    let ending = cri.start(
        &pod,
        "ending",
        &["sh", "-c", "while ! test -e /stop; do sleep 0.05; done; exit 6"],
    );
    let created = cri.create(&pod, "created", &["sh", "-c", "exit 8"]);
    let list = cri.containerd.ctr(&["task", "ls"]).ok();
    let line = list.lines().find(|l| l.starts_with(&ending)).unwrap();
    let init = PathBuf::from(format!("/proc/{}", line.split_whitespace().nth(1).unwrap()));
    cri.containerd.end(Signal::SIGKILL);
    fs::write(init.join("root/stop"), "").unwrap();
    eventually("its end", || (!init.exists()).then_some(()));
    cri.containerd.again();
    // The plugin takes a moment longer than the daemon.
    eventually("the pod", || {
        let answer = cri.ask("PodSandboxStatus", &json!({"pod_sandbox_id": pod.id})).ok()?;
        // READY is the enumeration's zero, which is not written.
        answer["status"]
            .get("state")
            .is_none_or(|s| s == "SANDBOX_READY")
            .then_some(())
    });
    assert_eq!(cri.exec(&id, &["cat", "/proc/1/comm"]), (0, "sleep\n".to_owned()));
    // From 1.7 on it cleans up what has ended while it was away, with every runtime, and then does not know how it ended.
    let version = cri.call("Version", json!({}))["runtime_version"].take();
    let known = version.as_str().is_some_and(|version| version.starts_with("1.6."));
    assert_eq!(cri.status(&ending), if known { 6 } else { 255 }, "{version}");
    cri.call("StartContainer", json!({"container_id": created}));
    assert_eq!(cri.status(&created), 8);
    let more = cri.start(&pod, "more", &["sh", "-c", "exit 4"]);
    assert_eq!(cri.status(&more), 4);
    let resources = json!({"memory_limit_in_bytes": 64 << 20});
    cri.call(
        "UpdateContainerResources",
        json!({"container_id": id, "linux": resources}),
    );
    assert_eq!(cri.stop(&id, 0), 137);
    cri.call("RemoveContainer", json!({"container_id": id}));
    cri.remove(&pod);
}
