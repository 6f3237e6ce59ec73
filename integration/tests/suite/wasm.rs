//! Wasm entrypoints: recognised, run in the container's first process, confined like any other.

pub mod aot;
mod compiler;
mod guest;
mod inspection;
mod load;
mod mutated;
pub mod policy;
mod programs;
mod recognition;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proa_integration::ctx::eventually;
use proa_integration::{Bundle, Container, Ctx, Output, Test, View, tests, wasm};
use serde_json::json;

tests! {
    arguments_environment_and_streams_arrive .once().only_proa();
    the_exit_status_is_the_guests .once().only_proa();
    a_trap_is_134_and_named .once().only_proa();
    sigterm_ends_the_guest_with_143 .only_proa();
    sigint_ends_the_guest_with_130 .once().only_proa();
    sigkill_ends_the_guest_with_137 .once().only_proa();
    files_of_the_container_can_be_read_and_written .once().only_proa();
    a_readonly_root_is_readonly_for_the_guest .once().only_proa();
    the_hosts_files_are_out_of_reach .once().only_proa();
    mounts_of_the_bundle_are_seen .once().only_proa();
    the_memory_limit_bounds_the_guests_pages .only_proa().views(&[View::Hybrid, View::V1]);
    namespaces_capabilities_and_seccomp_hold_for_the_engine .once().only_proa();
    only_the_standard_streams_and_preopens_are_open .once().only_proa();
    every_annotation_of_crun_is_understood .once().only_proa();
    compat_smart_runs_a_linux_program_natively .once().only_proa();
    handler_none_refuses_wasm .once().only_proa();
    the_alias_forces_wasm .once().only_proa();
    a_pause_container_runs_natively .once().only_proa();
    a_sidecar_with_an_elf_entrypoint_runs_natively .once().only_proa();
    a_component_is_refused_by_name .once().only_proa();
    a_truncated_module_is_refused .once().only_proa();
    something_else_than_wasm_is_refused .once().only_proa();
    a_module_that_is_absent_is_refused .once().only_proa();
    a_reactor_is_refused_by_name .once().only_proa();
    lifecycle_verbs_work .only_proa();
    pause_stops_the_guest .only_proa();
    exec_runs_a_linux_program .once().only_proa();
    exec_runs_another_module .once().only_proa();
    a_terminal_reaches_the_guest .once().only_proa();
    the_program_is_found_through_path_and_cwd .once().only_proa();
    user_namespaces_work .once().only_proa();
    an_installation_only_root_can_reach_serves_user_namespaces .once().only_proa();
    a_missing_engine_is_said_with_where_and_how_to_get_it .once().only_proa();
}

