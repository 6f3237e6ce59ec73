//! `proa wasm inspect` and `proa doctor`: what they tell is what then happens.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proa_integration::{Bundle, Ctx, Output, View, tests, wasm};
use serde_json::{Value, json};

tests! {
    a_module_is_explained .once().only_proa();
    a_linux_program_is_explained .once().only_proa();
    the_decision_is_told_with_its_reason .once().only_proa();
    what_create_refuses_inspect_refuses_in_the_same_words .once().only_proa();
    what_cannot_be_seen_from_outside_is_said .once().only_proa();
    modules_in_bind_mounts_are_found .once().only_proa();
    policy_is_told_as_it_is_resolved .once().only_proa();
    a_bare_module_is_explained .once().only_proa();
    looking_changes_nothing .once().only_proa();
    the_doctor_knows_the_cgroups .only_proa();
    the_doctor_says_what_is_wrong .once().only_proa();
}

const HELLO: &str = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n";

fn module(ctx: &Ctx) -> Bundle {
    let bundle = ctx.bundle();
    let module = wasm::compile(&ctx.dir, "hello", HELLO, &[]);
    fs::copy(module, bundle.path("/app.wasm")).unwrap();
    bundle.args(&["/app.wasm"]);
    bundle
}

fn inspect(ctx: &Ctx, bundle: &Bundle, flags: &[&str]) -> Output {
    let dir = bundle.dir.to_str().unwrap();
    ctx.call(&[&["wasm", "inspect", "--bundle", dir], flags].concat())
        .output()
}

fn json_of(ctx: &Ctx, bundle: &Bundle) -> Value {
    serde_json::from_str(&inspect(ctx, bundle, &["--format", "json"]).stdout).unwrap()
}

fn a_module_is_explained(ctx: &Ctx) {
    let bundle = module(ctx);
    let out = inspect(ctx, &bundle, &[]);
    out.ok();
    for text in [
        "runs          as a WebAssembly module, in WasmEdge 0.",
        "wasi_snapshot_preview1: ",
        "_start (function)",
        "sha256:",
        "preopens",
    ] {
        assert!(out.stdout.contains(text), "{text}: {out:?}");
    }
    let json = json_of(ctx, &bundle);
    assert_eq!(json["runs"], "module");
    assert_eq!(json["refusals"], json!([]));
    assert_eq!(
        json["module"]["size"],
        fs::metadata(bundle.path("/app.wasm")).unwrap().len()
    );
    assert!(
        json["module"]["exports"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it["name"] == "_start")
    );
    assert!(json["hull"].as_str().unwrap().ends_with("proa-wasmedge"), "{json}");
    assert_eq!(json["code"]["state"], "miss", "{json}");
    assert_eq!(ctx.run(&bundle).ok().stdout, "hello\n");
}

fn a_linux_program_is_explained(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.sh("echo native");
    let json = json_of(ctx, &bundle);
    assert_eq!(
        (&json["runs"], &json["refusals"]),
        (&json!("program"), &json!([])),
        "{json}"
    );
    assert_eq!(json["module"], Value::Null);
    // Marked for Wasm, as a sidecar is: the hull looks, and finds a program.
    bundle.set("/annotations", json!({"run.oci.handler": "wasm"}));
    assert_eq!(json_of(ctx, &bundle)["runs"], "program");
}

fn the_decision_is_told_with_its_reason(ctx: &Ctx) {
    let bundle = module(ctx);
    fs::set_permissions(bundle.path("/app.wasm"), fs::Permissions::from_mode(0o755)).unwrap();
    for (annotations, globals, runs, why) in [
        (json!({}), &[][..], "module", "name ends in .wasm"),
        (
            json!({}),
            &["--wasm-detect", "annotation"],
            "program",
            "wasm.detect is annotation",
        ),
        (
            json!({"run.oci.handler": "none"}),
            &[],
            "program",
            "run.oci.handler=none",
        ),
        (
            json!({"run.oci.handler": "wasm"}),
            &[],
            "module",
            "run.oci.handler=wasm",
        ),
        (
            json!({"io.kubernetes.cri-o.ContainerType": "sandbox"}),
            &[],
            "program",
            "pause container",
        ),
        (
            json!({"module.wasm.image/variant": "compat"}),
            &[],
            "module",
            "module.wasm.image/variant=compat",
        ),
    ] {
        bundle.set("/annotations", annotations.clone());
        let dir = bundle.dir.to_str().unwrap();
        let out = ctx
            .call(&[globals, &["wasm", "inspect", "-b", dir, "-f", "json"]].concat())
            .output();
        let json: Value = serde_json::from_str(&out.stdout).unwrap();
        assert_eq!(json["runs"], runs, "{annotations}: {json}");
        assert!(json["why"].as_str().unwrap().contains(why), "{annotations}: {json}");
        if runs == "program" {
            assert!(json["notes"].to_string().contains("WebAssembly"), "{json}");
        }
    }
}

