//! Glance at a VM's counters: enough for the history of rates, in ticks in which it is not sampled.

use std::time::Duration;

use crate::history::{Rate, TickRates};

/// Counters at one moment; `None`: they can't be read, or there is nothing to be counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glance {
    pub(super) at: Duration,
    /// Packets that the guest sent of its own accord.
    pub(super) sent: Option<u64>,
    /// Packets that were sent to it.
    pub(super) received: Option<u64>,
    /// Answers to flatline's probes.
    pub(super) answers: Option<u64>,
    /// Requests that completed.
    pub(super) completed: u64,
    /// Requests in flight.
    pub(super) in_flight: u64,
}

impl Glance {
    /// The rates since an earlier one. A counter that ran backwards was replaced: its rate is unknown.
    pub(super) fn since(&self, before: &Self) -> TickRates {
        let elapsed = self.at.saturating_sub(before.at);
        let rate = |before: Option<u64>, now: Option<u64>| {
            TickRates::per_second(now?.checked_sub(before?)?, elapsed)
        };
        TickRates::UNKNOWN
            .with(Rate::PacketsFromGuest, rate(before.sent, self.sent))
            .with(Rate::PacketsToGuest, rate(before.received, self.received))
            .with(Rate::ProbeAnswers, rate(before.answers, self.answers))
            .with(Rate::Completed, rate(Some(before.completed), Some(self.completed)))
            .with(Rate::InFlight, Some(TickRates::exact(self.in_flight)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glance(second: u64, sent: u64) -> Glance {
        let at = Duration::from_secs(second);
        let received = Some(2 * sent);
        Glance { at, sent: Some(sent), received, answers: None, completed: 3, in_flight: 4 }
    }

    #[test]
    fn rates_are_per_second_and_what_is_not_known_has_none() {
        let rates = glance(12, 30).since(&glance(10, 10));
        assert_eq!(rates.get(Rate::PacketsFromGuest), Some(10.0));
        assert_eq!(rates.get(Rate::PacketsToGuest), Some(20.0));
        assert_eq!(rates.get(Rate::ProbeAnswers), None);
        assert_eq!((rates.get(Rate::Completed), rates.get(Rate::InFlight)), (Some(0.0), Some(4.0)));
        assert_eq!(rates.get(Rate::Vcpu), None);
        assert_eq!(glance(12, 9).since(&glance(10, 10)).get(Rate::PacketsFromGuest), None);
    }
}
