//! A guest that is held by limits, ends as a process should, and can be looked into.

use std::fs;
use std::time::{Duration, Instant};

use proa_integration::ctx::eventually;
use proa_integration::{Bundle, Container, Ctx, Output, View, tests, wasm};
use serde_json::{Value, json};

tests! {
    a_deadline_ends_a_guest_that_computes .only_proa();
    a_deadline_ends_a_guest_that_waits .once().only_proa();
    a_deadline_is_no_matter_to_a_guest_that_ends .once().only_proa();
    a_full_stderr_does_not_hold_a_deadline_up .once().only_proa();
    fuel_ends_a_guest_that_computes .once().only_proa();
    fuel_is_no_matter_to_a_guest_that_needs_less .once().only_proa();
    a_start_section_is_held_by_fuel_and_deadline .once().only_proa();
    a_guest_goes_on_for_its_grace_period .once().only_proa();
    a_guest_that_ends_within_its_grace_period_has_its_own_status .once().only_proa();
    a_second_signal_ends_the_grace_period .once().only_proa();
    pages_bound_the_memory_and_are_checked_at_create .once().only_proa();
    table_elements_bound_the_tables_and_are_checked_at_create .once().only_proa();
    the_file_is_the_ceiling_of_the_annotations .once().only_proa();
    exec_of_a_module_is_held_by_the_containers_policy .once().only_proa();
    how_a_guest_ended_is_in_state_and_in_the_log .once().only_proa();
    a_linux_program_in_a_wasm_container_has_no_ending .once().only_proa();
    a_trap_comes_with_a_backtrace .once().only_proa();
    a_memory_limit_is_felt_by_the_guest_and_not_by_the_kernel .only_proa().views(&[View::Hybrid, View::V1]).seconds(120);
    an_oom_kill_is_told .only_proa().views(&[View::Hybrid, View::V1]);
    stats_of_a_running_guest_are_of_now .only_proa();
    stats_of_a_guest_that_ended_stay .once().only_proa();
    a_guest_is_not_disturbed_by_who_asks .once().only_proa();
    a_page_that_lies_does_no_harm .once().only_proa();
    a_pids_limit_costs_only_the_answers .once().only_proa().views(&[View::Hybrid, View::V1]);
    ps_shows_the_guest .once().only_proa();
    the_log_tells_each_phase_at_debug .once().only_proa();
}

/// Prints what it is told to, then computes until it is ended, sleeps, or ends after so many seconds.
const GUEST: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "loop";
	volatile unsigned long n = 0;
	puts("ready");
	fflush(stdout);
	if (!strcmp(what, "exit"))
		return atoi(argv[2]);
	if (!strcmp(what, "trap"))
		__builtin_trap();
	if (!strcmp(what, "sleep")) {
		struct timespec t = {3600, 0};
		return nanosleep(&t, 0) ? 99 : 98;
	}
	if (!strcmp(what, "wait-for")) {
		while (access(argv[2], F_OK))
			for (int i = 0; i < 1000; i++)
				n++;
		return 7;
	}
	if (!strcmp(what, "flood"))
		for (;;)
			fputs("0123456789012345678901234567890123456789012345678901234567890123456789\n", stderr);
	for (;;)
		n++;
}
"#;

/// A bundle of the guest above with these annotations (`proa.wasm/` is put before each) and arguments.
fn guest(ctx: &Ctx, annotations: Value, args: &[&str]) -> Bundle {
    let bundle = ctx.bundle();
    let module = wasm::compile(&ctx.dir, "guest", GUEST, &[]);
    fs::copy(module, bundle.path("/guest.wasm")).unwrap();
    set(&bundle, &annotations, &[&["/guest.wasm"], args].concat());
    bundle
}

fn set(bundle: &Bundle, annotations: &Value, args: &[&str]) {
    let mut all = json!({"run.oci.handler": "wasm"});
    for (key, value) in annotations.as_object().unwrap() {
        all[format!("proa.wasm/{key}")] = value.clone();
    }
    bundle.args(args).set("/annotations", all);
}

