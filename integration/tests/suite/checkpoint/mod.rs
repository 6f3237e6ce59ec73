//! `checkpoint` and `restore` through a real CRIU: what goes on where it was, what is new, and what is refused.

mod migrate;
mod refusals;
mod sandbox;

pub use migrate::has_feature;

use std::fs;
use std::path::{Path, PathBuf};

use proa_integration::ctx::eventually;
use proa_integration::{Bundle, Container, Ctx, Output, Test, View, tests};
use serde_json::json;

const ALL: &[View] = &[View::Hybrid, View::V1, View::V2, View::Systemd, View::SystemdV2];

tests! {
    restored_container_goes_on_where_it_was .views(ALL);
    restored_container_can_be_checkpointed_again;
    left_running_container_goes_on;
    paused_container_can_be_checkpointed;
    restored_container_has_its_limits .views(&[View::Hybrid, View::V1, View::Systemd]);
    container_is_restored_into_another_cgroup;
    // On v1 alone CRIU 4.2 wants to restore what it saved of the cgroup2 that is mounted elsewhere, and fails.
    cgroups_are_managed_by_criu_unless_told_otherwise .views(&[View::Hybrid]);
    clocks_of_exec_are_those_of_the_restored_container .once();
    a_linux_program_of_a_pod_marked_for_wasm_is_restored .once().only_proa();
}

/// The tests of this module and those below it.
pub fn all() -> Vec<Test> {
    [tests(), sandbox::tests(), refusals::tests(), migrate::tests()]
        .into_iter()
        .flatten()
        .collect()
}

/// A program with something to remember: a word that only its memory has, which it tells at SIGUSR1, and a child. CRIU interrupts
/// the system calls that processes wait in, at which not every sleep(1) goes on sleeping.
const PROGRAM: &str = "word=$(cat /proc/sys/kernel/random/uuid); (while :; do sleep 1000; done) & echo $! > /child; \
     trap 'echo $word >> /said' USR1; trap 'exit 7' TERM; echo up > /up; while :; do sleep 0.02; done";

/// Flags for every call: CRIU's own management of cgroups changes the options of the cgroup2 that the host has mounted
/// (checkpoint-restore/criu#3029).
const IGNORE: &[&str] = &["--manage-cgroups-mode", "ignore"];

/// A bundle with [`PROGRAM`].
fn bundle(ctx: &Ctx) -> Bundle {
    let bundle = ctx.bundle();
    bundle.set("/root/readonly", json!(false)).sh(PROGRAM);
    bundle
}

/// Starts a container whose standard streams are `/dev/null`: a file of the host's would be unknown to CRIU.
fn start<'a>(ctx: &'a Ctx, bundle: &Bundle) -> Container<'a> {
    if ctx.view.has_systemd() && fs::write("/proc/sys/kernel/hostname", "here").is_err() {
        // It is read-only for systemd's sake; CRIU restores what is the container's in it.
        nix::mount::umount("/proc/sys").unwrap();
    }
    let container = ctx.container(bundle);
    let dir = bundle.dir.to_str().unwrap();
    let call = ctx.call(&["run", "--detach", "--bundle", dir, &container.id]);
    call.stdio(null()).output().ok();
    eventually("the program", || bundle.path("/up").exists().then_some(()));
    container
}

fn null() -> fs::File {
    fs::File::options().read(true).write(true).open("/dev/null").unwrap()
}

/// Where the images of this test's checkpoints are.
fn images(ctx: &Ctx) -> PathBuf {
    ctx.dir.join("images")
}

/// `checkpoint` with these flags.
fn checkpoint(ctx: &Ctx, container: &Container, flags: &[&str]) -> Output {
    let images = images(ctx);
    let mut args = vec!["checkpoint", "--image-path", images.to_str().unwrap()];
    args.extend(IGNORE);
    args.extend(flags);
    let said = container.verb(&args);
    show_log(&said, &images.join("dump.log"));
    said
}

