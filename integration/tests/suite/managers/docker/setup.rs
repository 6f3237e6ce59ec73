//! Docker as `proa setup docker` configures it.

use super::super::{busybox_with_guest, setup};
use super::*;

of_both! {
    docker_runs_by_what_setup_wrote .views(V1).seconds(120).only_proa();
}

fn docker_runs_by_what_setup_wrote(ctx: &Ctx, release: Release) {
    ctx.tmpfs(Path::new("/run"), "mode=755");
    release.enter(ctx);
    let own = "{\n\t\"log-level\":\"info\",\n\t\"live-restore\": false }\n";
    let file = ctx.dir.join("daemon.json");
    fs::write(&file, own).unwrap();
    let path = file.to_str().unwrap();
    // Copies would go to the machine's own /var/lib.
    ctx.tmpfs(Path::new("/var/lib"), "mode=755");
    let said = setup(ctx, None, &["docker", "--write", "--file", path]).ok();
    assert!(
        said.contains("reload docker") && said.contains("/var/lib/proa/backup"),
        "{said}"
    );
    setup(ctx, None, &["docker", "--write", "--file", path]).ok();
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.contains("\t\"log-level\":\"info\",\n"), "{written}");
    let docker = configured(ctx, &busybox_with_guest(ctx), &written, &[]);
    assert_eq!(docker.shell(&[], "echo linux"), "linux\n");
    let text = docker.run("proa-wasm", &["--rm"], &["/guest.wasm", "by setup"]).code(2);
    assert!(text.contains("wasm by setup"), "{text}");
    drop(docker);
    setup(ctx, None, &["docker", "--remove", "--file", path]).ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), own);
}
