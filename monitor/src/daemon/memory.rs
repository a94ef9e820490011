//! Readings of VMs' memory: begun when they are due, a few a tick. Those that wait for nothing are carried out together, and those that are
//! made when a client asks only while a guest is silent.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, time::Duration};

use super::message::{Inboxes, Message};
use crate::vm::{QemuReading, Vms};
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

    /// Begins the readings that are due, of VMs that are `awake` also those that silence asks for. Returns those that are to be carried out, since their guests are not asked.
    pub(super) fn begin(
        &mut self,
        vms: &mut Vms,
        awake: &[VmId],
        inboxes: &Inboxes,
        now: Duration,
    ) -> Vec<QemuReading> {
        let (mut begun, mut of_qemu) = (0, Vec::new());
        let reader = Arc::default();
        while begun < MOST_A_TICK
            && let Some(&Reverse((due, id))) = self.0.peek()
            && due <= now
        {
            self.0.pop();
            let watched = vms.get_mut(&id).filter(|watched| !watched.is_read_when_asked());
            let Some(watched) = watched else { continue };
            match watched.memory.due() {
                Some(due) if due <= now => {
                    match watched.begin_memory_reading(&reader, now) {
                        Ok(reading) => {
                            inboxes
                                .report(async move { Message::Memory(vec![(id, reading.await)]) });
                        }
                        Err(reading) => of_qemu.push(reading),
                    }
                    begun += 1;
                }
                Some(later) => self.plan(id, later),
                // Its end, or another configuration, plans the next one.
                None => {}
            }
        }
        for id in awake {
            if begun == MOST_A_TICK {
                break;
            }
            let watched = vms.get_mut(id).filter(|watched| watched.is_read_for_silence(now));
            let reading = watched.map(|watched| watched.begin_memory_reading(&reader, now));
            if let Some(Err(reading)) = reading {
                of_qemu.push(reading);
                begun += 1;
            }
        }
        of_qemu
    }
}
