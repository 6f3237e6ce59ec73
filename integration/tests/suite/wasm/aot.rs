//! Code compiled ahead of time: the cache, who fills it and when, and what is not used.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use proa_integration::ctx::Running;
use proa_integration::{Bundle, Ctx, Output, tests, wasm};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::attacks::withstood;

tests! {
    code_is_made_before_the_start_and_used_from_then_on .once().only_proa().seconds(120);
    code_is_made_in_the_background_for_the_next_start .once().only_proa().seconds(120);
    a_container_is_not_disturbed_by_the_compiler_beside_it .once().only_proa().seconds(120);
    what_the_policy_does_not_want_is_not_used_or_made .once().only_proa().seconds(120);
    a_damaged_entry_is_as_good_as_none .once().only_proa().seconds(120);
    an_entry_of_another_module_is_not_used .once().only_proa().seconds(120);
    what_others_could_have_written_is_not_used .once().only_proa().seconds(120);
    a_cache_that_cannot_be_written_costs_time_only .once().only_proa().seconds(120);
    what_is_too_much_for_the_cache_makes_room_or_is_left_out .once().only_proa().seconds(120);
    many_who_start_at_once_compile_once .once().only_proa().seconds(180);
    exec_uses_compiled_code .once().only_proa().seconds(120);
    a_container_has_nothing_compiled_unless_the_administrator_says_so .once().only_proa().seconds(120);
    a_user_namespace_uses_compiled_code .once().only_proa().seconds(120);
    an_unprivileged_user_uses_roots_compiled_code .once().only_proa().seconds(120);
    without_an_overlay_over_the_cache_a_module_is_interpreted .once().only_proa().seconds(120);
    a_container_without_proc_uses_compiled_code .once().only_proa().seconds(120);
    the_cache_is_listed_emptied_and_pruned .once().only_proa().seconds(180);
    a_file_is_made_whole_or_not_at_all .once().only_proa().seconds(120);
    code_of_an_image_is_run_only_if_it_is_trusted .once().only_proa().seconds(120);
}

const SUM: &str = r#"
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	volatile unsigned long sum = 0;
	for (unsigned long i = 0; i < strtoul(argv[1], 0, 10); i++)
		sum += i * i % 7;
	printf("sum %lu\n", sum);
	return 3;
}
"#;
/// What it prints for 1000.
const SUMMED: &str = "sum 2001";

/// A test's cache, and a bundle whose entrypoint is a module.
pub struct Room<'a> {
    ctx: &'a Ctx,
    pub bundle: Bundle,
    cache: PathBuf,
    /// Global arguments.
    more: Vec<String>,
}

impl<'a> Room<'a> {
    pub fn new(ctx: &'a Ctx) -> Self {
        let bundle = ctx.bundle();
        let module = wasm::compile(&ctx.dir, "module", SUM, &[]);
        fs::copy(module, bundle.path("/module.wasm")).unwrap();
        bundle.args(&["/module.wasm", "1000"]);
        let mut room = Self {
            ctx,
            bundle,
            cache: ctx.dir.join("cache"),
            more: Vec::new(),
        };
        room.config("");
        room
    }

    pub fn module(&self) -> PathBuf {
        self.bundle.path("/module.wasm")
    }

    pub fn policy(&self, policy: &str) -> &Self {
        let annotations = json!({"run.oci.handler": "wasm", "proa.wasm/aot": policy});
        self.bundle.set("/annotations", annotations);
        self
    }

    /// A configuration of this text that allows what annotations may ask for, unless it says something else.
    pub fn config(&mut self, text: &str) {
        let file = self.ctx.dir.join("config.toml");
        let (table, allowed) = ("[wasm.aot]\n", "policy = \"before-start\"\n");
        let text = match text.contains(table) {
            true if text.contains("policy = ") => text.to_owned(),
            true => text.replace(table, &format!("{table}{allowed}")),
            false => format!("{text}{table}{allowed}"),
        };
        fs::write(&file, text).unwrap();
        self.more = vec!["--config".into(), file.to_str().unwrap().into()];
    }