/// A module made of these sections.
fn module(sections: &[(u8, &[u8])]) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    for (id, content) in sections {
        module.extend(wasm::section(*id, content));
    }
    module
}

/// stderr must be this one line.
#[track_caller]
fn says(out: &Output, line: &str) {
    assert_eq!(out.stderr.trim_end(), line, "{out:?}");
}

fn a_deadline_ends_a_guest_that_computes(ctx: &Ctx) {
    let bundle = guest(ctx, json!({"deadline": "300ms"}), &[]);
    let began = Instant::now();
    let out = ctx.run(&bundle);
    out.code(142);
    says(&out, "proa: wasm deadline: 300ms are over in /guest.wasm");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(out.text(), "ready");
}

fn a_deadline_ends_a_guest_that_waits(ctx: &Ctx) {
    ctx.run(&guest(ctx, json!({"deadline": "300ms"}), &["sleep"])).code(142);
}

fn a_deadline_is_no_matter_to_a_guest_that_ends(ctx: &Ctx) {
    let out = ctx.run(&guest(ctx, json!({"deadline": "50s"}), &["exit", "9"]));
    out.code(9);
    assert_eq!(out.stderr, "");
}

fn a_full_stderr_does_not_hold_a_deadline_up(ctx: &Ctx) {
    let (reader, writer) = std::io::pipe().unwrap();
    let bundle = guest(ctx, json!({"deadline": "500ms"}), &["flood"]);
    let file = fs::File::from(std::os::fd::OwnedFd::from(writer));
    let container = ctx.container(&bundle);
    // Nobody reads from the pipe.
    let out = ctx
        .call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &container.id])
        .stdio(file)
        .output();
    out.code(142);
    drop(reader);
}

fn fuel_ends_a_guest_that_computes(ctx: &Ctx) {
    let out = ctx.run(&guest(ctx, json!({"fuel": "3000000"}), &[]));
    out.code(152);
    says(&out, "proa: wasm fuel: 3000000 instructions are used up in /guest.wasm");
    assert_eq!(out.text(), "ready");
}

fn fuel_is_no_matter_to_a_guest_that_needs_less(ctx: &Ctx) {
    ctx.run(&guest(ctx, json!({"fuel": "100000000"}), &["exit", "3"]))
        .code(3);
}

fn a_start_section_is_held_by_fuel_and_deadline(ctx: &Ctx) {
    // `_start` is function 0, which returns; function 1 is the start section's, which does not.
    let endless = module(&[
        (1, b"\x01\x60\0\0"),
        (3, b"\x02\0\0"),
        (7, b"\x01\x06_start\0\0"),
        (8, b"\x01"),
        (10, b"\x02\x02\0\x0b\x07\0\x03\x40\x0c\0\x0b\x0b"),
    ]);
    let bundle = ctx.bundle();
    fs::write(bundle.path("/guest.wasm"), endless).unwrap();
    set(&bundle, &json!({"fuel": "100000"}), &["/guest.wasm"]);
    ctx.run(&bundle).code(152);
    set(&bundle, &json!({"deadline": "200ms"}), &["/guest.wasm"]);
    ctx.run(&bundle).code(142);
}

/// Started, and ready.
fn started<'a>(ctx: &'a Ctx, bundle: &Bundle) -> Container<'a> {
    let container = ctx.start(bundle);
    container.says("ready");
    container
}

fn ended(container: &Container) -> Value {
    container.stopped();
    let annotations = container.state()["annotations"].clone();
    let named = |name: &str| annotations[format!("proa.wasm/{name}")].clone();
    json!([named("ended"), named("ended-status"), named("ended-detail")])
}

