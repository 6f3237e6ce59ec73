//! Wasm containers by `ctr`.

use proa_integration::Ctx;

use super::super::{V1, WASM, busybox_with_guest};
use super::{Release, containerd};

of_both! {
    containerd_runs_wasm .views(V1).seconds(120).only_proa();
    containerd_execs_signals_and_measures_wasm .views(V1).seconds(120).only_proa();
}

fn containerd_runs_wasm(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox_with_guest(ctx));
    let flags = [&["--rm"], WASM].concat();
    let text = containerd
        .run(&flags, &ctx.id(), &["/guest.wasm", "one", "two"])
        .code(3);
    assert!(
        text.contains("wasm two\n") && text.contains("wasm to stderr\n"),
        "{text}"
    );
    let text = containerd.run(&flags, &ctx.id(), &["/guest.wasm", "trap"]).code(134);
    assert!(text.contains("unreachable"), "{text}");

    let root = containerd.root();
    let (flags, id) = ([&["--rm", "--tty"], WASM].concat(), ctx.id());
    let args = containerd.run_args(&root, &flags, &id, &["/guest.wasm", "ask"]);
    let said = containerd.on_a_terminal(&args, |terminal| {
        terminal.expect("terminal: yes");
        terminal.type_in("the answer\n");
        terminal.expect("heard the answer");
    });
    assert_eq!(said.code, 7, "{said:?}");
}

fn containerd_execs_signals_and_measures_wasm(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &busybox_with_guest(ctx));
    let flags = [&["--detach"], WASM].concat();
    for (signal, status) in [("TERM", 143), ("INT", 130), ("KILL", 137)] {
        let id = ctx.id();
        containerd.run(&flags, &id, &["/guest.wasm", "loop"]).ok();
        if signal == "TERM" {
            let exec = |exec: &str, program: &[&str]| {
                containerd.ctr(&[&["task", "exec", "--exec-id", exec, &id], program].concat())
            };
            assert_eq!(exec("e1", &["sh", "-c", "echo $FROM_IMAGE; sleep 0.2"]).ok(), "yes\n");
            let text = exec("e2", &["/guest.wasm", "again"]).code(2);
            assert!(text.contains("wasm again\n"), "{text}");
            let text = containerd.ctr(&["task", "metrics", &id]).ok();
            assert!(text.contains("memory.usage_in_bytes"), "{text}");
            containerd.ctr(&["task", "pause", &id]).ok();
            assert!(containerd.is(&id, "PAUSED"));
            containerd.ctr(&["task", "resume", &id]).ok();
        }
        containerd.kill(signal, &id);
        assert_eq!(containerd.remove(&id), status, "{signal}");
    }
}
