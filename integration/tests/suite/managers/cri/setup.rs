//! containerd as `proa setup containerd` configures it: in its file, or in a directory that this one imports.

use std::fs;
use std::path::Path;

use proa_integration::Ctx;
use serde_json::json;

use super::super::{V1, busybox_with_guest, setup};
use super::{Release, cri_with, own_configuration, path_with_runc};

of_both! {
    cri_runs_by_what_setup_wrote .views(V1).seconds(120).only_proa();
    cri_refuses_to_set_up_a_broken_configuration .views(V1).seconds(60).only_proa();
    @newer
    cri_runs_by_a_drop_in_that_setup_wrote .views(V1).seconds(120).only_proa();
}

const FILE: &str = "/etc/containerd/config.toml";

/// Makes the directories the test's own that setup writes to, with that configuration.
fn administrators(ctx: &Ctx, config: &str) {
    ctx.tmpfs(Path::new("/etc/containerd"), "mode=755");
    ctx.tmpfs(Path::new("/var/lib"), "mode=755");
    fs::write(FILE, config).unwrap();
}

/// Runs a Linux and a Wasm container by what is configured.
fn runs(ctx: &Ctx, release: Release) {
    let config = fs::read_to_string(FILE).unwrap();
    let path = path_with_runc(ctx, release);
    let mut cri = cri_with(ctx, release, &busybox_with_guest(ctx), &config, &[("PATH", &path)]);
    let pod = cri.pod(&json!({"annotations": {"run.oci.handler": "wasm", "proa.wasm/deadline": "1m"}}));
    assert_eq!(cri.shell(&pod, "linux", "echo linux", &json!({})), "linux\n");
    let id = cri.start(&pod, "wasm", &["/guest.wasm", "by setup"]);
    assert_eq!(cri.status(&id), 2);
    assert!(cri.log("wasm").contains(" stdout F wasm by setup\n"));
    // The annotation has come through: an unfit value of it is refused.
    let pod_with = |value: &str| json!({"metadata": {"name": "other"}, "annotations": {"run.oci.handler": "wasm", "proa.wasm/deadline": value}});
    let other = cri.pod(&pod_with("soon"));
    let created = cri.create_with(&other, "unfit", &["/guest.wasm"], &json!({}));
    let error = match created {
        Ok(id) => cri.ask("StartContainer", &json!({"container_id": id})).unwrap_err(),
        Err(error) => error,
    };
    assert!(error.contains("proa.wasm/deadline"), "{error}");
    cri.remove(&other);
    // The default runtime is there beside it.
    let config = cri.pod_config(&json!({"metadata": {"name": "runc"}}));
    let answer = cri.call("RunPodSandbox", json!({"config": config}));
    let runc = super::Pod {
        id: answer["pod_sandbox_id"].as_str().unwrap().to_owned(),
        config,
    };
    cri.remove(&runc);
    cri.remove(&pod);
}

fn cri_runs_by_what_setup_wrote(ctx: &Ctx, release: Release) {
    let version = if release == Release::System { 2 } else { 3 };
    let own = format!(
        "version = {version}\n# the administrator's\n{}",
        own_configuration(ctx, release)
    );
    administrators(ctx, &own);
    let path = release.path();
    let said = setup(ctx, Some(&path), &["containerd", "--write"]).ok();
    assert!(said.contains("systemctl restart containerd"), "{said}");
    assert!(
        setup(ctx, Some(&path), &["containerd", "--write"])
            .ok()
            .contains("has it already")
    );
    runs(ctx, release);
    setup(ctx, Some(&path), &["containerd", "--remove"]).ok();
    assert_eq!(fs::read_to_string(FILE).unwrap(), own);
}

fn cri_runs_by_a_drop_in_that_setup_wrote(ctx: &Ctx, release: Release) {
    let own = format!(
        "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n{}",
        own_configuration(ctx, release)
    );
    administrators(ctx, &own);
    setup(ctx, Some(&release.path()), &["containerd", "--write"]).ok();
    assert_eq!(fs::read_to_string(FILE).unwrap(), own, "only the drop-in is written");
    runs(ctx, release);
    setup(ctx, Some(&release.path()), &["containerd", "--remove"]).ok();
    assert_eq!(fs::read_dir("/etc/containerd/conf.d").unwrap().count(), 0);
}

fn cri_refuses_to_set_up_a_broken_configuration(ctx: &Ctx, release: Release) {
    for (config, words) in [
        ("version = 2\n[plugins\n", "line 2"),
        ("disabled_plugins = [\"cri\"]\n", "setup docker"),
    ] {
        administrators(ctx, config);
        let said = setup(ctx, Some(&release.path()), &["containerd", "--write"]);
        said.refused(&[FILE, words]);
        assert_eq!(fs::read_to_string(FILE).unwrap(), config);
        let entries = fs::read_dir("/etc/containerd").unwrap().count();
        assert_eq!(entries, 1, "nothing is left beside it");
    }
}
