//! SIGHUP: another configuration while everything goes on. No count, no state and no hold is lost for it, and a file
//! with a mistake changes nothing.

use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::{Message, engine::Engine, telling::subject};
use crate::{
    config::{Config, ConfigError, Source},
    storage::retention::RetentionPolicy,
    vm::detection_policy,
};
use flatline_detector::policy::Mode;
use flatline_qemu::discover::VmId;

/// How far the reading of a file has come.
#[derive(Debug)]
pub(super) struct Reloading {
    source: Source,
    /// The file is being read: a disk that hangs holds up one thread only.
    is_reading: bool,
    /// It may have changed since that began.
    again: bool,
    /// Why the last file was not taken.
    complaint: Option<String>,
}

impl Reloading {
    pub(super) fn new(source: Source) -> Self {
        Self { source, is_reading: false, again: false, complaint: None }
    }

    /// Whether the file is being read.
    pub(super) fn is_reading(&self) -> bool {
        self.is_reading
    }

    /// Why the configuration in force is not what was to be.
    pub(super) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }
}

impl Engine {
    /// Has the file read again.
    pub(super) fn reload(&mut self) {
        if self.reloading.is_reading {
            self.reloading.again = true;
            return;
        }
        self.reloading.is_reading = true;
        let (source, messages) = (self.reloading.source.clone(), self.messages.clone());
        spawn_blocking(move || {
            // The loop may have ended.
            let _ = messages.send(Message::Configured(source.load().map(Box::new)));
        });
    }

    /// The file was read.
    pub(super) fn configured(&mut self, read: Result<Box<Config>, ConfigError>) {
        self.reloading.is_reading = false;
        self.figures.counts.reloaded(read.is_ok());
        match read {
            Ok(new) => {
                self.reloading.complaint = None;
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
        let old = std::mem::replace(&mut self.config, new);
        if old.discovery != self.config.discovery {
            self.let_go_of_others();
            self.sweep();
        }
        let judged_anew = self.judge_on_new_terms(old.recorder != self.config.recorder);
        self.lines.set_interval(self.config.sample_interval);
        self.archive.set_most_mib(self.config.recorder.max_mib);
        self.keeper.set_policy(RetentionPolicy::from(&self.config.retention));
        if old.notify != self.config.notify {
            self.notifier.reconfigure(&self.config.notify);
        }
        if old.metrics != self.config.metrics {
            self.figures.serve(&self.config);
        }
        info!(vms = self.vms.len(), judged_anew, mode = self.config.mode.as_str(), "reloaded");
        if !waiting.is_empty() {
            warn!("the next start of the daemon will have another {}", waiting.join(", "));
        }
        if self.vms.values().any(|watched| {
            let name = &watched.vm.name;
            let (old, new) = (old.actuation_for(name), self.config.actuation_for(name));
            (old.qmp, old.libvirt_uri) != (new.qmp, new.libvirt_uri)
        }) {
            warn!("another recovery.qmp or libvirt_uri is for QEMUs that are found from now on");
        }
    }

    /// Each VM's terms; says of how many they are others.
    fn judge_on_new_terms(&mut self, records_otherwise: bool) -> usize {
        let mut changed = 0;
        for id in self.vms.keys().copied().collect::<Vec<VmId>>() {
            let Some(watched) = self.vms.get(&id) else { continue };
            let name = &watched.vm.name;
            let detection = detection_policy(&self.config, name);
            let memory_every = self.config.memory_every_for(name);
            let is_judged_anew = detection != watched.detector.detection;
            // A recording is judged again on one set of terms.
            let recorder = (is_judged_anew || records_otherwise)
                .then(|| self.recorder(&watched.vm, &detection));
            let now = self.now();
            let Some(watched) = self.vms.get_mut(&id) else { continue };
            if let Some(recorder) = recorder {
                let before = std::mem::replace(&mut watched.detector.recorder, recorder);
                watched.detector.recorder.follows(before, now);
            }
            let may_be_touched = watched.detector.detection.policy.mode == Mode::Observe
                && detection.policy.mode == Mode::Recover;
            watched.detector.detection = detection;
            if may_be_touched {
                self.recovery.may_be_touched(watched);
            }
            watched.memory.set_every(memory_every);
            changed += usize::from(is_judged_anew);
        }
        self.recovery.set_terms(|name| detection_policy(&self.config, name));
        changed
    }

    /// Watches no longer who isn't to be managed.
    fn let_go_of_others(&mut self) {
        let scope = self.config.discovery.scope();
        let others = self.vms.iter().filter(|(_, watched)| !scope.has(&watched.vm));
        for id in others.map(|(id, _)| *id).collect::<Vec<VmId>>() {
            if let Some(watched) = self.no_longer_watched(id) {
                info!(vm = watched.vm.name, pid = id.pid, "is not to be managed any more");
                let who = subject(&watched.vm);
                let why = "it is not to be managed any more";
                self.notifier.publish(|events, now| events.ended(who, why, now));
            }
        }
    }
}
