//! The configuration file of a node's administrator, TOML: `--config FILE`, or `/etc/proa/config.toml` if there is one.
//!
//! It is the ceiling for what a container's annotations ask for ([`super::annotations`]): those may narrow what it allows,
//! and only those that it lists are heeded at all.

use super::units;
use crate::host;
use proa_executor::policy::{Aot, Preopens, Rule};
use proa_executor::recognise::Detect;
use rustix::fs::OFlags;
use serde::{Deserialize, Deserializer};
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the file is looked for without `--config`.
pub const DEFAULT_PATH: &str = "/etc/proa/config.toml";

/// No configuration is longer.
const SIZE_MAX: u64 = 1 << 20;
/// Whom files seem to belong to whose owner a user namespace has no number for (`/proc/sys/kernel/overflowuid`).
const OVERFLOW_UID: u32 = 65534;

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("configuration file {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others than the administrator may write to it, as sudo(8) and sshd(8) refuse theirs.
    #[error("configuration file {path}: {problem}: it is not used; `chown root {path} && chmod go-w {path}` if its content is right",
            path = path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// Who may.
        problem: String,
    },
    /// `--config` with nothing.
    #[error("--config: the name of the configuration file is empty")]
    Unnamed,
    /// It is not what it should be.
    #[error("configuration file {path}: {problem}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        problem: String,
    },
}

/// The file as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// The table `[wasm]`.
    pub wasm: Wasm,
}

/// `[wasm]`: which containers are Wasm, and with what they run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Wasm {
    /// Which containers are looked at for a Wasm entrypoint.
    pub detect: Detect,
    /// The directory that has `libwasmedge.so.0`; without it, see [`proa_executor::locate`].
    pub engine_dir: Option<PathBuf>,
    /// The annotations `proa.wasm/NAME` that containers may set, by NAME; without it, all of them.
    pub annotations: Option<Vec<String>>,
    /// Executed instructions are counted.
    pub count_instructions: bool,
    /// The table `[wasm.aot]`.
    pub aot: AotSettings,
    /// The table `[wasm.limits]`.
    pub limits: LimitSettings,
    /// The table `[wasm.files]`.
    pub files: FileSettings,
    /// The table `[wasm.network]`.
    pub network: NetworkSettings,
    /// The table `[wasm.plugins]`.
    pub plugins: PluginSettings,
}

/// `[wasm.aot]`: code compiled ahead of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AotSettings {
    /// When it is used and made.
    pub policy: Option<Aot>,
    /// The cache's directory (`--engine-cache` comes first).
    pub cache: Option<PathBuf>,
    /// The most bytes that the cache may have.
    #[serde(deserialize_with = "optional_bytes")]
    pub max_size: Option<u64>,
    /// Whether code that comes with an image may be run: it is native code.
    pub trust_image_code: bool,
    /// The longest that compiling one module may take.
    #[serde(deserialize_with = "optional_duration")]
    pub time_limit: Option<Duration>,
    /// The most bytes of memory that compiling one module may take.
    #[serde(deserialize_with = "optional_bytes")]
    pub memory_limit: Option<u64>,
    /// How many modules are compiled at the same time.
    pub compilers: Option<NonZeroU32>,
}

impl AotSettings {
    /// The most bytes that the cache may have.
    pub fn max_size(&self) -> u64 {
        self.max_size.unwrap_or(1 << 30)
    }

    /// How many compilers of one cache work at the same time; further ones wait for their turn.
    pub fn compilers(&self) -> NonZeroU32 {
        self.compilers.unwrap_or(const { NonZeroU32::new(2).unwrap() })
    }

    /// The longest that compiling one module may take: CPython for WASI takes five minutes of one processor.
    pub fn time_limit(&self) -> Duration {
        self.time_limit.unwrap_or(Duration::from_secs(15 * 60))
    }

    /// The most bytes of memory that compiling one module may take: CPython for WASI takes 2.2 GB.
    pub fn memory_limit(&self) -> u64 {
        self.memory_limit.unwrap_or(4 << 30)
    }
}

/// `[wasm.limits]`: ceilings; an annotation can lower them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LimitSettings {
    /// Wall-clock time.
    #[serde(deserialize_with = "optional_duration")]
    pub deadline: Option<Duration>,
    /// Time after SIGTERM or SIGINT.
    #[serde(deserialize_with = "optional_duration")]
    pub grace: Option<Duration>,
    /// Instructions.
    pub fuel: Option<u64>,
    /// Pages of 64 KiB of each memory.
    pub pages: Option<u64>,
    /// Elements of each table.
    pub table_elements: Option<u32>,
}

