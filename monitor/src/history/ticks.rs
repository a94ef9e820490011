//! The last ticks of one VM.

use std::collections::VecDeque;

use super::{HISTORY_TICKS, Rate, TickRates};
use crate::api::view::LineView;

/// No mean of the vCPUs' level is over more ticks.
const MOST_UNREAD: usize = 32;

/// Ticks in a row that have the same rates: those over which they are the means.
#[derive(Clone, Copy, Debug)]
struct Run {
    rates: TickRates,
    ticks: u32,
}

// A thousand VMs keep two dozen of them at least, and up to 120.
const _: () = assert!(size_of::<Run>() == 32);

/// Room for so many runs is made, and given back, at a time.
const ROOM: usize = 8;

/// A VM's last ticks, the oldest first, [`HISTORY_TICKS`] at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticks {
    runs: VecDeque<Run>,
    /// Ticks of all runs.
    length: usize,
}

impl Ticks {
    /// Appends a tick; see [`Ticks::push_run`].
    pub(crate) fn push(&mut self, rates: TickRates) {
        self.push_run(rates, 1);
    }

    /// Appends so many ticks, of which `rates` are the means, and for which the oldest ones go where there is no room. Ticks
    /// before them of which the vCPUs' level is unknown were part of what its level is the mean of.
    pub(super) fn push_run(&mut self, rates: TickRates, ticks: usize) {
        if ticks == 0 {
            return;
        }
        let level = [Rate::Vcpu, Rate::VcpuWanted].map(|rate| (rate, rates.get(rate)));
        if level[0].1.is_some() {
            let mut filled = ticks;
            for run in self.runs.iter_mut().rev() {
                filled += run.ticks as usize;
                if filled > MOST_UNREAD + ticks || run.rates.get(Rate::Vcpu).is_some() {
                    break;
                }
                for (rate, value) in level {
                    run.rates = run.rates.with(rate, value.map(f64::from));
                }
            }
        }
        let ticks = ticks.min(HISTORY_TICKS);
        self.make_room(ticks);
        self.runs.push_back(Run { rates, ticks: short(ticks) });
        self.length += ticks;
    }

    /// Lets the oldest go for which there is no room beside so many more. A queue of its own accord would double its memory, and
    /// keep that of the time in which a VM that rests now had a run for each tick.
    fn make_room(&mut self, more: usize) {
        while let Some(oldest) = self.runs.front_mut()
            && self.length + more > HISTORY_TICKS
        {
            let surplus = self.length + more - HISTORY_TICKS;
            let ticks = oldest.ticks as usize;
            if ticks > surplus {
                oldest.ticks = short(ticks - surplus);
                self.length -= surplus;
            } else {
                self.length -= ticks;
                self.runs.pop_front();
            }
        }
        if self.runs.len() == self.runs.capacity() {
            self.runs.reserve_exact(ROOM);
        } else if self.runs.capacity() - self.runs.len() > 2 * ROOM {
            self.runs.shrink_to(self.runs.len() + ROOM);
        }
    }

    /// The last `most`, the oldest first.
    pub(crate) fn last(&self, most: usize) -> impl Iterator<Item = &TickRates> + Clone {
        let all =
            self.runs.iter().flat_map(|run| std::iter::repeat_n(&run.rates, run.ticks as usize));
        all.skip(self.length.saturating_sub(most))
    }

    /// All of them, the newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &TickRates> {
        let newest_first = self.runs.iter().rev();
        newest_first.flat_map(|run| std::iter::repeat_n(&run.rates, run.ticks as usize))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The newest one; one of which nothing is known where there is none.
    pub(crate) fn newest(&self) -> TickRates {
        self.runs.back().map_or(TickRates::UNKNOWN, |run| run.rates)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "no run is longer than `HISTORY_TICKS`")]
fn short(ticks: usize) -> u32 {
    ticks as u32
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
