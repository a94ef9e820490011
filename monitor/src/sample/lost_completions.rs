//! Completions that the programs did not see.
//!
//! The kernel skips a program that would interrupt itself, and may skip tracing in contexts of its own
//! choice; one completion in some thousands was seen to be lost so. Each would leave a request *in
//! flight* for ever, which is what a stalled store looks like. So where nothing moves, the kernel's own
//! count of requests in flight is asked: if no device has any, ours are lost ones, and no longer counted.

use std::{fs, time::Duration};

use monitor_ebpf::StorageCounters;

/// How long no device must have anything in flight. A request may lie in a queue for a moment before its
/// device counts it.
const SETTLE_AFTER: Duration = Duration::from_secs(3);

/// What is known of one VM's lost completions.
#[derive(Clone, Copy, Debug, Default)]
pub struct LostCompletions {
    lost: u64,
    /// Since when the same requests have been in flight though no device has any, and how many followed
    /// and completed requests there were then.
    suspected: Option<(Duration, u64, u64)>,
}

impl LostCompletions {
    /// Takes lost requests out of `storage`, so that `tracked_ops - completed_ops` is what is in flight.
    ///
    /// `host_is_idle` is asked only where something seems to be in flight; it tells whether no device has
    /// any request in flight, and `false` where that can't be told.
    pub fn settle(
        &mut self,
        storage: StorageCounters,
        host_is_idle: impl FnOnce() -> bool,
        now: Duration,
    ) -> StorageCounters {
        let counts = (storage.tracked_ops, storage.completed_ops);
        let in_flight = storage.tracked_ops.saturating_sub(storage.completed_ops + self.lost);
        if in_flight == 0 || !host_is_idle() {
            self.suspected = None;
        } else {
            match self.suspected {
                Some((since, tracked, completed)) if (tracked, completed) == counts => {
                    if now.saturating_sub(since) >= SETTLE_AFTER {
                        self.lost += in_flight;
                        self.suspected = None;
                    }
                }
                _ => self.suspected = Some((now, counts.0, counts.1)),
            }
        }
        StorageCounters { tracked_ops: storage.tracked_ops.saturating_sub(self.lost), ..storage }
    }
}

/// Whether no block device of this host has a request in flight; `false` if that can't be told.
pub fn no_device_has_requests() -> bool {
    let Ok(devices) = fs::read_dir("/sys/block") else { return false };
    let mut any = false;
    for device in devices.flatten() {
        // Reads and writes (Documentation/ABI/stable/sysfs-block).
        let Ok(text) = fs::read_to_string(device.path().join("inflight")) else { return false };
        if text.split_ascii_whitespace().any(|count| count != "0") {
            return false;
        }
        any = true;
    }
    any
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
            assert_eq!(in_flight(lost.settle(storage(9, 7), || true, TICK * second)), 2);
        }
        assert_eq!(in_flight(lost.settle(storage(9, 7), || true, TICK * 3)), 0);
        // One more that is really in flight counts as one.
        assert_eq!(in_flight(lost.settle(storage(10, 7), || false, TICK * 4)), 1);
        assert_eq!(in_flight(lost.settle(storage(10, 8), || false, TICK * 5)), 0);
    }

    #[test]
    fn requests_of_a_stalled_store_are_never_lost() {
        let mut lost = LostCompletions::default();
        for second in 0..1000 {
            assert_eq!(in_flight(lost.settle(storage(9, 7), || false, TICK * second)), 2);
        }
    }

    #[test]
    fn requests_that_still_move_are_not_lost() {
        let mut lost = LostCompletions::default();
        for n in 0..1000_u32 {
            let completed = u64::from(n);
            let settled = lost.settle(storage(completed + 2, completed), || true, TICK * n);
            assert_eq!(in_flight(settled), 2);
        }
    }

    #[test]
    fn the_host_is_asked_only_where_something_seems_to_be_in_flight() {
        let mut lost = LostCompletions::default();
        lost.settle(storage(7, 7), || unreachable!("nothing is in flight"), TICK);
    }
}
