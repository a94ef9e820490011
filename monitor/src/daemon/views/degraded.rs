//! Complaints: what of the host or of its VMs can't be seen as it should, in sentences.

use std::{collections::BTreeMap, time::Duration};

use monitor_ebpf::StorageCounters;

use super::Views;
use crate::{
    daemon::watchers,
    probes::kvm,
    vm::{PENDING, WatchedVm},
};
use flatline_detector::verdict::Monitor;
use flatline_qemu::{discover::OpenDevices, qmp::QmpState};

/// The most VMs that are named with one reason.
const MOST_NAMED: usize = 4;
/// The most VMs that are named because their monitors aren't used.
const MOST_MONITORS_NAMED: usize = 5;
/// One request in so many may not have been followed.
const UNTRACKED_PART: u64 = 1000;
/// A QEMU this old has had the time to listen.
const LISTENS_AFTER: Duration = Duration::from_secs(10);

impl Views<'_> {
    /// Everything that is not as it should be, the `complaints` of the daemon's other parts among it.
    pub(in crate::daemon) fn degraded(
        &self,
        complaints: impl Iterator<Item = String>,
    ) -> Vec<String> {
        let lost = self.sampler.health.iter().filter(|program| program.failure.is_some());
        let lost: Vec<&str> = lost.map(|program| program.program).collect();
        let mut degraded: Vec<String> = self.registry.storm.iter().cloned().collect();
        degraded.extend(complaints);
        degraded.extend(self.registry.all_duplicates());
        if !lost.is_empty() {
            degraded.push(format!("not attached: {}", lost.join(", ")));
        }
        degraded.extend(self.unread_registers());
        degraded.extend(
            kvm::lacks_signs(&self.sampler.probes.kvm_hooks().borrow()).map(ToOwned::to_owned),
        );
        degraded.extend(self.unused_monitors());
        for watched in self.registry.vms.values() {
            let name = &watched.vm.name;
            match &watched.sensors.slot {
                Err(why) => degraded.push(format!("{name} is not counted: {why}")),
                Ok(_) => degraded.extend(unseen_taps(watched)),
            }
            let sample = watched.sensors.sample.as_ref().map(|(_, sample)| sample);
            let storage = sample.and_then(|sample| sample.storage.as_ref().ok());
            let untracked = storage.map_or(0, |storage| storage.untracked_ops);
            // One here and there hides no life: the others' completions are seen.
            let submitted = storage.map_or(0, StorageCounters::submitted);
            if untracked > submitted / UNTRACKED_PART {
                degraded.push(format!(
                    "{untracked} requests of {name} were not followed: probes.max_in_flight is too small"
                ));
            }
        }
        degraded
    }

    /// The VMs of which no registers can be read, by the reason: there may be many of them.
    fn unread_registers(&self) -> impl Iterator<Item = String> {
        let mut unread: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for watched in self.registry.vms.values() {
            if let Some(why) = watched.sensors.insight.lacks_registers() {
                unread.entry(why).or_default().push(&watched.vm.name);
            }
        }
        unread.into_iter().map(|(why, vms)| {
            let named = vms[..vms.len().min(MOST_NAMED)].join(", ");
            match vms.len().saturating_sub(MOST_NAMED) {
                0 => format!("no registers of {named}: {why}"),
                more => format!("no registers of {named} and {more} more: {why}"),
            }
        })
    }

    /// The VMs of which the monitor can't be used though QEMU was told to have one, and why.
    fn unused_monitors(&self) -> Option<String> {
        let is_old = |watched: &&WatchedVm| watchers::age(watched.vm.id) >= Some(LISTENS_AFTER);
        let meant = self.registry.vms.values().filter(|watched| is_meant(watched));
        let mut unused: Vec<String> = meant
            .filter(is_old)
            .filter_map(|it| Some(format!("{} ({})", it.vm.name, unused_monitor(it)?)))
            .collect();
        let more = unused.len().saturating_sub(MOST_MONITORS_NAMED);
        if more > 0 {
            unused.truncate(MOST_MONITORS_NAMED);
            unused.push(format!("and of {more} more"));
        }
        (!unused.is_empty()).then(|| format!("QMP is not used of {}", unused.join(", ")))
    }
}

/// Whether QEMU was told to have a monitor that is not used.
fn is_meant(watched: &WatchedVm) -> bool {
    match &watched.link.qmp {
        None => watched.vm.qmp_sockets.is_empty() && !watched.vm.unused_monitors.is_empty(),
        Some(_) => match &watched.link.state {
            // A QEMU that answers late is judged for that.
            QmpState::Connecting | QmpState::Ready | QmpState::Unresponsive { .. } => false,
            QmpState::NotStarted { .. }
            | QmpState::Busy
            | QmpState::Refused { .. }
            | QmpState::Closed { .. } => true,
        },
    }
}

/// Why a VM's monitor is not used.
fn unused_monitor(watched: &WatchedVm) -> Option<String> {
    match watched.link.monitor() {
        Monitor::Unknown(why) | Monitor::NotStarted(why) => Some(why),
        _ => None,
    }
}

/// What of a VM's taps can't be seen, or not be told for sure.
fn unseen_taps(watched: &WatchedVm) -> Vec<String> {
    let name = &watched.vm.name;
    let OpenDevices { unseen_taps, taps_by_name, .. } = &watched.vm.plugged;
    let unseen = unseen_taps.iter().map(|note| format!("{name}: not watched: {note}"));
    let by_name = taps_by_name.iter().map(|why| {
        format!(
            "{name}: its taps are told by their names, which others may have in other network namespaces: their \
             descriptors can't be asked: {why}"
        )
    });
    let taps = watched.sensors.taps.iter().filter_map(|probe| {
        let tap = &probe.tap.name;
        match &probe.hook {
            Ok(_) => probe.unseen.map(|unseen| format!("{name}: tap {tap}: {unseen}")),
            Err(why) if why == PENDING => None,
            Err(why) => Some(format!("{name}: tap {tap} is not counted: {why}")),
        }
    });
    unseen.chain(by_name).chain(taps).collect()
}
