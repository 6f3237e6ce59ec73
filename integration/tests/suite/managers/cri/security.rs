//! Security contexts: who a container's processes are, what they may do, and what of the host they see.

use std::fs;

use proa_integration::Ctx;
use serde_json::{Value, json};

use super::super::{NO_HYBRID, V1, busybox};
use super::{Release, configuration, cri, cri_with};

of_both! {
    cri_sets_users_and_groups .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_sets_capabilities_and_privileges .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_filters_system_calls .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_protects_paths .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_hands_in_devices .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_hands_on_the_runtimes_options .views(V1).seconds(120).not_for(NO_HYBRID);
    @newer cri_hands_in_cdi_devices .views(V1).seconds(120).not_for(NO_HYBRID);
}

/// A container's configuration with this in its security context.
fn context(change: Value) -> Value {
    json!({"linux": {"security_context": change}})
}

/// Prints a field of the process's status.
fn status(field: &str) -> String {
    format!("sed -n 's/^{field}:[[:space:]]*//p' /proc/self/status")
}

fn cri_sets_users_and_groups(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let ids = "id -u; id -g; id -G";
    let user = |n: i64| json!({"value": n});
    let said = cri.shell(
        &pod,
        "number",
        ids,
        &context(json!({"run_as_user": user(1234), "run_as_group": user(1235)})),
    );
    assert_eq!(said, "1234\n1235\n1235\n");
    let groups = json!({"run_as_user": user(1234), "run_as_group": user(5), "supplemental_groups": [6, 7]});
    assert_eq!(cri.shell(&pod, "groups", ids, &context(groups)), "1234\n5\n5 6 7\n");
    // As the image's passwd has it, by name and by number.
    let said = cri.shell(
        &pod,
        "name",
        "id -u; id -g; echo $HOME",
        &context(json!({"run_as_username": "user"})),
    );
    assert_eq!(said, "1000\n1000\n/home/user\n");
    let change = context(json!({"run_as_username": "nobody-knows"}));
    let error = cri.create_with(&pod, "nobody", &["true"], &change).unwrap_err();
    assert!(error.contains("no users found"), "{error}");
    // Exec has the container's user.
    let change = context(json!({"run_as_user": user(1234), "run_as_group": user(5), "supplemental_groups": [6]}));
    let id = cri.start_with(&pod, "exec", &["sleep", "1000"], &change);
    assert_eq!(cri.exec(&id, &["sh", "-c", ids]), (0, "1234\n5\n5 6\n".to_owned()));
    assert_eq!(cri.stop(&id, 0), 137);
    cri.remove(&pod);
}

fn cri_sets_capabilities_and_privileges(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let sets = ["CapBnd", "CapEff", "CapPrm"].map(status).join("; ");
    // containerd's fourteen.
    assert_eq!(
        cri.shell(&pod, "default", &sets, &json!({})),
        "00000000a80425fb\n".repeat(3)
    );
    let change = context(json!({"capabilities": {"add_capabilities": ["SYS_ADMIN"], "drop_capabilities": ["CHOWN"]}}));
    assert_eq!(
        cri.shell(&pod, "changed", &sets, &change),
        "00000000a82425fa\n".repeat(3)
    );
    let change =
        context(json!({"capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_BIND_SERVICE"]}}));
    assert_eq!(cri.shell(&pod, "few", &sets, &change), "0000000000000400\n".repeat(3));
    // Nobody's are bounded only.
    let change = context(json!({"run_as_user": {"value": 1000}}));
    let said = cri.shell(&pod, "user", &sets, &change);
    assert_eq!(said, "00000000a80425fb\n0000000000000000\n0000000000000000\n");
    let new_privileges = status("NoNewPrivs");
    assert_eq!(cri.shell(&pod, "may", &new_privileges, &json!({})), "0\n");
    assert_eq!(
        cri.shell(
            &pod,
            "may-not",
            &new_privileges,
            &context(json!({"no_new_privs": true}))
        ),
        "1\n"
    );
    cri.remove(&pod);

    let pod = cri.pod(&json!({"metadata": {"uid": "two"}, "linux": {"security_context": {"privileged": true}}}));
    let privileged = context(json!({
        "privileged": true, "masked_paths": [], "readonly_paths": [], "seccomp": {"profile_type": "Unconfined"}
    }));
    let id = cri.start_with(&pod, "privileged", &["sleep", "1000"], &privileged);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .unwrap()
        .trim()
        .to_owned();
    assert_eq!(cri.exec(&id, &["sh", "-c", &status("CapEff")]), (0, format!("{own}\n")));
    let script = "mount -t tmpfs x /mnt && touch /sys/fs/cgroup/memory && test -c /dev/fuse && echo it may";
    assert_eq!(cri.exec(&id, &["sh", "-c", script]), (0, "it may\n".to_owned()));
    assert_eq!(cri.exec(&id, &["sh", "-c", &status("Seccomp")]), (0, "0\n".to_owned()));
    assert_eq!(cri.stop(&id, 0), 137);
    cri.remove(&pod);
}

