//! The Wasm part: a hello, and what a container that waits keeps in memory, beside Debian's crun with WasmEdge; and a job of
//! compiled code, beside `wasmedge` (`scripts/setup-wasmedge`) that runs the same code without a container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proa_integration::Bundle;
use serde_json::json;

use crate::{Bench, Kinds, Result, Runtime, Samples, pss, runtime};

/// Names the directory with the modules, for the private level.
pub const MODULES: &str = "BENCH_MODULES";
/// What the rows of the report are called.
pub const HELLO: &str = "hello, run";
/// See [`HELLO`].
pub const WAITING: &str = "memory of a waiting guest, PSS (KiB)";
/// How long a guest waits before its memory is measured.
const REST: Duration = Duration::from_millis(100);
/// See [`HELLO`].
pub const JOB: &str = "a job, compiled and in the cache, run";
/// The subjects: proa with the engine that it finds, the peer, and proa with the engine of the peer.
pub const OWN: &str = "proa";
/// See [`OWN`].
pub const PEER: &str = "crun+WasmEdge";
/// See [`OWN`].
pub const OWN_WITH_PEERS_ENGINE: &str = "proa, the same engine";
/// See [`OWN`]; without a container.
pub const COMMAND: &str = "wasmedge";

/// How long a guest may take until it waits.
const PATIENCE: Duration = Duration::from_secs(60);

const MODULE_HELLO: &str = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n";
const MODULE_WAITING: &str = "#include <stdio.h>\n#include <unistd.h>\n\
    int main(void) { puts(\"ready\"); fflush(stdout); for (;;) sleep(1000); }\n";

/// Half a second of compiled code.
const MODULE_JOB: &str = "#include <stdio.h>\n\
    static unsigned fib(unsigned n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }\n\
    int main(void) { volatile unsigned n = 40; printf(\"%u\\n\", fib(n)); return 0; }\n";

/// Compiles the modules into `dir` where clang can; the Wasm lines are left out otherwise.
pub fn compile(dir: &Path) -> Result<Option<PathBuf>> {
    for (name, text) in [
        ("hello", MODULE_HELLO),
        ("waiting", MODULE_WAITING),
        ("job", MODULE_JOB),
    ] {
        let source = dir.join(format!("{name}.c"));
        fs::write(&source, text).map_err(|e| format!("{}: {e}", source.display()))?;
        let status = Command::new("clang")
            .args(["--target=wasm32-wasi", "-O2", "-o"])
            .arg(dir.join(format!("{name}.wasm")))
            .arg(&source)
            .status();
        if !status.is_ok_and(|s| s.success()) {
            return Ok(None);
        }
    }
    Ok(Some(dir.to_owned()))
}

/// The crun with WasmEdge, and `own` with that engine, if it lies beside the program as the set-up script leaves it.
pub fn peers(own: &Path) -> Vec<Option<Runtime>> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/crun-wasm/bin/crun");
    let crun = std::env::var_os("CRUN_WASM").map_or(unpacked, PathBuf::from);
    let engine = crun.parent().map(|bin| bin.with_file_name("lib"));
    let engine = engine.filter(|lib| lib.join("libwasmedge.so.0").exists());
    let same = engine.and_then(|engine| {
        let found = runtime(OWN_WITH_PEERS_ENGINE, own.to_owned(), Kinds::Wasm)?;
        Some(Runtime {
            engine: Some(engine),
            ..found
        })
    });
    vec![runtime(PEER, crun, Kinds::Wasm), same]
}

/// The bundles of one runtime.
pub struct Bundles {
    hello: Bundle,
    waiting: Bundle,
    job: Option<Job>,
}

/// A job whose code is in a cache, and the same code as a file.
struct Job {
    bundle: Bundle,
    cache: PathBuf,
    code: PathBuf,
}

impl Bundles {
    /// `make` makes a bundle whose name ends like that.
    pub fn new(modules: &Path, make: impl Fn(&str) -> Result<Bundle>) -> Result<Self> {
        let with = |name: &str| {
            let bundle = make(name)?;
            let module = format!("{name}.wasm");
            fs::copy(modules.join(&module), bundle.path(&module)).map_err(|e| format!("{module}: {e}"))?;
            bundle
                .args(&[&format!("/{module}")])
                .set("/annotations", json!({"run.oci.handler": "wasm"}));
            Ok::<_, String>(bundle)
        };
        Ok(Self {
            hello: with("hello")?,
            waiting: with("waiting")?,
            job: None,
        })
    }

