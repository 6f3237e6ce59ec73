//! A hostile Wasm guest whose policy gives it less than the container has.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sched::{CloneFlags, setns};
use proa_integration::{Bundle, Ctx, tests, wasm};
use serde_json::json;

use super::{gained, marker, withstood};
use crate::wasm::policy::plugins::with_plugin;
use crate::wasm::policy::run_under;

tests! {
    a_guest_does_not_leave_the_directories_it_is_given .once().only_proa();
    a_directory_swapped_for_a_link_does_not_lead_out .once().only_proa();
    no_library_of_the_image_is_loaded_to_resolve_names .once().only_proa();
    a_guest_reaches_no_address_that_its_rules_do_not_allow .once().only_proa();
    an_engine_that_was_taken_over_reads_nothing_beyond_the_preopens .once().only_proa();
    an_engine_that_was_taken_over_connects_to_no_other_port .once().only_proa();
}

/// A guest marked for Wasm with these annotations `proa.wasm/NAME`.
fn guest(ctx: &Ctx, source: &str, annotations: &[(&str, &str)]) -> Bundle {
    let bundle = ctx.bundle();
    let module = wasm::compile(&ctx.dir, "module", source, &[]);
    fs::copy(module, bundle.path("/module.wasm")).unwrap();
    let mut all = json!({"run.oci.handler": "wasm"});
    for (name, value) in annotations {
        all[format!("proa.wasm/{name}")] = json!(value);
    }
    bundle.args(&["/module.wasm"]).set("/annotations", all);
    bundle
}

/// Calls path_open and path_filestat_get with every name it is given on every preopened directory, as they are and with what
/// hides `..` from an engine that compares names with their lengths but opens them up to a NUL byte. Then goes up from what it
/// could open, and makes links of its own.
const ESCAPE: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))
WASI(path_open) int path_open(int fd, int lookup, const char *path, size_t length, int oflags, uint64_t base,
	uint64_t inheriting, int fdflags, int *opened);
WASI(path_filestat_get) int path_filestat_get(int fd, int lookup, const char *path, size_t length, void *stat);
#define EVERYTHING ((1 << 1) | (1 << 14) | (1 << 13))

static int take(int fd, const char *how, const char *name)
{
	char text[64] = "";
	if (read(fd, text, sizeof text - 1) > 0 && strstr(text, "secret of"))
		printf("REACHED %s of directory through %s: %s\n", name, how, text), exit(0);
	close(fd);
	return 0;
}

/* The name up to NAME_END may have NUL bytes. */
static void try(int dir, const char *name, size_t length, const char *how)
{
	uint64_t stat[8];
	int opened;
	for (int lookup = 0; lookup < 2; lookup++) {
		if (!path_open(dir, lookup, name, length, 0, 1 << 1, 0, 0, &opened))
			take(opened, how, name);
		/* The size of a secret is 64 bytes and something. */
		if (!path_filestat_get(dir, lookup, name, length, stat) && stat[4] == 4711)
			printf("REACHED what %s is, through %s\n", name, how), exit(0);
	}
}

int main(int argc, char **argv)
{
	for (int dir = 3; dir < 8; dir++) {
		for (int i = 1; i < argc; i++) {
			char name[512];
			const char *target = argv[i];
			while (*target == '/')
				target++;
			try(dir, argv[i], strlen(argv[i]), "its name");
			try(dir, target, strlen(target), "its name without a slash");
			/* Up by names that are not "..", and are. */
			int length = sprintf(name, "..%cx/", 0);
			for (int up = 0; up < 8; up++) {
				memcpy(name + length, target, strlen(target) + 1);
				try(dir, name, length + strlen(target), "a name with a NUL");
				length += sprintf(name + length, "..%cx/", 0);
			}
			static const char *up[] = {"..", "../..", "./../.", "inner/../..", "inner/../../..", "..//"};
			for (int j = 0; j < 6; j++) {
				length = sprintf(name, "%s/%s", up[j], target);
				try(dir, name, length, up[j]);
			}
			unlinkat(dir, "made", 0);
			if (!symlinkat(argv[i], dir, "made"))
				try(dir, "made", 4, "a link it made");
			unlinkat(dir, "made", 0);
			sprintf(name, "../../../../../..%s", argv[i]);
			if (!symlinkat(name, dir, "made"))
				try(dir, "made", 4, "a relative link it made");
		}
	}
	puts("got nothing");
	return 0;
}
"#;

