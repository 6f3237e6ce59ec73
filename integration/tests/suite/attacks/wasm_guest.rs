//! A hostile Wasm guest, and what holds if it gets the better of its engine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use proa_integration::{Bundle, Ctx, tests, wasm};
use serde_json::json;

use super::{arm, carelessly, gained, marker, withstood};

tests! {
    links_lead_a_guest_to_nothing_of_the_host .once().only_proa();
    a_guest_that_calls_by_a_wrong_type_traps .once().only_proa();
    an_engine_has_no_more_rights_than_a_program .once().only_proa();
    the_engines_executable_cannot_be_overwritten_by_a_waiting_process .once().only_proa();
}

fn marked<'a>(bundle: &'a Bundle, module: &std::path::Path) -> &'a Bundle {
    fs::copy(module, bundle.path("/module.wasm")).unwrap();
    bundle
        .args(&["/module.wasm"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}))
}

/// Tries the names it is given, and from each directory the way up, with every call of WASI that takes a path.
const CLIMB: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void try(const char *path)
{
	char text[64] = "";
	int fd = open(path, O_RDONLY);
	if (fd >= 0 && read(fd, text, sizeof text - 1) > 0 && strstr(text, "of the host")) {
		printf("REACHED %s\n", path);
		exit(0);
	}
}

int main(int argc, char **argv)
{
	char path[1024];
	try(argv[1]);
	for (int i = 2; i < argc; i++) {
		try(argv[i]);
		snprintf(path, sizeof path, "%s%s", argv[i], argv[1]);
		try(path);
		for (int fd = 3; fd < 20; fd++) {
			int file = openat(fd, argv[i] + 1, O_RDONLY);
			if (file >= 0 && read(file, path, 11) == 11 && !memcmp(path, "of the host", 11))
				printf("REACHED %s by descriptor %d\n", argv[i], fd);
		}
	}
	symlink(argv[1], "/tmp/made");
	try("/tmp/made");
	symlink("../../../../../../../..", "/tmp/up");
	snprintf(path, sizeof path, "/tmp/up%s", argv[1]);
	try(path);
	return 0;
}
"#;

/// WasmEdge #4938: a link in a preopened directory leads out of it. What is preopened is the container's root, and that is the
/// process's own root by then: there is no out.
fn links_lead_a_guest_to_nothing_of_the_host(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let module = wasm::compile(&ctx.dir, "climb", CLIMB, &[]);
    let marker = marker(ctx);
    marked(&bundle, &module).writable();
    let links = [
        ("/absolute", marker.to_str().unwrap().to_owned()),
        ("/relative", format!("../../../../../../../..{}", marker.display())),
        ("/root-of-it", "/".to_owned()),
        ("/up", "../../../../../../../..".to_owned()),
        ("/process", "/proc/self/root".to_owned()),
        ("/directory", "/proc/self/cwd/../../../..".to_owned()),
    ];
    let mut args = vec!["/module.wasm".to_owned(), marker.to_str().unwrap().to_owned()];
    for (link, target) in links {
        symlink(target, bundle.path(link)).unwrap();
        args.push(link.to_owned());
    }
    args.push(format!("/../../../../../../../..{}", marker.display()));
    bundle.args(&args.iter().map(String::as_str).collect::<Vec<_>>());
    for cwd in ["/", "/tmp"] {
        bundle.set("/process/cwd", json!(cwd));
        let out = ctx.run(&bundle);
        withstood!(gained(&out.stdout).is_none(), "{:?}", gained(&out.stdout));
        out.ok();
    }
}

