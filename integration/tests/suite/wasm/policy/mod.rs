//! What a Wasm guest is held to: directories, sockets, names, plugins, numbers of descriptors.

mod exhausted;
pub mod files;
pub mod names;
mod network;
pub mod plugins;

use std::fs;
use std::path::PathBuf;

use proa_integration::{Bundle, Ctx, Output, Test, wasm};
use serde_json::{Value, json};

/// The tests of this module.
pub fn tests() -> Vec<Test> {
    [
        exhausted::tests(),
        files::tests(),
        names::tests(),
        network::tests(),
        plugins::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A bundle whose entrypoint is a module compiled from this source, with these annotations `proa.wasm/NAME`.
pub fn module(ctx: &Ctx, source: &str, annotations: &[(&str, &str)]) -> Bundle {
    module_with(ctx, source, &[], annotations)
}

/// The same with flags for the compiler.
fn module_with(ctx: &Ctx, source: &str, flags: &[&str], annotations: &[(&str, &str)]) -> Bundle {
    let bundle = ctx.bundle();
    let compiled = wasm::compile(&ctx.dir, "module", source, flags);
    fs::copy(compiled, bundle.path("/module.wasm")).unwrap();
    bundle.args(&["/module.wasm"]);
    annotate(&bundle, annotations);
    bundle
}

/// A guest that uses the socket extension.
const NET: &str = include_str!("net.c");

/// A bundle whose guest uses sockets, with the second generation of the extension.
pub fn net(ctx: &Ctx, annotations: &[(&str, &str)]) -> Bundle {
    module_with(ctx, NET, &["-DSECOND"], annotations)
}

/// The same with the first generation.
pub fn first_net(ctx: &Ctx, annotations: &[(&str, &str)]) -> Bundle {
    module_with(ctx, NET, &[], annotations)
}

/// Replaces a Wasm bundle's annotations.
pub fn annotate(bundle: &Bundle, annotations: &[(&str, &str)]) {
    let mut all = json!({"run.oci.handler": "wasm"});
    for (name, value) in annotations {
        all[format!("proa.wasm/{name}")] = Value::from(*value);
    }
    bundle.set("/annotations", all);
}

/// A configuration file of the administrator.
pub fn configuration(ctx: &Ctx, text: &str) -> PathBuf {
    let path = ctx.dir.join("config.toml");
    fs::write(&path, text).unwrap();
    path
}

/// Runs a container under that file.
pub fn run_under(ctx: &Ctx, configuration: &std::path::Path, bundle: &Bundle) -> Output {
    let (id, dir) = (ctx.id(), bundle.dir.to_str().unwrap().to_owned());
    ctx.call(&[
        "--config",
        configuration.to_str().unwrap(),
        "run",
        "--bundle",
        &dir,
        &id,
    ])
    .output()
}

/// The creation must fail with these words, and leave nothing.
#[track_caller]
pub fn refused(ctx: &Ctx, bundle: &Bundle, words: &[&str]) {
    let id = ctx.id();
    ctx.create_call(bundle, &id, &[]).output().refused(words);
    ctx.call(&["state", &id]).output().refused(&["does not exist"]);
}
