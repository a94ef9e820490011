//! Rests of all VMs, as a tick looks at them: a line of the CPU's cache for each, one after the other. Of a VM that rests on,
//! nothing else is touched: what is held of it lies all over the memory.

use std::{cell::RefCell, mem, rc::Rc, time::Duration};

use flatline_detector::verdict::Rest;
use flatline_qemu::discover::VmId;

/// No process has this id.
const NONE: VmId = VmId { pid: 0, start_ticks: 0 };

/// What tells of signs of life without a system call, of the VM in a slot.
pub(super) trait Signs {
    /// When the programs last saw one, in the kernel's ticks.
    fn life(&self, slot: u32) -> Option<u64>;
    /// When an agent last said anything, likewise, whichever VM's that is.
    fn said(&self, slot: u32) -> Option<u64>;
    /// When the agent of this VM did, and whether that was a beat.
    fn word(&self, vm: VmId, slot: u32) -> Option<(u64, bool)>;
}

/// A VM that rests. Its moments are in ns since the host's start.
#[derive(Clone, Copy, Debug)]
struct Row {
    vm: VmId,
    /// What the programs said of its life last, and of its agent, in the kernel's ticks.
    life: u64,
    said: u64,
    begun_ns: u64,
    until_ns: u64,
    /// How long its agent's beats may stay away; 0: none are waited for.
    beats_within_ns: u64,
    /// When the last tick ended in which its agent said something; before that, when the rest began.
    said_at_ns: u64,
}

// More of it would be touched in each tick.
const _: () = assert!(size_of::<Row>() == 64);

/// How far a rest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Course {
    /// When the last tick ended that showed life.
    pub(super) lived_at: Duration,
    /// When the last tick ended in which its agent said something.
    pub(super) said_at: Option<Duration>,
    /// It lived in each tick up to its end, which is now.
    pub(super) is_over: bool,
}

#[derive(Debug, Default)]
struct Table {
    /// By slot; a row that is free is none's.
    rows: Vec<Row>,
    /// When they were looked at last: those that rest on lived then.
    looked_at: Duration,
    /// The VMs that don't rest, and such as lay down since, or are gone.
    awake: Vec<VmId>,
}

/// See the module; a clone is of the same ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rests(Rc<RefCell<Table>>);

/// The row of a VM that rests. It is awake once this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    rests: Rests,
    vm: VmId,
    slot: u32,
}

impl Rests {
    /// Takes note of a VM that does not rest.
    pub(super) fn found(&self, vm: VmId) {
        self.0.borrow_mut().awake.push(vm);
    }

    /// These are the VMs that don't rest.
    pub(super) fn are_awake(&self, vms: &[VmId]) {
        self.0.borrow_mut().awake.extend_from_slice(vms);
    }

    /// Lays the VM in `slot` down after the tick that ended at `now`, up to which the programs said this of its life, and of its
    /// agent.
    pub(super) fn lay_down(
        &self,
        (vm, slot): (VmId, u32),
        (life, said): (u64, u64),
        rest: Rest,
        now: Duration,
    ) -> Place {
        let mut table = self.0.borrow_mut();
        let index = slot as usize;
        if table.rows.len() <= index {
            table.rows.resize(index + 1, Row::FREE);
        }
        table.rows[index] = Row {
            vm,
            life,
            said,
            begun_ns: ns(now),
            until_ns: ns(rest.until),
            beats_within_ns: rest.beats_within.map_or(0, |within| ns(within).max(1)),
            said_at_ns: ns(now),
        };
        Place { rests: self.clone(), vm, slot }
    }

    /// Looks whether there was life of each since the last tick, and tells of those whose rest has ended how far it had come.
    /// Returns the VMs that were awake before, of which some may rest by now, or be gone.
    pub(super) fn look(
        &self,
        signs: &impl Signs,
        now: Duration,
        ended: &mut dyn FnMut(VmId, Course),
    ) -> Vec<VmId> {
        let mut table = self.0.borrow_mut();
        let before = mem::replace(&mut table.looked_at, now);
        for (slot, row) in (0..).zip(&mut table.rows) {
            if row.vm != NONE
                && let Some((lives, is_over)) = row.ends(slot, signs, ns(now))
            {
                let lived_at = if lives { now } else { before };
                ended(row.vm, Course { is_over, ..row.course(lived_at) });
                row.vm = NONE;
            }
        }
        mem::take(&mut table.awake)
    }
}

impl Row {
    const FREE: Self = Self {
        vm: NONE,
        life: 0,
        said: 0,
        begun_ns: 0,
        until_ns: 0,
        beats_within_ns: 0,
        said_at_ns: 0,
    };

    /// Looks whether there was life since the last tick. `None`: the rest goes on; else whether there was, and whether the rest
    /// ends only because its time is up.
    fn ends(&mut self, slot: u32, signs: &impl Signs, now_ns: u64) -> Option<(bool, bool)> {
        let Some(life) = signs.life(slot) else { return Some((false, false)) };
        let lives = life != self.life;
        self.life = life;
        if signs.said(slot) != Some(self.said) {
            let Some((said, is_beat)) = signs.word(self.vm, slot) else {
                return Some((lives, false));
            };
            (self.said, self.said_at_ns) = (said, now_ns);
            // The first word of an agent, or one of its end: that is for the verdict.
            if !is_beat || self.beats_within_ns == 0 {
                return Some((lives, false));
            }
        }
        let away_ns = now_ns.saturating_sub(self.said_at_ns);
        if !lives || (self.beats_within_ns != 0 && away_ns >= self.beats_within_ns) {
            return Some((lives, false));
        }
        (now_ns >= self.until_ns).then_some((true, true))
    }

    fn course(&self, lived_at: Duration) -> Course {
        let said_at = Some(self.said_at_ns).filter(|at| *at > self.begun_ns);
        Course { lived_at, said_at: said_at.map(Duration::from_nanos), is_over: false }
    }
}

impl Place {
    /// How far its rest has come.
    pub(super) fn course(&self) -> Option<Course> {
        let table = self.rests.0.borrow();
        let row = table.rows.get(self.slot as usize).filter(|row| row.vm == self.vm)?;
        Some(row.course(table.looked_at.max(Duration::from_nanos(row.begun_ns))))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.rests.0.borrow_mut();
        let its = |row: &&mut Row| row.vm == self.vm;
        if let Some(row) = table.rows.get_mut(self.slot as usize).filter(its) {
            row.vm = NONE;
        }
        table.awake.push(self.vm);
    }
}

/// 584 years are in it.
fn ns(moment: Duration) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