/// A module whose `_start` calls a function by another type than it has: `(i64, i64) -> ()` for `() -> i32`.
fn confused() -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    let mut section = |id: u8, bytes: &[u8]| {
        module.push(id);
        module.push(u8::try_from(bytes.len()).unwrap());
        module.extend_from_slice(bytes);
    };
    // Types: () -> (), () -> i32, (i64, i64) -> ().
    section(1, &[3, 0x60, 0, 0, 0x60, 0, 1, 0x7f, 0x60, 2, 0x7e, 0x7e, 0]);
    // Functions: _start of the first, the victim of the second.
    section(3, &[2, 0, 1]);
    // A table of one funcref.
    section(4, &[1, 0x70, 0, 1]);
    section(5, &[1, 0, 1]);
    section(
        7,
        &[
            2, 6, b'_', b's', b't', b'a', b'r', b't', 0, 0, 6, b'm', b'e', b'm', b'o', b'r', b'y', 2, 0,
        ],
    );
    section(9, &[1, 0, 0x41, 0, 0x0b, 1, 1]);
    // _start: i64.const 1, i64.const 2, i32.const 0, call_indirect (type 2). The victim: i32.const 7.
    section(
        10,
        &[
            2, 11, 0, 0x42, 1, 0x42, 2, 0x41, 0, 0x11, 2, 0, 0x0b, 4, 0, 0x41, 7, 0x0b,
        ],
    );
    module
}

/// WasmEdge #4920: `call_indirect` of a function that has another type. It must trap, and is said to have.
fn a_guest_that_calls_by_a_wrong_type_traps(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let module = ctx.dir.join("confused.wasm");
    fs::write(&module, confused()).unwrap();
    marked(&bundle, &module);
    let out = ctx.run(&bundle);
    withstood!(out.code != 0, "a function was called by a type that it has not");
    assert!(
        out.code(134).stderr.contains("wasm trap: indirect call type mismatch"),
        "{out:?}"
    );
}

/// Whatever a guest makes of a fault of the engine, the process that it takes over is confined as a program's would be, and
/// was before the guest's first instruction.
fn an_engine_has_no_more_rights_than_a_program(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let source =
        "#include <unistd.h>\n#include <stdio.h>\nint main(void) { puts(\"up\"); fflush(stdout); for (;;) sleep(1); }";
    let module = wasm::compile(&ctx.dir, "waits", source, &[]);
    marked(&bundle, &module)
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}]}),
        );
    let container = ctx.start(&bundle);
    container.says("up");
    let pid = container.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in [
        "Uid:\t1000\t1000\t1000\t1000",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        withstood!(
            status.contains(line),
            "the engine is not confined: no {line:?} in {status}"
        );
    }
    // And there is nothing left open that leads out.
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        let up = entry
            .path()
            .join("../../../../../../../../../..")
            .join(marker(ctx).strip_prefix("/").unwrap());
        withstood!(!up.exists(), "descriptor {number} of the engine leads to the host");
    }
}

/// Copies of the runtime and of what its engine's loader is, with the rest of the engine beside: an attack that works hurts
/// only the copies.
fn copies(ctx: &Ctx) -> (PathBuf, PathBuf) {
    let runtime = super::executable::copy(ctx);
    let engine = match std::env::var_os("PROA_ENGINE_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => ctx.subject.path.parent().unwrap().with_file_name("engine/current"),
    };
    let copied = ctx.mkdir("engine");
    for entry in fs::read_dir(engine).into_iter().flatten().flatten() {
        let (from, to) = (entry.path().canonicalize().unwrap(), copied.join(entry.file_name()));
        match entry.file_name().to_string_lossy().starts_with("ld") {
            true => drop(fs::copy(from, to).unwrap()),
            false => symlink(from, to).unwrap(),
        }
    }
    (runtime, copied)
}

/// CVE-2019-5736 on what a Wasm container's init is executed from: the engine's loader, or the engine's hull.
fn the_engines_executable_cannot_be_overwritten_by_a_waiting_process(ctx: &Ctx) {
    let (runtime, engine) = copies(ctx);
    let bundle = ctx.bundle();
    let module = wasm::compile(&ctx.dir, "nothing", "int main(void) { return 0; }", &[]);
    marked(&bundle, &module);
    arm(ctx, &bundle).args(&["attack", "overwrite", "4"]).writable().caps(&[
        "CAP_SYS_PTRACE",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
    ]);
    let container = ctx.start(&bundle);
    container.says("watching");
    for _ in 0..10 {
        let call = container.exec_call(&[], &["/module.wasm"]).program(&runtime);
        carelessly(call.env("PROA_ENGINE_DIR", engine.to_str().unwrap()));
    }
    container.says("done");
    let said = container.stdout();
    withstood!(gained(&said).is_none(), "{:?}", gained(&said));
}
