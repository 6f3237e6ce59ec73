//! The annotations `proa.wasm/NAME` of a container, and what becomes of them under the administrator's [`Settings`].
//!
//! An annotation narrows what the file allows: a limit can be lowered and not raised, preopens and addresses can become
//! fewer and not more. An annotation that the file does not admit, that nobody knows, or that has no meaning is an error
//! that names it: a limit that was asked for and silently isn't there is worse than a container that does not start.

use super::settings::{Settings, Wasm};
use super::{Mounts, units};
use proa_executor::policy::{Aot, Files, Limits, Network, Policy, Preopen, Preopens, Rule};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// What all keys begin with.
pub const PREFIX: &str = "proa.wasm/";

/// The names behind [`PREFIX`] and what each takes.
pub const NAMES: [(&str, &str); 12] = [
    ("aot", "off, use, background or before-start"),
    ("count-instructions", "true or false"),
    ("deadline", "wall-clock time, like 30s"),
    ("grace", "time after SIGTERM, like 5s"),
    ("fuel", "a number of instructions"),
    ("pages", "a number of memory pages of 64 KiB"),
    ("table-elements", "a number of elements of each table"),
    ("preopens", "root, mounts or nothing"),
    ("preopen", "DIRECTORY[:GUEST][:ro], separated by commas"),
    ("listen", "addresses, separated by commas"),
    ("connect", "addresses, separated by commas"),
    ("plugins", "paths of plugins, separated by commas"),
];

/// Why an annotation can't be heeded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such annotation.
    #[error("annotation {PREFIX}{0}: there is no such setting (there are: {names})", names = names())]
    Unknown(String),
    /// The administrator does not want it.
    #[error("annotation {PREFIX}{0}: not among the annotations that the configuration file admits (wasm.annotations)")]
    NotAdmitted(String),
    /// Its value has no meaning.
    #[error("annotation {PREFIX}{name}: {problem}")]
    Value {
        /// Which.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn names() -> String {
    NAMES.map(|(name, _)| name).join(", ")
}

/// The policy of one container with these mounts: what the file says, narrowed by the annotations.
pub fn policy(settings: &Settings, annotations: &HashMap<String, String>, mounts: Mounts) -> Result<Policy, Error> {
    let wasm = &settings.wasm;
    let mut policy = from_file(wasm, mounts);
    // In an order of its own, so that the same error is reported each time.
    let mut given: Vec<(&str, &str)> = annotations
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.as_str())))
        .collect();
    given.sort_unstable();
    for (name, value) in given {
        if !NAMES.iter().any(|(known, _)| *known == name) {
            return Err(Error::Unknown(name.to_owned()));
        }
        if wasm
            .annotations
            .as_ref()
            .is_some_and(|admitted| !admitted.iter().any(|one| one == name))
        {
            return Err(Error::NotAdmitted(name.to_owned()));
        }
        apply(&mut policy, wasm, name, value).map_err(|problem| Error::Value {
            name: name.to_owned(),
            problem,
        })?;
    }
    Ok(policy)
}

fn from_file(wasm: &Wasm, mounts: Mounts) -> Policy {
    let limits = wasm.limits;
    let network = &wasm.network;
    Policy {
        aot: wasm.aot.policy.unwrap_or_default(),
        aot_cache: wasm.aot.cache.clone(),
        trust_image_code: wasm.aot.trust_image_code,
        limits: Limits {
            deadline: limits.deadline,
            grace: limits.grace.unwrap_or_default(),
            fuel: limits.fuel,
            pages: limits.pages,
            table_elements: limits.table_elements,
        },
        files: Files {
            preopens: wasm.files.preopens,
            ceiling: wasm.files.preopens,
            named: Vec::new(),
            mounts: mounts.content,
            interfaces: mounts.interfaces,
        },
        network: Network {
            listen: network.listen.iter().cloned().collect(),
            connect: network.connect.iter().cloned().collect(),
        },
        plugins: wasm.plugins.load.clone(),
        count_instructions: wasm.count_instructions,
    }
}

fn apply(policy: &mut Policy, wasm: &Wasm, name: &str, value: &str) -> Result<(), String> {
    let limits = &mut policy.limits;
    match name {
        "aot" => {
            let asked = match value {
                "off" => Aot::Off,
                "use" => Aot::Use,
                "background" => Aot::Background,
                "before-start" => Aot::BeforeStart,
                _ => return Err(format!("{value:?} is none of off, use, background, before-start")),
            };
            policy.aot = wasm.aot.policy.unwrap_or_default().min(asked);
        }
        "count-instructions" => policy.count_instructions |= boolean(value)?,
        "deadline" => lower(&mut limits.deadline, units::duration(value)?),
        "grace" => {
            let grace = units::duration(value)?;
            limits.grace = wasm.limits.grace.map_or(grace, |most| most.min(grace));
        }
        "fuel" => lower(&mut limits.fuel, number(value)?),
        "pages" => lower(&mut limits.pages, number(value)?),
        "table-elements" => lower(&mut limits.table_elements, number(value)?),
        "preopens" => {
            let preopens = match value {
                "root" => Preopens::Root,
                "mounts" => Preopens::Mounts,
                "nothing" => Preopens::Nothing,
                _ => return Err(format!("{value:?} is none of root, mounts, nothing")),
            };
            policy.files.preopens = policy.files.preopens.max(preopens);
        }
        "preopen" => policy.files.named = list(value).map(preopen).collect::<Result<_, _>>()?,
        "listen" => policy.network.listen.push(rules(value, true)?),
        "connect" => policy.network.connect.push(rules(value, false)?),
        "plugins" => {
            for path in list(value).map(PathBuf::from) {
                if !wasm.plugins.allow.contains(&path) {
                    return Err(format!(
                        "{path:?} is not among the plugins that the configuration file allows"
                    ));
                }
                if !policy.plugins.contains(&path) {
                    policy.plugins.push(path);
                }
            }
        }
        _ => return Err("not implemented".to_owned()),
    }
    Ok(())
}