fn a_guest_goes_on_for_its_grace_period(ctx: &Ctx) {
    let container = started(ctx, &guest(ctx, json!({"grace": "1500ms"}), &["sleep"]));
    let asked = Instant::now();
    container.kill("TERM");
    assert_eq!(container.status(), "running");
    assert_eq!(ended(&container), json!(["signal", "143", "SIGTERM"]));
    assert!(asked.elapsed() >= Duration::from_millis(1500), "{:?}", asked.elapsed());
}

fn a_guest_that_ends_within_its_grace_period_has_its_own_status(ctx: &Ctx) {
    let bundle = guest(ctx, json!({"grace": "40s"}), &["wait-for", "/tmp/stop"]);
    bundle.writable();
    let container = started(ctx, &bundle);
    container.kill("INT");
    assert_eq!(container.status(), "running");
    fs::write(bundle.path("/tmp/stop"), "").unwrap();
    assert_eq!(ended(&container), json!(["exit", "7", null]));
}

fn a_second_signal_ends_the_grace_period(ctx: &Ctx) {
    let container = started(ctx, &guest(ctx, json!({"grace": "50m"}), &[]));
    // In this order, since of two that are pending the kernel delivers the one with the lower number first.
    container.kill("INT");
    assert_eq!(container.status(), "running");
    container.kill("TERM");
    assert_eq!(ended(&container), json!(["signal", "143", "SIGTERM"]));
}

const GROW: &str = r#"
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
	int mib = 0;
	static void *volatile kept;
	while (mib < 256 && (kept = malloc(1 << 20)))
		mib++;
	printf("%d\n", mib);
}
"#;

fn pages_bound_the_memory_and_are_checked_at_create(ctx: &Ctx) {
    let bundle = ctx.bundle();
    fs::copy(wasm::compile(&ctx.dir, "grow", GROW, &[]), bundle.path("/grow.wasm")).unwrap();
    set(&bundle, &json!({"pages": "160"}), &["/grow.wasm"]);
    // 160 pages are 10 MiB, of which the module's own data take a part.
    let grown: u32 = ctx.run(&bundle).ok().text().parse().unwrap();
    assert!((7..10).contains(&grown), "{grown}");
    set(&bundle, &json!({"pages": "1"}), &["/grow.wasm"]);
    ctx.create_call(&bundle, &ctx.id(), &[]).output().refused(&[
        "/grow.wasm",
        "starts with 2 pages",
        "proa.wasm/pages",
        "= 1",
    ]);
}

fn table_elements_bound_the_tables_and_are_checked_at_create(ctx: &Ctx) {
    // A table of 10 elements without a maximum, grown by 90 and then by 1: the results are written as the exit status, 2 for
    // each that was refused.
    let grower = module(&[
        (1, b"\x02\x60\0\0\x60\x01\x7f\0"),
        (2, b"\x01\x16wasi_snapshot_preview1\x09proc_exit\0\x01"),
        (3, b"\x01\0"),
        (4, b"\x01\x70\0\x0a"),
        (5, b"\x01\0\x01"),
        (7, b"\x02\x06_start\0\x01\x06memory\x02\0"),
        (
            10,
            b"\x01\x1d\0\xd0\x70\x41\xda\0\xfc\x0f\0\x41\x7f\x46\xd0\x70\x41\x01\xfc\x0f\0\x41\x7f\x46\x41\x02\x6c\x6a\x10\0\x0b",
        ),
    ]);
    let bundle = ctx.bundle();
    fs::write(bundle.path("/grow.wasm"), grower).unwrap();
    for (limit, status) in [
        (json!({}), 0),
        (json!({"table-elements": "100"}), 2),
        (json!({"table-elements": "99"}), 1),
    ] {
        set(&bundle, &limit, &["/grow.wasm"]);
        ctx.run(&bundle).code(status);
    }
    set(&bundle, &json!({"table-elements": "9"}), &["/grow.wasm"]);
    let out = ctx.create_call(&bundle, &ctx.id(), &[]).output();
    out.refused(&["/grow.wasm", "10 elements", "proa.wasm/table-elements", "= 9"]);
}

