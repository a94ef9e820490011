//! The last ticks of all VMs in a few figures each, for pictures that are alive.
//!
//! The loop appends a moment a VM and tick, asked for or not: that is 40 bytes. Readers copy what there is, and make
//! their text of the copy, so that the loop waits for no longer than 5 MB of 1,000 VMs take to copy. What a person looks
//! into deeper is the recorder's ([`crate::recorder`]), which knows more and takes longer.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::api::view::{LineView, LinesView};
use flatline_detector::activity::Activity;
use flatline_qemu::discover::{Vm, VmId};

/// Moments that are kept of each VM.
pub const HISTORY_TICKS: usize = 120;

/// What one tick says of a VM, a second; `None` where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct TickRates([Option<f32>; 5]);

const _: () = assert!(size_of::<TickRates>() == 40);

impl TickRates {
    fn of(activity: &Activity) -> Self {
        let seconds = activity.elapsed.as_secs_f32();
        let rate = |number: u64| (seconds > 0.0).then(|| rounded(count(number) / seconds));
        let network = activity.network.as_ref().ok().copied().flatten();
        let storage = activity.storage.as_ref().ok();
        let vcpus = activity.vcpus.as_ref().ok();
        #[expect(clippy::cast_possible_truncation, reason = "shares of a CPU need no more digits")]
        let busy = vcpus.map(|vcpus| vcpus.iter().map(|vcpu| vcpu.busy as f32).sum());
        Self([
            network.and_then(|network| rate(network.guest_packets)),
            network.and_then(|network| rate(network.packets_to_guest?)),
            storage.and_then(|storage| rate(storage.completed)),
            busy.map(rounded),
            storage.map(|storage| count(storage.in_flight)),
        ])
    }
}

#[expect(clippy::cast_precision_loss, reason = "a picture of more than 2^24 needs no last digit")]
fn count(number: u64) -> f32 {
    number as f32
}

/// A figure to four places, which is what text of it needs.
fn rounded(figure: f32) -> f32 {
    (figure * 1e4).round() / 1e4
}

#[derive(Clone, Debug)]
struct Line {
    vm: Arc<Vm>,
    moments: VecDeque<TickRates>,
}

#[derive(Debug)]
struct All {
    interval: Duration,
    /// How many there were.
    ticks: u64,
    lines: BTreeMap<VmId, Line>,
}

/// All VMs' last ticks; clones are of the same ones.
#[derive(Clone, Debug)]
pub struct RateHistory {
    all: Arc<Mutex<All>>,
}

impl RateHistory {
    /// Of nobody so far; a tick is due each `interval`.
    pub fn new(interval: Duration) -> Self {
        let all = All { interval, ticks: 0, lines: BTreeMap::new() };
        Self { all: Arc::new(Mutex::new(all)) }
    }

    /// Ticks are due at another interval from now on: the figures are per second whatever it is.
    pub fn set_interval(&self, interval: Duration) {
        self.all().interval = interval;
    }

