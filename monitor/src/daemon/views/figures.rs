//! Figures of one VM, as metrics have them: copied numbers, since this is done for each VM in each tick.

use super::{Views, heartbeat::HeartbeatSummary, last_sample};
use crate::{
    metrics::{Beats, VmFigures},
    vm::WatchedVm,
};
use flatline_samples::VmSample;

impl Views<'_> {
    /// What is published of a VM as metrics.
    pub(in crate::daemon) fn vm_figures(&self, watched: &WatchedVm) -> VmFigures {
        let sample = last_sample(watched);
        let (state, cause, _) = watched.detector.watch.shown_state();
        VmFigures {
            vm: watched.vm.clone(),
            mode: watched.detector.detection.policy.mode,
            state,
            cause,
            run_state: watched.link.run_state.clone(),
            flat: self.flat(watched),
            is_held: self.recovery.held(watched.key(), self.context.wall).is_some(),
            is_counted: watched.sensors.slot.is_ok(),
            restarts: watched.recovery.restarts,
            guest_resets_in_window: self.guest_resets_in_window(watched),
            network: sample.and_then(|sample| sample.network.as_ref().ok().copied().flatten()),
            sees_to_guest: sample.is_some_and(|sample| sample.sees_to_guest),
            storage: sample.and_then(|sample| sample.storage.as_ref().ok().copied()),
            oldest_in_flight: sample
                .and_then(|sample| sample.in_flight)
                .filter(|ages| ages.requests > 0)
                .map(|ages| ages.oldest),
            heartbeats: sample.and_then(|sample| self.beats(sample)),
            memory: watched.memory.latest(),
            vcpus: sample.and_then(|sample| sample.vcpus.as_ref().ok().cloned()),
        }
    }

    /// `None` for a guest whose agent never said anything.
    fn beats(&self, sample: &VmSample) -> Option<Beats> {
        let heard =
            [&sample.heartbeats, &sample.port].into_iter().filter_map(|way| way.as_ref().ok());
        let HeartbeatSummary { beats, failures, malformed, last } = self.summary(heard)?;
        Some(Beats { beats, failures, malformed, last_seconds: last.and_then(|(_, age)| age) })
    }
}
