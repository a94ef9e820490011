//! Matches the replay's convictions with those that were given live.
//!
//! One that only one side has given is pending, until the other one gives it or the guest has moved on.

use std::time::Duration;

use super::{Replayer, StateSummary};
use crate::verdict::Cause;

impl Replayer {
    /// Matches convictions of both sides.
    pub(super) fn compare(&mut self, at: Duration, live: Option<Cause>, replay: Option<Cause>) {
        match (live, replay) {
            (None, None) => {}
            (Some(live), Some(replay)) => {
                self.settle("it was convicted again");
                let summary = &mut self.replay.summary;
                if live == replay {
                    summary.same_convictions += 1;
                } else {
                    summary.other_causes += 1;
                }
            }
            (Some(_), None) => match self.pending_replay.take() {
                Some(earlier) => {
                    self.replay.summary.earlier_convictions += 1;
                    self.note(at, by("earlier", at, earlier));
                }
                None => self.pending_live = Some(at),
            },
            (None, Some(_)) => match self.pending_live.take() {
                Some(earlier) => {
                    self.replay.summary.later_convictions += 1;
                    self.note(at, by("later", at, earlier));
                }
                None => self.pending_replay = Some(at),
            },
        }
    }

    /// Counts a conviction as missing once the guest has moved on without it.
    pub(super) fn end_episodes(&mut self, at: Duration, reset: bool, replay: StateSummary) {
        let moves_on = |summary: StateSummary| matches!(summary.state, "alive" | "starting");
        if self.pending_live.is_some() && (reset || moves_on(self.live)) {
            self.missing(at, if reset { "the guest was restarted" } else { "it came back" });
        }
        if self.pending_replay.is_some() && (reset || moves_on(replay) || replay.state == "suspect")
        {
            self.additional(at);
        }
    }

    /// Counts what is pending: nothing more comes for it.
    pub(super) fn settle(&mut self, why: &str) {
        if let Some(pending) = self.pending_live {
            self.missing(pending, why);
        }
        if let Some(pending) = self.pending_replay {
            self.additional(pending);
        }
    }

    fn missing(&mut self, at: Duration, why: &str) {
        self.pending_live = None;
        self.replay.summary.missing_convictions += 1;
        self.note(at, format!("the replay had not convicted it when {why}"));
    }

    fn additional(&mut self, at: Duration) {
        self.pending_replay = None;
        self.replay.summary.additional_convictions += 1;
        self.note(at, "only the replay convicted it".to_owned());
    }
}

fn by(how: &str, one: Duration, other: Duration) -> String {
    let seconds = one.saturating_sub(other).as_secs_f64();
    format!("the replay convicts it {seconds:.1} s {how} than it was live")
}
