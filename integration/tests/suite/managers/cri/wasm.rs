//! A pod with a Linux sidecar and a Wasm container, its pause container native.

use proa_integration::Ctx;
use serde_json::json;

use super::super::{V1, busybox_with_guest};
use super::{DRIVERS, Release, cri};

of_both! {
    cri_runs_wasm_beside_a_linux_sidecar .views(DRIVERS).seconds(120).only_proa();
    cri_shares_a_pods_pid_namespace .views(V1).seconds(120).only_proa();
}

pub fn cri_runs_wasm_beside_a_linux_sidecar(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox_with_guest(ctx));
    for (n, annotations) in [
        json!({"run.oci.handler": "wasm"}),
        json!({"module.wasm.image/variant": "compat-smart"}),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = cri.pod(&json!({"annotations": annotations}));
        let name = |what: &str| format!("{what}{n}");
        let sidecar = cri.start(&pod, &name("sidecar"), &["sh", "-c", "echo a shell; exec sleep 1000"]);
        let looping = cri.start(&pod, &name("loop"), &["/guest.wasm", "loop"]);
        let ended = cri.start(&pod, &name("ended"), &["/guest.wasm", "one", "two"]);
        assert_eq!(cri.status(&ended), 3);
        assert!(cri.log(&name("ended")).contains(" stdout F wasm two\n"));
        assert!(cri.log(&name("ended")).contains(" stderr F wasm to stderr\n"));
        assert_eq!(cri.exec(&sidecar, &["cat", "/proc/1/comm"]), (0, "sleep\n".to_owned()));
        assert_eq!(
            cri.exec(&looping, &["sh", "-c", "echo $FROM_POD"]),
            (0, "yes\n".to_owned())
        );
        assert_eq!(
            cri.exec(&looping, &["/guest.wasm", "again"]),
            (2, "wasm again\n".to_owned())
        );
        let stats = cri.call("ContainerStats", json!({"container_id": looping}));
        assert!(
            stats.pointer("/stats/memory/working_set_bytes/value").is_some(),
            "{stats}"
        );
        assert_eq!(cri.stop(&looping, 10), 143);
        assert_eq!(cri.stop(&sidecar, 0), 137);
        cri.remove(&pod);
    }
}

fn cri_shares_a_pods_pid_namespace(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox_with_guest(ctx));
    let pod = cri.pod(&json!({"annotations": {"run.oci.handler": "wasm"}, "linux": {"security_context": {"namespace_options": {"pid": "POD"}}}}));
    let sidecar = cri.start(&pod, "sidecar", &["sleep", "1000"]);
    let looping = cri.start(&pod, "loop", &["/guest.wasm", "loop"]);
    let (_, seen) = cri.exec(&sidecar, &["ps", "-o", "comm"]);
    assert!(seen.contains("pause") && seen.contains("sleep"), "{seen}");
    assert_eq!(cri.exec(&looping, &["cat", "/proc/1/comm"]), (0, "pause\n".to_owned()));
    assert_eq!(cri.stop(&looping, 10), 143);
    assert_eq!(cri.stop(&sidecar, 10), 143);
    cri.remove(&pod);
}
