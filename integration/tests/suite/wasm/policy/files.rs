//! `proa.wasm/preopens`, `proa.wasm/preopen`, and the file's `wasm.files`.

use std::fs;
use std::os::unix::fs::symlink;

use proa_integration::{Bundle, Ctx, tests};
use serde_json::json;

use super::{annotate, configuration, module, refused, run_under};

tests! {
    mounts_gives_the_mounts_and_cwd_and_nothing_else .once().only_proa();
    nothing_gives_nothing_but_what_is_named .once().only_proa();
    read_only_mounts_and_preopens_are_read_only_for_the_guest .once().only_proa();
    a_guest_works_in_what_it_is_given .once().only_proa();
    a_directory_that_is_absent_is_refused_by_name .once().only_proa();
    what_the_administrator_does_not_allow_is_refused_by_name .once().only_proa();
    a_working_directory_that_leads_to_the_kernel_is_not_given .once().only_proa();
    a_read_only_directory_in_a_writable_one_is_refused .once().only_proa();
    a_named_directory_behind_a_link_of_the_image_is_refused .once().only_proa();
    narrowed_files_work_in_user_namespaces .once().only_proa();
    narrowed_files_work_without_no_new_privileges .once().only_proa();
    exec_is_held_to_the_same_files .once().only_proa();
    an_unprivileged_users_guest_is_held_to_its_policy .once().only_proa();
    narrowed_files_without_landlock_are_refused .once().only_proa();
    narrowed_files_under_a_profile_without_landlock_are_refused .once().only_proa();
}

/// `preopens`, `cat FILE`, `write FILE TEXT`, `ls DIR`: says what happened.
pub const FILES: &str = r#"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wasi/api.h>

static int failed(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	char text[256];
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "preopens")) {
			__wasi_prestat_t stat;
			for (int fd = 3; !__wasi_fd_prestat_get(fd, &stat); fd++) {
				memset(text, 0, sizeof text);
				if (__wasi_fd_prestat_dir_name(fd, (uint8_t *)text, sizeof text))
					return failed("prestat_dir_name");
				printf("[%s]", text);
			}
			puts("");
		} else if (!strcmp(argv[i], "cat")) {
			FILE *f = fopen(argv[++i], "r");
			if (!f)
				return failed(argv[i]);
			while (fgets(text, sizeof text, f))
				fputs(text, stdout);
			puts("");
			fclose(f);
		} else if (!strcmp(argv[i], "write")) {
			FILE *f = fopen(argv[++i], "w");
			if (!f)
				return failed(argv[i]);
			fputs(argv[++i], f);
			if (fclose(f))
				return failed(argv[i]);
		} else if (!strcmp(argv[i], "ls")) {
			DIR *d = opendir(argv[++i]);
			struct dirent *e;
			if (!d)
				return failed(argv[i]);
			while ((e = readdir(d)))
				if (e->d_name[0] != '.')
					puts(e->d_name);
		} else if (!strcmp(argv[i], "all")) {
			char *dir = argv[++i], to[256];
			unsigned char random[8];
			snprintf(text, sizeof text, "%s/made", dir);
			snprintf(to, sizeof to, "%s/sub/moved", dir);
			FILE *f = fopen(text, "w+");
			if (!f || fputs("x", f) < 0 || fflush(f) || ftruncate(fileno(f), 0) || fclose(f))
				return failed("file");
			snprintf(text, sizeof text, "%s/sub", dir);
			if (mkdir(text, 0777))
				return failed("mkdir");
			snprintf(text, sizeof text, "%s/made", dir);
			if (rename(text, to) || link(to, text) || unlink(text) || symlink("sub/moved", text))
				return failed("rename, link, unlink or symlink");
			if (!(f = fopen(text, "r")) || fclose(f) || unlink(text) || unlink(to))
				return failed("through the link");
			snprintf(text, sizeof text, "%s/sub", dir);
			if (rmdir(text))
				return failed("rmdir");
			if (getentropy(random, sizeof random))
				return failed("getentropy");
			puts("all of it");
		}
	}
	return 0;
}
"#;

