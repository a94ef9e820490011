//! Readings of VMs' memory: begun when they are due, a few a tick.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use super::message::{Inboxes, Message};
use crate::vm::Vms;
use flatline_qemu::discover::VmId;

/// Readings that a tick begins at most: a thousand VMs that were found together take turns.
const MOST_A_TICK: usize = 64;

/// When VMs' memory is to be read, the earliest first. One stands here more than once where that was changed.
#[derive(Debug, Default)]
pub(super) struct Readings(BinaryHeap<Reverse<(Duration, VmId)>>);

impl Readings {
    /// Takes note that a VM's memory is to be read at `due`.
    pub(super) fn plan(&mut self, vm: VmId, due: Duration) {
        self.0.push(Reverse((due, vm)));
    }

    /// Begins the readings that are due.
    pub(super) fn begin(&mut self, vms: &mut Vms, inboxes: &Inboxes, now: Duration) {
        let mut begun = 0;
        while begun < MOST_A_TICK
            && let Some(&Reverse((due, id))) = self.0.peek()
            && due <= now
        {
            self.0.pop();
            let Some(watched) = vms.get_mut(&id) else { continue };
            match watched.memory.due() {
                Some(due) if due <= now => {
                    let reading = watched.begin_memory_reading(now);
                    inboxes.report(async move { Message::Memory(id, Box::new(reading.await)) });
                    begun += 1;
                }
                Some(later) => self.plan(id, later),
                // Its end, or another configuration, plans the next one.
                None => {}
            }
        }
    }
}
