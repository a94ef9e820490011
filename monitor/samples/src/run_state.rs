//! QEMU's run state: what `query-status` says of a VM.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::{MAX_TEXT_CHARS, printable};

/// A VM's run state. The variants up to [`RunState::Colo`] are QEMU's `RunState` (qapi/run-state.json,
/// the same from 5.x to 10.x).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RunState {
    /// A debugger stopped it.
    Debug,
    /// It waits for an incoming migration.
    Inmigrate,
    /// KVM or QEMU met an error it cannot go on from.
    InternalError,
    /// A block device failed under `werror=stop` or `rerror=stop`.
    IoError,
    /// A client of QEMU said `stop`.
    Paused,
    /// Its outgoing migration is complete.
    Postmigrate,
    /// It was started with `-S`, or reset out of a stopped state, and waits for `cont`.
    Prelaunch,
    /// The last phase of an outgoing migration.
    FinishMigrate,
    /// A snapshot is being restored.
    RestoreVm,
    /// The vCPUs run.
    Running,
    /// A snapshot is being saved.
    SaveVm,
    /// The guest shut itself down under `-no-shutdown`.
    Shutdown,
    /// The guest is suspended to RAM.
    Suspended,
    /// A watchdog fired with the action `pause`.
    Watchdog,
    /// The guest reported its panic and QEMU paused it.
    GuestPanicked,
    /// A COLO checkpoint is being taken.
    Colo,
    /// A name that is not known here: at most [`MAX_TEXT_CHARS`] printable ASCII characters.
    Other(String),
}

/// QEMU's names for its run states.
static NAMES: [(&str, RunState); 16] = [
    ("debug", RunState::Debug),
    ("inmigrate", RunState::Inmigrate),
    ("internal-error", RunState::InternalError),
    ("io-error", RunState::IoError),
    ("paused", RunState::Paused),
    ("postmigrate", RunState::Postmigrate),
    ("prelaunch", RunState::Prelaunch),
    ("finish-migrate", RunState::FinishMigrate),
    ("restore-vm", RunState::RestoreVm),
    ("running", RunState::Running),
    ("save-vm", RunState::SaveVm),
    ("shutdown", RunState::Shutdown),
    ("suspended", RunState::Suspended),
    ("watchdog", RunState::Watchdog),
    ("guest-panicked", RunState::GuestPanicked),
    ("colo", RunState::Colo),
];

impl RunState {
    /// The run state of QEMU's own name for it; never fails, see [`RunState::Other`].
    #[must_use]
    pub fn parse(name: &str) -> Self {
        let known = NAMES.iter().find(|(known, _)| *known == name);
        known.map_or_else(
            || Self::Other(printable(name, MAX_TEXT_CHARS)),
            |(_, state)| state.clone(),
        )
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = NAMES.iter().find(|(_, state)| state == self).map(|(name, _)| *name);
        match self {
            Self::Other(name) => f.write_str(name),
            _ => f.write_str(known.unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RunState;

    #[test]
    fn every_run_state_of_qemu_is_known_and_keeps_its_name() {
        for name in [
            "debug",
            "inmigrate",
            "internal-error",
            "io-error",
            "paused",
            "postmigrate",
            "prelaunch",
            "finish-migrate",
            "restore-vm",
            "running",
            "save-vm",
            "shutdown",
            "suspended",
            "watchdog",
            "guest-panicked",
            "colo",
        ] {
            let state = RunState::parse(name);
            assert!(!matches!(state, RunState::Other(_)), "{name}");
            assert_eq!(state.to_string(), name);
        }
    }

    #[test]
    fn an_unknown_run_state_is_kept_bounded_and_printable() {
        let name = format!("new\n{}", "x".repeat(100));
        let RunState::Other(kept) = RunState::parse(&name) else {
            panic!("known?");
        };
        assert_eq!(kept, format!("new?{}", "x".repeat(60)));
    }
}