/// A configuration file of an administrator.
fn settings(ctx: &Ctx, text: &str) -> String {
    let path = ctx.dir.join("config.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn the_file_is_the_ceiling_of_the_annotations(ctx: &Ctx) {
    let file = settings(ctx, "[wasm.limits]\nfuel = 2000000\n");
    let bundle = guest(ctx, json!({"fuel": "100000000000"}), &[]);
    let dir = bundle.dir.to_str().unwrap();
    let out = ctx
        .call(&["--config", &file, "run", "--bundle", dir, &ctx.id()])
        .output();
    out.code(152);
    says(&out, "proa: wasm fuel: 2000000 instructions are used up in /guest.wasm");
}

fn exec_of_a_module_is_held_by_the_containers_policy(ctx: &Ctx) {
    let bundle = guest(ctx, json!({"fuel": "3000000"}), &["sleep"]);
    let container = started(ctx, &bundle);
    let out = container.exec(&["/guest.wasm"]);
    out.code(152);
    assert!(out.stderr.contains("3000000 instructions"), "{out:?}");
    // The file of now counts, too; and a Linux program asks for neither.
    let file = settings(ctx, "[wasm.limits]\nfuel = 1000\n");
    let exec = |args: &[&str]| {
        let line = [&["--config", &file, "exec", &container.id], args].concat();
        ctx.call(&line).output()
    };
    let out = exec(&["/guest.wasm"]);
    out.code(152);
    assert!(out.stderr.contains("1000 instructions"), "{out:?}");
    assert_eq!(exec(&["/bin/echo", "native"]).ok().text(), "native");
    fs::write(&file, "[wasm.limits]\nfuel = \"many\"\n").unwrap();
    exec(&["/guest.wasm"]).code(255);
    exec(&["/bin/true"]).ok();
}

fn how_a_guest_ended_is_in_state_and_in_the_log(ctx: &Ctx) {
    let cases = [
        (json!({}), vec!["exit", "5"], json!(["exit", "5", null])),
        (
            json!({}),
            vec!["trap"],
            json!(["trap", "134", "unreachable in /guest.wasm"]),
        ),
        (
            json!({"deadline": "100ms"}),
            vec!["loop"],
            json!(["deadline", "142", "100ms are over in /guest.wasm"]),
        ),
        (
            json!({"fuel": "1000000"}),
            vec!["loop"],
            json!(["fuel", "152", "1000000 instructions are used up in /guest.wasm"]),
        ),
    ];
    for (annotations, args, expected) in cases {
        let container = ctx.start(&guest(ctx, annotations, &args));
        let found = ended(&container);
        // A trap's words go on where there is more to say of it.
        assert_eq!((&found[0], &found[1]), (&expected[0], &expected[1]), "{found}");
        let detail = |value: &Value| value[2].as_str().unwrap_or_default().to_owned();
        assert!(detail(&found).starts_with(&detail(&expected)), "{found}");
        let log = ctx.dir.join("log");
        ctx.call(&["--log", log.to_str().unwrap(), "delete", &container.id])
            .output()
            .ok();
        let log_text = fs::read_to_string(&log).unwrap_or_default();
        let how = expected[0].as_str().unwrap();
        assert_eq!(
            log_text.contains(&format!("the Wasm guest was stopped: {how}")),
            how != "exit",
            "{log_text}"
        );
        fs::remove_file(&log).ok();
        container.forget();
    }
    // Who keeps what it ran is told in its log, too.
    let bundle = guest(ctx, json!({"deadline": "100ms"}), &["loop"]);
    let container = ctx.container(&bundle);
    let out = ctx
        .call(&["run", "--keep", "--bundle", bundle.dir.to_str().unwrap(), &container.id])
        .output();
    out.code(142);
    assert!(out.log.contains("the Wasm guest was stopped: deadline"), "{out:?}");
    container.delete();
}

fn a_linux_program_in_a_wasm_container_has_no_ending(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .sh("exit 3")
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    let container = ctx.start(&bundle);
    assert_eq!(ended(&container), json!([null, null, null]));
}

const TRAP: &str = r#"
#include <stdio.h>

__attribute__((noinline)) void boom(volatile int n)
{
	if (n > 3)
		__builtin_trap();
	printf("%d\n", n);
}

__attribute__((noinline)) void outer(volatile int n)
{
	boom(n + 1);
	puts("back");
}

int main(void)
{
	outer(3);
}
"#;

fn a_trap_comes_with_a_backtrace(ctx: &Ctx) {
    let named = wasm::compile(&ctx.dir, "named", TRAP, &[]);
    let stripped = wasm::compile(&ctx.dir, "stripped", TRAP, &["-Wl,--strip-all"]);
    let run = |module: &std::path::Path, annotations: &Value| {
        let bundle = ctx.bundle();
        fs::copy(module, bundle.path("/trap.wasm")).unwrap();
        set(&bundle, annotations, &["/trap.wasm"]);
        let container = ctx.start(&bundle);
        let told = ended(&container);
        let stderr = container.stderr();
        let lines: Vec<String> = stderr.lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "proa: wasm trap: unreachable in /trap.wasm", "{stderr}");
        (lines, told[2].as_str().unwrap().to_owned())
    };
    let (lines, told) = run(&named, &json!({}));
    assert!(
        lines[1].starts_with("proa:   at boom (function ") && lines[1].contains(", offset 0x"),
        "{lines:?}"
    );
    assert!(told.starts_with("unreachable in /trap.wasm at boom"), "{told}");
    // WasmEdge 0.14 doesn't tell who called it.
    if lines.len() > 2 {
        let callers: Vec<&str> = lines[2..]
            .iter()
            .map(|line| line.split_whitespace().nth(2).unwrap())
            .collect();
        assert!(callers[0] == "outer" && callers[1].contains("main"), "{lines:?}");
        assert!(
            told.starts_with("unreachable in /trap.wasm at boom < outer < "),
            "{told}"
        );
    }
    // Bounded tables move the code in what the engine sees.
    let (moved, _) = run(&named, &json!({"table-elements": "1000"}));
    assert_eq!(moved, lines);
    let (bare, told) = run(&stripped, &json!({}));
    assert!(bare[1].starts_with("proa:   at ? (function "), "{bare:?}");
    assert!(told.contains(" at function "), "{told}");
}

