//! How a compiler of a module is confined, and when it ends.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proa_integration::ctx::eventually;
use proa_integration::{Ctx, tests, wasm};

use super::aot::{Room, worked};
use crate::attacks::withstood;

tests! {
    a_compiler_is_confined .only_proa().seconds(120);
    a_compiler_ends_with_its_proa .once().only_proa().seconds(120);
    a_signal_ends_the_wait_for_a_compiler .once().only_proa().seconds(120);
    a_compiler_has_a_time_limit_and_is_not_tried_again .once().only_proa().seconds(120);
    a_malformed_module_is_not_compiled .once().only_proa().seconds(120);
}

/// Compilers at work that were started from this test: hulls with nobody's uid.
fn compilers() -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let hull = line
            .windows(b"proa-wasmedge".len())
            .any(|part| part == b"proa-wasmedge");
        hull && status(*pid, "Uid").starts_with("65534") && status(*pid, "Seccomp") == "2"
    })
    .collect()
}

/// A line of `/proc/PID/status`, or nothing.
fn status(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    found.unwrap_or_default().trim().to_owned()
}

/// What a process has open, by the names in `/proc/PID/fd`.
fn files(pid: i32) -> Vec<String> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    all.map(|fd| fs::read_link(fd.path()).unwrap_or_default().display().to_string())
        .collect()
}

/// A compiler that is stopped at its work: it has nothing to say to its parent any more.
#[track_caller]
fn caught() -> Pid {
    let at_work = |pid: &i32| files(*pid).iter().all(|file| !file.starts_with("socket:"));
    let pid = Pid::from_raw(eventually("a compiler at its work", || {
        compilers().into_iter().find(at_work)
    }));
    kill(pid, Signal::SIGSTOP).unwrap();
    pid
}

fn a_compiler_is_confined(ctx: &Ctx) {
    let room = Room::new(ctx);
    room.policy("before-start");
    let running = room.run_call().spawn();
    let pid = caught();
    let link = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["user", "pid", "mnt", "net", "ipc", "uts"] {
        let own = link(&pid.to_string(), kind) != link("self", kind);
        withstood!(own, "a compiler has the {kind} namespace of who started it");
    }
    let status = |name: &str| status(pid.as_raw(), name);
    assert_eq!(status("Uid"), "65534\t65534\t65534\t65534");
    assert_eq!(status("Gid"), "65534\t65534\t65534\t65534");
    assert_eq!(status("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
    assert_eq!((status("NoNewPrivs"), status("Seccomp")), ("1".into(), "2".into()));
    // In memory, and nothing there but what the compiler makes.
    let root = format!("/proc/{pid}/root");
    for entry in fs::read_dir(&root).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        assert!(name.starts_with("code"), "{name}");
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    assert!(mounts.lines().count() == 1 && mounts.contains("tmpfs"), "{mounts}");
    let devices = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    let devices: Vec<&str> = devices
        .lines()
        .skip(2)
        .map(|line| line.split(':').next().unwrap().trim())
        .collect();
    assert_eq!(devices, ["lo"]);
    // Its streams are nobody's, and it has the module, the code, the pipe.
    for target in files(pid.as_raw()) {
        let known = ["/dev/null", "/null", "/memfd:proa-", "pipe:", "/code"];
        assert!(known.iter().any(|known| target.starts_with(known)), "{target}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for name in ["Max address space", "Max cpu time", "Max file size"] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(!line.contains("unlimited"), "{line}");
    }
    // Outside of the container's cgroup, and of ours.
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let bundles = room.bundle.spec()["linux"]["cgroupsPath"].as_str().unwrap().to_owned();
    let own = bundles.rsplit(['/', ':']).next().unwrap();
    let inside = |line: &str| {
        line.split('/')
            .any(|part| part == own || part == format!("proa-{own}.scope"))
    };
    assert!(!cgroup.lines().any(inside), "{cgroup}");
    if !ctx.view.has_systemd() {
        assert_ne!(cgroup, fs::read_to_string("/proc/self/cgroup").unwrap());
    }
    kill(pid, Signal::SIGCONT).unwrap();
    let out = running.wait();
    worked(&out);
    assert!(out.log.contains("compiled code is loaded"), "{out:?}");
}

fn a_compiler_ends_with_its_proa(ctx: &Ctx) {
    let room = Room::new(ctx);
    let mut running = room.call(&["wasm", "compile", room.module().to_str().unwrap()]).spawn();
    let pid = caught();
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    eventually("the compiler's end", || compilers().is_empty().then_some(()));
    eventually("nothing of it", || {
        status(pid.as_raw(), "State").is_empty().then_some(())
    });
    assert_eq!(room.files(Some("so")), [] as [PathBuf; 0]);
    // The next one does the work, and clears up.
    room.compile();
    assert!(room.policy("use").run().0);
    let left = ctx.root.join(".cache/compile");
    let left: Vec<_> = fs::read_dir(left)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, [".cache"]);
    room.call(&["wasm", "cache", "prune"]).output().ok();
    assert_eq!(room.files(None).len(), 1, "{:?}", room.files(None));
}

fn a_signal_ends_the_wait_for_a_compiler(ctx: &Ctx) {
    let room = Room::new(ctx);
    room.policy("before-start");
    let running = room.run_call().spawn();
    caught();
    running.signal(Signal::SIGTERM);
    let out = running.wait();
    out.refused(&["SIGTERM"]);
    assert_eq!(compilers(), [] as [i32; 0]);
    assert_eq!(room.files(Some("so")), [] as [PathBuf; 0]);
}

fn a_compiler_has_a_time_limit_and_is_not_tried_again(ctx: &Ctx) {
    let mut room = Room::new(ctx);
    room.config("[wasm.aot]\ntime-limit = \"4s\"\n");
    room.policy("before-start");
    let running = room.run_call().spawn();
    // It does not get on any more.
    caught();
    let out = running.wait();
    worked(&out);
    assert!(out.log.contains("has not finished in 4s"), "{out:?}");
    assert_eq!(compilers(), [] as [i32; 0]);
    let (used, out) = room.run();
    assert!(!used && out.log.contains("not tried again"), "{out:?}");
    let listed = room.list();
    assert!(listed[0]["failure"].as_str().unwrap().contains("4s"), "{listed:?}");
    // Whoever asks for it gets it.
    room.config("");
    room.compile();
    assert!(room.run().0);
}

fn a_malformed_module_is_not_compiled(ctx: &Ctx) {
    let room = Room::new(ctx);
    let good = fs::read(room.module()).unwrap();
    let cases: [(&[u8], &str); 5] = [
        (&good[..200], "truncated"),
        (b"\0asm\x01\0\0\0\x01\x05garb!", "compile:"),
        (wasm::COMPONENT, "component"),
        (b"#!/bin/sh\n", "program"),
        (b"", "empty"),
    ];
    for (bytes, words) in cases {
        let file = ctx.dir.join("bad.wasm");
        fs::write(&file, bytes).unwrap();
        let out = room.call(&["wasm", "compile", file.to_str().unwrap()]).output();
        out.refused(&[words]);
        assert!(out.stderr.contains("bad.wasm"), "{out:?}");
    }
    let missing = ctx.dir.join("missing.wasm");
    let out = room.call(&["wasm", "compile", missing.to_str().unwrap()]).output();
    out.refused(&["No such file"]);
    assert_eq!(room.files(None), [] as [PathBuf; 0]);
}
