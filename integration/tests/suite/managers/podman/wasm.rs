//! Wasm under podman.

use proa_integration::Ctx;
use proa_integration::ctx::eventually;
use proa_integration::image;
use serde_json::json;

use super::super::{GUEST, WASM, busybox, busybox_with_guest};
use super::*;

of_both! {
    podman_runs_wasm .views(V1).seconds(120).only_proa();
    podman_execs_and_stops_wasm .views(PODMAN).seconds(120).only_proa();
    podman_runs_an_image_for_wasi .views(V1).seconds(120).only_proa();
    podman_shows_why_wasm_did_not_start .views(V1).seconds(120).only_proa();
}

fn podman_runs_wasm(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox_with_guest(ctx));
    let text = podman
        .run(&[&["--rm"], WASM].concat(), &["/guest.wasm", "one", "two"])
        .code(3);
    assert!(text.contains("wasm two"), "{text}");
    // No annotation but the other name.
    let said = podman.run_with("proa-wasm", &["--rm"], &[IMAGE, "/guest.wasm", "by name"]);
    let text = said.code(2);
    assert!(text.contains("wasm by name"), "{text}");

    let flags = [&["--rm", "--interactive", "--tty"], WASM].concat();
    let (mut terminal, mut child) = podman.run_on_terminal(&flags, &[IMAGE, "/guest.wasm", "ask"]);
    terminal.expect("terminal: yes");
    terminal.type_in("the answer\n");
    let text = terminal.rest();
    assert_eq!(child.wait().unwrap().code(), Some(7), "{text}");
    assert!(text.contains("heard the answer"), "{text}");
}

fn podman_execs_and_stops_wasm(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox_with_guest(ctx));
    let flags = [
        &[
            "--detach",
            "--name",
            "it",
            "--memory",
            "128m",
            "--read-only",
            "--user",
            "1000",
        ],
        WASM,
    ]
    .concat();
    podman.run(&flags, &["/guest.wasm", "loop"]).ok();
    assert_eq!(
        podman.call(&["exec", "it", "sh", "-c", "id -u; echo $FROM_IMAGE"]).ok(),
        "1000\nyes\n"
    );
    let text = podman.call(&["exec", "it", "/guest.wasm", "again"]).code(2);
    assert!(text.contains("wasm again\n"), "{text}");
    eventually("the log", || {
        podman.call(&["logs", "it"]).text.contains("ready").then_some(())
    });
    podman.call(&["pause", "it"]).ok();
    podman.call(&["unpause", "it"]).ok();
    podman.call(&["stop", "--time", "10", "it"]).ok();
    assert_eq!(podman.ended("it"), "exited 143");
    podman.call(&["start", "it"]).ok();
    podman.call(&["kill", "--signal", "INT", "it"]).ok();
    assert_eq!(podman.call(&["wait", "it"]).ok(), "130\n");
    podman.call(&["rm", "it"]).ok();
}

fn podman_runs_an_image_for_wasi(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let dir = ctx.mkdir("wasi");
    let rootfs = ctx.mkdir("wasi/rootfs");
    let module = proa_integration::wasm::compile(&dir, "guest", GUEST, &[]);
    fs::copy(module, rootfs.join("guest.wasm")).unwrap();
    let name = "example.test/guest:latest";
    let config = json!({"Entrypoint": ["/guest.wasm"]});
    let annotations = json!({"module.wasm.image/variant": "compat"});
    let archive = image::annotated(&dir, &rootfs, name, ("wasm", "wasi"), &config, &annotations);
    let policy = podman.dir.join("policy.json");
    let archive = format!("oci-archive:{}", archive.display());
    let [policy, platform] = [policy.to_str().unwrap(), "wasi/wasm"];
    podman
        .call(&["pull", "--platform", platform, "--signature-policy", policy, &archive])
        .ok();
    let flags = ["--rm", "--platform", platform, "--pull", "never"];
    // By the name, and by the annotation of the image, which podman hands on.
    for runtime in ["proa-wasm", "proa"] {
        let text = podman.run_with(runtime, &flags, &[name, "from an image"]).code(2);
        assert!(text.contains("wasm from an image"), "{text}");
    }
}

fn podman_shows_why_wasm_did_not_start(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox_with_guest(ctx));
    let flags = [&["--rm"], WASM].concat();
    podman
        .run(&flags, &["/component.wasm"])
        .refused(&["/component.wasm", "component"]);
    podman.run(&flags, &["/absent.wasm"]).refused(&["/absent.wasm"]);
    // The monitor hands no environment on, so what can be missing is the init.
    let alone = ctx.mkdir("alone").join("proa");
    fs::copy(&ctx.subject.path, &alone).unwrap();
    let said = podman.run_with(alone.to_str().unwrap(), &flags, &[IMAGE, "/guest.wasm"]);
    said.refused(&[
        "proa-wasmedge",
        "isn't installed",
        alone.parent().unwrap().to_str().unwrap(),
    ]);
}
