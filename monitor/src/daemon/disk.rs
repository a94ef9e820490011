//! Disk: the threads that write to it, which the loop never waits for.

use std::{thread::JoinHandle, time::Duration};

use crate::{
    config::Config,
    recorder::archive::{Archive, Writing},
    storage::retention::{Keeper, RetentionPolicy},
    vm::{Context, Recorder},
};
use flatline_detector::{recording::Header, verdict::DetectionPolicy};
use flatline_qemu::discover::Vm;

/// See the module.
pub(super) struct Disk {
    /// Removes evidence that was kept for long enough.
    pub(super) keeper: Keeper,
    /// Writes recordings.
    pub(super) archive: Archive,
    archive_thread: Writing,
    /// Writes incidents and the ledger.
    writer: Option<JoinHandle<()>>,
}

impl Disk {
    /// Starts them, beside the `writer` of incidents.
    pub(super) fn start(config: &Config, writer: Option<JoinHandle<()>>) -> Self {
        let state_dir = &config.paths.state_dir;
        let (archive, archive_thread) = Archive::start(state_dir, config.recorder.max_mib);
        let retention = RetentionPolicy::from(&config.retention);
        let keeper = Keeper::start(state_dir, retention);
        Self { keeper, archive, archive_thread, writer }
    }

    /// A recorder of a VM, from now on.
    pub(super) fn recorder(
        &self,
        vm: &Vm,
        detection: &DetectionPolicy,
        context: &Context<'_>,
    ) -> Recorder {
        let header = Header {
            flatline: env!("CARGO_PKG_VERSION").to_owned(),
            started: context.wall_clock(Duration::ZERO),
            vm: vm.name.clone(),
            uuid: vm.uuid.clone(),
            pid: vm.id.pid,
            start_ticks: vm.id.start_ticks,
            detection: detection.clone(),
        };
        Recorder::start(context.config.recorder, vm.origin.uid, header, &self.archive)
    }

    /// Goes on as `config` has it.
    pub(super) fn reconfigure(&mut self, config: &Config) {
        self.archive.set_most_mib(config.recorder.max_mib);
        self.keeper.set_policy(RetentionPolicy::from(&config.retention));
    }

    /// Waits until all is written.
    pub(super) fn finish(self) {
        if let Some(writer) = self.writer {
            let _ = writer.join();
        }
        self.keeper.finish();
        drop(self.archive);
        self.archive_thread.finish();
    }
}
