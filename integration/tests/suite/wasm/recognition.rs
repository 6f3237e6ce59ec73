//! Which entrypoints are WebAssembly: by name and by content, with no annotation at all.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proa_integration::{Bundle, Ctx, Output, tests, wasm};
use serde_json::json;

tests! {
    a_module_is_recognised_by_its_name .once().only_proa();
    a_module_that_is_not_executable_is_recognised .once().only_proa();
    a_module_in_a_bind_mount_is_recognised .once().only_proa();
    a_module_behind_links_into_a_mount_is_recognised .once().only_proa();
    a_module_found_through_path_is_recognised .once().only_proa();
    auto_looks_at_the_content_whatever_the_name_is .once().only_proa();
    annotation_leaves_unmarked_modules_to_the_kernel .once().only_proa();
    a_linux_program_that_is_called_wasm_runs_natively .once().only_proa();
    the_file_and_the_flag_say_how_to_recognise .once().only_proa();
    what_the_kernel_cannot_execute_gets_a_hint .once().only_proa();
    text_is_refused_with_a_hint .once().only_proa();
    an_unmarked_component_is_refused_when_created .once().only_proa();
    an_interpreter_of_the_kernel_comes_first .once().only_proa();
    without_the_wasm_hull_the_kernel_decides .once().only_proa();
    a_pods_sidecar_runs_under_auto .once().only_proa();
    user_namespaces_recognise_modules .once().only_proa();
    exec_recognises_a_module_in_a_linux_container .once().only_proa();
    a_configuration_others_may_write_is_refused .once().only_proa();
    nothing_is_looked_at_for_a_linux_program .once().only_proa();
}

const HELLO: &str = r#"
#include <stdio.h>

int main(int argc, char **argv)
{
	printf("wasm %s\n", argv[0]);
	return argc > 1;
}
"#;

/// A bundle without annotations, with a module of this name in its root; and the module's bytes.
fn unmarked(ctx: &Ctx, name: &str) -> Bundle {
    let bundle = ctx.bundle();
    install(ctx, &bundle.path(name));
    bundle.args(&[name]);
    bundle
}

