//! Signals of one VM: what its verdict was made from, in words.

use std::time::Duration;

use super::Views;
use crate::{api::view::SignalView, probes::WITNESSES, rfc3339, vm::WatchedVm};
use flatline_detector::verdict::{PINNED_RATIO, STILL_BUSY_RATIO, Statement, Watch};
use flatline_samples::Missing;

impl Views<'_> {
    /// All signals, in the order in which they are shown.
    pub(super) fn signals(&self, watched: &WatchedVm) -> Vec<SignalView> {
        let Watch { liveness, silence, .. } = &watched.detector.watch;
        let policy = &watched.detector.detection.policy;
        let since = |moment: Option<Duration>| {
            moment.map(|moment| rfc3339::format(self.context.wall_clock(moment)))
        };
        let life = watched.last_life();
        let ago = self.context.now.saturating_sub(life).as_secs_f64();
        // What the window began anew for is no sign of life.
        let mark = if liveness.last_life == silence.life { ":" } else { ";" };
        let is_silent = silence.suspected || watched.silence(self.context.now) >= policy.flat_for;
        let mut signals = vec![signal(
            "sign of life",
            format!("{ago:.1} s ago{mark} {}", liveness.last_sign),
            format!("suspect after {}", humantime::format_duration(policy.flat_for)),
            since(Some(life)),
            if is_silent { "silent" } else { "lives" },
        )];
        if let Some(activity) = watched.sensors.newest_activity() {
            signals.push(moved(
                "network",
                activity.network.as_ref().map(|network| match network {
                    None => "has no tap".to_owned(),
                    Some(network) => format!(
                        "{} packets from the guest, {} to it, {} answers to probes",
                        network.guest_packets,
                        network.packets_to_guest.map_or("uncounted".to_owned(), |n| n.to_string()),
                        network.probe_answers
                    ),
                }),
            ));
            signals.push(moved(
                "storage",
                activity.storage.as_ref().map(|storage| {
                    let unseen = self.registry.unseen_storage(watched);
                    format!(
                        "{} submitted, {} completed, {} in flight{}{}",
                        storage.submitted,
                        storage.completed,
                        storage.in_flight,
                        if unseen.is_empty() { "" } else { "; unseen: " },
                        unseen.join(", ")
                    )
                }),
            ));
        }
        signals.extend(self.heartbeat_signal(watched));
        signals.push(level(watched, since(liveness.still_since.or(liveness.pinned_since))));
        signals.extend(witnesses(watched));
        signals
    }
}

/// A signal, held against `threshold`.
pub(super) fn signal(
    name: &str,
    value: String,
    threshold: String,
    since: Option<String>,
    verdict: &str,
) -> SignalView {
    SignalView { name: name.to_owned(), value, threshold, since, verdict: verdict.to_owned() }
}

/// How much the vCPUs run, since when it is so little or so much.
fn level(watched: &WatchedVm, since: Option<String>) -> SignalView {
    let liveness = &watched.detector.watch.liveness;
    let vcpus = watched.sensors.newest_activity().map(|activity| activity.vcpus.as_ref());
    let value = match vcpus {
        None => "not read yet".to_owned(),
        Some(Err(missing)) => missing.to_string(),
        Some(Ok(vcpus)) => vcpus
            .iter()
            .map(|vcpu| {
                let (busy, waiting) = (vcpu.busy * 100.0, vcpu.waiting * 100.0);
                format!("vCPU {} runs {busy:.1} %, waits {waiting:.1} %", vcpu.index)
            })
            .collect::<Vec<_>>()
            .join("; "),
    };
    let verdict = match (liveness.still_since, liveness.pinned_since) {
        (Some(_), _) => "stands still",
        (None, Some(_)) => "pinned",
        (None, None) => "moves",
    };
    let (still, pinned) = (STILL_BUSY_RATIO * 100.0, PINNED_RATIO * 100.0);
    let threshold = format!("still below {still:.0} %, pinned above {pinned:.0} %");
    signal("vCPU time", value, threshold, since, verdict)
}

/// What moved since the last tick.
fn moved(name: &str, figure: Result<String, &Missing>) -> SignalView {
    let verdict = if figure.is_ok() { "read" } else { "unreadable" };
    let value = figure.unwrap_or_else(|missing| missing.why.clone());
    signal(name, value, "any packet or completion is life".to_owned(), None, verdict)
}

/// What the witnesses said last, where they were asked.
fn witnesses(watched: &WatchedVm) -> Vec<SignalView> {
    let Some(testimony) = &watched.detector.testimony else { return Vec::new() };
    let view = |said: &Statement| {
        let has_answered = watched.detector.watch.boot.answered.contains(&said.witness);
        let calibrated = if has_answered { "; answered before in this boot" } else { "" };
        let row = WITNESSES.iter().find(|witness| witness.name == said.witness);
        let threshold = format!("{}{calibrated}", row.map_or("", |witness| witness.looks_for));
        let (name, text) = (said.witness.to_string(), said.answer.text().to_owned());
        signal(&name, text, threshold, None, said.answer.word())
    };
    testimony.statements.iter().map(view).collect()
}
