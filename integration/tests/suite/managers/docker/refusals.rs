//! What Docker shows its user when something cannot be had. It looks for causes in what the runtime says: 127 is what is not
//! there, 126 what may not be executed.

use proa_integration::Kind;

use super::super::odd_programs;
use super::*;

of_both! {
    docker_shows_why_a_container_did_not_start .views(V1).seconds(120).not_for(NO_HYBRID);
}

fn docker_shows_why_a_container_did_not_start(ctx: &Ctx, release: Release) {
    let docker = docker(ctx, release, &odd_programs(ctx));
    let refused = |flags: &[&str], program: &str, code: i32, texts: &[&str]| {
        let said = docker.run("proa", &[&["--rm"], flags].concat(), &[program]);
        assert_eq!(said.code, code, "{said:?}");
        said.refused(texts);
    };
    refused(
        &[],
        "no-such-program",
        127,
        &["exec: \"no-such-program\": executable file not found in $PATH"],
    );
    refused(&[], "/no/such", 127, &["/no/such"]);
    refused(&[], "/etc/passwd", 126, &["exec: \"/etc/passwd\": permission denied"]);
    refused(
        &["--workdir=/etc/passwd"],
        "true",
        125,
        &["/etc/passwd is not a directory"],
    );
    refused(&["--user=nobody-there"], "true", 125, &["nobody-there"]);
    if ctx.subject.kind == Kind::Proa {
        let said = docker.run("proa", &["--rm"], &["/bin/garbage"]);
        said.refused(&["/bin/garbage: exec format error"]);
        let said = docker.run("proa", &["--rm"], &["/bin/lost"]);
        said.refused(&["/bin/lost: no such file or directory"]);
        let profile = docker.dir.join("profile.json");
        fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_NONSENSE"}"#).unwrap();
        let option = format!("--security-opt=seccomp={}", profile.display());
        refused(
            &[&option],
            "true",
            125,
            &["linux.seccomp.defaultAction", "SCMP_ACT_NONSENSE"],
        );
        refused(
            &["--sysctl=kernel.msgmax=abc"],
            "true",
            125,
            &["kernel.msgmax=abc", "invalid argument"],
        );
    }
    docker.run("proa", &["--detach", "--name=it"], &["sleep", "1000"]).ok();
    docker.exec(&[], &["no-such-program"]).refused(&["no-such-program"]);
    let code = docker.exec(&[], &["no-such-program"]).code;
    assert!(matches!(code, 126 | 127), "{code}");
    assert_eq!(docker.exec(&[], &["/etc/passwd"]).code, 126);
    docker
        .exec(&["--workdir=/no/such"], &["true"])
        .refused(&["/no/such", "no such file or directory"]);
    let said = docker.call(&["run", "--rm", "--runtime=no-such-runtime", IMAGE, "true"]);
    said.refused(&["no-such-runtime"]);
}
