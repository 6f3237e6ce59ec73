//! `proa exec`.

use super::{Error, Globals, absolute_option, preserve_fds};
use crate::config::{self, Config};
use crate::launch::{self, ExecOptions};
use crate::state::Action;
use crate::wasm::Settings;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};
use std::path::PathBuf;

/// liboci-cli's struct refuses what runc takes (`--env NAME` without `=`, a second `--cgroup`), and lacks `-c` and
/// `--pidfd-socket`.
#[derive(clap::Args, Debug)]
pub struct ExecArgs {
    /// Path to an AF_UNIX socket which will receive the master end of the console's pseudoterminal
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// Path to an AF_UNIX socket which will receive a file descriptor referencing the exec process
    #[arg(long)]
    pidfd_socket: Option<PathBuf>,
    /// Current working directory in the container
    #[arg(long)]
    cwd: Option<PathBuf>,
    /// Set environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// UID (format: <uid>[:<gid>])
    #[arg(short, long)]
    user: Option<String>,
    /// Additional gids
    #[arg(short = 'g', long)]
    additional_gids: Vec<i64>,
    /// Path to the process.json
    #[arg(short, long)]
    process: Option<PathBuf>,
    /// Detach from the container's process
    #[arg(short, long)]
    detach: bool,
    /// Specify the file to write the process id to
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Set the asm process label for the process commonly used with selinux
    #[arg(long)]
    process_label: Option<String>,
    /// Set the apparmor profile for the process
    #[arg(long)]
    apparmor: Option<String>,
    /// Set the no new privileges value for the process
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_new_privs: Option<bool>,
    /// Add a capability to the bounding set for the process
    #[arg(short, long)]
    cap: Vec<String>,
    /// Pass N additional file descriptors to the container (stdio + N in total)
    #[arg(long, default_value = "0")]
    preserve_fds: i32,
    /// Run the process in an (existing) sub-cgroup(s). Format is [<controller>:]<cgroup>
    #[arg(long)]
    cgroup: Vec<String>,
    /// Allow exec in a paused container
    #[arg(long)]
    ignore_paused: bool,
    /// The container
    container_id: String,
    /// What to run in it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What is wrong with the flags that describe the process. Worded as runc words it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// Neither a command nor `--process`.
    #[error("exec args cannot be empty")]
    NoCommand,
    /// `--user`.
    #[error("bad uid: {0:?}")]
    Uid(String),
    /// `--user`.
    #[error("bad gid: {0:?}")]
    Gid(String),
    /// `--additional-gids`.
    #[error("additional-gids must be a positive number {0}")]
    AdditionalGid(i64),
    /// `--cgroup ,x:/path`.
    #[error("invalid --cgroup argument: {0} (empty <controller> prefix)")]
    NoController(String),
    /// A controller with two paths.
    #[error("invalid --cgroup argument(s): controller {0} specified multiple times")]
    Controller(String),
    /// Several paths, one without a controller.
    #[error("invalid --cgroup argument: {0} (missing <controller>: prefix)")]
    Prefix(String),
}

pub(super) fn run(globals: &Globals, args: ExecArgs) -> Result<u8, Error> {
    exec(globals, args).map_err(|error| Error::Exec(Box::new(error)))
}

fn exec(globals: &Globals, args: ExecArgs) -> Result<u8, Error> {
    let container = globals.store.open(&args.container_id)?;
    container.require(Action::Exec {
        ignore_paused: args.ignore_paused,
    })?;
    let config = container.config()?;
    check_cgroups(&args.cgroup)?;
    let process = args.process(&config)?;
    // A probe of a Linux program has no use for the file, and is not to fail for it.
    let settings = match launch::may_be_module(process.args().as_deref().unwrap_or_default()) {
        true => globals.settings()?,
        false => Settings::default(),
    };
    let options = ExecOptions {
        process,
        console_socket: absolute_option(args.console_socket)?,
        pid_file: absolute_option(args.pid_file)?,
        pidfd_socket: absolute_option(args.pidfd_socket)?,
        detach: args.detach,
        preserve_fds: preserve_fds(args.preserve_fds)?,
        cgroup: args.cgroup,
        settings,
        driver: globals.driver,
        rootless: globals.rootless,
    };
    Ok(launch::exec(&globals.store, &container, &config, &options)?)
}

