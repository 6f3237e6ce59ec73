//! The runtime under containerd (its client and its CRI plugin), podman, buildah and Docker, each started by the test with directories
//! and sockets of its own. Where a manager needs configuration, it is the block that `docs/managers.md` shows.

/// Registers tests for both releases of a manager: `name(ctx, release)` becomes `system::name` and `newer::name`; those after
/// `@newer` only the latter.
macro_rules! of_both {
    ($($name:ident $(.$method:ident($($arg:expr),*))*;)* $(@newer $only:ident $(.$option:ident($($value:expr),*))*;)*) => {
        mod system {
            use super::*;
            $(fn $name(ctx: &Ctx) { super::$name(ctx, Release::System) })*
            proa_integration::tests! { $($name $(.$method($($arg),*))*;)* }
        }
        mod newer {
            use super::*;
            $(fn $name(ctx: &Ctx) { super::$name(ctx, Release::Newer) })*
            $(fn $only(ctx: &Ctx) { super::$only(ctx, Release::Newer) })*
            proa_integration::tests! {
                $($name $(.$method($($arg),*))*;)*
                $($only $(.$option($($value),*))*;)*
            }
        }
        /// The tests of this module, for both releases.
        pub fn tests() -> Vec<proa_integration::Test> {
            [system::tests(), newer::tests()].concat()
        }
    };
}

mod buildah;
mod checkpoint;
mod containerd;
mod cri;
mod docker;
mod later;
mod podman;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use proa_integration::bundle::make_rootfs;
use proa_integration::{Ctx, Kind, Test, View, image, wasm};
use serde_json::json;

/// containerd and podman always ask for limits, which need controllers that the v2 view has not.
const V1: &[View] = &[View::Hybrid];
const NO_HYBRID: &[(Kind, &str)] = &[(Kind::Crun, "refuses a hybrid layout")];
const IMAGE: &str = "example.test/busybox:latest";
/// What marks a container as Wasm, as flags of `ctr` and podman.
const WASM: &[&str] = &["--annotation", "run.oci.handler=wasm"];

/// What a script prints with [`show_namespaces`] in this process's own namespaces of these kinds.
fn own_namespaces(kinds: &[&str]) -> Vec<String> {
    let link = |kind| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    kinds.iter().map(|kind| link(kind).display().to_string()).collect()
}

/// A script that prints in which namespaces of these kinds it is, a line each.
fn show_namespaces(kinds: &[&str]) -> String {
    format!("cd /proc/self/ns; for n in {}; do readlink $n; done", kinds.join(" "))
}

/// A manager whose `inspect` takes a Go template.
trait Inspect {
    /// Calls the manager.
    fn inspect_with(&self, args: &[&str]) -> Said;

    /// One field of `inspect`.
    #[track_caller]
    fn inspect(&self, name: &str, field: &str) -> String {
        let format = format!("{{{{{field}}}}}");
        let text = self.inspect_with(&["inspect", "--format", &format, name]).ok();
        text.trim_end().to_owned()
    }

    /// The status and the exit status.
    #[track_caller]
    fn ended(&self, name: &str) -> String {
        self.inspect(name, ".State.Status}} {{.State.ExitCode")
    }
}

/// The tests of this module.
pub fn tests() -> Vec<Test> {
    [
        containerd::tests(),
        cri::tests(),
        docker::tests(),
        podman::tests(),
        buildah::tests(),
    ]
    .concat()
}

/// A guest with something to see: arguments, status, terminal, and an end only by signal.
const GUEST: &str = r#"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char line[64] = "";
	volatile unsigned long n = 0;
	const char *verb = argc > 1 ? argv[1] : "";
	if (!strcmp(verb, "loop")) {
		puts("ready");
		fflush(stdout);
		for (;;)
			n++;
	}
	if (!strcmp(verb, "ask")) {
		printf("terminal: %s\n", isatty(0) && isatty(1) ? "yes" : "no");
		fflush(stdout);
		fgets(line, sizeof line, stdin);
		printf("heard %s\n", line);
		return 7;
	}
	if (!strcmp(verb, "trap"))
		__builtin_trap();
	printf("wasm %s\n", argv[argc - 1]);
	fprintf(stderr, "wasm to stderr\n");
	fflush(stdout);
	/* ctr 1.6 may lose what is said last, with every runtime. */
	usleep(200000);
	return argc;
}
"#;

/// A busybox image for Linux, made in the test's directory.
fn busybox(ctx: &Ctx) -> PathBuf {
    image_with(ctx, &[])
}

/// The same with `/guest.wasm`, and with a component that no engine here runs.
fn busybox_with_guest(ctx: &Ctx) -> PathBuf {
    let guest = fs::read(wasm::compile(&ctx.dir, "guest", GUEST, &[])).unwrap();
    let broken = b"\0asm\x01\0\0\0garbage";
    image_with(
        ctx,
        &[
            ("guest.wasm", &guest),
            ("component.wasm", wasm::COMPONENT),
            ("broken.wasm", broken),
        ],
    )
}

