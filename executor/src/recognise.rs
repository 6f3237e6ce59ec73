//! How a Wasm entrypoint is recognised: from annotations, the name proa was called by, the entrypoint's name, and its content.
//!
//! The keys and values are crun's, with crun's meaning, so that images and manifests made for crun work unchanged. What is
//! decided here is which executable becomes the container's init, and nothing is looked at for it. The Wasm hull looks at the
//! file itself, once every mount is made, and still executes a Linux program natively: so a sidecar in a pod marked for Wasm
//! runs (crun needs `-smart` for that), and a name alone ([`Evidence::Name`]) is never what a file is taken for.

use crate::Hull;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;

/// crun's key that names the handler of a container.
pub const HANDLER: &str = "run.oci.handler";
/// The key of Wasm images of the "compat" variant; read only if there is no [`HANDLER`].
pub const VARIANT: &str = "module.wasm.image/variant";

/// Keys that mark a pod's pause container with the value `sandbox`: containerd's and CRI-O's.
const SANDBOX: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

/// Names of `argv[0]` that ask for Wasm: podman selects a runtime by platform under such a name.
const ALIASES: [&str; 3] = ["proa-wasm", "crun-wasm", "crun-wasmedge"];

/// Handlers of other builds of crun. Anything else that isn't known runs natively there, and so here.
const FOREIGN: [&str; 8] = [
    "wasmer", "wasmtime", "wamr", "spin", "krun", "libkrun", "mono", "dotnet",
];

/// Why no hull could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The container asks for an engine other than the one there is.
    #[error(
        "annotation {HANDLER}={0}: proa has no such handler; its Wasm engine is WasmEdge (values: wasm, wasm-smart, wasmedge, none)"
    )]
    ForeignHandler(String),
}

/// How an entrypoint that nothing marks is recognised: `wasm.detect` of the administrator's file, or `--wasm-detect`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

impl std::str::FromStr for Detect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "annotation" => Ok(Self::Annotation),
            "name" => Ok(Self::Name),
            "auto" => Ok(Self::Auto),
            other => Err(format!("{other:?} is none of annotation, name, auto")),
        }
    }
}

/// Why the Wasm hull is given an entrypoint, and so what it does with a file that is no module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// Somebody said that it is one: what is neither a module nor a Linux program is refused.
    #[default]
    Marked,
    /// Its name ends in `.wasm`: what is no module is the kernel's matter, as without a Wasm hull, and so is a module for which
    /// the administrator registered an interpreter with the kernel (binfmt_misc).
    Name,
    /// The administrator wants every entrypoint looked at: as [`Evidence::Name`], but a module is always the engine's.
    Content,
}

/// What the hull follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no process.
    NoProcess,
    /// This annotation marks the pause container of a pod.
    Sandbox(&'static str),
    /// `run.oci.handler=none`.
    Refused,
    /// The annotation with this key and value marks the container.
    Annotation(&'static str, String),
    /// It would, if the entrypoint's name ended in `.wasm` or `.wat`.
    NotSmart(&'static str, String),
    /// The name that proa was called by.
    Alias(String),
    /// The entrypoint's name ends in `.wasm`, and `wasm.detect` is `name` or `auto`.
    Name,
    /// `wasm.detect` is `auto`.
    Auto,
    /// `run.oci.handler` with a value that nobody knows.
    UnknownHandler(String),
    /// Nothing says or lets suspect that it is WebAssembly.
    Unmarked(Detect),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProcess => write!(f, "there is no process"),
            Self::Sandbox(key) => write!(
                f,
                "annotation {key}=sandbox: a pod's pause container is a Linux program"
            ),
            Self::Refused => write!(f, "annotation {HANDLER}=none"),
            Self::Annotation(key, value) => write!(f, "annotation {key}={value}"),
            Self::NotSmart(key, value) => write!(
                f,
                "annotation {key}={value}, but the entrypoint's name ends neither in .wasm nor in .wat"
            ),
            Self::Alias(name) => write!(f, "called as {name}"),
            Self::Name => write!(
                f,
                "the entrypoint's name ends in .wasm: its content decides (wasm.detect)"
            ),
            Self::Auto => write!(f, "wasm.detect is auto: the entrypoint's content decides"),
            Self::UnknownHandler(value) => write!(f, "annotation {HANDLER}={value} is none that is known"),
            Self::Unmarked(Detect::Annotation) => write!(f, "no annotation says Wasm, and wasm.detect is annotation"),
            Self::Unmarked(_) => write!(
                f,
                "no annotation says Wasm, and the entrypoint's name does not end in .wasm"
            ),
        }
    }
}

