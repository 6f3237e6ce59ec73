//! What `features` claims is true: each thing it lists is taken by a container.

use std::fs;

use proa_integration::{Ctx, tests};
use serde_json::{Value, json};

tests! {
    it_has_every_member_of_the_specification .once().only_proa();
    it_has_what_runcs_has .once().only_proa();
    every_listed_mount_option_is_accepted .once().only_proa();
    every_listed_capability_is_accepted .once().only_proa();
    every_listed_namespace_is_made .once().only_proa();
    every_listed_hook_is_run .once().only_proa();
    every_supported_seccomp_flag_is_taken .once().only_proa();
    every_listed_memory_policy_is_known .once().only_proa();
    the_oldest_and_the_newest_version_are_read .once().only_proa();
}

fn features(ctx: &Ctx) -> Value {
    ctx.call(&["features"]).output().ok().json()
}

/// A list of the document, e.g. `/linux/namespaces`.
fn list(ctx: &Ctx, pointer: &str) -> Vec<String> {
    let features = features(ctx);
    let items = features.pointer(pointer).and_then(Value::as_array).unwrap();
    assert!(!items.is_empty(), "{pointer}");
    items.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// Where every value is, as JSON pointers.
fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(members) if !at.ends_with("/annotations") => {
            for (name, member) in members {
                pointers(member, &format!("{at}/{name}"), into);
            }
        }
        _ => into.push(at.to_owned()),
    }
}

/// features.md and features-linux.md of runtime-spec 1.3.
fn it_has_every_member_of_the_specification(ctx: &Ctx) {
    let mut all = Vec::new();
    pointers(&features(ctx), "", &mut all);
    all.sort();
    let specified = [
        "/annotations",
        "/hooks",
        "/linux/apparmor/enabled",
        "/linux/capabilities",
        "/linux/cgroup/rdma",
        "/linux/cgroup/systemd",
        "/linux/cgroup/systemdUser",
        "/linux/cgroup/v1",
        "/linux/cgroup/v2",
        "/linux/intelRdt/enabled",
        "/linux/intelRdt/monitoring",
        "/linux/intelRdt/schemata",
        "/linux/memoryPolicy/flags",
        "/linux/memoryPolicy/modes",
        "/linux/mountExtensions/idmap/enabled",
        "/linux/namespaces",
        "/linux/netDevices/enabled",
        "/linux/seccomp/actions",
        "/linux/seccomp/archs",
        "/linux/seccomp/enabled",
        "/linux/seccomp/knownFlags",
        "/linux/seccomp/operators",
        "/linux/seccomp/supportedFlags",
        "/linux/selinux/enabled",
        "/mountOptions",
        "/ociVersionMax",
        "/ociVersionMin",
        "/potentiallyUnsafeConfigAnnotations",
    ];
    assert_eq!(all, specified);
}

fn it_has_what_runcs_has(ctx: &Ctx) {
    let runc = ["/usr/sbin/runc", "/usr/bin/runc"].map(std::path::PathBuf::from);
    let runc = runc.iter().find(|p| p.exists()).expect("runc, which containerd needs");
    let theirs = ctx.bare_call(&["features"]).program(runc).output().ok().json();
    let ours = features(ctx);
    for at in [
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
        "/linux/seccomp/archs",
    ] {
        let (theirs, ours) = (theirs.pointer(at).unwrap(), ours.pointer(at).unwrap());
        let missing: Vec<&Value> = theirs
            .as_array()
            .unwrap()
            .iter()
            .filter(|item| !ours.as_array().unwrap().contains(item))
            .collect();
        assert!(missing.is_empty(), "{at}: {missing:?}");
    }
    let annotation = "io.github.seccomp.libseccomp.version";
    assert!(
        ours["annotations"][annotation].as_str().unwrap().starts_with("2."),
        "{ours}"
    );
}

fn every_listed_mount_option_is_accepted(ctx: &Ctx) {
    let source = ctx.mkdir("source");
    ctx.tmpfs(&source, "mode=755");
    let bundle = ctx.bundle();
    // Of the whole file system, not of a mount of it.
    let of_file_systems = [
        "acl",
        "async",
        "defaults",
        "dirsync",
        "iversion",
        "lazytime",
        "loud",
        "mand",
        "noacl",
        "noiversion",
        "nolazytime",
        "nomand",
        "silent",
        "sync",
        "tmpcopyup",
    ];
    let options = list(ctx, "/mountOptions");
    for option in &options {
        let destination = format!("/options/{option}");
        let mut mount = match option.as_str() {
            option if of_file_systems.contains(&option) => {
                json!({"type": "tmpfs", "source": "tmpfs", "options": [option]})
            }
            "remount" => {
                bundle.mount(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}));
                json!({"type": "tmpfs", "source": "tmpfs", "options": ["remount", "nosuid"]})
            }
            "idmap" | "ridmap" => {
                let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
                json!({"source": source, "options": ["rbind", option], "uidMappings": map, "gidMappings": map})
            }
            option => json!({"source": source, "options": ["bind", option]}),
        };
        mount["destination"] = json!(destination);
        bundle.mount(mount);
    }
    bundle.sh("ls /options");
    let seen = ctx.run(&bundle).ok().stdout.lines().count();
    assert_eq!(seen, options.len());
    // The contrast: what isn't listed is for the file system, which doesn't know it.
    bundle.mount(json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["noacls"]}));
    ctx.run(&bundle).refused(&["noacls"]);
}

