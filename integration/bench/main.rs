//! Side by side: this runtime, crun and runc as installed, and the kernel's floor, interleaved in one run.
//!
//! `bench [FILE.md]` prints a table and, with a file, writes it there. `BENCH_ROUNDS` sets the number of rounds,
//! `PROA_TEST_RUNTIME` another runtime than the built one, `CRUN` and `RUNC` other peers than those in `PATH`, `CRUN_NEWER`
//! one more crun, `CRUN_WASM` another crun with WasmEdge than that of `scripts/setup-crun-wasm`, `PROA_TEST_VIEW` the cgroup
//! view (`v1` unless set; crun refuses the hybrid one).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use proa_integration::{Bundle, View, host, stage, vars};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::json;

mod report;
mod wasm;

type Result<T> = std::result::Result<T, String>;

/// One thing measured, of one subject: samples in milliseconds, or kibibytes for memory.
type Samples = BTreeMap<(&'static str, String), Vec<f64>>;

fn main() -> ExitCode {
    let done = match std::env::var(vars::LEVEL).as_deref() {
        Ok("stage") => view().and_then(|view| stage::stage(&tag(), view)),
        Ok("init") => view().and_then(stage::init),
        Ok("body") => body(),
        _ => outside(),
    };
    done.unwrap_or_else(|e| {
        eprintln!("{e}");
        ExitCode::FAILURE
    })
}

fn tag() -> String {
    std::env::var(vars::TAG).unwrap_or_default()
}

fn view() -> Result<View> {
    let name = std::env::var(vars::VIEW).unwrap_or_else(|_| "v1".to_owned());
    View::parse(&name).ok_or_else(|| format!("{}: no view is called {name:?}", vars::VIEW))
}

/// The level on the host: builds what is needed, starts the private level, writes the report.
fn outside() -> Result<ExitCode> {
    let helpers = std::env::current_exe()
        .map_err(|e| e.to_string())?
        .with_file_name("helpers");
    let tag = format!("pb{}x", std::process::id());
    let mut stage = Command::new("/proc/self/exe");
    stage
        .env(vars::LEVEL, "stage")
        .env(vars::TAG, &tag)
        .env(vars::VIEW, view()?.name());
    stage.env(vars::PROBE, host::compile_helper("probe", &helpers)?);
    stage.env("BENCH_FLOOR", host::compile_helper("floor", &helpers)?);
    if let Some(modules) = wasm::compile(&helpers)? {
        stage.env(wasm::MODULES, modules);
    }
    let out = stage
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("start the private level: {e}"))?;
    for group in host::cgroups_with(&tag) {
        fs::remove_dir(&group).map_err(|e| format!("{}: {e}", group.display()))?;
    }
    fs::remove_dir(stage::directory(&tag)).map_err(|e| format!("{}: {e}", stage::directory(&tag).display()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    print!("{text}");
    if !out.status.success() {
        return Err(format!("the private level ended with {}", out.status));
    }
    if let Some(file) = std::env::args().nth(1) {
        let file = PathBuf::from(file);
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        fs::write(&file, text.as_bytes()).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A runtime to measure.
struct Runtime {
    name: String,
    path: PathBuf,
    version: String,
    kinds: Kinds,
    /// The engine's directory, if it isn't to be the one that is found.
    engine: Option<PathBuf>,
}

/// Which containers a runtime is measured with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kinds {
    Native,
    Wasm,
    Both,
}

fn runtime(name: &str, path: PathBuf, kinds: Kinds) -> Option<Runtime> {
    let out = Command::new(&path).arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&out.stdout)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    Some(Runtime {
        name: name.to_owned(),
        path,
        version,
        kinds,
        engine: None,
    })
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|d| d.join(program))
        .find(|p| p.is_file())
}

fn runtimes() -> Vec<Runtime> {
    let own = std::env::var_os(vars::RUNTIME).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bin/proa"),
        PathBuf::from,
    );
    let engine = own.with_file_name("proa-wasmedge").exists();
    let mut all = vec![runtime(
        "proa",
        own.clone(),
        if engine { Kinds::Both } else { Kinds::Native },
    )];
    for (name, variable) in [("crun", "CRUN"), ("runc", "RUNC")] {
        let path = std::env::var_os(variable).map(PathBuf::from).or_else(|| find(name));
        all.push(path.and_then(|p| runtime(name, p, Kinds::Native)));
    }
    all.push(std::env::var_os("CRUN_NEWER").and_then(|p| runtime("crun (newer)", p.into(), Kinds::Native)));
    all.extend(wasm::peers(&own));
    all.into_iter().flatten().collect()
}

