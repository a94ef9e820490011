//! Readings of VMs' memory: begun when they are due, a few a tick.

use std::time::Duration;

use super::message::{Inboxes, Message};
use crate::vm::Vms;

/// Readings that a tick begins at most: a thousand VMs that were found together take turns.
const MOST_A_TICK: usize = 64;

/// Begins the readings that are due.
pub(super) fn begin_readings(vms: &mut Vms, inboxes: &Inboxes, now: Duration) {
    let due = vms.iter_mut().filter(|(_, watched)| watched.memory.is_due(now));
    for (id, watched) in due.take(MOST_A_TICK) {
        let (id, reading) = (*id, watched.begin_memory_reading(now));
        inboxes.report(async move { Message::Memory(id, Box::new(reading.await)) });
    }
}
