//! Views of heartbeats: what guests' agents said, on the cards and the port together.

use super::{Teller, Views, signals::signal};
use crate::{
    api::view::{HeartbeatView, SignalView},
    rfc3339,
    vm::WatchedVm,
};
use flatline_detector::verdict::{DetectionPolicy, lost_after};
use flatline_samples::{Heard, Heartbeats, LastBeat};

/// What an agent said on all ways together.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeartbeatSummary<'a> {
    pub(super) beats: u64,
    pub(super) failures: u64,
    pub(super) malformed: u64,
    /// What it said last, and how many seconds ago, where that is known.
    pub(super) last: Option<(&'a LastBeat, Option<f64>)>,
}

impl Teller {
    /// Puts together what was heard on all ways, such as cards and port; `None` where nothing was.
    pub(super) fn summary<'a>(
        &self,
        ways: impl IntoIterator<Item = &'a Heartbeats>,
    ) -> Option<HeartbeatSummary<'a>> {
        let mut summary = HeartbeatSummary { beats: 0, failures: 0, malformed: 0, last: None };
        for way in ways {
            let Heartbeats { beats, failures, leavings: _, malformed, last } = way;
            summary.beats += beats;
            summary.failures += failures;
            summary.malformed += malformed;
            let Some(last) = last else { continue };
            let age = self.age_of(last.heard);
            // A beat of unknown age counts as the oldest.
            let rank = |age: Option<f64>| age.unwrap_or(f64::INFINITY);
            if summary.last.is_none_or(|(_, least)| rank(age) < rank(least)) {
                summary.last = Some((last, age));
            }
        }
        (summary.last.is_some() || summary.malformed > 0).then_some(summary)
    }

    /// What the VM's agent said on all ways.
    pub(super) fn heartbeat_view(&self, said: &[Heartbeats]) -> Option<HeartbeatView> {
        let HeartbeatSummary { beats, failures, malformed, last } = self.summary(said)?;
        let (last, last_seconds) = last.unzip();
        Some(HeartbeatView {
            beats,
            failures,
            malformed,
            last_seconds: last_seconds.flatten(),
            interval_seconds: last.map(|last| last.interval.as_secs_f64()),
            boot: last.map(|last| format!("{:016x}", last.boot)),
            sequence: last.map(|last| last.sequence),
            leaving: last.is_some_and(|last| last.leaving),
            check: last.map(|last| last.check.clone()).filter(|check| !check.is_empty()),
        })
    }

    /// Seconds since something was heard; `None` where that can't be told.
    fn age_of(&self, heard: Heard) -> Option<f64> {
        match heard {
            Heard::Jiffies(jiffies) => self.since_jiffies(jiffies),
            Heard::At(moment) => Some(self.now.saturating_sub(moment).as_secs_f64()),
        }
    }
}

impl Views<'_> {
    /// The heartbeat's line among the signals, where it was ever heard in this boot.
    pub(super) fn heartbeat_signal(&self, watched: &WatchedVm) -> Option<SignalView> {
        let heartbeat = watched.detector.watch.boot.heartbeat.as_ref()?;
        let DetectionPolicy { policy, tick } = &watched.detector.detection;
        let patience = lost_after(heartbeat.interval, policy, *tick);
        let ago = |moment| self.context.now.saturating_sub(moment).as_secs_f64();
        let mut value = match heartbeat.beat {
            Some(beat) => format!("{:.1} s ago", ago(beat)),
            None => "none in this boot".to_owned(),
        };
        if !heartbeat.check.is_empty() {
            value.push_str(&format!("; checks {}", heartbeat.check));
        }
        let verdict = match (&heartbeat.leaving, &heartbeat.missed) {
            (Some(_), _) => "goes down",
            (None, Some(_)) => "missed",
            (None, None) => "beats",
        };
        let threshold = format!("missed after {:.0} s", patience.as_secs_f64());
        let since = heartbeat.beat.map(|beat| rfc3339::format(self.context.wall_clock(beat)));
        Some(signal("heartbeat", value, threshold, since, verdict))
    }
}
