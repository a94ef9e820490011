//! Lost completions: requests that completed, and that the programs did not see complete.
//!
//! The kernel skips a program that would interrupt itself, and may skip tracing in contexts of its own
//! choice; one completion in some thousands was seen to be lost so. Each would leave a request *in
//! flight* for ever, which is what a stalled store looks like. So where nothing moves, the kernel's own
//! [account of its devices](Devices) is asked: where no device is stalled, ours are lost ones, and no longer
//! counted.

use std::time::Duration;

use monitor_ebpf::StorageCounters;

use super::Devices;

/// How long no device must have anything in flight. A request may lie in a queue for a moment before its
/// device counts it.
const SETTLE_AFTER: Duration = Duration::from_secs(3);
/// How long all devices that have something in flight must go on completing: longer than any driver of a disk
/// waits for a single request (30 s, `SD_TIMEOUT` in drivers/scsi/sd.h, `nvme_io_timeout`).
const OVERTAKEN_AFTER: Duration = Duration::from_secs(45);

/// What is known of one VM's lost completions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LostCompletions {
    lost: u64,
    /// Since when the same requests have been in flight though no device is stalled, and though no device has
    /// any; and how many followed and completed requests there were then.
    suspected: Option<Suspected>,
}

#[derive(Clone, Copy, Debug)]
struct Suspected {
    since: Duration,
    idle_since: Option<Duration>,
    counts: (u64, u64),
}

impl LostCompletions {
    /// Requests in flight, without those that are known to be lost.
    pub(crate) fn in_flight(&self, storage: &StorageCounters) -> u64 {
        self.without_lost(*storage).in_flight()
    }

    /// Takes lost requests out of `storage`, so that `tracked_ops - completed_ops` is what is in flight.
    ///
    /// `devices` is asked only where something seems to be in flight.
    pub(crate) fn settle(
        &mut self,
        storage: StorageCounters,
        devices: impl FnOnce() -> Devices,
        now: Duration,
    ) -> StorageCounters {
        let counts = (storage.tracked_ops, storage.completed_ops);
        let in_flight = self.in_flight(&storage);
        let devices = if in_flight == 0 { None } else { Some(devices()) };
        let idle = devices == Some(Devices::Idle);
        match (devices, self.suspected) {
            (None | Some(Devices::Stalled), _) => self.suspected = None,
            (Some(_), Some(mut suspected)) if suspected.counts == counts => {
                suspected.idle_since = idle.then(|| suspected.idle_since.unwrap_or(now));
                let lasts = |since, span| now.saturating_sub(since) >= span;
                let lost = lasts(suspected.since, OVERTAKEN_AFTER)
                    || suspected.idle_since.is_some_and(|since| lasts(since, SETTLE_AFTER));
                if lost {
                    self.lost += in_flight;
                }
                self.suspected = (!lost).then_some(suspected);
            }
            (Some(_), _) => {
                let idle_since = idle.then_some(now);
                self.suspected = Some(Suspected { since: now, idle_since, counts });
            }
        }
        self.without_lost(storage)
    }

    /// `storage` without the requests that are known to be lost.
    pub(crate) fn without_lost(&self, storage: StorageCounters) -> StorageCounters {
        StorageCounters { tracked_ops: storage.tracked_ops.saturating_sub(self.lost), ..storage }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(1);

    fn storage(tracked_ops: u64, completed_ops: u64) -> StorageCounters {
        StorageCounters { tracked_ops, completed_ops, ..StorageCounters::default() }
    }

    fn in_flight(storage: StorageCounters) -> u64 {
        storage.tracked_ops - storage.completed_ops
    }

    #[test]
    fn requests_that_no_device_knows_of_are_lost_after_a_while_and_stay_so() {
        let mut lost = LostCompletions::default();
        for second in 0..3 {
            assert_eq!(in_flight(lost.settle(storage(9, 7), || Devices::Idle, TICK * second)), 2);
        }
        assert_eq!(in_flight(lost.settle(storage(9, 7), || Devices::Idle, TICK * 3)), 0);
        // One more that is really in flight counts as one.
        assert_eq!(in_flight(lost.settle(storage(10, 7), || Devices::Stalled, TICK * 4)), 1);
        assert_eq!(in_flight(lost.settle(storage(10, 8), || Devices::Stalled, TICK * 5)), 0);
    }

    #[test]
    fn requests_of_a_stalled_store_are_never_lost() {
        let mut lost = LostCompletions::default();
        for second in 0..1000 {
            assert_eq!(
                in_flight(lost.settle(storage(9, 7), || Devices::Stalled, TICK * second)),
                2
            );
        }
    }

    #[test]
    fn requests_that_all_others_overtook_are_lost_after_longer_than_any_disk_takes() {
        let mut lost = LostCompletions::default();
        for second in 0..45 {
            let settled = lost.settle(storage(9, 7), || Devices::Moving, TICK * second);
            assert_eq!(in_flight(settled), 2, "after {second} s");
        }
        assert_eq!(in_flight(lost.settle(storage(9, 7), || Devices::Moving, TICK * 45)), 0);
    }

    #[test]
    fn a_device_that_stalls_once_begins_it_anew() {
        let mut lost = LostCompletions::default();
        for second in 0..300 {
            let devices = if second % 40 == 0 { Devices::Stalled } else { Devices::Moving };
            assert_eq!(in_flight(lost.settle(storage(9, 7), || devices, TICK * second)), 2);
        }
    }

    #[test]
    fn requests_that_still_move_are_not_lost() {
        let mut lost = LostCompletions::default();
        for n in 0..1000_u32 {
            let completed = u64::from(n);
            let settled =
                lost.settle(storage(completed + 2, completed), || Devices::Idle, TICK * n);
            assert_eq!(in_flight(settled), 2);
        }
    }

    #[test]
    fn the_host_is_asked_only_where_something_seems_to_be_in_flight() {
        let mut lost = LostCompletions::default();
        lost.settle(storage(7, 7), || unreachable!("nothing is in flight"), TICK);
    }
}