/// A bundle with a volume at `/data`, a read-only one at `/fixed`, and a file outside of both.
fn volumes(ctx: &Ctx, annotations: &[(&str, &str)]) -> Bundle {
    let bundle = module(ctx, FILES, annotations);
    let (data, fixed) = (ctx.mkdir("data"), ctx.mkdir("fixed"));
    fs::write(data.join("file"), "of the volume").unwrap();
    fs::write(fixed.join("file"), "of the fixed one").unwrap();
    fs::create_dir(data.join("inner")).unwrap();
    bundle
        .writable()
        .file("/etc/secret", "of the container")
        .bind(&data, "/data", &["bind"])
        .bind(&fixed, "/fixed", &["bind", "ro"]);
    bundle
}

/// What the guest says to these arguments.
fn says(ctx: &Ctx, bundle: &Bundle, args: &[&str]) -> String {
    let mut all = vec!["/module.wasm"];
    all.extend(args);
    bundle.args(&all);
    let out = ctx.run(bundle);
    assert!(out.stderr.is_empty(), "{out:?}");
    out.stdout.trim_end().to_owned()
}

/// The directories that the guest is given, by their names: the engine orders them by where they lie on its heap.
fn preopens(ctx: &Ctx, bundle: &Bundle) -> String {
    let said = says(ctx, bundle, &["preopens"]);
    let mut names: Vec<&str> = said.split_inclusive(']').collect();
    names.sort_unstable();
    names.concat()
}

fn mounts_gives_the_mounts_and_cwd_and_nothing_else(ctx: &Ctx) {
    let bundle = volumes(ctx, &[]);
    assert_eq!(says(ctx, &bundle, &["cat", "/etc/secret"]), "of the container");
    annotate(&bundle, &[("preopens", "mounts")]);
    // As the engine calls them.
    assert_eq!(preopens(ctx, &bundle), "[data][fixed]");
    assert_eq!(says(ctx, &bundle, &["cat", "/data/file"]), "of the volume");
    for outside in ["/etc/secret", "/data/../etc/secret", "/module.wasm"] {
        let said = says(ctx, &bundle, &["cat", outside]);
        assert!(said.starts_with(&format!("{outside}: ")), "{said}");
    }
    bundle.set("/process/cwd", json!("/etc"));
    assert_eq!(says(ctx, &bundle, &["cat", "secret"]), "of the container");
}

fn nothing_gives_nothing_but_what_is_named(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "nothing")]);
    assert_eq!(preopens(ctx, &bundle), "");
    assert!(says(ctx, &bundle, &["cat", "/data/file"]).starts_with("/data/file: "));
    annotate(&bundle, &[("preopens", "nothing"), ("preopen", "/data:/d:ro,/tmp")]);
    assert_eq!(says(ctx, &bundle, &["cat", "/d/file"]), "of the volume");
    assert_eq!(
        says(ctx, &bundle, &["write", "/tmp/made", "x", "cat", "/tmp/made"]),
        "x"
    );
    assert!(says(ctx, &bundle, &["cat", "/data/file"]).starts_with("/data/file: "));
    assert!(says(ctx, &bundle, &["write", "/d/made", "x"]).starts_with("/d/made: "));
}

fn read_only_mounts_and_preopens_are_read_only_for_the_guest(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "mounts")]);
    assert_eq!(says(ctx, &bundle, &["cat", "/fixed/file"]), "of the fixed one");
    assert!(says(ctx, &bundle, &["write", "/fixed/made", "x"]).starts_with("/fixed/made: "));
    assert_eq!(says(ctx, &bundle, &["write", "/data/made", "x"]), "");
    // The same directory, narrowed by name.
    annotate(&bundle, &[("preopens", "mounts"), ("preopen", "/data:ro")]);
    assert_eq!(says(ctx, &bundle, &["cat", "/data/file"]), "of the volume");
    assert!(says(ctx, &bundle, &["write", "/data/more", "x"]).starts_with("/data/more: "));
    assert!(!ctx.dir.join("data/more").exists());
    // And by another name, which narrows the first.
    annotate(&bundle, &[("preopens", "mounts"), ("preopen", "/data:/again:ro")]);
    for path in ["/data/more", "/again/more"] {
        assert!(says(ctx, &bundle, &["write", path, "x"]).starts_with(path));
    }
}

