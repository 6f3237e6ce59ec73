//! What a kubelet is told when a pod or a container cannot be run.

use proa_integration::Ctx;
use serde_json::json;

use super::super::{V1, busybox_with_guest};
use super::{Release, cri};

of_both! {
    cri_shows_why_a_container_did_not_start .views(V1).seconds(120).only_proa();
}

fn cri_shows_why_a_container_did_not_start(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox_with_guest(ctx));
    let pod = cri.pod(&json!({"annotations": {"run.oci.handler": "wasm-smart"}}));
    for (name, command, cause) in [
        ("absent", "no-such-program", "no-such-program"),
        ("component", "/component.wasm", "component"),
    ] {
        let id = cri.create(&pod, name, &[command]);
        let error = cri.ask("StartContainer", &json!({"container_id": id})).unwrap_err();
        assert!(error.contains(command) && error.contains(cause), "{error}");
    }
    cri.remove(&pod);
}
