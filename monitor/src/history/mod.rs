//! History of rates: the last ticks of all VMs, for `top` and the web page.
//!
//! The loop appends a tick of each VM that is awake. Of one that rests, its counters are looked at each [`REST_TICKS`] ticks, and
//! in each one while they are drawn; ticks between two looks have their means. Readers copy what there is, and make their
//! text of the copy, so that the loop waits for no longer than that takes. Minutes second by second, which `show` and an
//! incident's page draw, are made of recordings ([`crate::recorder::history`]) by the same rates.

mod rates;
mod ticks;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;

use crate::api::view::{LineView, LinesView};
use flatline_qemu::discover::{Vm, VmId};
pub(crate) use rates::RATES;
pub(crate) use rates::{Rate, TickRates};
pub(crate) use ticks::Ticks;

/// Ticks that are kept of each VM.
pub(crate) const HISTORY_TICKS: usize = 120;

/// Of a VM that rests, one look is for so many ticks.
pub(crate) const REST_TICKS: u32 = 10;

/// Whether it is the turn of a VM that rests in this tick. Not all are looked at in the same one; pids of QEMUs that were
/// started together may be as far apart as each has threads.
pub(crate) fn is_turn_of(vm: VmId, tick: u64) -> bool {
    let spread = vm.pid.wrapping_mul(0x9e37_79b1) >> 16;
    u64::from(spread % REST_TICKS) == tick % u64::from(REST_TICKS)
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
        let row = |rate| self.ticks.last(most).map(|rates| rates.get(rate).map(rounded)).collect();
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

/// To four places.
fn rounded(value: f32) -> f32 {
    (value * 1e4).round() / 1e4
}

/// The line of a VM from a tick on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LineSince {
    /// The number of its last tick; as many as there are in a row of it end with that.
    pub(crate) tick: u64,
    #[serde(flatten)]
    pub(crate) line: LineView,
}

/// Rates of a VM's last tick, per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NewestRates {
    /// Packets that the guest sent of its own accord.
    pub(crate) packets_from_guest: Option<f32>,
    /// Packets that were sent to it.
    pub(crate) packets_to_guest: Option<f32>,
    /// Requests that completed.
    pub(crate) completed: Option<f32>,
}

/// A VM's last ticks, and when they were.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    ticks: Ticks,
    /// When the last one ended, since the host's start.
    ended: Duration,
    interval: Duration,
}

impl Recent {
    /// When each tick began, in seconds since the host's start, and its rates, the newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = (f64, TickRates)> {
        let (ended, interval) = (self.ended.as_secs_f64(), self.interval.as_secs_f64());
        let mut begins = ended;
        self.ticks.newest_first().map(move |rates| {
            begins -= interval;
            (begins, *rates)
        })
    }
}

#[derive(Debug)]
struct State {
    interval: Duration,
    /// When the last tick ended, since the host's start.
    ended: Duration,
    /// How many ticks there were.
    ticks: u64,
    vms: BTreeMap<VmId, VmTicks>,
}

impl State {
    /// The VM with this pid; of several, the one that started last.
    fn newest_of(&self, pid: u32) -> Option<&VmTicks> {
        self.vms.range(VmId::of_pid(pid)).next_back().map(|(_, its)| its)
    }
}

/// All VMs' last ticks; a clone is of the same ones.
#[derive(Clone, Debug)]
pub(crate) struct RateHistory(Arc<Mutex<State>>);

impl RateHistory {
    /// Of no VM so far; a tick is due each `interval`.
    pub(crate) fn new(interval: Duration) -> Self {
        Self(Arc::new(Mutex::new(State {
            interval,
            ended: Duration::ZERO,
            ticks: 0,
            vms: BTreeMap::new(),
        })))
    }

    /// Ticks are due at another interval from now on: the rates are per second whatever it is.
    pub(crate) fn set_interval(&self, interval: Duration) {
        self.state().interval = interval;
    }

    /// A tick ended at `now`. What it brought of each VM is appended now, or by a later look.
    pub(crate) fn tick(&self, now: Duration) {
        let mut state = self.state();
        state.ticks += 1;
        state.ended = now;
    }

