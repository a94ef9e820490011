//! The last ticks of a VM, from which its line is drawn. What is not known of a tick stays that.

use std::collections::VecDeque;
use std::time::Duration;

use flatline::api::view::VmView;

/// Ticks that are kept.
pub(in crate::cli::top) const TICKS: usize = 120;

/// What was so in one tick; `None` is not known, or there is nothing that it could be known of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::cli::top) struct Moment {
    /// Packets that the guest sent of its own accord, a second.
    pub(in crate::cli::top) sent: Option<f64>,
    /// Packets that were sent to it, a second.
    pub(in crate::cli::top) received: Option<f64>,
    /// Requests that completed, a second.
    pub(in crate::cli::top) completed: Option<f64>,
    /// CPUs that its vCPUs used together.
    pub(in crate::cli::top) vcpu: Option<f64>,
    /// Requests in flight.
    pub(in crate::cli::top) in_flight: Option<f64>,
}

/// The counters of which the next tick's figures are the difference.
#[derive(Clone, Copy, Debug)]
struct Counters {
    sent: Option<u64>,
    received: Option<u64>,
    completed: Option<u64>,
}

/// A VM's last ticks, the oldest first.
#[derive(Clone, Debug, Default)]
pub(in crate::cli::top) struct Trail {
    moments: VecDeque<Moment>,
    last: Option<Counters>,
}

impl Trail {
    /// One that begins with what the daemon remembers.
    pub(in crate::cli::top) fn new(moments: impl IntoIterator<Item = Moment>) -> Self {
        let mut trail = Self::default();
        moments.into_iter().for_each(|moment| trail.push(moment));
        trail
    }

    fn push(&mut self, moment: Moment) {
        if self.moments.len() == TICKS {
            self.moments.pop_front();
        }
        self.moments.push_back(moment);
    }

    /// Takes up what `vm` says now, `elapsed` after it last did; `None`: nobody knows how long after.
    pub(in crate::cli::top) fn append(&mut self, vm: &VmView, elapsed: Option<Duration>) {
        let network = vm.network.as_ref();
        let counters = Counters {
            // Answers to flatline's own probes are no life.
            sent: network.map(|net| net.guest_tx_packets.saturating_sub(net.probe_answers)),
            received: network.and_then(|net| net.guest_rx_packets),
            completed: vm.storage.as_ref().map(|storage| storage.completed_ops),
        };
        let last = self.last.replace(counters);
        let known_before = last.is_some();
        let rate = |before: Option<u64>, now: Option<u64>| {
            let seconds = elapsed.map(|span| span.as_secs_f64()).filter(|span| *span > 0.0)?;
            // A daemon that was started again counts from zero: then it isn't known.
            Some(count(now?.checked_sub(before?)?) / seconds)
        };
        let busy: Option<f64> = vm.vcpus.iter().map(|vcpu| vcpu.busy_ratio).sum();
        let moment = Moment {
            sent: last.and_then(|last| rate(last.sent, counters.sent)),
            received: last.and_then(|last| rate(last.received, counters.received)),
            completed: last.and_then(|last| rate(last.completed, counters.completed)),
            vcpu: busy.filter(|_| !vm.vcpus.is_empty()),
            in_flight: vm.storage.as_ref().map(|storage| count(storage.in_flight)),
        };
        // After what the daemon remembers, its last tick stands already.
        if known_before || self.moments.is_empty() {
            self.push(moment);
        }
    }

    /// Notes a tick of which nothing is known: the daemon was away.
    pub(in crate::cli::top) fn skip(&mut self) {
        self.push(Moment::default());
    }

    /// The last tick.
    pub(in crate::cli::top) fn now(&self) -> Moment {
        self.moments.back().copied().unwrap_or_default()
    }

