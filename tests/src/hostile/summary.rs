//! What came of it, in figures.

use std::time::Duration;

use super::{Cost, MARGIN, MOST_BYTES, MOST_CPU, MOST_STATE_BYTES};

/// A crash that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// `hang` or `panic`.
    pub how: &'static str,
    /// From the crash to the reset, by QEMU's own account.
    pub took: Duration,
    /// How long the host let the daemon and the guest wait for a CPU meanwhile.
    pub withheld: Duration,
}

/// An attack that was made.
#[derive(Clone, Copy, Debug)]
pub struct Attacked {
    /// What it is.
    pub name: &'static str,
    /// How often it began anew.
    pub rounds: u32,
}

/// One part: without an attack, or with it.
#[derive(Clone, Debug)]
pub struct Phase {
    /// What the daemon took.
    pub cost: Cost,
    /// Crashes that were answered.
    pub answers: Vec<Answer>,
    /// Those that were not, in words.
    pub missed: Vec<String>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Silence before a VM was suspected.
    pub flat_for: Duration,
    /// Guests that nothing was done to, and those that crashed again and again.
    pub healthy: usize,
    /// See [`Summary::healthy`].
    pub crashing: usize,
    /// Resets from outside that no crash was due.
    pub wrong_resets: usize,
    /// Incidents that were kept.
    pub incidents: usize,
    /// Without an attack.
    pub control: Phase,
    /// With it.
    pub attack: Phase,
    /// What was done.
    pub attacks: Vec<Attacked>,
    /// The end of the daemon's log.
    pub log: String,
}

impl Phase {
    /// Restarts that took longer than they may: by the clock, and by the clock less what the host withheld.
    pub fn late(&self, flat_for: Duration) -> [usize; 2] {
        let than = |took: fn(&Answer) -> Duration| {
            self.answers.iter().filter(|answer| took(answer) > flat_for + MARGIN).count()
        };
        [than(|answer| answer.took), than(|answer| answer.took.saturating_sub(answer.withheld))]
    }

    /// Times to the reset of one kind of crash.
    pub fn times(&self, how: &str) -> Vec<Duration> {
        self.answers.iter().filter(|answer| answer.how == how).map(|answer| answer.took).collect()
    }
}

impl Summary {
    /// What of the guests and of the state directory is not as it is due, in words.
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.wrong_resets > 0 {
            wrong.push(format!("{} resets that no crash was due", self.wrong_resets));
        }
        for (name, phase) in [("without", &self.control), ("with", &self.attack)] {
            wrong.extend(
                phase.missed.iter().map(|what| format!("not answered, {name} an attack: {what}")),
            );
            let [_, late] = phase.late(self.flat_for);
            if late > 0 {
                wrong.push(format!("{late} answered too late, {name} an attack"));
            }
            if phase.cost.unanswered > 0 {
                let times = phase.cost.unanswered;
                wrong.push(format!("`status` had no answer {times} times, {name} an attack"));
            }
            if phase.answers.is_empty() {
                wrong.push(format!("no crash was answered, {name} an attack"));
            }
        }
        let bytes = self.attack.cost.state_bytes;
        if bytes > MOST_STATE_BYTES {
            wrong.push(format!("the state directory had {bytes} bytes"));
        }
        if let Some(attack) = self.attacks.iter().find(|attack| attack.rounds == 0) {
            wrong.push(format!("this attack did nothing: {}", attack.name));
        }
        wrong
    }

    /// What the daemon took of the host that is more than it may.
    pub fn dear(&self) -> Vec<String> {
        let Cost { cpu, resident_bytes, .. } = self.attack.cost;
        let mut dear = Vec::new();
        if cpu > MOST_CPU {
            dear.push(format!("the daemon took {:.1} % of a CPU", cpu * 100.0));
        }
        if resident_bytes > MOST_BYTES {
            dear.push(format!("the daemon took {} MiB of memory", resident_bytes >> 20));
        }
        dear
    }
}
