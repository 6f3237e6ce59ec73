//! `proa checkpoint`, and the flags that `proa restore` shares with it.

use super::{Error, Globals, absolute, absolute_option};
use crate::criu::rpc::CgroupMode;
use crate::launch::{self, CheckpointOptions, CriuOptions};
use std::path::{Path, PathBuf};

/// Why a flag can't be used. Words are runc's.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    #[error("--parent-path must be relative")]
    AbsoluteParent,
    #[error("invalid --parent-path: stat {path}: {source}", path = path.display())]
    Parent { path: PathBuf, source: std::io::Error },
    #[error("Use --page-server ADDRESS:PORT to specify page server")]
    PageServer,
    #[error("Invalid port number")]
    Port,
    #[error("namespace {0:?} is not supported")]
    EmptyNamespace(String),
    #[error("invalid manage-cgroups-mode value")]
    Cgroups,
}

/// The flags of both verbs.
#[derive(clap::Args, Debug)]
pub struct CommonArgs {
    /// Path to criu image files (default: "checkpoint" in the current directory)
    #[arg(long, value_name = "value")]
    image_path: Option<PathBuf>,
    /// Path for saving work files and logs
    #[arg(long, value_name = "value")]
    work_path: Option<PathBuf>,
    /// Allow open tcp connections
    #[arg(long)]
    tcp_established: bool,
    /// Allow external unix sockets
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow shell jobs
    #[arg(long)]
    shell_job: bool,
    /// Use userfaultfd to lazily restore memory pages
    #[arg(long)]
    lazy_pages: bool,
    /// Handle file locks, for safety
    #[arg(long)]
    file_locks: bool,
    /// Cgroups mode: soft|full|strict|ignore (default: soft)
    #[arg(long, value_name = "value")]
    manage_cgroups_mode: Option<String>,
    /// Create a namespace, but don't restore its properties
    #[arg(long, value_name = "value")]
    empty_ns: Vec<String>,
    /// Enable auto deduplication of memory images
    #[arg(long)]
    auto_dedup: bool,
}

impl CommonArgs {
    pub(super) fn resolve(self) -> Result<CriuOptions, Error> {
        // The network namespace is left empty whether or not it is asked for, as with runc.
        if let Some(other) = self.empty_ns.iter().find(|name| *name != "network") {
            return Err(CriuError::EmptyNamespace(other.clone()).into());
        }
        let image_path = self.image_path.filter(|path| !path.as_os_str().is_empty());
        Ok(CriuOptions {
            image_path: absolute(&image_path.unwrap_or_else(|| "checkpoint".into()))?,
            work_path: absolute_option(self.work_path)?,
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            cgroups: cgroup_mode(self.manage_cgroups_mode.as_deref().unwrap_or_default())?,
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
        })
    }
}

fn cgroup_mode(name: &str) -> Result<CgroupMode, CriuError> {
    Ok(match name {
        "" => CgroupMode::Default,
        "soft" => CgroupMode::Soft,
        "full" => CgroupMode::Full,
        "strict" => CgroupMode::Strict,
        "ignore" => CgroupMode::Ignore,
        _ => return Err(CriuError::Cgroups),
    })
}

/// runc's flags.
#[derive(clap::Args, Debug)]
pub struct CheckpointArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Path for previous criu image files in pre-dump
    #[arg(long, value_name = "value")]
    parent_path: Option<PathBuf>,
    /// Leave the process running after checkpointing
    #[arg(long)]
    leave_running: bool,
    /// Skip in-flight tcp connections
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Allow one to link unlinked files back when possible
    #[arg(long)]
    link_remap: bool,
    /// Criu writes \0 to this FD once lazy-pages is ready
    #[arg(long, value_name = "value", default_value_t = -1)]
    status_fd: i32,
    /// ADDRESS:PORT of the page server
    #[arg(long, value_name = "value")]
    page_server: Option<String>,
    /// Dump container's memory information only, leave the container running after this
    #[arg(long)]
    pre_dump: bool,
    #[arg(value_name = "container-id")]
    container_id: String,
}

