//! Storms: many VMs that are silent at the same moment, which is the host's fault and one incident.

use std::time::Duration;

use super::event_loop::EventLoop;
use crate::{notify::event::EventKind, vm::Context};
use flatline_detector::verdict::{Input, StormAssessment, assess_storm, is_silent};

impl EventLoop {
    /// Looks at all VMs together, and tells those which are silent together. Returns whether that is still
    /// undecided.
    pub(super) fn assess_storm(&mut self, now: Duration) -> bool {
        let watches = self.registry.vms.values().map(|watched| &watched.detector.watch);
        let assessment = assess_storm(watches, &self.config.storm, now);
        let storm = match &assessment {
            StormAssessment::Few | StormAssessment::Undecided => None,
            StormAssessment::Storm(seen) => Some(seen.clone()),
        };
        match (&self.registry.storm, &storm) {
            (None, Some(seen)) => self.storm_begins(seen, now),
            (Some(_), None) => self.tell_of_host(
                EventKind::HostIncidentOver,
                "no longer are many VMs silent together".to_owned(),
            ),
            (Some(_), Some(_)) | (None, None) => {}
        }
        for watched in self.registry.vms.values_mut() {
            let concerned = match &storm {
                // A VM that falls silent during it belongs to it.
                Some(_) => {
                    watched.detector.watch.storm.is_none()
                        && is_silent(&watched.detector.watch, now)
                }
                None => watched.detector.watch.storm.is_some(),
            };
            if concerned {
                watched.step(&Input::Storm(storm.clone()), now);
            }
        }
        self.registry.storm = storm;
        assessment == StormAssessment::Undecided
    }

    fn storm_begins(&self, seen: &str, now: Duration) {
        let silent =
            self.registry.vms.values().filter(|watched| is_silent(&watched.detector.watch, now));
        let names: Vec<&str> = silent.map(|watched| watched.vm.name.as_str()).collect();
        let reason = format!("{seen}: {}", names.join(", "));
        self.recovery.storm_begins(reason, &Context::at(&self.config, now));
    }
}
