//! Linux programs: looked up as runc does (the rules of Go's `exec.LookPath`), in the container's root and with the
//! container's `PATH`.

use crate::wasm::module::{self, Refusal};
use crate::{Error, Guest, Handler, aot};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{SFlag, stat};
use nix::unistd::{AccessFlags, execve, faccessat};
use proa_sys::errno::words;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::BorrowedFd;

/// Executes the entrypoint with execve(2).
#[derive(Debug, Default)]
pub struct NativeHandler {
    /// Made by `check`, so that nothing is left to do between the last seccomp filter and execve(2).
    ready: Option<Ready>,
}

#[derive(Debug)]
struct Ready {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl NativeHandler {
    /// A handler that hasn't looked at anything yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Handler for NativeHandler {
    fn prepare(&mut self, _: &Guest, _: BorrowedFd<'_>, _: &mut dyn aot::Source) -> Result<(), Error> {
        Ok(())
    }

    fn check(&mut self, guest: &Guest) -> Result<(), Error> {
        let path = look_up(&guest.args[0], search_path(&guest.env))?;
        self.ready = Some(Ready {
            path: c_string("process.args", 0, &path)?,
            args: c_strings("process.args", &guest.args)?,
            env: c_strings("process.env", &guest.env)?,
        });
        Ok(())
    }

    fn run(&mut self, guest: &Guest, _started: &mut dyn FnMut()) -> Error {
        if self.ready.is_none() {
            // The caller skipped `check`: the same answer, only later.
            if let Err(error) = self.check(guest) {
                return error;
            }
        }
        let Some(ready) = &self.ready else {
            unreachable!("check leaves it or fails")
        };
        let errno = replace(ready);
        let path = ready.path.to_string_lossy().into_owned();
        let hint = if errno == Errno::ENOEXEC { hint(&path) } else { None };
        let cause = words(errno) + hint.unwrap_or_default();
        Error::Exec { path, cause }
    }
}

/// execve(2), with the default action of SIGPIPE, which Rust's runtime has taken: not a moment earlier, since until then, and
/// again if it fails, this process reports to another one that may be gone. Returns why it failed.
fn replace(ready: &Ready) -> Errno {
    let executed = proa_sys::exec::default_sigpipe().and_then(|()| execve(&ready.path, &ready.args, &ready.env));
    let Err(errno) = executed;
    match proa_sys::exec::ignore_sigpipe() {
        Ok(()) => errno,
        Err(errno) => errno,
    }
}

/// What helps with a file that the kernel knows no way to execute, if it is WebAssembly. It is the container's file, seen as its
/// program would see it; nothing but a regular file is opened.
fn hint(path: &str) -> Option<&'static str> {
    let facts = stat(path).ok()?;
    if SFlag::from_bits_truncate(facts.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
        return None;
    }
    let mut head = Vec::new();
    std::fs::File::open(path).ok()?.take(64).read_to_end(&mut head).ok()?;
    match module::kind(&head) {
        Ok(module::Kind::Module) => Some(
            " (it is a WebAssembly module: to have it run as one, call it *.wasm, or set the annotation \
             run.oci.handler=wasm)",
        ),
        Err(Refusal::Component) => Some(
            " (it is a WebAssembly component, which WasmEdge can't run; build a module, for wasm32-wasi (wasm32-wasip1))",
        ),
        Err(Refusal::Text) => Some(" (it is WebAssembly text: assemble it first, for example with wat2wasm)"),
        _ => None,
    }
}

/// The last `PATH` of an environment: of several equal names, runc lets the last one win.
pub fn search_path(env: &[String]) -> &str {
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or("")
}

/// Finds the program as this process, with its root, cwd and credentials, sees it.
fn look_up(program: &str, search: &str) -> Result<String, Error> {
    let refuse = |cause: String| Error::Program {
        program: program.to_owned(),
        cause,
    };
    if program.contains('/') {
        return executable(program).map(|()| program.to_owned()).map_err(refuse);
    }
    if !program.is_empty() && !search.is_empty() {
        for dir in search.split(':') {
            let path = if dir.is_empty() {
                program.to_owned()
            } else {
                format!("{}/{program}", dir.trim_end_matches('/'))
            };
            if executable(&path).is_ok() {
                // A PATH that leads into the working directory is refused by runc (Go 1.19), not skipped.
                return if path.starts_with('/') {
                    Ok(path)
                } else {
                    Err(refuse(
                        "cannot run executable found relative to current directory".to_owned(),
                    ))
                };
            }
        }
    }
    Err(refuse("executable file not found in $PATH".to_owned()))
}

/// Whether `path` could be executed; if not, why, in Go's words.
fn executable(path: &str) -> Result<(), String> {
    let facts = stat(path).map_err(|errno| format!("stat {path}: {}", words(errno)))?;
    if SFlag::from_bits_truncate(facts.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR {
        return Err(words(Errno::EISDIR));
    }
    // With the effective ids, which also sees `noexec` mounts and access control lists.
    match faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS) {
        Ok(()) => Ok(()),
        // A seccomp filter may refuse faccessat2(2) with EPERM; the mode bits are then all there is.
        Err(Errno::ENOSYS | Errno::EPERM) if facts.st_mode & 0o111 != 0 => Ok(()),
        Err(Errno::ENOSYS | Errno::EPERM) => Err(words(Errno::EACCES)),
        Err(errno) => Err(words(errno)),
    }
}

