//! Pods, and Kubernetes' objects without Kubernetes.

use proa_integration::Ctx;
use proa_integration::ctx::eventually;

use super::super::busybox;
use super::*;

of_both! {
    podman_runs_a_pod .views(PODMAN).seconds(120).not_for(NO_HYBRID);
    podman_plays_kubernetes_objects .views(PODMAN).seconds(120).not_for(NO_HYBRID);
}

/// podman 5 makes a pod's slice twice on cgroup v1, and systemd refuses the second: with every runtime.
fn makes_slices_twice(ctx: &Ctx, release: Release) -> bool {
    ctx.view == View::Systemd && release == Release::Newer
}

fn podman_runs_a_pod(ctx: &Ctx, release: Release) {
    if makes_slices_twice(ctx, release) {
        return;
    }
    let podman = podman(ctx, release, &busybox(ctx));
    let parent = format!("--cgroup-parent={}", cgroup_parent(ctx));
    let create = [
        "pod",
        "create",
        "--name=pod",
        "--network=none",
        "--share=pid,ipc,uts,net",
        &parent,
    ];
    podman.call(&create).ok();
    let member = |flags: &[&str], program: &[&str]| podman.run(&[&["--pod=pod"], flags].concat(), program);
    member(&["--detach", "--name=one"], &["sleep", "1000"]).ok();
    let text = member(&["--rm"], &["ps", "-o", "args"]).ok();
    assert!(text.contains("catatonit") && text.contains("sleep 1000"), "{text}");
    podman.call(&["pod", "pause", "pod"]).ok();
    let status = || podman.call(&["pod", "ps", "--format", "{{.Status}}"]).ok();
    assert_eq!(status(), "Paused\n");
    podman.call(&["pod", "unpause", "pod"]).ok();
    assert_eq!(status(), "Running\n");
    let text = podman
        .call(&["pod", "stats", "--no-stream", "--format", "{{.Name}}", "pod"])
        .ok();
    assert!(text.contains("one"), "{text}");
    podman.call(&["pod", "stop", "--time", "0", "pod"]).ok();
    podman.call(&["pod", "start", "pod"]).ok();
    let text = podman.call(&["pod", "top", "pod", "comm"]).ok();
    has_lines(&text, &["sleep"]);
    podman.call(&["pod", "rm", "--force", "--time", "0", "pod"]).ok();
    assert_eq!(podman.call(&["ps", "--all", "--quiet"]).ok(), "");
}

fn podman_plays_kubernetes_objects(ctx: &Ctx, release: Release) {
    if makes_slices_twice(ctx, release) {
        return;
    }
    let podman = podman(ctx, release, &busybox(ctx));
    let map = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": {"key": "of the map\n"}
    });
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"},
        "spec": {
            "hostNetwork": true, "restartPolicy": "Never", "securityContext": {"runAsUser": 1000},
            "containers": [{
                "name": "one", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["sh", "-c", "id -u; cat /m/key; touch /x; sleep 1000"],
                "resources": {"limits": {"memory": "64Mi"}},
                "volumeMounts": [{"name": "m", "mountPath": "/m"}, {"name": "e", "mountPath": "/e"}],
                "securityContext": {"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false}
            }],
            "volumes": [{"name": "m", "configMap": {"name": "map"}}, {"name": "e", "emptyDir": {}}]
        }
    });
    fs::write(podman.dir.join("map.yaml"), map.to_string()).unwrap();
    fs::write(podman.dir.join("pod.yaml"), pod.to_string()).unwrap();
    podman
        .call(&["play", "kube", "--configmap", "map.yaml", "pod.yaml"])
        .ok();
    let text = eventually("the log", || {
        let text = podman.call(&["logs", "pod-one"]).text;
        text.contains("Read-only").then_some(text)
    });
    has_lines(&text, &["1000", "of the map", "touch: /x: Read-only file system"]);
    assert_eq!(podman.inspect("pod-one", ".State.Status"), "running");
    if !ctx.view.has_systemd() {
        let inside = ["exec", "pod-one", "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        assert_eq!(podman.call(&inside).ok(), "67108864\n");
    }
    podman.call(&["play", "kube", "--down", "pod.yaml"]).ok();
    assert_eq!(podman.call(&["ps", "--all", "--quiet"]).ok(), "");
}
