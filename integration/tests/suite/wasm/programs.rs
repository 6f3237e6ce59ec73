//! Real programs that others built for WASI: interpreters, a renderer, a database; and many guests at once.

use std::fs;
use std::path::Path;

use proa_integration::ctx::eventually_within;
use proa_integration::{Bundle, Ctx, View, everything, tests};
use serde_json::json;

tests! {
    quickjs_runs_a_script_from_a_volume .once().only_proa().seconds(120);
    python_runs_a_script_from_a_volume .once().only_proa().seconds(120);
    interpreters_run_compiled .once().only_proa().seconds(if everything() { 1800 } else { 240 });
    resvg_renders_a_mounted_drawing .once().only_proa().seconds(120);
    sqlite_keeps_a_database_on_a_volume .once().only_proa().seconds(120);
    sqlite_survives_being_killed .once().only_proa().seconds(120);
    two_hundred_guests_run_at_once .only_proa().views(&[View::Hybrid, View::V2]).seconds(300);
}

/// A bundle whose entrypoint is one of the fetched programs.
fn program(ctx: &Ctx, name: &str) -> Bundle {
    let bundle = ctx.bundle();
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/wasm").join(name);
    fs::copy(&fetched, bundle.path("/program.wasm"))
        .unwrap_or_else(|error| panic!("{}: {error}: `make fixtures` brings it", fetched.display()));
    bundle.set("/annotations", json!({"run.oci.handler": "wasm"}));
    bundle
}

/// An interpreter with a script on a read-only volume, which gets the argument 21.
fn interpreter(ctx: &Ctx, name: &str, script: &str, text: &str) -> Bundle {
    let bundle = program(ctx, name);
    let volume = ctx.mkdir("scripts");
    fs::write(volume.join(script), text).unwrap();
    bundle
        .bind(&volume, "/scripts", &["bind", "ro"])
        .args(&["/program.wasm", &format!("/scripts/{script}"), "21"]);
    bundle
}

