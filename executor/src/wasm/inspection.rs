//! What a hull says of itself, its engine and a module when it is asked instead of started: for `proa wasm inspect` and
//! `proa doctor`. The rules are those by which a container is created; no guest code is run, and the engine parses nothing.

use serde::{Deserialize, Serialize};

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The engine, or why there is none.
    pub engine: Result<Engine, String>,
    /// What of Landlock the kernel has, or why it has none: what narrows a guest to directories and addresses.
    pub landlock: Result<Landlock, String>,
    /// What becomes of the file that was shown, or why it is refused.
    pub verdict: Option<Result<Verdict, String>>,
}

/// What the kernel can narrow a guest to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Landlock {
    /// Directories (Linux 5.13).
    Directories,
    /// Directories, and ports of TCP (Linux 6.7).
    DirectoriesAndPorts,
}

/// The engine that was loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Its name and version.
    pub version: String,
    /// The build id of its library; without one, compiled code is not kept.
    pub build_id: Option<String>,
    /// Why its compiler was loaded with it, which takes time and memory; `None` if it was not.
    pub with_compiler: Option<String>,
}

/// What an entrypoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// A file for execve(2).
    Program,
    /// A module.
    Module {
        /// The key of the compiled code that would be asked for, if any would.
        key: Option<String>,
    },
}

/// Loads the engine and judges what is shown.
#[cfg(feature = "engine")]
pub fn answer(shown: Option<(&crate::Guest, &std::fs::File)>) -> Inspection {
    use super::{engine, judge};
    let directory = std::env::var_os(crate::locate::ENGINE_DIR)
        .filter(|dir| !dir.is_empty())
        .map(std::path::PathBuf::from);
    let loaded = engine::load_and_tell(directory.as_deref(), engine::Use::Run);
    let library = loaded.as_ref().ok().map(|(library, _)| library);
    let verdict = shown.map(|(guest, file)| judge::verdict(guest, file, library).map_err(|error| error.to_string()));
    Inspection {
        engine: match &loaded {
            Ok((library, with_compiler)) => Ok(Engine {
                version: format!("WasmEdge {}", library.version()),
                build_id: library.build_id(),
                with_compiler: with_compiler.clone(),
            }),
            Err(error) => Err(error.to_string()),
        },
        landlock: landlock(),
        verdict,
    }
}

/// Asks the kernel for rule sets, which restrict nobody until they are enforced.
#[cfg(feature = "engine")]
fn landlock() -> Result<Landlock, String> {
    use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr};
    let strict = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    strict()
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create)
        .map_err(|error| error.to_string())?;
    let ports = strict()
        .handle_access(AccessNet::from_all(ABI::V4))
        .and_then(Ruleset::create);
    Ok(match ports {
        Ok(_) => Landlock::DirectoriesAndPorts,
        Err(_) => Landlock::Directories,
    })
}