/// A file of the container outside of what the guest is given, a volume at `/data/given` with links out of it, and a file of
/// the host.
fn confined(ctx: &Ctx, source: &str, annotations: &[(&str, &str)]) -> (Bundle, Vec<String>) {
    let bundle = guest(ctx, source, annotations);
    let marker = marker(ctx);
    let secret = format!("secret of the container{}", " ".repeat(4711 - 23));
    bundle
        .writable()
        .file("/etc/secret", &secret)
        .file("/data/secret", &secret);
    let volume = ctx.mkdir("volume");
    fs::create_dir(volume.join("inner")).unwrap();
    fs::write(volume.join("own"), "its own").unwrap();
    for (name, target) in [
        ("absolute", "/etc/secret"),
        ("relative", "../../etc/secret"),
        ("up", "../.."),
        ("root", "/"),
        ("process", "/proc/self/root"),
        ("cwd", "/proc/self/cwd"),
    ] {
        symlink(target, volume.join(name)).unwrap();
    }
    bundle.bind(&volume, "/data/given", &["bind"]);
    let mut args = vec!["/module.wasm".to_owned()];
    for target in ["/etc/secret", "/data/secret", "/secret"] {
        args.push(target.to_owned());
    }
    for through in [
        "up/etc/secret",
        "root/etc/secret",
        "process/etc/secret",
        "cwd/etc/secret",
        "absolute",
        "relative",
    ] {
        args.push(through.to_owned());
    }
    args.push(marker.display().to_string());
    bundle.args(&args.iter().map(String::as_str).collect::<Vec<_>>());
    (bundle, args)
}

/// WasmEdge #4938, and names with a NUL byte, which the engine could take for another than the kernel does.
fn a_guest_does_not_leave_the_directories_it_is_given(ctx: &Ctx) {
    for annotations in [
        &[("preopens", "mounts")][..],
        &[("preopens", "nothing"), ("preopen", "/data/given:/")],
        &[("preopens", "nothing"), ("preopen", "/data/given:/:ro")],
    ] {
        let (bundle, _) = confined(ctx, ESCAPE, annotations);
        let out = ctx.run(&bundle);
        withstood!(gained(&out.stdout).is_none(), "{:?}", gained(&out.stdout));
        assert_eq!(out.ok().text(), "got nothing");
        fs::remove_dir_all(ctx.dir.join("volume")).unwrap();
    }
}

/// Opens a name in a directory that somebody keeps exchanging for a link.
const RACE: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
	char text[64];
	int own = 0;
	for (int i = 0; i < 30000; i++) {
		int fd = open("/data/given/swapped/etc/secret", O_RDONLY);
		if (fd < 0)
			continue;
		memset(text, 0, sizeof text);
		if (read(fd, text, sizeof text - 1) > 0 && strstr(text, "secret of"))
			return printf("REACHED by a race: %s\n", text), 0;
		own++;
		close(fd);
	}
	printf("got nothing, %s\n", own ? "and had its own" : "not even its own");
	return 0;
}
"#;

fn a_directory_swapped_for_a_link_does_not_lead_out(ctx: &Ctx) {
    let (bundle, _) = confined(ctx, RACE, &[("preopens", "mounts")]);
    let volume = ctx.dir.join("volume");
    fs::create_dir_all(volume.join("swapped/etc")).unwrap();
    fs::write(volume.join("swapped/etc/secret"), "its own").unwrap();
    symlink("../..", volume.join("link")).unwrap();
    let done = AtomicBool::new(false);
    let out = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                swap(&volume.join("swapped"), &volume.join("link"));
            }
        });
        let out = ctx.run(&bundle);
        done.store(true, Ordering::Relaxed);
        out
    });
    withstood!(gained(&out.stdout).is_none(), "{:?}", gained(&out.stdout));
    assert_eq!(out.ok().text(), "got nothing, and had its own");
}

fn swap(one: &Path, other: &Path) {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
}

/// Uses sockets, as its arguments say.
const NET: &str = include_str!("../wasm/policy/net.c");