fn every_listed_capability_is_accepted(ctx: &Ctx) {
    let all = list(ctx, "/linux/capabilities");
    let bundle = ctx.bundle();
    bundle
        .set("/process/capabilities/bounding", json!(all))
        .sh("grep CapBnd /proc/self/status");
    let out = ctx.run(&bundle);
    let mask = out.ok().text().rsplit('\t').next().unwrap().to_owned();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    assert_eq!(mask, own, "all that the test itself may have");
    assert!(!(out.log + &out.stderr).contains("ignoring unknown"));
}

fn every_listed_namespace_is_made(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let all: Vec<Value> = list(ctx, "/linux/namespaces")
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    assert_eq!(all.len(), 8);
    let map = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    bundle
        .set("/linux/namespaces", json!(all))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .sh("for n in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$n; done");
    let out = ctx.run(&bundle);
    let inside: Vec<String> = out.ok().stdout.lines().map(str::to_owned).collect();
    let names = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    assert_eq!(inside.len(), names.len());
    for (name, inside) in names.iter().zip(&inside) {
        let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(own.to_str().unwrap(), inside, "{name}");
    }
}

fn every_listed_hook_is_run(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let dir = ctx.mkdir("ran");
    bundle.bind(&dir, "/ran", &["rbind"]);
    let all = list(ctx, "/hooks");
    for hook in &all {
        // This one runs in the container.
        let file = match hook.as_str() {
            "startContainer" => format!("/ran/{hook}"),
            _ => dir.join(hook).to_str().unwrap().to_owned(),
        };
        let shell = json!([{"path": "/bin/sh", "args": ["sh", "-c", format!(": > {file}")]}]);
        bundle.set(&format!("/hooks/{hook}"), shell);
    }
    ctx.run(&bundle).ok();
    let mut ran: Vec<String> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected = all;
    ran.sort();
    expected.sort();
    assert_eq!(ran, expected);
}

fn every_supported_seccomp_flag_is_taken(ctx: &Ctx) {
    let known = list(ctx, "/linux/seccomp/knownFlags");
    for flag in list(ctx, "/linux/seccomp/supportedFlags") {
        assert!(known.contains(&flag));
        if flag == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" {
            // For an agent's filter only: seccomp_notify_hands_over_a_listener.
            continue;
        }
        let bundle = ctx.bundle();
        bundle
            .set(
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": [flag],
                    "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}),
            )
            .sh("grep ^Seccomp: /proc/self/status");
        assert_eq!(ctx.run(&bundle).ok().text(), "Seccomp:\t2", "{flag}");
    }
}

/// The kernel may lack NUMA; the name is known all the same.
fn every_listed_memory_policy_is_known(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let refused_by_kernel = ["set_mempolicy"];
    for mode in list(ctx, "/linux/memoryPolicy/modes") {
        let nodes = if matches!(mode.as_str(), "MPOL_DEFAULT" | "MPOL_LOCAL") {
            ""
        } else {
            "0"
        };
        bundle.set("/linux/memoryPolicy", json!({"mode": mode, "nodes": nodes}));
        let out = ctx.run(&bundle);
        if out.code != 0 {
            out.refused(&refused_by_kernel);
        }
    }
    for flag in list(ctx, "/linux/memoryPolicy/flags") {
        bundle.set(
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]}),
        );
        let out = ctx.run(&bundle);
        if out.code != 0 {
            out.refused(&refused_by_kernel);
        }
    }
    bundle.set("/linux/memoryPolicy", json!({"mode": "MPOL_WHEREVER"}));
    ctx.run(&bundle).refused(&["invalid memory policy mode"]);
    bundle.set(
        "/linux/memoryPolicy",
        json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_FAST"]}),
    );
    ctx.run(&bundle).refused(&["invalid memory policy flag"]);
}

fn the_oldest_and_the_newest_version_are_read(ctx: &Ctx) {
    let features = features(ctx);
    for version in ["ociVersionMin", "ociVersionMax"] {
        let bundle = ctx.bundle();
        bundle.set("/ociVersion", features[version].clone());
        ctx.run(&bundle).ok();
    }
}