/// All of them.
pub fn all() -> Vec<Test> {
    [
        tests(),
        aot::tests(),
        compiler::tests(),
        guest::tests(),
        load::tests(),
        mutated::tests(),
        policy::tests(),
        programs::tests(),
        recognition::tests(),
        inspection::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const HELLO: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
	char line[64] = "";
	fgets(line, sizeof line, stdin);
	line[strcspn(line, "\n")] = 0;
	printf("args %d:", argc - 1);
	for (int i = 1; i < argc; i++)
		printf(" [%s]", argv[i]);
	printf("\nenv %s\nstdin %s\n", getenv("GREETING") ? getenv("GREETING") : "none", line);
	fprintf(stderr, "to stderr\n");
	return argc > 1 ? atoi(argv[1]) : 0;
}
"#;

const LOOP: &str = r#"
#include <stdio.h>

int main(void)
{
	volatile unsigned long n = 0;
	puts("ready");
	fflush(stdout);
	for (;;)
		n++;
}
"#;

const FILES: &str = r#"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* cat FILE | ls DIR | write FILE TEXT */
int main(int argc, char **argv)
{
	char text[256];
	if (!strcmp(argv[1], "ls")) {
		DIR *d = opendir(argv[2]);
		struct dirent *e;
		if (!d)
			return printf("error: %s\n", strerror(errno)), 1;
		while ((e = readdir(d)))
			puts(e->d_name);
		return 0;
	}
	FILE *f = fopen(argv[2], !strcmp(argv[1], "cat") ? "r" : "w");
	if (!f)
		return printf("error: %s\n", strerror(errno)), 1;
	if (argc > 3)
		fputs(argv[3], f);
	else
		while (fgets(text, sizeof text, f))
			fputs(text, stdout);
	return fclose(f) ? 1 : 0;
}
"#;

/// A bundle whose entrypoint is a module compiled from this source, marked as crun's callers do.
fn module(ctx: &Ctx, source: &str) -> Bundle {
    let bundle = ctx.bundle();
    let module = wasm::compile(&ctx.dir, "module", source, &[]);
    fs::copy(module, bundle.path("/module.wasm")).unwrap();
    bundle
        .args(&["/module.wasm"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    bundle
}

/// A bundle whose entrypoint is these bytes.
fn bytes(ctx: &Ctx, bytes: &[u8]) -> Bundle {
    let bundle = ctx.bundle();
    fs::write(bundle.path("/module.wasm"), bytes).unwrap();
    bundle
        .args(&["/module.wasm"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    bundle
}

/// The creation must fail with these words, and leave nothing.
#[track_caller]
fn refused(ctx: &Ctx, bundle: &Bundle, words: &[&str]) -> Output {
    let id = ctx.id();
    let out = ctx.create_call(bundle, &id, &[]).output();
    out.refused(words);
    ctx.call(&["state", &id]).output().refused(&["does not exist"]);
    out
}

fn arguments_environment_and_streams_arrive(ctx: &Ctx) {
    let bundle = module(ctx, HELLO);
    bundle
        .args(&["/module.wasm", "0", "a b", ""])
        .set("/process/env", json!(["GREETING=ahoy", "PATH=/bin"]));
    let out = ctx
        .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()])
        .stdin(b"typed\n")
        .output();
    assert_eq!(out.ok().stdout, "args 3: [0] [a b] []\nenv ahoy\nstdin typed\n");
    assert_eq!(out.stderr, "to stderr\n");
}

fn the_exit_status_is_the_guests(ctx: &Ctx) {
    let bundle = module(ctx, HELLO);
    for code in [0, 1, 42, 255] {
        bundle.args(&["/module.wasm", &code.to_string()]);
        ctx.run(&bundle).code(code);
    }
}

fn a_trap_is_134_and_named(ctx: &Ctx) {
    let bundle = module(ctx, "int main(void) { __builtin_trap(); }");
    let out = ctx.run(&bundle);
    out.code(134);
    assert!(out.stderr.contains("unreachable"), "{out:?}");
    let mut lines = out.stderr.lines();
    assert!(
        lines.next().is_some_and(|line| line.starts_with("proa: wasm trap: ")),
        "{out:?}"
    );
    assert!(lines.all(|line| line.starts_with("proa:   at ")), "{out:?}");
}

fn ends_by(ctx: &Ctx, signal: &str, code: i32) {
    let bundle = module(ctx, LOOP);
    let container = ctx.container(&bundle);
    let running = ctx
        .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &container.id])
        .spawn();
    eventually("ready", || running.stdout().contains("ready").then_some(()));
    ctx.call(&["kill", &container.id, signal]).output().ok();
    running.wait().code(code);
}

fn sigterm_ends_the_guest_with_143(ctx: &Ctx) {
    ends_by(ctx, "TERM", 143);
}

fn sigint_ends_the_guest_with_130(ctx: &Ctx) {
    ends_by(ctx, "INT", 130);
}

fn sigkill_ends_the_guest_with_137(ctx: &Ctx) {
    ends_by(ctx, "KILL", 137);
}

fn files_of_the_container_can_be_read_and_written(ctx: &Ctx) {
    let bundle = module(ctx, FILES);
    bundle
        .writable()
        .file("/etc/mark", "the mark")
        .args(&["/module.wasm", "cat", "/etc/mark"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "the mark");
    bundle.args(&["/module.wasm", "write", "/tmp/made", "by the guest"]);
    ctx.run(&bundle).ok();
    assert_eq!(fs::read_to_string(bundle.path("/tmp/made")).unwrap(), "by the guest");
}

fn a_readonly_root_is_readonly_for_the_guest(ctx: &Ctx) {
    let bundle = module(ctx, FILES);
    bundle.args(&["/module.wasm", "write", "/tmp/made", "x"]);
    let out = ctx.run(&bundle);
    out.code(1);
    assert!(out.stdout.contains("error:"), "{out:?}");
    assert!(!bundle.path("/tmp/made").exists());
}

fn the_hosts_files_are_out_of_reach(ctx: &Ctx) {
    let bundle = module(ctx, FILES);
    let host = ctx.dir.join("host-secret");
    fs::write(&host, "host secret").unwrap();
    symlink(&host, bundle.path("/link")).unwrap();
    let up = format!("/../../../../../../..{}", host.display());
    for path in [host.to_str().unwrap(), "/link", &up] {
        bundle.args(&["/module.wasm", "cat", path]);
        let out = ctx.run(&bundle);
        assert!(!out.stdout.contains("host secret") && out.code != 0, "{path}: {out:?}");
    }
}

fn mounts_of_the_bundle_are_seen(ctx: &Ctx) {
    let bundle = module(ctx, FILES);
    let dir = ctx.mkdir("volume");
    fs::write(dir.join("file"), "from a volume").unwrap();
    bundle
        .bind(&dir, "/data", &["bind"])
        .args(&["/module.wasm", "cat", "/data/file"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "from a volume");
}

const GROW: &str = r#"
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	int mib = 0;
	/* Kept, or the compiler leaves the calls out. */
	static void *volatile kept;
	while (mib < 512 && (kept = malloc(1 << 20)))
		mib++;
	printf("%d\n", mib);
}
"#;

fn the_memory_limit_bounds_the_guests_pages(ctx: &Ctx) {
    let grown = |limit: Option<u64>| -> u32 {
        let bundle = module(ctx, GROW);
        if let Some(limit) = limit {
            bundle.set("/linux/resources/memory", json!({"limit": limit}));
        }
        ctx.run(&bundle).ok().text().parse().unwrap()
    };
    assert_eq!(grown(None), 512);
    // The guest sees its own malloc fail; it is not killed.
    let bounded = grown(Some(128 << 20));
    assert!(bounded < 128, "a guest limited to 128 MiB took {bounded}");
}

fn status(container: &Container) -> String {
    fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap()
}

fn namespaces_capabilities_and_seccomp_hold_for_the_engine(ctx: &Ctx) {
    let bundle = module(ctx, LOOP);
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000})).set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}]}),
    );
    let container = ctx.start(&bundle);
    container.says("ready");
    let status = status(&container);
    for line in [
        "Uid:\t1000\t1000\t1000\t1000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line} in {status}");
    }
    for kind in ["mnt", "pid", "net", "ipc", "uts"] {
        let inside = fs::read_link(format!("/proc/{}/ns/{kind}", container.pid())).unwrap();
        assert_ne!(
            inside,
            fs::read_link(format!("/proc/self/ns/{kind}")).unwrap(),
            "{kind}"
        );
    }
    let root = fs::read_dir(format!("/proc/{}/root", container.pid())).unwrap();
    assert!(root.flatten().any(|e| e.file_name() == "module.wasm"));
}