    pub fn call(&self, args: &[&str]) -> proa_integration::Call {
        let cache = self.cache.to_str().unwrap();
        let more = self.more.iter().map(String::as_str);
        let all: Vec<&str> = ["--debug", "--engine-cache", cache]
            .into_iter()
            .chain(more)
            .chain(args.iter().copied())
            .collect();
        self.ctx.call(&all)
    }

    pub fn run_call(&self) -> proa_integration::Call {
        self.call(&["run", "--bundle", self.bundle.dir.to_str().unwrap(), &self.ctx.id()])
    }

    /// Runs the container, which must do what it is for; whether it ran compiled code.
    #[track_caller]
    pub fn run(&self) -> (bool, Output) {
        let out = self.run_call().output();
        worked(&out);
        (out.log.contains("compiled code is loaded"), out)
    }

    #[track_caller]
    pub fn compile(&self) -> Output {
        let out = self
            .call(&["wasm", "compile", self.module().to_str().unwrap()])
            .output();
        out.ok();
        out
    }

    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        let out = self.call(&["wasm", "cache", "ls", "--format", "json"]).output();
        out.ok().json().as_array().unwrap().clone()
    }

    /// The one entry's file.
    #[track_caller]
    fn entry(&self) -> PathBuf {
        let files = self.files(Some("so"));
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    pub fn files(&self, extension: Option<&str>) -> Vec<PathBuf> {
        let all = fs::read_dir(&self.cache).into_iter().flatten().flatten();
        all.map(|entry| entry.path())
            .filter(|path| extension.is_none() || path.extension() == extension.map(OsStr::new))
            .collect()
    }
}

#[track_caller]
pub fn worked(out: &Output) {
    out.code(3);
    assert_eq!(out.text(), SUMMED, "{out:?}");
}

fn code_is_made_before_the_start_and_used_from_then_on(ctx: &Ctx) {
    let room = Room::new(ctx);
    assert!(room.policy("before-start").run().0);
    let entries = room.list();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert!(entries[0]["code"].as_u64().unwrap() > 1000, "{entries:?}");
    let (used, out) = room.policy("use").run();
    assert!(used && !out.log.contains("compiling a module"), "{out:?}");
    // A pod's next container may start it otherwise; it is the same module.
    fs::copy(room.module(), room.bundle.path("/another.wasm")).unwrap();
    room.bundle.args(&["/another.wasm", "1000"]);
    assert!(room.run().0);
    assert_eq!(
        room.files(None).len(),
        1,
        "nothing but the entry: {:?}",
        room.files(None)
    );
}

fn code_is_made_in_the_background_for_the_next_start(ctx: &Ctx) {
    let room = Room::new(ctx);
    let (used, out) = room.policy("background").run();
    assert!(!used && out.log.contains("compiling in the background"), "{out:?}");
    // It has the key's lock since before the container was created: this waits for it, and has nothing left to do.
    let out = room.compile();
    assert!(
        out.log.contains("compiling a module"),
        "it asks a compiler for the key: {out:?}"
    );
    assert_eq!(room.list().len(), 1);
    let (used, out) = room.run();
    assert!(used && !out.log.contains("compiling"), "{out:?}");
}

fn a_container_is_not_disturbed_by_the_compiler_beside_it(ctx: &Ctx) {
    // Both read the module for as long as this one's size makes them.
    let room = Room::new(ctx);
    let mut bytes = fs::read(room.module()).unwrap();
    let mut padding = b"\x07padding".to_vec();
    padding.resize(48 << 20, 0);
    bytes.extend(wasm::section(0, &padding));
    fs::write(room.module(), &bytes).unwrap();
    let (used, out) = room.policy("background").run();
    assert!(!used && out.log.contains("compiling in the background"), "{out:?}");
    // The compiler has read all of it, too: what it made is there as soon as it has given the key's lock back.
    for lock in room.files(Some("lock")) {
        if let Ok(lock) = fs::File::open(lock) {
            flock(lock, FlockOperation::LockExclusive).unwrap();
        }
    }
    assert_eq!(room.list().len(), 1);
    assert!(room.run().0);
}