fn a_guest_works_in_what_it_is_given(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "mounts")]);
    assert_eq!(says(ctx, &bundle, &["all", "/data"]), "all of it");
    bundle.set("/process/cwd", json!("/data/inner"));
    assert_eq!(says(ctx, &bundle, &["all", "."]), "all of it");
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    assert_eq!(says(ctx, &bundle, &["cat", "/data/file"]), "of the volume");
}

fn a_directory_that_is_absent_is_refused_by_name(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopen", "/absent")]);
    refused(
        ctx,
        &bundle,
        &["preopened directory /absent", "no such file or directory"],
    );
    annotate(&bundle, &[("preopen", "/etc/secret")]);
    refused(ctx, &bundle, &["preopened directory /etc/secret", "not a directory"]);
    annotate(&bundle, &[("preopen", "data")]);
    refused(ctx, &bundle, &["annotation proa.wasm/preopen", "not an absolute path"]);
    annotate(&bundle, &[("preopens", "some")]);
    refused(
        ctx,
        &bundle,
        &["annotation proa.wasm/preopens", "root, mounts, nothing"],
    );
}

fn what_the_administrator_does_not_allow_is_refused_by_name(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "root")]);
    let file = configuration(ctx, "[wasm.files]\npreopens = \"mounts\"\n");
    bundle.args(&["/module.wasm", "cat", "/etc/secret"]);
    let out = run_under(ctx, &file, &bundle);
    assert!(out.code(1).stdout.starts_with("/etc/secret: "), "{out:?}");
    annotate(&bundle, &[("preopen", "/etc")]);
    run_under(ctx, &file, &bundle).refused(&[
        "preopened directory /etc",
        "outside of what the configuration file allows",
    ]);
    annotate(&bundle, &[("preopens", "nothing"), ("preopen", "/data/inner:/in")]);
    bundle.args(&["/module.wasm", "all", "/in"]);
    assert_eq!(run_under(ctx, &file, &bundle).ok().text(), "all of it");
    symlink("/etc", ctx.dir.join("data/link")).unwrap();
    annotate(&bundle, &[("preopen", "/data/link")]);
    run_under(ctx, &file, &bundle).refused(&["preopened directory /data/link", "symbolic link"]);
    let file = configuration(ctx, "[wasm.files]\npreopens = \"nothing\"\n");
    annotate(&bundle, &[("preopen", "/data")]);
    run_under(ctx, &file, &bundle).refused(&[
        "preopened directory /data",
        "outside of what the configuration file allows",
    ]);
}

fn a_working_directory_that_leads_to_the_kernel_is_not_given(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "mounts")]);
    for cwd in ["/", "/proc", "/proc/self"] {
        bundle.set("/process/cwd", json!(cwd));
        assert_eq!(preopens(ctx, &bundle), "[data][fixed]", "{cwd}");
    }
}

fn a_read_only_directory_in_a_writable_one_is_refused(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "mounts"), ("preopen", "/data/inner:ro")]);
    refused(
        ctx,
        &bundle,
        &["preopened directory /data/inner", "lies in /data, which is writable"],
    );
    annotate(&bundle, &[("preopen", "/data:ro")]);
    refused(
        ctx,
        &bundle,
        &["preopened directory /data", "lies in /, which is writable"],
    );
    // Of a mount that is read-only itself it is true.
    annotate(&bundle, &[("preopen", "/fixed:ro")]);
    assert_eq!(says(ctx, &bundle, &["cat", "/fixed/file"]), "of the fixed one");
}

fn a_named_directory_behind_a_link_of_the_image_is_refused(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "nothing"), ("preopen", "/innocent")]);
    symlink("/etc", bundle.path("/innocent")).unwrap();
    refused(ctx, &bundle, &["preopened directory /innocent", "symbolic link"]);
}

