use super::*;
use nix::libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO};
use rustix::fs::CWD;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

fn c(path: impl AsRef<str>) -> CString {
    CString::new(path.as_ref()).unwrap()
}

fn opened(path: impl AsRef<str>, flags: c_int) -> Result<OwnedFd, Errno> {
    judged(CWD, &c(path), flags | libc::O_CLOEXEC, 0o644)
}

/// Runs the test with openat2(2), and in a thread without it.
fn both_ways(test: fn()) {
    test();
    let without = std::thread::spawn(move || {
        let instruction = |code: u32, equal: u8, other: u8, value: u32| {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&(code as u16).to_ne_bytes());
            (bytes[2], bytes[3]) = (equal, other);
            bytes[4..].copy_from_slice(&value.to_ne_bytes());
            bytes
        };
        let filter = [
            instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
            instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, libc::SYS_openat2 as u32),
            instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
            instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
        ];
        nix::sys::prctl::set_no_new_privs().unwrap();
        proa_sys::security::seccomp_install(0, filter.as_flattened()).unwrap();
        test();
    });
    without.join().unwrap();
}

#[test]
fn the_engine_is_not_opened() {
    both_ways(|| {
        let refused = [
            ("/proc/self/mem", libc::O_RDWR),
            ("/proc/self/mem", libc::O_RDONLY),
            ("/proc/thread-self/mem", libc::O_WRONLY),
            ("/proc/self/environ", libc::O_RDONLY),
            ("/proc/self/maps", libc::O_RDONLY),
            ("/proc/self/comm", libc::O_WRONLY),
            ("/proc/self/comm", libc::O_RDONLY | libc::O_TRUNC),
            ("/proc/self/fd", libc::O_RDONLY | libc::O_DIRECTORY),
            ("/proc/self/fd/", O_PATH | libc::O_DIRECTORY),
            ("/proc/self/exe", libc::O_RDONLY),
            ("/proc/self/root/etc/passwd", libc::O_RDONLY),
            ("/proc/self/cwd", O_PATH),
            ("/sys/kernel/profiling", libc::O_WRONLY),
        ];
        for (path, flags) in refused {
            assert!(opened(path, flags).is_err(), "{path} {flags:#x}");
        }
        // Through a directory, and by a name that is not its own.
        let process = opened(format!("/proc/{}", std::process::id()), O_PATH | libc::O_DIRECTORY).unwrap();
        for name in ["mem", "./mem", "task/../mem"] {
            let found = judged(std::os::fd::AsFd::as_fd(&process), &c(name), libc::O_RDWR, 0);
            assert_eq!(found.unwrap_err(), Errno::ACCESS, "{name}");
        }
    });
}

#[test]
fn what_everybody_may_read_is_opened() {
    both_ways(|| {
        for path in [
            "/proc/meminfo",
            "/proc/cpuinfo",
            "/proc/sys/kernel/ostype",
            "/sys/kernel/mm",
        ] {
            assert!(opened(path, libc::O_RDONLY).is_ok(), "{path}");
        }
        let own = format!("/proc/{}/status", std::process::id());
        assert!(opened(own, libc::O_RDONLY | libc::O_NOFOLLOW).is_ok());
        assert_eq!(opened("/proc/no-such-file", libc::O_RDWR).unwrap_err(), Errno::NOENT);
    });
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let id = rustix::thread::gettid().as_raw_nonzero();
        let dir = std::env::temp_dir().join(format!("proa-opens-{name}-{id}"));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn files_of_storage_are_as_ever() {
    both_ways(|| {
        let dir = Dir::new("storage");
        let file = dir.path("file");
        let make = libc::O_WRONLY | O_CREAT;
        drop(opened(&file, make | libc::O_EXCL).unwrap());
        assert_eq!(opened(&file, make | libc::O_EXCL).unwrap_err(), Errno::EXIST);
        fs::write(&file, "content").unwrap();
        drop(opened(&file, libc::O_RDWR).unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"content");
        drop(opened(&file, make | O_TRUNC).unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"");
        // What has no length is opened with O_TRUNC as well.
        drop(opened("/dev/null", libc::O_WRONLY | O_TRUNC).unwrap());
        assert_eq!(opened(dir.0.to_str().unwrap(), libc::O_RDWR).unwrap_err(), Errno::ISDIR);
        assert_eq!(opened(dir.path("file/x"), libc::O_RDONLY).unwrap_err(), Errno::NOTDIR);
        symlink(&file, dir.path("link")).unwrap();
        let link = opened(dir.path("link"), libc::O_RDONLY | libc::O_NOFOLLOW);
        assert_eq!(link.unwrap_err(), Errno::LOOP);
        assert!(opened("/", libc::O_RDONLY | libc::O_DIRECTORY).is_ok());
        assert!(opened(".", libc::O_RDONLY | libc::O_DIRECTORY).is_ok());
    });
}

#[test]
fn the_mode_of_a_file_is_the_callers() {
    let dir = Dir::new("mode");
    let file = opened(dir.path("file"), libc::O_WRONLY | O_CREAT).unwrap();
    assert_eq!(fstat(&file).unwrap().st_mode & 0o7000, 0);
    assert_eq!(fstat(&file).unwrap().st_mode & 0o700, 0o600);
}

#[test]
fn links_of_storage_lead_as_ever() {
    let dir = Dir::new("links");
    fs::write(dir.path("file"), "content").unwrap();
    symlink("file", dir.path("link")).unwrap();
    assert!(opened(dir.path("link"), libc::O_RDONLY).is_ok());
    symlink("/proc/self/environ", dir.path("out")).unwrap();
    assert!(opened(dir.path("out"), libc::O_RDONLY).is_err());
}

#[test]
fn nothing_is_made_or_removed_in_the_kernels_directories() {
    both_ways(|| {
        let dir = Dir::new("kernels");
        for path in ["/proc/x", "/proc/self/x/", "/sys/fs/x"] {
            assert!(is_kernels(CWD, &c(path)), "{path}");
        }
        for name in ["x", "x/", "./x"] {
            assert!(!is_kernels(CWD, &c(dir.path(name))), "{name}");
        }
        let proc = opened("/proc", O_PATH | libc::O_DIRECTORY).unwrap();
        assert!(is_kernels(std::os::fd::AsFd::as_fd(&proc), c"x"));
        let own = opened(dir.0.to_str().unwrap(), O_PATH | libc::O_DIRECTORY).unwrap();
        assert!(!is_kernels(std::os::fd::AsFd::as_fd(&own), c"x"));
    });
}
