//! The daemon itself: many containers at once, and its end above containers that go on.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proa_integration::Ctx;
use proa_integration::ctx::eventually;

use super::super::{NO_HYBRID, V1, WASM, busybox, busybox_with_guest};
use super::{Containerd, Release, containerd};

of_both! {
    containerd_runs_a_hundred_at_once .views(V1).seconds(300).not_for(NO_HYBRID);
    containerd_is_killed_and_comes_back .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_is_stopped_and_comes_back .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_comes_back_to_wasm .views(V1).seconds(120).only_proa();
}

fn containerd_runs_a_hundred_at_once(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox(ctx));
    let ids: Vec<String> = (0..100).map(|_| ctx.id()).collect();
    let (root, out) = (containerd.root(), |id: &str| ctx.dir.join(format!("out-{id}")));
    let start = Instant::now();
    let children: Vec<Child> = ids
        .iter()
        .map(|id| {
            let script = format!("echo this is {id}; sleep 0.2");
            let args = containerd.run_args(&root, &["--rm"], id, &["sh", "-c", &script]);
            let out = fs::File::create(out(id)).unwrap();
            let mut command = containerd.command(&args);
            command
                .stdin(Stdio::null())
                .stdout(out.try_clone().unwrap())
                .stderr(out);
            command.spawn().unwrap()
        })
        .collect();
    let mut wrong = Vec::new();
    for (id, mut child) in ids.iter().zip(children) {
        let status = child.wait().unwrap();
        let text = fs::read_to_string(out(id)).unwrap();
        if status.code() != Some(0) || text != format!("this is {id}\n") {
            wrong.push(format!("{id}: {status}, {text:?}"));
        }
    }
    eprintln!("a hundred containers took {:?}", start.elapsed());
    assert!(wrong.is_empty(), "{} went wrong: {wrong:#?}", wrong.len());
    assert_eq!(containerd.ctr(&["task", "ls", "--quiet"]).ok(), "");
    assert_eq!(containerd.ctr(&["container", "ls", "--quiet"]).ok(), "");
    assert_eq!(containerd.left(), [""; 0]);
}

fn containerd_is_killed_and_comes_back(ctx: &Ctx, release: Release) {
    comes_back(ctx, release, Signal::SIGKILL);
}

fn containerd_is_stopped_and_comes_back(ctx: &Ctx, release: Release) {
    comes_back(ctx, release, Signal::SIGTERM);
}

fn comes_back(ctx: &Ctx, release: Release, signal: Signal) {
    let mut containerd = containerd(ctx, release, &busybox(ctx));
    let running = containerd.detached(&[], &["sleep", "1000"]);
    let paused = containerd.detached(&[], &["sleep", "1000"]);
    let ending = containerd.detached(&[], &["sh", "-c", "trap 'exit 5' USR1; while :; do sleep 0.01; done"]);
    containerd.ctr(&["task", "pause", &paused]).ok();
    containerd
        .ctr(&["task", "exec", "--detach", "--exec-id", "e1", &running, "sleep", "1000"])
        .ok();
    let init = containerd.pid(&ending);
    eventually("the trap", || {
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
        (!children.is_empty()).then_some(())
    });

    containerd.end(signal);
    kill(Pid::from_raw(init.cast_signed()), Signal::SIGUSR1).unwrap();
    eventually("its end", || {
        (!std::path::Path::new(&format!("/proc/{init}")).exists()).then_some(())
    });
    containerd.again();

    match release {
        Release::System => {
            eventually("the task's end", || containerd.is(&ending, "STOPPED").then_some(()));
            assert_eq!(containerd.remove(&ending), 5);
        }
        // This one cleans up what has ended while it was away, with every runtime.
        Release::Newer => {
            assert_eq!(containerd.listed(&ending), None);
            containerd.ctr(&["container", "rm", &ending]).ok();
        }
    }
    assert!(containerd.is(&paused, "PAUSED"));
    containerd.ctr(&["task", "resume", &paused]).ok();
    assert!(containerd.is(&running, "RUNNING"));
    assert_eq!(
        exec(&containerd, &running, "cat /proc/1/comm; sleep 0.2"),
        (0, "sleep\n".to_owned())
    );
    containerd.ctr(&["task", "metrics", &running]).ok();
    containerd
        .ctr(&["task", "kill", "--signal", "KILL", "--exec-id", "e1", &running])
        .ok();
    for id in [&running, &paused] {
        containerd.kill("KILL", id);
        assert_eq!(containerd.remove(id), 137);
    }
    assert_eq!(containerd.left(), [""; 0]);
}

fn exec(containerd: &Containerd, id: &str, script: &str) -> (i32, String) {
    let said = containerd.ctr(&["task", "exec", "--exec-id", "again", id, "sh", "-c", script]);
    (said.code, said.text)
}

fn containerd_comes_back_to_wasm(ctx: &Ctx, release: Release) {
    let mut containerd = containerd(ctx, release, &busybox_with_guest(ctx));
    let id = containerd.detached(WASM, &["/guest.wasm", "loop"]);
    containerd.end(Signal::SIGKILL);
    containerd.again();
    assert_eq!(
        exec(&containerd, &id, "echo $FROM_IMAGE; sleep 0.2"),
        (0, "yes\n".to_owned())
    );
    containerd.kill("TERM", &id);
    assert_eq!(containerd.remove(&id), 143);
    assert_eq!(containerd.left(), [""; 0]);
}
