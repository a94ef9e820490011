//! Upkeep: has a VM looked at for what was plugged in or out, and its programs looked for on its taps, where there is a reason.
//!
//! Reasons are news of a tap's interface, an event of its QEMU, packets that the kernel counts and ours do not, and its
//! silence. QEMU (7.2) says nothing as a device is added, so each VM has its turn in a minute. Between those, one that
//! lives costs nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use super::{
    hotplug::counted,
    message::Inboxes,
    watchers::{self, Look},
};
use crate::{
    bpf::{DOUBTED_FOR, ProbeThread, Tend, Tended},
    sampler::CounterMaps,
    vm::{Detector, QemuReading, Vms, WatchedVm},
};
use flatline_qemu::discover::VmId;

/// Each VM has its turn in so long a time, or in so many ticks, whichever is shorter.
const TURNS: Duration = Duration::from_secs(60);
const TURN_TICKS: u128 = 60;
/// Ticks between two looks at a VM of which something can't be heard or counted.
const OFTEN: u32 = 10;
/// Ticks between two comparisons of all counts, for which the kernel adds up those of each interface. A VM that they are to tell of lives by
/// something else: of one that falls silent, the programs are looked for long before that means anything.
const COMPARED_EVERY: u32 = 2 * OFTEN;
/// Of the VMs that are awake, this part is looked at in one tick because of their silence.
const SILENT_TOGETHER: usize = 5;
/// An event tells that QEMU begins to do something, which takes it a moment.
const MOMENT: Duration = Duration::from_secs(1);
/// Events that go on put a look off for no longer than this.
const PUT_OFF: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    ticks: u32,
    /// The VM that had its turn last, and what is owed to the others, in VMs times ticks.
    turn: Option<VmId>,
    owed: u128,
    /// VMs of which something can't be heard or counted.
    restless: BTreeSet<VmId>,
    soon: BTreeMap<VmId, Soon>,
    /// VMs whose programs are to be looked for.
    unverified: BTreeSet<VmId>,
    /// All counts are to be compared.
    is_to_compare: bool,
    /// The taps are being looked after.
    is_tending: bool,
    /// They are to be looked after in the next tick, whatever there is.
    awaits_tick: bool,
}

/// A look at a VM that is to come.
#[derive(Clone, Copy, Debug)]
struct Soon {
    at: Duration,
    latest: Duration,
}

/// What upkeep works with in a tick.
pub(super) struct Means<'a> {
    pub(super) vms: &'a mut Vms,
    pub(super) probes: &'a ProbeThread,
    pub(super) counters: &'a Arc<CounterMaps>,
    pub(super) inboxes: &'a Inboxes,
    /// The length of a tick.
    pub(super) tick: Duration,
    pub(super) now: Duration,
}

impl Upkeep {
    /// Has those VMs looked at that are due, of which `awake` were sampled, and carries these `readings` out with that.
    pub(super) fn tick(
        &mut self,
        awake: &[VmId],
        readings: Vec<QemuReading>,
        means: &mut Means<'_>,
    ) {
        self.ticks = self.ticks.wrapping_add(1);
        let Means { vms, tick, now, .. } = means;
        let (tick, now) = (*tick, *now);
        let mut looks = Vec::new();
        self.look_at_silent(awake, vms, tick, now, &mut looks);
        let is_due = |id: &&VmId| id.pid % OFTEN == self.ticks % OFTEN;
        for id in self.restless.iter().filter(is_due) {
            looks.extend(vms.get_mut(id).and_then(|watched| in_full(watched, now)));
        }
        self.soon.retain(|id, soon| {
            let Some(watched) = vms.get_mut(id) else { return false };
            let look = if soon.at <= now { in_full(watched, now) } else { None };
            looks.extend(look);
            look.is_none()
        });
        for id in self.in_turn(vms.tree(), tick) {
            looks.extend(vms.get_mut(&id).and_then(|watched| look_at(watched, tick, now)));
        }
        watchers::refresh(&looks, readings, &means.inboxes.messages);
        self.is_to_compare |= self.ticks.is_multiple_of(COMPARED_EVERY);
        let is_due = self.is_to_compare || self.awaits_tick || !self.unverified.is_empty();
        // To wake the thread takes more than to look whether there is a reason.
        if !self.is_tending && (is_due || means.probes.has_news()) {
            self.is_tending = true;
            let verify = std::mem::take(&mut self.unverified).into_iter().collect();
            let counts = std::mem::take(&mut self.is_to_compare).then(|| means.counters.clone());
            means.probes.tend(Tend { verify, counts });
        }
    }