/// Which executable becomes the container's init, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Which.
    pub hull: Hull,
    /// What the Wasm hull goes by.
    pub evidence: Evidence,
    /// Why.
    pub reason: Reason,
}

/// Decides for a container by its annotations, the name proa was called by (`program`), and `process.args[0]` (empty without a
/// process, which is never Wasm).
pub fn decide(
    annotations: &HashMap<String, String>,
    program: &str,
    entrypoint: &str,
    detect: Detect,
) -> Result<Decision, crate::Error> {
    let native = |reason| Decision {
        hull: Hull::Native,
        evidence: Evidence::Marked,
        reason,
    };
    let wasm = |evidence, reason| Decision {
        hull: Hull::Wasm,
        evidence,
        reason,
    };
    let annotation = |key: &str| annotations.get(key).map(String::as_str);
    if entrypoint.is_empty() {
        return Ok(native(Reason::NoProcess));
    }
    // A pause container is a Linux program although its pod's annotations say Wasm.
    if let Some(key) = SANDBOX.iter().find(|key| annotation(key) == Some("sandbox")) {
        return Ok(native(Reason::Sandbox(key)));
    }
    let handler = annotation(HANDLER);
    match handler {
        Some("none") => return Ok(native(Reason::Refused)),
        Some(other) if FOREIGN.contains(&other) => return Err(Error::ForeignHandler(other.to_owned()).into()),
        _ => {}
    }
    let name = program.rsplit('/').next().unwrap_or(program);
    if ALIASES.contains(&name) {
        return Ok(wasm(Evidence::Marked, Reason::Alias(name.to_owned())));
    }
    // A handler hides the variant, whatever it says.
    let (key, value) = match handler {
        Some(value) => (HANDLER, value),
        None => (VARIANT, annotation(VARIANT).unwrap_or_default()),
    };
    match (key, value) {
        (HANDLER, "wasm" | "wasmedge") | (VARIANT, "compat") => {
            return Ok(wasm(Evidence::Marked, Reason::Annotation(key, value.to_owned())));
        }
        (HANDLER, "wasm-smart") | (VARIANT, "compat-smart") => {
            return Ok(match names_module(entrypoint) {
                true => wasm(Evidence::Marked, Reason::Annotation(key, value.to_owned())),
                false => native(Reason::NotSmart(key, value.to_owned())),
            });
        }
        // Somebody wants this container run in a way of which nothing is known here: no guess is better than crun's.
        (HANDLER, other) => return Ok(native(Reason::UnknownHandler(other.to_owned()))),
        _ => {}
    }
    Ok(match detect {
        Detect::Name | Detect::Auto if names_binary(entrypoint) => wasm(Evidence::Name, Reason::Name).by(detect),
        Detect::Auto => wasm(Evidence::Content, Reason::Auto),
        _ => native(Reason::Unmarked(detect)),
    })
}

impl Decision {
    /// Under `auto`, a module is the engine's whatever it is called.
    fn by(mut self, detect: Detect) -> Self {
        if detect == Detect::Auto {
            self.evidence = Evidence::Content;
        }
        self
    }
}

/// Whether the path looks like a module, in either letter case as crun has it.
fn names_module(entrypoint: &str) -> bool {
    names_binary(entrypoint) || names_text(entrypoint)
}