/// `restore --detach` with these flags.
fn restore(ctx: &Ctx, container: &Container, bundle: &Bundle, flags: &[&str]) -> Output {
    let images = images(ctx);
    let mut args = vec!["restore", "--detach", "--image-path", images.to_str().unwrap()];
    args.extend(["--bundle", bundle.dir.to_str().unwrap()]);
    args.extend(IGNORE);
    args.extend(flags);
    args.push(&container.id);
    let said = ctx.call(&args).stdio(null()).output();
    show_log(&said, &images.join("restore.log"));
    said
}

fn show_log(said: &Output, log: &Path) {
    if said.code != 0 {
        eprintln!("{}", said.log);
        eprintln!("{}", fs::read_to_string(log).unwrap_or_default());
    }
}

/// What the program says when it is asked.
fn ask(container: &Container, bundle: &Bundle) -> String {
    let said = bundle.path("/said");
    fs::remove_file(&said).ok();
    container.kill("USR1");
    eventually("an answer", || {
        fs::read_to_string(&said).ok().filter(|text| text.ends_with('\n'))
    })
}

fn gone(container: &Container) {
    container.verb(&["state"]).refused(&["container does not exist"]);
}

fn restored_container_goes_on_where_it_was(ctx: &Ctx) {
    let bundle = bundle(ctx);
    bundle.set("/annotations", json!({"org.test.kept": "yes"}));
    let container = start(ctx, &bundle);
    let (word, before) = (ask(&container, &bundle), container.state());
    checkpoint(ctx, &container, &[]).ok();
    gone(&container);
    assert!(!ctx.root.join(&container.id).exists());
    assert!(!container.cgroup_dir("devices").exists());

    let pid_file = ctx.dir.join("pid");
    restore(ctx, &container, &bundle, &["--pid-file", pid_file.to_str().unwrap()]).ok();
    let state = container.state();
    assert_eq!(state["status"], "running");
    assert_eq!(state["annotations"], before["annotations"]);
    assert!(state["created"].as_str() > before["created"].as_str());
    assert_eq!(fs::read_to_string(pid_file).unwrap(), state["pid"].to_string());
    assert_eq!(ask(&container, &bundle), word, "the program's memory");
    container.exec(&["sh", "-c", "kill -0 $(cat /child)"]).ok();
    assert_eq!(container.exec(&["hostname"]).ok().text(), "testhost");
    let ps = container.verb(&["ps", "--format", "json"]).ok().json();
    assert!(ps.as_array().unwrap().contains(&state["pid"]), "{ps}");
    container.verb(&["pause"]).ok();
    assert_eq!(container.status(), "paused");
    container.verb(&["resume"]).ok();
    container.verb(&["events", "--stats"]).ok();
    container
        .verb(&["start"])
        .refused(&["cannot start an already running container"]);
    container.kill("TERM").stopped();
    container.delete();
}

fn restored_container_can_be_checkpointed_again(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    let mut background: Option<String> = None;
    for _ in 0..2 {
        checkpoint(ctx, &container, &[]).ok();
        restore(ctx, &container, &bundle, &[]).ok();
        assert_eq!(ask(&container, &bundle), word);
        if let Some(pid) = &background {
            container.exec(&["kill", "-0", pid]).ok();
        }
        // What exec left running is restored as well.
        let script = "(while :; do sleep 1000; done) < /dev/null > /dev/null 2>&1 & echo $!";
        background = Some(container.exec(&["sh", "-c", script]).ok().text().to_owned());
    }
}

fn left_running_container_goes_on(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let (word, pid) = (ask(&container, &bundle), container.pid());
    checkpoint(ctx, &container, &["--leave-running"]).ok();
    assert_eq!((container.status().as_str(), container.pid()), ("running", pid));
    assert_eq!(ask(&container, &bundle), word);
    // And the checkpoint is one.
    container.kill("KILL").stopped().delete();
    let again = ctx.container(&bundle);
    restore(ctx, &again, &bundle, &[]).ok();
    assert_eq!(ask(&again, &bundle), word);
}

