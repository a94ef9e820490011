//! What a session says of itself and of QEMU, and how a command may end.

use std::time::Duration;

use crate::qmp::{
    QmpEvent, RunState,
    codec::{CodecError, Excess},
};

/// Whether the QEMU can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QmpState {
    /// The first attempt is under way.
    Connecting,
    /// Commands are taken.
    Ready,
    /// Connected, but there is no greeting: another client holds the socket (or QEMU is stopped).
    Busy,
    /// QEMU has no vCPUs yet, and is not connected to before it has.
    NotStarted {
        /// What it waits for, as far as that is known; printable.
        reason: String,
    },
    /// A command's time is up. The connection is kept: a stopped QEMU answers late.
    Unresponsive {
        /// When the first command was sent that got no answer in time.
        since: std::time::Instant,
    },
    /// The peer is not that QEMU, breaks the protocol, or floods.
    Refused {
        /// Which; printable.
        reason: String,
    },
    /// There is no connection.
    Closed {
        /// Why; printable.
        reason: String,
    },
}

/// What a session reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QmpNotice {
    /// The session's state changed.
    State(QmpState),
    /// QEMU's answer to `query-status`, after each step to [`QmpState::Ready`].
    RunState(RunState),
    /// QEMU reported an event.
    Event(QmpEvent),
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// There is no negotiated connection; nothing was sent.
    #[error("no QMP connection: {reason}")]
    NotConnected {
        /// The session's state in words.
        reason: String,
    },
    /// Too many commands are unanswered; nothing was sent.
    #[error("too many QMP commands are unanswered")]
    Busy,
    /// No answer in time. QEMU may still carry the command out, whenever it reads it.
    #[error("no answer to {command} within {limit:?}")]
    Timeout {
        /// The command's name.
        command: String,
        /// The time it had.
        limit: Duration,
    },
    /// The connection ended before the answer; the command may have been carried out.
    #[error("the QMP connection ended before {command} was answered")]
    Disconnected {
        /// The command's name.
        command: String,
    },
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {class}: {desc}")]
    Command {
        /// The command's name.
        command: String,
        /// QEMU's error class, bounded and printable.
        class: String,
        /// QEMU's description, bounded and printable.
        desc: String,
    },
    /// The answer is more than is taken, and was not read; the command was carried out.
    #[error("QEMU's answer to {command} is not taken: it is {excess}")]
    Skipped {
        /// The command's name.
        command: String,
        /// In what it is more, and where.
        excess: Excess,
    },
    /// The answer is not of the form that the command promises.
    #[error("the answer to {command} is not understood")]
    Malformed {
        /// The command's name.
        command: String,
    },
    /// The command cannot be sent.
    #[error("{command} cannot be sent")]
    Unsendable {
        /// The command's name.
        command: String,
        /// Why.
        source: CodecError,
    },
    /// A command that hands QEMU a file descriptor, where it goes through a program; nothing was sent.
    #[error("{command} hands over a file descriptor, which virsh does not pass on")]
    NoDescriptors {
        /// The command's name.
        command: String,
    },
    /// A command that libvirt's daemon does not survive; nothing was sent.
    #[error("{command} is not passed on through libvirt, whose daemon may end by it")]
    Withheld {
        /// The command's name.
        command: String,
    },
    /// The session was closed.
    #[error("the QMP session is closed")]
    SessionClosed,
}

impl QmpError {
    /// Whether QEMU answered, though not as was hoped.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Command { .. } | Self::Skipped { .. } | Self::Malformed { .. } => true,
            Self::NotConnected { .. }
            | Self::Busy
            | Self::Timeout { .. }
            | Self::Disconnected { .. }
            | Self::Unsendable { .. }
            | Self::NoDescriptors { .. }
            | Self::Withheld { .. }
            | Self::SessionClosed => false,
        }
    }

    /// Whether QEMU may carry the command out, or have done so, without our having heard of it.
    pub fn is_in_doubt(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Disconnected { .. } | Self::SessionClosed => true,
            Self::NotConnected { .. }
            | Self::Busy
            | Self::Command { .. }
            | Self::Skipped { .. }
            | Self::Malformed { .. }
            | Self::Unsendable { .. }
            | Self::NoDescriptors { .. }
            | Self::Withheld { .. } => false,
        }
    }
}

/// A state, for a caller of which it keeps the command from being sent.
pub(super) fn in_words(state: &QmpState) -> &str {
    match state {
        QmpState::Connecting => "not yet connected",
        QmpState::Ready => "ready",
        QmpState::Busy => "another client holds the socket",
        QmpState::Unresponsive { .. } => "a command was not answered",
        QmpState::NotStarted { reason }
        | QmpState::Refused { reason }
        | QmpState::Closed { reason } => reason,
    }
}