/// Native code of the image's author in the engine's process: nsswitch.conf(5) names services, and the C library loads a
/// library for each of them, from the root that the process is in.
fn no_library_of_the_image_is_loaded_to_resolve_names(ctx: &Ctx) {
    let bundle = guest(ctx, NET, &[]);
    let library = ctx.dir.join("evil.so");
    fs::write(
        ctx.dir.join("evil.c"),
        "#include <unistd.h>\n__attribute__((constructor)) static void loaded(void)\n\
         { if (write(1, \"MADE the engine run native code of the image\\n\", 45)) _exit(0); }\n",
    )
    .unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &ctx.dir.join("evil.c")])
        .env("TMPDIR", &ctx.dir)
        .status()
        .unwrap();
    assert!(built.success());
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    for directory in ["lib", "usr/lib", "lib64", "usr/lib64"]
        .map(String::from)
        .into_iter()
        .chain([format!("lib/{machine}"), format!("usr/lib/{machine}")])
    {
        fs::create_dir_all(bundle.path(&format!("/{directory}"))).unwrap();
        for name in [
            "nss_evil",
            "nss_files",
            "nss_dns",
            "nss_db",
            "nss_compat",
            "resolv",
            "idn2",
        ] {
            for version in [0, 2] {
                fs::copy(&library, bundle.path(&format!("/{directory}/lib{name}.so.{version}"))).unwrap();
            }
        }
    }
    let databases = [
        "hosts",
        "services",
        "protocols",
        "networks",
        "passwd",
        "group",
        "rpc",
        "netgroup",
        "initgroups",
    ];
    let conf: String = databases
        .map(|database| format!("{database}: evil files dns db compat\n"))
        .concat();
    bundle.file("/etc/nsswitch.conf", &conf).args(&[
        "/module.wasm",
        "resolve",
        "absent",
        "resolve",
        "b\u{fc}cher.test",
        "resolve",
        "localhost",
        ":http",
        "resolve",
        "127.0.0.1",
        ":absent",
    ]);
    let out = ctx.run(&bundle);
    withstood!(gained(&out.stdout).is_none(), "{:?}", gained(&out.stdout));
    assert!(out.ok().stdout.starts_with("absent: error "), "{out:?}");
}

/// Sends to addresses that the policy names otherwise than by the text: by datagrams over sockets that are connected or are
/// not, by IPv4 in IPv6, and to the port that is allowed at another address.
fn a_guest_reaches_no_address_that_its_rules_do_not_allow(ctx: &Ctx) {
    let bundle = guest(ctx, NET, &[("connect", "tcp:127.0.0.2:80"), ("listen", "")]);
    let mut args = vec!["/module.wasm"];
    for address in ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"] {
        args.extend([
            "toss", address, "80", "x", "tell", address, "80", "x", "connect", address, "80",
        ]);
    }
    args.extend(["connect", "127.0.0.2", "80"]);
    bundle.args(&args);
    let container = ctx.create(&bundle);
    let namespace = fs::File::open(format!("/proc/{}/ns/net", container.pid())).unwrap();
    // Bound here, and heard there: a socket stays in the network namespace that it was made in.
    let (datagrams, streams) = std::thread::spawn(move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        (
            UdpSocket::bind("127.0.0.1:80").unwrap(),
            TcpListener::bind("127.0.0.1:80").unwrap(),
        )
    })
    .join()
    .unwrap();
    datagrams.set_nonblocking(true).unwrap();
    streams.set_nonblocking(true).unwrap();
    container.start();
    container.stopped();
    let said = container.stdout();
    withstood!(datagrams.recv(&mut [0; 16]).is_err(), "a datagram arrived: {said}");
    withstood!(streams.accept().is_err(), "a connection was made: {said}");
    assert!(said.ends_with("connect: error 14\n"), "what is allowed is not: {said}");
}

/// Native code in the engine's process, as somebody has it who got the better of the engine (WasmEdge #4920): a plugin that
/// makes the system calls itself. What the kernel was told still holds.
fn an_engine_that_was_taken_over_reads_nothing_beyond_the_preopens(ctx: &Ctx) {
    let (bundle, file, _) = with_plugin(ctx, "load", &[("preopens", "mounts")]);
    let volume = ctx.mkdir("volume");
    fs::write(volume.join("own"), "its own").unwrap();
    bundle
        .file("/etc/secret", "REACHED what is not given")
        .bind(&volume, "/data", &["bind"])
        .args(&[
            "/module.wasm",
            "read",
            "/data/own",
            "read",
            "/data/../etc/secret",
            "read",
            "/proc/1/root/etc/secret",
        ]);
    let out = run_under(ctx, &file, &bundle);
    withstood!(!out.stdout.contains("REACHED"), "{}", out.stdout);
    assert_eq!(
        out.ok().stdout,
        "/data/own: 7 its own\n/data/../etc/secret: -1 \n/proc/1/root/etc/secret: -1 \n"
    );
}

fn an_engine_that_was_taken_over_connects_to_no_other_port(ctx: &Ctx) {
    let (bundle, file, _) = with_plugin(ctx, "load", &[("connect", "tcp:127.0.0.0/8:80")]);
    bundle.args(&["/module.wasm", "reach", "tcp", "1", "80", "reach", "tcp", "1", "81"]);
    let out = run_under(ctx, &file, &bundle);
    withstood!(out.stdout.contains("tcp 81: errno 13\n"), "{}", out.stdout);
    assert_eq!(out.ok().stdout, "tcp 80: errno 111\ntcp 81: errno 13\n");
}
