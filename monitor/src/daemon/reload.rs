//! Reload on SIGHUP: another configuration while everything goes on. No count, no state and no hold is lost for it, and
//! a file with a mistake changes nothing.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::{conditions, event_loop::EventLoop, message::Message};
use crate::{
    config::{Config, ConfigError, Source},
    vm::{Context, detection_policy},
};
use flatline_detector::policy::Mode;
use flatline_qemu::discover::VmId;

/// How far the reading of a file has come.
#[derive(Debug)]
pub(super) struct Reloading {
    source: Source,
    /// The file is being read: a disk that hangs holds up one thread only.
    pub(super) is_reading: bool,
    /// It may have changed since that began.
    again: bool,
    /// Why the last file was not taken.
    pub(super) complaint: Option<String>,
}

impl Reloading {
    pub(super) fn new(source: Source) -> Self {
        Self { source, is_reading: false, again: false, complaint: None }
    }
}

impl EventLoop {
    /// Has the file read again.
    pub(super) fn reload(&mut self) {
        if self.reloading.is_reading {
            self.reloading.again = true;
            return;
        }
        self.reloading.is_reading = true;
        let (source, messages) = (self.reloading.source.clone(), self.inboxes.messages.clone());
        spawn_blocking(move || {
            // The loop may have ended.
            let _ = messages.send(Message::Configured(source.load().map(Box::new)));
        });
    }

    /// The file was read.
    pub(super) fn configured(&mut self, read: Result<Box<Config>, ConfigError>) {
        self.reloading.is_reading = false;
        self.publisher.counts.reloaded(read.is_ok());
        match read {
            Ok(new) => {
                self.reloading.complaint = None;
                new.warnings.iter().for_each(|warning| warn!("{warning}"));
                // What was seen on the old terms is judged on them.
                self.wake_chosen(None);
                self.follow(*new);
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                error!("the configuration in force stays: {error:#}; mend that and reload again");
                self.reloading.complaint =
                    Some(format!("the configuration was not reloaded: {error:#}"));
            }
        }
        if std::mem::take(&mut self.reloading.again) {
            self.reload();
        }
    }

    /// Goes on as `new` has it.
    fn follow(&mut self, new: Config) {
        let (new, waiting) = self.config.followed_by(new);
        let old = std::mem::replace(&mut self.config, Arc::new(new));
        if old.discovery != self.config.discovery {
            self.let_go_of_others();
            self.sweep();
        }
        let judged_anew = self.set_policies(old.recorder != self.config.recorder);
        self.disk.reconfigure(&self.config);
        self.publisher.reconfigure(&old, &self.config);
        info!(
            vms = self.registry.vms.len(),
            judged_anew,
            mode = self.config.mode.as_str(),
            "reloaded"
        );
        if !waiting.is_empty() {
            warn!("the next start of the daemon will have another {}", waiting.join(", "));
        }
        if self.registry.vms.values().any(|watched| {
            let (name, uid) = (&watched.vm.name, watched.vm.origin.uid);
            let (old, new) = (old.actuation_for(name, uid), self.config.actuation_for(name, uid));
            (old.qmp, old.libvirt_uri) != (new.qmp, new.libvirt_uri)
        }) {
            warn!("another recovery.qmp or libvirt_uri is for QEMUs that are found from now on");
        }
    }

    /// Has each VM judged as the configuration has it now; returns for how many that changed.
    fn set_policies(&mut self, records_otherwise: bool) -> usize {
        let context = Context::at(&self.config, self.clock.now());
        let mut changed = 0;
        for watched in self.registry.vms.values_mut() {
            let detection = detection_policy(&self.config, &watched.vm);
            let (name, uid) = (&watched.vm.name, watched.vm.origin.uid);
            watched.memory.set_every(self.config.memory_every_for(name, uid));
            if let Some(due) = watched.memory.due() {
                self.registry.readings.plan(watched.vm.id, due);
            }
            let is_changed = detection != watched.detector.detection;
            // A recording is judged again by one policy.
            if is_changed || records_otherwise {
                let recorder = self.disk.recorder(&watched.vm, &detection, &context);
                let before = std::mem::replace(&mut watched.detector.recorder, recorder);
                watched.detector.recorder.follows(before, context.now);
            }
            let before = std::mem::replace(&mut watched.detector.detection, detection);
            if before.policy.mode == Mode::Observe
                && watched.detector.detection.policy.mode == Mode::Recover
            {
                self.recovery.may_be_touched(watched);
            }
            changed += usize::from(is_changed);
        }
        self.recovery.set_policies(|vm| detection_policy(&self.config, vm));
        changed
    }

    /// Lets go of the VMs that are not to be managed.
    fn let_go_of_others(&mut self) {
        let scope = self.config.discovery.scope();
        let others = self.registry.vms.iter().filter(|(_, watched)| !scope.has(&watched.vm));
        for id in others.map(|(id, _)| *id).collect::<Vec<VmId>>() {
            if let Some(watched) = self.no_longer_watched(id) {
                info!(vm = watched.vm.name, pid = id.pid, "is not to be managed any more");
                let why = "it is not to be managed any more";
                conditions::publish_end(&self.publisher.notifier, &watched, why);
            }
        }
    }
}
