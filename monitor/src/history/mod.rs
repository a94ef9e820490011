//! History of rates: the last ticks of all VMs, for `top` and the web page.
//!
//! The loop appends 28 bytes a VM and tick. Readers copy what there is, and make their text of the copy, so that the loop
//! waits for no longer than the 3.4 MB of 1,000 VMs take to copy. Minutes second by second, which `show` and an incident's
//! page draw, are made of recordings ([`crate::recorder::history`]) by the same rates.

mod rates;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::api::view::{LineView, LinesView};
use flatline_qemu::discover::{Vm, VmId};
pub(crate) use rates::RATES;
pub(crate) use rates::{Rate, TickRates};

/// No mean of the vCPUs' level is over more ticks.
const MOST_UNREAD: usize = 32;

/// Ticks that are kept of each VM.
pub(crate) const HISTORY_TICKS: usize = 120;

/// A VM's last ticks, the oldest first, [`HISTORY_TICKS`] at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticks(VecDeque<TickRates>);

impl Ticks {
    /// Appends a tick, for which the oldest one goes where there is no room. Ticks before it of which the vCPUs' level is
    /// unknown were part of what its level is the mean of.
    pub(crate) fn push(&mut self, rates: TickRates) {
        let level = [Rate::Vcpu, Rate::VcpuWanted].map(|rate| (rate, rates.get(rate)));
        if level[0].1.is_some() {
            let unknown = |ticks: &&mut TickRates| ticks.get(Rate::Vcpu).is_none();
            for tick in self.0.iter_mut().rev().take(MOST_UNREAD).take_while(unknown) {
                for (rate, value) in level {
                    *tick = tick.with(rate, value.map(f64::from));
                }
            }
        }
        if self.0.len() == HISTORY_TICKS {
            self.0.pop_front();
        }
        self.0.push_back(rates);
    }

    /// The last `most`, the oldest first.
    pub(crate) fn last(&self, most: usize) -> impl ExactSizeIterator<Item = &TickRates> + Clone {
        self.0.range(self.0.len().saturating_sub(most)..)
    }

    /// The newest one; one of which nothing is known where there is none.
    pub(crate) fn newest(&self) -> TickRates {
        self.0.back().copied().unwrap_or(TickRates::UNKNOWN)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&LineView> for Ticks {
    fn from(line: &LineView) -> Self {
        let at = |row: &[Option<f32>], tick: usize| row.get(tick).copied().flatten().map(f64::from);
        let rates = |tick| {
            TickRates::UNKNOWN
                .with(Rate::PacketsFromGuest, at(&line.packets_from_guest, tick))
                .with(Rate::PacketsToGuest, at(&line.packets_to_guest, tick))
                .with(Rate::Completed, at(&line.completed, tick))
                .with(Rate::Vcpu, at(&line.vcpu, tick))
                .with(Rate::InFlight, at(&line.in_flight, tick))
        };
        let mut ticks = Self::default();
        (0..line.packets_from_guest.len()).for_each(|tick| ticks.push(rates(tick)));
        ticks
    }
}

#[derive(Clone, Debug)]
struct VmTicks {
    vm: Arc<Vm>,
    ticks: Ticks,
    /// The number of the last one.
    tick: u64,
}

impl VmTicks {
    /// The last `most` ticks as JSON has them, to four places.
    fn view(&self, most: usize) -> LineView {
        let row = |rate| {
            let rounded = |value: f32| (value * 1e4).round() / 1e4;
            self.ticks.last(most).map(|rates| rates.get(rate).map(rounded)).collect()
        };
        LineView {
            name: self.vm.name.clone(),
            pid: self.vm.id.pid,
            start_ticks: self.vm.id.start_ticks,
            packets_from_guest: row(Rate::PacketsFromGuest),
            packets_to_guest: row(Rate::PacketsToGuest),
            completed: row(Rate::Completed),
            vcpu: row(Rate::Vcpu),
            in_flight: row(Rate::InFlight),
        }
    }
}

#[derive(Debug)]
struct State {
    interval: Duration,
    /// How many ticks there were.
    ticks: u64,
    vms: BTreeMap<VmId, VmTicks>,
}

/// All VMs' last ticks; a clone is of the same ones.
#[derive(Clone, Debug)]
pub(crate) struct RateHistory(Arc<Mutex<State>>);

impl RateHistory {
    /// Of no VM so far; a tick is due each `interval`.
    pub(crate) fn new(interval: Duration) -> Self {
        Self(Arc::new(Mutex::new(State { interval, ticks: 0, vms: BTreeMap::new() })))
    }

    /// Ticks are due at another interval from now on: the rates are per second whatever it is.
    pub(crate) fn set_interval(&self, interval: Duration) {
        self.state().interval = interval;
    }

    /// Appends a tick: the rates of each VM, and the level of its vCPUs over the ticks up to it in which that was not read. A
    /// VM that isn't among them is forgotten.
    pub(crate) fn append<'a>(&self, vms: impl Iterator<Item = (&'a Arc<Vm>, TickRates)>) {
        let mut state = self.state();
        state.ticks += 1;
        let tick = state.ticks;
        for (vm, rates) in vms {
            let its = state.vms.entry(vm.id).or_insert_with(|| VmTicks {
                vm: Arc::clone(vm),
                ticks: Ticks::default(),
                tick,
            });
            if !Arc::ptr_eq(&its.vm, vm) {
                // What is plugged in and out makes a new `Vm` of it.
                its.vm = Arc::clone(vm);
            }
            its.ticks.push(rates);
            its.tick = tick;
        }
        state.vms.retain(|_, vm| vm.tick == tick);
    }

