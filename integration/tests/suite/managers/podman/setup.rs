//! podman as `proa setup podman` configures it, for root and for a user.

use std::os::unix::fs::chown;

use super::super::{busybox_with_guest, installed, setup};
use super::rootless::podman_of_a_user;
use super::*;

of_both! {
    podman_runs_by_what_setup_wrote .views(V1).seconds(120).only_proa();
    podman_of_a_user_runs_by_what_setup_wrote .views(V1).seconds(120).only_proa();
}

/// Calls podman without the file of the environment, which would be in the place of all others.
fn run(podman: &Podman, runtime: &str, line: &[&str]) -> Said {
    let args = podman.run_args(&["--rm"], line);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = podman.command(runtime, &args);
    command.env_remove("CONTAINERS_CONF");
    say(&mut command, podman.ctx)
}

/// What the test needs, as an administrator's file.
fn own_configuration(podman: &Podman) -> String {
    let dir = podman.dir.display();
    format!(
        "[containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [\"nofile=1000:1000\", \"nproc=1000:1000\"]\n\
         [engine]\nevents_logger = \"file\"\ntmp_dir = \"{dir}/tmp\"\ncgroup_manager = \"cgroupfs\"\n"
    )
}

fn podman_runs_by_what_setup_wrote(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox_with_guest(ctx));
    let etc = Path::new("/etc/containers");
    let policy = fs::read(podman.dir.join("policy.json")).unwrap();
    ctx.tmpfs(etc, "mode=755");
    fs::write(etc.join("policy.json"), policy).unwrap();
    fs::write(etc.join("containers.conf"), own_configuration(&podman)).unwrap();
    let run = |runtime: &str, line: &[&str]| run(&podman, runtime, line);
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

fn podman_of_a_user_runs_by_what_setup_wrote(ctx: &Ctx, release: Release) {
    let podman = podman_of_a_user(ctx, release, &busybox_with_guest(ctx));
    let user = podman.user.unwrap();
    let config = podman.dir.join(".config");
    let containers = config.join("containers");
    fs::create_dir_all(&containers).unwrap();
    fs::write(containers.join("containers.conf"), own_configuration(&podman)).unwrap();
    for path in [&config, &containers] {
        chown(path, Some(user), Some(user)).unwrap();
    }
    let (runtime, binary) = (ctx.subject.path.to_str().unwrap(), installed(ctx));
    let setup = |verb: &str| {
        let line = [runtime, "setup", "podman", verb, "--binary", binary.to_str().unwrap()];
        say(&mut podman.program(&line), ctx)
    };
    let said = setup("--write").ok();
    let drop_in = containers.join("containers.conf.d/90-proa.conf");
    assert!(said.contains(&format!("{} is written", drop_in.display())), "{said}");
    // The doctor looks where setup would write for this user.
    let doctor = say(&mut podman.program(&[binary.to_str().unwrap(), "doctor"]), ctx);
    assert!(doctor.text.contains(drop_in.to_str().unwrap()), "{doctor:?}");
    assert_eq!(run(&podman, "proa", &[IMAGE, "echo", "linux"]).ok(), "linux\n");
    let text = run(&podman, "proa-wasm", &[IMAGE, "/guest.wasm", "by setup"]).code(2);
    assert!(text.contains("wasm by setup"), "{text}");
    setup("--remove").ok();
    assert!(!drop_in.exists());
    // Root's is not a user's to write.
    let line = [runtime, "setup", "crio", "--write"];
    say(&mut podman.program(&line), ctx).refused(&["/etc/crio", "ermission denied"]);
}