    /// The guest's signs of life in the last `width` ticks, a second: what it sent and what completed for it. `None`
    /// is not known. What a VM never had, such as a tap, says nothing of it.
    pub(in crate::cli::top) fn life(&self, width: usize) -> Vec<Option<f64>> {
        let has = |figure: fn(&Moment) -> Option<f64>| {
            self.moments.iter().any(|moment| figure(moment).is_some()).then_some(figure)
        };
        let figures: Vec<_> = [has(|moment| moment.sent), has(|moment| moment.completed)]
            .into_iter()
            .flatten()
            .collect();
        let life = |moment: &Moment| {
            let known = figures.iter().map(|figure| figure(moment));
            let sum: f64 = known.clone().flatten().sum();
            // One sign is life, whatever else isn't known.
            (sum > 0.0 || !figures.is_empty() && known.clone().all(|figure| figure.is_some()))
                .then_some(sum)
        };
        let shown = self.moments.len().min(width);
        let unknown = std::iter::repeat_n(None, width - shown);
        unknown.chain(self.moments.range(self.moments.len() - shown..).map(life)).collect()
    }
}

/// Exact up to 2^53, which no rate reaches.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn count(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::samples::vm;

    const SECOND: Option<Duration> = Some(Duration::from_secs(1));

    /// A VM with these counters, `None` where they can't be read.
    fn counted(sent: Option<u64>, completed: Option<u64>) -> VmView {
        let mut vm = vm("a", 1, "alive");
        match (&mut vm.network, sent) {
            (Some(network), Some(sent)) => network.guest_tx_packets = sent,
            (network, _) => *network = None,
        }
        match (&mut vm.storage, completed) {
            (Some(storage), Some(completed)) => storage.completed_ops = completed,
            (storage, _) => *storage = None,
        }
        vm
    }

    fn line(vms: &[VmView], width: usize) -> Vec<Option<f64>> {
        let mut trail = Trail::default();
        vms.iter().for_each(|vm| trail.append(vm, SECOND));
        trail.life(width)
    }

    #[test]
    fn what_moved_is_life_what_stood_is_flat_and_what_was_unreadable_is_unknown() {
        let vms = [
            counted(Some(10), Some(5)),
            counted(Some(12), Some(5)),
            counted(Some(12), Some(5)),
            counted(None, Some(5)),
            counted(Some(12), Some(5)),
            counted(Some(12), Some(9)),
        ];
        let life = line(&vms, 7);
        assert_eq!(life, [None, None, Some(2.0), Some(0.0), None, None, Some(4.0)]);
    }

    #[test]
    fn a_vm_without_a_tap_is_judged_by_its_disk_and_one_without_either_is_unknown() {
        let disk = [counted(None, Some(5)), counted(None, Some(5)), counted(None, Some(6))];
        assert_eq!(line(&disk, 3), [None, Some(0.0), Some(1.0)]);
        assert_eq!(line(&[counted(None, None), counted(None, None)], 2), [None, None]);
    }

    #[test]
    fn answers_to_probes_are_no_life_and_a_new_daemons_counters_are_no_figures() {
        let mut answered = counted(Some(11), Some(5));
        if let Some(network) = &mut answered.network {
            network.probe_answers = 1;
        }
        let life = line(&[counted(Some(10), Some(5)), answered, counted(Some(0), Some(0))], 3);
        assert_eq!(life, [None, Some(0.0), None]);
    }

    #[test]
    fn a_rate_is_a_seconds_and_none_without_the_time() {
        let mut trail = Trail::default();
        trail.append(&counted(Some(0), Some(0)), None);
        trail.append(&counted(Some(30), Some(0)), Some(Duration::from_secs(2)));
        assert_eq!((trail.now().sent, trail.now().vcpu), (Some(15.0), Some(0.25)));
        trail.append(&counted(Some(60), Some(0)), None);
        assert_eq!(trail.now().sent, None);
    }

    #[test]
    fn what_the_daemon_remembers_comes_first_and_a_gap_is_unknown() {
        let remembered = Moment { sent: Some(3.0), completed: Some(0.0), ..Moment::default() };
        let mut trail = Trail::new(vec![remembered; 500]);
        trail.append(&counted(Some(7), Some(7)), None);
        trail.append(&counted(Some(7), Some(7)), SECOND);
        trail.skip();
        assert_eq!(trail.life(4), [Some(3.0), Some(3.0), Some(0.0), None]);
        assert_eq!(trail.life(TICKS + 1).iter().filter(|life| life.is_none()).count(), 2);
    }
}