/// The bundles and directories of one runtime.
struct Bench<'a> {
    runtime: &'a Runtime,
    root: PathBuf,
    bundle: Bundle,
    wasm: Option<wasm::Bundles>,
    count: u32,
}

impl Bench<'_> {
    fn call(&self, args: &[&str]) -> Result<Duration> {
        self.measure(args, Stdio::inherit())
    }

    /// As [`Bench::call`], where a failure is an answer.
    fn quietly(&self, args: &[&str]) -> Result<Duration> {
        self.measure(args, Stdio::null())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.runtime.path);
        command
            .arg("--root")
            .arg(&self.root)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(engine) = &self.runtime.engine {
            command.env("PROA_ENGINE_DIR", engine);
        }
        command
    }

    fn measure(&self, args: &[&str], errors: Stdio) -> Result<Duration> {
        let mut command = self.command(args);
        command.stderr(errors);
        let before = Instant::now();
        let status = command
            .status()
            .map_err(|e| format!("{}: {e}", self.runtime.path.display()))?;
        let took = before.elapsed();
        if status.success() {
            Ok(took)
        } else {
            Err(format!("{} {}: {status}", self.runtime.name, args.join(" ")))
        }
    }

    fn id(&mut self) -> String {
        self.count += 1;
        format!("{}{}", tag(), self.count)
    }

    fn round(&mut self, samples: &mut Samples) -> Result<()> {
        if let Some(bundles) = self.wasm.take() {
            self.wasm_round(&bundles, samples)?;
            self.wasm = Some(bundles);
        }
        if self.runtime.kinds == Kinds::Wasm {
            return Ok(());
        }
        let name = self.runtime.name.clone();
        let mut note = |what: &'static str, value: f64| samples.entry((what, name.clone())).or_default().push(value);
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        let bundle = self.bundle.dir.display().to_string();
        let id = self.id();
        note("run", ms(self.call(&["run", "--bundle", &bundle, &id])?));

        let id = self.id();
        let pid_file = self.root.join("pid");
        let pid_path = pid_file.display().to_string();
        let create = self.call(&["create", "--bundle", &bundle, "--pid-file", &pid_path, &id])?;
        let pid: i32 = fs::read_to_string(&pid_file)
            .map_err(|e| e.to_string())?
            .trim()
            .parse()
            .map_err(|e| format!("{e}"))?;
        // Asked for its state as callers do, which also gives init the time to come to rest.
        self.call(&["state", &id])?;
        note("memory of the waiting init, PSS (KiB)", pss(pid)?);
        let init = rustix::process::Pid::from_raw(pid).ok_or("pid 0")?;
        let init =
            rustix::process::pidfd_open(init, rustix::process::PidfdFlags::empty()).map_err(|e| e.to_string())?;
        let start = self.call(&["start", &id])?;
        poll(&mut [PollFd::new(&init, PollFlags::IN)], None).map_err(|e| e.to_string())?;
        let delete = self.call(&["delete", &id])?;
        note("create", ms(create));
        note("start", ms(start));
        note("delete", ms(delete));
        note("create + start + delete", ms(create + start + delete));

        let id = self.id();
        self.bundle.args(&["/bin/sleep", "1000"]);
        self.call(&["run", "--detach", "--bundle", &bundle, &id])?;
        self.bundle.args(&["/bin/probe", "true"]);
        self.call(&["exec", &id, "/bin/probe", "true"])?;
        note("exec", ms(self.call(&["exec", &id, "/bin/probe", "true"])?));
        self.call(&["delete", "--force", &id])?;
        Ok(())
    }

    /// The smallest power of two, in KiB, that is enough as a memory limit for `true` three times in a row.
    fn smallest_limit(&mut self) -> Result<Option<f64>> {
        let bundle = self.bundle.dir.display().to_string();
        for kib in (7..=16).map(|n| 1u64 << n) {
            self.bundle.set("/linux/resources/memory", json!({"limit": kib * 1024}));
            let mut enough = true;
            for _ in 0..3 {
                let id = self.id();
                let ran = self.quietly(&["run", "--bundle", &bundle, &id]);
                if ran.is_err() {
                    // What is left of it, if anything: a runtime that has cleaned up knows no such container.
                    drop(self.quietly(&["delete", "--force", &id]));
                    enough = false;
                    break;
                }
            }
            if enough {
                return Ok(Some(kib as f64));
            }
        }
        Ok(None)
    }
}