fn only_the_standard_streams_and_preopens_are_open(ctx: &Ctx) {
    let container = ctx.start(&module(ctx, LOOP));
    container.says("ready");
    let outside: Vec<String> = fs::read_dir(format!("/proc/{}/fd", container.pid()))
        .unwrap()
        .flatten()
        .filter_map(|e| fs::read_link(e.path()).ok())
        .map(|l| l.display().to_string())
        .filter(|l| {
            l.starts_with("socket:") || l.contains("/cgroup") || l.ends_with("config.json") || l.contains("/root/pt")
        })
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
}

fn every_annotation_of_crun_is_understood(ctx: &Ctx) {
    let bundle = module(ctx, HELLO);
    for (key, value) in [
        ("run.oci.handler", "wasm"),
        ("run.oci.handler", "wasm-smart"),
        ("run.oci.handler", "wasmedge"),
        ("module.wasm.image/variant", "compat"),
        ("module.wasm.image/variant", "compat-smart"),
    ] {
        bundle.set("/annotations", json!({key: value}));
        let out = ctx.run(&bundle);
        assert!(out.ok().stdout.starts_with("args 0:"), "{key}={value}: {out:?}");
    }
}

fn compat_smart_runs_a_linux_program_natively(ctx: &Ctx) {
    for (key, value) in [
        ("run.oci.handler", "wasm-smart"),
        ("module.wasm.image/variant", "compat-smart"),
    ] {
        let text = ctx.shell("echo native", |b| b.set("/annotations", json!({key: value})));
        assert_eq!(text, "native\n");
    }
}

