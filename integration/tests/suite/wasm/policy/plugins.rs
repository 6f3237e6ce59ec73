//! Plugins of the engine: the administrator's list, `proa.wasm/plugins`, and whose files they may be.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use proa_integration::{Bundle, Ctx, tests};

use super::{annotate, configuration, module, refused, run_under};
use crate::attacks::withstood;

tests! {
    a_plugin_that_is_asked_for_serves_the_guest .once().only_proa();
    a_plugin_that_every_container_gets_serves_the_guest .once().only_proa();
    a_plugin_is_loaded_in_user_namespaces_and_for_exec .once().only_proa();
    a_plugin_that_is_not_allowed_is_refused_by_name .once().only_proa();
    a_plugin_that_others_could_change_is_refused_by_name .once().only_proa();
    a_file_that_is_no_plugin_is_refused_by_name .once().only_proa();
    no_plugin_is_loaded_that_nobody_asked_for .once().only_proa();
}

/// Calls the plugin of `plugin.c`: `twice N`, `read PATH`, `reach tcp|udp ADDRESS PORT` (127.0.0.N as N).
pub const GUEST: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLUGIN(name) __attribute__((import_module("proa_test"), import_name(#name)))
PLUGIN(twice) int twice(int number);
PLUGIN(read) int plugin_read(const char *path, int length, char *to, int most);
PLUGIN(reach) int reach(unsigned address, int port, int datagram);

int main(int argc, char **argv)
{
	char text[64] = "";
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "twice")) {
			printf("%d\n", twice(atoi(argv[++i])));
		} else if (!strcmp(argv[i], "read")) {
			i++;
			int length = plugin_read(argv[i], strlen(argv[i]), text, sizeof text - 1);
			printf("%s: %d %.*s\n", argv[i], length, length > 0 ? length : 0, text);
		} else {
			int datagram = !strcmp(argv[i + 1], "udp");
			int error = reach(0x7f000000 | atoi(argv[i + 2]), atoi(argv[i + 3]), datagram);
			printf("%s %s: errno %d\n", argv[i + 1], argv[i + 3], error);
			i += 3;
		}
	}
	return 0;
}
"#;

/// Compiles the plugin; it finds the engine that is there by its name.
pub fn plugin(ctx: &Ctx) -> PathBuf {
    plugin_as(ctx, &[])
}

/// The same with flags for the compiler.
fn plugin_as(ctx: &Ctx, flags: &[&str]) -> PathBuf {
    let dir = ctx.mkdir("plugins");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let (source, plugin, engine) = (
        dir.join("plugin.c"),
        dir.join("proa_test.so"),
        dir.join("libwasmedge.so.0"),
    );
    fs::write(&source, include_str!("plugin.c")).unwrap();
    fs::write(dir.join("nothing.c"), "").unwrap();
    let cc = |args: &[&str], files: &[&Path]| {
        let mut call = Command::new("cc");
        call.args(["-shared", "-fPIC", "-O1"])
            .args(args)
            .args(files)
            .env("TMPDIR", &dir);
        assert!(call.status().unwrap().success(), "cc {args:?} {files:?}");
    };
    let out = ["-o", engine.to_str().unwrap(), "-Wl,-soname,libwasmedge.so.0"];
    cc(&out, &[&dir.join("nothing.c")]);
    let out = [
        &["-o", plugin.to_str().unwrap(), "-pthread", "-Wl,--no-as-needed"],
        flags,
    ]
    .concat();
    cc(&out, &[&source, &engine]);
    // Only to link to: what is loaded is the real one.
    fs::remove_file(engine).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o644)).unwrap();
    plugin
}

/// The guest with a configuration file that has `key` list the plugin.
pub fn with_plugin(ctx: &Ctx, key: &str, annotations: &[(&str, &str)]) -> (Bundle, PathBuf, PathBuf) {
    with_plugin_as(ctx, &[], key, annotations)
}

/// The same with flags for the plugin's compiler.
pub fn with_plugin_as(
    ctx: &Ctx,
    flags: &[&str],
    key: &str,
    annotations: &[(&str, &str)],
) -> (Bundle, PathBuf, PathBuf) {
    let plugin = plugin_as(ctx, flags);
    let bundle = module(ctx, GUEST, annotations);
    bundle.args(&["/module.wasm", "twice", "21"]);
    let file = configuration(ctx, &format!("[wasm.plugins]\n{key} = [{plugin:?}]\n"));
    (bundle, file, plugin)
}