fn what_the_policy_does_not_want_is_not_used_or_made(ctx: &Ctx) {
    let mut room = Room::new(ctx);
    assert!(!room.policy("use").run().0);
    assert!(!room.policy("off").run().0);
    assert!(!room.cache.exists());
    room.compile();
    assert!(!room.policy("off").run().0);
    assert!(room.policy("use").run().0);
    // Without an annotation it is the file's.
    room.bundle.set("/annotations", json!({"run.oci.handler": "wasm"}));
    assert!(room.run().0);
    room.config("[wasm.aot]\npolicy = \"off\"\n");
    assert!(!room.run().0);
    // Code without what the guest's limits need is none for it.
    room.config("[wasm]\ncount-instructions = true\n[wasm.aot]\npolicy = \"use\"\n");
    assert!(!room.run().0);
    room.compile();
    assert!(room.run().0);
    assert_eq!(room.list().len(), 2);
}

fn a_damaged_entry_is_as_good_as_none(ctx: &Ctx) {
    let room = Room::new(ctx);
    room.compile();
    let entry = room.entry();
    let whole = fs::read(&entry).unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 0x10;
    for bytes in [&changed[..], &whole[..whole.len() / 2], b"", b"\x7fELF"] {
        fs::write(&entry, bytes).unwrap();
        let (used, out) = room.policy("use").run();
        assert!(!used && out.log.contains("it is not used"), "{out:?}");
    }
    assert!(room.list()[0]["damage"].is_string());
    assert!(room.policy("before-start").run().0);
    assert_eq!(fs::read(&entry).unwrap().len(), whole.len());
}

fn an_entry_of_another_module_is_not_used(ctx: &Ctx) {
    let mut room = Room::new(ctx);
    room.compile();
    let entry = room.entry();
    room.cache = ctx.dir.join("another");
    let module = fs::read(room.module()).unwrap();
    let another = wasm::compile(&ctx.dir, "another", &SUM.replace("return 3", "return 4"), &[]);
    fs::copy(another, room.module()).unwrap();
    room.compile();
    fs::copy(room.entry(), &entry).unwrap();
    fs::write(room.module(), module).unwrap();
    room.cache = ctx.dir.join("cache");
    let out = room.policy("use").run_call().output();
    withstood!(out.code != 4, "the code of another module runs");
    worked(&out);
    assert!(out.log.contains("it is not used"), "{out:?}");
}

fn what_others_could_have_written_is_not_used(ctx: &Ctx) {
    let room = Room::new(ctx);
    room.compile();
    room.policy("use");
    let entry = room.entry();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let refused = |what: &str| {
        let (used, out) = room.run();
        withstood!(!used, "code runs though it {what}");
        assert!(out.log.contains(what), "{what}: {out:?}");
    };
    chown(&entry, Some(1000), None).unwrap();
    refused("uid 1000");
    chown(&entry, Some(0), None).unwrap();
    for bits in [0o664, 0o646] {
        mode(&entry, bits);
        refused("others can write to it");
    }
    mode(&entry, 0o644);
    assert!(room.run().0);
    mode(&room.cache, 0o777);
    refused("others can write to it");
    mode(&room.cache, 0o755);
    chown(&room.cache, Some(1000), None).unwrap();
    refused("uid 1000");
}

fn a_cache_that_cannot_be_written_costs_time_only(ctx: &Ctx) {
    let mut room = Room::new(ctx);
    room.policy("before-start");
    fs::create_dir(&room.cache).unwrap();
    // Full before the code is whole.
    ctx.tmpfs(&room.cache, "size=16k,mode=755");
    let (used, out) = room.run();
    assert!(!used && out.log.contains("interpreted"), "{out:?}");
    assert_eq!(room.files(None), [] as [PathBuf; 0]);
    // Read-only: what is there is used, and nothing is made.
    room.cache = ctx.mkdir("read-only");
    ctx.tmpfs(&room.cache, "mode=755");
    room.compile();
    ctx.host_mount(&["-o", "remount,ro"], &room.cache);
    assert!(room.run().0);
    room.bundle.args(&["/module.wasm", "1000"]);
    let other = wasm::compile(&ctx.dir, "other", &SUM.replace("return 3", "return 2 + argc / 2"), &[]);
    fs::copy(other, room.module()).unwrap();
    let (used, out) = room.run();
    assert!(!used && out.log.contains("Read-only file system"), "{out:?}");
    // A file where the directory should be.
    room.cache = ctx.dir.join("file");
    fs::write(&room.cache, "").unwrap();
    assert!(!room.run().0);
}

