//! Namespaces: new ones, joined ones, none; user namespaces and their maps; time offsets; names of the host.

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::unistd::Uid;
use proa_integration::{Ctx, tests};
use serde_json::json;

tests! {
    new_namespaces_differ_from_the_hosts .once();
    namespaces_not_listed_are_the_hosts .once();
    pid_namespace_makes_the_program_pid_1 .once();
    shared_pid_namespace_shows_the_hosts_processes .once();
    network_namespace_has_only_lo_and_it_is_up .once();
    namespaces_are_joined_by_path .once();
    pid_namespace_is_joined_by_path;
    a_second_container_joins_the_first_ones_namespaces .once();
    hostname_is_set_in_the_uts_namespace .once();
    domainname_is_set_in_the_uts_namespace .once().since_runc(1, 2);
    hostname_without_a_uts_namespace_is_refused .once();
    user_namespace_maps_ids;
    user_namespace_gives_devices_to_mapped_root .once();
    user_namespace_has_all_capabilities_inside_only .once();
    user_namespace_with_another_process_user .once();
    user_namespace_is_joined_by_path.since_runc(1, 2);
    user_namespace_without_maps_is_refused .once();
    maps_without_a_user_namespace_are_refused .once().since_runc(1, 2);
    time_namespace_offsets_apply .once().since_runc(1, 2);
    cgroup_namespace_hides_the_path;
    namespace_path_that_is_absent_is_refused .once();
    namespace_path_of_another_type_is_refused .once();
    a_namespace_listed_twice_is_refused .once();
    an_unknown_namespace_is_refused .once();
    sysctl_is_set_in_the_namespaces .once();
    sysctl_outside_the_namespaces_is_refused .once();
    a_namespace_that_the_joined_user_namespace_does_not_own_is_joined .once().since_runc(1, 2);
}

fn links(ctx: &Ctx, change: impl FnOnce(&proa_integration::Bundle) -> &proa_integration::Bundle) -> String {
    ctx.shell("cd /proc/self/ns; for n in *; do echo $n $(readlink $n); done", change)
}

fn own(kind: &str) -> String {
    let link = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    format!("{kind} {}", link.display())
}

/// A process in fresh namespaces of its own; dies with the value.
pub(crate) struct Holder(Child);

