//! Requests that wait for the probe thread, and which of them is next: pure.
//!
//! Attaching to a tap takes 24 ms, and any user can have it done to as many taps as it makes. So VMs are attached in turns by
//! the user of their QEMUs, and those of one user in the order in which they came. A newer request for a VM takes the place of
//! the one that waits. What is done at once, and what others wait for, comes before all of them.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    ops::Bound,
};

use super::{AttachReport, Counted, Tend, thread::Request};
use flatline_qemu::discover::VmId;

/// A VM that is to be counted.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) vm: VmId,
    pub(super) counted: Counted,
    /// What was done of it in the turns that it had.
    pub(super) begun: Option<AttachReport>,
    /// What it was found to have lost before it was asked for once more, which is still to be told.
    pub(super) lost: Option<String>,
    /// Its place among all requests.
    number: u64,
    /// Whether its taps were looked at for programs that are on them already.
    was_looked_at: bool,
}

impl Waiting {
    /// Ends what was begun, and says what it lost.
    fn lost_so_far(&mut self) -> Option<String> {
        self.begun.take().and_then(|begun| begun.lost).or_else(|| self.lost.take())
    }
}

/// What is to be done next.
pub(super) enum Next {
    /// One turn of a VM.
    Attach(Waiting),
    /// What needs no turn.
    Other(Request),
}

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    numbers: u64,
    stop: Option<Request>,
    take_up: Option<Vec<(VmId, Counted)>>,
    forget: VecDeque<VmId>,
    load_kvm: bool,
    kvm: Option<HashSet<VmId>>,
    tend: Option<Tend>,
    /// All VMs that there are, once what was asked for before this number is done.
    found: Option<(u64, HashSet<VmId>)>,
    by_user: BTreeMap<u32, VecDeque<Waiting>>,
    /// The user that had its turn last.
    last: Option<u32>,
}

impl Queue {
    /// Takes a request in.
    pub(super) fn push(&mut self, request: Request) {
        self.numbers += 1;
        match request {
            Request::Attach(vm, counted) => self.push_vm(vm, counted),
            Request::TakeUp(vms) => self.take_up = Some(vms),
            Request::Forget(vm) => {
                self.take(vm);
                if let Some((_, vms)) = &mut self.found {
                    vms.remove(&vm);
                }
                self.forget.push_back(vm);
            }
            Request::Tend(tend) => {
                let waiting = self.tend.get_or_insert_default();
                waiting.verify.extend(tend.verify);
                waiting.counts = waiting.counts.take().or(tend.counts);
            }
            Request::Found(vms) => {
                let number = self.found.take().map_or(self.numbers, |(number, _)| number);
                self.found = Some((number, vms));
            }
            Request::LoadKvm => self.load_kvm = true,
            Request::Kvm(suspects) => self.kvm = Some(suspects),
            Request::Stop { .. } => self.stop = Some(request),
        }
    }

    fn push_vm(&mut self, vm: VmId, counted: Counted) {
        if let Some((_, vms)) = &mut self.found {
            // It was attached before that is looked at, perhaps, and is there.
            vms.insert(vm);
        }
        let same = self.by_user.get_mut(&counted.uid).into_iter().flatten();
        if let Some(waiting) = same.into_iter().find(|waiting| waiting.vm == vm) {
            waiting.lost = waiting.lost_so_far();
            (waiting.counted, waiting.was_looked_at) = (counted, false);
            return;
        }
        let lost = self.take(vm).and_then(|mut waiting| waiting.lost_so_far());
        let number = self.numbers;
        let its = self.by_user.entry(counted.uid).or_default();
        its.push_back(Waiting { vm, counted, begun: None, lost, number, was_looked_at: false });
    }

    /// The next request.
    pub(super) fn next(&mut self) -> Option<Next> {
        let oldest = self.by_user.values().flatten().map(|waiting| waiting.number).min();
        let is_due = |(number, _): &mut (u64, _)| oldest.is_none_or(|oldest| oldest > *number);
        let other = self
            .stop
            .take()
            .or_else(|| self.take_up.take().map(Request::TakeUp))
            .or_else(|| self.forget.pop_front().map(Request::Forget))
            .or_else(|| std::mem::take(&mut self.load_kvm).then_some(Request::LoadKvm))
            .or_else(|| self.kvm.take().map(Request::Kvm))
            .or_else(|| self.tend.take().map(Request::Tend))
            .or_else(|| self.found.take_if(is_due).map(|(_, vms)| Request::Found(vms)));
        other.map(Next::Other).or_else(|| self.in_turn().map(Next::Attach))
    }

    fn in_turn(&mut self) -> Option<Waiting> {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut users = self.by_user.range((after, Bound::Unbounded)).chain(&self.by_user);
        let uid = *users.next()?.0;
        self.last = Some(uid);
        let waiting = self.by_user.get_mut(&uid)?.pop_front();
        self.drop_empty(uid);
        waiting
    }

    /// Puts back what is not done: it is the first of its user's again, when that has its turn.
    pub(super) fn put_back(&mut self, waiting: Waiting) {
        self.by_user.entry(waiting.counted.uid).or_default().push_front(waiting);
    }