impl ExecArgs {
    /// The process of `--process`, or the container's with the flags' changes.
    fn process(&self, config: &Config) -> Result<Process, Error> {
        if let Some(path) = self.process.as_ref().filter(|path| !path.as_os_str().is_empty()) {
            return Ok(config::load_process(path)?);
        }
        let mut process = config.process()?.clone();
        if self.command.is_empty() {
            return Err(ProcessError::NoCommand.into());
        }
        process.set_args(Some(self.command.clone()));
        if let Some(cwd) = self.cwd.as_ref().filter(|cwd| !cwd.as_os_str().is_empty()) {
            process.set_cwd(cwd.clone());
        }
        if let Some(profile) = self.apparmor.as_ref().filter(|profile| !profile.is_empty()) {
            process.set_apparmor_profile(Some(profile.clone()));
        }
        if let Some(label) = self.process_label.as_ref().filter(|label| !label.is_empty()) {
            process.set_selinux_label(Some(label.clone()));
        }
        if !self.cap.is_empty() {
            let sets = process.capabilities().clone();
            process.set_capabilities(Some(with_capabilities(sets, &self.cap)));
        }
        process
            .env_mut()
            .get_or_insert_default()
            .extend(self.env.iter().cloned());
        process.set_terminal(Some(self.tty));
        if let Some(value) = self.no_new_privs {
            process.set_no_new_privileges(Some(value));
        }
        self.set_user(&mut process)?;
        config::check_process(&process)?;
        Ok(process)
    }

    fn set_user(&self, process: &mut Process) -> Result<(), ProcessError> {
        let user = process.user_mut();
        if let Some(text) = self.user.as_ref().filter(|text| !text.is_empty()) {
            let (uid, gid) = match text.split_once(':') {
                Some((uid, gid)) => (uid, Some(gid)),
                None => (text.as_str(), None),
            };
            if let Some(gid) = gid {
                user.set_gid(gid.parse().map_err(|_| ProcessError::Gid(gid.into()))?);
            }
            user.set_uid(uid.parse().map_err(|_| ProcessError::Uid(uid.into()))?);
        }
        for gid in &self.additional_gids {
            let gid = u32::try_from(*gid).map_err(|_| ProcessError::AdditionalGid(*gid))?;
            user.additional_gids_mut().get_or_insert_default().push(gid);
        }
        Ok(())
    }
}

/// Adds `names` to every set but the inheritable one; to the ambient set only if the container has an inheritable one,
/// since the kernel requires ambient capabilities to be inheritable (capabilities(7)).
fn with_capabilities(sets: Option<LinuxCapabilities>, names: &[String]) -> LinuxCapabilities {
    let mut added = Capabilities::new();
    for name in names {
        match serde_json::from_value::<Capability>(name.as_str().into()) {
            Ok(capability) => drop(added.insert(capability)),
            Err(_) => tracing::warn!("ignoring unknown or unavailable capabilities: [{name}]"),
        }
    }
    // The type's default is not the empty one.
    let mut sets = sets.unwrap_or_else(|| {
        let mut none = LinuxCapabilities::default();
        none.set_bounding(None)
            .set_effective(None)
            .set_inheritable(None)
            .set_permitted(None)
            .set_ambient(None);
        none
    });
    let with = |set: &Option<Capabilities>| Some(set.iter().flatten().chain(&added).copied().collect());
    let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    if sets.inheritable().is_some() {
        let ambient = with(sets.ambient());
        sets.set_ambient(ambient);
    }
    sets.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted);
    sets
}

