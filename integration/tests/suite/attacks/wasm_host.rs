//! What a container can do to the host by way of a Wasm container's first process, or an `exec`'s, and what an image can make
//! the host pay.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proa_integration::ctx::eventually;
use proa_integration::{Bundle, Container, Ctx, tests, wasm};
use serde_json::json;

use super::{arm, carelessly, gained, withstood};

tests! {
    the_engines_files_cannot_be_written_to_by_what_is_mapped .once().only_proa();
    the_systems_libraries_cannot_be_written_to_by_what_is_mapped .once().only_proa();
    an_engine_without_an_overlay_cannot_be_written_to_either .once().only_proa();
    an_engine_of_links_cannot_be_written_to_either .once().only_proa();
    a_module_is_looked_at_in_the_containers_cgroup .only_proa();
    a_module_of_many_sections_is_refused .once().only_proa();
}

/// With the first two `/proc/PID/map_files` is open; the third is enough by itself, and may mount.
const CAPABILITIES: [&str; 5] = [
    "CAP_SYS_PTRACE",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_SYS_ADMIN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
];

const SLEEPS: &str =
    "#include <stdio.h>\n#include <unistd.h>\nint main(void) { puts(\"up\"); fflush(stdout); for (;;) sleep(1000); }";

/// A copy of the engine: an attack that works hurts only the copy. What only a compiler loads is not copied.
fn engine(ctx: &Ctx) -> PathBuf {
    let installed = match std::env::var_os("PROA_ENGINE_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => ctx.subject.path.parent().unwrap().with_file_name("engine/current"),
    };
    let copied = ctx.mkdir("engine");
    for entry in fs::read_dir(installed)
        .expect("an engine in a directory of its own")
        .flatten()
    {
        let (from, to) = (entry.path(), copied.join(entry.file_name()));
        match (from.read_link(), from.metadata().unwrap().len()) {
            (Ok(link), _) => symlink(link, to).unwrap(),
            (Err(_), 20_000_000..) => symlink(from, to).unwrap(),
            (Err(_), _) => drop(fs::copy(from, to).unwrap()),
        }
    }
    copied
}

/// The content of all files of a directory.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    let mut all: Vec<_> = files
        .filter(|path| path.symlink_metadata().unwrap().is_file())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    all.sort();
    all
}

/// A container whose pid namespace others share, in which the attackers' program and a module lie.
fn attacker<'a>(ctx: &'a Ctx, module: &Path) -> Container<'a> {
    let bundle = ctx.bundle();
    fs::copy(module, bundle.path("/module.wasm")).unwrap();
    arm(ctx, &bundle)
        .args(&["sleep", "1000"])
        .writable()
        .caps(&CAPABILITIES)
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    ctx.start(&bundle)
}

/// A bundle of a module that shares the pid namespace of `neighbour`.
fn guest(ctx: &Ctx, neighbour: &Container<'_>, module: &Path) -> Bundle {
    let bundle = ctx.bundle();
    fs::copy(module, bundle.path("/module.wasm")).unwrap();
    bundle
        .args(&["/module.wasm"])
        .namespace("pid", Some(&format!("/proc/{}/ns/pid", neighbour.pid())))
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    bundle
}

/// Lets the attackers' program try all that it sees, once; what it says. With `least`, so many mappings it has to have seen.
#[track_caller]
fn engrave(attacker: &Container<'_>, runtime: &Path, text: &[&str], least: usize) {
    let args = [&["/bin/attack", "engrave", "0"], text].concat();
    let said = attacker.exec_call(&[], &args).program(runtime).output();
    let said = &said.ok().stdout;
    withstood!(gained(said).is_none(), "{:?}", gained(said));
    let seen = said.lines().find_map(|line| line.strip_prefix("seen ")).unwrap();
    assert!(seen.parse::<usize>().unwrap() >= least, "{said}");
}

/// Waiting and running containers, and `exec`s, with a copy of the runtime and this engine, under a prefix command; what the
/// attacker has to see mapped of a waiting one.
fn engraved(ctx: &Ctx, engine: &Path, prefix: &[&str], least: usize) {
    let module = wasm::compile(&ctx.dir, "sleeps", SLEEPS, &[]);
    let runtime = super::executable::copy(ctx);
    let programs = runtime.parent().unwrap();
    let before = (content(programs), content(engine));
    let attacker = attacker(ctx, &module);
    let bundle = guest(ctx, &attacker, &module);
    let container = ctx.container(&bundle);
    let with_engine = |call: proa_integration::Call| {
        let call = call.program(&runtime).env("PROA_ENGINE_DIR", engine.to_str().unwrap());
        if prefix.is_empty() { call } else { call.under(prefix) }
    };
    let said = ctx.dir.join("guest");
    let call = ctx.create_call(&bundle, &container.id, &[]).stdout_to(&said);
    with_engine(call).output().ok();
    engrave(&attacker, &runtime, &["x"], least);
    container.start();
    let runs = || fs::read_to_string(&said).unwrap().contains("up").then_some(());
    eventually("the guest runs", runs);
    engrave(&attacker, &runtime, &["x"], least);
    // While something enters, and what has entered.
    let watching = attacker
        .exec_call(&[], &["/bin/attack", "engrave", "3", "x"])
        .program(&runtime);
    let watching = watching.spawn();
    eventually("the attacker", || watching.stdout().contains("watching").then_some(()));
    for _ in 0..6 {
        carelessly(with_engine(attacker.exec_call(&["--detach"], &["/module.wasm"])));
    }
    let said = watching.wait();
    withstood!(gained(&said.stdout).is_none(), "{:?}", gained(&said.stdout));
    engrave(&attacker, &runtime, &["x"], 2 * least);
    let after = (content(programs), content(engine));
    withstood!(before == after, "the runtime's or the engine's files were changed");
}