fn handler_none_refuses_wasm(ctx: &Ctx) {
    let bundle = module(ctx, HELLO);
    bundle.set(
        "/annotations",
        json!({"run.oci.handler": "none", "module.wasm.image/variant": "compat"}),
    );
    assert_ne!(ctx.run(&bundle).code, 0);
}

fn the_alias_forces_wasm(ctx: &Ctx) {
    let bundle = module(ctx, HELLO);
    bundle.edit(|s| drop(s.as_object_mut().unwrap().remove("annotations")));
    let alias = ctx.subject.path.with_file_name("proa-wasm");
    let dir = ctx.mkdir("alias");
    // Beside the real executables where an alias is installed there; a link elsewhere otherwise.
    let alias = if alias.exists() { alias } else { dir.join("proa-wasm") };
    if !alias.exists() {
        symlink(&ctx.subject.path, &alias).unwrap();
    }
    let out = ctx
        .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()])
        .program(&alias)
        .output();
    assert!(out.ok().stdout.starts_with("args 0:"), "{out:?}");
}

fn a_pause_container_runs_natively(ctx: &Ctx) {
    for key in ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"] {
        let text = ctx.shell("echo pause", |b| {
            b.set(
                "/annotations",
                json!({"module.wasm.image/variant": "compat", key: "sandbox"}),
            )
        });
        assert_eq!(text, "pause\n", "{key}");
    }
}