    /// Has `runtime`, which is proa, compile the job, if there is a `wasmedge` to run it beside.
    pub fn compile_job(&mut self, runtime: &Runtime, root: &Path, bundle: Bundle, modules: &Path) -> Result<()> {
        if !command("wasmedge").exists() {
            return Ok(());
        }
        let module = modules.join("job.wasm");
        fs::copy(&module, bundle.path("job.wasm")).map_err(|e| format!("job.wasm: {e}"))?;
        bundle
            .args(&["/job.wasm"])
            .set("/annotations", json!({"run.oci.handler": "wasm"}));
        let (cache, code) = (root.join("aot"), root.join("job.so"));
        let compile = |last: &[&std::ffi::OsStr]| {
            let status = Command::new(&runtime.path)
                .args([
                    "--root".as_ref(),
                    root.as_os_str(),
                    "--engine-cache".as_ref(),
                    cache.as_os_str(),
                ])
                .args(["wasm", "compile"])
                .args(last)
                .arg(&module)
                .stdout(Stdio::null())
                .status();
            match status.as_ref().is_ok_and(|s| s.success()) {
                true => Ok(()),
                false => Err(format!("{} wasm compile: {status:?}", runtime.name)),
            }
        };
        compile(&[])?;
        compile(&["--output".as_ref(), code.as_os_str()])?;
        // It takes code of its own version only.
        match run_command(&code) {
            Ok(_) => self.job = Some(Job { bundle, cache, code }),
            Err(error) => eprintln!("{error}: the job is left out"),
        }
        Ok(())
    }
}

/// A file of what `scripts/setup-wasmedge` unpacks.
fn command(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/wasmedge/lib")
        .join(file)
}

impl Bench<'_> {
    /// One round of the Wasm part.
    pub fn wasm_round(&mut self, bundles: &Bundles, samples: &mut Samples) -> Result<()> {
        let mut note = |what: &'static str, runtime: &Runtime, value: f64| {
            samples.entry((what, runtime.name.clone())).or_default().push(value);
        };
        let id = self.id();
        let hello = bundles.hello.dir.display().to_string();
        let took = self.call(&["run", "--bundle", &hello, &id])?;
        note(HELLO, self.runtime, took.as_secs_f64() * 1000.0);

        let id = self.id();
        let pid = self.start_waiting(&bundles.waiting, &id)?;
        // What a guest keeps that has waited for a while: each runtime has the same time to come to rest.
        std::thread::sleep(REST);
        note(WAITING, self.runtime, pss(pid)?);
        self.call(&["delete", "--force", &id])?;

        if let Some(job) = &bundles.job {
            let id = self.id();
            let (dir, cache) = (job.bundle.dir.display().to_string(), job.cache.display().to_string());
            let took = self.call(&["--engine-cache", &cache, "run", "--bundle", &dir, &id])?;
            note(JOB, self.runtime, took.as_secs_f64() * 1000.0);
            let took = run_command(&job.code)?;
            samples
                .entry((JOB, COMMAND.to_owned()))
                .or_default()
                .push(took.as_secs_f64() * 1000.0);
        }
        Ok(())
    }

    /// Starts the guest and returns its pid once it waits.
    fn start_waiting(&self, bundle: &Bundle, id: &str) -> Result<i32> {
        let (pid_file, said) = (self.root.join("pid"), self.root.join("said"));
        let (dir, pid_path) = (bundle.dir.display().to_string(), pid_file.display().to_string());
        let out = fs::File::create(&said).map_err(|e| format!("{}: {e}", said.display()))?;
        let status = self
            .command(&["run", "--detach", "--bundle", &dir, "--pid-file", &pid_path, id])
            .stdout(out)
            .stderr(Stdio::inherit())
            .status();
        if !status.as_ref().is_ok_and(|s| s.success()) {
            return Err(format!("{} run --detach: {status:?}", self.runtime.name));
        }
        let text = fs::read_to_string(&pid_file).map_err(|e| format!("{pid_path}: {e}"))?;
        let pid: i32 = text.trim().parse().map_err(|e| format!("{pid_path}: {e}"))?;
        let deadline = Instant::now() + PATIENCE;
        // It has said its word and sleeps: `S` is the third field, after a name in brackets.
        let waits = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            fs::metadata(&said).is_ok_and(|m| m.len() > 0)
                && stat.rsplit(')').next().is_some_and(|s| s.starts_with(" S"))
        };
        while !waits() {
            if Instant::now() > deadline {
                return Err(format!("{}: the guest does not come to wait", self.runtime.name));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(pid)
    }
}

/// Runs the code with `wasmedge`.
fn run_command(code: &Path) -> Result<Duration> {
    let mut wasmedge = Command::new(command("ld.so"));
    wasmedge
        .arg("--library-path")
        .arg(command(""))
        .arg(command("wasmedge"))
        .args(["--run-mode", "aot"])
        .arg(code)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let before = Instant::now();
    let status = wasmedge.status();
    let took = before.elapsed();
    match status.as_ref().is_ok_and(|s| s.success()) {
        true => Ok(took),
        false => Err(format!("wasmedge {}: {status:?}", code.display())),
    }
}
