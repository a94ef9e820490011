//! Which of many tests may begin next on one host: by what each asks of the CPUs.
//!
//! A guest that spins takes a whole CPU, and is found later the less it gets of it: no two tests whose guests spin share a
//! CPU. Most tests wait most of their time: as many of them run beside those as the CPUs have time for.

use std::collections::BTreeSet;

/// Tests at a time, for each CPU: each has a daemon and some guests in memory.
const MOST_PER_CPU: usize = 4;

/// What a test asks of the host's CPUs while it runs. In the order in which they are begun: what fits least is placed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// It asserts what a daemon spends: nothing else runs.
    Alone,
    /// So many vCPUs of its guests spin at a time, and it asserts when that is noticed.
    Spins(usize),
    /// Its guests wait most of their time, or say that they crash.
    Waits,
}

/// The tests that wait for their turn, and those that run.
#[derive(Debug)]
pub struct Schedule {
    cpus: usize,
    queued: BTreeSet<(Load, usize)>,
    running: Vec<Load>,
}

impl Schedule {
    /// Nothing runs yet on so many CPUs.
    pub const fn new(cpus: usize) -> Self {
        Self { cpus, queued: BTreeSet::new(), running: Vec::new() }
    }

    /// A test wants to begin; `number` is its place among its like.
    pub fn queue(&mut self, load: Load, number: usize) {
        self.queued.insert((load, number));
    }

    /// Begins this test if it is the one that may begin now. `has_time` is whether the CPUs have time for more than what
    /// runs; a test for each CPU runs without.
    pub fn begin(&mut self, load: Load, number: usize, has_time: bool) -> bool {
        let ticket = (load, number);
        let next = self.queued.iter().find(|(load, _)| self.has_room(*load, has_time));
        if next != Some(&ticket) {
            return false;
        }
        self.queued.remove(&ticket);
        self.running.push(load);
        true
    }

    /// A test ended.
    pub fn end(&mut self, load: Load) {
        if let Some(place) = self.running.iter().position(|one| *one == load) {
            self.running.swap_remove(place);
        }
    }

    fn has_room(&self, load: Load, has_time: bool) -> bool {
        let one_waits_to_be_alone = self.queued.iter().any(|(load, _)| *load == Load::Alone);
        let number = self.running.len();
        match load {
            _ if number == 0 => true,
            Load::Alone => false,
            _ if self.running.contains(&Load::Alone) || one_waits_to_be_alone => false,
            _ if number >= MOST_PER_CPU * self.cpus => false,
            _ if number >= self.cpus && !has_time => false,
            Load::Spins(vcpus) => {
                let spinning = self.spinning();
                spinning == 0 || spinning + vcpus <= self.cpus
            }
            Load::Waits => true,
        }
    }

    fn spinning(&self) -> usize {
        let vcpus = |load: &Load| match load {
            Load::Spins(vcpus) => *vcpus,
            Load::Alone | Load::Waits => 0,
        };
        self.running.iter().map(vcpus).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Load::{Alone, Spins, Waits},
        *,
    };

    /// Those of the queued tests that begin, in their order, as long as the CPUs are as they are.
    fn begun(schedule: &mut Schedule, has_time: bool) -> Vec<Load> {
        let mut begun = Vec::new();
        while let Some((load, _)) = schedule
            .queued
            .clone()
            .into_iter()
            .find(|(load, number)| schedule.begin(*load, *number, has_time))
        {
            begun.push(load);
        }
        begun
    }

    fn queued(loads: &[Load]) -> Schedule {
        let mut schedule = Schedule::new(2);
        for (number, load) in loads.iter().enumerate() {
            schedule.queue(*load, number);
        }
        schedule
    }

    #[test]
    fn no_two_share_a_cpu_that_spin_and_others_run_beside_them() {
        let mut schedule = queued(&[Waits, Spins(1), Spins(2), Waits, Spins(1)]);
        assert_eq!(begun(&mut schedule, true), [Spins(1), Spins(1), Waits, Waits]);
        schedule.end(Spins(1));
        assert_eq!(begun(&mut schedule, true), []);
        schedule.end(Spins(1));
        assert_eq!(begun(&mut schedule, true), [Spins(2)]);
    }

    #[test]
    fn one_that_spins_more_vcpus_than_there_are_cpus_runs_when_no_other_spins() {
        let mut schedule = queued(&[Spins(4), Waits]);
        assert_eq!(begun(&mut schedule, true), [Spins(4), Waits]);
    }

    #[test]
    fn what_wants_to_be_alone_comes_first_and_is_alone() {
        let mut schedule = queued(&[Waits, Spins(1), Alone, Alone]);
        assert_eq!(begun(&mut schedule, true), [Alone]);
        schedule.end(Alone);
        assert_eq!(begun(&mut schedule, true), [Alone]);
        schedule.end(Alone);
        assert_eq!(begun(&mut schedule, true), [Spins(1), Waits]);
    }

    #[test]
    fn nothing_begins_any_more_once_something_waits_to_be_alone() {
        let mut schedule = queued(&[Waits, Waits]);
        assert_eq!(begun(&mut schedule, false), [Waits, Waits]);
        schedule.queue(Waits, 3);
        schedule.queue(Alone, 4);
        schedule.end(Waits);
        assert_eq!(begun(&mut schedule, true), []);
        schedule.end(Waits);
        assert_eq!(begun(&mut schedule, true), [Alone]);
    }

    #[test]
    fn a_busy_host_gets_one_for_each_cpu_and_an_idle_one_no_more_than_memory_has_room_for() {
        let mut schedule = queued(&[Waits; 20]);
        assert_eq!(begun(&mut schedule, false).len(), 2);
        assert_eq!(begun(&mut schedule, true).len(), 6);
    }
}