    /// The last ticks of a VM, if there are any.
    pub(crate) fn recent(&self, vm: VmId) -> Option<Recent> {
        let state = self.state();
        let VmTicks { ticks, tick, .. } = state.vms.get(&vm)?;
        let lacking = u32::try_from(state.ticks.saturating_sub(*tick)).ok()?;
        let ended = state.ended.saturating_sub(state.interval.saturating_mul(lacking));
        Some(Recent { ticks: ticks.clone(), ended, interval: state.interval })
    }

    /// Appends the rates of VMs up to the last tick, since each one's last look; the level of its vCPUs is that over the ticks in
    /// which it was not read.
    pub(crate) fn append<'a>(&self, vms: impl Iterator<Item = (&'a Arc<Vm>, TickRates)>) {
        let mut state = self.state();
        let tick = state.ticks;
        for (vm, rates) in vms {
            let its = state.vms.entry(vm.id).or_insert_with(|| VmTicks {
                vm: Arc::clone(vm),
                ticks: Ticks::default(),
                tick: tick.saturating_sub(1),
            });
            if !Arc::ptr_eq(&its.vm, vm) {
                // What is plugged in and out makes a new `Vm` of it.
                its.vm = Arc::clone(vm);
            }
            let ticks = usize::try_from(tick.saturating_sub(its.tick)).unwrap_or(usize::MAX);
            its.ticks.push_run(rates, ticks);
            its.tick = tick;
        }
    }

    /// Whether something is to be appended of a VM up to the last tick.
    pub(crate) fn lacks(&self, vm: VmId) -> bool {
        let state = self.state();
        state.vms.get(&vm).is_some_and(|its| its.tick < state.ticks)
    }

    /// Forgets a VM that is no longer watched.
    pub(crate) fn forget(&self, vm: VmId) {
        self.state().vms.remove(&vm);
    }

    /// The ticks of this VM; `None`: of all.
    pub(crate) fn view(&self, only: Option<VmId>) -> LinesView {
        self.copy(|ticks| only.is_none_or(|only| ticks.vm.id == only), HISTORY_TICKS).1
    }

    /// The ticks of the VM with this process id; `None` where there is none.
    pub(crate) fn of(&self, pid: u32) -> Option<LineView> {
        self.copy(|ticks| ticks.vm.id.pid == pid, HISTORY_TICKS).1.vms.pop()
    }

    /// The lines of VMs by pid: of each the ticks after that up to which it is known, or all that there are.
    pub(crate) fn since(&self, wanted: &[(u32, Option<u64>)]) -> Vec<LineSince> {
        let state = self.state();
        let line = |(pid, known): &(u32, Option<u64>)| {
            let its = state.newest_of(*pid)?;
            let new = known.and_then(|known| its.tick.checked_sub(known));
            let most = new.map_or(HISTORY_TICKS, |new| usize::try_from(new).unwrap_or(usize::MAX));
            Some(LineSince { tick: its.tick, line: its.view(most.min(HISTORY_TICKS)) })
        };
        wanted.iter().filter_map(line).collect()
    }

    /// Some rates of the last tick of each of these VMs, by pid; unknown ones where there is none.
    pub(crate) fn newest(&self, pids: impl Iterator<Item = u32>) -> Vec<NewestRates> {
        let state = self.state();
        let rates = |pid| {
            let rates = state.newest_of(pid).map_or(TickRates::UNKNOWN, |its| its.ticks.newest());
            NewestRates {
                packets_from_guest: rates.get(Rate::PacketsFromGuest).map(rounded),
                packets_to_guest: rates.get(Rate::PacketsToGuest).map(rounded),
                completed: rates.get(Rate::Completed).map(rounded),
            }
        };
        pids.map(rates).collect()
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

    fn append<const N: usize>(history: &RateHistory, vms: [(&Arc<Vm>, TickRates); N]) {
        history.tick(Duration::ZERO);
        history.append(vms.into_iter());
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
        append(&history, [(&web(A), TickRates::of(&activity(9)))]);
        append(&history, [(&web(A), TickRates::of(&lost))]);
        append(&history, [(&web(A), TickRates::UNKNOWN)]);
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
            append(&history, [(&web(A), TickRates::of(&activity(tick * 2)))]);
        }
        let line = history.view(Some(A)).vms.remove(0);
        assert_eq!(line.packets_from_guest.len(), HISTORY_TICKS);
        assert_eq!(line.packets_from_guest.first(), Some(&Some(3.0)));
        append(&history, [(&web(B), TickRates::UNKNOWN)]);
        history.forget(A);
        let view = history.view(Some(B));
        assert_eq!(view.vms.len(), 1, "{view:?}");
        assert_eq!((view.vms[0].start_ticks, view.vms[0].vcpu.len()), (2, 1));
        assert_eq!(history.view(Some(A)).vms, []);
        assert_eq!((history.of(7), history.of(8)), (view.vms.first().cloned(), None));
    }

    #[test]
    fn ticks_between_two_looks_have_their_means() {
        let history = RateHistory::new(Duration::from_secs(1));
        append(&history, [(&web(A), TickRates::of(&activity(2)))]);
        (0..3).for_each(|_| history.tick(Duration::ZERO));
        let rates = TickRates::UNKNOWN.with(Rate::PacketsFromGuest, Some(5.0));
        history.append([(&web(A), rates)].into_iter());
        // A second look in the same tick brings nothing.
        history.append([(&web(A), TickRates::UNKNOWN)].into_iter());
        let line = history.view(None).vms.remove(0);
        assert_eq!(line.packets_from_guest, [Some(1.0), Some(5.0), Some(5.0), Some(5.0)]);
        assert_eq!(line.vcpu, [Some(1.0), None, None, None]);
        append(&history, [(&web(A), TickRates::of(&activity(0)))]);
        assert_eq!(history.view(None).vms[0].vcpu, [Some(1.0); 5]);
    }

    #[test]
    fn each_vm_that_rests_has_its_turn() {
        for pid in [1, 5, 6, 10, 4711] {
            let vm = VmId { pid, start_ticks: 1 };
            let turns = (0..10 * u64::from(REST_TICKS)).filter(|tick| is_turn_of(vm, *tick));
            assert_eq!(turns.count(), 10);
        }
    }

    #[test]
    fn a_reader_goes_on_from_the_last_ticks_and_their_number() {
        let history = RateHistory::new(Duration::from_secs(1));
        assert_eq!(history.last(2).0, 0);
        for tick in 1..=5 {
            append(&history, [(&web(A), TickRates::of(&activity(tick * 2)))]);
        }
        let (ticks, view) = history.last(2);
        assert_eq!((ticks, &view.vms[0].packets_from_guest), (5, &vec![Some(4.0), Some(5.0)]));
        assert_eq!(history.last(9).1, history.view(None));
    }

    #[test]
    fn a_line_goes_on_from_the_tick_that_is_known_and_is_told_in_whole_where_none_of_its_is() {
        let history = RateHistory::new(Duration::from_secs(1));
        for tick in 1..=3 {
            append(&history, [(&web(A), TickRates::of(&activity(tick * 2)))]);
        }
        append(&history, [(&web(B), TickRates::of(&activity(18)))]);
        let lines = |known| history.since(&[(7, known), (8, None)]);
        let [line] = &lines(None)[..] else { panic!("not one line") };
        assert_eq!((line.tick, line.line.start_ticks), (4, 2), "that of the one that goes on");
        history.forget(B);
        let sent = |known| {
            let [line] = &lines(known)[..] else { panic!("not one line") };
            (line.tick, line.line.packets_from_guest.clone())
        };
        let all = (3, vec![Some(1.0), Some(2.0), Some(3.0)]);
        assert_eq!((sent(None), sent(Some(9)), sent(Some(0))), (all.clone(), all.clone(), all));
        assert_eq!((sent(Some(2)), sent(Some(3))), ((3, vec![Some(3.0)]), (3, vec![])));
        let newest = history.newest([7, 8].into_iter());
        let newest: Vec<_> = newest.iter().map(|rates| rates.packets_from_guest).collect();
        assert_eq!(newest, [Some(3.0), None]);
    }

    #[test]
    fn what_is_written_as_json_is_read_back() {
        let history = RateHistory::new(Duration::from_secs(1));
        append(&history, [(&web(A), TickRates::of(&activity(9)))]);
        append(&history, [(&web(A), TickRates::UNKNOWN)]);
        let ticks = Ticks::from(&history.view(None).vms[0]);
        let sent = ticks.last(9).map(|rates| rates.get(Rate::PacketsFromGuest));
        assert_eq!(sent.collect::<Vec<_>>(), [Some(4.5), None]);
        assert_eq!(ticks.last(2).next().and_then(|rates| rates.get(Rate::InFlight)), Some(4.0));
    }
}
