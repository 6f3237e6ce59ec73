//! Bad input: a clear error that names the object, runc's exit status, nothing left behind.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use proa_integration::{Bundle, Ctx, Kind, Output, tests};
use serde_json::json;

tests! {
    config_that_is_missing .once();
    config_that_is_empty .once();
    config_that_is_cut_short .once();
    config_of_another_shape .once();
    config_without_a_process_at_start .once();
    config_with_no_arguments .once();
    config_without_linux_namespaces .once();
    config_with_a_foreign_major_version .once().only_proa();
    bundle_that_is_absent .once();
    mount_of_an_unknown_type .once();
    mount_with_an_unknown_option_is_data_for_the_filesystem .once();
    mount_source_that_is_absent .once();
    mount_of_a_directory_on_a_file .once();
    rootfs_that_is_absent .once();
    rootfs_that_is_a_file .once();
    rootfs_that_is_a_symlink_out .once();
    ids_that_climb .once();
    ids_that_are_empty_or_too_long .once();
    ids_with_odd_characters .once();
    ids_that_are_fine .once();
    id_in_use;
    verbs_on_an_absent_container .once();
    verbs_in_the_wrong_state .once();
    unknown_verbs_and_flags .once();
    missing_arguments .once();
    root_directory_that_cannot_be_written .once();
    root_directory_that_is_a_file .once();
    root_directory_that_is_full .once().not_for(&[(Kind::Runc, "1.1 says %!w(<nil>)")]);
    program_not_found;
    program_not_executable .once();
    program_is_a_directory .once();
    program_for_another_machine .once();
    program_is_empty .once();
    refused_program_is_told_on_the_containers_stderr .once().only_proa();
    pid_file_that_cannot_be_written .once();
    log_that_cannot_be_written .once();
    errors_are_in_the_json_log .once();
    errors_are_in_the_text_log .once();
    state_that_was_cut_short_does_not_stop_the_list .once();
    files_that_are_fifos_are_refused_and_not_waited_for .once().only_proa();
    a_process_may_come_through_a_pipe .once();
    negative_and_huge_ids_of_users .once();
    console_size_without_a_terminal_is_harmless .once();
    signal_that_does_not_exist .once();
    unknown_fields_are_ignored .once();
}

/// The create must fail, with a message of these words and status 1 as runc's, and leave nothing.
#[track_caller]
fn refused(ctx: &Ctx, bundle: &Bundle, words: &[&str]) -> Output {
    let id = ctx.id();
    let out = ctx.create_call(bundle, &id, &[]).output();
    out.refused(words).code(1);
    ctx.call(&["state", &id]).output().refused(&["does not exist"]);
    assert_eq!(ctx.call(&["list", "--quiet"]).output().ok().text(), "");
    out
}

fn config(bundle: &Bundle, text: &str) {
    fs::write(bundle.dir.join("config.json"), text).unwrap();
}

fn config_that_is_missing(ctx: &Ctx) {
    let bundle = ctx.bundle();
    fs::remove_file(bundle.dir.join("config.json")).unwrap();
    refused(ctx, &bundle, &["config.json"]);
}

fn config_that_is_empty(ctx: &Ctx) {
    let bundle = ctx.bundle();
    config(&bundle, "");
    refused(ctx, &bundle, &["EOF", "config.json"]);
}

fn config_that_is_cut_short(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let whole = bundle.spec().to_string();
    config(&bundle, &whole[..whole.len() / 2]);
    refused(ctx, &bundle, &["EOF", "config.json"]);
}

fn config_of_another_shape(ctx: &Ctx) {
    let bundle = ctx.bundle();
    for text in ["[]", "42", "{\"process\": 7}", "{\"mounts\": {}}"] {
        config(&bundle, text);
        let out = refused(ctx, &bundle, &["json", "config", "invalid", "missing", "must", "nil"]);
        assert!(!out.stderr.contains("panic"), "{out:?}");
    }
}

fn config_without_a_process_at_start(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.edit(|s| drop(s.as_object_mut().unwrap().remove("process")));
    let id = ctx.id();
    let out = ctx.create_call(&bundle, &id, &[]).output();
    if out.code == 0 {
        ctx.call(&["start", &id]).output().refused(&["process"]);
        ctx.call(&["delete", "--force", &id]).output().ok();
    } else {
        out.refused(&["process"]);
    }
}

fn config_with_no_arguments(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&[]);
    refused(ctx, &bundle, &["args"]);
}

fn config_without_linux_namespaces(ctx: &Ctx) {
    // Without a mount namespace the host's own mounts would be changed.
    let bundle = ctx.bundle();
    bundle.without_namespaces(&["mount"]);
    let out = ctx.run(&bundle);
    if ctx.subject.kind != Kind::Crun {
        out.refused(&["mount", "namespace", "not permitted", "invalid argument"]);
    }
}

