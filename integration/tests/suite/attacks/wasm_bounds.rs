//! What an image, a plugin, or a guest does that is to get past the bounds of a guest.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use nix::sched::{CloneFlags, setns};
use proa_integration::{Bundle, Ctx, tests};
use serde_json::json;

use super::withstood;
use crate::wasm::policy::files::FILES;
use crate::wasm::policy::names::{nameserver, resolving};
use crate::wasm::policy::plugins::{with_plugin, with_plugin_as};
use crate::wasm::policy::{annotate, module, run_under};

tests! {
    a_thread_that_a_plugin_starts_is_not_left_unconfined .once().only_proa();
    a_working_directory_of_the_image_gives_nothing_of_the_kernel .only_proa();
    a_link_of_the_image_does_not_make_a_volume_of_the_kernels_files .once().only_proa();
    a_link_for_a_file_of_names_does_not_lead_to_a_secret .once().only_proa();
    a_guest_that_rewrites_resolv_conf_reaches_no_other_nameserver .once().only_proa();
    names_of_a_module_do_nothing_to_the_terminal .once().only_proa();
}

/// Credentials, filters and Landlock's rules are each thread's own: one that was there before has none of them. It reads for
/// the guest what the guest is not given.
fn a_thread_that_a_plugin_starts_is_not_left_unconfined(ctx: &Ctx) {
    for (flag, when) in [
        ("-DTHREAD_AT_LOAD", "when it is loaded"),
        ("-DTHREAD_AT_CREATE", "when the engine makes its module"),
    ] {
        let (bundle, file, plugin) = with_plugin_as(ctx, &[flag], "load", &[("preopens", "nothing")]);
        bundle
            .file("/etc/secret", "REACHED what is not given")
            .args(&["/module.wasm", "read", "/etc/secret"]);
        let out = run_under(ctx, &file, &bundle);
        withstood!(!out.stdout.contains("REACHED"), "{}", out.stdout);
        let words = [&format!("plugin {}: it starts a thread {when}", plugin.display())[..]];
        out.refused(&words);

        // Where a copy of the process is made after the plugin is loaded, there was no end to it.
        bundle.sh("sleep 100");
        let container = ctx.start(&bundle);
        let config = file.to_str().unwrap();
        let exec = [
            "--config",
            config,
            "exec",
            &container.id,
            "/module.wasm",
            "read",
            "/etc/secret",
        ];
        let out = ctx.call(&exec).output();
        withstood!(!out.stdout.contains("REACHED"), "{}", out.stdout);
        out.refused(&words);
    }
}

/// A guest with a volume at `/data`, which says what it is given.
fn given(ctx: &Ctx) -> Bundle {
    let bundle = module(ctx, FILES, &[("preopens", "mounts")]);
    bundle
        .writable()
        .args(&["/module.wasm", "preopens"])
        .bind(&ctx.mkdir("volume"), "/data", &["bind"]);
    bundle
}