/// Refuses what runc refuses of `--cgroup`, in its words.
fn check_cgroups(args: &[String]) -> Result<(), ProcessError> {
    let mut seen: Vec<&str> = Vec::new();
    for arg in args {
        let Some((controllers, _)) = arg.split_once(':') else {
            return if args.len() == 1 {
                Ok(())
            } else {
                Err(ProcessError::Prefix(arg.clone()))
            };
        };
        for controller in controllers.split(',') {
            if controller.is_empty() {
                return Err(ProcessError::NoController(arg.clone()));
            }
            if seen.contains(&controller) {
                return Err(ProcessError::Controller(controller.into()));
            }
            seen.push(controller);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;
    use std::path::Path;

    fn args(line: &[&str]) -> ExecArgs {
        let command = crate::cli::verb_command::<ExecArgs>("exec").no_binary_name(true);
        ExecArgs::from_arg_matches(&command.try_get_matches_from(line).unwrap()).unwrap()
    }

    fn config(process: &str) -> Config {
        Config::parse(format!(r#"{{"process":{process}}}"#).into_bytes(), Path::new("c")).unwrap()
    }

    const PROCESS: &str = r#"{"args":["init"],"cwd":"/","env":["A=1"],"terminal":true,"noNewPrivileges":true,
        "user":{"uid":5,"gid":6,"additionalGids":[7]},"capabilities":{"bounding":["CAP_KILL"]}}"#;

    #[test]
    fn flags_change_the_containers_process() {
        let line = [
            "--env=B=2",
            "--env=C",
            "--cwd=/tmp",
            "--user=1:2",
            "--additional-gids=8",
            "--no-new-privs=false",
        ];
        let args = args(&[&line[..], &["--", "c1", "sh", "-c", "x"]].concat());
        let process = args.process(&config(PROCESS)).unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["sh", "-c", "x"]);
        assert_eq!(process.env().as_ref().unwrap(), &["A=1", "B=2", "C"]);
        assert_eq!(process.cwd(), Path::new("/tmp"));
        assert_eq!((process.user().uid(), process.user().gid()), (1, 2));
        assert_eq!(process.user().additional_gids().as_ref().unwrap(), &[7, 8]);
        assert_eq!(process.terminal(), Some(false), "only --tty asks for a terminal");
        assert_eq!(process.no_new_privileges(), Some(false));
    }

    #[test]
    fn what_no_flag_names_stays() {
        let process = args(&["--tty", "--user=9", "--", "c1", "x"])
            .process(&config(PROCESS))
            .unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (9, 6));
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(process.terminal(), Some(true));
    }

    #[test]
    fn added_capabilities_are_ambient_only_if_some_are_inheritable() {
        let names = ["CAP_CHOWN".to_owned(), "CAP_NEWER_THAN_THIS".to_owned()];
        let sets = with_capabilities(config(PROCESS).process().unwrap().capabilities().clone(), &names);
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 2);
        assert!(sets.effective().as_ref().unwrap().contains(&Capability::Chown));
        assert!(sets.ambient().is_none() && sets.inheritable().is_none());
        let mut inheritable = sets.clone();
        inheritable.set_inheritable(Some(Capabilities::new()));
        let sets = with_capabilities(Some(inheritable), &names[..1]);
        assert!(sets.ambient().as_ref().unwrap().contains(&Capability::Chown));
        assert!(with_capabilities(None, &names).permitted().as_ref().unwrap().len() == 1);
    }

    #[test]
    fn bad_flags_are_refused_in_runcs_words() {
        let words = |line: &[&str]| args(line).process(&config(PROCESS)).unwrap_err().to_string();
        assert_eq!(words(&["--", "c1"]), "exec args cannot be empty");
        assert_eq!(words(&["--user=root", "--", "c1", "x"]), "bad uid: \"root\"");
        assert_eq!(words(&["--user=1:wheel", "--", "c1", "x"]), "bad gid: \"wheel\"");
        let gids = words(&["--additional-gids=-1", "--", "c1", "x"]);
        assert_eq!(gids, "additional-gids must be a positive number -1");
        assert_eq!(
            words(&["--cwd=tmp", "--", "c1", "x"]),
            "Cwd must be an absolute path: \"tmp\""
        );
    }

    #[test]
    fn sub_cgroups() {
        let check = |args: &[&str]| check_cgroups(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&["/sub"]), Ok(()));
        assert_eq!(check(&["cpu,cpuacct:/sub", "memory:/other"]), Ok(()));
        assert!(matches!(check(&["/a", "/b"]), Err(ProcessError::Prefix(_))));
        assert!(matches!(check(&["cpu:/a", "cpu:/a"]), Err(ProcessError::Controller(_))));
        assert!(matches!(check(&[",cpu:/a"]), Err(ProcessError::NoController(_))));
    }
}