    /// The ticks of the VMs with this name, UUID or process id; `None`: of all.
    pub(crate) fn view(&self, vm: Option<&str>) -> LinesView {
        self.copy(|ticks| vm.is_none_or(|vm| ticks.vm.is_called(vm)), HISTORY_TICKS).1
    }

    /// The ticks of the VM with this process id; `None` where there is none.
    pub(crate) fn of(&self, pid: u32) -> Option<LineView> {
        self.copy(|ticks| ticks.vm.id.pid == pid, HISTORY_TICKS).1.vms.pop()
    }

    /// All VMs' last `most` ticks, and how many ticks there were, by which a reader goes on from those that it has.
    pub(crate) fn last(&self, most: usize) -> (u64, LinesView) {
        self.copy(|_| true, most)
    }

    /// The text is made of copies, so that the loop isn't kept waiting for it.
    fn copy(&self, is_wanted: impl Fn(&VmTicks) -> bool, most: usize) -> (u64, LinesView) {
        let state = self.state();
        let copies: Vec<VmTicks> =
            state.vms.values().filter(|ticks| is_wanted(ticks)).cloned().collect();
        let (ticks, interval_seconds) = (state.ticks, state.interval.as_secs_f64());
        drop(state);
        let vms = copies.iter().map(|ticks| ticks.view(most)).collect();
        (ticks, LinesView { interval_seconds, vms })
    }

    /// A reader that panicked has changed nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatline_detector::activity::{Activity, NetworkActivity, StorageActivity, VcpuActivity};
    use flatline_qemu::discover::Ownership;
    use flatline_samples::{Missing, ProcessState};

    fn web(id: VmId) -> Arc<Vm> {
        Arc::new(Vm { id, name: "web".to_owned(), ..Vm::stand_in(Ownership::bare(), &[]) })
    }

    const A: VmId = VmId { pid: 7, start_ticks: 1 };
    const B: VmId = VmId { pid: 7, start_ticks: 2 };

