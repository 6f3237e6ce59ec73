//! What surrounds the processes: namespaces, mounts, terminal, standard streams, hooks.

use std::fs;
use std::os::unix::fs::MetadataExt;

use proa_integration::console::{ConsoleSocket, Terminal};
use proa_integration::ctx::{Call, eventually};
use proa_integration::{Bundle, Container, Ctx, Kind, tests};
use serde_json::json;

use super::{PROGRAM, ask, bundle, checkpoint, images, null, restore, start};

tests! {
    terminal_goes_to_the_console_socket_again;
    restore_in_the_foreground_waits_and_returns_the_status .once();
    terminal_of_a_foreground_restore_is_passed_through .once().not_for(&[(Kind::Runc, "wants a terminal of its own")]);
    standard_streams_are_those_of_restore .once();
    a_pipe_inside_the_container_is_no_standard_stream .once().not_for(&[(Kind::Runc, "cannot tell")]);
    a_joined_network_namespace_is_joined_again;
    a_joined_pid_namespace_is_joined_again .once();
    a_network_namespace_of_its_own_has_its_loopback_again .once().not_for(&[(Kind::Runc, "leaves it down")]);
    user_namespace_is_restored .once();
    volumes_are_mounted_again .once();
    mount_points_inside_volumes_are_made_again .once();
    cgroup_mount_shows_the_new_cgroup .views(&[proa_integration::View::Hybrid, proa_integration::View::V1]).not_for(&[(Kind::Runc, "shows its own cgroup")]);
    masked_and_read_only_paths_stay_so .once();
    hooks_of_the_runtimes_namespaces_run_at_restore .once().not_for(&[(Kind::Runc, "tells them that the container is stopped")]);
    nothing_is_mounted_on_the_host_meanwhile .once().not_for(&[(Kind::Runc, "mounts on the host")]);
}

/// Runs the container detached; the terminal that it sends over `socket`.
fn run_on_terminal(ctx: &Ctx, container: &Container<'_>, bundle: &Bundle, socket: &ConsoleSocket) -> Terminal {
    let (dir, path) = (bundle.dir.to_str().unwrap(), socket.path.to_str().unwrap());
    let running = ctx
        .call(&["run", "-d", "-b", dir, "--console-socket", path, &container.id])
        .spawn();
    let terminal = socket.terminal();
    running.wait().ok();
    terminal
}

/// A restore that waits for the container's end.
fn restore_in_foreground(ctx: &Ctx, container: &Container<'_>, bundle: &Bundle) -> Call {
    let images = images(ctx);
    let mut args = vec!["restore", "--image-path", images.to_str().unwrap()];
    args.extend(super::IGNORE);
    args.extend(["--bundle", bundle.dir.to_str().unwrap(), &container.id]);
    ctx.call(&args)
}

fn terminal_goes_to_the_console_socket_again(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let script = "n=0; while read line; do n=$((n+1)); echo $n: $line; done";
    bundle.set("/process/terminal", json!(true)).sh(script);
    let container = ctx.container(&bundle);
    let socket = ConsoleSocket::new(&ctx.dir);
    let mut terminal = run_on_terminal(ctx, &container, &bundle, &socket);
    terminal.type_in("before\n");
    terminal.expect("1: before\r\n");

    checkpoint(ctx, &container, &[]).ok();
    let path = socket.path.to_str().unwrap();
    restore(ctx, &container, &bundle, &["--console-socket", path]).ok();
    let mut terminal = socket.terminal();
    terminal.type_in("after\n");
    terminal.expect("2: after\r\n");
}

fn restore_in_the_foreground_waits_and_returns_the_status(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    let mut running = restore_in_foreground(ctx, &container, &bundle).stdio(null()).spawn();
    eventually("the restored container", || {
        let state = container.verb(&["state"]);
        (state.code == 0 && state.json()["status"] == "running").then_some(())
    });
    assert_eq!(ask(&container, &bundle), word);
    assert!(running.child.try_wait().unwrap().is_none(), "it waits");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().code(7);
    super::gone(&container);
    container.forget();
}