fn what_is_too_much_for_the_cache_makes_room_or_is_left_out(ctx: &Ctx) {
    let mut room = Room::new(ctx);
    room.policy("before-start");
    room.config("[wasm.aot]\nmax-size = \"1KiB\"\n");
    let (used, out) = room.run();
    assert!(!used && out.log.contains("more than the 1024"), "{out:?}");
    assert_eq!(room.list().len(), 0);
    room.config("");
    room.compile();
    let first = room.list()[0].clone();
    let size = first["size"].as_u64().unwrap();
    room.config(&format!("[wasm.aot]\nmax-size = \"{}\"\n", size * 3 / 2));
    let other = wasm::compile(&ctx.dir, "other", &SUM.replace("return 3", "return 2 + argc / 2"), &[]);
    fs::copy(other, room.module()).unwrap();
    assert!(room.run().0);
    let left = room.list();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_ne!(left[0]["key"], first["key"]);
}

fn many_who_start_at_once_compile_once(ctx: &Ctx) {
    const MANY: usize = 6;
    let room = Room::new(ctx);
    // Of one image, each in a cgroup of its own.
    let bundles: Vec<Bundle> = (0..MANY).map(|_| ctx.bundle()).collect();
    let all_at_once = |policy: &str| -> Vec<Output> {
        for bundle in &bundles {
            fs::copy(room.module(), bundle.path("/module.wasm")).unwrap();
            let annotations = json!({"run.oci.handler": "wasm", "proa.wasm/aot": policy});
            bundle.args(&["/module.wasm", "1000"]).set("/annotations", annotations);
        }
        let start = |bundle: &Bundle| {
            let call = room.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()]);
            call.spawn()
        };
        let running: Vec<Running> = bundles.iter().map(start).collect();
        let outputs: Vec<Output> = running.into_iter().map(Running::wait).collect();
        outputs.iter().for_each(worked);
        outputs
    };
    let count = |outputs: &[Output], words: &str| outputs.iter().filter(|out| out.log.contains(words)).count();
    let outputs = all_at_once("before-start");
    assert_eq!(count(&outputs, "compiling a module"), 1, "{outputs:#?}");
    assert_eq!(count(&outputs, "compiled code is loaded"), MANY, "{outputs:#?}");
    // In the background nobody waits, and there is one compiler all the same.
    fs::remove_file(room.entry()).unwrap();
    let outputs = all_at_once("background");
    assert_eq!(count(&outputs, "compiling in the background"), 1, "{outputs:#?}");
    room.compile();
    assert!(room.policy("use").run().0);
}

fn exec_uses_compiled_code(ctx: &Ctx) {
    let room = Room::new(ctx);
    room.compile();
    room.policy("use");
    let bundle = &room.bundle;
    bundle.edit(|spec| spec["process"]["args"] = json!(["/wait.wasm"]));
    let wait = wasm::compile(&ctx.dir, "wait", "int main(void) { for (;;) ; }", &["-O0"]);
    fs::copy(wait, bundle.path("/wait.wasm")).unwrap();
    let container = ctx.container(bundle);
    let made = room.call(&["create", "--bundle", bundle.dir.to_str().unwrap(), &container.id]);
    made.output().ok();
    container.start();
    let out = room.call(&["exec", &container.id, "/module.wasm", "1000"]).output();
    worked(&out);
    assert!(out.log.contains("compiled code is loaded"), "{out:?}");
    container.verb(&["delete", "--force"]).ok();
    container.forget();
}