/// Fills all the memory it gets, a part at a time, and says how much that was.
const FILL: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *volatile part;

int main(void)
{
	int n = 0;
	while ((part = malloc(256 << 10))) {
		memset((char *)part, 1, 256 << 10);
		n++;
	}
	printf("%d\n", n / 4);
}
"#;

fn a_memory_limit_is_felt_by_the_guest_and_not_by_the_kernel(ctx: &Ctx) {
    let bundle = ctx.bundle();
    fs::copy(wasm::compile(&ctx.dir, "fill", FILL, &[]), bundle.path("/fill.wasm")).unwrap();
    set(&bundle, &json!({}), &["/fill.wasm"]);
    for limit in [24, 32, 64, 256] {
        bundle.set("/linux/resources/memory", json!({"limit": limit << 20}));
        let filled: i32 = ctx.run(&bundle).ok().text().parse().unwrap();
        // What the engine needs, and little more, is not the guest's.
        assert!((limit - 18..limit).contains(&filled), "{filled} MiB of {limit}");
    }
    // What a module starts with it may have, even where that leaves nothing to grow into.
    let quickjs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/wasm/quickjs.wasm");
    fs::copy(quickjs, bundle.path("/qjs.wasm")).expect("`make fixtures` brings it");
    let script = "let n = 0; try { let x = []; for (;;) { x.push(new Uint8Array(1 << 18).fill(1)); n++; } } catch (e) \
                  { print(n / 4 | 0) }";
    set(&bundle, &json!({}), &["/qjs.wasm", "-e", script]);
    bundle.set("/linux/resources/memory", json!({"limit": 64 << 20}));
    let filled: i32 = ctx.run(&bundle).ok().text().parse().unwrap();
    assert!((30..64).contains(&filled), "{filled}");
}