fn config_with_a_foreign_major_version(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/ociVersion", json!("7.0.0"));
    refused(ctx, &bundle, &["7.0.0"]);
}

fn bundle_that_is_absent(ctx: &Ctx) {
    ctx.call(&["create", "--bundle", "/no/such/bundle", &ctx.id()])
        .output()
        .refused(&["/no/such/bundle"])
        .code(1);
}

fn mount_of_an_unknown_type(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.mount(json!({"destination": "/mnt", "type": "carpetfs", "source": "carpet"}));
    refused(ctx, &bundle, &["carpet", "no such device"]);
}

fn mount_with_an_unknown_option_is_data_for_the_filesystem(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.mount(json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["colour=green"]}));
    refused(ctx, &bundle, &["/mnt", "colour", "invalid argument"]);
}

fn mount_of_a_directory_on_a_file(ctx: &Ctx) {
    for (source, destination) in [("/etc", "/etc/passwd"), ("/etc/passwd", "/etc")] {
        let bundle = ctx.bundle();
        bundle.mount(json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind"]}));
        refused(ctx, &bundle, &["not a directory"]);
    }
}

fn mount_source_that_is_absent(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.bind("/no/such/source".as_ref(), "/mnt", &["bind"]);
    refused(ctx, &bundle, &["/no/such/source"]);
}

fn rootfs_that_is_absent(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/root/path", json!("no-such-root"));
    refused(ctx, &bundle, &["no-such-root"]);
}

fn rootfs_that_is_a_file(ctx: &Ctx) {
    let bundle = ctx.bundle();
    fs::write(bundle.dir.join("a-file"), "").unwrap();
    bundle.set("/root/path", json!("a-file"));
    refused(ctx, &bundle, &["a-file", "not a directory"]);
}

fn rootfs_that_is_a_symlink_out(ctx: &Ctx) {
    let bundle = ctx.bundle();
    symlink("/", bundle.dir.join("link")).unwrap();
    bundle.set("/root/path", json!("link")).args(&["/bin/true"]);
    let out = ctx.run(&bundle);
    // Older runtimes follow the link once; the host's root as a container is then what the caller asked for, read-only.
    if out.code != 0 {
        out.refused(&["link", "root"]);
    }
}

#[track_caller]
fn bad_id(ctx: &Ctx, id: &str) {
    let bundle = ctx.bundle();
    let out = ctx
        .call(&["create", "--bundle", bundle.dir.to_str().unwrap(), "--", id])
        .output();
    assert!(out.code != 0 && out.code < 1000, "{id:?}: {out:?}");
    assert!(!(out.stderr.clone() + &out.log).is_empty(), "{id:?}: no message");
    assert_eq!(ctx.call(&["list", "--quiet"]).output().ok().text(), "");
    for entry in fs::read_dir(&ctx.root).unwrap().flatten() {
        assert!(
            !entry.file_type().unwrap().is_dir(),
            "{id:?} left {}",
            entry.path().display()
        );
    }
}

fn ids_that_climb(ctx: &Ctx) {
    for id in ["../x", "..", ".", "a/b", "/etc", "../../../../tmp/x"] {
        bad_id(ctx, id);
    }
    assert!(!fs::exists(ctx.dir.join("x")).unwrap());
}

fn ids_that_are_empty_or_too_long(ctx: &Ctx) {
    bad_id(ctx, "");
    bad_id(ctx, &"x".repeat(1025));
    bad_id(ctx, &"x".repeat(5000));
}

fn ids_with_odd_characters(ctx: &Ctx) {
    for id in ["a b", "a\nb", "a:b", "ü", "a\u{1b}[31m", "a*"] {
        bad_id(ctx, id);
    }
}

fn ids_that_are_fine(ctx: &Ctx) {
    let bundle = ctx.bundle();
    for suffix in ["_", "+", "-", ".", "A9"] {
        let id = format!("{}{suffix}z", ctx.id());
        ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id])
            .output()
            .ok();
    }
}

fn id_in_use(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let other = ctx.bundle();
    ctx.create_call(&other, &container.id, &[])
        .output()
        .refused(&["already exists", "in use"]);
    assert_eq!(container.status(), "running");
    assert_eq!(container.exec(&["hostname"]).ok().text(), "testhost");
}

fn verbs_on_an_absent_container(ctx: &Ctx) {
    for verb in ["state", "start", "delete", "pause", "resume", "ps"] {
        ctx.call(&[verb, "nobody"])
            .output()
            .refused(&["does not exist"])
            .code(1);
    }
    ctx.call(&["kill", "nobody", "TERM"])
        .output()
        .refused(&["does not exist"])
        .code(1);
    ctx.call(&["events", "--stats", "nobody"])
        .output()
        .refused(&["does not exist"])
        .code(1);
}

