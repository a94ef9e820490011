//! Glances at VMs' counters, for the history of rates: in each tick at those that are awake, in turns at those that rest, and at
//! all of them while they are drawn.

use std::time::Duration;

use super::event_loop::EventLoop;
use crate::history;
use flatline_qemu::discover::VmId;

impl EventLoop {
    /// Appends a tick that ended at `now`.
    pub(super) fn append_to_history(&mut self, now: Duration) {
        let (history, counters) = (&self.publisher.history, &self.sampler.counters);
        history.tick(now);
        let tick = self.sampler.ticks;
        let in_turn = self.registry.vms.iter_mut();
        history.append(
            in_turn
                .filter(|(id, _)| history::is_turn_of(**id, tick))
                .map(|(_, watched)| (watched.rates(counters, now), &watched.vm))
                .map(|(rates, vm)| (vm, rates)),
        );
        for id in &self.registry.awake {
            let Some(watched) = self.registry.vms.get_mut(id) else { continue };
            if !history::is_turn_of(*id, tick) {
                let rates = watched.rates(counters, now);
                history.append([(&watched.vm, rates)].into_iter());
            }
        }
    }

    /// Appends what is not there yet of those VMs, of which some rest: they are drawn.
    pub(super) fn complete_history(&mut self, drawn: impl IntoIterator<Item = VmId>) {
        let (now, counters) = (self.now(), &self.sampler.counters);
        let history = &self.publisher.history;
        for id in drawn {
            let Some(watched) = self.registry.vms.get_mut(&id) else { continue };
            if history.lacks(id) {
                let rates = watched.rates(counters, now);
                history.append([(&watched.vm, rates)].into_iter());
            }
        }
    }
}