fn an_oom_kill_is_told(ctx: &Ctx) {
    // The engine keeps the frames of calls, which no limit of the guest's memory bounds.
    let source = "__attribute__((noinline)) int deep(volatile int n) { return n ? deep(n + 1) + 1 : 0; } \
                  int main(void) { return deep(1); }";
    let module = wasm::compile(&ctx.dir, "deep", source, &["-O0", "-Wl,-z,stack-size=16777216"]);
    let bundle = ctx.bundle();
    fs::copy(module, bundle.path("/deep.wasm")).unwrap();
    set(&bundle, &json!({}), &["/deep.wasm"]);
    bundle.set("/linux/resources/memory", json!({"limit": 48 << 20}));
    let container = ctx.start(&bundle);
    let found = ended(&container);
    assert_eq!((&found[0], &found[1]), (&json!("oom"), &json!("137")), "{found}");
    container.forget();
    ctx.call(&["delete", &container.id]).output().ok();
    let out = ctx.run(&bundle);
    out.code(137);
    assert!(out.log.contains("oom"), "{out:?}");
}

fn stats(container: &Container) -> Value {
    container.verb(&["wasm", "stats", "--format", "json"]).ok().json()
}

fn stats_of_a_running_guest_are_of_now(ctx: &Ctx) {
    let container = started(ctx, &guest(ctx, json!({"count-instructions": "true"}), &[]));
    let first = stats(&container);
    assert!(first["engine"].as_str().unwrap().starts_with("WasmEdge "), "{first}");
    assert_eq!(first["code"], "interpreted");
    for phase in ["find", "engine", "read", "load", "validate", "instantiate"] {
        assert!(first["phases"][phase].is_u64(), "{phase}: {first}");
    }
    assert_eq!(
        first["memory"]["bytes"],
        first["memory"]["pages"].as_u64().unwrap() * 65536
    );
    assert_eq!(first["ended"], Value::Null);
    // Between two questions a guest need not have had the processor.
    let grew = |key: &str, now: &Value| now[key].as_u64().unwrap() > first[key].as_u64().unwrap();
    eventually("instructions and time grow", || {
        let now = stats(&container);
        (grew("instructions", &now) && grew("run", &now)).then_some(())
    });
    let event = eventually("instructions grow in the events", || {
        let event = container.verb(&["events", "--stats"]).ok().json();
        grew("instructions", &event["data"]["wasm"]).then_some(event)
    });
    assert!(
        event["data"]["pids"].is_object() || event["data"]["cpu"].is_object(),
        "{event}"
    );
    let table = container.verb(&["wasm", "stats"]);
    assert!(table.ok().stdout.contains("INSTRUCTIONS "), "{table:?}");
    // A container without a guest has no such member, and no such statistics.
    let linux = ctx.bundle();
    linux.sh("sleep 100");
    let linux = ctx.start(&linux);
    let event = linux.verb(&["events", "--stats"]).ok().json();
    assert_eq!(event["data"]["wasm"], Value::Null);
    linux.verb(&["wasm", "stats"]).refused(&["has no Wasm guest"]);
}

fn stats_of_a_guest_that_ended_stay(ctx: &Ctx) {
    let container = ctx.start(&guest(ctx, json!({"fuel": "500000"}), &[]));
    container.stopped();
    let stats = stats(&container);
    assert_eq!(stats["ended"]["how"], "fuel");
    assert_eq!(stats["ended"]["status"], 152);
    assert_eq!(stats["instructions"], 500_000);
    assert!(
        stats["run"].as_u64().unwrap() > 0 && stats["memory"]["pages"].as_u64().unwrap() >= 2,
        "{stats}"
    );
}

