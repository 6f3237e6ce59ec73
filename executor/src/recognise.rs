//! How a Wasm entrypoint is recognised, from annotations and the name proa was called by.
//!
//! The keys and values are crun's, with crun's meaning, so that images and manifests made for crun work unchanged. What is
//! decided here is which executable becomes the container's init; the Wasm hull looks at the file itself and still executes
//! a Linux program natively, so that a sidecar in a pod marked for Wasm runs (crun needs `-smart` for that).

use crate::Hull;
use std::collections::HashMap;

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

/// Chooses the hull of a container from its annotations, the name proa was called by (`program`), and `process.args[0]`
/// (empty without a process, which is never Wasm).
pub fn hull(annotations: &HashMap<String, String>, program: &str, entrypoint: &str) -> Result<Hull, crate::Error> {
    let annotation = |key: &str| annotations.get(key).map(String::as_str);
    if entrypoint.is_empty() {
        return Ok(Hull::Native);
    }
    // A pause container is a Linux program although its pod's annotations say Wasm.
    if SANDBOX.iter().any(|key| annotation(key) == Some("sandbox")) {
        return Ok(Hull::Native);
    }
    let handler = annotation(HANDLER);
    match handler {
        Some("none") => return Ok(Hull::Native),
        Some(other) if FOREIGN.contains(&other) => return Err(Error::ForeignHandler(other.to_owned()).into()),
        _ => {}
    }
    let name = program.rsplit('/').next().unwrap_or(program);
    let wasm = ALIASES.contains(&name)
        || match handler {
            Some("wasm" | "wasmedge") => true,
            Some("wasm-smart") => names_module(entrypoint),
            // Present but unknown: the variant isn't read either.
            Some(_) => false,
            None => match annotation(VARIANT) {
                Some("compat") => true,
                Some("compat-smart") => names_module(entrypoint),
                _ => false,
            },
        };
    Ok(if wasm { Hull::Wasm } else { Hull::Native })
}

/// Whether the path looks like a module, in either letter case as crun has it.
fn names_module(entrypoint: &str) -> bool {
    let lower = entrypoint.to_ascii_lowercase();
    lower.ends_with(".wasm") || lower.ends_with(".wat")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(annotations: &[(&str, &str)], program: &str, entrypoint: &str) -> Hull {
        hull(&map(annotations), program, entrypoint).unwrap()
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
            let refused = hull(&map(&[(HANDLER, engine)]), "proa", "/app.wasm")
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
    }
}
