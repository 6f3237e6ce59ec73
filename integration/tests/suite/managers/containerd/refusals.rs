//! What a user of `ctr` is told when a container cannot be run.

use std::fs;

use proa_integration::Ctx;
use proa_integration::ctx::eventually;

use super::super::{NO_HYBRID, V1, WASM, busybox_with_guest, unfit_programs};
use super::{Containerd, NO_CRI, Release, containerd, start};

of_both! {
    containerd_shows_why_a_container_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_shows_why_a_process_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
    containerd_shows_why_wasm_did_not_start .views(V1).seconds(120).only_proa();
}

/// Nothing is left of what was refused.
fn nothing_left(containerd: &Containerd) {
    assert_eq!(containerd.ctr(&["task", "ls", "--quiet"]).ok(), "");
    assert_eq!(containerd.ctr(&["container", "ls", "--quiet"]).ok(), "");
    assert_eq!(containerd.left(), [""; 0]);
}

fn containerd_shows_why_a_container_did_not_start(ctx: &Ctx, release: Release) {
    // The shim reads the reason from the runtime's JSON log.
    let containerd = containerd(ctx, release, &unfit_programs(ctx));
    let refused = |flags: &[&str], program: &[&str], texts: &[&str]| {
        let said = containerd.run(&[&["--rm"], flags].concat(), &ctx.id(), program);
        said.refused(texts);
    };
    refused(
        &[],
        &["no-such-program"],
        &["exec: \"no-such-program\": executable file not found in $PATH"],
    );
    refused(
        &[],
        &["/no/such"],
        &["exec: \"/no/such\": stat /no/such: no such file or directory"],
    );
    refused(&[], &["/etc/passwd"], &["exec: \"/etc/passwd\": permission denied"]);
    refused(&[], &["/bin"], &["exec: \"/bin\": is a directory"]);
    refused(&[], &["/other-arch"], &["exec /other-arch: exec format error"]);
    refused(
        &[],
        &["/no-interpreter"],
        &["exec /no-interpreter: no such file or directory"],
    );
    refused(
        &["--cwd", "/etc/passwd"],
        &["true"],
        &["/etc/passwd", "not a directory"],
    );

    let absent = ctx.dir.join("absent").display().to_string();
    let mount = |source: &str, target: &str| format!("type=bind,src={source},dst={target},options=rbind");
    refused(
        &["--mount", &mount(&absent, "/mnt")],
        &["true"],
        &[&absent, "no such file or directory"],
    );
    // "not a directory" is what Docker's daemon looks for, to ask whether a file and a directory were confused.
    refused(
        &["--mount", &mount("/etc", "/etc/passwd")],
        &["true"],
        &["\"/etc\"", "\"/etc/passwd\"", "not a directory"],
    );
    refused(
        &["--mount", &mount("/etc/passwd", "/mnt")],
        &["true"],
        &["\"/etc/passwd\"", "\"/mnt\"", "not a directory"],
    );
    refused(
        &["--mount", "type=nofs,src=x,dst=/mnt"],
        &["true"],
        &["\"/mnt\"", "no such device"],
    );
    let bogus = "type=tmpfs,src=x,dst=/mnt,options=bogus=1";
    refused(
        &["--mount", bogus],
        &["true"],
        &["\"/mnt\"", "bogus=1", "invalid argument"],
    );

    let profile = ctx.dir.join("profile.json");
    for (content, cause) in [
        (r#"{"defaultAction": "SCMP_ACT_NO"}"#, "SCMP_ACT_NO"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NO"]}"#,
            "SCMP_ARCH_NO",
        ),
    ] {
        fs::write(&profile, content).unwrap();
        refused(
            &["--seccomp", "--seccomp-profile", profile.to_str().unwrap()],
            &["true"],
            &["seccomp", cause],
        );
    }
    let quota = ["--cpu-quota", "5", "--cpu-period", "100000"];
    refused(&quota, &["true"], &["cpu.cfs_quota_us", "\"5\"", "invalid argument"]);
    refused(&["--memory-limit", "4096"], &["true"], &["memory limit"]);
    refused(
        &["--with-ns", &format!("network:{absent}")],
        &["true"],
        &[&absent, "no such file or directory"],
    );
    refused(&["--with-ns", "network:/etc/passwd"], &["true"], &["/etc/passwd"]);
    nothing_left(&containerd);
}

fn containerd_shows_why_a_process_did_not_start(ctx: &Ctx, release: Release) {
    let containerd = containerd(ctx, release, &unfit_programs(ctx));
    let id = containerd.detached(&[], &["sleep", "1000"]);
    let refused = |flags: &[&str], program: &str, texts: &[&str]| {
        let args = [&["task", "exec", "--exec-id", "e1"], flags, &[&id, program]].concat();
        containerd.ctr(&args).refused(texts);
    };
    refused(
        &[],
        "no-such-program",
        &["exec: \"no-such-program\": executable file not found in $PATH"],
    );
    refused(&[], "/etc/passwd", &["exec: \"/etc/passwd\": permission denied"]);
    refused(&[], "/bin", &["exec: \"/bin\": is a directory"]);
    refused(&[], "/other-arch", &["exec /other-arch: exec format error"]);
    refused(
        &["--cwd", "/no/such"],
        "pwd",
        &["chdir to cwd (\"/no/such\")", "no such file or directory"],
    );
    refused(
        &["--cwd", "/etc/passwd"],
        "pwd",
        &["chdir to cwd (\"/etc/passwd\")", "not a directory"],
    );
    containerd.ctr(&["task", "pause", &id]).ok();
    refused(&[], "true", &["cannot exec in a"]);
    containerd.ctr(&["task", "resume", &id]).ok();
    let processes = || containerd.ctr(&["task", "ps", &id]).ok().lines().count() - 1;
    eventually("only the init", || (processes() == 1).then_some(()));
    containerd.kill("KILL", &id);
    containerd.remove(&id);
    nothing_left(&containerd);
}

fn containerd_shows_why_wasm_did_not_start(ctx: &Ctx, release: Release) {
    let no_engine = ctx.mkdir("no-engine");
    let image = busybox_with_guest(ctx);
    let flags = [&["--rm"], WASM].concat();
    {
        let containerd = start(ctx, release, NO_CRI, &[]);
        containerd.import(&image);
        let refused = |flags: &[&str], program: &str, texts: &[&str]| {
            containerd.run(flags, &ctx.id(), &[program]).refused(texts);
        };
        refused(&flags, "/component.wasm", &["/component.wasm", "component"]);
        refused(&flags, "/broken.wasm", &["/broken.wasm", "truncated"]);
        refused(&flags, "/absent.wasm", &["/absent.wasm", "no such file or directory"]);
        let other = ["--rm", "--annotation", "run.oci.handler=wasmtime"];
        refused(&other, "/guest.wasm", &["run.oci.handler=wasmtime", "WasmEdge"]);
        nothing_left(&containerd);
    }
    // The shim inherits containerd's environment, and proa the shim's.
    let containerd = start(
        ctx,
        release,
        NO_CRI,
        &[("PROA_ENGINE_DIR", no_engine.to_str().unwrap())],
    );
    let said = containerd.run(&flags, &ctx.id(), &["/guest.wasm"]);
    said.refused(&["libwasmedge.so.0", no_engine.to_str().unwrap(), "apt"]);
    nothing_left(&containerd);
}