fn paused_container_can_be_checkpointed(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    container.verb(&["pause"]).ok();
    checkpoint(ctx, &container, &["--leave-running"]).ok();
    assert_eq!(container.status(), "paused");
    checkpoint(ctx, &container, &[]).ok();
    gone(&container);
    assert!(!container.cgroup_dir("freezer").exists());
    restore(ctx, &container, &bundle, &[]).ok();
    assert_eq!(container.status(), "running");
    assert_eq!(ask(&container, &bundle), word);
}

fn restored_container_has_its_limits(ctx: &Ctx) {
    let bundle = bundle(ctx);
    bundle.set("/linux/resources/pids", json!({"limit": 31}));
    let container = start(ctx, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    // As for a new container, the bundle has the last word.
    bundle.set("/linux/resources/pids", json!({"limit": 37}));
    restore(ctx, &container, &bundle, &[]).ok();
    assert_eq!(container.cgroup_file("pids", "pids.max"), "37");
    let pids = container.cgroup_file("pids", "cgroup.procs");
    assert!(pids.lines().any(|pid| pid == container.pid().to_string()), "{pids}");
    container.exec(&["sh", "-c", ": < /dev/full && ! : < /dev/kmsg"]);
}

fn container_is_restored_into_another_cgroup(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    assert!(!container.cgroup_dir("devices").exists());
    let other = format!("{}-elsewhere", container.cgroup);
    bundle.set("/linux/cgroupsPath", json!(other));
    let again = ctx.container(&bundle);
    restore(ctx, &again, &bundle, &[]).ok();
    assert!(!container.cgroup_dir("devices").exists());
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", again.pid())).unwrap();
    assert!(groups.lines().any(|line| line.ends_with(&other)), "{groups}");
    again.verb(&["delete", "--force"]).ok();
    again.forget();
    assert!(!again.cgroup_dir("devices").exists());
}

fn cgroups_are_managed_by_criu_unless_told_otherwise(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    for mode in ["", "soft", "full"] {
        let images = images(ctx);
        let mut flags = vec!["--image-path", images.to_str().unwrap()];
        if !mode.is_empty() {
            flags.extend(["--manage-cgroups-mode", mode]);
        }
        let said = container.verb(&[&["checkpoint"], flags.as_slice()].concat());
        show_log(&said, &images.join("dump.log"));
        said.ok();
        let mut args = [&["restore", "-d", "-b", bundle.dir.to_str().unwrap()], flags.as_slice()].concat();
        args.push(&container.id);
        let said = ctx.call(&args).stdio(null()).output();
        show_log(&said, &images.join("restore.log"));
        said.ok();
        assert_eq!(ask(&container, &bundle), word, "{mode:?}");
        let procs = container.cgroup_file("devices", "cgroup.procs");
        assert!(procs.lines().any(|pid| pid == container.pid().to_string()), "{mode:?}");
    }
}

fn a_linux_program_of_a_pod_marked_for_wasm_is_restored(ctx: &Ctx) {
    let bundle = bundle(ctx);
    bundle.set("/annotations", json!({"run.oci.handler": "wasm"}));
    let container = start(ctx, &bundle);
    let before = ask(&container, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    gone(&container);
    restore(ctx, &container, &bundle, &[]).ok();
    assert_eq!(ask(&container, &bundle), before);
}

fn clocks_of_exec_are_those_of_the_restored_container(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    checkpoint(ctx, &container, &[]).ok();
    restore(ctx, &container, &bundle, &[]).ok();
    let clock = |name: &str| {
        container
            .exec(&["readlink", &format!("/proc/{name}/ns/time")])
            .ok()
            .text()
            .to_owned()
    };
    assert_eq!(clock("self"), clock("1"));
}