fn terminal_of_a_foreground_restore_is_passed_through(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/terminal", json!(true))
        .sh("read a; read b; echo $a-$b; exit 3");
    let container = ctx.container(&bundle);
    let socket = ConsoleSocket::new(&ctx.dir);
    let mut terminal = run_on_terminal(ctx, &container, &bundle, &socket);
    terminal.type_in("one\n");
    terminal.expect("one\r\n");
    checkpoint(ctx, &container, &[]).ok();
    let said = restore_in_foreground(ctx, &container, &bundle).stdin(b"two\n").output();
    assert!(said.code(3).stdout.contains("one-two\n"), "{said:?}");
    container.forget();
}

/// Runs the call with pipes for its standard streams: lines of the file `to` go in, what comes out goes to the file `from`.
fn piped(call: proa_integration::Call, to: &std::path::Path, from: &std::path::Path) {
    let script = format!(
        "tail -n +1 -f {0} 2>/dev/null | \"$@\" 2>&1 | cat > {1} &\n\
         for i in $(seq 200); do [ -e {2} ] && exit; sleep 0.05; done; exit 1",
        to.display(),
        from.display(),
        from.with_extension("pid").display(),
    );
    fs::write(to, "").unwrap();
    call.under(&["setsid", "sh", "-c", &script, "sh"]).output().ok();
}

/// `end`s the `tail` that feeds a container when a test is over.
fn stop_feeding(file: &std::path::Path) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.starts_with("tail ")
            && line.contains(file.to_str().unwrap())
            && let Ok(pid) = entry.file_name().to_string_lossy().parse()
        {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).ok();
        }
    }
}

fn streams(ctx: &Ctx, script: &str) {
    let bundle = ctx.bundle();
    bundle.sh(script);
    let container = ctx.container(&bundle);
    let dir = bundle.dir.to_str().unwrap().to_owned();
    let file = |name: &str| ctx.dir.join(name);
    let says = |name: &str, text: &str| {
        eventually(text, || {
            let said = fs::read_to_string(file(name)).unwrap_or_default();
            said.contains(text).then_some(())
        });
    };
    let type_in = |name: &str, text: &str| {
        use std::io::Write;
        let mut file = fs::File::options().append(true).open(file(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let pid_file = |name: &str| file(name).with_extension("pid").to_str().unwrap().to_owned();
    let call = ctx.call(&["run", "-d", "-b", &dir, "--pid-file", &pid_file("out1"), &container.id]);
    piped(call, &file("in1"), &file("out1"));
    type_in("in1", "one\n");
    says("out1", "heard one");
    checkpoint(ctx, &container, &[]).ok();
    stop_feeding(&file("in1"));

    let images = images(ctx);
    let mut args = vec!["restore", "-d", "--image-path", images.to_str().unwrap(), "-b", &dir];
    args.extend(super::IGNORE);
    let pid_file = pid_file("out2");
    args.extend(["--pid-file", &pid_file, &container.id]);
    piped(ctx.call(&args), &file("in2"), &file("out2"));
    type_in("in2", "two\n");
    says("out2", "heard two");
    says("out2", "error two");
    container.verb(&["delete", "--force"]).ok();
    container.forget();
    stop_feeding(&file("in2"));
}

fn standard_streams_are_those_of_restore(ctx: &Ctx) {
    streams(ctx, "while read line; do echo heard $line; echo error $line >&2; done");
}

fn a_pipe_inside_the_container_is_no_standard_stream(ctx: &Ctx) {
    // Init's stdout is a pipe to a process of its own; that one's is the container's.
    let script = "mkfifo /dev/shm/p; { exec < /dev/shm/p; while read x; do echo heard $x; done; } & \
                  while read line; do echo $line; echo error $line >&2; done | cat > /dev/shm/p";
    streams(ctx, script);
}

fn a_joined_network_namespace_is_joined_again(ctx: &Ctx) {
    let holder = ctx.bundle();
    holder
        .sh("echo up > /up; exec sleep 1000")
        .set("/root/readonly", json!(false));
    let holder = start(ctx, &holder);
    let bundle = bundle(ctx);
    let path = format!("/proc/{}/ns/net", holder.pid());
    bundle.namespace("network", Some(&path));
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    restore(ctx, &container, &bundle, &[]).ok();
    assert_eq!(ask(&container, &bundle), word);
    let inode = |path: &str| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&format!("/proc/{}/ns/net", container.pid())), inode(&path));
}

fn a_network_namespace_of_its_own_has_its_loopback_again(ctx: &Ctx) {
    let bundle = ctx.bundle();
    // What listens on an address can't be restored before the address is there.
    bundle
        .set("/root/readonly", json!(false))
        .sh("echo up > /up; exec httpd -f -p 127.0.0.1:7777 -h /");
    let container = start(ctx, &bundle);
    let page = || container.exec(&["wget", "-q", "-O", "-", "http://127.0.0.1:7777/up"]);
    eventually("the server", || (page().code == 0).then_some(()));
    checkpoint(ctx, &container, &[]).ok();
    restore(ctx, &container, &bundle, &[]).ok();
    assert_eq!(page().ok().text(), "up");
}

fn a_joined_pid_namespace_is_joined_again(ctx: &Ctx) {
    let holder = ctx.bundle();
    // Its first process has to reap, or the ids of the dead stay taken.
    holder
        .sh("echo up > /up; while :; do sleep 0.02; done")
        .set("/root/readonly", json!(false));
    let holder = start(ctx, &holder);
    // The ids just after the holder's are those that helpers of CRIU's get in the namespace.
    for _ in 0..30 {
        holder.exec(&["true"]).ok();
    }
    let bundle = bundle(ctx);
    let path = format!("/proc/{}/ns/pid", holder.pid());
    bundle.namespace("pid", Some(&path));
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    restore(ctx, &container, &bundle, &[]).ok();
    assert_eq!(ask(&container, &bundle), word);
    let inode = |path: &str| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&format!("/proc/{}/ns/pid", container.pid())), inode(&path));
}

