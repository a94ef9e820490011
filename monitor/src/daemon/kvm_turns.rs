//! Turns of suspects at being counted under KVM: from their second round of questions on, and no more of them at the same time
//! than there are rows.
//!
//! Most suspects are acquitted by their first round. Those that aren't have a row each; where there are more of them, a suspect
//! leaves its row after a while to the one that came first, of the user that has the fewest: no user may keep KVM from being
//! asked about others' guests.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use monitor_ebpf::KVM_ROWS;

use crate::probes::KvmTurn;
use flatline_qemu::discover::VmId;

const ROWS: usize = KVM_ROWS as usize;
/// The least time that a suspect is counted: the round that may be under way without it, the next one, and a silence that says
/// something.
const TURN: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct KvmTurns {
    /// In the order in which they came, or left their row last.
    suspects: Vec<Suspect>,
    /// Those that have a row, as was last said.
    counted: HashSet<VmId>,
}

#[derive(Debug)]
struct Suspect {
    vm: VmId,
    /// Its user.
    uid: u32,
    /// When its turn began.
    counted_since: Option<Duration>,
}

impl KvmTurns {
    /// Whether it is this VM's turn.
    pub(super) fn of(&self, vm: VmId) -> KvmTurn {
        match self.suspects.iter().find(|suspect| suspect.vm == vm) {
            None => KvmTurn::NotYet,
            Some(Suspect { counted_since: None, .. }) => KvmTurn::Waits,
            Some(Suspect { counted_since: Some(_), .. }) => KvmTurn::Counted,
        }
    }

    /// Adds a suspect. Whether it is a new one.
    pub(super) fn add(&mut self, vm: VmId, uid: u32) -> bool {
        let is_new = self.suspects.iter().all(|suspect| suspect.vm != vm);
        if is_new {
            self.suspects.push(Suspect { vm, uid, counted_since: None });
        }
        is_new
    }

    /// Keeps those that are still asked.
    pub(super) fn keep(&mut self, is_asked: impl Fn(VmId) -> bool) {
        self.suspects.retain(|suspect| is_asked(suspect.vm));
    }

    /// Ends the turns that are over, and begins others. Returns the VMs that have a row, if these are others now.
    pub(super) fn hand_out(&mut self, now: Duration) -> Option<HashSet<VmId>> {
        let has_row = |suspect: &Suspect| suspect.counted_since.is_some();
        let waiting = self.suspects.iter().filter(|suspect| !has_row(suspect)).count();
        let mut free = ROWS - (self.suspects.len() - waiting);
        while free < waiting && self.end_one(now) {
            free += 1;
        }
        while free > 0 && self.begin_one(now) {
            free -= 1;
        }
        let with_rows = self.suspects.iter().filter(|suspect| has_row(suspect));
        let counted: HashSet<VmId> = with_rows.map(|suspect| suspect.vm).collect();
        (counted != self.counted).then(|| {
            self.counted.clone_from(&counted);
            counted
        })
    }

    /// Ends the turn that began first, if it is over.
    fn end_one(&mut self, now: Duration) -> bool {
        let turns = self.suspects.iter().enumerate();
        let first = turns.filter_map(|(n, suspect)| Some((suspect.counted_since?, n))).min();
        let Some((since, n)) = first else { return false };
        if now.saturating_sub(since) < TURN {
            return false;
        }
        let suspect = self.suspects.remove(n);
        self.suspects.push(Suspect { counted_since: None, ..suspect });
        true
    }

    /// Begins the turn of the one that is next, if any waits.
    fn begin_one(&mut self, now: Duration) -> bool {
        let mut rows_of: HashMap<u32, usize> = HashMap::new();
        for suspect in self.suspects.iter().filter(|suspect| suspect.counted_since.is_some()) {
            *rows_of.entry(suspect.uid).or_default() += 1;
        }
        let rows = |suspect: &Suspect| rows_of.get(&suspect.uid).copied().unwrap_or_default();
        let waiting = self.suspects.iter_mut().filter(|suspect| suspect.counted_since.is_none());
        // Of several with as few, `min_by_key` takes the first.
        let next = waiting.min_by_key(|suspect| rows(suspect));
        next.map(|suspect| suspect.counted_since = Some(now)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn vm(n: usize) -> VmId {
        VmId { pid: u32::try_from(n).expect("a small number"), start_ticks: 1 }
    }

    fn full(uid: u32, suspects: usize) -> KvmTurns {
        let mut turns = KvmTurns::default();
        for n in 0..suspects {
            assert!(turns.add(vm(n), uid) && !turns.add(vm(n), uid));
        }
        turns
    }

    #[test]
    fn a_suspect_is_counted_from_when_it_is_added_until_it_is_asked_no_more() {
        let mut turns = KvmTurns::default();
        assert_eq!((turns.of(vm(1)), turns.hand_out(SECOND)), (KvmTurn::NotYet, None));
        turns.add(vm(1), 7);
        assert_eq!(turns.of(vm(1)), KvmTurn::Waits);
        assert_eq!(turns.hand_out(SECOND), Some(HashSet::from([vm(1)])));
        assert_eq!((turns.of(vm(1)), turns.hand_out(SECOND * 90)), (KvmTurn::Counted, None));
        turns.keep(|_| false);
        assert_eq!(turns.hand_out(SECOND * 91), Some(HashSet::new()));
        assert_eq!((turns.of(vm(1)), turns.hand_out(SECOND * 92)), (KvmTurn::NotYet, None));
    }

    #[test]
    fn where_there_are_more_suspects_than_rows_each_has_its_turn() {
        let mut turns = full(7, 3 * ROWS);
        let mut seen = HashSet::new();
        for turn in 0..3 {
            let now = TURN * turn;
            let counted = turns.hand_out(now).expect("others");
            assert_eq!(counted.len(), ROWS);
            seen.extend(counted);
            assert_eq!(turns.hand_out(now + TURN - SECOND), None, "none is cut short");
        }
        assert_eq!(seen.len(), 3 * ROWS);
    }

    #[test]
    fn a_user_with_very_many_suspects_keeps_another_waiting_for_one_turn_at_most() {
        let mut turns = full(7, 10 * ROWS);
        turns.hand_out(SECOND);
        turns.add(vm(99_999), 8);
        assert_eq!(turns.hand_out(SECOND * 2), None);
        let counted = turns.hand_out(SECOND + TURN).expect("others");
        assert!(counted.contains(&vm(99_999)));
        turns.hand_out(SECOND + TURN * 2);
        assert_eq!(turns.of(vm(99_999)), KvmTurn::Counted, "no other user has fewer");
    }

    #[test]
    fn rows_that_suffice_are_kept() {
        let mut turns = full(7, ROWS);
        assert_eq!(turns.hand_out(SECOND).map(|counted| counted.len()), Some(ROWS));
        assert_eq!(turns.hand_out(SECOND + TURN * 9), None);
    }
}