/// Whether the path looks like a binary module, in either letter case.
pub fn names_binary(entrypoint: &str) -> bool {
    ends(entrypoint, ".wasm")
}

/// Whether the path looks like WebAssembly text, in either letter case.
pub fn names_text(entrypoint: &str) -> bool {
    ends(entrypoint, ".wat")
}

fn ends(path: &str, extension: &str) -> bool {
    let (path, extension) = (path.as_bytes(), extension.as_bytes());
    path.len() >= extension.len() && path[path.len() - extension.len()..].eq_ignore_ascii_case(extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(annotations: &[(&str, &str)], program: &str, entrypoint: &str) -> Hull {
        by(annotations, program, entrypoint, Detect::Annotation).hull
    }

    fn by(annotations: &[(&str, &str)], program: &str, entrypoint: &str, detect: Detect) -> Decision {
        super::decide(&map(annotations), program, entrypoint, detect).unwrap()
    }

    fn map(annotations: &[(&str, &str)]) -> HashMap<String, String> {
        annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn annotations_have_crun_s_meaning() {
        use Hull::{Native, Wasm};
        type Case = (&'static [(&'static str, &'static str)], &'static str, Hull);
        let cases: &[Case] = &[
            (&[], "/app.wasm", Native),
            (&[(HANDLER, "wasm")], "/app", Wasm),
            (&[(HANDLER, "wasmedge")], "/app", Wasm),
            (&[(HANDLER, "wasm-smart")], "/app.wasm", Wasm),
            (&[(HANDLER, "wasm-smart")], "/APP.WASM", Wasm),
            (&[(HANDLER, "wasm-smart")], "app.wat", Wasm),
            (&[(HANDLER, "wasm-smart")], "/bin/sh", Native),
            (&[(HANDLER, "wasm-smart")], "/app.wasm.sh", Native),
            (&[(HANDLER, "none")], "/app.wasm", Native),
            (&[(HANDLER, "something")], "/app.wasm", Native),
            (&[(HANDLER, "WASM")], "/app.wasm", Native),
            (&[(VARIANT, "compat")], "/app", Wasm),
            (&[(VARIANT, "compat-smart")], "/app.wasm", Wasm),
            (&[(VARIANT, "compat-smart")], "/envoy", Native),
            (&[(VARIANT, "other")], "/app.wasm", Native),
            // The handler hides the variant, whatever it says.
            (&[(HANDLER, "something"), (VARIANT, "compat")], "/app.wasm", Native),
            (&[(HANDLER, "none"), (VARIANT, "compat")], "/app.wasm", Native),
            (&[(HANDLER, "wasm-smart"), (VARIANT, "compat")], "/bin/sh", Native),
            (&[(HANDLER, "wasm"), (VARIANT, "other")], "/app", Wasm),
        ];
        for (annotations, entrypoint, hull) in cases {
            assert_eq!(
                decide(annotations, "/usr/bin/proa", entrypoint),
                *hull,
                "{annotations:?} {entrypoint}"
            );
        }
    }

    #[test]
    fn pause_containers_are_linux_programs() {
        for key in SANDBOX {
            for mark in [(HANDLER, "wasm"), (VARIANT, "compat"), (HANDLER, "wasmtime")] {
                assert_eq!(
                    decide(&[mark, (key, "sandbox")], "crun-wasm", "/pause"),
                    Hull::Native,
                    "{key}"
                );
            }
            assert_eq!(
                decide(&[(HANDLER, "wasm"), (key, "container")], "proa", "/a"),
                Hull::Wasm,
                "{key}"
            );
        }
    }

    #[test]
    fn the_name_forces_wasm() {
        for name in ["proa-wasm", "/usr/bin/crun-wasm", "./proa-wasm"] {
            assert_eq!(decide(&[], name, "/bin/app"), Hull::Wasm, "{name}");
            assert_eq!(decide(&[(HANDLER, "none")], name, "/bin/app"), Hull::Native, "{name}");
        }
        for name in ["proa", "/opt/proa-wasm/proa", "proa-wasm2", "crun"] {
            assert_eq!(decide(&[], name, "/bin/app"), Hull::Native, "{name}");
        }
    }

    #[test]
    fn other_engines_are_refused_by_name() {
        for engine in FOREIGN {
            let refused = super::decide(&map(&[(HANDLER, engine)]), "proa", "/app.wasm", Detect::Auto)
                .unwrap_err()
                .to_string();
            assert!(
                refused.starts_with(&format!("annotation run.oci.handler={engine}: ")),
                "{refused}"
            );
        }
    }

    #[test]
    fn no_process_is_never_wasm() {
        assert_eq!(decide(&[(HANDLER, "wasm")], "proa-wasm", ""), Hull::Native);
        assert_eq!(by(&[], "proa", "", Detect::Auto).reason, Reason::NoProcess);
    }

    #[test]
    fn without_a_mark_the_name_or_the_content_decides() {
        use Detect::{Annotation, Auto, Name};
        type Case = (Detect, &'static str, Option<Evidence>);
        let cases: &[Case] = &[
            (Annotation, "/app.wasm", None),
            (Annotation, "/app", None),
            (Name, "/app.wasm", Some(Evidence::Name)),
            (Name, "APP.Wasm", Some(Evidence::Name)),
            (Name, "/app.wasm/x", None),
            (Name, "/app", None),
            (Name, "/wasm", None),
            // Nothing to run: the kernel refuses it, with a hint.
            (Name, "/app.wat", None),
            // A multi-byte character where the extension would begin.
            (Name, "\u{e9}wasm", None),
            (Auto, "/app.wasm", Some(Evidence::Content)),
            (Auto, "/app", Some(Evidence::Content)),
            (Auto, "sh", Some(Evidence::Content)),
        ];
        for (detect, entrypoint, evidence) in cases {
            let decision = by(&[], "/usr/bin/proa", entrypoint, *detect);
            let hull = evidence.map_or(Hull::Native, |_| Hull::Wasm);
            assert_eq!(decision.hull, hull, "{detect:?} {entrypoint}");
            if let Some(evidence) = evidence {
                assert_eq!(decision.evidence, *evidence, "{detect:?} {entrypoint}");
            }
        }
    }

    #[test]
    fn what_is_said_of_a_container_comes_before_what_is_seen() {
        for detect in [Detect::Annotation, Detect::Name, Detect::Auto] {
            let native = |annotations: &[(&str, &str)], entrypoint: &str| {
                let decision = by(annotations, "proa", entrypoint, detect);
                assert_eq!(decision.hull, Hull::Native, "{annotations:?} {detect:?}");
                decision.reason
            };
            assert_eq!(native(&[(HANDLER, "none")], "/app.wasm"), Reason::Refused);
            for key in SANDBOX {
                assert_eq!(native(&[(key, "sandbox")], "/app.wasm"), Reason::Sandbox(key));
            }
            let unknown = native(&[(HANDLER, "other")], "/app.wasm");
            assert_eq!(unknown, Reason::UnknownHandler("other".into()));
            let smart = native(&[(HANDLER, "wasm-smart")], "/bin/sh");
            assert_eq!(smart, Reason::NotSmart(HANDLER, "wasm-smart".into()));
            let marked = by(&[(VARIANT, "compat")], "proa", "/app.wasm", detect);
            assert_eq!(marked.evidence, Evidence::Marked, "{detect:?}");
            let marked = by(&[], "crun-wasm", "/app.wasm", detect);
            assert_eq!(marked.reason, Reason::Alias("crun-wasm".into()), "{detect:?}");
        }
    }

    #[test]
    fn the_words_of_detect_are_those_of_the_file() {
        for (word, detect) in [
            ("annotation", Detect::Annotation),
            ("name", Detect::Name),
            ("auto", Detect::Auto),
        ] {
            assert_eq!(word.parse(), Ok(detect));
        }
        assert!("content".parse::<Detect>().unwrap_err().contains("content"));
    }
}