fn pss(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let line = text
        .lines()
        .find(|l| l.starts_with("Pss:"))
        .ok_or_else(|| format!("{path}: no Pss"))?;
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| format!("{path}: {line}"))
}

/// The private level: measures.
fn body() -> Result<ExitCode> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let probe = path(vars::PROBE).ok_or("no probe")?;
    let floor = path("BENCH_FLOOR").ok_or("no floor")?;
    let modules = path(wasm::MODULES);
    let rounds: u32 = std::env::var("BENCH_ROUNDS")
        .ok()
        .and_then(|r| r.parse().ok())
        .unwrap_or(40);
    let dir = stage::directory(&tag());
    let runtimes = runtimes();
    let mut benches = Vec::new();
    for runtime in &runtimes {
        let make = |kind: &str| {
            let name = runtime.name.replace(|c: char| !c.is_alphanumeric(), "-");
            let dir = dir.join(format!("{name}-{kind}"));
            fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
            Ok::<_, String>(Bundle::new(
                &dir,
                &format!("/proa-test-{}/{name}-{kind}", tag()),
                view()?,
                &probe,
            ))
        };
        let bundle = make("native")?;
        bundle.args(&["/bin/probe", "true"]);
        let mut wasm = match (&modules, runtime.kinds) {
            (Some(modules), Kinds::Wasm | Kinds::Both) => Some(wasm::Bundles::new(modules, make)?),
            _ => None,
        };
        let root = dir.join(format!("{}-root", runtime.name));
        fs::create_dir(&root).map_err(|e| e.to_string())?;
        if let (Some(bundles), Some(modules), Kinds::Both) = (&mut wasm, &modules, runtime.kinds) {
            bundles.compile_job(runtime, &root, make("job")?, modules)?;
        }
        benches.push(Bench {
            runtime,
            root,
            bundle,
            wasm,
            count: 0,
        });
    }
    let floor_root = benches.first().ok_or("no runtime to measure")?.bundle.rootfs();
    let mut samples = Samples::new();
    // The first round warms the caches and is thrown away.
    for round in 0..=rounds {
        if round == 1 {
            samples.clear();
        }
        let before = Instant::now();
        let status = Command::new(&floor)
            .arg(&floor_root)
            .args(["/bin/probe", "true"])
            .status();
        let took = before.elapsed();
        if !status.as_ref().is_ok_and(|s| s.success()) {
            return Err(format!("the floor: {status:?}"));
        }
        samples
            .entry(("run", "floor".to_owned()))
            .or_default()
            .push(took.as_secs_f64() * 1000.0);
        // Each goes first in turn: the one behind pays for what the one before left to the kernel's workers.
        benches.rotate_left(1);
        for bench in &mut benches {
            bench.round(&mut samples)?;
        }
    }
    for bench in benches.iter_mut().filter(|b| b.runtime.kinds != Kinds::Wasm) {
        if let Some(kib) = bench.smallest_limit()? {
            let key = ("smallest memory limit for `true` (KiB)", bench.runtime.name.clone());
            samples.insert(key, vec![kib]);
        }
    }
    let versions: Vec<_> = runtimes
        .iter()
        .map(|r| (r.name.as_str(), r.version.as_str(), r.kinds != Kinds::Wasm))
        .collect();
    print!("{}", report::document(&samples, &versions, rounds, view()?.name()));
    Ok(ExitCode::SUCCESS)
}
