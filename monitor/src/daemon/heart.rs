//! What is shown of guests' agents.

use super::{engine::Engine, vm::WatchedVm};
use crate::{
    report::view::{HeartbeatView, SignalView},
    sample::{Heard, Heartbeats, LastBeat},
    verdict::lost_after,
};

impl Engine {
    /// What the VM's agent said, read anew: malformed frames are counted where nobody looks every second.
    pub(super) fn heartbeat_view(&self, watched: &WatchedVm) -> Option<HeartbeatView> {
        let slot = watched.slot.as_ref().ok();
        let on_cards = slot.and_then(|slot| self.heartbeats.of(watched.vm.id, *slot).ok());
        let by_port = watched.port.as_ref().and_then(|port| port.heartbeats().ok());
        let all = [on_cards, by_port].map(Option::unwrap_or_default);
        let sum = |of: fn(&Heartbeats) -> u64| all.iter().map(of).sum::<u64>();
        let age = |last: &LastBeat| self.age_of(last.heard);
        let last = all.iter().filter_map(|one| one.last.as_ref());
        // Whoever's age isn't known spoke before whoever's is.
        let last = last.min_by(|a, b| {
            let age = |last| age(last).unwrap_or(f64::INFINITY);
            age(a).total_cmp(&age(b))
        });
        let malformed = sum(|one| one.malformed);
        if last.is_none() && malformed == 0 {
            return None;
        }
        Some(HeartbeatView {
            beats: sum(|one| one.beats),
            failures: sum(|one| one.failures),
            malformed,
            last_seconds: last.and_then(age),
            interval_seconds: last.map(|last| last.interval.as_secs_f64()),
            boot: last.map(|last| format!("{:016x}", last.boot)),
            sequence: last.map(|last| last.sequence),
            leaving: last.is_some_and(|last| last.leaving),
            check: last.map(|last| last.check.clone()).filter(|check| !check.is_empty()),
        })
    }

    pub(super) fn age_of(&self, heard: Heard) -> Option<f64> {
        match heard {
            Heard::Jiffies(jiffies) => self.since_jiffies(jiffies),
            Heard::At(moment) => Some(self.now().saturating_sub(moment).as_secs_f64()),
        }
    }

    /// Its line among the signals, where it was ever heard in this boot.
    pub(super) fn heartbeat_signal(&self, watched: &WatchedVm) -> Option<SignalView> {
        let pulse = watched.watch.boot.pulse.as_ref()?;
        let patience = lost_after(pulse.interval, &watched.terms.policy, watched.terms.tick);
        let ago = |moment| self.now().saturating_sub(moment).as_secs_f64();
        let mut value = match pulse.beat {
            Some(beat) => format!("{:.1} s ago", ago(beat)),
            None => "none in this boot".to_owned(),
        };
        if !pulse.check.is_empty() {
            value.push_str(&format!("; checks {}", pulse.check));
        }
        let verdict = match (&pulse.leaving, &pulse.missed) {
            (Some(_), _) => "goes down",
            (None, Some(_)) => "missed",
            (None, None) => "beats",
        };
        Some(SignalView {
            name: "heartbeat".to_owned(),
            value,
            threshold: format!("missed after {:.0} s", patience.as_secs_f64()),
            since: pulse.beat.map(|beat| crate::report::rfc3339::format(self.wall_clock(beat))),
            verdict: verdict.to_owned(),
        })
    }
}