/// `/proc/PID/map_files` opens the file of each mapping: the engine's libraries, the hull, the loader.
fn the_engines_files_cannot_be_written_to_by_what_is_mapped(ctx: &Ctx) {
    engraved(ctx, &engine(ctx), &[], 20);
}

/// The same where there is no overlay: what was loaded is in memory only.
fn an_engine_without_an_overlay_cannot_be_written_to_either(ctx: &Ctx) {
    let mask = [ctx.probe.to_str().unwrap(), "mask", "fsopen,open_tree"];
    engraved(ctx, &engine(ctx), &mask, 0);
}

/// The same with an engine's directory of links that lead out of it, where the overlay does not reach.
fn an_engine_of_links_cannot_be_written_to_either(ctx: &Ctx) {
    let copied = engine(ctx);
    let elsewhere = ctx.mkdir("elsewhere");
    for name in ["libwasmedge.so.0", "libstdc++.so.6"] {
        fs::rename(copied.join(name), elsewhere.join(name)).unwrap();
        symlink(elsewhere.join(name), copied.join(name)).unwrap();
    }
    let before = content(&elsewhere);
    engraved(ctx, &copied, &[], 10);
    withstood!(before == content(&elsewhere), "the engine's files were changed");
}

/// A hull without a loader of its own is loaded from the system's directories. The attacker only opens what it finds: these files
/// are the host's own.
fn the_systems_libraries_cannot_be_written_to_by_what_is_mapped(ctx: &Ctx) {
    let module = wasm::compile(&ctx.dir, "sleeps", SLEEPS, &[]);
    let runtime = super::executable::copy(ctx);
    let attacker = attacker(ctx, &module);
    let bundle = guest(ctx, &attacker, &module);
    // A Linux program in a container that is marked for Wasm: the hull waits, without an engine.
    bundle.args(&["sleep", "1000"]);
    let container = ctx.container(&bundle);
    let call = ctx.create_call(&bundle, &container.id, &[]).program(&runtime);
    call.env("PROA_ENGINE_DIR", "").output().ok();
    let maps = fs::read_to_string(format!("/proc/{}/maps", container.pid())).unwrap();
    assert!(maps.contains("proa-wasmedge") && maps.contains("libc.so.6"), "{maps}");
    engrave(&attacker, &runtime, &[], 8);
}

/// What an image makes an `exec` cost is the container's to pay: its first process is in the container's cgroup before it looks at
/// the module. In one that is frozen, it comes no further.
fn a_module_is_looked_at_in_the_containers_cgroup(ctx: &Ctx) {
    let module = wasm::compile(&ctx.dir, "sleeps", SLEEPS, &[]);
    let bundle = ctx.bundle();
    fs::copy(&module, bundle.path("/module.wasm")).unwrap();
    bundle
        .args(&["sleep", "1000"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    let container = ctx.start(&bundle);
    container.verb(&["pause"]).ok();
    let entering = container.exec_call(&["--ignore-paused"], &["/module.wasm"]).spawn();
    let init = container.pid();
    let entered = eventually("a process enters the cgroup", || {
        let processes = container.cgroup_file("freezer", "cgroup.procs");
        let all = processes.lines().filter_map(|pid| pid.parse::<u32>().ok());
        all.into_iter().find(|pid| *pid != 0 && *pid != init)
    });
    let maps = fs::read_to_string(format!("/proc/{entered}/maps")).unwrap();
    withstood!(
        !maps.contains("libwasmedge"),
        "the module and the engine are loaded outside of the container's cgroup"
    );
    container.verb(&["resume"]).ok();
    eventually("the guest", || entering.stdout().contains("up").then_some(()));
    container.kill("KILL");
    entering.wait();
}

/// Whatever number of things a module has, nothing of proa grows with it.
fn a_module_of_many_sections_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let compiled = b"\0\x09\x08wasmedge";
    let module = [b"\0asm\x01\0\0\0", compiled.repeat(1_000_000).as_slice()].concat();
    fs::write(bundle.path("/module.wasm"), &module).unwrap();
    bundle
        .args(&["sleep", "1000"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    let container = ctx.start(&bundle);
    let words = ["more than 16 custom sections called \"wasmedge\""];
    let out = container.exec_call(&[], &["/module.wasm"]).output();
    withstood!(out.stderr.contains(words[0]), "{out:?}");
    out.refused(&words);
    let first = ctx.bundle();
    fs::write(first.path("/module.wasm"), &module).unwrap();
    first
        .args(&["/module.wasm"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    ctx.create_call(&first, &ctx.id(), &[]).output().refused(&words);
}