fn narrowed_files_work_in_user_namespaces(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "mounts")]);
    bundle.userns(200_000);
    assert_eq!(says(ctx, &bundle, &["cat", "/data/file"]), "of the volume");
    assert!(says(ctx, &bundle, &["cat", "/etc/secret"]).starts_with("/etc/secret: "));
}

fn narrowed_files_work_without_no_new_privileges(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "mounts")]);
    bundle.set("/process/noNewPrivileges", json!(false));
    assert_eq!(says(ctx, &bundle, &["all", "/data"]), "all of it");
    assert!(says(ctx, &bundle, &["cat", "/etc/secret"]).starts_with("/etc/secret: "));
}

fn exec_is_held_to_the_same_files(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "mounts")]);
    bundle.sh("sleep 100");
    let container = ctx.start(&bundle);
    let out = container
        .exec_call(&[], &["/module.wasm", "cat", "/data/file"])
        .output();
    assert_eq!(out.ok().text(), "of the volume");
    let out = container
        .exec_call(&[], &["/module.wasm", "cat", "/etc/secret"])
        .output();
    assert!(out.code(1).stdout.starts_with("/etc/secret: "), "{out:?}");
    // A Linux program is not what the policy is about.
    let out = container
        .exec_call(&[], &["/bin/sh", "-c", "read line < /etc/secret; echo $line"])
        .output();
    assert_eq!(out.ok().text(), "of the container");
}

/// Nothing but the engine would hold the guest to them.
fn narrowed_files_without_landlock_are_refused(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "mounts")]);
    let dir = bundle.dir.to_str().unwrap();
    let run = || {
        let call = ctx.call(&["run", "--bundle", dir, &ctx.id()]);
        call.under(&[ctx.probe.to_str().unwrap(), "mask", "landlock_create_ruleset"])
            .output()
    };
    bundle.args(&["/module.wasm", "cat", "/data/file"]);
    run().refused(&["proa.wasm/preopens can't be enforced", "Landlock"]);
    // The root needs nothing.
    annotate(&bundle, &[]);
    assert_eq!(run().ok().text(), "of the volume");
}

fn narrowed_files_under_a_profile_without_landlock_are_refused(ctx: &Ctx) {
    let bundle = volumes(ctx, &[("preopens", "mounts")]);
    bundle.args(&["/module.wasm", "cat", "/data/file"]);
    let without = |names: &[&str]| {
        let rule = json!({"names": names, "action": "SCMP_ACT_ERRNO"});
        bundle.set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}),
        );
    };
    let words = &["proa.wasm/preopens can't be enforced", "seccomp profile"];
    // With no_new_privs the profile holds from the start on, without it from before.
    for no_new_privileges in [true, false] {
        bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        without(&["landlock_restrict_self"]);
        ctx.run(&bundle).refused(words);
    }
    without(&["landlock_create_ruleset", "landlock_add_rule"]);
    refused(ctx, &bundle, words);
}

fn an_unprivileged_users_guest_is_held_to_its_policy(ctx: &Ctx) {
    let world = crate::rootless::world(ctx);
    let module = proa_integration::wasm::compile(&ctx.dir, "module", FILES, &[]);
    fs::copy(module, world.bundle.path("/module.wasm")).unwrap();
    let data = ctx.mkdir("data");
    fs::write(data.join("file"), "of the volume").unwrap();
    world
        .bundle
        .file("/etc/secret", "of the container")
        .bind(&data, "/data", &["bind"]);
    annotate(
        &world.bundle,
        &[("preopens", "mounts"), ("connect", "tcp:127.0.0.1:80")],
    );
    world.bundle.args(&["/module.wasm", "cat", "/data/file"]);
    assert_eq!(world.run().ok().text(), "of the volume");
    world.bundle.args(&["/module.wasm", "cat", "/etc/secret"]);
    let out = world.run();
    assert!(out.code(1).stdout.starts_with("/etc/secret: "), "{out:?}");
}
