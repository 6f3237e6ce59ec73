//! podman as `proa setup podman` configures it, for root and for a user.

use super::super::{busybox_with_guest, setup};
use super::*;

of_both! {
    podman_runs_by_what_setup_wrote .views(V1).seconds(120).only_proa();
}

fn podman_runs_by_what_setup_wrote(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox_with_guest(ctx));
    // What the test needs is the administrator's file here; that of the environment would be in the place of all of them.
    let etc = Path::new("/etc/containers");
    let policy = fs::read(podman.dir.join("policy.json")).unwrap();
    ctx.tmpfs(etc, "mode=755");
    fs::write(etc.join("policy.json"), policy).unwrap();
    let dir = podman.dir.display();
    let own = format!(
        "[containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [\"nofile=1000:1000\", \"nproc=1000:1000\"]\n\
         [engine]\nevents_logger = \"file\"\ntmp_dir = \"{dir}/tmp\"\ncgroup_manager = \"cgroupfs\"\n"
    );
    fs::write(etc.join("containers.conf"), own).unwrap();
    let run = |runtime: &str, line: &[&str]| {
        let args = podman.run_args(&["--rm"], line);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = podman.command(runtime, &args);
        command.env_remove("CONTAINERS_CONF");
        say(&mut command, ctx)
    };
    run("proa", &[IMAGE, "true"]).refused(&["proa"]);
    let said = setup(ctx, None, &["podman", "--write"]).ok();
    assert!(
        said.contains("/etc/containers/containers.conf.d/90-proa.conf is written"),
        "{said}"
    );
    assert!(setup(ctx, None, &["podman", "--write"]).ok().contains("has it already"));
    assert_eq!(run("proa", &[IMAGE, "echo", "linux"]).ok(), "linux\n");
    let text = run("proa-wasm", &[IMAGE, "/guest.wasm", "by setup"]).code(2);
    assert!(text.contains("wasm by setup"), "{text}");
    // The cause is read from proa's log, which podman does for the runtimes on its list.
    let said = run("proa", &[IMAGE, "/no/such/program"]);
    assert_eq!(said.code, 127, "{said:?}");
    assert!(!said.text.contains("\"msg\""), "{said:?}");
    setup(ctx, None, &["podman", "--remove"]).ok();
    assert_eq!(fs::read_dir(etc.join("containers.conf.d")).unwrap().count(), 0);
    run("proa", &[IMAGE, "true"]).refused(&["proa"]);
}
