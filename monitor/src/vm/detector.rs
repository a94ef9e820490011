//! Detector of one VM: the verdict's state machine, on which policy it judges, its recording, and the rounds of questions.

use std::{sync::Arc, time::Duration};

use tracing::{debug, info};

use super::Recorder;
use crate::{config::Config, probes::Notes};
use flatline_detector::verdict::{Act, Cause, DetectionPolicy, Input, Testimony, Watch};
use flatline_qemu::discover::Vm;

/// The terms on which this VM is judged.
pub(crate) fn detection_policy(config: &Config, vm: &Vm) -> DetectionPolicy {
    let policy = config.policy_for(&vm.name, vm.origin.uid);
    DetectionPolicy { policy, tick: config.sample_interval }
}

/// What judges one VM.
#[derive(Debug)]
pub(crate) struct Detector {
    pub(crate) detection: DetectionPolicy,
    pub(crate) watch: Watch,
    pub(crate) recorder: Recorder,
    /// The witnesses' notes; `None` while a round of questions is under way, which has them.
    pub(crate) notes: Option<Notes>,
    /// When the last round began of questions that are only asked of suspects.
    pub(crate) suspected_at: Option<Duration>,
    /// What the witnesses said last, for people to read.
    pub(crate) testimony: Option<Arc<Testimony>>,
}

impl Detector {
    /// Goes on from `watch`.
    pub(crate) fn new(detection: DetectionPolicy, watch: Watch, recorder: Recorder) -> Self {
        let notes = Some(Notes::default());
        Self { detection, watch, recorder, notes, suspected_at: None, testimony: None }
    }

    /// Tells the verdict something, and says what is to be done. A `reason` for people takes the place of the verdict's
    /// own, which is told of no more than it judges by.
    pub(crate) fn step(
        &mut self,
        vm: &Vm,
        input: &Input,
        reason: Option<String>,
        now: Duration,
    ) -> Act {
        let before = self.watch.shown_state().0;
        let act = self.recorder.take(&mut self.watch, input, &self.detection, now);
        if let Some(reason) = reason {
            self.watch.reason = reason;
        }
        let (after, cause, reason) = self.watch.shown_state();
        if before != after {
            let routine = |name| matches!(name, "alive" | "suspect" | "starting");
            if routine(before) && routine(after) {
                debug!(vm = vm.name, "{before} -> {after}: {reason}");
            } else {
                let (uuid, pid) = (vm.uuid.as_deref(), vm.id.pid);
                let cause = cause.map(Cause::as_str);
                info!(
                    vm = vm.name,
                    uuid,
                    pid,
                    state = after,
                    cause,
                    "{before} -> {after}: {reason}"
                );
            }
        }
        act
    }
}