fn lower<T: Ord>(limit: &mut Option<T>, value: T) {
    let lowest = match limit.take() {
        Some(other) => other.min(value),
        None => value,
    };
    *limit = Some(lowest);
}

fn boolean(value: &str) -> Result<bool, String> {
    value
        .parse()
        .map_err(|_| format!("{value:?} is neither true nor false"))
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value
        .trim()
        .parse()
        .map_err(|_| format!("{value:?} is not a number of its range"))
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|one| !one.is_empty())
}

fn rules(value: &str, listen: bool) -> Result<Vec<Rule>, String> {
    units::rules(list(value), listen)
}

/// `DIRECTORY[:GUEST][:ro]`
fn preopen(text: &str) -> Result<Preopen, String> {
    let (rest, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (directory, guest) = rest.split_once(':').unwrap_or((rest, rest));
    let path = Path::new(directory);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("{directory:?} is not an absolute path without \"..\""));
    }
    if guest.is_empty() || guest.contains(':') || text.contains('\0') {
        return Err(format!("{text:?} is not DIRECTORY[:GUEST][:ro]"));
    }
    Ok(Preopen {
        directory: path.to_owned(),
        guest: guest.to_owned(),
        read_only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn resolve(settings: &Settings, given: &[(&str, &str)]) -> Result<Policy, Error> {
        let annotations = given
            .iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned()))
            .collect();
        policy(settings, &annotations, Mounts::default())
    }

    #[test]
    fn every_annotation_is_understood() {
        let mut settings = Settings::default();
        settings.wasm.plugins.allow = vec!["/p.so".into()];
        settings.wasm.aot.policy = Some(Aot::BeforeStart);
        let given = [
            ("aot", "background"),
            ("count-instructions", "true"),
            ("deadline", "30s"),
            ("grace", "5s"),
            ("fuel", "1000"),
            ("pages", "16"),
            ("table-elements", "100"),
            ("preopens", "mounts"),
            ("preopen", "/data:/d:ro, /tmp"),
            ("listen", "tcp:*:80"),
            ("connect", ""),
            ("plugins", "/p.so"),
        ];
        assert_eq!(given.map(|(name, _)| name), NAMES.map(|(name, _)| name));
        let policy = resolve(&settings, &given).unwrap();
        assert_eq!(policy.aot, Aot::Background);
        assert_eq!(policy.limits.deadline, Some(Duration::from_secs(30)));
        assert_eq!(policy.limits.fuel, Some(1000));
        assert_eq!(policy.files.preopens, Preopens::Mounts);
        let named = &policy.files.named;
        assert_eq!((named[0].guest.as_str(), named[0].read_only), ("/d", true));
        assert_eq!((named[1].guest.as_str(), named[1].read_only), ("/tmp", false));
        assert_eq!(policy.network.connect, [vec![]]);
        assert_eq!(policy.network.listen, [vec!["tcp:*:80".parse().unwrap()]]);
        assert_eq!(policy.plugins, [PathBuf::from("/p.so")]);
    }

    #[test]
    fn annotations_narrow_and_never_widen() {
        let mut settings = Settings::default();
        settings.wasm.limits.deadline = Some(Duration::from_secs(10));
        settings.wasm.limits.pages = Some(100);
        settings.wasm.aot.policy = Some(Aot::Use);
        settings.wasm.files.preopens = Preopens::Mounts;
        settings.wasm.network.connect = Some(vec!["tcp:*:443".parse().unwrap()]);
        let given = [
            ("deadline", "60s"),
            ("pages", "50"),
            ("aot", "before-start"),
            ("preopens", "root"),
            ("connect", "*"),
        ];
        let policy = resolve(&settings, &given).unwrap();
        assert_eq!(policy.limits.deadline, Some(Duration::from_secs(10)));
        assert_eq!(policy.limits.pages, Some(50));
        assert_eq!(policy.aot, Aot::Use);
        assert_eq!(policy.files.preopens, Preopens::Mounts);
        assert_eq!(policy.network.connect.len(), 2);
    }

    #[test]
    fn nothing_is_compiled_because_an_annotation_says_so() {
        for asked in ["background", "before-start"] {
            assert_eq!(resolve(&Settings::default(), &[("aot", asked)]).unwrap().aot, Aot::Use);
        }
        assert_eq!(resolve(&Settings::default(), &[("aot", "off")]).unwrap().aot, Aot::Off);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let mut settings = Settings::default();
        for (name, value) in [
            ("fuel", "lots"),
            ("aot", "sometimes"),
            ("preopen", "data"),
            ("preopen", "/a/../b"),
            ("listen", "tcp:80"),
            ("listen", "dns"),
            ("connect", "tcp:*:80,localhost:80"),
            ("plugins", "/p.so"),
            ("deadline", ""),
        ] {
            let text = resolve(&settings, &[(name, value)]).unwrap_err().to_string();
            assert!(text.starts_with(&format!("annotation proa.wasm/{name}: ")), "{text}");
        }
        assert_eq!(resolve(&settings, &[("feul", "1")]), Err(Error::Unknown("feul".into())));
        settings.wasm.annotations = Some(vec!["deadline".into()]);
        assert_eq!(
            resolve(&settings, &[("fuel", "1")]),
            Err(Error::NotAdmitted("fuel".into()))
        );
        assert!(resolve(&settings, &[("deadline", "1s")]).is_ok());
    }
}
