//! Attacks that runtimes of this kind have fallen to, tried for real. Each test is named by what must not happen; the CVE
//! and its mechanism are in its comment, the table is `docs/security.md`.
//!
//! A test that finds that its attack worked fails with the words `the attack succeeded`, so that `make test-attacks` can
//! tell that from any other failure: it removes one defence at a time (`integration/attacks/`) and expects those words.

mod cgroup;
mod code_cache;
mod devices;
mod executable;
mod filesystem;
mod host_users;
mod joining;
mod process;
mod procfs;
mod state;
mod volumes;
mod wasm_bounds;
mod wasm_engine;
mod wasm_guest;
mod wasm_host;
mod wasm_policy;

use std::fs;
use std::path::{Path, PathBuf};

use proa_integration::{Bundle, Call, Ctx, Test};
use serde_json::json;

/// The tests of this module.
pub fn tests() -> Vec<Test> {
    [
        executable::tests(),
        filesystem::tests(),
        procfs::tests(),
        devices::tests(),
        process::tests(),
        cgroup::tests(),
        joining::tests(),
        code_cache::tests(),
        state::tests(),
        wasm_bounds::tests(),
        wasm_engine::tests(),
        volumes::tests(),
        host_users::tests(),
        wasm_guest::tests(),
        wasm_host::tests(),
        wasm_policy::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Demands that the attacker did not get what it wanted.
macro_rules! withstood {
    ($held:expr, $($what:tt)+) => {
        assert!($held, "the attack succeeded: {}", format_args!($($what)+))
    };
}
pub(crate) use withstood;

/// What an attacker says it got: the line that begins in capitals.
fn gained(said: &str) -> Option<&str> {
    let words = ["WROTE", "TRACED", "MADE", "REACHED"];
    said.lines()
        .find(|line| words.iter().any(|word| line.starts_with(word)))
}

/// Makes a call that an attack may have broken, or broke: what becomes of it matters not.
fn carelessly(call: Call) {
    if let Ok(running) = call.try_spawn() {
        running.wait();
    }
}

/// Puts the attackers' program into the image, as `/bin/attack`.
fn arm<'a>(ctx: &Ctx, bundle: &'a Bundle) -> &'a Bundle {
    fs::copy(&ctx.attack, bundle.path("/bin/attack")).unwrap();
    bundle
}

/// Takes out the mounts on `/dev` and below it, but for those named: the image's own `/dev` is used.
fn without_dev<'a>(bundle: &'a Bundle, but: &[&str]) -> &'a Bundle {
    bundle.writable().edit(|s| {
        s["mounts"].as_array_mut().unwrap().retain(|mount| {
            let at = mount["destination"].as_str().unwrap();
            !at.starts_with("/dev") || but.contains(&at)
        })
    })
}

/// Runs a shell script at a point of the container's making: `createRuntime` (on the host, all mounts are made),
/// `createContainer` (in the container's mount namespace, with the host's files still in sight). An attacker who wins a race
/// at that point does the same.
fn at<'a>(bundle: &'a Bundle, hook: &str, script: &str) -> &'a Bundle {
    bundle.set(
        &format!("/hooks/{hook}"),
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]),
    )
}

/// A file of the host that no container may get to.
fn marker(ctx: &Ctx) -> PathBuf {
    let path = ctx.dir.join("marker");
    fs::write(&path, "of the host").unwrap();
    path
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
