//! Drives the Wasm handler without a sandbox: `guest ROOTFS CWD MEMORY ARGS...` (MEMORY in bytes, 0 for no limit), with
//! chroot(2) where a container has pivot_root(2). For trying an engine by hand; needs root.

use proa_executor::aot::Nothing;
use proa_executor::wasm::WasmHandler;
use proa_executor::{Error, Guest, Handler};
use std::fs::File;
use std::os::fd::AsFd;

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

fn drive(guest: &Guest, rootfs: &str) -> Error {
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