fn install(ctx: &Ctx, path: &Path) {
    let module = wasm::compile(&ctx.dir, "hello", HELLO, &[]);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::copy(module, path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[track_caller]
fn ran_as_module(out: &Output, name: &str) {
    assert_eq!(out.ok().stdout, format!("wasm {name}\n"), "{out:?}");
}

/// `run` with global flags.
fn run(ctx: &Ctx, bundle: &Bundle, globals: &[&str]) -> Output {
    let (id, dir) = (ctx.id(), bundle.dir.to_str().unwrap());
    ctx.call(&[globals, &["run", "--bundle", dir, &id]].concat()).output()
}

fn a_module_is_recognised_by_its_name(ctx: &Ctx) {
    for name in ["/module.wasm", "/dir/MODULE.WASM"] {
        let bundle = unmarked(ctx, name);
        ran_as_module(&ctx.run(&bundle), name);
        bundle.set("/annotations", json!({"other": "annotation"}));
        ran_as_module(&ctx.run(&bundle), name);
        bundle.set("/annotations", json!({"run.oci.handler": "none"}));
        ctx.run(&bundle).refused(&["exec format error"]);
    }
}

fn a_module_that_is_not_executable_is_recognised(ctx: &Ctx) {
    let bundle = unmarked(ctx, "/module.wasm");
    fs::set_permissions(bundle.path("/module.wasm"), fs::Permissions::from_mode(0o444)).unwrap();
    ran_as_module(&ctx.run(&bundle), "/module.wasm");
}

fn a_module_in_a_bind_mount_is_recognised(ctx: &Ctx) {
    let volume = ctx.mkdir("volume");
    install(ctx, &volume.join("deep/module.wasm"));
    for (destination, name) in [
        ("/volume", "/volume/deep/module.wasm"),
        ("/volume", "./deep/module.wasm"),
    ] {
        let bundle = ctx.bundle();
        bundle
            .bind(&volume, destination, &["ro"])
            .args(&[name])
            .set("/process/cwd", json!("/volume"));
        ran_as_module(&ctx.run(&bundle), name);
        ran_as_module(&run(ctx, &bundle, &["--wasm-detect", "auto"]), name);
    }
    // The file itself; and one that is covered by what is no module.
    let bundle = ctx.bundle();
    bundle
        .bind(&volume.join("deep/module.wasm"), "/app.wasm", &["ro"])
        .args(&["/app.wasm"]);
    ran_as_module(&ctx.run(&bundle), "/app.wasm");
    let bundle = unmarked(ctx, "/app.wasm");
    fs::write(volume.join("text"), "no module").unwrap();
    fs::set_permissions(volume.join("text"), fs::Permissions::from_mode(0o755)).unwrap();
    bundle.bind(&volume.join("text"), "/app.wasm", &["ro"]);
    ctx.run(&bundle).refused(&["exec format error"]);
}

fn a_module_behind_links_into_a_mount_is_recognised(ctx: &Ctx) {
    let volume = ctx.mkdir("volume");
    install(ctx, &volume.join("module"));
    symlink("/volume/module", volume.join("link.wasm")).unwrap();
    let bundle = ctx.bundle();
    symlink("/volume/link.wasm", bundle.path("/app.wasm")).unwrap();
    bundle.bind(&volume, "/volume", &["ro"]).args(&["/app.wasm"]);
    ran_as_module(&ctx.run(&bundle), "/app.wasm");
    // A tmpfs that is filled from the image.
    let bundle = unmarked(ctx, "/filled/app.wasm");
    bundle
        .mount(json!({"destination": "/filled", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}))
        .args(&["/filled/app.wasm"]);
    ran_as_module(&ctx.run(&bundle), "/filled/app.wasm");
}

fn a_module_found_through_path_is_recognised(ctx: &Ctx) {
    let bundle = unmarked(ctx, "/opt/bin/module.wasm");
    bundle
        .args(&["module.wasm"])
        .set("/process/env", json!(["PATH=/bin:/opt/bin"]));
    ran_as_module(&ctx.run(&bundle), "module.wasm");
}

fn auto_looks_at_the_content_whatever_the_name_is(ctx: &Ctx) {
    let bundle = unmarked(ctx, "/app");
    ran_as_module(&run(ctx, &bundle, &["--wasm-detect", "auto"]), "/app");
    // A Linux program is one, a missing program is told in runc's words, and what is neither is the kernel's matter.
    bundle.sh("echo native");
    assert_eq!(run(ctx, &bundle, &["--wasm-detect=auto"]).ok().stdout, "native\n");
    bundle.args(&["/missing"]);
    run(ctx, &bundle, &["--wasm-detect=auto"])
        .refused(&["exec: \"/missing\": stat /missing: no such file or directory"]);
    bundle.args(&["missing"]);
    run(ctx, &bundle, &["--wasm-detect=auto"]).refused(&["exec: \"missing\": executable file not found in $PATH"]);
}

fn annotation_leaves_unmarked_modules_to_the_kernel(ctx: &Ctx) {
    let bundle = unmarked(ctx, "/module.wasm");
    run(ctx, &bundle, &["--wasm-detect", "annotation"]).refused(&["exec format error"]);
    bundle.set("/annotations", json!({"run.oci.handler": "wasm"}));
    ran_as_module(&run(ctx, &bundle, &["--wasm-detect", "annotation"]), "/module.wasm");
}

fn a_linux_program_that_is_called_wasm_runs_natively(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .file("/tool.wasm", "#!/bin/sh\necho native $$\n")
        .args(&["/tool.wasm"]);
    fs::set_permissions(bundle.path("/tool.wasm"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(ctx.run(&bundle).ok().stdout, "native 1\n");
    fs::set_permissions(bundle.path("/tool.wasm"), fs::Permissions::from_mode(0o644)).unwrap();
    ctx.run(&bundle).refused(&["exec: \"/tool.wasm\": permission denied"]);
    bundle.args(&["/missing.wasm"]);
    ctx.run(&bundle)
        .refused(&["exec: \"/missing.wasm\": stat /missing.wasm: no such file or directory"]);
}

fn the_file_and_the_flag_say_how_to_recognise(ctx: &Ctx) {
    let bundle = unmarked(ctx, "/app");
    let config = ctx.dir.join("config.toml");
    let config = config.to_str().unwrap();
    fs::write(config, "[wasm]\ndetect = \"auto\"\n").unwrap();
    ran_as_module(&run(ctx, &bundle, &["--config", config]), "/app");
    run(ctx, &bundle, &["--config", config, "--wasm-detect", "name"]).refused(&["exec format error"]);
    run(ctx, &bundle, &["--wasm-detect", "sometimes"]).refused(&["--wasm-detect", "sometimes"]);
}

fn what_the_kernel_cannot_execute_gets_a_hint(ctx: &Ctx) {
    let bundle = unmarked(ctx, "/app");
    let out = ctx.run(&bundle);
    out.code(255);
    out.refused(&["exec /app: exec format error", "run.oci.handler=wasm"]);
    // The program's own log has it as well: `kubectl logs` shows nothing else.
    fs::write(bundle.path("/app"), "neither").unwrap();
    let out = ctx.run(&bundle);
    out.refused(&["exec /app: exec format error"]);
    assert!(!out.stderr.contains("WebAssembly"), "{out:?}");
}

fn text_is_refused_with_a_hint(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .args(&["/app.wat"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    // The last begins like no text at all: then it is the name that tells.
    for text in ["(module)", ";; comment\n(module)", "\"quoted\""] {
        bundle.file("/app.wat", text);
        let id = ctx.id();
        ctx.create_call(&bundle, &id, &[])
            .output()
            .refused(&["/app.wat", "wat2wasm"]);
        ctx.call(&["state", &id]).output().refused(&["does not exist"]);
    }
    let bundle = ctx.bundle();
    bundle.file("/app.wat", "(module)").args(&["/app.wat"]);
    fs::set_permissions(bundle.path("/app.wat"), fs::Permissions::from_mode(0o755)).unwrap();
    ctx.run(&bundle).refused(&["exec format error", "wat2wasm"]);
}

fn an_unmarked_component_is_refused_when_created(ctx: &Ctx) {
    let bundle = unmarked(ctx, "/app.wasm");
    fs::write(bundle.path("/app.wasm"), wasm::COMPONENT).unwrap();
    let id = ctx.id();
    ctx.create_call(&bundle, &id, &[])
        .output()
        .refused(&["/app.wasm", "component"]);
    ctx.call(&["state", &id]).output().refused(&["does not exist"]);
    fs::write(bundle.path("/app.wasm"), b"\0asm").unwrap();
    ctx.create_call(&bundle, &ctx.id(), &[])
        .output()
        .refused(&["truncated"]);
}

/// binfmt_misc is mounted in the test's own mount namespace. Entries are the whole machine's, so none is registered: one that
/// is there already makes the difference, and without one there is none.
fn an_interpreter_of_the_kernel_comes_first(ctx: &Ctx) {
    let bundle = unmarked(ctx, "/app.wasm");
    let there = fs::read_dir("/proc/sys/fs/binfmt_misc")
        .map(|entries| {
            entries
                .flatten()
                .any(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("magic 0061736d")))
        })
        .unwrap_or(false);
    let out = run(ctx, &bundle, &["--debug"]);
    assert_eq!(out.stderr.contains("binfmt_misc"), there, "{out:?}");
    if !there {
        assert_eq!(out.ok().stdout, "wasm /app.wasm\n");
    }
}

fn without_the_wasm_hull_the_kernel_decides(ctx: &Ctx) {
    // proa alone, somewhere else.
    let dir = ctx.mkdir("alone");
    let alone = dir.join("proa");
    fs::copy(&ctx.subject.path, &alone).unwrap();
    let bundle = unmarked(ctx, "/app.wasm");
    let call = |bundle: &Bundle, globals: &[&str]| {
        let (id, dir) = (ctx.id(), bundle.dir.to_str().unwrap());
        ctx.call(&[globals, &["run", "--bundle", dir, &id]].concat())
            .program(&alone)
            .output()
    };
    call(&bundle, &[]).refused(&["exec format error"]);
    bundle.set("/annotations", json!({"run.oci.handler": "wasm"}));
    call(&bundle, &[]).refused(&["proa-wasmedge, isn't installed"]);
    let native = ctx.bundle();
    native.sh("echo native");
    assert_eq!(call(&native, &["--wasm-detect", "auto"]).ok().stdout, "native\n");
}

fn a_pods_sidecar_runs_under_auto(ctx: &Ctx) {
    for (key, kind) in [
        ("io.kubernetes.cri.container-type", "sandbox"),
        ("io.kubernetes.cri-o.ContainerType", "sandbox"),
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri-o.ContainerType", "container"),
    ] {
        let bundle = ctx.bundle();
        bundle.sh("echo native").set("/annotations", json!({key: kind}));
        let container = ctx.container(&bundle);
        let out = run(ctx, &bundle, &["--wasm-detect", "auto"]);
        assert_eq!(out.ok().stdout, "native\n", "{key}={kind}");
        drop(container);
    }
}

fn user_namespaces_recognise_modules(ctx: &Ctx) {
    let bundle = unmarked(ctx, "/app.wasm");
    bundle.userns(100_000);
    ran_as_module(&ctx.run(&bundle), "/app.wasm");
    bundle.sh("echo native");
    assert_eq!(run(ctx, &bundle, &["--wasm-detect", "auto"]).ok().stdout, "native\n");
}

fn exec_recognises_a_module_in_a_linux_container(ctx: &Ctx) {
    let bundle = ctx.bundle();
    install(ctx, &bundle.path("/tool.wasm"));
    bundle.sh("echo up; sleep 1000");
    let container = ctx.start(&bundle);
    let out = container.exec(&["/tool.wasm"]);
    assert_eq!(out.ok().stdout, "wasm /tool.wasm\n");
    assert_eq!(container.exec(&["sh", "-c", "echo native"]).ok().stdout, "native\n");
    container
        .exec(&["/missing.wasm"])
        .refused(&["stat /missing.wasm: no such file or directory"]);
}

fn a_configuration_others_may_write_is_refused(ctx: &Ctx) {
    let bundle = unmarked(ctx, "/app.wasm");
    let config = ctx.dir.join("config.toml");
    let given = config.to_str().unwrap();
    fs::write(&config, "[wasm]\ndetect = \"annotation\"\n").unwrap();
    for (mode, owner) in [(0o666, 0), (0o664, 0), (0o644, 12345)] {
        std::os::unix::fs::chown(&config, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(mode)).unwrap();
        let id = ctx.id();
        let dir = bundle.dir.to_str().unwrap();
        ctx.call(&["--config", given, "create", "--bundle", dir, &id])
            .output()
            .refused(&[given, "it is not used"]);
        ctx.call(&["state", &id]).output().refused(&["does not exist"]);
    }
    for (text, words) in [("[wasm", "config.toml"), ("[wasm]\ndetekt = 1\n", "detekt")] {
        std::os::unix::fs::chown(&config, Some(0), Some(0)).unwrap();
        fs::write(&config, text).unwrap();
        run(ctx, &bundle, &["--config", given]).refused(&[words]);
    }
    run(ctx, &bundle, &["--config", ""]).refused(&["--config"]);
    run(ctx, &bundle, &["--config", "/nowhere.toml"]).refused(&["/nowhere.toml"]);
}

/// The entrypoint is a fifo's name with nobody behind it: whoever opened it would wait for ever, or be refused otherwise.
fn nothing_is_looked_at_for_a_linux_program(ctx: &Ctx) {
    let bundle = ctx.bundle();
    nix::unistd::mkfifo(&bundle.path("/fifo"), nix::sys::stat::Mode::from_bits_truncate(0o755)).unwrap();
    bundle.args(&["/fifo"]);
    ctx.run(&bundle).refused(&["/fifo", "permission denied"]);
    let log = ctx.dir.join("strace");
    let Some(strace) = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join("strace"))
        .find(|path| path.exists())
    else {
        return;
    };
    bundle.args(&["/bin/true"]);
    let (id, dir) = (ctx.id(), bundle.dir.to_str().unwrap());
    let call = ctx.call(&["run", "--bundle", dir, &id]);
    let trace = ["-f", "-e", "trace=open,openat,openat2,execveat", "-o"];
    let prefix: Vec<&str> = [strace.to_str().unwrap()]
        .into_iter()
        .chain(trace)
        .chain([log.to_str().unwrap()])
        .collect();
    call.under(&prefix).output().ok();
    let calls = fs::read_to_string(&log).unwrap();
    for name in ["bin/true", "wasmedge", "binfmt"] {
        let opened: Vec<&str> = calls
            .lines()
            .filter(|line| line.contains(name) && !line.contains("execve"))
            .collect();
        assert!(opened.is_empty(), "{opened:?}");
    }
}
