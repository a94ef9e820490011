//! Keeps the account of a soak: which incidents are due, which there are, and what else is wrong.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::fleet::Fleet;
use super::summary::{Summary, Verdict};
use crate::daemon::Daemon;
use crate::interrupt;

/// Each guest's own QEMU is asked for its events so often: a round of all takes three seconds.
const EVENTS_EVERY: Duration = Duration::from_secs(60);
/// Incidents are looked for so often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// For every guest to be in a state that fits, in the end.
const SETTLES_WITHIN: Duration = Duration::from_secs(90);
/// For a Linux to say that it is there, in the end.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// Lines of the daemon's log that are shown with a failure.
const LOG_LINES: usize = 40;

/// The account.
#[derive(Debug)]
pub(super) struct Judge {
    summary: Summary,
    /// Incidents that were seen.
    known: BTreeSet<String>,
    /// All incidents, as they were told last.
    incidents: Vec<Value>,
    /// Crashes that wait for their incident: the guests' names.
    awaited: BTreeSet<String>,
    looked: Instant,
    asked: Instant,
}

/// An incident's field.
fn text<'a>(incident: &'a Value, field: &str) -> &'a str {
    incident[field].as_str().unwrap_or_default()
}

/// Processes that want a CPU, averaged over a minute.
pub(super) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

impl Judge {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            summary: Summary::default(),
            known: BTreeSet::new(),
            incidents: Vec::new(),
            awaited: BTreeSet::new(),
            looked: now,
            asked: now,
        }
    }

    /// A crash was made: an incident is due.
    pub(super) fn crashed(&mut self, vm: &str) {
        self.summary.crashes += 1;
        self.awaited.insert(vm.to_owned());
    }

    /// A disturbance was made.
    pub(super) fn disturbed(&mut self, fault: &'static str) {
        *self.summary.disturbances.entry(fault).or_default() += 1;
    }

    /// The daemon was killed, and another took over.
    pub(super) fn daemon_restarted(&mut self) {
        self.summary.daemon_restarts += 1;
    }

    /// A crash was found.
    pub(super) fn found(&mut self, verdict: Verdict) {
        self.summary.verdicts.push(verdict);
    }

    /// A crash was found too late, or not at all: none is due any more.
    pub(super) fn missed(&mut self, vm: &str) {
        self.awaited.remove(vm);
        self.summary.missed += 1;
    }

    /// Writes down what is not as it is due.
    pub(super) fn failed(&mut self, why: String, say: impl Fn(&str)) {
        say(&format!("WRONG: {why}"));
        self.summary.failures.push(why);
    }

    /// The first incident of this VM after so many `before`.
    pub(super) fn incident_of(&self, vm: &str, before: usize) -> Option<&Value> {
        self.incidents.iter().filter(|incident| text(incident, "vm") == vm).nth(before)
    }

    /// How many incidents this VM had.
    pub(super) fn incidents_of(&self, vm: &str) -> usize {
        self.incidents.iter().filter(|incident| text(incident, "vm") == vm).count()
    }

    /// Looks for convictions, and now and then for resets.
    pub(super) fn look(
        &mut self,
        daemon: &Daemon,
        fleet: &mut Fleet,
        say: impl Fn(&str),
    ) -> Result<()> {
        if self.looked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked = Instant::now();
        let load = load();
        let (least, most) = self.summary.load.unwrap_or((load, load));
        self.summary.load = Some((least.min(load), most.max(load)));
        self.incidents = daemon.incidents()?;
        for incident in self.incidents.clone() {
            if !self.known.insert(text(&incident, "id").to_owned()) {
                continue;
            }
            let vm = text(&incident, "vm");
            if !self.awaited.remove(vm) {
                self.summary.wrong_incidents += 1;
                let why =
                    format!("{vm} was convicted:\n{incident}\n{}", daemon.log_tail(LOG_LINES));
                self.failed(why, &say);
            }
        }
        if self.asked.elapsed() >= EVENTS_EVERY {
            self.asked = Instant::now();
            self.count_resets(daemon, fleet, say);
        }
        Ok(())
    }

    /// Asks every guest's own QEMU how often it was reset.
    fn count_resets(&mut self, daemon: &Daemon, fleet: &mut Fleet, say: impl Fn(&str)) {
        for member in &mut fleet.members {
            let wrong = member.count_resets();
            if wrong > 0 {
                self.summary.wrong_resets += wrong;
                // Told once.
                member.due_restarts += wrong;
                let why = format!(
                    "{} was reset {wrong} times more than is due\n{}",
                    member.name(),
                    daemon.log_tail(LOG_LINES)
                );
                self.failed(why, &say);
            }
        }
    }

    /// The last look: at each guest's resets and state, and whether it is there.
    pub(super) fn end(
        &mut self,
        daemon: &Daemon,
        fleet: &mut Fleet,
        say: impl Fn(&str),
    ) -> Result<()> {
        fleet.stir(true)?;
        let begin = Instant::now();
        let mut misfits = misfits(daemon, fleet)?;
        while !misfits.is_empty() && begin.elapsed() < SETTLES_WITHIN {
            interrupt::sleep(Duration::from_secs(1))?;
            misfits = self::misfits(daemon, fleet)?;
        }
        for misfit in misfits {
            self.failed(format!("{misfit}\n{}", daemon.log_tail(LOG_LINES)), &say);
        }
        for member in fleet.members.iter().filter(|member| member.kind.obeys()) {
            if !member.answers(ANSWERS_WITHIN) {
                let why = format!("{} takes no command in the end", member.name());
                self.failed(why, &say);
            }
        }
        self.look(daemon, fleet, &say)?;
        self.count_resets(daemon, fleet, &say);
        for vm in std::mem::take(&mut self.awaited) {
            self.failed(format!("{vm} crashed, and has no incident"), &say);
        }
        Ok(())
    }

    pub(super) fn into_summary(self, fleet: &Fleet, seed: u64) -> Summary {
        Summary {
            seed,
            guests: fleet.members.len(),
            guest_time: fleet.members.iter().map(|member| member.ran_for()).sum(),
            ..self.summary
        }
    }
}

/// Guests whose state does not fit their kind, in words.
fn misfits(daemon: &Daemon, fleet: &Fleet) -> Result<Vec<String>> {
    let status = daemon.status()?;
    let rows = status["vms"].as_array().context("status has no vms")?;
    let misfit = |name: &str, fitting: &[&str]| {
        let row = rows.iter().find(|row| row["name"] == name);
        let state = row.map_or("gone", |row| text(row, "state"));
        let reason = row.map_or("", |row| text(row, "reason"));
        (!fitting.contains(&state)).then(|| format!("{name} is {state}: {reason}"))
    };
    let members = fleet.members.iter();
    Ok(members.filter_map(|member| misfit(member.name(), member.kind.fitting_states())).collect())
}