    /// Of a silent VM, all has to be known. Not of all of many in one tick: that would delay the next.
    fn look_at_silent(
        &mut self,
        awake: &[VmId],
        vms: &mut Vms,
        tick: Duration,
        now: Duration,
        looks: &mut Vec<Look>,
    ) {
        let most = awake.len().div_ceil(SILENT_TOGETHER);
        for id in awake {
            if looks.len() >= most {
                return;
            }
            let Some(watched) = vms.get_mut(id) else { continue };
            if watched.sensors.looks.are_due(
                watched.last_life(),
                now,
                tick,
                looked_at_after(watched, tick),
            ) {
                self.unverified.insert(*id);
                looks.extend(look_at(watched, tick, now));
            }
        }
    }

    /// The VMs whose turn it is.
    fn in_turn<T>(&mut self, vms: &BTreeMap<VmId, T>, tick: Duration) -> Vec<VmId> {
        let ticks = (TURNS.as_nanos() / tick.as_nanos().max(1)).clamp(1, TURN_TICKS);
        self.owed += vms.len() as u128;
        let count = usize::try_from(self.owed / ticks).unwrap_or(usize::MAX).min(vms.len());
        self.owed %= ticks;
        let after = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = vms.range((after, Bound::Unbounded));
        let turn: Vec<VmId> = rest.chain(vms).map(|(id, _)| *id).take(count).collect();
        self.turn = turn.last().copied().or(self.turn);
        turn
    }

    /// An event of its QEMU tells that what it has may change.
    pub(super) fn look_soon(&mut self, watched: &WatchedVm, tick: Duration, now: Duration) {
        self.look_in(MOMENT, watched, tick, now);
    }

    fn look_in(&mut self, delay: Duration, watched: &WatchedVm, tick: Duration, now: Duration) {
        let earliest = watched.sensors.looks.asked_for_from(tick);
        let soon = self.soon.entry(watched.vm.id);
        let soon = soon.or_insert(Soon { at: now, latest: earliest.max(now + PUT_OFF.max(delay)) });
        soon.at = (now + delay).max(earliest).min(soon.latest);
    }

    /// The taps were looked after.
    pub(super) fn tended(&mut self, tended: &Tended, means: &mut Means<'_>) {
        self.is_tending = false;
        let Tended { moved, missed, lost, lagging, appeared, awaits_tick } = tended;
        self.awaits_tick = *awaits_tick;
        let Means { vms, probes, inboxes, tick, now, .. } = means;
        let (tick, now) = (*tick, *now);
        let mut looks = Vec::new();
        for id in moved {
            let Some(watched) = vms.get_mut(id) else { continue };
            let may_be = watched.sensors.looks.asked_for_from(tick) <= now;
            match may_be.then(|| in_full(watched, now)).flatten() {
                Some(look) => looks.push(look),
                None => self.look_in(Duration::ZERO, watched, tick, now),
            }
        }
        // Not all in one tick.
        let apart = tick * OFTEN / u32::try_from(missed.len()).unwrap_or(u32::MAX).max(1);
        for (at, watched) in (0..).zip(missed.iter().filter_map(|id| vms.get(id))) {
            self.look_in(apart * at, watched, tick, now);
        }
        for watched in lost.union(lagging).filter_map(|id| vms.get(id)) {
            probes.attach(watched.vm.id, counted(&watched.vm));
        }
        for id in lagging {
            // What the first of two looks shows is compared with the second.
            let look = Look { names: false, ..Look::in_full(*id) };
            watchers::refresh_after(DOUBTED_FOR, look, inboxes.messages.clone());
        }
        if *appeared {
            looks.extend(vms.values_mut().filter_map(|watched| look_at(watched, tick, now)));
        }
        watchers::refresh(&looks, Vec::new(), &inboxes.messages);
    }