    fn activity(packets: u64) -> Activity {
        let network = NetworkActivity { guest_packets: packets, ..NetworkActivity::default() };
        let vcpu = |index| VcpuActivity { index, tid: index, busy: 0.5, waiting: 0.0 };
        Activity {
            elapsed: Duration::from_secs(2),
            network: Ok(Some(network)),
            storage: Ok(StorageActivity { completed: 3, in_flight: 4, ..Default::default() }),
            vcpus: Ok(vec![vcpu(0), vcpu(1)]),
            process: ProcessState::Running,
            heartbeat: Ok(None),
        }
    }

    #[test]
    fn a_tick_is_a_figure_a_second_and_what_is_not_known_is_none() {
        let history = RateHistory::new(Duration::from_secs(2));
        let mut lost = activity(0);
        lost.storage = Err(Missing::new("storage", "the program is gone"));
        lost.network = Ok(None);
        history.append([(&web(A), TickRates::of(&activity(9)))].into_iter());
        history.append([(&web(A), TickRates::of(&lost))].into_iter());
        history.append([(&web(A), TickRates::UNKNOWN)].into_iter());
        let view = history.view(None);
        assert_eq!(view.interval_seconds, 2.0);
        let [line] = &view.vms[..] else { panic!("not one line: {view:?}") };
        assert_eq!((line.name.as_str(), line.pid, line.start_ticks), ("web", 7, 1));
        assert_eq!(line.packets_from_guest, [Some(4.5), None, None]);
        assert_eq!(line.packets_to_guest, [Some(0.0), None, None]);
        assert_eq!(line.completed, [Some(1.5), None, None]);
        assert_eq!(line.vcpu, [Some(1.0), Some(1.0), None]);
        assert_eq!(line.in_flight, [Some(4.0), None, None]);
    }

    #[test]
    fn no_more_ticks_are_kept_than_that_and_none_of_a_vm_that_is_gone() {
        let history = RateHistory::new(Duration::from_secs(1));
        for tick in 0..HISTORY_TICKS as u64 + 3 {
            history.append([(&web(A), TickRates::of(&activity(tick * 2)))].into_iter());
        }
        let line = history.view(Some("web")).vms.remove(0);
        assert_eq!(line.packets_from_guest.len(), HISTORY_TICKS);
        assert_eq!(line.packets_from_guest.first(), Some(&Some(3.0)));
        history.append([(&web(B), TickRates::UNKNOWN)].into_iter());
        let view = history.view(Some("7"));
        assert_eq!(view.vms.len(), 1, "{view:?}");
        assert_eq!((view.vms[0].start_ticks, view.vms[0].vcpu.len()), (2, 1));
        assert_eq!(history.view(Some("mail")).vms, []);
        assert_eq!((history.of(7), history.of(8)), (view.vms.first().cloned(), None));
    }

    #[test]
    fn a_reader_goes_on_from_the_last_ticks_and_their_number() {
        let history = RateHistory::new(Duration::from_secs(1));
        assert_eq!(history.last(2).0, 0);
        for tick in 1..=5 {
            history.append([(&web(A), TickRates::of(&activity(tick * 2)))].into_iter());
        }
        let (ticks, view) = history.last(2);
        assert_eq!((ticks, &view.vms[0].packets_from_guest), (5, &vec![Some(4.0), Some(5.0)]));
        assert_eq!(history.last(9).1, history.view(None));
    }

    #[test]
    fn what_is_written_as_json_is_read_back() {
        let history = RateHistory::new(Duration::from_secs(1));
        history.append([(&web(A), TickRates::of(&activity(9)))].into_iter());
        history.append([(&web(A), TickRates::UNKNOWN)].into_iter());
        let ticks = Ticks::from(&history.view(None).vms[0]);
        let sent = ticks.last(9).map(|rates| rates.get(Rate::PacketsFromGuest));
        assert_eq!(sent.collect::<Vec<_>>(), [Some(4.5), None]);
        assert_eq!(ticks.last(2).next().and_then(|rates| rates.get(Rate::InFlight)), Some(4.0));
    }
}