/// `WORKDIR` is the image's author's, who has it lead to devices and cgroups.
fn a_working_directory_of_the_image_gives_nothing_of_the_kernel(ctx: &Ctx) {
    let bundle = given(ctx);
    // Beside the usual places: on v1 a tmpfs with the hierarchies.
    bundle
        .mount(json!({"destination": "/groups", "type": "cgroup", "source": "cgroup", "options": ["ro"]}))
        .mount(json!({"destination": "/below/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]}));
    symlink("/dev", bundle.path("/innocent")).unwrap();
    symlink("/sys/fs/cgroup", bundle.path("/groups-too")).unwrap();
    for cwd in [
        "/dev",
        "/dev/shm",
        "/dev/pts",
        "/dev/mqueue",
        "/innocent",
        "/innocent/shm",
        "/sys",
        "/sys/fs",
        "/sys/fs/cgroup",
        "/groups",
        "/groups-too",
        "/below",
        "/below/pts",
    ] {
        bundle.set("/process/cwd", json!(cwd));
        let out = ctx.run(&bundle);
        let said = out.ok().text();
        withstood!(said == "[data]", "{cwd} is given: {said}");
    }
    // What is none of these is given as ever.
    fs::create_dir(bundle.path("/work")).unwrap();
    bundle
        .set("/process/cwd", json!("/work"))
        .args(&["/module.wasm", "write", "made", "x", "cat", "made"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "x");
}

/// What is mounted at a link of the image comes to lie elsewhere than its name says.
fn a_link_of_the_image_does_not_make_a_volume_of_the_kernels_files(ctx: &Ctx) {
    let volume = ctx.mkdir("other");
    for (target, destination) in [("/dev", "/link/volume"), ("/dev/shm", "/link"), ("/sys/fs", "/link")] {
        let bundle = given(ctx);
        symlink(target, bundle.path("/link")).unwrap();
        bundle.bind(&volume, destination, &["bind"]);
        let out = ctx.run(&bundle);
        // To refuse it is as good.
        withstood!(
            out.code != 0 || out.text() == "[data]",
            "{destination} in {target} is given: {}",
            out.stdout
        );
    }
}

/// The engine may read what name resolution reads. Taken over, it reads what the image's author has made of that.
fn a_link_for_a_file_of_names_does_not_lead_to_a_secret(ctx: &Ctx) {
    let secret = ctx.dir.join("token");
    let hosts = ctx.dir.join("hosts");
    fs::write(&secret, "REACHED a secret").unwrap();
    fs::write(&hosts, "10.9.8.7 beside\n").unwrap();
    // By itself; with the bundle's file mounted over the secret's place, and the secret over that.
    for with_hosts in [false, true] {
        let (bundle, file, _) = with_plugin(ctx, "load", &[("preopens", "nothing")]);
        bundle
            .writable()
            .file("/secret", "REACHED a file of the container")
            .file("/run/secrets/token", "");
        for (name, target) in [
            ("hosts", "/run/secrets/token"),
            ("services", "../secret"),
            ("gai.conf", "/proc/self/status"),
        ] {
            drop(fs::remove_file(bundle.path(&format!("/etc/{name}"))));
            symlink(target, bundle.path(&format!("/etc/{name}"))).unwrap();
        }
        if with_hosts {
            bundle.bind(&hosts, "/etc/hosts", &["bind"]);
        }
        bundle.bind(&secret, "/run/secrets/token", &["bind"]).args(&[
            "/module.wasm",
            "read",
            "/run/secrets/token",
            "read",
            "/etc/hosts",
            "read",
            "/secret",
            "read",
            "/proc/self/status",
        ]);
        let out = run_under(ctx, &file, &bundle);
        let said = &out.ok().stdout;
        withstood!(!said.contains("REACHED") && !said.contains("Name:"), "{said}");
        assert_eq!(said.lines().filter(|line| line.ends_with(": -1 ")).count(), 4, "{said}");
    }
    // What the manager has mounted by its name is read, also where the image has a link for it, as with systemd.
    let (bundle, file, _) = with_plugin(ctx, "load", &[("preopens", "nothing")]);
    bundle.writable().file("/run/systemd/resolve/stub-resolv.conf", "");
    drop(fs::remove_file(bundle.path("/etc/hosts")));
    symlink("../run/systemd/resolve/stub-resolv.conf", bundle.path("/etc/hosts")).unwrap();
    bundle
        .bind(&hosts, "/etc/hosts", &["bind"])
        .args(&["/module.wasm", "read", "/etc/hosts"]);
    let out = run_under(ctx, &file, &bundle);
    assert_eq!(out.ok().stdout, "/etc/hosts: 16 10.9.8.7 beside\n\n");
}

/// The C library asks whom the file names, over sockets that are not the guest's, and reads the file again when it changes.
fn a_guest_that_rewrites_resolv_conf_reaches_no_other_nameserver(ctx: &Ctx) {
    let bundle = resolving(ctx, &[]);
    annotate(&bundle, &[("connect", "dns")]);
    bundle.writable().args(&[
        "/module.wasm",
        "resolve",
        "inner.example.test",
        "nameserver",
        "127.0.0.2",
        "resolve",
        "only.other.test",
        "toss",
        "127.0.0.2",
        "53",
        "x",
        "connect",
        "127.0.0.1",
        "53",
    ]);
    let container = ctx.create(&bundle);
    let asked = nameserver(&container);
    let namespace = fs::File::open(format!("/proc/{}/ns/net", container.pid())).unwrap();
    let other = std::thread::spawn(move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind("127.0.0.2:53").unwrap()
    });
    let other = other.join().unwrap();
    other.set_nonblocking(true).unwrap();
    container.start();
    container.stopped();
    let said = container.stdout();
    withstood!(other.recv(&mut [0; 512]).is_err(), "another address was asked: {said}");
    assert_eq!(
        said,
        "inner.example.test: 10.1.2.3\nnameserver: ok 0\nonly.other.test: 10.1.2.4\nsend to: error 2\nconnect: error 2\n"
    );
    assert!(asked.try_iter().any(|name| name == "only.other.test"));
}

/// What a terminal obeys, in each way of writing it: as one byte of C0, as one character of C1, as a change of direction.
const OBEYED: &str = "\x1b]0;title\x07\x1b[2J\u{9b}31m\u{202e}\r\x7f";

/// A module with an exported function `_start` that is `unreachable`, and an import of this name, if any.
fn module_of_names(import: Option<&str>) -> Vec<u8> {
    fn section(id: u8, content: &[u8]) -> Vec<u8> {
        [&[id, content.len() as u8], content].concat()
    }
    fn name(text: &str) -> Vec<u8> {
        [&[text.len() as u8], text.as_bytes()].concat()
    }
    let imported = import.map_or(vec![0], |import| {
        [vec![1], name(import), name(OBEYED), vec![0, 0]].concat()
    });
    let start = u8::from(import.is_some());
    let names = [name("name"), vec![1, OBEYED.len() as u8 + 3, 1, start], name(OBEYED)].concat();
    [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, b"\x01\x60\0\0"),
        section(2, &imported),
        section(3, b"\x01\0"),
        section(5, b"\x01\0\x01"),
        section(
            7,
            &[vec![2], name("memory"), vec![2, 0], name("_start"), vec![0, start]].concat(),
        ),
        section(10, b"\x01\x03\0\0\x0b"),
        section(0, &names),
    ]
    .concat()
}

/// The operator reads what proa says of a module, on a terminal.
fn names_of_a_module_do_nothing_to_the_terminal(ctx: &Ctx) {
    let harmless = |what: &str, text: &str| {
        let harm = |letter: char| {
            (letter.is_control() && !matches!(letter, '\n' | '\t')) || ('\u{202a}'..='\u{202e}').contains(&letter)
        };
        withstood!(!text.contains(harm), "{what} has what a terminal obeys: {text:?}");
    };
    let path = format!("/{OBEYED}.wasm");
    let bundle = ctx.bundle();
    annotate(&bundle, &[]);
    bundle.args(&[&path]);

    // What can't be linked: the engine's log, proa's, and the copy of the error on stderr.
    fs::write(bundle.path(&path), module_of_names(Some(OBEYED))).unwrap();
    for format in ["json", "text"] {
        let (id, log, dir) = (ctx.id(), ctx.dir.join(format), bundle.dir.to_str().unwrap());
        let log_flags = ["--log", log.to_str().unwrap(), "--log-format", format];
        let out = ctx
            .call(&[&log_flags[..], &["run", "--bundle", dir, &id]].concat())
            .output();
        assert!(out.code != 0 && out.stderr.contains("it imports from"), "{out:?}");
        harmless("stderr", &out.stderr);
        harmless("the log", &fs::read_to_string(&log).unwrap());
    }
    let inspect = |flags: &[&str]| {
        let dir = bundle.dir.to_str().unwrap();
        ctx.call(&[&["wasm", "inspect", "--bundle", dir], flags].concat())
            .output()
    };
    harmless("wasm inspect", &inspect(&[]).stdout);
    let json = inspect(&["--format", "json"]);
    harmless("wasm inspect --format json", &json.stdout);
    assert_eq!(json.json()["module"]["imports"][OBEYED][0]["name"], OBEYED);

    // What traps: the hull's own lines, the status, the table, and the warning of delete.
    fs::write(bundle.path(&path), module_of_names(None)).unwrap();
    let container = ctx.create(&bundle);
    container.start();
    container.stopped();
    let said = container.stderr();
    assert!(said.contains("proa: wasm trap: unreachable"), "{said}");
    harmless("the container's stderr", &said);
    harmless("state", &container.verb(&["state"]).ok().stdout);
    for format in ["table", "json"] {
        let stats = ctx.call(&["wasm", "stats", &container.id, "--format", format]).output();
        harmless("wasm stats", &stats.ok().stdout);
        harmless("list", &ctx.call(&["list", "--format", format]).output().ok().stdout);
    }
    let out = container.verb(&["delete"]);
    harmless("delete", &out.ok().log);
    harmless("delete", &out.stderr);
    container.forget();
}
