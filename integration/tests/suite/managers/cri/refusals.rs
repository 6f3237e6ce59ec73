//! What a kubelet is told, and puts into a pod's events, when a pod or a container cannot be run.

use std::fs;

use proa_integration::{Ctx, Kind};
use serde_json::{Value, json};

use super::super::{NO_HYBRID, V1, busybox_with_guest, unfit_programs};
use super::{Cri, Pod, Release, configuration, cri, cri_with, own_network};

of_both! {
    cri_shows_why_a_container_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_shows_why_a_pod_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_shows_why_wasm_did_not_start .views(V1).seconds(120).only_proa();
}

impl Cri<'_> {
    /// Demands that the container can't be had, be it at its creation or its start, and that the answer has these texts.
    #[track_caller]
    fn refused(&mut self, pod: &Pod, command: &[&str], change: &Value, texts: &[&str]) {
        let error = match self.create_with(pod, "refused", command, change) {
            Err(error) => error,
            Ok(id) => {
                let started = self.ask("StartContainer", &json!({"container_id": id}));
                let status = self.ended(&id);
                let error = started
                    .err()
                    .inspect(|_| assert_eq!(status["reason"], "StartError", "{status}"));
                let error = error.unwrap_or_else(|| {
                    assert_eq!(
                        self.ctx.subject.kind,
                        Kind::Runc,
                        "its start succeeds in front of what cannot be executed"
                    );
                    self.log("refused")
                });
                self.call("RemoveContainer", json!({"container_id": id}));
                error
            }
        };
        for text in texts {
            assert!(error.contains(text), "no {text:?} in {error}");
        }
    }
}

fn cri_shows_why_a_container_did_not_start(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &unfit_programs(ctx));
    let pod = cri.pod(&json!({}));
    let none = json!({});
    cri.refused(
        &pod,
        &["no-such-program"],
        &none,
        &["no-such-program", "executable file not found in $PATH"],
    );
    cri.refused(&pod, &["/etc/passwd"], &none, &["/etc/passwd", "permission denied"]);
    cri.refused(&pod, &["/other-arch"], &none, &["exec /other-arch: exec format error"]);
    let cwd = json!({"working_dir": "/etc/passwd"});
    cri.refused(&pod, &["true"], &cwd, &["/etc/passwd", "not a directory"]);
    let mount = json!({"mounts": [{"container_path": "/etc/passwd", "host_path": ctx.mkdir("volume")}]});
    cri.refused(&pod, &["true"], &mount, &["/volume", "/etc/passwd", "not a directory"]);
    let resources = |change: Value| json!({"linux": {"resources": change}});
    let memory = resources(json!({"memory_limit_in_bytes": 4096}));
    cri.refused(&pod, &["true"], &memory, &["memory limit"]);
    cri.refused(
        &pod,
        &["true"],
        &resources(json!({"cpu_quota": 5})),
        &["cpu.cfs_quota_us", "5"],
    );
    cri.refused(
        &pod,
        &["true"],
        &resources(json!({"cpuset_cpus": "4096"})),
        &["cpuset", "4096"],
    );
    let profile = ctx.dir.join("profile.json");
    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_NO"}"#).unwrap();
    let seccomp =
        json!({"linux": {"security_context": {"seccomp": {"profile_type": "Localhost", "localhost_ref": profile}}}});
    cri.refused(&pod, &["true"], &seccomp, &["seccomp", "SCMP_ACT_NO"]);
    cri.remove(&pod);
}

fn cri_shows_why_a_pod_did_not_start(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &unfit_programs(ctx));
    for (name, value, cause) in [
        ("net.ipv4.no_such", "1", "no such file or directory"),
        ("net.ipv4.ip_unprivileged_port_start", "none", "invalid argument"),
        ("vm.swappiness", "1", "not in a separate kernel namespace"),
    ] {
        let mut change = own_network();
        change["linux"]["sysctls"] = json!({name: value});
        let config = cri.pod_config(&change);
        let request = json!({"config": config, "runtime_handler": "proa"});
        let error = cri.ask("RunPodSandbox", &request).unwrap_err();
        let file = name.replace('.', "/");
        assert!(error.contains(name) || error.contains(&file), "{error}");
        assert!(error.contains(cause), "{error}");
    }
}

fn cri_shows_why_wasm_did_not_start(ctx: &Ctx, release: Release) {
    let image = busybox_with_guest(ctx);
    let annotations = json!({"annotations": {"run.oci.handler": "wasm-smart"}});
    {
        let mut cri = cri(ctx, release, &image);
        let pod = cri.pod(&annotations);
        let none = json!({});
        cri.refused(&pod, &["/component.wasm"], &none, &["/component.wasm", "component"]);
        cri.refused(&pod, &["/broken.wasm"], &none, &["/broken.wasm", "truncated"]);
        cri.refused(
            &pod,
            &["/absent.wasm"],
            &none,
            &["/absent.wasm", "no such file or directory"],
        );
        cri.remove(&pod);
    }
    let no_engine = ctx.mkdir("no-engine");
    let no_engine = no_engine.to_str().unwrap();
    let config = configuration(ctx, release);
    let mut cri = cri_with(ctx, release, &image, &config, &[("PROA_ENGINE_DIR", no_engine)]);
    let pod = cri.pod(&annotations);
    cri.refused(
        &pod,
        &["/guest.wasm"],
        &json!({}),
        &["libwasmedge.so.0", no_engine, "apt"],
    );
    cri.remove(&pod);
}