fn verbs_in_the_wrong_state(ctx: &Ctx) {
    let container = ctx.start(&ctx.bundle());
    container.stopped();
    container
        .verb(&["pause"])
        .refused(&["not running", "stopped", "paused"]);
    container
        .verb(&["resume"])
        .refused(&["not paused", "stopped", "paused"]);
    container
        .verb(&["events", "--stats"])
        .refused(&["not running", "stopped"]);
}

fn unknown_verbs_and_flags(ctx: &Ctx) {
    let out = ctx.call(&["levitate"]).output();
    assert!(out.code != 0 || (out.stdout + &out.stderr).contains("levitate"));
    let out = ctx.call(&["create", "--no-such-flag", "x"]).output();
    assert_ne!(out.code, 0);
    assert!((out.stdout + &out.stderr + &out.log).contains("no-such-flag"));
}

fn missing_arguments(ctx: &Ctx) {
    for verb in [
        "create", "run", "start", "state", "kill", "delete", "pause", "resume", "exec", "ps", "update", "events",
    ] {
        let out = ctx.call(&[verb]).output();
        assert_ne!(out.code, 0, "{verb}");
        assert!(!(out.stdout + &out.stderr).is_empty(), "{verb}");
    }
}

fn with_root(ctx: &Ctx, root: &std::path::Path) -> Output {
    let bundle = ctx.bundle();
    // The last --root counts.
    let args = [
        "--root",
        root.to_str().unwrap(),
        "run",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &ctx.id(),
    ];
    ctx.bare_call(&args).output()
}

fn root_directory_that_cannot_be_written(ctx: &Ctx) {
    let root = ctx.mkdir("sealed");
    ctx.tmpfs(&root, "ro,mode=755");
    with_root(ctx, &root).refused(&["sealed"]).code(1);
}

fn root_directory_that_is_a_file(ctx: &Ctx) {
    let root = ctx.dir.join("plain");
    fs::write(&root, "").unwrap();
    with_root(ctx, &root).refused(&["plain"]).code(1);
}

fn root_directory_that_is_full(ctx: &Ctx) {
    let root = ctx.mkdir("full");
    ctx.tmpfs(&root, "size=8k,mode=755");
    fs::write(root.join("ballast"), vec![0; 16384]).expect_err("8 KiB hold no 16");
    with_root(ctx, &root).refused(&["no space left", "full"]).code(1);
    let left: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .filter(|n| n.to_string_lossy().starts_with("pt"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn program_not_found(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["no-such-program"]);
    refused(ctx, &bundle, &["no-such-program"]);
    bundle.args(&["/no/such/program"]);
    refused(ctx, &bundle, &["/no/such/program"]);
}

fn program_not_executable(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.file("/bin/plain", "text").args(&["/bin/plain"]);
    refused(ctx, &bundle, &["permission denied"]);
}

fn program_is_a_directory(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["/etc"]);
    refused(ctx, &bundle, &["permission denied", "is a directory"]);
}

/// The program is there and executable, but the kernel refuses it: that shows when it is executed.
fn kernel_refuses(ctx: &Ctx, content: &str) {
    let bundle = ctx.bundle();
    bundle.file("/bin/odd", content).args(&["/bin/odd"]);
    fs::set_permissions(bundle.path("/bin/odd"), fs::Permissions::from_mode(0o755)).unwrap();
    // The program's stderr is where the cause is looked for; it stands there once.
    let out = ctx.run(&bundle);
    out.refused(&["exec format error"]);
    if ctx.subject.kind == Kind::Proa {
        assert_eq!(out.stderr, "exec /bin/odd: exec format error\n");
        assert!(
            out.log
                .contains("unable to start container process: exec /bin/odd: exec format error")
        );
        out.code(255);
    }
}

fn refused_program_is_told_on_the_containers_stderr(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.file("/bin/odd", "#!/no/such/interpreter\n").args(&["/bin/odd"]);
    fs::set_permissions(bundle.path("/bin/odd"), fs::Permissions::from_mode(0o755)).unwrap();
    let container = ctx.create(&bundle);
    container
        .verb(&["start"])
        .refused(&["exec /bin/odd: no such file or directory"])
        .code(1);
    assert_eq!(container.stderr(), "exec /bin/odd: no such file or directory\n");
    // Not some time later: managers delete it at once.
    assert_eq!(container.status(), "stopped");
    container.delete();
}

fn program_for_another_machine(ctx: &Ctx) {
    kernel_refuses(ctx, "\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x16\0\x01\0\0\0");
}

fn program_is_empty(ctx: &Ctx) {
    kernel_refuses(ctx, "");
}

fn pid_file_that_cannot_be_written(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let id = ctx.id();
    ctx.create_call(&bundle, &id, &["--pid-file", "/no/such/dir/pid"])
        .output()
        .refused(&["/no/such/dir"])
        .code(1);
    ctx.call(&["state", &id]).output().refused(&["does not exist"]);
}

fn log_that_cannot_be_written(ctx: &Ctx) {
    let args = [
        "--root",
        ctx.root.to_str().unwrap(),
        "--log",
        "/no/such/dir/log",
        "list",
    ];
    let out = ctx.bare_call(&args).output();
    assert_ne!(out.code, 0);
    assert!(out.stderr.contains("/no/such/dir"), "{out:?}");
}

fn errors_are_in_the_json_log(ctx: &Ctx) {
    let out = ctx.call(&["state", "nobody"]).output();
    let last: serde_json::Value = serde_json::from_str(out.log.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("does not exist"));
    assert!(last["time"].as_str().unwrap().contains('T'));
    assert!(out.stderr.contains("does not exist"), "{out:?}");
}

fn errors_are_in_the_text_log(ctx: &Ctx) {
    let log = ctx.dir.join("text.log");
    let args = [
        "--root",
        ctx.root.to_str().unwrap(),
        "--log",
        log.to_str().unwrap(),
        "state",
        "nobody",
    ];
    ctx.bare_call(&args).output().code(1);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("level=error") && text.contains("msg="), "{text}");
}

