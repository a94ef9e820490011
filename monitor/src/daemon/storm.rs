//! Storms: many VMs of several users that are silent at the same moment, which is the host's fault and one incident.
//!
//! It holds them for a while. That is longer where the host shows a fault beside their silence: memory for which everything
//! stalls, or storage that stalls for several users' VMs. No other pressure is looked at: one process that copies a file makes
//! that of I/O nearly 100 % on an idle host, and any that computes that of the CPUs.

use std::collections::BTreeMap;

use super::{conditions::publish_of_host, registry::Registry};
use crate::{
    notify::{Notifier, event::EventKind},
    probes,
    recovery::Supervisor,
    vm::Context,
};
use flatline_detector::verdict::{
    Input, STORM_HOLDS_FOR, StormAssessment, Watch, assess_storm, is_silent, storage_stalls,
};

/// Looks at all VMs together, and tells those which are silent together. Returns whether that is still
/// undecided. Only the awake are looked at: one that rests lives.
pub(super) fn assess(
    registry: &mut Registry,
    recovery: &Supervisor,
    notifier: &Notifier,
    context: &Context<'_>,
) -> bool {
    let now = context.now;
    let assessment = assess_storm(watches(registry), &living(registry), &context.config.storm, now);
    let mut time = registry.storm_time;
    let storm = match &assessment {
        StormAssessment::Storm(seen) => {
            time.holds(now, || host_is_faulty(registry)).then(|| seen.clone())
        }
        StormAssessment::Few | StormAssessment::Undecided => {
            time.pause();
            None
        }
    };
    registry.storm_time = time;
    match (&registry.storm, &storm) {
        (None, Some(seen)) => {
            let silent = registry.awake().filter(|watched| is_silent(&watched.detector.watch, now));
            let names: Vec<&str> = silent.map(|watched| watched.vm.name.as_str()).collect();
            recovery.storm_begins(format!("{seen}: {}", names.join(", ")), context);
        }
        (Some(_), None) => {
            let reason = match &assessment {
                StormAssessment::Storm(_) => format!(
                    "many VMs are silent together for {}, and nothing else says that the host is ill: they are judged again",
                    humantime::format_duration(STORM_HOLDS_FOR)
                ),
                _ => "no longer are many VMs silent together".to_owned(),
            };
            publish_of_host(notifier, EventKind::HostIncidentOver, reason);
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
    assessment == StormAssessment::Undecided && !time.is_over(now)
}

/// The awake, each with its user.
fn watches(registry: &Registry) -> impl Iterator<Item = (u32, &Watch)> {
    registry.awake().map(|watched| (watched.vm.origin.uid, &watched.detector.watch))
}

/// How many VMs of each user live beside these.
fn living(registry: &Registry) -> BTreeMap<u32, u32> {
    let mut living = registry.vms.by_owner().clone();
    for watched in registry.awake() {
        if let Some(count) = living.get_mut(&watched.vm.origin.uid) {
            *count = count.saturating_sub(1);
        }
    }
    living
}

fn host_is_faulty(registry: &Registry) -> bool {
    probes::memory_stalls() || storage_stalls(watches(registry), registry.vms.by_owner().len())
}