    /// Takes a VM out.
    pub(super) fn take(&mut self, vm: VmId) -> Option<Waiting> {
        let place = self.by_user.iter().find_map(|(uid, its)| {
            its.iter().position(|waiting| waiting.vm == vm).map(|at| (*uid, at))
        });
        let (uid, at) = place?;
        let waiting = self.by_user.get_mut(&uid)?.remove(at);
        self.drop_empty(uid);
        waiting
    }

    fn drop_empty(&mut self, uid: u32) {
        if self.by_user.get(&uid).is_some_and(VecDeque::is_empty) {
            self.by_user.remove(&uid);
        }
    }

    /// Up to `most` VMs whose taps were not looked at yet; from now on they were.
    pub(super) fn begin_look_at(&mut self, most: usize) -> Vec<&Waiting> {
        let waiting = self.by_user.values_mut().flatten();
        let new = waiting.filter(|waiting| !waiting.was_looked_at).take(most);
        new.map(|waiting| {
            waiting.was_looked_at = true;
            &*waiting
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(pid: u32) -> VmId {
        VmId { pid, start_ticks: 1 }
    }

    fn attach(uid: u32, pid: u32) -> Request {
        let counted =
            Counted { name: format!("vm{pid}"), uid, taps: Vec::new(), files: Vec::new() };
        Request::Attach(vm(pid), counted)
    }

    fn queue(requests: impl IntoIterator<Item = Request>) -> Queue {
        let mut queue = Queue::default();
        requests.into_iter().for_each(|request| queue.push(request));
        queue
    }

    fn word(next: Next) -> String {
        match next {
            Next::Attach(waiting) => waiting.vm.pid.to_string(),
            Next::Other(Request::Forget(vm)) => format!("forget {}", vm.pid),
            Next::Other(Request::Tend(_)) => "tend".to_owned(),
            Next::Other(Request::Found(vms)) => format!("found {}", vms.len()),
            Next::Other(_) => "other".to_owned(),
        }
    }

    fn rest(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.next()).map(word).collect()
    }

    #[test]
    fn users_take_turns_and_each_ones_vms_come_in_order() {
        let many = (100..1300).map(|pid| attach(1, pid));
        let mut queue = queue(many.chain([attach(2, 7), attach(2, 8), attach(3, 9)]));
        assert_eq!(rest(&mut queue)[..6], ["100", "7", "9", "101", "8", "102"]);
    }

    #[test]
    fn a_newer_request_takes_the_place_of_the_one_that_waits() {
        let mut queue = queue([attach(1, 7), attach(1, 8), attach(1, 7)]);
        assert_eq!(rest(&mut queue), ["7", "8"]);
        // Its QEMU became another user's: it waits among that one's.
        queue.push(attach(0, 7));
        queue.push(attach(0, 8));
        queue.push(attach(5, 7));
        assert_eq!(rest(&mut queue), ["7", "8"]);
    }

    #[test]
    fn what_was_lost_in_an_earlier_turn_is_not_forgotten() {
        let mut queue = queue([attach(1, 7), attach(1, 8)]);
        let Some(Next::Attach(mut waiting)) = queue.next() else { panic!("one waits") };
        let mut report = AttachReport::new(waiting.vm, Ok(0));
        report.lost = Some("detached".to_owned());
        waiting.begun = Some(report);
        queue.put_back(waiting);
        queue.push(attach(1, 7));
        queue.push(attach(1, 7));
        let Some(Next::Attach(waiting)) = queue.next() else { panic!("it is the first still") };
        assert_eq!((waiting.vm, waiting.lost.as_deref()), (vm(7), Some("detached")));
        assert!(waiting.begun.is_none(), "it is begun anew");
        assert_eq!(rest(&mut queue), ["8"]);
    }

    #[test]
    fn what_needs_no_turn_comes_first_and_a_vm_that_is_gone_waits_no_more() {
        let tend = || Request::Tend(Tend::default());
        let mut queue = queue([attach(1, 7), attach(1, 8), tend(), Request::Forget(vm(7)), tend()]);
        queue.push(Request::Kvm(HashSet::new()));
        assert_eq!(rest(&mut queue), ["forget 7", "other", "tend", "8"]);
    }

    #[test]
    fn all_are_found_once_those_are_attached_that_were_before_and_later_ones_are_of_them() {
        let all = HashSet::from([vm(7), vm(8)]);
        let mut queue = queue([attach(1, 7), attach(1, 8), Request::Found(all.clone())]);
        queue.push(attach(2, 9));
        queue.push(Request::Forget(vm(8)));
        assert_eq!(rest(&mut queue), ["forget 8", "7", "found 2", "9"]);
        queue.push(Request::Found(all));
        assert_eq!(rest(&mut queue), ["found 2"]);
    }

    #[test]
    fn taps_are_looked_at_once_for_each_request() {
        let mut queue = queue([attach(1, 7), attach(2, 8)]);
        let pids = |queue: &mut Queue| {
            queue.begin_look_at(9).iter().map(|waiting| waiting.vm.pid).collect::<Vec<_>>()
        };
        assert_eq!(pids(&mut queue), [7, 8]);
        assert!(pids(&mut queue).is_empty());
        queue.push(attach(2, 8));
        assert_eq!(pids(&mut queue), [8]);
        assert!(queue.take(vm(8)).is_some() && queue.take(vm(8)).is_none());
    }
}