fn a_guest_is_not_disturbed_by_who_asks(ctx: &Ctx) {
    // Its sleep would end early if a system call were interrupted; with a grace period, signals don't do that either.
    let container = started(ctx, &guest(ctx, json!({"grace": "500ms"}), &["sleep"]));
    for _ in 0..20 {
        assert!(stats(&container)["run"].as_u64().unwrap() > 0);
    }
    container.kill("TERM");
    for _ in 0..3 {
        stats(&container);
    }
    assert_eq!(ended(&container), json!(["signal", "143", "SIGTERM"]));
}

fn a_page_that_lies_does_no_harm(ctx: &Ctx) {
    let container = started(ctx, &guest(ctx, json!({}), &[]));
    let path = ctx.dir.join("root").join(&container.id).join("guest.page");
    let mut page = fs::read(&path).unwrap();
    // Everything after the magic and the version is what a guest that broke out would have there.
    for (at, byte) in page.iter_mut().enumerate().skip(16) {
        *byte = (at * 7 + at / 256) as u8 | 0x80;
    }
    fs::write(&path, &page).unwrap();
    container.verb(&["wasm", "stats"]).ok();
    container.verb(&["state"]).ok();
    // Shorter than it was: nobody is killed for it but who has it mapped.
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(10).unwrap();
    container.verb(&["wasm", "stats"]).refused(&["has no Wasm guest"]);
    container.verb(&["events", "--stats"]).ok();
    container.kill("KILL").stopped();
    container.verb(&["state"]).ok();
}

fn a_pids_limit_costs_only_the_answers(ctx: &Ctx) {
    let bundle = guest(ctx, json!({}), &[]);
    bundle.set("/linux/resources/pids", json!({"limit": 1}));
    let container = started(ctx, &bundle);
    let stats = stats(&container);
    assert_eq!(stats["run"], Value::Null, "{stats}");
    assert!(stats["phases"]["instantiate"].is_u64(), "{stats}");
    container.kill("TERM");
    assert_eq!(ended(&container), json!(["signal", "143", "SIGTERM"]));
}

fn ps_shows_the_guest(ctx: &Ctx) {
    let bundle = guest(ctx, json!({}), &["loop", "a b", &"long".repeat(40)]);
    let container = started(ctx, &bundle);
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", container.pid())).unwrap();
    assert_eq!(proc("comm"), "guest.wasm\n");
    let expected = format!("/guest.wasm\0loop\0a b\0{}\0", "long".repeat(40));
    assert_eq!(proc("cmdline"), expected);
    let listed = container.verb(&["ps"]);
    assert!(listed.ok().stdout.contains("/guest.wasm loop a b long"), "{listed:?}");
    // Shorter than what the init image had: nothing of that is left.
    let short = started(ctx, &guest(ctx, json!({}), &[]));
    let cmdline = fs::read_to_string(format!("/proc/{}/cmdline", short.pid())).unwrap();
    assert_eq!(cmdline.trim_end_matches('\0'), "/guest.wasm");
    // In a process that exec adds as well.
    let out = short.exec_call(&[], &["/guest.wasm", "trap"]).output();
    out.code(134);
}

fn the_log_tells_each_phase_at_debug(ctx: &Ctx) {
    let bundle = guest(ctx, json!({}), &["exit", "0"]);
    let run = |flags: &[&str]| {
        let id = ctx.id();
        let line = [flags, &["run", "--bundle", bundle.dir.to_str().unwrap(), &id]].concat();
        let out = ctx.call(&line).output();
        out.ok();
        out.log
    };
    let debug = run(&["--log-level", "debug"]);
    for phase in ["find", "engine", "read", "load", "validate", "instantiate"] {
        assert!(debug.contains(&format!("\"wasm: {phase}: ")), "{phase}: {debug}");
    }
    assert!(run(&["--debug"]).contains("wasm: load: "));
    assert_eq!(run(&["--log-level=error"]), "");
    let bad = ctx.call(&["--log-level", "loud", "list"]).output();
    bad.refused(&["invalid log-level: loud"]);
}
