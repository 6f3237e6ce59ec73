//! How the engine is loaded: with a stand-in for its compiler where that can be, and as it is where not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use proa_integration::ctx::{Call, eventually};
use proa_integration::{Bundle, Ctx, tests};
use serde_json::json;

tests! {
    the_compiler_is_not_loaded .only_proa();
    the_compiler_is_not_loaded_for_an_exec .once().only_proa();
    an_engine_whose_imports_cannot_be_read_is_loaded_as_it_is .once().only_proa();
    kernels_without_unexecutable_memfds_do_as_well .once().only_proa();
    the_configuration_file_names_the_engine .once().only_proa();
    the_environment_s_engine_comes_first .once().only_proa();
    what_only_loading_took_is_given_back .once().only_proa();
}

/// Ends with 7 after a line, or the end of the input.
const WAITS: &str = r#"
#include <stdio.h>

int main(void)
{
	getchar();
	return 7;
}
"#;

/// Says `ready`, and stays.
const SLEEPS: &str = r#"
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	puts("ready");
	fflush(stdout);
	for (;;)
		sleep(1000);
}
"#;

fn waiting(ctx: &Ctx) -> Bundle {
    super::module(ctx, WAITS)
}

/// `run` of a container of the bundle, with these options for all verbs.
fn run(ctx: &Ctx, bundle: &Bundle, options: &[&str]) -> Call {
    let id = ctx.id();
    let verb = ["run", "--bundle", bundle.dir.to_str().unwrap(), &id];
    ctx.call(&[options, &verb].concat())
}

const LIBRARY: &str = "libwasmedge.so.0";

/// The engine that proa finds here.
fn engine(ctx: &Ctx) -> PathBuf {
    let beside = ctx.subject.path.parent().unwrap().with_file_name("engine/current");
    let prefix = std::env::var_os("PROA_ENGINE_DIR").map_or(beside, PathBuf::from);
    if prefix.join(LIBRARY).exists() {
        return prefix;
    }
    let out = Command::new("sh")
        .args(["-c", "PATH=$PATH:/sbin:/usr/sbin ldconfig -p"])
        .output()
        .unwrap();
    let cache = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = cache.lines().find(|line| line.contains(LIBRARY)).expect("an engine");
    Path::new(line.split(" => ").nth(1).unwrap())
        .parent()
        .unwrap()
        .to_owned()
}

/// The names of libraries that a process has loaded.
#[track_caller]
fn loaded(pid: u32) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let files = maps
        .lines()
        .filter_map(|line| line.split_once('/'))
        .map(|(_, path)| path);
    let mut names: Vec<_> = files.map(|path| path.rsplit('/').next().unwrap().to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

#[track_caller]
fn without_compiler(pid: u32) {
    let names = loaded(pid);
    assert!(names.iter().any(|name| name == LIBRARY), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("libLLVM")), "{names:?}");
    let stand_ins = names
        .iter()
        .filter(|name| name.starts_with("memfd:stand-in for libLLVM"));
    assert_eq!(stand_ins.count(), 1, "{names:?}");
    // Nor what only the compiler needs; and of the stand-in, nothing can be executed.
    assert!(
        !names
            .iter()
            .any(|name| name.starts_with("libz3") || name.starts_with("libxml2")),
        "{names:?}"
    );
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    for line in maps.lines().filter(|line| line.contains("stand-in")) {
        assert!(
            line.split(' ').nth(1).is_some_and(|rights| !rights.contains('x')),
            "{line}"
        );
    }
}

fn the_compiler_is_not_loaded(ctx: &Ctx) {
    let bundle = super::module(ctx, SLEEPS);
    let container = ctx.start(&bundle);
    container.says("ready");
    without_compiler(container.pid());
}

fn the_compiler_is_not_loaded_for_an_exec(ctx: &Ctx) {
    let bundle = super::module(ctx, SLEEPS);
    let container = ctx.start(&bundle);
    container.says("ready");
    let pid_file = ctx.dir.join("exec.pid");
    container
        .exec_with(
            &["--detach", "--pid-file", pid_file.to_str().unwrap()],
            &["/module.wasm"],
        )
        .ok();
    without_compiler(fs::read_to_string(pid_file).unwrap().trim().parse().unwrap());
}