fn a_plugin_that_is_asked_for_serves_the_guest(ctx: &Ctx) {
    let (bundle, file, plugin) = with_plugin(ctx, "allow", &[]);
    annotate(&bundle, &[("plugins", plugin.to_str().unwrap())]);
    assert_eq!(run_under(ctx, &file, &bundle).ok().text(), "42");
    // Allowed is not loaded.
    annotate(&bundle, &[]);
    let out = run_under(ctx, &file, &bundle);
    assert!(
        out.code != 0 && out.stderr.contains("it imports from proa_test"),
        "{out:?}"
    );
}

fn a_plugin_that_every_container_gets_serves_the_guest(ctx: &Ctx) {
    let (bundle, file, _) = with_plugin(ctx, "load", &[]);
    assert_eq!(run_under(ctx, &file, &bundle).ok().text(), "42");
}

fn a_plugin_is_loaded_in_user_namespaces_and_for_exec(ctx: &Ctx) {
    let (bundle, file, _) = with_plugin(ctx, "load", &[]);
    let config = file.to_str().unwrap();
    bundle.userns(200_000);
    assert_eq!(run_under(ctx, &file, &bundle).ok().text(), "42");
    let id = ctx.id();
    bundle.sh("sleep 100");
    let dir = bundle.dir.to_str().unwrap();
    ctx.call(&["--config", config, "run", "--detach", "--bundle", dir, &id])
        .output()
        .ok();
    let out = ctx
        .call(&["--config", config, "exec", &id, "/module.wasm", "twice", "4"])
        .output();
    assert_eq!(out.ok().text(), "8");
    ctx.call(&["delete", "--force", &id]).output().ok();
}

fn a_plugin_that_is_not_allowed_is_refused_by_name(ctx: &Ctx) {
    let plugin = plugin(ctx);
    let path = plugin.to_str().unwrap();
    let bundle = module(ctx, GUEST, &[("plugins", path)]);
    refused(
        ctx,
        &bundle,
        &[
            "annotation proa.wasm/plugins",
            path,
            "not among the plugins that the configuration file allows",
        ],
    );
}

fn a_plugin_that_others_could_change_is_refused_by_name(ctx: &Ctx) {
    let (bundle, file, plugin) = with_plugin(ctx, "load", &[]);
    let path = plugin.to_str().unwrap();
    let mode = |path: &Path, bits| fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
    mode(&plugin, 0o666);
    let out = run_under(ctx, &file, &bundle);
    withstood!(out.text() != "42", "a plugin that others could have written is loaded");
    out.refused(&[&format!("plugin {path}: "), "can be written to by others"]);
    mode(&plugin, 0o644);
    mode(plugin.parent().unwrap(), 0o777);
    run_under(ctx, &file, &bundle).refused(&[&format!("plugin {path}: "), "can be written to by others"]);
    mode(plugin.parent().unwrap(), 0o755);
    chown(&plugin, Some(1000), None).unwrap();
    run_under(ctx, &file, &bundle).refused(&[&format!("plugin {path}: "), "is not owned by root"]);
    chown(&plugin, Some(0), None).unwrap();
    assert_eq!(run_under(ctx, &file, &bundle).ok().text(), "42");
    fs::remove_file(&plugin).unwrap();
    run_under(ctx, &file, &bundle).refused(&[&format!("plugin {path}: "), "no such file or directory"]);
}

fn a_file_that_is_no_plugin_is_refused_by_name(ctx: &Ctx) {
    let (bundle, file, plugin) = with_plugin(ctx, "load", &[]);
    fs::write(&plugin, "no library").unwrap();
    run_under(ctx, &file, &bundle).refused(&[&format!("plugin {}: ", plugin.display()), "no plugin for WasmEdge"]);
}

/// Neither what the engine's environment variable says, nor what lies where it would look.
fn no_plugin_is_loaded_that_nobody_asked_for(ctx: &Ctx) {
    let plugin = plugin(ctx);
    let dir = plugin.parent().unwrap().to_str().unwrap();
    let bundle = module(ctx, GUEST, &[]);
    let variable = format!("WASMEDGE_PLUGIN_PATH={dir}");
    bundle
        .args(&["/module.wasm", "twice", "21"])
        .set("/process/env", serde_json::json!([variable]));
    bundle.bind(plugin.parent().unwrap(), dir, &["bind"]);
    let call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()]);
    let out = call.env("WASMEDGE_PLUGIN_PATH", dir).output();
    assert!(
        out.code != 0 && out.stderr.contains("it imports from proa_test"),
        "{out:?}"
    );
}
