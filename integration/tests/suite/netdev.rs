//! `linux.netDevices`: devices of the host that move into the container's network namespace. The host's is the test's own.

use std::fs;
use std::process::Command;

use proa_integration::ctx::eventually;
use proa_integration::{Bundle, Ctx, Kind, Output, host, tests};
use serde_json::{Value, json};

use crate::namespaces::Holder;

const CRUN: (Kind, &str) = (Kind::Crun, "has other words and rules for network devices");

tests! {
    a_device_moves_into_a_new_namespace_and_is_up .once().since_runc(1, 4);
    a_device_is_renamed .once().since_runc(1, 4);
    permanent_global_addresses_go_along .once().since_runc(1, 4).not_for(&[
        CRUN, (Kind::Runc, "loses those of IPv6, and peers, as it takes the device down first")]);
    addresses_of_another_kind_stay_behind .once().since_runc(1, 4).not_for(&[CRUN]);
    mac_address_mtu_and_flags_go_along .once().since_runc(1, 4);
    a_device_moves_into_a_joined_namespace_and_outlives_the_container .once().since_runc(1, 4);
    a_device_moves_into_a_namespace_of_a_user_namespace .once().since_runc(1, 4);
    a_device_is_there_with_a_joined_pid_namespace .once().since_runc(1, 4);
    a_device_is_there_with_a_time_namespace .once().since_runc(1, 4);
    several_devices_move .once().since_runc(1, 4);
    a_template_becomes_a_free_name .once().since_runc(1, 4).not_for(&[
        CRUN, (Kind::Runc, "looks for a device called like the template")]);
    hooks_find_the_device .once().since_runc(1, 4);
    a_name_that_is_taken_is_refused .once().since_runc(1, 4).not_for(&[CRUN]);
    a_device_that_cannot_move_is_refused .once().since_runc(1, 4).not_for(&[CRUN]);
    a_refused_device_stays_as_it_was .once().since_runc(1, 4).not_for(&[
        CRUN, (Kind::Runc, "takes it down first")]);
    a_missing_device_is_refused_before_another_moves .once().since_runc(1, 4).not_for(&[
        CRUN, (Kind::Runc, "moves them one by one, in any order")]);
    devices_without_a_network_namespace_are_refused .once().since_runc(1, 4).not_for(&[CRUN]);
    devices_for_the_hosts_own_namespace_are_refused .once().only_proa();
    invalid_names_are_refused .once().since_runc(1, 4).not_for(&[CRUN]);
}

/// A call of busybox's `ip` in the test's namespace; its stdout.
#[track_caller]
fn ip(args: &str) -> String {
    let (ok, text) = try_ip(args);
    assert!(ok, "ip {args}");
    text
}