/// A prefix like the installed engine's, but its library has no section headers, which no loader looks at.
fn an_engine_whose_imports_cannot_be_read_is_loaded_as_it_is(ctx: &Ctx) {
    let bundle = waiting(ctx);
    let prefix = ctx.mkdir("engine");
    let installed = fs::canonicalize(engine(ctx)).unwrap();
    for entry in fs::read_dir(&installed).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        // In a system's directory there is more, which its loader finds there.
        if name != LIBRARY && installed.join("ld.so").exists() {
            symlink(entry.path(), prefix.join(&name)).unwrap();
        }
    }
    let mut library = fs::read(installed.join(LIBRARY)).unwrap();
    // e_shoff, and e_shnum with e_shstrndx.
    library[40..48].fill(0);
    library[60..64].fill(0);
    fs::write(prefix.join(LIBRARY), library).unwrap();

    let run = |ctx| run(ctx, &bundle, &["--debug"]);
    let out = run(ctx).env("PROA_ENGINE_DIR", prefix.to_str().unwrap()).output();
    out.code(7);
    let reason = "the engine is loaded with its compiler: ";
    assert!(out.log.contains(reason) && out.log.contains(LIBRARY), "{out:?}");
    // And where they can be read, it isn't said.
    let out = run(ctx).output();
    assert!(!out.code(7).log.contains(reason), "{out:?}");
}

fn kernels_without_unexecutable_memfds_do_as_well(ctx: &Ctx) {
    let bundle = waiting(ctx);
    let probe = ctx.probe.to_str().unwrap();
    let out = run(ctx, &bundle, &["--debug"])
        .under(&[probe, "mask", "memfd-exec"])
        .output();
    assert!(
        !out.code(7).log.contains("the engine is loaded with its compiler"),
        "{out:?}"
    );
}

/// A configuration file that names this directory as the engine's.
fn configuration(ctx: &Ctx, engine: &Path) -> PathBuf {
    let file = ctx.dir.join("config.toml");
    fs::write(
        &file,
        format!("[wasm]\nengine-dir = {}\n", json!(engine.to_str().unwrap())),
    )
    .unwrap();
    file
}

fn the_configuration_file_names_the_engine(ctx: &Ctx) {
    let bundle = waiting(ctx);
    let engine = engine(ctx);
    let call = |dir: &Path| {
        let file = configuration(ctx, dir);
        let options = ["--config", file.to_str().unwrap()];
        run(ctx, &bundle, &options).env("PROA_ENGINE_DIR", "").output()
    };
    call(&engine).code(7);
    let nowhere = ctx.mkdir("no-engine");
    call(&nowhere).refused(&[LIBRARY, nowhere.to_str().unwrap()]);
}

fn the_environment_s_engine_comes_first(ctx: &Ctx) {
    let bundle = waiting(ctx);
    let file = configuration(ctx, &ctx.mkdir("no-engine"));
    run(ctx, &bundle, &["--config", file.to_str().unwrap()])
        .env("PROA_ENGINE_DIR", engine(ctx).to_str().unwrap())
        .output()
        .code(7);
}

/// Of how many KiB of the engine's library this process has pages in memory, and of how many of them they are its own.
#[track_caller]
fn resident(pid: u32) -> [u64; 2] {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut sums = [0, 0];
    let mut engine = false;
    for line in smaps.lines() {
        match line.split_once(':') {
            // The first line of a mapping has its file, or numbers of its device.
            Some((name, value)) if !name.contains(' ') => {
                let kib = || value.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
                match name {
                    "Rss" if engine => sums[0] += kib(),
                    "Anonymous" if engine => sums[1] += kib(),
                    _ => {}
                }
            }
            _ => engine = line.ends_with(LIBRARY),
        }
    }
    sums
}

/// Relocating and loading touch most of the engine's constants and a third of its code.
fn what_only_loading_took_is_given_back(ctx: &Ctx) {
    let bundle = super::module(ctx, SLEEPS);
    let container = ctx.create(&bundle);
    let [all, own] = given_back(container.pid(), 256);
    assert!(own > 0, "{all} KiB, {own} of its own");
    container.start().says("ready");
    let [all, own] = given_back(container.pid(), 256);
    assert!(own > 0, "{all} KiB, {own} of its own");
}

/// Waits until the process has at most so many KiB of the library's file in memory.
#[track_caller]
fn given_back(pid: u32, most: u64) -> [u64; 2] {
    eventually("the library's pages to be given back", || {
        let [all, own] = resident(pid);
        (all - own <= most).then_some([all, own])
    })
}