fn a_sidecar_with_an_elf_entrypoint_runs_natively(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.file("/bin/script", "#!/bin/sh\necho script\n");
    fs::set_permissions(bundle.path("/bin/script"), fs::Permissions::from_mode(0o755)).unwrap();
    bundle.set(
        "/annotations",
        json!({"module.wasm.image/variant": "compat", "io.kubernetes.cri.container-type": "container"}),
    );
    bundle.sh("echo elf");
    assert_eq!(ctx.run(&bundle).ok().text(), "elf");
    bundle.args(&["/bin/script"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "script");
}

fn a_component_is_refused_by_name(ctx: &Ctx) {
    refused(ctx, &bytes(ctx, wasm::COMPONENT), &["component"]);
}

fn a_truncated_module_is_refused(ctx: &Ctx) {
    let whole = fs::read(wasm::compile(&ctx.dir, "whole", HELLO, &[])).unwrap();
    let out = refused(ctx, &bytes(ctx, &whole[..whole.len() / 2]), &["module.wasm"]);
    assert!(!out.stderr.contains("panic"), "{out:?}");
    refused(ctx, &bytes(ctx, b"\0asm"), &["module.wasm"]);
    refused(ctx, &bytes(ctx, b""), &["module.wasm"]);
}

fn something_else_than_wasm_is_refused(ctx: &Ctx) {
    refused(ctx, &bytes(ctx, b"just some text, no module\n"), &["module.wasm"]);
}

fn a_module_that_is_absent_is_refused(ctx: &Ctx) {
    let bundle = module(ctx, HELLO);
    bundle.args(&["/no-such-module.wasm"]);
    refused(ctx, &bundle, &["/no-such-module.wasm"]);
}

fn a_reactor_is_refused_by_name(ctx: &Ctx) {
    let module = wasm::compile(
        &ctx.dir,
        "reactor",
        "__attribute__((export_name(\"work\"))) int work(void) { return 1; }",
        &["-mexec-model=reactor"],
    );
    refused(ctx, &bytes(ctx, &fs::read(module).unwrap()), &["reactor"]);
}

fn lifecycle_verbs_work(ctx: &Ctx) {
    let container = ctx.create(&module(ctx, LOOP));
    assert_eq!(container.status(), "created");
    assert_eq!(container.stdout(), "");
    container.start().says("ready");
    assert_eq!(container.status(), "running");
    assert_eq!(
        container.verb(&["ps", "--format", "json"]).ok().json(),
        json!([container.pid()])
    );
    container.kill("TERM").stopped().delete();
}

fn pause_stops_the_guest(ctx: &Ctx) {
    let container = ctx.start(&module(ctx, LOOP));
    container.says("ready");
    container.verb(&["pause"]).ok();
    assert_eq!(container.status(), "paused");
    container.verb(&["resume"]).ok();
    container.kill("TERM").stopped();
}

fn exec_runs_a_linux_program(ctx: &Ctx) {
    let container = ctx.start(&module(ctx, LOOP));
    container.says("ready");
    assert_eq!(
        container.exec(&["sh", "-c", "hostname; exit 0"]).ok().text(),
        "testhost"
    );
    container.exec(&["sh", "-c", "exit 6"]).code(6);
}

fn exec_runs_another_module(ctx: &Ctx) {
    let bundle = module(ctx, LOOP);
    fs::copy(wasm::compile(&ctx.dir, "other", HELLO, &[]), bundle.path("/other.wasm")).unwrap();
    let container = ctx.start(&bundle);
    container.says("ready");
    let out = container.exec(&["/other.wasm", "5", "x"]);
    out.code(5);
    assert!(out.stdout.starts_with("args 2: [5] [x]"), "{out:?}");
}

fn a_terminal_reaches_the_guest(ctx: &Ctx) {
    let bundle = module(ctx, HELLO);
    bundle.set("/process/terminal", json!(true));
    let socket = proa_integration::console::ConsoleSocket::new(&ctx.dir);
    let container = ctx.container(&bundle);
    let running = ctx
        .create_call(
            &bundle,
            &container.id,
            &["--console-socket", socket.path.to_str().unwrap()],
        )
        .spawn();
    let mut terminal = socket.terminal();
    running.wait().ok();
    container.start();
    terminal.type_in("typed\n");
    terminal.expect("stdin typed\r\n");
}

fn the_program_is_found_through_path_and_cwd(ctx: &Ctx) {
    let bundle = module(ctx, HELLO);
    fs::copy(bundle.path("/module.wasm"), bundle.path("/bin/tool.wasm")).unwrap();
    bundle.args(&["tool.wasm"]);
    ctx.run(&bundle).ok();
    bundle.set("/process/cwd", json!("/bin")).args(&["./tool.wasm"]);
    ctx.run(&bundle).ok();
}

fn user_namespaces_work(ctx: &Ctx) {
    let bundle = module(ctx, HELLO);
    bundle.userns(200_000);
    assert!(ctx.run(&bundle).ok().stdout.starts_with("args 0:"));
}

/// As a checkout in root's home directory is: the container's root is somebody else, who can't get there.
fn an_installation_only_root_can_reach_serves_user_namespaces(ctx: &Ctx) {
    let locked = ctx.mkdir("locked");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
    let programs = ctx.subject.path.parent().unwrap();
    let engine = match std::env::var_os("PROA_ENGINE_DIR") {
        Some(dir) => Path::new(&dir).to_owned(),
        None => programs.parent().unwrap().join("engine/current"),
    };
    for (name, source) in [("bin", programs), ("engine", &*engine)] {
        // A system's own engine is where everybody can read it.
        if source.exists() {
            fs::create_dir(locked.join(name)).unwrap();
            ctx.host_mount(&["--bind", source.to_str().unwrap()], &locked.join(name));
        }
    }
    let bundle = module(ctx, HELLO);
    bundle.userns(100_000).args(&["/module.wasm", "7"]);
    let mut call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()]);
    call = call.program(&locked.join("bin").join(ctx.subject.path.file_name().unwrap()));
    if locked.join("engine").exists() {
        call = call.env("PROA_ENGINE_DIR", locked.join("engine").to_str().unwrap());
    }
    call.output().code(7);
}

/// A bundle that runs a real program of `target/wasm` (integration/fixtures/wasm/fetch) on a script in a read-only volume.
fn a_missing_engine_is_said_with_where_and_how_to_get_it(ctx: &Ctx) {
    let bundle = module(ctx, HELLO);
    let nowhere = ctx.dir.join("no-engine");
    fs::create_dir(&nowhere).unwrap();
    let out = ctx
        .create_call(&bundle, &ctx.id(), &[])
        .env("PROA_ENGINE_DIR", &nowhere.to_string_lossy())
        .output();
    let nowhere = nowhere.to_string_lossy();
    out.code(1).refused(&[
        "libwasmedge.so.0",
        &nowhere,
        "apt install libwasmedge0",
        "dnf install wasmedge",
    ]);
}
