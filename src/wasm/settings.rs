//! The configuration file of a node's administrator, TOML: `--config FILE`, or `/etc/proa/config.toml` if there is one.
//!
//! It is the ceiling for what a container's annotations ask for ([`super::annotations`]): those may narrow what it allows,
//! and only those that it lists are heeded at all.

use super::units;
use proa_executor::policy::{Aot, Preopens, Rule};
use serde::{Deserialize, Deserializer};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the file is looked for without `--config`.
pub const DEFAULT_PATH: &str = "/etc/proa/config.toml";

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

/// `wasm.detect`: how an entrypoint without an annotation is recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Detect {
    /// Not at all: annotations alone decide.
    Annotation,
    /// If the name of the entrypoint ends in `.wasm` and its content is WebAssembly.
    #[default]
    Name,
    /// If its content is WebAssembly, whatever its name is.
    Auto,
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
}

impl AotSettings {
    /// The most bytes that the cache may have.
    pub fn max_size(&self) -> u64 {
        self.max_size.unwrap_or(1 << 30)
    }

    /// The longest that compiling one module may take: CPython for WASI takes some four minutes of a slow machine.
    pub fn time_limit(&self) -> Duration {
        self.time_limit.unwrap_or(Duration::from_secs(15 * 60))
    }

    /// The most bytes of memory that compiling one module may take: CPython for WASI takes less than half of that.
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
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|problem| Error::Parse {
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
    fn a_default_file_need_not_exist_and_a_named_one_must() {
        assert!(Settings::load(Some(Path::new("/nowhere/config.toml"))).is_err());
    }
}
