//! How attempts end, and how long it is until the next one.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    limits::Limits,
    notice::{QmpState, in_words},
    outbox::{NotTaken, Outbox},
    requests::{Ended, Inbox},
};
use crate::{
    discover::NotFound,
    peer::PeerError,
    text::{MAX_TEXT_CHARS, error_chain, printable},
};

/// How an attempt or a connection ended.
#[derive(Clone, Debug)]
pub(super) enum Disconnect {
    /// Nothing more is wanted of a brief one.
    Done,
    Busy,
    /// QEMU is not to be connected to yet.
    NotStarted(String),
    Refused(String),
    Closed(String),
}

impl Disconnect {
    fn state(self) -> QmpState {
        // Reasons may quote a path that QEMU's command line chose.
        let reason = |text: String| printable(&text, 4 * MAX_TEXT_CHARS);
        match self {
            Self::Done => QmpState::Ready,
            Self::Busy => QmpState::Busy,
            Self::NotStarted(text) => QmpState::NotStarted { reason: reason(text) },
            Self::Refused(text) => QmpState::Refused { reason: reason(text) },
            Self::Closed(text) => QmpState::Closed { reason: reason(text) },
        }
    }
}

impl From<NotTaken> for Disconnect {
    fn from(NotTaken: NotTaken) -> Self {
        Self::Closed("its notices were not taken in time".to_owned())
    }
}

impl From<PeerError> for Disconnect {
    fn from(error: PeerError) -> Self {
        let text = error_chain(&error);
        match error {
            PeerError::QueueFull { .. } => Self::Busy,
            PeerError::WaitsForAClient { .. } | PeerError::InInit => Self::NotStarted(text),
            PeerError::WrongProcess { .. }
            | PeerError::ListenerEnded
            | PeerError::ProcessGone { .. }
            | PeerError::Escapes { .. }
            | PeerError::NotASocket { .. }
            | PeerError::NoOpenat2 { .. }
            | PeerError::NotListening(NotFound::Unfit { .. }) => Self::Refused(text),
            PeerError::NoBase { .. }
            | PeerError::Untold { .. }
            | PeerError::NotItsOwn { .. }
            | PeerError::NotFound { .. }
            | PeerError::NotListening(NotFound::None { .. } | NotFound::Unseen { .. })
            | PeerError::Connect { .. } => Self::Closed(text),
        }
    }
}

/// The pauses between attempts. The more attempts in a row end in Closed, the longer they are.
pub(super) struct Pauses {
    limits: Limits,
    closed: Duration,
}

impl Pauses {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, closed: limits.closed_pause_min }
    }

    /// QEMU could be asked: the next Closed is the first one again.
    pub(super) fn reset(&mut self) {
        self.closed = self.limits.closed_pause_min;
    }

    /// Reports how an attempt ended, and waits until the next one is due: after one that did all it was made for, at
    /// once.
    pub(super) async fn after(
        &mut self,
        disconnect: Disconnect,
        inbox: &mut Inbox,
        outbox: &mut Outbox,
    ) -> Result<(), Ended> {
        let pause = match disconnect {
            Disconnect::Done => return Ok(()),
            Disconnect::Busy => self.limits.busy_pause,
            Disconnect::NotStarted(_) => self.limits.launch_pause,
            Disconnect::Refused(_) => self.limits.refused_pause,
            Disconnect::Closed(_) => {
                let pause = self.closed;
                self.closed = (self.closed * 2).min(self.limits.closed_pause_max);
                pause
            }
        };
        let state = disconnect.state();
        // No command waits for a connection that isn't to be had.
        inbox.refuse_kept(in_words(&state));
        outbox.state_at_last(state.clone(), inbox).await?;
        inbox.meanwhile(in_words(&state), sleep(pause)).await
    }
}
