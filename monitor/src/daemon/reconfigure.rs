//! Another configuration while everything goes on: read again on SIGHUP, and followed.

use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::{Message, event_loop::EventLoop, telling::subject};
use crate::{
    config::{Config, ConfigError},
    vm::detection_policy,
};
use flatline_detector::policy::Mode;
use flatline_qemu::discover::VmId;

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
        self.publisher.metrics.counts.reloaded(read.is_ok());
        match read {
            Ok(new) => {
                self.reloading.complaint = None;
                new.warnings.iter().for_each(|warning| warn!("{warning}"));
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
            let name = &watched.vm.name;
            let (old, new) = (old.actuation_for(name), self.config.actuation_for(name));
            (old.qmp, old.libvirt_uri) != (new.qmp, new.libvirt_uri)
        }) {
            warn!("another recovery.qmp or libvirt_uri is for QEMUs that are found from now on");
        }
    }

    /// Each VM's detection; says of how many they are others.
    fn judge_on_new_terms(&mut self, records_otherwise: bool) -> usize {
        let mut changed = 0;
        for id in self.registry.vms.keys().copied().collect::<Vec<VmId>>() {
            let Some(watched) = self.registry.vms.get(&id) else { continue };
            let name = &watched.vm.name;
            let detection = detection_policy(&self.config, name);
            let memory_every = self.config.memory_every_for(name);
            let is_judged_anew = detection != watched.detector.detection;
            // A recording is judged again on one set of detection.
            let recorder = (is_judged_anew || records_otherwise)
                .then(|| self.recorder(&watched.vm, &detection));
            let now = self.now();
            let Some(watched) = self.registry.vms.get_mut(&id) else { continue };
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
        self.recovery.set_policies(|name| detection_policy(&self.config, name));
        changed
    }

    /// Watches no longer who isn't to be managed.
    fn let_go_of_others(&mut self) {
        let scope = self.config.discovery.scope();
        let others = self.registry.vms.iter().filter(|(_, watched)| !scope.has(&watched.vm));
        for id in others.map(|(id, _)| *id).collect::<Vec<VmId>>() {
            if let Some(watched) = self.no_longer_watched(id) {
                info!(vm = watched.vm.name, pid = id.pid, "is not to be managed any more");
                let who = subject(&watched.vm);
                let why = "it is not to be managed any more";
                self.publisher.notifier.publish(|events, now| events.ended(who, why, now));
            }
        }
    }
}
