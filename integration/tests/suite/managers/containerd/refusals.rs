//! What a user of `ctr` is told when a container cannot be run.

use proa_integration::Ctx;

use super::super::{NO_HYBRID, V1, WASM, busybox, busybox_with_guest};
use super::{NO_CRI, Release, containerd, start};

of_both! {
    containerd_shows_why_a_container_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_shows_why_wasm_did_not_start .views(V1).seconds(120).only_proa();
}

fn containerd_shows_why_a_container_did_not_start(ctx: &Ctx, release: Release) {
    // The shim reads the reason from the runtime's JSON log.
    let containerd = containerd(ctx, release, &busybox(ctx));
    let said = containerd.run(&["--rm"], &ctx.id(), &["no-such-program"]);
    said.refused(&["no-such-program", "not found"]);
    let said = containerd.run(&["--rm"], &ctx.id(), &["/etc/passwd"]);
    said.refused(&["/etc/passwd", "permission denied"]);
}

fn containerd_shows_why_wasm_did_not_start(ctx: &Ctx, release: Release) {
    let no_engine = ctx.mkdir("no-engine");
    let image = busybox_with_guest(ctx);
    let flags = [&["--rm"], WASM].concat();
    {
        let containerd = start(ctx, release, NO_CRI, &[]);
        containerd.import(&image);
        let said = containerd.run(&flags, &ctx.id(), &["/component.wasm"]);
        said.refused(&["/component.wasm", "component"]);
        let said = containerd.run(&flags, &ctx.id(), &["/absent.wasm"]);
        said.refused(&["/absent.wasm"]);
        let other = ["--rm", "--annotation", "run.oci.handler=wasmtime"];
        let said = containerd.run(&other, &ctx.id(), &["/guest.wasm"]);
        said.refused(&["run.oci.handler=wasmtime", "WasmEdge"]);
        assert_eq!(containerd.ctr(&["task", "ls", "--quiet"]).ok(), "");
    }
    // The shim inherits containerd's environment, and proa the shim's.
    let containerd = start(
        ctx,
        release,
        NO_CRI,
        &[("PROA_ENGINE_DIR", no_engine.to_str().unwrap())],
    );
    let said = containerd.run(&flags, &ctx.id(), &["/guest.wasm"]);
    said.refused(&["libwasmedge.so.0", no_engine.to_str().unwrap(), "apt"]);
}
