//! The runtime's own executable, which a container gets to see while its init or an `exec` is being set up.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use proa_integration::{Container, Ctx, Kind, tests};
use serde_json::json;

use super::{arm, withstood};

tests! {
    the_runtimes_executable_cannot_be_overwritten_by_a_waiting_process .once();
    a_copied_executable_cannot_be_overwritten_either .once().only_proa();
    the_runtimes_executable_cannot_be_entered_through_proc_self_exe .once();
    the_runtimes_executable_cannot_be_the_interpreter_of_a_script .once();
    a_container_cannot_keep_the_runtime_from_being_executed .once()
        .not_for(&[(Kind::Runc, "1.1 copies itself, and reads its own file only"), (Kind::Crun, "1.8 the same")]);
    a_library_of_the_environment_is_not_loaded_into_init .once();
}

/// A copy of the runtime with everything beside it: an attack that works hurts only the copy.
fn copy(ctx: &Ctx) -> PathBuf {
    let dir = ctx.mkdir("copy");
    let source = &ctx.subject.path;
    let own = source.file_name().unwrap().to_string_lossy().into_owned();
    for entry in fs::read_dir(source.parent().unwrap()).unwrap().flatten() {
        let name = entry.file_name();
        if entry.path().is_file() && name.to_string_lossy().starts_with(&own) {
            fs::copy(entry.path(), dir.join(&name)).unwrap();
        }
    }
    dir.join(own)
}

const CAPABILITIES: [&str; 3] = ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"];

/// A container in which the attacker waits for the runtime while `enter` makes that come, and whether it got to write.
fn watch(ctx: &Ctx, enter: impl Fn(&Container, &PathBuf)) {
    let runtime = copy(ctx);
    let before = fs::read(&runtime).unwrap();
    let bundle = ctx.bundle();
    arm(ctx, &bundle)
        .args(&["attack", "overwrite", "3"])
        .writable()
        .caps(&CAPABILITIES);
    symlink("/proc/self/exe", bundle.path("/bin/me")).unwrap();
    bundle.file("/bin/script", "#!/proc/self/exe\n");
    fs::set_permissions(bundle.path("/bin/script"), fs::Permissions::from_mode(0o755)).unwrap();
    let container = ctx.start(&bundle);
    container.says("watching");
    for _ in 0..20 {
        enter(&container, &runtime);
    }
    container.says("done");
    withstood!(!container.stdout().contains("WROTE"), "{}", container.stdout());
    withstood!(
        fs::read(&runtime).unwrap() == before,
        "the runtime's executable was changed"
    );
}

/// CVE-2019-5736: a process of the container waits for the runtime to enter, holds its executable by `/proc/PID/exe`, and
/// writes to it once it is not executed any more.
fn the_runtimes_executable_cannot_be_overwritten_by_a_waiting_process(ctx: &Ctx) {
    watch(ctx, |container, runtime| {
        // What became of the call matters not: an attack may well break it.
        container.exec_call(&[], &["/bin/true"]).program(runtime).output();
    });
}

/// The same where there is no overlay, and init is a copy of the executable.
fn a_copied_executable_cannot_be_overwritten_either(ctx: &Ctx) {
    let mask = [ctx.probe.to_str().unwrap(), "mask", "fsopen"];
    watch(ctx, |container, runtime| {
        let call = container.exec_call(&[], &["/bin/true"]).program(runtime);
        call.under(&mask).output();
    });
}

/// CVE-2019-5736, as it was first shown: the program to run *is* the runtime, through `/proc/self/exe`.
fn the_runtimes_executable_cannot_be_entered_through_proc_self_exe(ctx: &Ctx) {
    watch(ctx, |container, runtime| {
        for program in ["/bin/me", "/proc/self/exe"] {
            let call = container.exec_call(&[], &[program, "--version"]);
            call.program(runtime).output();
        }
    });
    // And not as the container's first process either.
    let before = fs::read(&ctx.subject.path).unwrap();
    let bundle = ctx.bundle();
    bundle.args(&["/proc/self/exe", "--version"]);
    ctx.run(&bundle);
    withstood!(
        fs::read(&ctx.subject.path).unwrap() == before,
        "the runtime's executable was changed"
    );
}

/// CVE-2019-5736 by way of the kernel: a script of the image has `/proc/self/exe` as its interpreter.
fn the_runtimes_executable_cannot_be_the_interpreter_of_a_script(ctx: &Ctx) {
    watch(ctx, |container, runtime| {
        container.exec_call(&[], &["/bin/script"]).program(runtime).output();
    });
}

/// An open for writing that is refused counts as a writer for an instant, and what is written to can't be executed. Whoever
/// holds the runtime's file in a container could make calls of the runtime on the host fail with ETXTBSY.
fn a_container_cannot_keep_the_runtime_from_being_executed(ctx: &Ctx) {
    let runtime = copy(ctx);
    let bundle = ctx.bundle();
    arm(ctx, &bundle).args(&["attack", "occupy", "20"]).caps(&CAPABILITIES);
    let container = ctx.start(&bundle);
    container.says("watching");
    for _ in 0..20 {
        container.exec_call(&[], &["/bin/true"]).program(&runtime).output();
        if container.stdout().contains("holding") {
            break;
        }
    }
    container.says("holding");
    let mut refused = 0;
    for _ in 0..1500 {
        let call = Command::new(&runtime).arg("--version").stdout(Stdio::null()).status();
        match call {
            Ok(status) => assert!(status.success(), "{status}"),
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    withstood!(
        refused == 0,
        "{refused} of 1500 calls of the runtime failed with ETXTBSY"
    );
}

/// The loader runs what `LD_PRELOAD` names in every dynamic program. The container's environment comes from the image; an
/// init that had it (or the caller's) before it left the host would execute the image's code with the host's rights.
fn a_library_of_the_environment_is_not_loaded_into_init(ctx: &Ctx) {
    let dir = ctx.mkdir("library");
    let loaded = dir.join("loaded");
    let source = format!(
        "#include <fcntl.h>\n__attribute__((constructor)) static void on_load(void) {{ open(\"{}\", O_CREAT | O_WRONLY, 0600); }}\n",
        loaded.display()
    );
    fs::write(dir.join("evil.c"), source).unwrap();
    let library = dir.join("evil.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(dir.join("evil.c"))
        .status();
    assert!(compiled.unwrap().success());
    let preload = format!("LD_PRELOAD={}", library.display());
    let bundle = ctx.bundle();
    bundle
        .set("/process/env", json!(["PATH=/bin", preload]))
        .args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    container.exec_with(&["--env", &preload], &["true"]).ok();
    withstood!(!loaded.exists(), "a library that the environment names was loaded");
}
