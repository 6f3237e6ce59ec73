//! What the runtime needs runs out: space, processes, memory, descriptors, readers of what it says.

use std::fs;
use std::path::{Path, PathBuf};

use proa_integration::{Ctx, Kind, tests};
use serde_json::json;

use super::steps::World;

tests! {
    a_full_root_file_system_is_named .once().only_proa();
    a_pid_file_that_does_not_fit_fails_the_create .once();
    a_log_that_does_not_fit_is_no_reason_to_fail .once();
    a_log_without_a_reader_is_no_reason_to_fail .once();
    what_can_not_be_printed_is_an_error .once().not_for(&[(Kind::Runc, "says nothing of it")]);
    no_process_more_fails_the_create_and_leaves_nothing .once().only_proa();
    a_runtime_without_memory_leaves_what_can_be_deleted .once().only_proa().seconds(120);
    an_init_that_does_not_fit_into_memory_is_said_to .once().only_proa();
    few_descriptors_fail_the_create_and_leave_nothing .once().only_proa().seconds(120);
    few_descriptors_do_not_hide_a_running_container .once().only_proa();
}

/// A tmpfs of one page that is taken.
fn full(ctx: &Ctx, name: &str) -> PathBuf {
    let dir = ctx.mkdir(name);
    ctx.tmpfs(&dir, "size=4k,nr_inodes=20");
    fs::write(dir.join("filler"), [1; 4096]).unwrap();
    dir
}

fn a_full_root_file_system_is_named(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let root = ctx.mkdir("full-root");
    ctx.tmpfs(&root, "size=64k,nr_inodes=2");
    fs::create_dir(root.join("proc")).unwrap();
    bundle.set("/root/path", json!(root));
    let world = World::new(ctx);
    let id = ctx.id();
    let out = ctx.create_call(&bundle, &id, &[]).output();
    out.refused(&["no space left"]);
    out.refused(&["/dev"]);
    world.is_as_before("a create without room for a mount point");
    world.ends();
}

fn a_pid_file_that_does_not_fit_fails_the_create(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let dir = full(ctx, "small");
    let path = dir.join("pid");
    let world = World::new(ctx);
    let out = ctx
        .create_call(&bundle, &ctx.id(), &["--pid-file", path.to_str().unwrap()])
        .output();
    out.refused(&["no space left"]);
    out.refused(&[path.to_str().unwrap()]);
    world.is_as_before("a pid file that does not fit");
    let left: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["filler"]);
    world.ends();
}

fn a_log_that_does_not_fit_is_no_reason_to_fail(ctx: &Ctx) {
    let bundle = ctx.bundle();
    // A warning, so that something is logged.
    bundle.set("/process/capabilities/ambient", json!(["CAP_KILL"]));
    let call = |args: &[&str]| {
        let root = ctx.root.to_str().unwrap();
        let mut all = vec!["--root", root, "--log", "/dev/full", "--debug"];
        all.extend(args);
        ctx.bare_call(&all).output()
    };
    let id = ctx.id();
    call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id]).ok();
    call(&["state", &id]).refused(&["does not exist"]);
}

fn a_log_without_a_reader_is_no_reason_to_fail(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/capabilities/ambient", json!(["CAP_KILL"]))
        .sh("exit 5");
    let done = ctx.dir.join("done");
    let script = format!(
        "{{ sleep 0.1; \"$@\" 2>&1 >/dev/null; echo $? > {}; }} | true",
        done.display()
    );
    let root = ctx.root.to_str().unwrap();
    let id = ctx.id();
    let args = [
        "--root",
        root,
        "--debug",
        "run",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        &id,
    ];
    ctx.bare_call(&args).under(&["sh", "-c", &script, "sh"]).output().ok();
    assert_eq!(fs::read_to_string(done).unwrap(), "5\n");
}

fn what_can_not_be_printed_is_an_error(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.create(&bundle);
    for verb in [vec!["state", &container.id], vec!["list"], vec!["ps", &container.id]] {
        let out = ctx
            .call(&verb)
            .under(&["sh", "-c", "exec \"$@\" >/dev/full", "sh"])
            .output();
        out.refused(&["no space left"]);
    }
}

/// A cgroup of the test's own in the hierarchy of `controller`, for the runtime itself.
fn cgroup(ctx: &Ctx, controller: &str) -> Option<PathBuf> {
    let dir = ctx.cgroup_dir(controller, &format!("{}-runtime", ctx.cgroup_parent()));
    let has = Path::new("/sys/fs/cgroup")
        .join(controller)
        .join("cgroup.procs")
        .exists();
    (ctx.view.has_v1() && has).then(|| {
        fs::create_dir_all(&dir).unwrap();
        dir
    })
}

