//! The check that stands before each beat: a program that has to end well before the next one is due.

use crate::{
    arguments::Words,
    sys::{Child, Environment},
};

/// What is known of a check now. Each interval has one that is not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ended well, or there is nothing to check.
    Well,
    /// It ended otherwise, takes too long, or can't be run.
    Failed,
    /// It runs still, or its outcome was told.
    Open,
}

/// A check, and how it does.
pub(crate) struct Check<'a> {
    command: Words<'a>,
    environment: Environment<'a>,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// It took too long, which was told, and the next one waits for its end.
    killed: bool,
}

impl<'a> Check<'a> {
    /// One that runs this command; without words, there is none.
    pub(crate) fn new(command: &Words<'a>, environment: Environment<'a>) -> Self {
        Self { command: *command, environment, running: None }
    }

    /// Time for a beat: begins the next check. One that runs still took too long, and is killed.
    pub(crate) fn due(&mut self) -> Outcome {
        if self.command.get().is_empty() {
            return Outcome::Well;
        }
        let before = match self.running.take() {
            None => Outcome::Open,
            Some(running) => match running.outcome() {
                Outcome::Open => {
                    running.child.kill();
                    self.running = Some(Running { killed: true, ..running });
                    return Outcome::Failed;
                }
                _ if running.killed => Outcome::Open,
                in_time => in_time,
            },
        };
        match (before, self.begin()) {
            (Outcome::Open, false) => Outcome::Failed,
            (before, _) => before,
        }
    }

    /// Something may have happened between two beats.
    pub(crate) fn look(&mut self) -> Outcome {
        let Some(running) = &self.running else { return Outcome::Open };
        let (outcome, killed) = (running.outcome(), running.killed);
        if outcome == Outcome::Open {
            return outcome;
        }
        self.running = None;
        if killed {
            // It kept the next one from being begun in time, and its failure was told.
            self.begin();
            return Outcome::Open;
        }
        outcome
    }

    fn begin(&mut self) -> bool {
        let child = Child::start(self.command.get(), &self.environment);
        self.running = child.map(|child| Running { child, killed: false });
        self.running.is_some()
    }

    /// Ends what runs still.
    pub(crate) fn end(&mut self) {
        if let Some(running) = &self.running {
            running.child.kill();
        }
    }
}

impl Running {
    fn outcome(&self) -> Outcome {
        match self.child.ended() {
            None => Outcome::Open,
            Some(true) => Outcome::Well,
            Some(false) => Outcome::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        thread::sleep,
        time::{Duration, Instant},
    };

    use super::*;

    fn check(words: &[&'static str]) -> Check<'static> {
        // SAFETY: a null pointer is all that is there.
        let environment = unsafe { Environment::new(&core::ptr::null()) };
        Check::new(&Words::new(words), environment)
    }

    /// What comes of a check that was begun.
    fn outcome(check: &mut Check<'_>) -> Outcome {
        let begin = Instant::now();
        loop {
            match check.look() {
                Outcome::Open if begin.elapsed() < Duration::from_secs(20) => {
                    sleep(Duration::from_millis(5));
                }
                outcome => return outcome,
            }
        }
    }

    #[test]
    fn without_a_command_all_is_well() {
        let mut check = check(&[]);
        assert_eq!(
            [check.due(), check.due(), check.look()],
            [Outcome::Well, Outcome::Well, Outcome::Open]
        );
    }

    #[test]
    fn its_outcome_is_told_once() {
        for (word, expected) in [("true", Outcome::Well), ("false", Outcome::Failed)] {
            let mut check = check(&[word]);
            assert_eq!(check.look(), Outcome::Open);
            for _ in 0..2 {
                assert_eq!(check.due(), Outcome::Open);
                assert_eq!(outcome(&mut check), expected);
                assert_eq!(check.look(), Outcome::Open);
            }
        }
    }

    #[test]
    fn one_that_was_not_looked_at_in_between_was_in_time() {
        let mut check = check(&["true"]);
        assert_eq!(check.due(), Outcome::Open);
        sleep(Duration::from_secs(1));
        assert_eq!(check.due(), Outcome::Well);
        assert_eq!(outcome(&mut check), Outcome::Well);
    }

    #[test]
    fn one_that_hangs_fails_once_an_interval_and_the_next_begins_when_it_is_gone() {
        let mut check = check(&["sleep", "60"]);
        assert_eq!(check.due(), Outcome::Open);
        for _ in 0..3 {
            let hangs = check.running.as_ref().map(|running| running.child.number());
            assert_eq!(check.due(), Outcome::Failed);
            let begin = Instant::now();
            while check.running.as_ref().is_none_or(|running| running.killed) {
                assert!(begin.elapsed() < Duration::from_secs(20), "no other was begun");
                assert_eq!(check.look(), Outcome::Open);
                sleep(Duration::from_millis(5));
            }
            assert_ne!(check.running.as_ref().map(|running| running.child.number()), hangs);
        }
        check.end();
        assert_eq!(outcome(&mut check), Outcome::Failed);
    }

    #[test]
    fn one_that_can_not_be_begun_fails() {
        let mut check = check(&["x".repeat(5000).leak()]);
        assert_eq!([check.due(), check.due()], [Outcome::Failed; 2]);
    }
}
