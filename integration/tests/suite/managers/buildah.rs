//! buildah: images are built and containers run by the runtime, with `--runtime` and `--isolation oci`.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proa_integration::Ctx;

use super::later::Release;
use super::{IMAGE, NO_HYBRID, Said, V1, busybox, odd_programs, say};

of_both! {
    buildah_builds_an_image .views(V1).seconds(120).not_for(NO_HYBRID);
    buildah_runs_programs .views(V1).seconds(120).not_for(NO_HYBRID);
    buildah_of_a_user_builds_an_image .views(V1).seconds(120).not_for(NO_HYBRID);
    buildah_shows_why_a_step_failed .views(V1).seconds(120).only_proa();
}

struct Buildah<'a> {
    ctx: &'a Ctx,
    dir: PathBuf,
    user: Option<u32>,
}

fn buildah<'a>(ctx: &'a Ctx, release: Release, image: &Path, user: Option<u32>) -> Buildah<'a> {
    ctx.tmpfs(Path::new("/run"), "mode=755");
    release.enter(ctx);
    let dir = ctx.mkdir("buildah");
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\nrunroot = \"{0}/run\"\ngraphroot = \"{0}/graph\"\n",
        dir.display()
    );
    fs::write(dir.join("storage.conf"), storage).unwrap();
    fs::write(
        dir.join("policy.json"),
        r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
    )
    .unwrap();
    let limits = "[containers]\ndefault_ulimits = [\"nofile=1000:1000\", \"nproc=1000:1000\"]\n";
    fs::write(dir.join("containers.conf"), limits).unwrap();
    let it = Buildah { ctx, dir, user };
    if let Some(user) = user {
        super::podman::add_user(ctx, "tester", user, &[&it.dir]);
    }
    let archive = format!("oci-archive:{}", image.display());
    let policy = it.dir.join("policy.json");
    let pull = ["pull", "--signature-policy", policy.to_str().unwrap(), &archive];
    let id = it.call(&pull).ok();
    it.call(&["tag", id.lines().last().unwrap(), IMAGE]).ok();
    it
}

impl Buildah<'_> {
    fn call(&self, args: &[&str]) -> Said {
        let at = |name: &str| self.dir.join(name);
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=1", "60", "buildah"])
            .args(args)
            .env("CONTAINERS_STORAGE_CONF", at("storage.conf"))
            .env("CONTAINERS_CONF", at("containers.conf"))
            .env("HOME", &self.dir)
            .env("TMPDIR", &self.dir)
            .env("XDG_RUNTIME_DIR", "/run")
            .current_dir(&self.dir);
        if let Some(user) = self.user {
            command.uid(user).gid(user).env("USER", "tester");
            command.env("XDG_RUNTIME_DIR", format!("/run/user/{user}"));
        }
        say(&mut command, self.ctx)
    }

    /// What every verb that runs something is given.
    fn with(&self, verb: &str, args: &[&str]) -> Said {
        let runtime = format!("--runtime={}", self.ctx.subject.path.display());
        let mut all = vec![verb, &runtime, "--isolation=oci", "--network=none"];
        all.extend(args);
        self.call(&all)
    }

    fn build(&self, steps: &str) -> Said {
        let context = self.dir.join("context");
        fs::create_dir_all(&context).unwrap();
        fs::write(context.join("Containerfile"), format!("FROM {IMAGE}\n{steps}")).unwrap();
        self.with("bud", &["--pull=never", "--tag=example.test/built", "context"])
    }

    /// A container to run things in; its name.
    fn container(&self, image: &str) -> String {
        let from = [
            "from",
            "--pull=never",
            "--ulimit=nofile=1000:1000",
            "--ulimit=nproc=1000:1000",
            image,
        ];
        self.call(&from).ok().trim_end().to_owned()
    }

    /// Builds, and looks at what was built.
    fn builds(&self) {
        let steps = "ENV A=b\nRUN echo $A > /made && id -u >> /made\n\
            RUN --mount=type=tmpfs,target=/t touch /t/x && grep -c ' /t ' /proc/mounts >> /made\n\
            USER 1000\nWORKDIR /work\nRUN id -u > /tmp/user; pwd >> /tmp/user\n";
        self.build(steps).ok();
        let name = self.container("example.test/built");
        let said = self.with("run", &[&name, "cat", "/made", "/tmp/user"]);
        assert_eq!(said.ok(), "b\n0\n1\n1000\n/work\n");
    }
}

fn buildah_builds_an_image(ctx: &Ctx, release: Release) {
    buildah(ctx, release, &busybox(ctx), None).builds();
}

fn buildah_of_a_user_builds_an_image(ctx: &Ctx, release: Release) {
    buildah(ctx, release, &busybox(ctx), Some(12_345)).builds();
}

fn buildah_runs_programs(ctx: &Ctx, release: Release) {
    let buildah = buildah(ctx, release, &busybox(ctx), None);
    let name = buildah.container(IMAGE);
    let volume = format!("--volume={}:/v:ro", ctx.mkdir("volume").display());
    let script = "id -u; (touch /v/x) 2>&1; grep CapBnd /proc/self/status; exit 3";
    let flags = [
        "--user=1000",
        "--cap-add=CAP_NET_RAW",
        &volume,
        &name,
        "sh",
        "-c",
        script,
    ];
    let text = buildah.with("run", &flags).code(3);
    assert!(
        text.contains("1000\ntouch: /v/x: Read-only file system\nCapBnd:"),
        "{text}"
    );
    buildah.with("run", &[&name, "sh", "-c", "touch /kept"]).ok();
    // The older buildah asks for ambient capabilities that can't be had, of which there are warnings, as with runc: before the
    // program's words or after, for they come another way.
    let text = buildah.with("run", &[&name, "ls", "/kept"]).ok();
    assert!(text.lines().any(|line| line == "/kept"), "{text}");
}

fn buildah_shows_why_a_step_failed(ctx: &Ctx, release: Release) {
    let buildah = buildah(ctx, release, &odd_programs(ctx), None);
    let said = buildah.build("RUN exit 7\n");
    assert_eq!(said.code, 7, "{said:?}");
    let missing = "exec: \"/no-such\": stat /no-such: no such file or directory";
    buildah
        .build("RUN [\"/no-such\"]\n")
        .refused(&[&missing.replace('"', "\\\"")]);
    let name = buildah.container(IMAGE);
    let refused = |program: &str, text: &str| buildah.with("run", &[&name, program]).refused(&[program, text]);
    refused("no-such", "executable file not found in $PATH");
    refused("/etc/passwd", "permission denied");
    refused("/bin/garbage", "exec format error");
    refused("/bin/lost", "no such file or directory");
    // Nothing of those that failed is left.
    let left = fs::read_dir("/run/proa").map_or(0, |all| {
        all.flatten()
            .filter(|it| !it.file_name().to_string_lossy().starts_with('.'))
            .count()
    });
    assert_eq!(left, 0);
}
