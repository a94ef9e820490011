//! Which runs play at the same time.

use std::collections::VecDeque;
use std::sync::{
    Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc,
};
use std::thread;

use anyhow::Result;
use flatline_tests::interrupt;
use flatline_tests::scenario::{Outcome, Scenario, sensors::Trial};

/// Stages at the same time: each has guests that boot, whatever they do later.
pub(super) const STAGES: usize = 4;

/// What can be played.
pub(crate) trait Run {
    /// How many CPUs it keeps busy, once it has begun.
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

/// The host's CPUs, to be had in the order in which they are asked for.
#[derive(Debug)]
pub(crate) struct Cpus {
    total: usize,
    books: Mutex<Books>,
    changed: Condvar,
    /// Read by what boots a guest, written by what takes every CPU: beside that, a boot would starve both.
    boots: RwLock<()>,
}

#[derive(Debug)]
struct Books {
    free: usize,
    /// Numbers are given out up to here, and served up to there.
    given: u64,
    served: u64,
}

/// CPUs that are kept busy, until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    cpus: &'a Cpus,
    count: usize,
    _alone: Option<RwLockWriteGuard<'a, ()>>,
}

impl Cpus {
    pub(super) fn new(total: usize) -> Self {
        let books = Books { free: total, given: 0, served: 0 };
        Self { total, books: Mutex::new(books), changed: Condvar::new(), boots: RwLock::new(()) }
    }

    /// Waits until no run needs every CPU, and keeps them from being taken all at once, until what it gives is dropped.
    /// Nothing may be taken meanwhile.
    pub(crate) fn boot(&self) -> RwLockReadGuard<'_, ()> {
        self.boots.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until so many are free, or all where there are not so many, and takes them. All are taken only while
    /// no guest boots.
    pub(crate) fn take(&self, count: usize) -> Taken<'_> {
        let count = count.min(self.total);
        let mut books = lock(&self.books);
        let number = books.given;
        books.given += 1;
        while books.served != number || books.free < count {
            books = self.changed.wait(books).unwrap_or_else(PoisonError::into_inner);
        }
        books.served += 1;
        books.free -= count;
        // The next one may do with what is left.
        self.changed.notify_all();
        drop(books);
        let alone = (count == self.total)
            .then(|| self.boots.write().unwrap_or_else(PoisonError::into_inner));
        Taken { cpus: self, count, _alone: alone }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        lock(&self.cpus.books).free += self.count;
        self.cpus.changed.notify_all();
    }
}

/// What waits and what plays.
#[derive(Debug)]
struct Board<'a, T> {
    waiting: VecDeque<&'a T>,
    /// CPUs that those which play have taken, or will.
    wanted: usize,
}

/// Plays all `runs` and reports each at its end, in the order in which they end; those that have not begun when a
/// signal comes never do. `play` takes its CPUs itself, when it begins to keep them busy.
pub(crate) fn play<T: Run + Sync>(
    runs: &[T],
    stages: usize,
    cpus: usize,
    play: impl Fn(&T, &Cpus) -> Result<Outcome> + Sync,
    mut ended: impl FnMut(&T, Result<Outcome>),
) {
    let board = Mutex::new(Board { waiting: runs.iter().collect(), wanted: 0 });
    let cpus = Cpus::new(cpus);
    let changed = Condvar::new();
    let (sender, outcomes) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..stages {
            let (board, changed, cpus, play, sender) =
                (&board, &changed, &cpus, &play, sender.clone());
            scope.spawn(move || {
                while let Some(run) = next(board, changed, cpus.total) {
                    let outcome = play(run, cpus);
                    lock(board).wanted -= run.pins();
                    changed.notify_all();
                    if sender.send((run, outcome)).is_err() {
                        break;
                    }
                }
            });
        }
        // Else the channel would never end.
        drop(sender);
        for (run, outcome) in outcomes {
            ended(run, outcome);
        }
    });
}

fn next<'a, T: Run>(board: &Mutex<Board<'a, T>>, changed: &Condvar, cpus: usize) -> Option<&'a T> {
    let mut guard = lock(board);
    loop {
        if interrupt::interrupted() || guard.waiting.is_empty() {
            return None;
        }
        if let Some(run) = guard.enter(cpus) {
            return Some(run);
        }
        guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a, T: Run> Board<'a, T> {
    /// The first that does not wait for CPUs for long: while some keep them all busy, as many may get ready. What
    /// keeps none busy plays meanwhile.
    fn enter(&mut self, cpus: usize) -> Option<&'a T> {
        let fits = |run: &&T| self.wanted == 0 || self.wanted + run.pins() <= 2 * cpus;
        let at = self.waiting.iter().position(fits)?;
        let run = self.waiting.remove(at)?;
        self.wanted += run.pins();
        Some(run)
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
        let play_one = |scenario: &Scenario, cpus: &Cpus| {
            let taken = cpus.take(scenario.pins);
            let before = pinned.fetch_add(scenario.pins, Ordering::SeqCst);
            assert!(
                before + scenario.pins <= 2 || before == 0,
                "{before} beside {}",
                scenario.pins
            );
            thread::sleep(Duration::from_millis(5));
            pinned.fetch_sub(scenario.pins, Ordering::SeqCst);
            drop(taken);
            Ok(Outcome::default())
        };
        play(&runs, STAGES, 2, play_one, |_, outcome| {
            assert!(outcome.is_ok());
            ended += 1;
        });
        assert_eq!(ended, runs.len());
    }

    #[test]
    fn what_keeps_no_cpu_busy_does_not_wait_for_what_does() {
        let (busy, quiet) = (scenario(2), scenario(0));
        let waiting = [&busy, &busy, &busy, &quiet].into_iter().collect();
        let mut board = Board { waiting, wanted: 0 };
        let entered: Vec<usize> =
            std::iter::from_fn(|| board.enter(2)).map(|scenario| scenario.pins).collect();
        assert_eq!(entered, [2, 2, 0]);
        assert_eq!(board.waiting.len(), 1);
    }

    #[test]
    fn whoever_asks_for_all_cpus_gets_them_before_those_who_came_later() {
        let cpus = Cpus::new(2);
        let order = Mutex::new(Vec::new());
        let first = cpus.take(1);
        thread::scope(|scope| {
            for count in [2, 1] {
                let number = lock(&cpus.books).given;
                scope.spawn({
                    let (cpus, order) = (&cpus, &order);
                    move || {
                        let _taken = cpus.take(count);
                        lock(order).push(count);
                    }
                });
                while lock(&cpus.books).given == number {
                    thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*lock(&order), [2, 1]);
    }

    #[test]
    fn nobody_boots_while_all_cpus_are_taken() {
        let cpus = Cpus::new(2);
        let (one, boots) = (cpus.take(1), cpus.boot());
        drop((one, boots));
        let all = cpus.take(2);
        assert!(cpus.boots.try_read().is_err());
        drop(all);
        assert!(cpus.boots.try_read().is_ok());
    }
}