    /// Appends a tick: what each VM did; `None` where nothing was read of it. Whoever isn't among them is forgotten.
    pub fn append<'a>(&self, vms: impl Iterator<Item = (&'a Arc<Vm>, Option<&'a Activity>)>) {
        let mut all = self.all();
        all.ticks += 1;
        let mut before = std::mem::take(&mut all.lines);
        all.lines = vms
            .map(|(vm, activity)| {
                let begin = || VecDeque::with_capacity(HISTORY_TICKS);
                let moments = before.remove(&vm.id).map_or_else(begin, |line| line.moments);
                // What is plugged in and out makes a new one of it.
                let mut line = Line { vm: Arc::clone(vm), moments };
                if line.moments.len() == HISTORY_TICKS {
                    line.moments.pop_front();
                }
                line.moments.push_back(activity.map_or_else(TickRates::default, TickRates::of));
                (vm.id, line)
            })
            .collect();
    }

    /// The lines of those whose name, UUID or process id this is; `None`: of all.
    pub fn view(&self, vm: Option<&str>) -> LinesView {
        self.copy(|line| vm.is_none_or(|vm| line.vm.is_called(vm)), HISTORY_TICKS).1
    }

    /// The line of the VM with this pid; `None` where there is none.
    pub fn of(&self, pid: u32) -> Option<LineView> {
        self.copy(|line| line.vm.id.pid == pid, HISTORY_TICKS).1.vms.pop()
    }

    /// All lines' last `most` ticks, and how many ticks there were, by which a reader goes on from what he has.
    pub fn last(&self, most: usize) -> (u64, LinesView) {
        self.copy(|_| true, most)
    }

    /// The text is made of copies, so that the loop isn't kept waiting for it.
    fn copy(&self, is_wanted: impl Fn(&Line) -> bool, most: usize) -> (u64, LinesView) {
        let all = self.all();
        let wanted = all.lines.values().filter(|line| is_wanted(line));
        let copies: Vec<Line> = wanted.map(|line| line.last(most)).collect();
        let (ticks, interval_seconds) = (all.ticks, all.interval.as_secs_f64());
        drop(all);
        (ticks, LinesView { interval_seconds, vms: copies.iter().map(view).collect() })
    }

    /// A reader that panicked has changed nothing.
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn last(&self, most: usize) -> Self {
        let before = self.moments.len().saturating_sub(most);
        Self { vm: Arc::clone(&self.vm), moments: self.moments.range(before..).copied().collect() }
    }
}

fn view(line: &Line) -> LineView {
    let row = |figure: usize| line.moments.iter().map(|moment| moment.0[figure]).collect();
    LineView {
        name: line.vm.name.clone(),
        pid: line.vm.id.pid,
        start_ticks: line.vm.id.start_ticks,
        packets_from_guest: row(0),
        packets_to_guest: row(1),
        completed: row(2),
        vcpu: row(3),
        in_flight: row(4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatline_detector::activity::{NetworkActivity, StorageActivity, VcpuActivity};
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
        let lines = RateHistory::new(Duration::from_secs(2));
        let mut lost = activity(0);
        lost.storage = Err(Missing::new("storage", "the program is gone"));
        lost.network = Ok(None);
        lines.append([(&web(A), Some(&activity(9)))].into_iter());
        lines.append([(&web(A), Some(&lost))].into_iter());
        lines.append([(&web(A), None)].into_iter());
        let view = lines.view(None);
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
    fn no_more_is_kept_than_a_lines_ticks_and_nothing_of_whoever_is_gone() {
        let lines = RateHistory::new(Duration::from_secs(1));
        for tick in 0..HISTORY_TICKS as u64 + 3 {
            lines.append([(&web(A), Some(&activity(tick * 2)))].into_iter());
        }
        let line = lines.view(Some("web")).vms.remove(0);
        assert_eq!(line.packets_from_guest.len(), HISTORY_TICKS);
        assert_eq!(line.packets_from_guest.first(), Some(&Some(3.0)));
        lines.append([(&web(B), None)].into_iter());
        let view = lines.view(Some("7"));
        assert_eq!(view.vms.len(), 1, "{view:?}");
        assert_eq!((view.vms[0].start_ticks, view.vms[0].vcpu.len()), (2, 1));
        assert_eq!(lines.view(Some("mail")).vms, []);
        assert_eq!((lines.of(7), lines.of(8)), (view.vms.first().cloned(), None));
    }

    #[test]
    fn who_has_the_lines_goes_on_from_the_last_ticks_and_their_number() {
        let lines = RateHistory::new(Duration::from_secs(1));
        assert_eq!(lines.last(2).0, 0);
        for tick in 1..=5 {
            lines.append([(&web(A), Some(&activity(tick * 2)))].into_iter());
        }
        let (ticks, view) = lines.last(2);
        assert_eq!((ticks, &view.vms[0].packets_from_guest), (5, &vec![Some(4.0), Some(5.0)]));
        assert_eq!(lines.last(9).1, lines.view(None));
    }
}