/// QuickJS with a script that ends with 0 and prints this.
fn quickjs(ctx: &Ctx) -> (Bundle, i32, &'static str) {
    let script =
        "const n = parseInt(scriptArgs[1]); console.log(JSON.stringify({answer: 2 * n, sorted: [3, 1, 2].sort()}));";
    let bundle = interpreter(ctx, "quickjs.wasm", "answer.js", script);
    (bundle, 0, r#"{"answer":42,"sorted":[1,2,3]}"#)
}

/// CPython with a script that ends with 5 and prints this.
fn python(ctx: &Ctx) -> (Bundle, i32, &'static str) {
    let script = "import json, sys\nprint(json.dumps({'answer': 2 * int(sys.argv[1]), 'platform': sys.platform}))\nsys.exit(5)\n";
    let bundle = interpreter(ctx, "python.wasm", "answer.py", script);
    (bundle, 5, r#"{"answer": 42, "platform": "wasi"}"#)
}

fn quickjs_runs_a_script_from_a_volume(ctx: &Ctx) {
    let (bundle, code, text) = quickjs(ctx);
    let out = ctx.run(&bundle);
    out.code(code);
    assert_eq!(out.text(), text);
}

fn python_runs_a_script_from_a_volume(ctx: &Ctx) {
    let (bundle, code, text) = python(ctx);
    let out = ctx.run(&bundle);
    out.code(code);
    assert_eq!(out.text(), text);
}

/// CPython takes five minutes and two gigabytes to compile.
fn interpreters_run_compiled(ctx: &Ctx) {
    let mut all = vec![quickjs(ctx)];
    if everything() {
        all.push(python(ctx));
    }
    let cache = ctx.dir.join("cache");
    let global = ["--debug", "--engine-cache", cache.to_str().unwrap()];
    for (bundle, code, text) in all {
        let module = bundle.path("/program.wasm");
        ctx.call(&[&global[..], &["wasm", "compile", module.to_str().unwrap()]].concat())
            .output()
            .ok();
        let run = ["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()];
        let out = ctx.call(&[&global[..], &run].concat()).output();
        out.code(code);
        assert_eq!(out.text(), text);
        assert!(out.log.contains("compiled code is loaded"), "{out:?}");
    }
}

fn resvg_renders_a_mounted_drawing(ctx: &Ctx) {
    let bundle = program(ctx, "resvg.wasm");
    let (drawings, pictures) = (ctx.mkdir("drawings"), ctx.mkdir("pictures"));
    fs::write(
        drawings.join("a.svg"),
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="8" height="4"><rect width="8" height="4" fill="red"/></svg>"#,
    )
    .unwrap();
    bundle
        .bind(&drawings, "/drawings", &["bind", "ro"])
        .bind(&pictures, "/pictures", &["bind"])
        .args(&["/program.wasm", "/drawings/a.svg", "/pictures/a.png"]);
    ctx.run(&bundle).ok();
    let picture = fs::read(pictures.join("a.png")).expect("the picture");
    // PNG (RFC 2083): the signature, then the header with width and height.
    assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n"));
    assert_eq!(picture[12..24], *b"IHDR\0\0\0\x08\0\0\0\x04");
}

/// SQLite with its database on a volume.
fn sqlite(ctx: &Ctx, statements: &[&str]) -> Bundle {
    let bundle = program(ctx, "sql.wasm");
    let args: Vec<&str> = ["/program.wasm", "/data/db"]
        .iter()
        .chain(statements)
        .copied()
        .collect();
    bundle.bind(&ctx.mkdir("data"), "/data", &["bind"]).args(&args);
    bundle
}

fn sqlite_keeps_a_database_on_a_volume(ctx: &Ctx) {
    let bundle = sqlite(
        ctx,
        &[
            "create table if not exists visits (name text)",
            "insert into visits values ('run')",
            "select count(*), min(name) from visits",
        ],
    );
    for visits in 1..4 {
        assert_eq!(ctx.run(&bundle).ok().text(), format!("{visits}|run"));
    }
    // SQLite's own complaint, and its status.
    let bundle = sqlite(ctx, &["select * from absent"]);
    let out = ctx.run(&bundle);
    out.code(1);
    assert!(out.stderr.contains("no such table: absent"), "{out:?}");
}

/// Each row that was reported as committed is there after SIGKILL, and the file is whole.
fn sqlite_survives_being_killed(ctx: &Ctx) {
    let mut statements = vec!["create table rows (n integer)"];
    statements.extend(["insert into rows select count(*) from rows", "select max(n) from rows"].repeat(20_000));
    let writer = sqlite(ctx, &statements);
    let container = ctx.start(&writer);
    container.says("50\n");
    container.kill("KILL").stopped();
    let reported = container.stdout();
    // The last line may be cut off.
    let (whole, _) = reported.rsplit_once('\n').expect("lines");
    let last: u64 = whole.lines().next_back().unwrap().parse().expect("a number");
    container.delete();
    let rows = format!("select count(*) > {last} from rows");
    let reader = sqlite(ctx, &["pragma integrity_check", &rows]);
    assert_eq!(ctx.run(&reader).ok().text(), "ok\n1");
}

/// Each waits for its input to end, so that all live at the same time.
fn two_hundred_guests_run_at_once(ctx: &Ctx) {
    const GUESTS: usize = 200;
    let fifo = ctx.dir.join("input");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Open both ways, so that neither end waits for the other. It is the only one to write: when it is gone, input ends.
    let input = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let calls: Vec<_> = (0..GUESTS)
        .map(|_| {
            let bundle = program(ctx, "cat.wasm");
            bundle.args(&["/program.wasm"]);
            let id = ctx.id();
            let args = ["run", "--bundle", bundle.dir.to_str().unwrap(), &id];
            let stdin = fs::File::open(&fifo).unwrap();
            ctx.call(&args).stdin_from(stdin).spawn()
        })
        .collect();
    let running = || {
        let list = ctx.call(&["list", "--format", "json"]).output().ok().json();
        let list = list
            .as_array()
            .map_or(0, |all| all.iter().filter(|one| one["status"] == "running").count());
        (list == GUESTS).then_some(())
    };
    eventually_within(120, "two hundred running guests", running);
    drop(input);
    for call in calls {
        call.wait().ok();
    }
}
