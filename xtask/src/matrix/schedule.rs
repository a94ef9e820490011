//! Which runs play at the same time.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use anyhow::Result;
use flatline_tests::interrupt;
use flatline_tests::scenario::{Outcome, Scenario, sensors::Trial};

/// Stages at the same time: each has guests that boot, whatever they do later.
const STAGES: usize = 3;

/// What can be played.
pub(super) trait Run {
    /// How many CPUs it keeps busy.
    fn pins(&self) -> usize;
}

impl Run for Scenario {
    fn pins(&self) -> usize {
        self.pins
    }
}

impl Run for Trial {
    fn pins(&self) -> usize {
        Self::pins(*self)
    }
}

/// What waits and what plays.
#[derive(Debug)]
struct Board<'a, T> {
    waiting: VecDeque<&'a T>,
    playing: usize,
    pinned: usize,
}

/// Plays all `runs` and reports each at its end, in the order in which they end; those that have not begun when a
/// signal comes never do.
pub(super) fn play<T: Run + Sync>(
    runs: &[T],
    cpus: usize,
    play: impl Fn(&T) -> Result<Outcome> + Sync,
    mut ended: impl FnMut(&T, Result<Outcome>),
) {
    let board = Mutex::new(Board { waiting: runs.iter().collect(), playing: 0, pinned: 0 });
    let changed = Condvar::new();
    let (sender, outcomes) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..STAGES {
            let (board, changed, play, sender) = (&board, &changed, &play, sender.clone());
            scope.spawn(move || {
                while let Some(scenario) = next(board, changed, cpus) {
                    let outcome = play(scenario);
                    lock(board).leave(scenario, cpus);
                    changed.notify_all();
                    if sender.send((scenario, outcome)).is_err() {
                        break;
                    }
                }
            });
        }
        // Else the channel would never end.
        drop(sender);
        for (scenario, outcome) in outcomes {
            ended(scenario, outcome);
        }
    });
}

fn next<'a, T: Run>(board: &Mutex<Board<'a, T>>, changed: &Condvar, cpus: usize) -> Option<&'a T> {
    let mut guard = lock(board);
    loop {
        if interrupt::interrupted() || guard.waiting.is_empty() {
            return None;
        }
        if let Some(scenario) = guard.enter(cpus) {
            return Some(scenario);
        }
        guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
}

fn lock<'a, 'b, T>(board: &'a Mutex<Board<'b, T>>) -> MutexGuard<'a, Board<'b, T>> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a, T: Run> Board<'a, T> {
    /// The first that fits beside those that play. What wants more CPUs than there are plays alone.
    fn enter(&mut self, cpus: usize) -> Option<&'a T> {
        let fits = |run: &&T| {
            if run.pins() > cpus { self.playing == 0 } else { self.pinned + run.pins() <= cpus }
        };
        let at = self.waiting.iter().position(fits)?;
        let run = self.waiting.remove(at)?;
        self.playing += 1;
        // Nothing fits beside one that wants them all, not even what is quiet.
        self.pinned += if run.pins() > cpus { cpus + 1 } else { run.pins() };
        Some(run)
    }

    fn leave(&mut self, run: &T, cpus: usize) {
        self.playing -= 1;
        self.pinned -= if run.pins() > cpus { cpus + 1 } else { run.pins() };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use flatline_tests::scenario::Expected;

    use super::*;

    fn scenario(pins: usize) -> Scenario {
        Scenario {
            name: "test",
            what: "",
            guests: |_| Ok(Vec::new()),
            boots: false,
            pins,
            fault: |stage| Ok(stage.started),
            expected: Expected::Gone,
        }
    }

    #[test]
    fn every_run_is_played_and_no_more_cpus_are_pinned_than_there_are() {
        let runs: Vec<Scenario> = [1, 0, 2, 8, 1, 1, 0, 0, 1].map(scenario).to_vec();
        let pinned = AtomicUsize::new(0);
        let mut ended = 0;
        let play_one = |scenario: &Scenario| {
            let before = pinned.fetch_add(scenario.pins, Ordering::SeqCst);
            assert!(
                before + scenario.pins <= 2 || before == 0,
                "{before} beside {}",
                scenario.pins
            );
            thread::sleep(Duration::from_millis(5));
            pinned.fetch_sub(scenario.pins, Ordering::SeqCst);
            Ok(Outcome::default())
        };
        play(&runs, 2, play_one, |_, outcome| {
            assert!(outcome.is_ok());
            ended += 1;
        });
        assert_eq!(ended, runs.len());
    }

    #[test]
    fn a_scenario_that_wants_more_cpus_than_there_are_plays_alone() {
        let (crowd, quiet) = (scenario(8), scenario(0));
        let mut board =
            Board { waiting: [&crowd, &quiet].into_iter().collect(), playing: 0, pinned: 0 };
        assert_eq!(board.enter(2).map(|scenario| scenario.pins), Some(8));
        assert!(board.enter(2).is_none());
        board.leave(&crowd, 2);
        assert_eq!(board.enter(2).map(|scenario| scenario.pins), Some(0));
    }
}