fn user_namespace_is_restored(ctx: &Ctx) {
    let bundle = bundle(ctx);
    bundle.userns(100_000);
    // CRIU looks for images also as the container's root, who is nobody outside.
    fs::create_dir(images(ctx)).unwrap();
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    restore(ctx, &container, &bundle, &[]).ok();
    assert_eq!(ask(&container, &bundle), word);
    let map = fs::read_to_string(format!("/proc/{}/uid_map", container.pid())).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
}

fn volumes_are_mounted_again(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let (one, two) = (ctx.mkdir("one"), ctx.mkdir("two"));
    fs::write(one.join("file"), "1").unwrap();
    // A destination that is a link of the image.
    fs::create_dir_all(bundle.path("/real/conf")).unwrap();
    std::os::unix::fs::symlink("/real/conf", bundle.path("/conf")).unwrap();
    bundle
        .bind(&one, "/conf", &["rbind", "rw"])
        .bind(&one.join("file"), "/etc/file", &["bind", "ro"])
        .mount(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"}));
    let container = start(ctx, &bundle);
    container.exec(&["sh", "-c", "echo kept > /scratch/x"]).ok();
    checkpoint(ctx, &container, &[]).ok();
    // The bundle says what is mounted at a restore.
    fs::write(two.join("file"), "2").unwrap();
    bundle.edit(|spec| {
        for mount in spec["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/conf" {
                mount["source"] = json!(two);
            }
        }
    });
    restore(ctx, &container, &bundle, &[]).ok();
    let cat = |path: &str| container.exec(&["cat", path]).ok().text().to_owned();
    assert_eq!((cat("/conf/file"), cat("/etc/file")), ("2".into(), "1".into()));
    assert_eq!(cat("/scratch/x"), "kept", "a tmpfs is restored with what is in it");
    container.exec(&["sh", "-c", "! echo x > /etc/file"]).ok();
    container.exec(&["sh", "-c", "echo x > /conf/file"]).ok();
}

fn mount_points_inside_volumes_are_made_again(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let (outer, inner) = (ctx.mkdir("outer"), ctx.mkdir("inner"));
    fs::write(inner.join("file"), "inner").unwrap();
    bundle
        .bind(&outer, "/test", &["bind", "rw"])
        .bind(&inner, "/test/for/nested", &["bind", "rw"]);
    let container = start(ctx, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    fs::remove_dir_all(outer.join("for")).unwrap();
    restore(ctx, &container, &bundle, &[]).ok();
    assert_eq!(container.exec(&["cat", "/test/for/nested/file"]).ok().text(), "inner");
    assert!(fs::read_dir(outer.join("for/nested")).unwrap().next().is_none());
}

fn cgroup_mount_shows_the_new_cgroup(ctx: &Ctx) {
    let bundle = bundle(ctx);
    bundle.mount(
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}),
    );
    let container = start(ctx, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    restore(ctx, &container, &bundle, &[]).ok();
    let inside = container
        .exec(&["sh", "-c", "cat /sys/fs/cgroup/devices/cgroup.procs | grep -c ."])
        .ok()
        .text()
        .to_owned();
    let outside = container.cgroup_file("devices", "cgroup.procs").lines().count();
    assert!(inside.parse::<usize>().unwrap() >= outside, "{inside} {outside}");
    container.exec(&["sh", "-c", "! mkdir /sys/fs/cgroup/devices/x"]).ok();
}

fn masked_and_read_only_paths_stay_so(ctx: &Ctx) {
    let bundle = bundle(ctx);
    bundle.edit(|spec| {
        let masked = spec["linux"]["maskedPaths"].as_array_mut().unwrap();
        masked.extend([json!("/etc/passwd"), json!("/home")]);
    });
    let container = start(ctx, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    restore(ctx, &container, &bundle, &[]).ok();
    container
        .exec(&[
            "sh",
            "-c",
            "[ -c /etc/passwd ] && [ -z \"$(ls /home)\" ] && ! touch /home/x",
        ])
        .ok();
    container
        .exec(&["sh", "-c", "! echo x > /proc/sys/kernel/hostname"])
        .ok();
}

fn hooks_of_the_runtimes_namespaces_run_at_restore(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let log = ctx.dir.join("hooks.log");
    let hook = |name: &str| {
        let text = format!(
            "read state; echo \"{name} $state\" | tr -d ' ' >> {0}; echo >> {0}; readlink /proc/self/ns/mnt >> {0}.mnt",
            log.display()
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/usr/bin:/bin"]}])
    };
    let kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    for kind in kinds.iter().filter(|kind| **kind != "createContainer") {
        bundle.set(&format!("/hooks/{kind}"), hook(kind));
    }
    let container = start(ctx, &bundle);
    fs::remove_file(&log).unwrap();
    checkpoint(ctx, &container, &[]).ok();
    let ran = || -> Vec<(String, serde_json::Value)> {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let (name, state) = line.split_once('{').unwrap();
                (name.to_owned(), serde_json::from_str(&format!("{{{state}")).unwrap())
            })
            .collect()
    };
    let after = ran();
    assert_eq!(after.len(), 1, "{after:?}");
    assert_eq!(
        (after[0].0.as_str(), &after[0].1["status"]),
        ("poststop", &json!("stopped"))
    );
    fs::remove_file(&log).unwrap();

    restore(ctx, &container, &bundle, &[]).ok();
    let after = ran();
    let names: Vec<&str> = after.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["prestart", "createRuntime"]);
    for (_, state) in &after {
        assert_eq!(state["status"], "creating");
        assert_eq!(state["pid"], container.pid());
    }
    let namespaces = fs::read_to_string(format!("{}.mnt", log.display())).unwrap();
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    assert!(
        namespaces.lines().all(|one| one == own.to_str().unwrap()),
        "{namespaces}"
    );

    // One that fails stops the restore, and nothing is left of it.
    checkpoint(ctx, &container, &[]).ok();
    bundle.set("/hooks/createRuntime", json!([{"path": "/bin/false"}]));
    restore(ctx, &container, &bundle, &[]).refused(&["error running createRuntime hook #0: exit status 1"]);
    super::gone(&container);
    assert!(!container.cgroup_dir("devices").exists());
}

fn nothing_is_mounted_on_the_host_meanwhile(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let volume = ctx.mkdir("volume");
    let seen = ctx.dir.join("seen");
    let text = format!("cat /proc/self/mountinfo > {}", seen.display());
    bundle
        .set("/root/readonly", json!(false))
        .sh(PROGRAM)
        .bind(&volume, "/volume", &["bind"])
        .set(
            "/hooks/prestart",
            json!([{"path": "/bin/sh", "args": ["sh", "-c", text]}]),
        );
    let container = start(ctx, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    restore(ctx, &container, &bundle, &[]).ok();
    let seen = fs::read_to_string(seen).unwrap();
    assert!(!seen.contains("criu-root") && !seen.contains("/volume"), "{seen}");
    assert!(!ctx.root.join(&container.id).join("criu-root").exists());
}