/// `[wasm.files]`: which directories guests are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FileSettings {
    /// Those that follow from the bundle.
    pub preopens: Preopens,
}

/// `[wasm.network]`: what guests' sockets may do; without a list, everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkSettings {
    /// Local addresses to bind and listen on.
    #[serde(deserialize_with = "listen_rules")]
    pub listen: Option<Vec<Rule>>,
    /// Remote addresses to connect and send to.
    #[serde(deserialize_with = "connect_rules")]
    pub connect: Option<Vec<Rule>>,
}

/// `[wasm.plugins]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PluginSettings {
    /// Plugins that containers may ask for, absolute paths of the host.
    pub allow: Vec<PathBuf>,
    /// Those that every Wasm container gets.
    pub load: Vec<PathBuf>,
}

impl Settings {
    /// Reads `given`, which must exist, or [`DEFAULT_PATH`], which need not.
    pub fn load(given: Option<&Path>) -> Result<Self, Error> {
        let path = given.unwrap_or(Path::new(DEFAULT_PATH));
        if path.as_os_str().is_empty() {
            return Err(Error::Unnamed);
        }
        match read(path) {
            Ok(Err(problem)) => Err(Error::Unsafe {
                path: path.to_owned(),
                problem,
            }),
            Ok(Ok(text)) => Self::parse(&text).map_err(|problem| Error::Parse {
                path: path.to_owned(),
                problem,
            }),
            Err(error) if error.kind() == ErrorKind::NotFound && given.is_none() => Ok(Self::default()),
            Err(source) => Err(Error::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let wasm = &settings.wasm;
        let paths = wasm.engine_dir.iter().map(|path| ("wasm.engine-dir", path));
        let paths = paths.chain(wasm.aot.cache.iter().map(|path| ("wasm.aot.cache", path)));
        let plugins = wasm.plugins.allow.iter().chain(&wasm.plugins.load);
        let mut paths = paths.chain(plugins.map(|path| ("wasm.plugins", path)));
        match paths.find(|(_, path)| !path.is_absolute()) {
            Some((key, path)) => Err(format!("{key}: {path:?} is not an absolute path")),
            None => Ok(settings),
        }
    }
}

/// The file's text, or why it is not trusted. What is asked of is what was opened, whatever the path comes to mean.
fn read(path: &Path) -> std::io::Result<Result<String, String>> {
    // Without waiting for a writer, should it be a fifo.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Ok(Err("it is not a regular file".into()));
    }
    if let Some(problem) = untrusted(&facts, nix::unistd::geteuid().as_raw(), host::in_user_namespace) {
        return Ok(Err(problem));
    }
    let mut text = String::new();
    match file.take(SIZE_MAX + 1).read_to_string(&mut text)? as u64 > SIZE_MAX {
        true => Ok(Err(format!("it is longer than {SIZE_MAX} bytes"))),
        false => Ok(Ok(text)),
    }
}

/// Who else than root and the caller may write to a file, if anybody.
fn untrusted(facts: &Metadata, euid: u32, in_user_namespace: impl Fn() -> bool) -> Option<String> {
    let owner = facts.uid();
    // In a user namespace, the host's root is among those that have no number: what belongs to them is out of the hands of all
    // that have one.
    if owner != 0 && owner != euid && !(owner == OVERFLOW_UID && in_user_namespace()) {
        return Some(format!("it belongs to user {owner}"));
    }
    let mode = facts.mode();
    (mode & 0o022 != 0).then(|| format!("its group or others may write to it (mode {:04o})", mode & 0o7777))
}

fn optional_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    units::duration(&text).map(Some).map_err(serde::de::Error::custom)
}

fn optional_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    units::bytes(&text).map(Some).map_err(serde::de::Error::custom)
}

fn listen_rules<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<Rule>>, D::Error> {
    optional_rules(from, true)
}

fn connect_rules<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<Rule>>, D::Error> {
    optional_rules(from, false)
}