fn state_that_was_cut_short_does_not_stop_the_list(ctx: &Ctx) {
    let container = ctx.create(&ctx.bundle());
    let broken = ctx.root.join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("state.json"), "{\"id\": \"bro").unwrap();
    let out = ctx.call(&["list", "--quiet"]).output();
    assert!(out.stdout.contains(&container.id), "{out:?}");
    fs::remove_dir_all(&broken).unwrap();
}

fn fifo(path: &std::path::Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

/// Nobody writes to them: whoever opens one as files are opened waits for ever.
fn files_that_are_fifos_are_refused_and_not_waited_for(ctx: &Ctx) {
    let container = ctx.create(&ctx.bundle());
    let own = ctx.root.join(&container.id);
    for name in ["state.json", "config.json"] {
        let aside = ctx.dir.join("aside");
        fs::rename(own.join(name), &aside).unwrap();
        fifo(&own.join(name));
        let words = format!("{}: it is not a regular file", own.join(name).display());
        let refused = match name {
            "state.json" => container.verb(&["state"]),
            _ => container.verb(&["start"]),
        };
        refused.refused(&[&words]);
        ctx.call(&["list"]).output().ok();
        fs::rename(&aside, own.join(name)).unwrap();
    }
    container.verb(&["delete", "--force"]).ok();
    container.forget();
    let bundle = ctx.bundle();
    let config = bundle.dir.join("config.json");
    fs::rename(&config, bundle.dir.join("aside")).unwrap();
    fifo(&config);
    refused(ctx, &bundle, &["config.json: it is not a regular file"]);
    let bundle = ctx.bundle();
    let namespace = ctx.dir.join("namespace");
    fifo(&namespace);
    bundle.namespace("network", Some(namespace.to_str().unwrap()));
    refused(ctx, &bundle, &[namespace.to_str().unwrap()]);
}

/// As shells do it: `exec --process <(...)`.
fn a_process_may_come_through_a_pipe(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let process = json!({"args": ["echo", "piped"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    let script = format!("printf %s '{process}' | exec \"$@\"");
    let exec = ctx.call(&["exec", "--process", "/dev/stdin", &container.id]);
    assert_eq!(exec.under(&["sh", "-c", &script, "sh"]).output().ok().text(), "piped");
}

fn negative_and_huge_ids_of_users(ctx: &Ctx) {
    let bundle = ctx.bundle();
    for uid in [json!(-5), json!(1_u64 << 40), json!("root")] {
        bundle.set("/process/user", json!({"uid": uid, "gid": 0}));
        let out = ctx.run(&bundle);
        assert!(out.code != 0 && out.code < 1000, "{out:?}");
    }
}

fn console_size_without_a_terminal_is_harmless(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/process/consoleSize", json!({"width": 80, "height": 24}));
    ctx.run(&bundle).ok();
}

fn signal_that_does_not_exist(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    for signal in ["SIGNOTHING", "99999", "-7"] {
        let out = ctx.call(&["kill", &container.id, signal]).output();
        assert_ne!(out.code, 0, "{signal}: {out:?}");
    }
    assert_eq!(container.status(), "running");
}

fn unknown_fields_are_ignored(ctx: &Ctx) {
    // Runtimes must ignore what they do not know (spec: extensibility).
    let bundle = ctx.bundle();
    bundle
        .set("/fromTheFuture", json!({"a": 1}))
        .set("/process/shinyNewThing", json!([1]));
    ctx.run(&bundle).ok();
}
