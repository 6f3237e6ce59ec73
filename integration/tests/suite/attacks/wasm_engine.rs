//! From a Wasm guest to native code, and what an engine is left with whose code a guest has taken over.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use proa_integration::ctx::Call;
use proa_integration::{Bundle, Ctx, Output, tests, wasm};
use serde_json::json;

use super::{gained, withstood};

tests! {
    a_guest_does_not_get_at_its_engine .once().only_proa().seconds(120);
    a_guest_reads_of_the_kernel_what_everybody_may_read .once().only_proa();
    an_engine_that_was_taken_over_does_not_write_code .once().only_proa();
    an_engine_of_an_exec_that_was_taken_over_does_not_write_code .once().only_proa();
    an_engine_that_was_taken_over_makes_no_memory_executable .once().only_proa();
    an_engine_that_was_taken_over_has_the_calls_of_a_guest .once().only_proa();
    every_thread_of_an_engine_is_filtered .once().only_proa();
}

/// Tries, on every directory it is given that procfs has for a process, what leads to that process's memory, descriptors and
/// settings. Where the engine's code lies is told by `stat`, which everybody may read.
const GUEST: &str = r#"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char text[4096];

static unsigned long long code(const char *process)
{
	char path[256];
	snprintf(path, sizeof path, "%s/stat", process);
	int fd = open(path, O_RDONLY);
	ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
	text[length > 0 ? length : 0] = 0;
	char *at = strrchr(text, ')');
	for (int field = 2; at && field < 26; field++)
		at = strchr(at + 1, ' ');
	close(fd);
	return at ? strtoull(at, 0, 10) : 0;
}

int main(int argc, char **argv)
{
	static const char *reads[] = {"mem", "environ", "auxv", "pagemap", "maps", "smaps", "syscall", "stack"};
	static const char *writes[] = {"mem", "oom_score_adj", "comm", "timerslack_ns", "clear_refs"};
	static const char *lists[] = {"fd", "map_files"};
	char path[256];
	for (int i = 1; i < argc; i++) {
		unsigned long long address = code(argv[i]);
		if (!address)
			printf("no stat of %s\n", argv[i]);
		for (int j = 0; j < 5; j++) {
			snprintf(path, sizeof path, "%s/%s", argv[i], writes[j]);
			int fd = open(path, O_RDWR);
			if (fd < 0)
				fd = open(path, O_WRONLY);
			if (fd < 0)
				fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
			if (fd < 0)
				continue;
			if (!j && (pread(fd, text, 4, address) != 4 || pwrite(fd, text, 4, address) != 4))
				continue;
			printf("WROTE %s\n", path);
		}
		for (int j = 0; j < 8; j++) {
			snprintf(path, sizeof path, "%s/%s", argv[i], reads[j]);
			int fd = open(path, O_RDONLY);
			if (fd >= 0 && (j ? read(fd, text, 8) : pread(fd, text, 4, address)) > 0)
				printf("REACHED %s\n", path);
		}
		for (int j = 0; j < 2; j++) {
			snprintf(path, sizeof path, "%s/%s", argv[i], lists[j]);
			if (opendir(path))
				printf("REACHED %s\n", path);
		}
	}
	puts("done");
	return 0;
}
"#;

fn guest(ctx: &Ctx, source: &str) -> Bundle {
    let bundle = ctx.bundle();
    let module = wasm::compile(&ctx.dir, "module", source, &[]);
    fs::copy(module, bundle.path("/module.wasm")).unwrap();
    bundle
        .args(&["/module.wasm"])
        .set("/annotations", json!({"run.oci.handler": "wasm"}));
    bundle
}