    /// Notes whether something of a VM can't be heard or counted, so that it is looked at often.
    pub(super) fn is_restless(&mut self, id: VmId, is_restless: bool) {
        if is_restless {
            self.restless.insert(id);
        } else {
            self.restless.remove(&id);
        }
    }

    pub(super) fn forget(&mut self, id: VmId) {
        self.restless.remove(&id);
        self.soon.remove(&id);
        self.unverified.remove(&id);
    }
}

/// The silence after which a VM is looked at: long before it means anything, and not at each pause of a guest that has little to
/// do. One with an agent may be suspected sooner.
fn looked_at_after(watched: &WatchedVm, tick: Duration) -> Duration {
    let Detector { detection, watch, .. } = &watched.detector;
    let half = if watch.boot.heartbeat.is_some() { tick } else { detection.policy.flat_for / 2 };
    half.max(tick * 2)
}

/// Begins a look at a VM, in full where that is due; `None` where one is under way.
fn look_at(watched: &mut WatchedVm, tick: Duration, now: Duration) -> Option<Look> {
    let (life, after) = (watched.last_life(), looked_at_after(watched, tick));
    let looks = &mut watched.sensors.looks;
    let (in_full, names) = (looks.are_due_in_full(life, now, tick, after), looks.tell_apart());
    let seen = looks.begin(now)?;
    let names = names || in_full || watched.sensors.threads.is_empty();
    Some(Look { vm: watched.vm.id, unless: (!in_full).then_some(seen), names, attach: false })
}

/// Begins a look in full, after which it is counted anew; `None` where one is under way.
fn in_full(watched: &mut WatchedVm, now: Duration) -> Option<Look> {
    watched.sensors.looks.begin(now).map(|_| Look::in_full(watched.vm.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(1);

    fn vms(count: u32) -> BTreeMap<VmId, ()> {
        (1..=count).map(|pid| (VmId { pid, start_ticks: 1 }, ())).collect()
    }

    fn turns(upkeep: &mut Upkeep, vms: &BTreeMap<VmId, ()>, tick: Duration) -> Vec<u32> {
        upkeep.in_turn(vms, tick).iter().map(|id| id.pid).collect()
    }

    #[test]
    fn each_vm_has_its_turn_once_a_minute_and_few_have_it_in_one_tick() {
        for count in [1, 7, 59, 60, 61, 1000] {
            let (mut upkeep, vms) = (Upkeep::default(), vms(count));
            let minutes = 3;
            let all: Vec<Vec<u32>> =
                (0..60 * minutes).map(|_| turns(&mut upkeep, &vms, TICK)).collect();
            assert!(all.iter().all(|some| some.len() <= count.div_ceil(60) as usize));
            for pid in 1..=count {
                let times = all.iter().flatten().filter(|turn| **turn == pid).count();
                assert_eq!(times, minutes, "VM {pid} of {count}");
            }
        }
    }

    #[test]
    fn a_long_tick_makes_turns_of_more_and_vms_that_come_and_go_are_no_trouble() {
        let mut upkeep = Upkeep::default();
        assert!(turns(&mut upkeep, &vms(0), TICK).is_empty());
        assert_eq!(turns(&mut upkeep, &vms(12), Duration::from_secs(30)), [1, 2, 3, 4, 5, 6]);
        assert_eq!(turns(&mut upkeep, &vms(3), Duration::from_secs(60)), [1, 2, 3]);
        assert_eq!(turns(&mut upkeep, &vms(5), Duration::from_secs(120)), [4, 5, 1, 2, 3]);
    }
}