fn cri_filters_system_calls(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let script = format!(
        "{}; mkdir /tmp/a 2>/dev/null && echo made; unshare -m true 2>/dev/null && echo unshared; true",
        status("Seccomp")
    );
    assert_eq!(cri.shell(&pod, "default", &script, &json!({})), "2\nmade\n");
    let unconfined = context(json!({
        "seccomp": {"profile_type": "Unconfined"}, "capabilities": {"add_capabilities": ["SYS_ADMIN"]}
    }));
    assert_eq!(
        cri.shell(&pod, "unconfined", &script, &unconfined),
        "0\nmade\nunshared\n"
    );
    let profile = ctx.dir.join("profile.json");
    let rules = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    ]});
    fs::write(&profile, rules.to_string()).unwrap();
    let localhost = |path: &str| {
        context(json!({
            "seccomp": {"profile_type": "Localhost", "localhost_ref": path},
            "capabilities": {"add_capabilities": ["SYS_ADMIN"]}
        }))
    };
    let said = cri.shell(&pod, "localhost", &script, &localhost(profile.to_str().unwrap()));
    assert_eq!(said, "2\nunshared\n");
    let error = cri
        .create_with(&pod, "absent", &["true"], &localhost("/no/such.json"))
        .unwrap_err();
    assert!(error.contains("/no/such.json"), "{error}");
    cri.remove(&pod);
}

fn cri_protects_paths(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let script = "touch /x 2>/dev/null && echo root; touch /dev/shm/x && echo shm; wc -c </proc/keys | grep -q '^0$' && echo masked; \
                  ls -A /proc/irq; touch /proc/sys/kernel/hostname 2>/dev/null && echo sysctl; true";
    // What a kubelet asks for without and with `procMount: Unmasked`.
    let masked = context(json!({"masked_paths": ["/proc/keys", "/proc/irq"], "readonly_paths": ["/proc/sys"]}));
    assert_eq!(cri.shell(&pod, "masked", script, &masked), "root\nshm\nmasked\n");
    let keys = "test $(wc -c </proc/keys) -gt 0 && echo keys; touch /proc/sys/kernel/hostname && echo sysctl";
    let unmasked = context(json!({"masked_paths": [], "readonly_paths": []}));
    assert_eq!(cri.shell(&pod, "unmasked", keys, &unmasked), "keys\nsysctl\n");
    let read_only = context(json!({"readonly_rootfs": true, "masked_paths": ["/proc/keys", "/proc/irq"]}));
    assert_eq!(cri.shell(&pod, "read-only", script, &read_only), "shm\nmasked\n");
    cri.remove(&pod);
}