/// The same image with programs that cannot be executed: of another architecture, and for an interpreter that is not there.
fn unfit_programs(ctx: &Ctx) -> PathBuf {
    let mut other = fs::read(&ctx.probe).unwrap();
    // e_machine, elf(5): none that there is.
    other[18..20].copy_from_slice(&[0xff, 0xff]);
    image_with(ctx, &[("other-arch", &other), ("no-interpreter", b"#!/no/such\n")])
}

/// The same with programs that are there, executable, and refused by the kernel.
fn odd_programs(ctx: &Ctx) -> PathBuf {
    image_with(
        ctx,
        &[
            ("bin/garbage", b"neither ELF nor script"),
            ("bin/lost", b"#!/no/such/interpreter\n"),
        ],
    )
}

fn image_with(ctx: &Ctx, files: &[(&str, &[u8])]) -> PathBuf {
    let dir = ctx.mkdir("image");
    let rootfs = dir.join("rootfs");
    make_rootfs(&rootfs, &ctx.probe);
    for (name, bytes) in files {
        let path = rootfs.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let config = json!({"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"]});
    image::archive(&dir, &rootfs, IMAGE, (image::architecture(), "linux"), &config)
}

/// What a foreign command said, both streams together, and its status.
#[derive(Debug)]
struct Said {
    code: i32,
    text: String,
}

impl Said {
    #[track_caller]
    fn ok(self) -> String {
        self.code(0)
    }

    #[track_caller]
    fn code(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}", self.text);
        self.text
    }

    /// Demands a failure that shows each of these texts.
    #[track_caller]
    fn refused(&self, texts: &[&str]) {
        assert_ne!(self.code, 0, "{self:?}");
        for text in texts {
            assert!(self.text.contains(text), "no {text:?} in {self:?}");
        }
    }
}

fn say(command: &mut Command, ctx: &Ctx) -> Said {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let path = ctx.dir.join(format!("said{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    let file = fs::File::create(&path).unwrap();
    eprintln!("+ {command:?}");
    // A file, not a pipe: shims and monitors keep it open. The deadline turns a hang into a failure with its output.
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .status()
        .unwrap();
    let said = Said {
        code: status.code().unwrap_or(-1),
        text: fs::read_to_string(path).unwrap(),
    };
    if said.code != 0 {
        eprintln!("  {said:?}");
    }
    said
}

/// Runs `proa setup` for a runtime installed as `make install` does it, with this `PATH` if the manager is not in the usual one.
fn setup(ctx: &Ctx, path: Option<&str>, args: &[&str]) -> Said {
    let binary = installed(ctx);
    let mut command = Command::new(&ctx.subject.path);
    command.arg("setup").args(args).arg("--binary").arg(binary);
    command.envs(path.map(|path| ("PATH", path)));
    say(&mut command, ctx)
}

/// The runtime under its name, and beside it under the one that asks for Wasm.
fn installed(ctx: &Ctx) -> PathBuf {
    let bin = ctx.mkdir("installed");
    for name in ["proa", "proa-wasm"] {
        if !bin.join(name).exists() {
            std::os::unix::fs::symlink(&ctx.subject.path, bin.join(name)).unwrap();
        }
    }
    bin.join("proa")
}

/// Shows what a daemon's log has beside its good news.
fn complaints(log: &Path) {
    let text = fs::read_to_string(log).unwrap_or_default();
    for line in text.lines().filter(|l| !l.contains("level=info")) {
        eprintln!("{line}");
    }
}

/// The first code block of that language below that heading of `docs/managers.md`, with the runtime under test in the place
/// of the installed one: what the document shows is what was tried.
fn documented(ctx: &Ctx, heading: &str, language: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/managers.md");
    let text = fs::read_to_string(&path).unwrap();
    let section = text.split("\n## ").find(|s| s.lines().next() == Some(heading));
    let block = section.and_then(|s| s.split(&format!("```{language}\n")).nth(1));
    let block = block.and_then(|b| b.split("```").next());
    let block = block.unwrap_or_else(|| panic!("{}: no {language} block below {heading:?}", path.display()));
    assert!(block.contains("/usr/local/bin/proa"), "{block}");
    block
        .replace("/usr/local/bin/proa-wasm\"", &format!("{}\"", alias(ctx).display()))
        .replace("/usr/local/bin/proa\"", &format!("{}\"", ctx.subject.path.display()))
}

/// The runtime under the name that asks for Wasm.
fn alias(ctx: &Ctx) -> PathBuf {
    let alias = ctx.dir.join("proa-wasm");
    if !alias.exists() {
        std::os::unix::fs::symlink(&ctx.subject.path, &alias).unwrap();
    }
    alias
}
