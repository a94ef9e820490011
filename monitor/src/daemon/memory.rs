//! Readings of VMs' memory: begun when they are due, a few a tick.

use std::time::Duration;

use super::{Message, event_loop::EventLoop};

/// Readings that a tick begins at most: a thousand VMs that were found together take turns.
const MOST_A_TICK: usize = 64;
impl EventLoop {
    /// Begins the readings that are due.
    pub(super) fn read_memory(&mut self, now: Duration) {
        let due = self.registry.vms.iter_mut().filter(|(_, watched)| watched.memory_is_due(now));
        for (id, watched) in due.take(MOST_A_TICK) {
            let (id, messages) = (*id, self.inboxes.messages.clone());
            let reading = watched.begin_memory_reading(now);
            tokio::spawn(async move {
                let read = Box::new(reading.await);
                let _ = messages.send(Message::Memory(id, read));
            });
        }
    }
}
