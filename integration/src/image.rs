//! Images made by hand: an OCI layout in a tar archive, as registries and managers exchange it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Packs a directory as the only layer of an image called `name`, for `architecture/os` of `platform`; the archive's path.
///
/// `config` is the image's `config` object (`Entrypoint`, `Env`, …).
pub fn archive(dir: &Path, rootfs: &Path, name: &str, platform: (&str, &str), config: &Value) -> PathBuf {
    annotated(dir, rootfs, name, platform, config, &json!({}))
}

/// The same with annotations in the image's manifest.
pub fn annotated(
    dir: &Path,
    rootfs: &Path,
    name: &str,
    platform: (&str, &str),
    config: &Value,
    annotations: &Value,
) -> PathBuf {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("layout");
    let layer = dir.join("layer.tar");
    tar(rootfs, &layer);
    let (layer_digest, layer_size) = blob(&blobs, &fs::read(&layer).expect("layer"));
    let image = json!({
        "architecture": platform.0, "os": platform.1, "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]}, "history": [{"created_by": "by hand"}]
    });
    let (image_digest, image_size) = blob(&blobs, image.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": image_digest, "size": image_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer_size}],
        "annotations": annotations
    });
    let (manifest_digest, manifest_size) = blob(&blobs, manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest_digest, "size": manifest_size,
        "platform": {"architecture": platform.0, "os": platform.1},
        "annotations": {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}
    }]});
    fs::write(layout.join("index.json"), index.to_string()).expect("index.json");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("oci-layout");
    // Docker's own list, for a Docker that does not read layouts yet: the same files.
    let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let list = json!([{"Config": path(&image_digest), "RepoTags": [name], "Layers": [path(&layer_digest)]}]);
    fs::write(layout.join("manifest.json"), list.to_string()).expect("manifest.json");
    let archive = dir.join("image.tar");
    tar(&layout, &archive);
    archive
}

/// This machine's architecture in the images' words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tar(dir: &Path, to: &Path) {
    let status = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .arg("-cf")
        .arg(to)
        .arg(".")
        .status()
        .expect("tar");
    assert!(status.success(), "tar {}: {status}", dir.display());
}

fn blob(blobs: &Path, bytes: &[u8]) -> (String, usize) {
    let file = blobs.join("new");
    fs::write(&file, bytes).expect("blob");
    let out = Command::new("sha256sum")
        .arg(&file)
        .stderr(Stdio::inherit())
        .output()
        .expect("sha256sum")
        .stdout;
    let digest = String::from_utf8_lossy(&out)
        .split(' ')
        .next()
        .expect("a digest")
        .to_owned();
    fs::rename(&file, blobs.join(&digest)).expect("blob");
    (format!("sha256:{digest}"), bytes.len())
}
