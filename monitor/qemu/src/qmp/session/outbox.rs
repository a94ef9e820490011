//! Notices on their way from a session's task to the daemon.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};

use super::{
    notice::{QmpNotice, QmpState, in_words},
    requests::{Ended, Inbox},
};
use crate::discover::VmId;

/// A notice was not taken in time.
#[derive(Debug)]
pub(super) struct NotTaken;

pub(super) struct Outbox {
    pub(super) vm: VmId,
    pub(super) notices: mpsc::Sender<(VmId, QmpNotice)>,
    pub(super) last: Option<QmpState>,
    pub(super) wait: Duration,
}

impl Outbox {
    /// A receiver that is gone takes everything: the handle goes on working without it.
    pub(super) async fn tell(&self, notice: QmpNotice) -> Result<(), NotTaken> {
        let sent = timeout(self.wait, self.notices.send((self.vm, notice))).await;
        sent.map(|_| ()).map_err(|_| NotTaken)
    }

    /// Reports a state while there is a connection.
    pub(super) async fn state(&mut self, state: QmpState) -> Result<(), NotTaken> {
        if self.last.as_ref() != Some(&state) {
            self.tell(QmpNotice::State(state.clone())).await?;
            self.last = Some(state);
        }
        Ok(())
    }

    /// Reports that a command sent then was not answered in time, unless that is so already: the first one counts.
    pub(super) async fn unresponsive(&mut self, since: std::time::Instant) -> Result<(), NotTaken> {
        if matches!(self.last, Some(QmpState::Unresponsive { .. })) {
            return Ok(());
        }
        self.state(QmpState::Unresponsive { since }).await
    }

    /// Reports a state while there is none, however long it takes.
    pub(super) async fn state_at_last(
        &mut self,
        state: QmpState,
        inbox: &mut Inbox,
    ) -> Result<(), Ended> {
        if self.last.as_ref() != Some(&state) {
            let notice = (self.vm, QmpNotice::State(state.clone()));
            // As above: a receiver that is gone is no reason to end.
            let _ = inbox.meanwhile(in_words(&state), self.notices.send(notice)).await?;
            self.last = Some(state);
        }
        Ok(())
    }
}