fn what_create_refuses_inspect_refuses_in_the_same_words(ctx: &Ctx) {
    let marked = json!({"run.oci.handler": "wasm"});
    let with = |annotations: Value, content: &[u8]| {
        let bundle = module(ctx);
        bundle.set("/annotations", annotations);
        if !content.is_empty() {
            fs::write(bundle.path("/app.wasm"), content).unwrap();
        }
        bundle
    };
    let absent = with(marked.clone(), b"");
    absent.args(&["/absent.wasm"]);
    absent.edit(|spec| drop(spec.as_object_mut().unwrap().insert("mounts".into(), json!([]))));
    let cases = [
        (with(marked.clone(), wasm::COMPONENT), "component"),
        (with(json!({}), wasm::COMPONENT), "component"),
        (with(marked.clone(), b"\0asm"), "truncated"),
        (with(marked.clone(), b"(module)"), "wat2wasm"),
        (with(marked.clone(), b"neither of both"), "neither a WebAssembly module"),
        (with(json!({"run.oci.handler": "wasmtime"}), b""), "wasmtime"),
        (
            with(json!({"run.oci.handler": "wasm", "proa.wasm/feul": "1"}), b""),
            "proa.wasm/feul",
        ),
        (
            with(json!({"run.oci.handler": "wasm", "proa.wasm/fuel": "x"}), b""),
            "proa.wasm/fuel",
        ),
        (absent, "/absent.wasm"),
    ];
    for (bundle, words) in cases {
        let out = inspect(ctx, &bundle, &["--format", "json"]);
        out.code(1);
        let json: Value = serde_json::from_str(&out.stdout).unwrap();
        let refusal = json["refusals"][0].as_str().unwrap();
        assert!(refusal.contains(words), "{words}: {json}");
        let created = ctx.create_call(&bundle, &ctx.id(), &[]).output();
        created.refused(&[refusal]);
        let text = inspect(ctx, &bundle, &[]);
        text.code(1);
        assert!(text.stdout.contains("not at all: it is refused"), "{text:?}");
    }
}

fn what_cannot_be_seen_from_outside_is_said(ctx: &Ctx) {
    let bundle = module(ctx);
    bundle
        .mount(json!({"destination": "/hidden", "type": "tmpfs", "source": "tmpfs"}))
        .args(&["/hidden/app.wasm"]);
    let out = inspect(ctx, &bundle, &["--format", "json"]);
    out.ok();
    let json: Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!(json["runs"], "unknown");
    assert!(json["notes"].to_string().contains("/hidden/app.wasm"), "{json}");
}

fn modules_in_bind_mounts_are_found(ctx: &Ctx) {
    let volume = ctx.mkdir("volume");
    let module = wasm::compile(&ctx.dir, "hello", HELLO, &[]);
    fs::copy(module, volume.join("app.wasm")).unwrap();
    for (source, destination, entrypoint) in [
        (volume.clone(), "/volume", "/volume/app.wasm"),
        (volume.join("app.wasm"), "/app.wasm", "/app.wasm"),
    ] {
        let bundle = ctx.bundle();
        bundle.bind(&source, destination, &["ro"]).args(&[entrypoint]);
        let json = json_of(ctx, &bundle);
        assert_eq!(json["runs"], "module", "{json}");
        assert_eq!(json["file"], volume.join("app.wasm").to_str().unwrap());
    }
}

fn policy_is_told_as_it_is_resolved(ctx: &Ctx) {
    let bundle = module(ctx);
    let config = ctx.dir.join("config.toml");
    fs::write(&config, "[wasm.limits]\nfuel = 1000\n[wasm.aot]\npolicy = \"off\"\n").unwrap();
    bundle.set(
        "/annotations",
        json!({"proa.wasm/fuel": "5000", "proa.wasm/pages": "17", "proa.wasm/preopens": "nothing"}),
    );
    let dir = bundle.dir.to_str().unwrap();
    let call = ["--config", config.to_str().unwrap(), "wasm", "inspect", "--bundle", dir];
    let out = ctx.call(&call).output();
    out.ok();
    for text in ["fuel 1000", "17 pages", "preopens      none", "aot           off"] {
        assert!(out.stdout.contains(text), "{text}: {out:?}");
    }
}