fn optional_rules<'de, D: Deserializer<'de>>(from: D, listen: bool) -> Result<Option<Vec<Rule>>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let rules = units::rules(texts.iter().map(String::as_str), listen);
    rules.map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_understood() {
        let text = r#"
            [wasm]
            detect = "auto"
            engine-dir = "/opt/engine"
            annotations = ["deadline", "fuel"]
            count-instructions = true

            [wasm.aot]
            policy = "before-start"
            cache = "/srv/aot"
            max-size = "2GiB"
            trust-image-code = true
            time-limit = "5m"
            memory-limit = "1GiB"

            [wasm.limits]
            deadline = "30s"
            grace = "500ms"
            fuel = 1000000
            pages = 256
            table-elements = 10000

            [wasm.files]
            preopens = "mounts"

            [wasm.network]
            listen = ["tcp:*:8080"]
            connect = []

            [wasm.plugins]
            allow = ["/usr/lib/wasmedge/libwasmedgePluginWasiNN.so"]
            load = ["/usr/lib/wasmedge/libwasmedgePluginOther.so"]
        "#;
        let wasm = Settings::parse(text).unwrap().wasm;
        assert_eq!(wasm.detect, Detect::Auto);
        assert_eq!(wasm.aot.policy, Some(Aot::BeforeStart));
        assert_eq!(wasm.aot.max_size(), 2 << 30);
        assert_eq!(wasm.aot.time_limit(), Duration::from_secs(300));
        assert_eq!(wasm.aot.memory_limit(), 1 << 30);
        assert_eq!(wasm.limits.deadline, Some(Duration::from_secs(30)));
        assert_eq!(wasm.limits.grace, Some(Duration::from_millis(500)));
        assert_eq!(wasm.files.preopens, Preopens::Mounts);
        assert_eq!(wasm.network.connect, Some(vec![]));
        assert_eq!(wasm.plugins.allow.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("[wasm]\ndetekt = \"auto\"", "detekt"),
            ("[wasm]\ndetect = \"maybe\"", "maybe"),
            ("[wasm.limits]\ndeadline = \"soon\"", "soon"),
            ("[wasm.aot]\ncache = \"aot\"", "wasm.aot.cache"),
            ("[wasm.network]\nconnect = [\"tcp:here:80\"]", "tcp:here:80"),
            ("[wasm.network]\nlisten = [\"dns\"]", "listen"),
            ("[wasm", "1"),
        ];
        for (text, named) in cases {
            let problem = Settings::parse(text).unwrap_err();
            assert!(problem.contains(named), "{text}: {problem}");
        }
    }

    #[test]
    fn what_others_may_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("proa-settings-{}", std::process::id()));
        std::fs::write(&path, "[wasm]\ndetect = \"auto\"").unwrap();
        let mut results = Vec::new();
        for mode in [0o644, 0o600, 0o664, 0o646, 0o666] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            results.push((mode, Settings::load(Some(&path))));
        }
        let facts = path.metadata().unwrap();
        let owner = facts.uid();
        std::fs::remove_file(&path).unwrap();
        for (mode, result) in results {
            match mode & 0o022 {
                0 => assert_eq!(result.unwrap().wasm.detect, Detect::Auto, "{mode:o}"),
                _ => assert!(matches!(result, Err(Error::Unsafe { .. })), "{mode:o}"),
            }
        }
        if owner == 0 {
            // Then it is nobody's who is not trusted, whoever calls.
            assert!(untrusted(&facts, 1000, || false).is_some(), "mode 0666");
        }
    }

    #[test]
    fn a_file_of_another_user_is_not_used() {
        let own = std::env::current_exe().unwrap().metadata().unwrap();
        let owner = own.uid();
        if own.mode() & 0o022 == 0 {
            assert_eq!(untrusted(&own, owner, || false), None);
            if owner != 0 {
                assert!(untrusted(&own, owner + 1, || false).is_some());
            }
        }
    }

    #[test]
    fn what_is_no_file_is_refused_and_nothing_waits_for_it() {
        let words = |path: &str| Settings::load(Some(Path::new(path))).unwrap_err().to_string();
        assert!(words("/dev/null").contains("not a regular file"));
        assert!(words("/").contains("configuration file /: "));
        assert!(words("").starts_with("--config: "));
    }

    #[test]
    fn a_default_file_need_not_exist_and_a_named_one_must() {
        assert!(Settings::load(Some(Path::new("/nowhere/config.toml"))).is_err());
    }
}
