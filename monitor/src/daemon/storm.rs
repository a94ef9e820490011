//! Storms: many VMs that are silent at the same moment, which is the host's fault and one incident.

use super::{conditions::publish_of_host, registry::Registry};
use crate::{
    notify::{Notifier, event::EventKind},
    recovery::Supervisor,
    vm::Context,
};
use flatline_detector::verdict::{Input, StormAssessment, assess_storm, is_silent};

/// Looks at all VMs together, and tells those which are silent together. Returns whether that is still
/// undecided. Only the awake are looked at: one that rests lives.
pub(super) fn assess(
    registry: &mut Registry,
    recovery: &Supervisor,
    notifier: &Notifier,
    context: &Context<'_>,
) -> bool {
    let now = context.now;
    let watches = registry.awake().map(|watched| &watched.detector.watch);
    let living = registry.vms.len().saturating_sub(registry.awake.len());
    let assessment = assess_storm(watches, living, &context.config.storm, now);
    let storm = match &assessment {
        StormAssessment::Few | StormAssessment::Undecided => None,
        StormAssessment::Storm(seen) => Some(seen.clone()),
    };
    match (&registry.storm, &storm) {
        (None, Some(seen)) => {
            let silent = registry.awake().filter(|watched| is_silent(&watched.detector.watch, now));
            let names: Vec<&str> = silent.map(|watched| watched.vm.name.as_str()).collect();
            recovery.storm_begins(format!("{seen}: {}", names.join(", ")), context);
        }
        (Some(_), None) => {
            let reason = "no longer are many VMs silent together";
            publish_of_host(notifier, EventKind::HostIncidentOver, reason.to_owned());
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    for id in &registry.awake {
        let Some(watched) = registry.vms.get_mut(id) else { continue };
        let watch = &watched.detector.watch;
        let concerned = match &storm {
            // A VM that falls silent during it belongs to it.
            Some(_) => watch.storm.is_none() && is_silent(watch, now),
            None => watch.storm.is_some(),
        };
        if concerned {
            watched.step(&Input::Storm(storm.clone()), now);
        }
    }
    registry.storm = storm;
    assessment == StormAssessment::Undecided
}