fn a_container_has_nothing_compiled_unless_the_administrator_says_so(ctx: &Ctx) {
    let mut room = Room::new(ctx);
    room.more.clear();
    for policy in ["before-start", "background"] {
        room.policy(policy);
        let (compiled, out) = room.run();
        withstood!(
            !compiled && !out.log.contains("compiling"),
            "a container made the host compile"
        );
    }
    assert_eq!(room.files(Some("so")), Vec::<PathBuf>::new());
    // What the administrator has compiled is used.
    room.compile();
    assert!(room.run().0);
}

fn a_user_namespace_uses_compiled_code(ctx: &Ctx) {
    let room = Room::new(ctx);
    room.bundle.userns(100_000);
    assert!(room.policy("before-start").run().0);
    assert!(room.policy("use").run().0);
    // As another user of it, too.
    room.bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    assert!(room.run().0);
}

fn an_unprivileged_user_uses_roots_compiled_code(ctx: &Ctx) {
    let room = Room::new(ctx);
    room.compile();
    let world = crate::rootless::world(ctx);
    fs::copy(room.module(), world.bundle.path("/module.wasm")).unwrap();
    let annotations = json!({"run.oci.handler": "wasm", "proa.wasm/aot": "use"});
    world
        .bundle
        .args(&["/module.wasm", "1000"])
        .set("/annotations", annotations);
    let out = world.run_with(&["--debug", "--engine-cache", room.cache.to_str().unwrap()]);
    worked(&out);
    assert!(out.stderr.contains("compiled code is loaded"), "{out:?}");
}

/// The cache's directory itself would lead a container to the host.
fn without_an_overlay_over_the_cache_a_module_is_interpreted(ctx: &Ctx) {
    let room = Room::new(ctx);
    room.compile();
    room.policy("use");
    let probe = ctx.probe.to_str().unwrap();
    let out = room.run_call().under(&[probe, "mask", "fsopen"]).output();
    worked(&out);
    assert!(!out.log.contains("compiled code is loaded"), "{out:?}");
    assert!(
        out.log.contains("the cache of compiled code can't be shown alone"),
        "{out:?}"
    );
}