impl Holder {
    pub(crate) fn new(flags: &[&str]) -> Holder {
        let mut child = Command::new("unshare")
            .args(flags)
            .args(["sh", "-c", "echo up; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut byte = [0; 2];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        Holder(child)
    }

    pub(crate) fn path(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.0.id())
    }

    fn link(&self, kind: &str) -> String {
        format!("{kind} {}", fs::read_link(self.path(kind)).unwrap().display())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn new_namespaces_differ_from_the_hosts(ctx: &Ctx) {
    let inside = links(ctx, |b| b.namespace("cgroup", None));
    for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup"] {
        assert!(!inside.contains(&own(kind)), "{kind} is the host's: {inside}");
    }
    assert!(inside.contains(&own("user")));
}

fn namespaces_not_listed_are_the_hosts(ctx: &Ctx) {
    let inside = links(ctx, |b| {
        b.without_namespaces(&["network", "ipc", "uts"])
            .edit(|s| drop(s.as_object_mut().unwrap().remove("hostname")))
    });
    for kind in ["net", "ipc", "uts"] {
        assert!(inside.contains(&own(kind)), "{kind} is not the host's: {inside}");
    }
    assert!(!inside.contains(&own("mnt")));
}

fn pid_namespace_makes_the_program_pid_1(ctx: &Ctx) {
    assert_eq!(
        ctx.shell("echo $$; ls -d /proc/[0-9]* | head -1", |b| b),
        "1\n/proc/1\n"
    );
}

fn shared_pid_namespace_shows_the_hosts_processes(ctx: &Ctx) {
    let pid = ctx.shell("echo $$", |b| b.without_namespaces(&["pid"]));
    assert!(pid.trim().parse::<u32>().unwrap() > 1);
}

fn network_namespace_has_only_lo_and_it_is_up(ctx: &Ctx) {
    let text = ctx.shell("ip -o link; ip -o addr", |b| b);
    assert!(text.lines().all(|l| l.contains("lo")), "{text}");
    assert!(text.contains("UP") && text.contains("127.0.0.1/8"), "{text}");
}

fn namespaces_are_joined_by_path(ctx: &Ctx) {
    let holder = Holder::new(&["--net", "--ipc", "--uts"]);
    let inside = links(ctx, |b| {
        b.namespace("network", Some(&holder.path("net")));
        b.namespace("ipc", Some(&holder.path("ipc")));
        b.namespace("uts", Some(&holder.path("uts")));
        b.edit(|s| drop(s.as_object_mut().unwrap().remove("hostname")))
    });
    for kind in ["net", "ipc", "uts"] {
        assert!(inside.contains(&holder.link(kind)), "{kind}: {inside}");
    }
}

fn pid_namespace_is_joined_by_path(ctx: &Ctx) {
    let first = ctx.bundle();
    first.args(&["sleep", "1000"]);
    let first = ctx.start(&first);
    let path = format!("/proc/{}/ns/pid", first.pid());
    let out = ctx.shell("echo $$; cat /proc/1/comm", |b| b.namespace("pid", Some(&path)));
    let mut lines = out.lines();
    assert!(lines.next().unwrap().parse::<u32>().unwrap() > 1, "{out}");
    assert_eq!(lines.next(), Some("sleep"));
    assert_eq!(first.status(), "running");
}

fn a_second_container_joins_the_first_ones_namespaces(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let pod = ctx.start(&bundle);
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", pod.pid());
    let name = ctx.shell("hostname", |b| {
        b.namespace("uts", Some(&path("uts")))
            .namespace("network", Some(&path("net")))
            .namespace("ipc", Some(&path("ipc")));
        b.edit(|s| drop(s.as_object_mut().unwrap().remove("hostname")))
    });
    assert_eq!(name, "testhost\n");
}

fn hostname_is_set_in_the_uts_namespace(ctx: &Ctx) {
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(
        ctx.shell("hostname", |b| b.set("/hostname", json!("inside"))),
        "inside\n"
    );
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

fn domainname_is_set_in_the_uts_namespace(ctx: &Ctx) {
    let name = ctx.shell("cat /proc/sys/kernel/domainname", |b| {
        b.set("/domainname", json!("inside.example"))
    });
    assert_eq!(name, "inside.example\n");
}

fn hostname_without_a_uts_namespace_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.without_namespaces(&["uts"]);
    ctx.run(&bundle).refused(&["hostname", "uts"]);
}

fn user_namespace_maps_ids(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .userns(200_000)
        .sh("cat /proc/self/uid_map; id -u; ls -ln /bin/busybox; echo up; exec sleep 1000");
    let container = ctx.start(&bundle);
    container.says("up");
    let text = container.stdout();
    let map: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", "200000", "65536"]);
    assert_eq!(text.lines().nth(1), Some("0"));
    let owner: Vec<&str> = text.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(owner[2], "0", "{text}");
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
    assert!(status.contains("Uid:\t200000\t200000\t200000\t200000"), "{status}");
    assert!(status.contains("Gid:\t200000"), "{status}");
}

fn user_namespace_gives_devices_to_mapped_root(ctx: &Ctx) {
    let text = ctx.shell(
        "for d in null zero full tty random urandom; do [ -c /dev/$d ] || echo no $d; done; \
        echo x > /dev/null && head -c 2 /dev/zero | wc -c; touch /dev/shm/f && ls -ln /dev/shm/f | awk '{print $3}'",
        |b| b.userns(200_000),
    );
    assert_eq!(text, "2\n0\n");
}

fn user_namespace_has_all_capabilities_inside_only(ctx: &Ctx) {
    // A capability in the namespace is none over what belongs to the host.
    let text = ctx.shell(
        "grep CapEff /proc/self/status; hostname other && hostname; mount -o remount,rw / 2>&1 || echo kept",
        |b| b.userns(200_000).caps(&["CAP_SYS_ADMIN"]),
    );
    assert!(text.contains("0000000000200000") && text.contains("other"), "{text}");
}

fn user_namespace_with_another_process_user(ctx: &Ctx) {
    let text = ctx.shell("id -u; id -g; id -G", |b| {
        b.userns(200_000).set(
            "/process/user",
            json!({"uid": 1000, "gid": 1000, "additionalGids": [2000]}),
        )
    });
    assert_eq!(text, "1000\n1000\n1000 2000\n");
}

fn user_namespace_is_joined_by_path(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.userns(200_000).args(&["sleep", "1000"]);
    let first = ctx.start(&bundle);
    let second = ctx.bundle();
    second
        .userns(200_000)
        .namespace("user", Some(&format!("/proc/{}/ns/user", first.pid())));
    second.edit(|s| {
        s["linux"].as_object_mut().unwrap().remove("uidMappings");
        s["linux"].as_object_mut().unwrap().remove("gidMappings");
    });
    second.sh("readlink /proc/self/ns/user");
    let link = fs::read_link(format!("/proc/{}/ns/user", first.pid())).unwrap();
    assert_eq!(ctx.run(&second).ok().text(), link.to_str().unwrap());
}

fn user_namespace_without_maps_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.namespace("user", None);
    ctx.run(&bundle).refused(&["mapping"]);
}

fn maps_without_a_user_namespace_are_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.userns(200_000).without_namespaces(&["user"]);
    ctx.run(&bundle).refused(&["mapping", "user namespace"]);
}

