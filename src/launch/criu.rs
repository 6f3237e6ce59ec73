//! What `checkpoint` and `restore` have in common: the images' directories, CRIU's options, and how a failure is told.

use super::Error;
use crate::config::Config;
use crate::criu::{self, log, rpc};
use crate::namespace::Kind;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The annotation with a configuration file for CRIU; empty for none.
const CONFIG_ANNOTATION: &str = "org.criu.config";
/// Where it is without the annotation: ours, or the one that there is for runc.
const CONFIG_FILES: [&str; 2] = ["/etc/criu/proa.conf", "/etc/criu/runc.conf"];
/// What is known to CRIU's RPC at all.
const OLDEST: u32 = 30_000;

/// The flags that both verbs have.
#[derive(Clone, Debug)]
pub struct CriuOptions {
    /// `--image-path`, absolute.
    pub image_path: PathBuf,
    /// `--work-path`, absolute: where CRIU's log goes, if not beside the images.
    pub work_path: Option<PathBuf>,
    /// `--tcp-established`
    pub tcp_established: bool,
    /// `--ext-unix-sk`
    pub ext_unix_sk: bool,
    /// `--shell-job`
    pub shell_job: bool,
    /// `--file-locks`
    pub file_locks: bool,
    /// `--manage-cgroups-mode`
    pub cgroups: rpc::CgroupMode,
    /// `--auto-dedup`
    pub auto_dedup: bool,
    /// `--lazy-pages`
    pub lazy_pages: bool,
}

/// The directories that CRIU reads and writes, open for it, and its log.
#[derive(Debug)]
pub struct Directories {
    images: OwnedFd,
    work: Option<OwnedFd>,
    log: PathBuf,
}

impl Directories {
    /// Opens them. The one for the images is made if it is to be written to, the one for the log in any case.
    pub fn open(options: &CriuOptions, log: &str, write: bool) -> Result<Self, Error> {
        let make = |path: &Path| {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(Error::path("mkdir", path))
        };
        if write {
            make(&options.image_path)?;
        }
        if let Some(path) = &options.work_path {
            make(path)?;
        }
        let directory = options.work_path.as_ref().unwrap_or(&options.image_path);
        Ok(Self {
            images: open(&options.image_path)?,
            work: options.work_path.as_deref().map(open).transpose()?,
            log: directory.join(log),
        })
    }

    /// The same, for a CRIU in the mount namespace that this process is in by now: CRIU mounts things in them.
    pub fn reopen(&self, options: &CriuOptions) -> Result<Self, Error> {
        Ok(Self {
            images: open(&options.image_path)?,
            work: options.work_path.as_deref().map(open).transpose()?,
            log: self.log.clone(),
        })
    }

    /// Lets CRIU find them: by their numbers in this process.
    pub fn name(&self, opts: &mut rpc::Options) {
        opts.images_dir_fd = self.images.as_raw_fd();
        opts.work_dir_fd = self.work.as_ref().map(AsRawFd::as_raw_fd);
    }

    /// CRIU's options as far as they are the same for both verbs.
    pub fn request(&self, options: &CriuOptions, config: &Config, log: &str) -> rpc::Options {
        let mut opts = rpc::Options {
            log_level: Some(4),
            log_file: Some(log.to_owned()),
            config_file: config_file(config),
            notify_scripts: Some(true),
            orphan_pts_master: Some(true),
            // What releases before the mode know.
            manage_cgroups: Some(true),
            manage_cgroups_mode: Some(options.cgroups.into()),
            shell_job: Some(options.shell_job),
            tcp_established: Some(options.tcp_established),
            ext_unix_sk: Some(options.ext_unix_sk),
            file_locks: Some(options.file_locks),
            auto_dedup: Some(options.auto_dedup),
            lazy_pages: Some(options.lazy_pages),
            // The network is the caller's to set up, before and after.
            empty_ns: Some(libc::CLONE_NEWNET as u32),
            ..rpc::Options::default()
        };
        self.name(&mut opts);
        opts
    }

    /// Adds to a failure of CRIU's what its log says.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Criu(error @ (criu::Error::Failed { .. } | criu::Error::Gone(_) | criu::Error::Status(_))) => {
                // What CRIU answers is the first complaint of its log, and need not be the cause.
                let said = match &error {
                    criu::Error::Failed { message, .. } => message.clone(),
                    _ => None,
                };
                let cause = log::quote(&self.log).or(said);
                Error::CriuLog {
                    cause: cause.map_or(String::new(), |cause| format!(": {cause}")),
                    log: self.log.clone(),
                    error,
                }
            }
            other => other,
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::path("open", path)(errno.into()))
}

/// CRIU's version, if it is one that can be spoken to.
pub fn version() -> Result<u32, Error> {
    let version = criu::version()?;
    at_least(version, OLDEST, "")?;
    Ok(version)
}

/// Refuses a CRIU that is too old for `what`.
pub fn at_least(version: u32, needed: u32, what: &'static str) -> Result<(), Error> {
    if version < needed {
        return Err(criu::Error::TooOld { what, version, needed }.into());
    }
    Ok(())
}

/// Makes sure that CRIU can leave a namespace of that kind alone and find it again at a restore; `when` is which of the two.
pub fn require_external(version: u32, kind: Kind, when: &'static str) -> Result<(), Error> {
    let supported = match kind {
        Kind::Network => version >= 31_100,
        Kind::Pid => version >= 31_500,
        _ => false,
    };
    supported.then_some(()).ok_or(Error::ExternalNamespace {
        kind: kind.file_name(),
        when,
    })
}

/// What an outside namespace is called in the images; runc's names.
pub fn external_key(kind: Kind) -> String {
    let name = kind.file_name();
    format!("extRoot{}{}NS", name[..1].to_uppercase(), &name[1..])
}

/// A path as a protocol buffer's string.
pub fn text(path: &Path) -> Result<String, Error> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::path("use", path)(Errno::EILSEQ.into()))
}

fn config_file(config: &Config) -> Option<String> {
    let annotations = config.spec.annotations().as_ref();
    match annotations.and_then(|all| all.get(CONFIG_ANNOTATION)) {
        Some(file) => Some(file.clone()).filter(|file| !file.is_empty()),
        None => {
            let there = CONFIG_FILES.iter().find(|path| Path::new(path).exists());
            Some((*there.unwrap_or(&CONFIG_FILES[1])).to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_outside_namespaces_are_runcs() {
        assert_eq!(external_key(Kind::Network), "extRootNetNS");
        assert_eq!(external_key(Kind::Pid), "extRootPidNS");
    }

    #[test]
    fn the_annotation_decides_on_crius_configuration() {
        let config = |annotations: serde_json::Value| {
            let raw = serde_json::json!({"ociVersion": "1.0.0", "annotations": annotations}).to_string();
            config_file(&Config::parse(raw.into_bytes(), Path::new("config.json")).unwrap())
        };
        assert_eq!(config(serde_json::json!({CONFIG_ANNOTATION: "/x"})).unwrap(), "/x");
        assert_eq!(config(serde_json::json!({CONFIG_ANNOTATION: ""})), None);
        assert!(config(serde_json::json!({})).unwrap().starts_with("/etc/criu/"));
    }
}