fn cri_hands_in_devices(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let device = |permissions: &str| json!({"devices": [{"host_path": "/dev/zero", "container_path": "/dev/other", "permissions": permissions}]});
    let read = "head -c 4 /dev/other | wc -c";
    assert_eq!(
        cri.shell(
            &pod,
            "rw",
            &format!("{read}; echo x >/dev/other && echo written"),
            &device("rw")
        ),
        "4\nwritten\n"
    );
    assert_eq!(
        cri.shell(&pod, "without", "test -e /dev/other || echo none", &json!({})),
        "none\n"
    );
    // A device that is not on the list cannot be opened by a node made for it.
    let script = "mknod /tmp/fuse c 10 229 && (: </tmp/fuse) 2>/dev/null || echo refused";
    assert_eq!(cri.shell(&pod, "made", script, &json!({})), "refused\n");
    let fuse = json!({"devices": [{"host_path": "/dev/fuse", "container_path": "/dev/fuse", "permissions": "r"}]});
    let script = "(: </dev/fuse) && echo read; (: >/dev/fuse) 2>/dev/null || echo not written";
    assert_eq!(cri.shell(&pod, "r", script, &fuse), "read\nnot written\n");
    cri.remove(&pod);
}

/// As accelerators are handed in: nodes, files, variables, and hooks that finish the job.
fn cri_hands_in_cdi_devices(ctx: &Ctx, release: Release) {
    let dir = ctx.mkdir("cdi");
    let library = ctx.dir.join("library");
    fs::write(&library, "of the host\n").unwrap();
    let hook = |name: &str, to: &str| {
        let script = format!("cat >{}", ctx.dir.join(to).display());
        json!({"hookName": name, "path": "/bin/sh", "args": ["sh", "-c", script]})
    };
    let spec = json!({"cdiVersion": "0.5.0", "kind": "example.test/unit", "devices": [{
        "name": "one",
        "containerEdits": {
            "env": ["UNIT=one"],
            "deviceNodes": [{"path": "/dev/unit", "hostPath": "/dev/fuse", "permissions": "r"}],
            "mounts": [{"hostPath": library, "containerPath": "/lib/unit", "options": ["ro", "bind", "nosuid", "nodev"]}],
            "hooks": [hook("createRuntime", "host"), hook("createContainer", "container")]
        }
    }]});
    fs::write(dir.join("unit.json"), spec.to_string()).unwrap();
    let config = configuration(ctx, release);
    let dirs = format!("restrict_oom_score_adj = true\ncdi_spec_dirs = [\"{}\"]", dir.display());
    let config = config.replace("restrict_oom_score_adj = true", &dirs);
    let mut cri = cri_with(ctx, release, &busybox(ctx), &config, &[]);
    let pod = cri.pod(&json!({}));
    let change = json!({"CDI_devices": [{"name": "example.test/unit=one"}]});
    let script =
        "echo $UNIT; cat /lib/unit; (: </dev/unit) && echo read; (: >/dev/unit) 2>/dev/null || echo not written";
    assert_eq!(
        cri.shell(&pod, "main", script, &change),
        "one\nof the host\nread\nnot written\n"
    );
    for hook in ["host", "container"] {
        let state: Value = serde_json::from_slice(&fs::read(ctx.dir.join(hook)).unwrap()).unwrap();
        assert_eq!(state["status"], "creating", "{state}");
    }
    cri.remove(&pod);
}

fn cri_hands_on_the_runtimes_options(ctx: &Ctx, release: Release) {
    let options = "NoPivotRoot = true\n    NoNewKeyring = true\n    BinaryName";
    let config = configuration(ctx, release).replace("BinaryName", options);
    let mut cri = cri_with(ctx, release, &busybox(ctx), &config, &[]);
    let pod = cri.pod(&json!({}));
    let id = cri.start(&pod, "main", &["sleep", "1000"]);
    let root = ctx.dir.join("runc-root/k8s.io");
    assert!(root.join(&id).is_dir(), "Root");
    // The session keyring that a container would get has its id as name.
    let keys = ["grep", "-c", &format!("_ses.{id}"), "/proc/keys"];
    assert_eq!(cri.exec(&id, &keys).1, "0\n", "NoNewKeyring");
    // What was moved over the root, not pivoted to, lies on top of what it covers.
    let roots = ["sh", "-c", "cut -d' ' -f5 /proc/self/mountinfo | grep -c '^/$'"];
    assert_eq!(cri.exec(&id, &roots), (0, "1\n".to_owned()), "NoPivotRoot");
    assert_eq!(cri.stop(&id, 0), 137);
    cri.remove(&pod);
}
