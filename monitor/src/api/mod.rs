//! What can be asked of the daemon, and what is answered: HTTP with JSON, by one set of routes.
//!
//! On the Unix socket all of them are served: its mode and its directory decide who may ask. On TCP only those of
//! [`crate::web`] are, which never ask the loop. The routes of the loop only carry: each request goes to the task that
//! owns the state, over a channel, with a way back for its reply. Nothing that can be asked touches a guest: to hold
//! keeps the daemon from it, and to release lets it do what it is configured to. What it may have written goes to the
//! daemon's own directory, under names that the daemon gives, and within its bounds.

mod client;
pub(crate) mod listener;
mod peer_user;
pub(crate) mod response;
mod room;
mod routes;
mod socket;
#[cfg(test)]
mod tests;
pub(crate) mod view;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) use client::{ClientError, ask, ask_for_link};
pub(crate) use routes::{ControlRequest, serve};
pub(crate) use socket::{BindError, bind};

/// Longest body of a request, in bytes.
pub(crate) const REQUEST_MAX_BYTES: usize = 64 << 10;

/// Connections to the Unix socket that are served at a time; the oldest one is cut off for one more.
pub(crate) const CONNECTIONS_MAX: usize = 32;

/// How long a request may take from connecting to the last byte of its reply, on either side.
pub(crate) const TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// The socket's path in the runtime directory.
pub(crate) fn socket_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("control.sock")
}

/// What can be asked on the Unix socket. A command is a path; its fields are in the query, or in the JSON body of one
/// that [changes](Self::changes) something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// A [`view::StatusView`].
    Status,
    /// A [`view::ShowView`].
    Show {
        /// The VM's process id, name, UUID or `NAME@USER`.
        vm: String,
    },
    /// A [`view::LinesView`]: the last ticks in figures, for a live picture.
    Lines {
        /// Of this VM; `None`: of all.
        vm: Option<String>,
    },
    /// An [`crate::storage::incident::IncidentsView`].
    Incidents {
        /// Only those of this VM.
        vm: Option<String>,
    },
    /// An [`crate::storage::evidence::EvidenceView`]: a part of a file of an incident's.
    Evidence {
        /// The incident.
        id: String,
        /// The file's name.
        file: String,
        /// Where the part begins, in bytes.
        offset: u64,
    },
    /// A [`view::HoldView`]: touch nothing.
    Hold {
        /// Of this VM; `None`: of all.
        vm: Option<String>,
        /// For so long; `None`: until it is released.
        seconds: Option<u64>,
    },
    /// A [`view::HoldView`]: a hold is taken back, and what was restarted before counts no more.
    Release {
        /// Of this VM; `None`: of all.
        vm: Option<String>,
    },
    /// A [`view::RecordView`]: what is kept of the last minutes is written to files.
    Record {
        /// Of this VM; `None`: of all.
        vm: Option<String>,
    },
}

impl Request {
    /// Whether it leaves anything changed, and so travels as POST.
    fn changes(&self) -> bool {
        match self {
            Self::Status
            | Self::Show { .. }
            | Self::Lines { .. }
            | Self::Incidents { .. }
            | Self::Evidence { .. } => false,
            Self::Hold { .. } | Self::Release { .. } | Self::Record { .. } => true,
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    /// What was asked for, as JSON.
    Ok(Bytes),
    /// Why there is no answer.
    Error(Refusal),
}

impl Reply {
    /// The reply that carries `view`.
    pub(crate) fn ok(view: &impl Serialize) -> Self {
        match serde_json::to_vec(view) {
            Ok(json) => Self::Ok(json.into()),
            Err(error) => Self::error(RefusalKind::Internal, error.to_string()),
        }
    }

    /// A refusal.
    pub(crate) fn error(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self::Error(Refusal { kind, message: message.into() })
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people.
    pub message: String,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RefusalKind {
    /// No VM has that name, UUID or process id.
    NoSuchVm,
    /// Several VMs have that name or UUID.
    AmbiguousVm,
    /// The request is too long or not understood.
    BadRequest,
    /// Too much is asked for at the moment.
    Busy,
    /// There is nothing of what was asked for.
    Nothing,
    /// The daemon can't answer.
    Internal,
    /// A kind that this version doesn't know.
    #[serde(other)]
    Other,
}
