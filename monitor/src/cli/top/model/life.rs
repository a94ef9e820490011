//! The line of a VM: its guest's signs of life in the last ticks. What is not known of a tick stays that.

use crate::history::{Rate, TickRates, Ticks};

/// What the guest sent and what completed for it in the last `width` ticks, a second; `None` is not known. What a VM
/// never had, such as a tap, says nothing of it.
pub(in crate::cli::top) fn life(ticks: &Ticks, width: usize) -> Vec<Option<f64>> {
    let is_known = |rate: &Rate| ticks.last(usize::MAX).any(|rates| rates.get(*rate).is_some());
    let known: Vec<Rate> =
        [Rate::PacketsFromGuest, Rate::Completed].into_iter().filter(is_known).collect();
    let life = |rates: &TickRates| {
        let signs = known.iter().map(|rate| rates.get(*rate).map(f64::from));
        let sum: f64 = signs.clone().flatten().sum();
        // One sign is life, whatever else isn't known.
        let is_told = sum > 0.0 || !known.is_empty() && signs.clone().all(|sign| sign.is_some());
        is_told.then_some(sum)
    };
    let shown = ticks.last(width);
    let lacking = width.saturating_sub(ticks.len());
    std::iter::repeat_n(None, lacking).chain(shown.map(life)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::api::view::VmView;
    use crate::history::HISTORY_TICKS;

    use super::super::row::Row;
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

    /// The row of a VM of which the daemon says this, one tick after the other.
    fn row(vms: &[VmView]) -> Row {
        let first = Row::first(vms[0].clone(), Ticks::default());
        vms[1..].iter().fold(first, |row, vm| row.next(vm.clone(), SECOND))
    }

    fn line(vms: &[VmView], width: usize) -> Vec<Option<f64>> {
        life(&row(vms).ticks, width)
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
        let row = row(&[counted(Some(0), Some(0))]);
        let row = row.next(counted(Some(30), Some(0)), Some(Duration::from_secs(2)));
        let rates = (row.rate(Rate::PacketsFromGuest), row.rate(Rate::Vcpu));
        assert_eq!(rates, (Some(15.0), Some(0.25)));
        let row = row.next(counted(Some(60), Some(0)), None);
        assert_eq!(row.rate(Rate::PacketsFromGuest), None);
    }

    #[test]
    fn what_the_daemon_remembers_comes_first_and_a_gap_is_unknown() {
        let remembered = TickRates::UNKNOWN
            .with(Rate::PacketsFromGuest, Some(3.0))
            .with(Rate::Completed, Some(0.0));
        let mut ticks = Ticks::default();
        (0..500).for_each(|_| ticks.push(remembered));
        let row = Row::first(counted(Some(7), Some(7)), ticks);
        let mut row = row.next(counted(Some(7), Some(7)), SECOND);
        row.ticks.push(TickRates::UNKNOWN);
        assert_eq!(life(&row.ticks, 4), [Some(3.0), Some(3.0), Some(0.0), None]);
        let unknown = life(&row.ticks, HISTORY_TICKS + 1).into_iter().filter(Option::is_none);
        assert_eq!(unknown.count(), 2);
    }
}