fn no_process_more_fails_the_create_and_leaves_nothing(ctx: &Ctx) {
    let Some(dir) = cgroup(ctx, "pids") else { return };
    let bundle = ctx.bundle();
    bundle
        .args(&["sleep", "1000"])
        .set("/hooks/createRuntime", json!([{"path": "/bin/true"}]));
    let world = World::new(ctx);
    let id = ctx.id();
    // The runtime, init, and a hook.
    for limit in 1..=4 {
        fs::write(dir.join("pids.max"), limit.to_string()).unwrap();
        let script = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", dir.display());
        let out = ctx
            .create_call(&bundle, &id, &[])
            .under(&["sh", "-c", &script, "sh"])
            .output();
        if out.code != 0 {
            out.refused(&["EAGAIN", "resource temporarily unavailable"]);
            world.is_as_before(&format!("a create with {limit} processes"));
        }
        assert!(out.code != 0 || limit > 1, "{out:#?}");
        ctx.call(&["delete", "--force", &id]).output().ok();
        world.is_as_before("a delete");
    }
    world.ends();
    fs::remove_dir(dir).unwrap();
}

fn a_runtime_without_memory_leaves_what_can_be_deleted(ctx: &Ctx) {
    let Some(dir) = cgroup(ctx, "memory") else { return };
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let world = World::new(ctx);
    let id = ctx.id();
    let mut killed = 0;
    for limit in [64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048, 4096] {
        fs::write(dir.join("memory.limit_in_bytes"), format!("{limit}k")).unwrap();
        // The shell has touched its own pages before.
        let script = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", dir.display());
        let out = ctx
            .create_call(&bundle, &id, &[])
            .under(&["sh", "-c", &script, "sh"])
            .output();
        killed += usize::from(out.code == 1009);
        assert!([0, 1, 1009].contains(&out.code) || out.code >= 126, "{out:#?}");
        ctx.call(&["delete", "--force", &id]).output().ok();
        ctx.call(&["state", &id]).output().refused(&["does not exist"]);
        world.is_as_before(&format!("a create in {limit} KiB"));
    }
    assert!(killed > 0, "the limit was never felt");
    world.ends();
    fs::remove_dir(dir).unwrap();
}

fn an_init_that_does_not_fit_into_memory_is_said_to(ctx: &Ctx) {
    if !ctx.view.has_v1() {
        return;
    }
    let bundle = ctx.bundle();
    bundle
        .args(&["sleep", "1000"])
        .set("/linux/resources/memory", json!({"limit": 65536}));
    let world = World::new(ctx);
    for verb in ["create", "run"] {
        let out = ctx
            .call(&[verb, "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()])
            .output();
        out.refused(&["container init was OOM-killed (memory limit too low?)"]);
        world.is_as_before(verb);
    }
    world.ends();
}

fn few_descriptors_fail_the_create_and_leave_nothing(ctx: &Ctx) {
    let bundle = super::steps::rich(ctx);
    let world = World::new(ctx);
    let id = ctx.id();
    let (mut refused, mut made) = (0, 0);
    for limit in 5..40 {
        let script = format!("ulimit -S -n {limit}; exec \"$@\"");
        let out = ctx
            .create_call(&bundle, &id, &[])
            .under(&["sh", "-c", &script, "sh"])
            .output();
        match out.code {
            0 => made += 1,
            // The dynamic loader of a build for tests, which needs some itself.
            127 => {}
            _ => {
                refused += 1;
                out.refused(&["too many open files", "EMFILE"]);
                world.is_as_before(&format!("a create with {limit} descriptors"));
            }
        }
        ctx.call(&["delete", "--force", &id]).output().ok();
        world.is_as_before(&format!("a delete after a create with {limit} descriptors"));
    }
    assert!(refused > 5 && made > 0, "{refused} refused, {made} made");
    world.ends();
}

/// Who can't look whether a container's init lives must not take it for ended, and remove what is known of it.
fn few_descriptors_do_not_hide_a_running_container(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    for limit in 4..12 {
        let script = format!("ulimit -S -n {limit}; exec \"$@\"");
        let out = ctx
            .call(&["delete", &container.id])
            .under(&["sh", "-c", &script, "sh"])
            .output();
        assert!(out.code != 0, "{out:#?}");
        assert!(!out.stderr.contains("does not exist"), "{out:#?}");
    }
    assert_eq!(container.status(), "running");
}
