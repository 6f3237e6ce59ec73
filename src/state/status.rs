//! Which status a container has, and what may be asked of it then. Pure.

use serde::{Deserialize, Serialize};

/// A container's status, as the runtime-spec names it, with runc's additional `paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is under way (or died half-way).
    Creating,
    /// Init waits for `start`.
    Created,
    /// The user's program runs.
    Running,
    /// Init is gone, or a zombie.
    Stopped,
    /// The cgroup is frozen.
    Paused,
}

impl Status {
    /// The name, as `state` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What is asked of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `start`.
    Start,
    /// `exec`.
    Exec {
        /// `--ignore-paused`.
        ignore_paused: bool,
    },
    /// `delete` without `--force`.
    Delete,
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `update`.
    Update,
    /// `events`.
    Events,
    /// `checkpoint`.
    Checkpoint,
}

/// Why a container can't be asked that in its status. Worded as runc words it, as callers match on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// `start` of what ended.
    #[error("cannot start a container that has stopped")]
    StartStopped,
    /// `start` of what runs.
    #[error("cannot start an already running container")]
    StartRunning,
    /// `start` of anything else.
    #[error("cannot start a container in the {0} state")]
    Start(Status),
    /// `exec` in what ended.
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    /// `exec` in what is frozen.
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecPaused,
    /// `exec` in what is not there yet.
    #[error("cannot exec in a container in the {0} state")]
    Exec(Status),
    /// `delete` without `--force` of what lives.
    #[error("cannot delete container {id} that is not stopped: {status}")]
    Delete {
        /// The container.
        id: String,
        /// Its status.
        status: Status,
    },
    /// `pause`, `update` of what does not run.
    #[error("container not running")]
    NotRunning,
    /// `resume` of what is not frozen.
    #[error("container not paused")]
    NotPaused,
    /// `events` of what ended.
    #[error("container with id {0} is not running")]
    NoEvents(String),
    /// `checkpoint` of what does not run its program.
    #[error("Container cannot be checkpointed in {0} state")]
    Checkpoint(Status),
}

/// The one gate: whether `action` may be done to container `id` in `status`.
pub fn require(action: Action, id: &str, status: Status) -> Result<(), Refused> {
    use Status::{Created, Creating, Paused, Running, Stopped};
    match (action, status) {
        (Action::Start, Created) => Ok(()),
        (Action::Start, Stopped) => Err(Refused::StartStopped),
        (Action::Start, Running) => Err(Refused::StartRunning),
        (Action::Start, Creating | Paused) => Err(Refused::Start(status)),

        (Action::Exec { .. }, Created | Running) | (Action::Exec { ignore_paused: true }, Paused) => Ok(()),
        (Action::Exec { .. }, Stopped) => Err(Refused::ExecStopped),
        (Action::Exec { ignore_paused: false }, Paused) => Err(Refused::ExecPaused),
        (Action::Exec { .. }, Creating) => Err(Refused::Exec(status)),

        // A `Creating` container that can be locked has lost its creator; one that can't never gets here.
        (Action::Delete, Stopped | Created | Creating) => Ok(()),
        (Action::Delete, Running | Paused) => Err(Refused::Delete { id: id.into(), status }),

        (Action::Pause, Created | Running) => Ok(()),
        (Action::Pause, Creating | Stopped | Paused) => Err(Refused::NotRunning),

        (Action::Resume, Paused) => Ok(()),
        (Action::Resume, Creating | Created | Running | Stopped) => Err(Refused::NotPaused),

        (Action::Update, Created | Running | Paused) => Ok(()),
        (Action::Update, Creating | Stopped) => Err(Refused::NotRunning),

        (Action::Events, Created | Running | Paused) => Ok(()),
        (Action::Events, Creating | Stopped) => Err(Refused::NoEvents(id.into())),

        (Action::Checkpoint, Running | Paused) => Ok(()),
        (Action::Checkpoint, Creating | Created | Stopped) => Err(Refused::Checkpoint(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Status; 5] = [
        Status::Creating,
        Status::Created,
        Status::Running,
        Status::Stopped,
        Status::Paused,
    ];

    fn allowed(action: Action) -> Vec<&'static str> {
        ALL.into_iter()
            .filter(|status| require(action, "c1", *status).is_ok())
            .map(Status::name)
            .collect()
    }

    #[test]
    fn what_is_allowed_when() {
        assert_eq!(allowed(Action::Start), ["created"]);
        assert_eq!(allowed(Action::Exec { ignore_paused: false }), ["created", "running"]);
        assert_eq!(
            allowed(Action::Exec { ignore_paused: true }),
            ["created", "running", "paused"]
        );
        assert_eq!(allowed(Action::Delete), ["creating", "created", "stopped"]);
        assert_eq!(allowed(Action::Pause), ["created", "running"]);
        assert_eq!(allowed(Action::Resume), ["paused"]);
        assert_eq!(allowed(Action::Update), ["created", "running", "paused"]);
        assert_eq!(allowed(Action::Events), ["created", "running", "paused"]);
        assert_eq!(allowed(Action::Checkpoint), ["running", "paused"]);
    }

    #[test]
    fn refusals_have_runcs_words() {
        let words = |action, status| require(action, "c1", status).unwrap_err().to_string();
        assert_eq!(
            words(Action::Start, Status::Stopped),
            "cannot start a container that has stopped"
        );
        assert_eq!(
            words(Action::Start, Status::Running),
            "cannot start an already running container"
        );
        assert_eq!(
            words(Action::Start, Status::Paused),
            "cannot start a container in the paused state"
        );
        let exec = Action::Exec { ignore_paused: false };
        assert_eq!(words(exec, Status::Stopped), "cannot exec in a stopped container");
        assert_eq!(
            words(exec, Status::Paused),
            "cannot exec in a paused container (use --ignore-paused to override)"
        );
        assert_eq!(
            words(Action::Delete, Status::Running),
            "cannot delete container c1 that is not stopped: running"
        );
        assert_eq!(words(Action::Pause, Status::Paused), "container not running");
        assert_eq!(words(Action::Resume, Status::Running), "container not paused");
        assert_eq!(
            words(Action::Events, Status::Stopped),
            "container with id c1 is not running"
        );
        assert_eq!(
            words(Action::Checkpoint, Status::Created),
            "Container cannot be checkpointed in created state"
        );
    }
}
