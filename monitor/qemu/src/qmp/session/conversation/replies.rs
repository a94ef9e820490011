//! Answers on their way to the callers that wait for them, and what becomes of a message that is more than is taken.

use serde_json::Value;
use tracing::warn;

use super::{Conversation, Phase, Waiting};
use crate::qmp::{
    codec::{Excess, SkippedKind},
    commands::run_state,
    session::{
        disconnect::Disconnect,
        notice::{QmpError, QmpNotice, QmpState},
        outbox::Outbox,
    },
};

/// What stands in a reply instead of a result.
pub(super) enum NoResult {
    Error { class: String, desc: String },
    Skipped(Excess),
}

impl Conversation {
    /// A message was more than is taken. What is to be skipped has a bound in all: an answer only if a command of ours
    /// waits for it, an event only so often.
    pub(super) async fn skipped(
        &mut self,
        kind: SkippedKind,
        id: Option<u64>,
        excess: Excess,
        outbox: &mut Outbox,
    ) -> Result<(), Disconnect> {
        match kind {
            SkippedKind::Reply if id.is_some_and(|id| self.unanswered.contains_key(&id)) => {
                self.reply(id, Err(NoResult::Skipped(excess)), outbox).await
            }
            SkippedKind::Reply => {
                Err(Disconnect::Refused(format!("an answer that no command waits for, {excess}")))
            }
            SkippedKind::Event(name) => {
                self.flood.skipped_event(&self.limits)?;
                warn!(pid = outbox.vm.pid, "QEMU's event {name} is not taken: it is {excess}");
                // What it would have told of the machine, the run state tells.
                if matches!(self.phase, Phase::Open) {
                    self.ask_status();
                }
                Ok(())
            }
            SkippedKind::Greeting => {
                Err(Disconnect::Refused(format!("a second greeting on one connection, {excess}")))
            }
            SkippedKind::Unknown => {
                Err(Disconnect::Refused(format!("a QMP message of no known kind, {excess}")))
            }
        }
    }

    pub(super) async fn reply(
        &mut self,
        id: Option<u64>,
        result: Result<Value, NoResult>,
        outbox: &mut Outbox,
    ) -> Result<(), Disconnect> {
        let Some((id, answered)) =
            id.and_then(|id| self.unanswered.remove(&id).map(|one| (id, one)))
        else {
            return Ok(());
        };
        // QEMU answers in order, so what timed out before this one is never answered any more.
        self.unanswered.retain(|other, one| *other > id || !one.expired);
        let is_first = matches!(answered.waiting, Waiting::Negotiation);
        match answered.waiting {
            Waiting::Negotiation => match result {
                Ok(_) => self.phase = Phase::Open,
                Err(NoResult::Error { class, desc }) => {
                    return Err(Disconnect::Refused(format!("no negotiation: {class}: {desc}")));
                }
                Err(NoResult::Skipped(excess)) => {
                    return Err(Disconnect::Refused(format!(
                        "no negotiation: its answer is {excess}"
                    )));
                }
            },
            Waiting::Status => {
                let Some(state) = result.ok().as_ref().and_then(run_state) else {
                    let reason = "query-status is not answered with a run state";
                    return Err(Disconnect::Refused(reason.to_owned()));
                };
                self.ready(outbox).await?;
                return Ok(outbox.tell(QmpNotice::RunState(state)).await?);
            }
            Waiting::Caller { command, reply, .. } => {
                let _ = reply.send(result.map_err(|why| match why {
                    NoResult::Error { class, desc } => QmpError::Command { command, class, desc },
                    NoResult::Skipped(excess) => QmpError::Skipped { command, excess },
                }));
            }
            Waiting::NoCaller => {}
        }
        if self.ready(outbox).await? || is_first {
            self.ask_status();
        }
        Ok(())
    }

    /// Reports Ready if that is news.
    async fn ready(&mut self, outbox: &mut Outbox) -> Result<bool, Disconnect> {
        let news = matches!(self.phase, Phase::Open) && outbox.last != Some(QmpState::Ready);
        if news {
            outbox.state(QmpState::Ready).await?;
        }
        Ok(news)
    }

    pub(super) fn ask_status(&mut self) {
        // An older one that is still open brings the run state just as well.
        if !self.unanswered.values().any(|one| matches!(one.waiting, Waiting::Status)) {
            self.send_own("query-status", Waiting::Status);
        }
    }
}