fn a_container_without_proc_uses_compiled_code(ctx: &Ctx) {
    // No /proc, no capability, another working directory: nothing by which a path to the cache could be made.
    let room = Room::new(ctx);
    room.compile();
    room.policy("use");
    room.bundle.caps(&[]).edit(|spec| {
        spec["mounts"] = json!([]);
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
        spec["process"]["cwd"] = json!("/home/user");
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    assert!(room.run().0);
    // What the guest finds there is the container's still.
    let list = r#"
#include <dirent.h>
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	struct dirent *e;
	DIR *d = opendir(".");
	while (d && (e = readdir(d)))
		puts(e->d_name);
	for (int fd = 5; fd < 64; fd++)
		if (lseek(fd, 0, SEEK_CUR) != -1)
			printf("open %d\n", fd);
	return 3;
}
"#;
    let module = wasm::compile(&ctx.dir, "list", list, &[]);
    fs::copy(module, room.module()).unwrap();
    room.compile();
    let out = room.run_call().output();
    out.code(3);
    assert!(out.log.contains("compiled code is loaded"), "{out:?}");
    assert!(!out.stdout.contains(".so") && !out.stdout.contains("open"), "{out:?}");
}

fn the_cache_is_listed_emptied_and_pruned(ctx: &Ctx) {
    let room = Room::new(ctx);
    let cache = |args: &[&str]| room.call(&[&["wasm", "cache"], args].concat()).output();
    assert_eq!(room.list().len(), 0);
    assert_eq!(cache(&["ls"]).ok().stdout.lines().count(), 1);
    cache(&["prune"]).ok();
    let key = room.compile().text().to_owned();
    let listed = room.list();
    assert_eq!(listed[0]["key"], key.as_str());
    let digest = listed[0]["module"].as_str().unwrap().to_owned();
    assert!(key.starts_with(&digest) && digest.len() == 64);
    assert!(listed[0]["target"]["engine"].as_str().unwrap().starts_with("WasmEdge"));
    assert!(cache(&["ls"]).ok().stdout.contains(&digest[..16]));
    // Again is no work; with --force it is.
    let made = || fs::metadata(room.entry()).unwrap().modified().unwrap();
    let before = made();
    assert_eq!(room.compile().text(), key);
    assert_eq!(made(), before);
    let module = room.module();
    let force = room.call(&[
        "wasm",
        "compile",
        "--force",
        "--opt-level",
        "0",
        module.to_str().unwrap(),
    ]);
    assert_eq!(force.output().ok().text(), key);
    assert_ne!(made(), before);
    assert!(room.policy("use").run().0);
    cache(&["prune", "--older-than", "1h"]).ok();
    assert_eq!(room.list().len(), 1);
    for (args, words) in [
        (&["rm"][..], "--all"),
        (&["rm", "ffffffffffff"], "no entry"),
        (&["rm", "../../etc/passwd"], "no entry"),
        (&["ls", "--format", "xml"], "format"),
        (&["prune", "--older-than", "soon"], "soon"),
        (&["list"], "wasm cache list"),
    ] {
        let out = cache(args);
        assert!(
            out.code != 0 && (out.stderr.contains(words) || out.log.contains(words)),
            "{out:?}"
        );
    }
    cache(&["rm", &digest[..12]]).ok();
    assert_eq!(room.list().len(), 0);
    room.compile();
    cache(&["prune", "--max-size", "1KiB"]).ok();
    assert_eq!(room.list().len(), 0);
    room.compile();
    cache(&["rm", "--all"]).ok();
    assert_eq!(room.files(None), [] as [PathBuf; 0]);
}

fn a_file_is_made_whole_or_not_at_all(ctx: &Ctx) {
    let room = Room::new(ctx);
    let (module, output) = (room.module(), ctx.mkdir("out").join("module.so"));
    let compile = |module: &Path| {
        let paths = [module, &output].map(|path| path.to_str().unwrap());
        room.call(&["wasm", "compile", "--output", paths[1], paths[0]]).output()
    };
    compile(&module).ok();
    let code = fs::read(&output).unwrap();
    assert!(code.starts_with(b"\x7fELF"));
    assert!(!room.cache.exists());
    let bad = ctx.dir.join("bad.wasm");
    fs::write(&bad, b"\0asm\x01\0\0\0\x01\x05garb!").unwrap();
    compile(&bad).refused(&["compile:"]);
    assert_eq!(fs::read(&output).unwrap(), code, "what was there stays");
    assert_eq!(fs::read_dir(output.parent().unwrap()).unwrap().count(), 1);
}

fn code_of_an_image_is_run_only_if_it_is_trusted(ctx: &Ctx) {
    let mut room = Room::new(ctx);
    let (module, library) = (room.module(), room.bundle.path("/module.so"));
    let paths = [&library, &module].map(|path| path.to_str().unwrap());
    room.call(&["wasm", "compile", "--output", paths[0], paths[1]])
        .output()
        .ok();
    room.policy("use").bundle.args(&["/module.so", "1000"]);
    let run = |room: &Room<'_>| room.run_call().output();
    let out = run(&room);
    withstood!(out.code != 3, "code of the image runs");
    out.refused(&["isn't trusted"]);
    room.config("[wasm.aot]\ntrust-image-code = true\n");
    worked(&run(&room));
    // A guest may not ask for it by itself.
    room.config("");
    let asks = json!({"run.oci.handler": "wasm", "proa.wasm/trust-image-code": "true"});
    room.bundle.set("/annotations", asks);
    run(&room).refused(&["trust-image-code"]);
    // The same in a section of a module: a damaged one is no matter as long as it isn't looked at.
    let mut bytes = fs::read(&module).unwrap();
    let section = [b"\x08wasmedge".as_slice(), b"native code"].concat();
    bytes.extend_from_slice(&[0, section.len() as u8]);
    bytes.extend_from_slice(&section);
    fs::write(&module, bytes).unwrap();
    room.policy("use").bundle.args(&["/module.wasm", "1000"]);
    worked(&run(&room));
    // And the cache's own code of such a module has none of it.
    assert!(room.policy("before-start").run().0);
}