fn a_bare_module_is_explained(ctx: &Ctx) {
    let module = wasm::compile(&ctx.dir, "hello", HELLO, &[]);
    let out = ctx
        .call(&["wasm", "inspect", module.to_str().unwrap(), "--format", "json"])
        .output();
    let json: Value = serde_json::from_str(&out.ok().stdout).unwrap();
    assert_eq!(json["runs"], "module");
    fs::write(&module, wasm::COMPONENT).unwrap();
    let out = ctx.call(&["wasm", "inspect", module.to_str().unwrap()]).output();
    out.code(1);
    assert!(out.stdout.contains("refused"), "{out:?}");
    ctx.call(&["wasm", "inspect", "/nowhere.wasm"])
        .output()
        .refused(&["/nowhere.wasm"]);
    ctx.call(&["wasm", "inspect", "--format", "xml"])
        .output()
        .refused(&["format"]);
}

fn looking_changes_nothing(ctx: &Ctx) {
    let bundle = module(ctx);
    let volume = ctx.mkdir("volume");
    // A mount point that would have to be made.
    bundle.bind(&volume, "/made/by/create", &[]);
    inspect(ctx, &bundle, &[]).ok();
    assert!(!bundle.path("/made").exists());
    assert_eq!(ctx.call(&["list", "-q"]).output().ok().stdout, "");
}

fn the_doctor_knows_the_cgroups(ctx: &Ctx) {
    let out = ctx.call(&["doctor", "--format", "json"]).output();
    let checks: Value = serde_json::from_str(&out.ok().stdout).unwrap();
    let find = |area: &str, name: &str| {
        let mut all = checks.as_array().unwrap().iter();
        all.find(|check| check["area"] == area && check["name"] == name)
            .unwrap_or_else(|| panic!("{area} {name}: {checks:#}"))
            .clone()
    };
    let mode = find("cgroup", "mode");
    match ctx.view {
        View::Hybrid => assert!(["hybrid", "v1"].iter().any(|it| mode["found"] == **it), "{mode}"),
        View::V1 => assert_eq!(mode["found"], "v1"),
        View::V2 => assert_eq!(mode["found"], "v2"),
        _ => assert_eq!(find("cgroup", "systemd")["state"], "ok"),
    }
    for name in ["namespace mount", "namespace pid", "openat2", "pidfd", "seccomp"] {
        assert_eq!(find("kernel", name)["state"], "ok", "{checks:#}");
    }
    assert_eq!(find("wasm", "engine")["state"], "ok");
    assert!(
        find("wasm", "engine")["found"]
            .as_str()
            .unwrap()
            .starts_with("WasmEdge 0.")
    );
    let text = ctx.call(&["doctor"]).output();
    assert_eq!(
        text.ok()
            .stdout
            .lines()
            .filter(|line| line.starts_with("FAILED"))
            .count(),
        0
    );
}

fn the_doctor_says_what_is_wrong(ctx: &Ctx) {
    let config = ctx.dir.join("config.toml");
    fs::write(&config, "[wasm]\ndetekt = 1\n").unwrap();
    let out = ctx.call(&["--config", config.to_str().unwrap(), "doctor"]).output();
    out.code(1);
    assert!(out.stdout.contains("FAILED   state    configuration file: "), "{out:?}");
    assert!(out.stdout.contains("detekt"), "{out:?}");
    // An engine that is not there, a cache that others may write to: containers of Linux programs can do without.
    let empty = ctx.mkdir("empty");
    let cache = ctx.mkdir("cache");
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
    let out = ctx
        .call(&["--engine-cache", cache.to_str().unwrap(), "doctor"])
        .env("PROA_ENGINE_DIR", empty.to_str().unwrap())
        .output();
    out.ok();
    for words in [
        "missing  wasm     engine: no WebAssembly engine",
        "missing  wasm     code cache: ",
    ] {
        assert!(out.stdout.contains(words), "{words}: {out:?}");
    }
    ctx.call(&["doctor", "--format", "xml"]).output().refused(&["format"]);
}