pub(super) fn run(globals: &Globals, args: CheckpointArgs) -> Result<u8, Error> {
    let criu = args.common.resolve()?;
    let page_server = args.page_server.as_deref().filter(|text| !text.is_empty());
    let options = CheckpointOptions {
        parent_path: parent(args.parent_path, &criu.image_path)?,
        leave_running: args.leave_running,
        tcp_skip_in_flight: args.tcp_skip_in_flight,
        link_remap: args.link_remap,
        pre_dump: args.pre_dump,
        page_server: page_server.map(address).transpose()?,
        status_fd: Some(args.status_fd).filter(|fd| *fd != -1),
        rootless: globals.rootless,
    };
    launch::checkpoint(&globals.store, &args.container_id, &criu, &options)?;
    Ok(0)
}

/// `--parent-path`, which CRIU follows from the images' directory.
fn parent(path: Option<PathBuf>, images: &Path) -> Result<Option<String>, CriuError> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(None);
    };
    if path.is_absolute() {
        return Err(CriuError::AbsoluteParent);
    }
    // The images' directory may be yet to come: `..` is taken by its letters, as with runc.
    let mut there = images.to_path_buf();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(there.pop()),
            part => there.push(part),
        }
    }
    let failed = |source| CriuError::Parent {
        path: there.clone(),
        source,
    };
    if !std::fs::metadata(&there).map_err(failed)?.is_dir() {
        return Err(failed(std::io::ErrorKind::NotADirectory.into()));
    }
    // The command line is UTF-8 throughout.
    Ok(Some(path.to_string_lossy().into_owned()))
}

/// `ADDRESS:PORT`; an IPv6 address is in brackets.
fn address(text: &str) -> Result<(String, u16), CriuError> {
    let (address, port) = text.rsplit_once(':').ok_or(CriuError::PageServer)?;
    let bare = match address.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(inside) => inside.ok_or(CriuError::PageServer)?,
        None if address.contains(':') => return Err(CriuError::PageServer),
        None => address,
    };
    if bare.is_empty() || port.is_empty() {
        return Err(CriuError::PageServer);
    }
    Ok((bare.to_owned(), port.parse().map_err(|_| CriuError::Port)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        assert_eq!(address("0.0.0.0:27277").unwrap(), ("0.0.0.0".into(), 27277));
        assert_eq!(address("[::1]:1").unwrap(), ("::1".into(), 1));
        for bad in ["", "host", ":1", "host:", "::1:1", "[::1:1"] {
            let said = address(bad).unwrap_err().to_string();
            assert_eq!(said, "Use --page-server ADDRESS:PORT to specify page server", "{bad}");
        }
        assert_eq!(address("host:x").unwrap_err().to_string(), "Invalid port number");
        assert_eq!(address("host:65536").unwrap_err().to_string(), "Invalid port number");
    }

    #[test]
    fn a_parent_is_beside_the_images() {
        assert!(matches!(parent(None, Path::new("/x")), Ok(None)));
        let absolute = parent(Some("/tmp".into()), Path::new("/x")).unwrap_err();
        assert_eq!(absolute.to_string(), "--parent-path must be relative");
        let missing = parent(Some("../nowhere".into()), Path::new("/x"))
            .unwrap_err()
            .to_string();
        assert!(
            missing.starts_with("invalid --parent-path: stat /nowhere: "),
            "{missing}"
        );
        // The images' own directory need not be there yet.
        assert_eq!(
            parent(Some("../tmp".into()), Path::new("/x")).unwrap().unwrap(),
            "../tmp"
        );
    }

    #[test]
    fn cgroup_modes_are_runcs() {
        assert_eq!(cgroup_mode("").unwrap(), CgroupMode::Default);
        assert_eq!(cgroup_mode("strict").unwrap(), CgroupMode::Strict);
        assert_eq!(
            cgroup_mode("x").unwrap_err().to_string(),
            "invalid manage-cgroups-mode value"
        );
    }
}
