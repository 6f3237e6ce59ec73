//! What this host has of what containers need: each thing tried in the way in which it is used, never guessed from a version.

mod kernel;
mod node;

use crate::wasm::Settings;
use serde::Serialize;
use std::path::Path;

/// How it is with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is there, and as it should be.
    Ok,
    /// It is not there; there is another way, or only some containers need it.
    Missing,
    /// Without it, no Linux container can be made.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// kernel, cgroup, state, wasm or manager.
    pub area: &'static str,
    /// What.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What can be done; what goes without it otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    fn ok(area: &'static str, name: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            area,
            name: name.into(),
            state: State::Ok,
            found: found.into(),
            fix: None,
        }
    }

    fn missing(area: &'static str, name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            state: State::Missing,
            fix: Some(fix.into()),
            ..Self::ok(area, name, found)
        }
    }

    fn failed(area: &'static str, name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            state: State::Failed,
            ..Self::missing(area, name, found, fix)
        }
    }

    /// What was tried, or what is to be said if it failed.
    fn tried<E: std::fmt::Display>(
        area: &'static str,
        name: impl Into<String>,
        result: Result<String, E>,
        fix: impl Into<String>,
    ) -> Self {
        match result {
            Ok(found) => Self::ok(area, name, found),
            Err(error) => Self::missing(area, name, error.to_string(), fix),
        }
    }

    /// What no container can do without.
    fn needed(mut self) -> Self {
        if self.state == State::Missing {
            self.state = State::Failed;
        }
        self
    }
}

/// What the command line says, as far as it matters.
#[derive(Debug)]
pub struct Question<'a> {
    /// `--root`, or what stands for it.
    pub root: &'a Path,
    /// The configuration file's path and content, or why it can't be used.
    pub settings: (&'a Path, Result<&'a Settings, String>),
    /// The caller has no rights beyond its user's.
    pub rootless: bool,
}

/// Looks at everything.
pub fn checks(question: &Question<'_>) -> Vec<Check> {
    let mut checks = kernel::checks(question.rootless);
    checks.extend(node::checks(question));
    checks
}