/// The guest writes to its engine's memory through procfs and is native code: as root, as root of a user namespace, as
/// another user who may override modes, interpreted and compiled; through the container's procfs and through the host's.
fn a_guest_does_not_get_at_its_engine(ctx: &Ctx) {
    let (cache, config) = (ctx.mkdir("cache"), ctx.dir.join("config.toml"));
    fs::write(&config, "[wasm.aot]\npolicy = \"before-start\"\n").unwrap();
    let [cache, config] = [&cache, &config].map(|path| path.to_str().unwrap());
    // Both, or the code would be kept in the host's cache.
    let compiled = ["--engine-cache", cache, "--config", config];
    for (who, options) in [
        ("root", &[][..]),
        ("root, compiled", &compiled[..]),
        ("root of a user namespace", &[]),
        ("a user who overrides modes", &[]),
    ] {
        let bundle = guest(ctx, GUEST);
        bundle.bind(Path::new("/proc"), "/volume", &["rbind"]).args(&[
            "/module.wasm",
            "/proc/self",
            "/proc/thread-self",
            "/proc/1/task/1",
            "/volume/self",
            "/volume/1",
        ]);
        let all = json!(["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]);
        match who {
            "root of a user namespace" => {
                // The host's procfs is nobody's there.
                bundle
                    .userns(200_000)
                    .args(&["/module.wasm", "/proc/self", "/proc/1/task/1"]);
            }
            "a user who overrides modes" => {
                bundle.set("/process/user", json!({"uid": 1000, "gid": 1000})).set(
                    "/process/capabilities",
                    json!({"bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all}),
                );
            }
            "root, compiled" => {
                bundle.set(
                    "/annotations",
                    json!({"run.oci.handler": "wasm", "proa.wasm/aot": "before-start"}),
                );
            }
            _ => {}
        }
        let id = ctx.id();
        let verb = ["run", "--bundle", bundle.dir.to_str().unwrap(), &id];
        let out = ctx.call(&[options, &verb].concat()).output();
        withstood!(gained(&out.stdout).is_none(), "{who}: {}", gained(&out.stdout).unwrap());
        assert!(out.ok().stdout.ends_with("done\n"), "{out:?}");
    }
}

const READER: &str = r#"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char text[64];
	for (int i = 1; i < argc; i++) {
		int fd = open(argv[i], O_RDONLY);
		DIR *directory = fd < 0 || read(fd, text, sizeof text) > 0 ? 0 : opendir(argv[i]);
		if (fd < 0 || (directory && !readdir(directory)))
			printf("not %s\n", argv[i]);
	}
	puts("done");
	return 0;
}
"#;

fn a_guest_reads_of_the_kernel_what_everybody_may_read(ctx: &Ctx) {
    let bundle = guest(ctx, READER);
    bundle.args(&[
        "/module.wasm",
        "/proc",
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/proc/uptime",
        "/proc/mounts",
        "/proc/net/dev",
        "/proc/sys/kernel/ostype",
        "/proc/self/status",
        "/proc/self/stat",
        "/proc/self/cmdline",
        "/proc/self/cgroup",
        "/proc/self/mountinfo",
        "/sys",
        "/sys/kernel/mm",
        "/sys/devices/system/cpu/online",
    ]);
    assert_eq!(ctx.run(&bundle).ok().text(), "done");
}

/// A directory with the engine, whose library has been put behind one that takes over where the guest would begin.
fn taken_over(ctx: &Ctx) -> PathBuf {
    let real = match std::env::var_os("PROA_ENGINE_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => ctx.subject.path.parent().unwrap().with_file_name("engine/current"),
    };
    let dir = ctx.mkdir("engine");
    for entry in fs::read_dir(&real).unwrap().flatten() {
        if entry.file_name() != "libwasmedge.so.0" {
            symlink(entry.path().canonicalize().unwrap(), dir.join(entry.file_name())).unwrap();
        }
    }
    let behind = ctx.mkdir("behind").join("libwasmedge.so.0");
    symlink(real.join("libwasmedge.so.0").canonicalize().unwrap(), &behind).unwrap();
    let source = ctx.dir.join("taken-over.c");
    fs::write(&source, include_str!("wasm_engine.c")).unwrap();
    let built = Command::new("cc")
        .args([
            "-shared",
            "-fPIC",
            "-O1",
            "-Wl,-soname,libtaken-over.so",
            "-Wl,--no-as-needed",
        ])
        // What the engine needs in turn is for its own loader.
        .args(["-Wl,--allow-shlib-undefined", "-Wl,--disable-new-dtags"])
        .arg(format!("-Wl,-rpath,{}", behind.parent().unwrap().display()))
        .arg("-o")
        .args([&dir.join("libwasmedge.so.0"), &source, &behind])
        .env("TMPDIR", &ctx.dir)
        .status()
        .unwrap();
    assert!(built.success());
    dir
}

fn run_taken_over(ctx: &Ctx, bundle: &Bundle) -> Output {
    let engine = taken_over(ctx);
    let call: Call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()]);
    call.env("PROA_ENGINE_DIR", engine.to_str().unwrap()).output()
}

/// A container with nearly all rights, whose guest is of no importance.
fn hijacked(ctx: &Ctx) -> Output {
    let bundle = guest(ctx, "int main(void) { return 0; }");
    bundle.writable().caps(&[
        "CAP_SYS_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_NET_RAW",
        "CAP_NET_ADMIN",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_PERFMON",
        "CAP_BPF",
    ]);
    let out = run_taken_over(ctx, &bundle);
    assert!(out.stdout.contains("write /proc/self/mem "), "{out:?}");
    out
}

/// The errno of what was tried as `name`.
#[track_caller]
fn errno(out: &Output, name: &str) -> i32 {
    let line = out
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {out:?}")).parse().unwrap()
}

/// The same by system calls of its own, which nothing judges but the kernel.
fn an_engine_that_was_taken_over_does_not_write_code(ctx: &Ctx) {
    let out = hijacked(ctx);
    for name in ["write /proc/self/mem", "write /proc/thread-self/mem"] {
        withstood!(errno(&out, name) != 0, "{name}");
        assert_eq!(errno(&out, name), nix::libc::EROFS, "{out:?}");
    }
}

/// In a Linux container, whose own procfs stays as it is.
fn an_engine_of_an_exec_that_was_taken_over_does_not_write_code(ctx: &Ctx) {
    let bundle = guest(ctx, "int main(void) { return 0; }");
    bundle.sh("sleep 100");
    let engine = taken_over(ctx);
    let container = ctx.start(&bundle);
    let call = container.exec_call(&[], &["/module.wasm"]);
    let out = call.env("PROA_ENGINE_DIR", engine.to_str().unwrap()).output();
    withstood!(
        errno(&out, "write /proc/self/mem") != 0,
        "write /proc/self/mem in an exec"
    );
    assert_eq!(errno(&out, "write /proc/self/mem"), nix::libc::EROFS, "{out:?}");
    let writes = "echo 500 > /proc/self/oom_score_adj && cat /proc/self/oom_score_adj";
    assert_eq!(container.exec(&["sh", "-c", writes]).ok().text(), "500");
}

fn an_engine_that_was_taken_over_makes_no_memory_executable(ctx: &Ctx) {
    let out = hijacked(ctx);
    for name in [
        "mmap rwx",
        "mmap anonymous rx",
        "mprotect rx",
        "mprotect of code",
        "pkey_mprotect rx",
        "mmap file rx",
        "memfd_create",
    ] {
        withstood!(errno(&out, name) != 0, "{name}");
    }
    // Where the kernel has it (Linux 6.3), it refuses that by itself.
    let (_, mdwe) = out.stdout.split_once("mdwe=").unwrap();
    let holds = mdwe.starts_with('1') || mdwe.starts_with("-1");
    withstood!(holds, "the kernel lets memory become executable: mdwe={mdwe}");
}

fn an_engine_that_was_taken_over_has_the_calls_of_a_guest(ctx: &Ctx) {
    let out = hijacked(ctx);
    for name in [
        "process_vm_writev",
        "process_vm_readv",
        "bpf",
        "mount",
        "open_tree",
        "fsopen",
        "mount_setattr",
        "unshare",
        "setns",
        "keyctl",
        "add_key",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "name_to_handle_at",
        "open_by_handle_at",
        "pidfd_getfd",
        "raw socket",
        "packet socket",
        "netlink socket",
        "unix socket",
        "kcmp",
        "personality",
        "ptrace",
        "fork",
        "execve",
    ] {
        // Any other error is of a kernel that has looked at the call.
        let refused = [nix::libc::EPERM, nix::libc::ENOSYS].contains(&errno(&out, name));
        withstood!(refused, "{name}: errno {}", errno(&out, name));
    }
}

const WAITS: &str =
    "#include <unistd.h>\n#include <stdio.h>\nint main(void) { puts(\"up\"); fflush(stdout); for (;;) sleep(1); }";

/// Also the one that answers for the guest, and without a profile of the bundle's.
fn every_thread_of_an_engine_is_filtered(ctx: &Ctx) {
    let bundle = guest(ctx, WAITS);
    let container = ctx.start(&bundle);
    container.says("up");
    let tasks = fs::read_dir(format!("/proc/{}/task", container.pid())).unwrap();
    let mut threads = 0;
    for task in tasks.flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        withstood!(
            status.contains("Seccomp:\t2\n") && status.contains("NoNewPrivs:\t1\n"),
            "a thread is not filtered: {status}"
        );
        threads += 1;
    }
    assert_eq!(threads, 2, "the guest's, and the one that answers for it");
}
