//! Drives the Wasm handler without a sandbox: `guest ROOTFS CWD MEMORY ARGS...` (MEMORY in bytes, 0 for no limit), with
//! chroot(2) where a container has pivot_root(2). For trying an engine by hand; needs root.

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use proa_executor::aot::Nothing;
use proa_executor::wasm::WasmHandler;
use proa_executor::{Error, Guest, Handler};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [rootfs, cwd, memory, rest @ ..] = args.as_slice() else {
        eprintln!("usage: guest ROOTFS CWD MEMORY ARGS...");
        std::process::exit(2);
    };
    let guest = Guest {
        args: rest.to_vec(),
        env: vec!["PATH=/bin:/usr/bin".into(), "GREETING=hello there".into()],
        cwd: cwd.clone(),
        memory_limit: memory.parse().ok().filter(|&bytes: &u64| bytes > 0),
        ..Guest::default()
    };
    let error = drive(&guest, rootfs);
    eprintln!("{error}");
    std::process::exit(1);
}

/// What the engine is loaded from is read-only, as it is in a container: from elsewhere it would be copied, which costs memory
/// of the guest's.
fn protect_engine(rootfs: &str) {
    let mount = |source: Option<&str>, at: &str, flags| {
        nix::mount::mount(source, at, None::<&str>, flags, None::<&str>)
            .unwrap_or_else(|errno| panic!("mount {at}: {errno}"));
    };
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(None, "/", MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    // Before the root becomes read-only: the guest's directory stays as it is.
    mount(Some(rootfs), rootfs, MsFlags::MS_BIND);
    // That of the loader, if one was named: it lies beside the engine.
    let program = std::env::current_exe().expect("the program's path");
    let engine = program.parent().and_then(Path::to_str).expect("a directory");
    for at in ["/", engine] {
        mount(Some(at), at, MsFlags::MS_BIND);
        mount(None, at, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
    }
}

fn drive(guest: &Guest, rootfs: &str) -> Error {
    protect_engine(rootfs);
    let mut handler = WasmHandler::new();
    let root = File::open(rootfs).expect("the root file system opens");
    if let Err(error) = handler.prepare(guest, root.as_fd(), &mut Nothing) {
        return error;
    }
    std::os::unix::fs::chroot(rootfs).expect("chroot");
    std::env::set_current_dir(&guest.cwd).expect("chdir to the working directory");
    if let Err(error) = handler.check(guest) {
        return error;
    }
    let report = std::env::var_os("REPORT_START").is_some();
    handler.run(guest, &mut || {
        if report {
            eprintln!("started, {} thread(s)", threads());
        }
    })
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}