fn try_ip(args: &str) -> (bool, String) {
    let out = Command::new(host::busybox().unwrap())
        .arg("ip")
        .args(args.split_whitespace())
        .output()
        .unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A pair of devices, of which the second is up and stays: the first can be moved.
fn veth(name: &str, peer: &str) {
    ip(&format!("link add {name} type veth"));
    // The name that the kernel gives: busybox passes none on.
    ip(&format!("link set veth0 name {peer}"));
    ip(&format!("link set {peer} up"));
}

fn devices(bundle: &Bundle, devices: Value) -> &Bundle {
    bundle.set("/linux/netDevices", devices)
}

fn exists(name: &str) -> bool {
    fs::exists(format!("/sys/class/net/{name}")).unwrap() || try_ip(&format!("link show dev {name}")).0
}

/// A container that runs `ip ARGS` with the device `v0` given to it.
fn ip_inside(ctx: &Ctx, args: &str, change: impl FnOnce(&Bundle) -> &Bundle) -> String {
    ctx.shell(&format!("ip {args}"), |bundle| {
        devices(bundle, json!({"v0": {}}));
        change(bundle)
    })
}

fn refused(ctx: &Ctx, change: impl FnOnce(&Bundle) -> &Bundle) -> Output {
    let bundle = ctx.bundle();
    change(&bundle);
    ctx.run(&bundle)
}

fn a_device_moves_into_a_new_namespace_and_is_up(ctx: &Ctx) {
    veth("v0", "v1");
    let bundle = ctx.bundle();
    devices(&bundle, json!({"v0": {}})).args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    assert!(!exists("v0"), "it is still on the host");
    let inside = container.exec(&["ip", "-o", "link"]).ok().stdout.clone();
    let line = inside.lines().find(|line| line.contains(" v0@")).expect("no v0");
    assert!(line.contains("UP,LOWER_UP"), "{line}");
    assert!(inside.contains(" lo:") && inside.lines().count() == 2, "{inside}");
    container.kill("KILL").stopped();
    // The kernel ends a virtual device with its namespace, and its peer with it.
    eventually("the end of the device", || (!exists("v1")).then_some(()));
}

fn a_device_is_renamed(ctx: &Ctx) {
    veth("v0", "v1");
    let names = ctx.shell("ip -o link | cut -d: -f2", |b| {
        devices(b, json!({"v0": {"name": "container_eth0"}}))
    });
    assert!(names.contains("container_eth0@") && !names.contains("v0"), "{names}");
}

fn permanent_global_addresses_go_along(ctx: &Ctx) {
    veth("v0", "v1");
    ip("link set v0 up");
    ip("addr add 10.0.0.2/24 broadcast 10.0.0.255 dev v0");
    ip("addr add 10.1.0.1 peer 10.1.0.2 dev v0");
    ip("addr add 169.254.169.77/32 dev v0");
    ip("addr add fd00::2/64 dev v0");
    let inside = ctx.shell("ip -o addr show dev eth0; ip route", |b| {
        devices(b, json!({"v0": {"name": "eth0"}}))
    });
    for address in [
        "inet 10.0.0.2/24 brd 10.0.0.255 scope global eth0",
        "inet 10.1.0.1 peer 10.1.0.2/32 scope global eth0",
        "inet 169.254.169.77/32 scope global eth0",
        "inet6 fd00::2/64 scope global",
        "10.0.0.0/24 dev eth0",
    ] {
        assert!(inside.contains(address), "{address}: {inside}");
    }
}

fn addresses_of_another_kind_stay_behind(ctx: &Ctx) {
    veth("v0", "v1");
    ip("link set v0 up");
    ip("addr add 127.0.0.33/32 scope host dev v0");
    ip("addr add 10.4.0.1/24 dev v0 valid_lft 1000 preferred_lft 1000");
    let inside = ip_inside(ctx, "-o -4 addr show dev v0", |b| b);
    assert_eq!(inside, "");
}

fn mac_address_mtu_and_flags_go_along(ctx: &Ctx) {
    veth("v0", "v1");
    ip("link set v0 address 02:11:22:33:44:55");
    ip("link set v0 mtu 1389");
    ip("link set v0 arp off");
    let inside = ip_inside(ctx, "link show dev v0", |b| b);
    for what in ["link/ether 02:11:22:33:44:55", "mtu 1389", "MULTICAST", "NOARP"] {
        assert!(inside.contains(what), "{what}: {inside}");
    }
}

fn a_device_moves_into_a_joined_namespace_and_outlives_the_container(ctx: &Ctx) {
    veth("v0", "v1");
    ip("addr add 10.0.0.2/24 dev v0");
    let holder = Holder::new(&["--net"]);
    let inside = ip_inside(ctx, "-o addr show dev v0", |b| {
        b.namespace("network", Some(&holder.path("net")))
    });
    assert!(inside.contains("10.0.0.2/24"), "{inside}");
    let out = Command::new("nsenter")
        .arg(format!("--net={}", holder.path("net")))
        .arg(host::busybox().unwrap())
        .args(["ip", "addr", "show", "dev", "v0"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("10.0.0.2/24") && text.contains("UP"), "{out:?}");
}

fn a_device_moves_into_a_namespace_of_a_user_namespace(ctx: &Ctx) {
    veth("v0", "v1");
    ip("addr add 10.0.0.2/24 dev v0");
    let inside = ip_inside(ctx, "addr show dev v0", |b| b.userns(100_000));
    assert!(inside.contains("10.0.0.2/24") && inside.contains("UP"), "{inside}");
}

fn a_device_is_there_with_a_joined_pid_namespace(ctx: &Ctx) {
    veth("v0", "v1");
    let first = ctx.bundle();
    first.args(&["sleep", "1000"]);
    let first = ctx.start(&first);
    let path = format!("/proc/{}/ns/pid", first.pid());
    let inside = ip_inside(ctx, "link show dev v0", |b| b.namespace("pid", Some(&path)));
    assert!(inside.contains("UP"), "{inside}");
}

fn a_device_is_there_with_a_time_namespace(ctx: &Ctx) {
    veth("v0", "v1");
    let inside = ip_inside(ctx, "link show dev v0", |b| b.namespace("time", None));
    assert!(inside.contains("UP"), "{inside}");
}

fn several_devices_move(ctx: &Ctx) {
    veth("v0", "v1");
    veth("v2", "v3");
    // Each other's names: only the namespace they are in counts.
    let names = ctx.shell("ip -o link | cut -d: -f2", |b| {
        devices(b, json!({"v0": {"name": "v2"}, "v2": {"name": "v0"}}))
    });
    assert!(names.contains("v0@") && names.contains("v2@"), "{names}");
    assert!(!exists("v0") && !exists("v2"));
}

fn a_template_becomes_a_free_name(ctx: &Ctx) {
    for (name, peer) in [("v0", "v1"), ("v2", "v3"), ("v4", "v5")] {
        veth(name, peer);
    }
    let names = ctx.shell("ip -o link | cut -d: -f2", |b| {
        devices(
            b,
            json!({"v0": {"name": "eth%d"}, "v2": {"name": "eth%d"}, "v4": {"name": "eth0"}}),
        )
    });
    for name in ["eth0@", "eth1@", "eth2@"] {
        assert!(names.contains(name), "{name}: {names}");
    }
}

fn hooks_find_the_device(ctx: &Ctx) {
    veth("v0", "v1");
    let log = ctx.dir.join("hooks.log");
    let busybox = host::busybox().unwrap();
    let hook = |script: &str| {
        let script = script
            .replace("BUSYBOX", busybox.to_str().unwrap())
            .replace("LOG", log.to_str().unwrap());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
    };
    fs::write(&log, "").unwrap();
    let bundle = ctx.bundle();
    bundle.bind(&log, log.to_str().unwrap(), &["bind", "rw"]);
    devices(&bundle, json!({"v0": {}}))
        .set(
            "/hooks/createRuntime",
            hook("pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); nsenter -t $pid -n BUSYBOX ip -o link show dev v0 >>LOG"),
        )
        .set("/hooks/createContainer", hook("BUSYBOX ip -o link show dev v0 >>LOG"));
    ctx.run(&bundle).ok();
    let seen = fs::read_to_string(&log).unwrap();
    assert_eq!(seen.matches(" v0@").count(), 2, "{seen}");
}

fn a_name_that_is_taken_is_refused(ctx: &Ctx) {
    veth("v0", "v1");
    refused(ctx, |b| devices(b, json!({"v0": {"name": "lo"}}))).refused(&["fail to move network device v0"]);
    assert!(exists("v0"));
}

/// A bridge belongs to its namespace (netns-immutable) and the kernel refuses to move it.
fn a_device_that_cannot_move_is_refused(ctx: &Ctx) {
    ip("link add b0 type bridge");
    refused(ctx, |b| devices(b, json!({"b0": {}}))).refused(&["fail to move network device b0"]);
    assert!(exists("b0"));
}

fn a_refused_device_stays_as_it_was(ctx: &Ctx) {
    ip("link add b0 type bridge");
    ip("link set b0 up");
    ip("addr add 10.0.0.2/24 dev b0");
    ip("addr add fd00::2/64 dev b0");
    refused(ctx, |b| devices(b, json!({"b0": {"name": "b1"}}))).refused(&["fail to move network device b0"]);
    let after = ip("addr show dev b0");
    for what in ["UP", "10.0.0.2/24", "fd00::2/64"] {
        assert!(after.contains(what), "{what}: {after}");
    }
}

fn a_missing_device_is_refused_before_another_moves(ctx: &Ctx) {
    veth("v0", "v1");
    refused(ctx, |b| devices(b, json!({"v0": {}, "zz9": {}})))
        .refused(&["link not found for interface zz9 on runtime namespace"]);
    assert!(exists("v0"));
}

fn devices_without_a_network_namespace_are_refused(ctx: &Ctx) {
    veth("v0", "v1");
    refused(ctx, |b| devices(b, json!({"v0": {}})).without_namespaces(&["network"]))
        .refused(&["unable to move network devices without a NET namespace"]);
}

fn devices_for_the_hosts_own_namespace_are_refused(ctx: &Ctx) {
    veth("v0", "v1");
    let own = format!("/proc/{}/ns/net", std::process::id());
    refused(ctx, |b| {
        devices(b, json!({"v0": {"name": "v9"}})).namespace("network", Some(&own))
    })
    .refused(&["unable to move network devices without a NET namespace"]);
    assert!(exists("v0"));
}

fn invalid_names_are_refused(ctx: &Ctx) {
    veth("v0", "v1");
    for name in ["v0/", "a b", "..", "a2345678901234567"] {
        refused(ctx, |b| devices(b, json!({"v0": {"name": name}}))).refused(&["invalid network device name"]);
    }
}