fn time_namespace_offsets_apply(ctx: &Ctx) {
    let text = ctx.shell("cat /proc/self/timens_offsets; cut -d. -f1 /proc/uptime", |b| {
        b.namespace("time", None).set(
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 7881, "nanosecs": 5}, "boottime": {"secs": 1_000_000}}),
        )
    });
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(
        &words[..6],
        ["monotonic", "7881", "5", "boottime", "1000000", "0"],
        "{text}"
    );
    assert!(words[6].parse::<u64>().unwrap() > 1_000_000);
}

fn cgroup_namespace_hides_the_path(ctx: &Ctx) {
    let text = ctx.shell("cat /proc/self/cgroup", |b| b.namespace("cgroup", None));
    assert!(!text.contains("proa-test"), "{text}");
    assert!(text.lines().any(|l| l.ends_with(":/")), "{text}");
}

fn namespace_path_that_is_absent_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.namespace("network", Some("/nowhere/net"));
    ctx.run(&bundle).refused(&["/nowhere/net"]);
}

fn namespace_path_of_another_type_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.namespace("network", Some("/proc/self/ns/uts"));
    ctx.run(&bundle)
        .refused(&["/ns/uts", "setns", "invalid argument", "network", "EINVAL"]);
}

fn a_namespace_listed_twice_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.edit(|s| {
        s["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "pid"}))
    });
    ctx.run(&bundle).refused(&["pid", "duplicated"]);
}

fn an_unknown_namespace_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.edit(|s| {
        s["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "flavour"}))
    });
    ctx.run(&bundle).refused(&["flavour"]);
}

fn sysctl_is_set_in_the_namespaces(ctx: &Ctx) {
    let text = ctx.shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax", |b| {
        b.set(
            "/linux/sysctl",
            json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "12345"}),
        )
    });
    assert_eq!(text, "1\n12345\n");
}

fn sysctl_outside_the_namespaces_is_refused(ctx: &Ctx) {
    assert!(Uid::effective().is_root());
    let bundle = ctx.bundle();
    bundle.set("/linux/sysctl", json!({"vm.swappiness": "60"}));
    ctx.run(&bundle).refused(&["vm.swappiness"]);
    bundle
        .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))
        .without_namespaces(&["network"]);
    ctx.run(&bundle).refused(&["net.ipv4.ip_forward"]);
}

fn a_namespace_that_the_joined_user_namespace_does_not_own_is_joined(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.userns(200_000).args(&["sleep", "1000"]);
    let first = ctx.start(&bundle);
    let network = format!("/proc/{}/ns/net", std::process::id());
    let second = ctx.bundle();
    second
        .userns(200_000)
        .namespace("user", Some(&format!("/proc/{}/ns/user", first.pid())))
        .namespace("network", Some(&network));
    second.edit(|s| {
        s["linux"].as_object_mut().unwrap().remove("uidMappings");
        s["linux"].as_object_mut().unwrap().remove("gidMappings");
        // A sysfs belongs to a network namespace, and may be mounted by its owner only.
        let mounts = s["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["type"] != "sysfs" && mount["type"] != "cgroup");
    });
    second.sh("readlink /proc/self/ns/net");
    let link = fs::read_link(network).unwrap();
    assert_eq!(ctx.run(&second).ok().text(), link.to_str().unwrap());
}
