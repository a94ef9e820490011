//! Recordings: begun with each VM, and handed out to clients.

use std::time::Duration;

use tokio::sync::oneshot;

use super::event_loop::EventLoop;
use crate::{
    api::{RefusalKind, Reply, view::HistoryView},
    vm::{Recorder, WatchedVm},
};
use flatline_detector::{
    recording::{Header, Recording},
    verdict::DetectionPolicy,
};
use flatline_qemu::discover::Vm;

impl EventLoop {
    /// The recorder of a VM that was found just now.
    pub(super) fn recorder(&self, vm: &Vm, detection: &DetectionPolicy) -> Recorder {
        let header = Header {
            flatline: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.clock.wall_clock(Duration::ZERO),
            vm: vm.name.clone(),
            uuid: vm.uuid.clone(),
            pid: vm.id.pid,
            start_ticks: vm.id.start_ticks,
            detection: detection.clone(),
        };
        Recorder::start(self.config.recorder, header, &self.disk.archive)
    }

    /// The last minutes of a VM.
    pub(super) fn history(&self, watched: &WatchedVm) -> Option<HistoryView> {
        watched.detector.recorder.history(self.now())
    }

    /// Has what is kept written to files, whose names are the answer.
    pub(super) fn record(&self, vm: Option<&str>, reply: oneshot::Sender<Reply>) {
        let chosen = match vm.map(|vm| self.registry.find(vm)).transpose() {
            Ok(Some(only)) => vec![only],
            Ok(None) => self.registry.vms.values().collect(),
            // The client may have gone, here and below.
            Err(refusal) => return drop(reply.send(refusal)),
        };
        let recordings: Vec<Recording> =
            chosen.iter().filter_map(|watched| watched.detector.recorder.recording()).collect();
        if recordings.is_empty() && !chosen.is_empty() {
            let why = "nothing is recorded yet, or recorder.keep is 0s";
            return drop(reply.send(Reply::error(RefusalKind::Nothing, why)));
        }
        self.disk.archive.save(recordings, reply);
    }
}
