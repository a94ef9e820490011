//! Threads that write to the disk, which the loop never waits for.

use std::thread::JoinHandle;

use crate::{
    config::Config,
    recorder::archive::{Archive, Writing},
    storage::retention::{Keeper, RetentionPolicy},
};

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
