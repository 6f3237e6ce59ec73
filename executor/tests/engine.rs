//! The Wasm handler with the real engine, in every version that is set up (scripts/setup-engine), without a sandbox: the
//! example `guest` drives it. Fails where no engine is set up. Needs root, for chroot(2).
#![cfg(feature = "engine")]

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// An engine's directory, or none for the system's.
type Engine = Option<PathBuf>;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The prefixes that are set up; without one, the system's engine has to do.
fn engines() -> Vec<Engine> {
    let dirs = fs::read_dir(top().join("target/engine"))
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path());
    let found: Vec<Engine> = dirs
        .filter(|dir| !dir.is_symlink() && dir.join("libwasmedge.so.0").exists())
        .map(Some)
        .collect();
    if found.is_empty() { vec![None] } else { found }
}

/// A root file system with the fixtures, removed at the end.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let build = top().join("integration/fixtures/wasm/build");
        static BUILT: std::sync::Once = std::sync::Once::new();
        BUILT.call_once(|| {
            assert!(
                Command::new(build).status().unwrap().success(),
                "the fixtures don't build"
            )
        });
        let root = std::env::temp_dir().join(format!("proa-engine-{name}-{}", std::process::id()));
        fs::create_dir_all(root.join("data")).unwrap();
        for entry in fs::read_dir(top().join("target/wasm")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() && path.metadata().unwrap().len() < 1 << 20 {
                fs::copy(&path, root.join(path.file_name().unwrap())).unwrap();
            }
        }
        Self(root)
    }

    fn command(&self, engine: &Engine, cwd: &str, memory: u64, args: &[&str]) -> Command {
        // The test runs from target/PROFILE/deps.
        let program = std::env::current_exe()
            .unwrap()
            .parent()
            .unwrap()
            .with_file_name("examples/guest");
        let mut command = match engine {
            Some(dir) => {
                let mut command = Command::new(dir.join("ld.so"));
                command
                    .arg("--library-path")
                    .arg(dir)
                    .arg("--argv0")
                    .arg("guest")
                    .arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .env_remove("PROA_ENGINE_DIR")
            .arg(&self.0)
            .arg(cwd)
            .arg(memory.to_string())
            .args(args);
        command
    }

    fn run(&self, engine: &Engine, cwd: &str, memory: u64, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(engine, cwd, memory, args).output().unwrap();
        (
            status.code().unwrap_or(-1),
            String::from_utf8(stdout).unwrap(),
            String::from_utf8(stderr).unwrap(),
        )
    }

    fn spawn(&self, engine: &Engine, args: &[&str]) -> Child {
        let mut command = self.command(engine, "/", 0, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn a_command_runs_and_its_status_is_the_guest_s() {
    let root = Root::new("status");
    for engine in engines() {
        assert_eq!(
            root.run(&engine, "/", 0, &["/hello.wasm"]),
            (0, "hello from wasm\n".into(), String::new())
        );
        for (status, expected) in [
            ("0", 0),
            ("1", 1),
            ("42", 42),
            ("255", 255),
            ("256", 0),
            ("300", 44),
            ("-1", 255),
        ] {
            assert_eq!(
                root.run(&engine, "/", 0, &["/status.wasm", status]).0,
                expected,
                "{engine:?} {status}"
            );
        }
        assert_eq!(
            root.run(&engine, "/", 0, &["/status.wasm", "7", "return"]).0,
            7,
            "{engine:?}"
        );
    }
}

#[test]
fn a_trap_is_134_and_named() {
    let root = Root::new("trap");
    let traps = [
        ("unreachable", "unreachable"),
        ("divide", "integer divide by zero"),
        ("bounds", "out of bounds memory access"),
        ("recurse", "out of bounds memory access"),
        ("call", "indirect call type mismatch"),
    ];
    for engine in engines() {
        for (how, name) in traps {
            let line = format!("proa: wasm trap: {name} in /trap.wasm\n");
            let (status, stdout, stderr) = root.run(&engine, "/", 0, &["/trap.wasm", how]);
            assert_eq!((status, stdout.as_str()), (134, "about to trap\n"), "{engine:?} {how}");
            let (first, backtrace) = stderr.split_at(line.len().min(stderr.len()));
            assert_eq!(first, line, "{engine:?} {how}");
            let mut frames = backtrace.lines();
            assert!(
                frames.next().is_some_and(|frame| frame.starts_with("proa:   at ")),
                "{engine:?} {how}: {backtrace}"
            );
        }
        let (status, _, stderr) = root.run(&engine, "/", 0, &["/start-traps.wasm"]);
        assert_eq!(status, 134);
        assert!(
            stderr.starts_with("proa: wasm trap: unreachable in /start-traps.wasm\n"),
            "{stderr}"
        );
    }
}

#[test]
fn the_guest_gets_arguments_environment_and_files() {
    let root = Root::new("wasi");
    for engine in engines() {
        let (status, stdout, _) = root.run(&engine, "/data", 0, &["../inspect.wasm", "a b", ""]);
        assert_eq!(status, 0);
        let lines: Vec<&str> = stdout.lines().collect();
        assert_eq!(lines[..3], ["arg 0 ../inspect.wasm", "arg 1 a b", "arg 2 "]);
        assert!(
            lines.contains(&"env GREETING=hello there") && lines.contains(&"env PWD=/data"),
            "{stdout}"
        );
        let (_, stdout, _) = root.run(&engine, "/", 0, &["/inspect.wasm"]);
        assert!(!stdout.contains("PWD="), "{stdout}");

        let write = ["/files.wasm", "write", "/data/new", "some text"];
        assert_eq!(root.run(&engine, "/", 0, &write), (0, String::new(), String::new()));
        assert_eq!(fs::read_to_string(root.0.join("data/new")).unwrap(), "some text");
        assert_eq!(
            root.run(&engine, "/data", 0, &["/files.wasm", "read", "/data/new"]).1,
            "some text"
        );
        assert!(
            root.run(&engine, "/", 0, &["/files.wasm", "list", "/"])
                .1
                .lines()
                .any(|name| name == "data")
        );
        assert_eq!(root.run(&engine, "/", 0, &["/files.wasm", "remove", "/data/new"]).0, 0);
        assert!(!root.0.join("data/new").exists());
    }
}

#[test]
fn standard_input_and_output_pass_through() {
    let root = Root::new("stdio");
    for engine in engines() {
        let mut child = root.spawn(&engine, &["/cat.wasm"]);
        let text = "line\n".repeat(20_000);
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        writer.join().unwrap();
        assert_eq!((out.len(), child.wait().unwrap().code()), (100_000, Some(0)));
    }
}

#[test]
fn memory_is_bounded_by_the_limit() {
    let root = Root::new("memory");
    for engine in engines() {
        let grown = |limit: u64| -> u64 {
            let (_, stdout, stderr) = root.run(&engine, "/", limit, &["/grow.wasm", "300"]);
            let pages = stdout.trim().parse();
            pages.unwrap_or_else(|error| panic!("{engine:?} {limit}: {error}: {stdout}{stderr}"))
        };
        assert_eq!((grown(0), grown(1 << 40)), (300, 300), "{engine:?}");
        // Some of it is the engine's: more than the module starts with, and less than the 256 pages that it is in all.
        let pages = grown(16 << 20);
        assert!((3..250).contains(&pages), "{engine:?} {pages}");
        // There is no room to grow in at all.
        assert_eq!(grown(1 << 20), 2, "{engine:?}");
        let (status, _, stderr) = root.run(&engine, "/", 65536, &["/grow.wasm"]);
        assert!(
            status == 1 && stderr.contains("more than linux.resources.memory.limit = 65536"),
            "{stderr}"
        );
    }
}

#[test]
fn a_limit_of_address_space_is_named() {
    let root = Root::new("space");
    for engine in engines() {
        let direct = root.command(&engine, "/", 0, &["/hello.wasm"]);
        let mut command = Command::new("prlimit");
        command
            .arg("--as=4000000000")
            .arg(direct.get_program())
            .args(direct.get_args());
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(1) && text.contains("RLIMIT_AS is 4000000000"),
            "{text}"
        );
    }
}

#[test]
fn signals_end_the_guest() {
    use nix::sys::signal::{Signal, kill};
    let root = Root::new("signals");
    for engine in engines() {
        for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
            for how in ["busy", "sleep"] {
                let mut child = root.spawn(&engine, &["/loop.wasm", how]);
                let mut ready = [0; 6];
                child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
                kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
                assert_eq!(child.wait().unwrap().code(), Some(status), "{engine:?} {signal} {how}");
            }
        }
    }
}

#[test]
fn nothing_of_init_stays_open() {
    let root = Root::new("open");
    for engine in engines() {
        let mut child = root.spawn(&engine, &["/loop.wasm", "sleep"]);
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let open = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
        let names: Vec<_> = open
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        // The example holds the root's directory; left is what WASI preopened, the root again, and the module, whose names a
        // trap is told with.
        let mut inside: Vec<_> = names.iter().filter(|name| name.starts_with(&root.0)).collect();
        inside.sort();
        assert_eq!(inside, [&root.0, &root.0.join("loop.wasm")], "{engine:?}");
    }
}

#[test]
fn what_cannot_run_is_refused_by_name() {
    let root = Root::new("refused");
    let refusals = [
        ("/component.wasm", "a component (WASI 0.2 or later)"),
        ("/reactor.wasm", "a reactor (exports _initialize, no _start)"),
        ("/text.wat", "WebAssembly text"),
        ("/truncated.wasm", "truncated: the import section"),
        ("/header.wasm", "truncated: the header"),
        ("/empty.wasm", "empty file"),
        ("/garbage.wasm", "neither a WebAssembly module nor a Linux program"),
        ("/native.so", "a native shared library"),
        ("/invalid.wasm", "validation: type mismatch"),
        ("/unlinked.wasm", "unknown import (beside WASI it imports from env)"),
        (
            "/missing.wasm",
            r#"exec: "/missing.wasm": stat /missing.wasm: no such file or directory"#,
        ),
        ("missing", r#"exec: "missing": executable file not found in $PATH"#),
        ("/data", r#"exec: "/data": is a directory"#),
    ];
    for engine in engines() {
        for (path, why) in refusals {
            let (status, stdout, stderr) = root.run(&engine, "/", 0, &[path]);
            assert_eq!((status, stdout.as_str()), (1, ""), "{engine:?} {path}");
            assert!(
                stderr.contains(why) && stderr.contains(path) && stderr.lines().count() == 1,
                "{path}: {stderr}"
            );
        }
    }
}

#[test]
fn a_linux_program_is_executed_natively() {
    let root = Root::new("sidecar");
    fs::write(root.0.join("script"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(
        root.0.join("script"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    for engine in engines() {
        // The kernel, not the engine, says what is wrong with it.
        let (_, _, stderr) = root.run(&engine, "/", 0, &["/script"]);
        assert_eq!(stderr, "exec /script: no such file or directory\n");
    }
}

#[test]
fn a_missing_engine_is_said_with_where_and_how() {
    let root = Root::new("engine");
    for engine in engines() {
        let mut command = root.command(&engine, "/", 0, &["/hello.wasm"]);
        let output = command.env("PROA_ENGINE_DIR", "/nowhere/at/all").output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        for part in [
            "libwasmedge.so.0",
            "/nowhere/at/all",
            "apt install libwasmedge0",
            "dnf install wasmedge",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(output.status.code(), Some(1));
    }
}