fn c_strings(field: &'static str, values: &[String]) -> Result<Vec<CString>, Error> {
    values
        .iter()
        .enumerate()
        .map(|(index, value)| c_string(field, index, value))
        .collect()
}

pub(crate) fn c_string(field: &'static str, index: usize, value: &str) -> Result<CString, Error> {
    CString::new(value).map_err(|_| Error::Nul { field, index })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A directory of this test's own, removed at the end.
    struct Dir(std::path::PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("proa-native-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, mode: u32) -> String {
            let path = self.0.join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        }

        fn path(&self) -> &str {
            self.0.to_str().unwrap()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// What `run` says. The thread gets working directory and umask of its own first: during an execve the kernel lets no
    /// thread that shares them be made (EAGAIN; kernel/fork.c, `copy_fs`), and other tests make threads meanwhile.
    fn run(handler: &mut NativeHandler, guest: &Guest) -> String {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
        handler.run(guest, &mut || ()).to_string()
    }

    fn refusal(program: &str, search: &str) -> String {
        look_up(program, search).unwrap_err().to_string()
    }

    #[test]
    fn refusals_are_worded_as_runc_words_them() {
        let dir = Dir::new("words");
        let plain = dir.file("plain", 0o644);
        let root = dir.path();
        assert_eq!(refusal("foo", ""), r#"exec: "foo": executable file not found in $PATH"#);
        assert_eq!(
            refusal("foo", root),
            r#"exec: "foo": executable file not found in $PATH"#
        );
        assert_eq!(
            refusal("plain", root),
            r#"exec: "plain": executable file not found in $PATH"#
        );
        assert_eq!(refusal("", root), r#"exec: "": executable file not found in $PATH"#);
        let missing = format!("{root}/x");
        assert_eq!(
            refusal(&missing, ""),
            format!("exec: {missing:?}: stat {missing}: no such file or directory")
        );
        assert_eq!(refusal(&plain, ""), format!("exec: {plain:?}: permission denied"));
        assert_eq!(refusal(root, ""), format!("exec: {root:?}: is a directory"));
        let below = format!("{plain}/x");
        assert_eq!(
            refusal(&below, ""),
            format!("exec: {below:?}: stat {below}: not a directory")
        );
    }

    #[test]
    fn the_first_executable_of_the_path_is_taken() {
        let (first, second) = (Dir::new("first"), Dir::new("second"));
        first.file("tool", 0o644);
        let tool = second.file("tool", 0o755);
        let search = format!("/nonexistent:{}:{}", first.path(), second.path());
        assert_eq!(look_up("tool", &search).unwrap(), tool);
        assert_eq!(look_up(&tool, "").unwrap(), tool);
    }

    #[test]
    fn the_last_path_of_the_environment_counts() {
        let env = ["PATH=/a", "PATHS=/c", "PATH=/b", "X=PATH=/d"].map(str::to_owned);
        assert_eq!(search_path(&env), "/b");
        assert_eq!(search_path(&[]), "");
    }

    #[test]
    fn a_nul_byte_is_refused_with_its_place() {
        let error = c_strings("process.env", &["A=1".to_owned(), "B=\0".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "process.env[1] contains a NUL byte");
    }

    #[test]
    fn errors_of_execve_name_the_program() {
        let dir = Dir::new("exec");
        let garbage = dir.file("garbage", 0o755);
        fs::write(&garbage, "\x7fELFgarbage").unwrap();
        let guest = Guest {
            policy: None,
            status: None,
            args: vec![garbage.clone()],
            cwd: "/".to_owned(),
            ..Guest::default()
        };
        let mut handler = NativeHandler::new();
        handler.check(&guest).unwrap();
        assert_eq!(run(&mut handler, &guest), format!("exec {garbage}: exec format error"));
    }

    #[test]
    fn what_the_kernel_cannot_execute_gets_a_hint_if_it_is_webassembly() {
        let dir = Dir::new("hint");
        let cases: [(&[u8], Option<&str>); 5] = [
            (b"\0asm\x01\0\0\0", Some("run.oci.handler=wasm")),
            (b"\0asm\x0d\0\x01\0", Some("component")),
            (b"(module)", Some("wat2wasm")),
            (b"\x7fELFgarbage", None),
            (b"", None),
        ];
        for (content, hint) in cases {
            let program = dir.file("program", 0o755);
            fs::write(&program, content).unwrap();
            let guest = Guest {
                args: vec![program.clone()],
                ..Guest::default()
            };
            let text = run(&mut NativeHandler::new(), &guest);
            let words = format!("exec {program}: exec format error");
            assert!(text.starts_with(&words), "{text}");
            match hint {
                Some(hint) => assert!(text.contains(hint), "{text}"),
                None => assert_eq!(text, words),
            }
        }
    }
}
