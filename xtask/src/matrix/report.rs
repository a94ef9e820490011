//! What came of the runs, as lines on the terminal and as `docs/verdicts.md`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use flatline_tests::scenario::{
    BOOT_GRACE, Expected, FLAT_FOR, Outcome, Scenario, UNCONFIRMED_FLAT_FOR,
};

use crate::document::{machine, spread, table, wrapped};
use crate::verdicts::{self, Section};

/// The causes of a conviction that was not announced.
const SILENT: [&str; 3] = ["halted", "spinning", "silent"];
/// In the reason of a verdict on a guest that was given more time.
const STARVED: &str = "the host let a vCPU run for";
/// How soon after `flat_for` such a crash is to be found.
const SOON: Duration = Duration::from_secs(3);

/// All runs of all scenarios.
#[derive(Debug)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

/// Runs of one scenario.
#[derive(Debug)]
struct Row {
    scenario: Scenario,
    outcomes: Vec<Outcome>,
    /// Why some could not be played.
    errors: Vec<String>,
}

impl Report {
    pub(super) fn new(scenarios: &[Scenario]) -> Self {
        let row = |scenario: &Scenario| Row {
            scenario: *scenario,
            outcomes: Vec::new(),
            errors: Vec::new(),
        };
        Self { rows: scenarios.iter().map(row).collect() }
    }

    /// Adds a run, and returns its line for the terminal.
    pub(super) fn add(&mut self, scenario: &Scenario, played: Result<Outcome>) -> String {
        let row = self.rows.iter_mut().find(|row| row.scenario.name == scenario.name);
        let name = scenario.name;
        match played {
            Ok(outcome) => {
                let line = format!("{name}: {}", told(&outcome));
                row.into_iter().for_each(|row| row.outcomes.push(outcome.clone()));
                line
            }
            Err(error) => {
                let line = format!("{name}: NOT PLAYED: {error:#}");
                row.into_iter().for_each(|row| row.errors.push(format!("{error:#}")));
                line
            }
        }
    }

    /// A line for each run that was not as is due.
    pub(super) fn failures(&self) -> String {
        let mut lines = String::new();
        for Row { scenario, outcomes, errors } in &self.rows {
            let wrong = outcomes.iter().filter(|outcome| !is_right(outcome)).map(told);
            for line in wrong.chain(errors.iter().map(|error| format!("not played: {error}"))) {
                // Writing to a String cannot fail.
                let _ = writeln!(lines, "- {}: {line}", scenario.name);
            }
        }
        lines
    }

    /// Writes its section of `docs/verdicts.md`.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let settings = format!(
            "The daemon had its default `flat_for` of {} s, a `boot_grace` of {} s, and an \
             `unconfirmed_flat_for` of {} s, shorter than the default so that a run that takes less than a \
             minute would show it.",
            FLAT_FOR.as_secs(),
            BOOT_GRACE.as_secs(),
            UNCONFIRMED_FLAT_FOR.as_secs()
        );
        let mut text = format!("{INTRODUCTION}\n{}\n\n", wrapped(&settings));
        let _ = write!(
            text,
            "{}\n\n{}",
            wrapped(&format!("Measured on {}.", machine()?)),
            self.table()
        );
        let _ = write!(text, "\n{}\n", wrapped(&self.summary()));
        let _ = write!(text, "\n### Announced crashes\n\n{ANNOUNCED}\n{}", self.announced());
        let failures = self.failures();
        if !failures.is_empty() {
            let items: Vec<String> = failures.lines().map(wrapped).collect();
            let _ = write!(text, "\n### Not as it is due\n\n{}\n", items.join("\n"));
        }
        let _ = write!(text, "\n### The scenarios\n\n");
        for Row { scenario: Scenario { name, what, .. }, .. } in &self.rows {
            let _ = writeln!(text, "{}", wrapped(&format!("- **{name}**: {what}.")));
        }
        verdicts::put(path, Section::Matrix, &text)
    }

    fn table(&self) -> String {
        let heading = [
            "scenario",
            "due",
            "verdict",
            "fault to verdict, s",
            "back after, s",
            "runs",
            "wrong resets",
        ];
        let mut lines = vec![heading.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        table(&lines)
    }

    /// The whole in figures, and what others promise.
    fn summary(&self) -> String {
        let outcomes = || self.rows.iter().flat_map(|row| &row.outcomes);
        let wrong: u32 = outcomes().map(|outcome| outcome.wrong_resets).sum();
        let right = outcomes().filter(|outcome| is_right(outcome)).count();
        // Where it was not announced, and it is dead from the fault on.
        let dead = |row: &&Row| matches!(row.scenario.expected, Expected::Crashed { .. });
        let silent = |outcome: &&Outcome| {
            outcome.cause.as_deref().is_some_and(|cause| SILENT.contains(&cause))
        };
        let found = self.rows.iter().filter(dead).flat_map(|row| &row.outcomes).filter(silent);
        let found: Vec<_> =
            found.filter_map(|outcome| Some((outcome.detect?, &outcome.reason))).collect();
        let (soon, late): (Vec<_>, Vec<_>) =
            found.iter().partition(|(time, _)| *time <= FLAT_FOR + SOON);
        let starved = late.iter().filter(|(_, reason)| reason.contains(STARVED)).count();
        let later = match late.len() {
            0 => String::new(),
            late => format!(
                " Of the {late} later ones, {starved} had been let run for less than half of the time that they \
                 wanted, as other scenarios kept the CPUs busy, and were given more for that."
            ),
        };
        format!(
            "{} runs, {right} of them as is due, {wrong} wrong resets. Of {} crashes that were not announced, {} were \
             found within `flat_for` + {} s of the fault.{later} Others promise, from the failure of a guest's operating system \
             to its restart: vSphere HA about 120 s, Hyper-V 60 s, Masakari 40-60 s, KubeVirt 30 s where an agent runs in \
             the guest.",
            outcomes().count(),
            found.len(),
            soon.len(),
            SOON.as_secs(),
        )
    }

    fn announced(&self) -> String {
        let mut lines = vec![["scenario", "event to reset, ms", "runs"].map(str::to_owned)];
        for Row { scenario, outcomes, .. } in &self.rows {
            let times: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.announced).collect();
            if !times.is_empty() {
                let runs = times.len().to_string();
                lines.push([scenario.name.to_owned(), millis(times), runs]);
            }
        }
        table(&lines)
    }
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let Self { scenario, outcomes, errors } = self;
        let mut verdicts: Vec<String> = Vec::new();
        for outcome in outcomes {
            let mark = if is_right(outcome) { "" } else { "**wrong**: " };
            let verdict = format!("{mark}{}", verdict(outcome));
            if !verdicts.contains(&verdict) {
                verdicts.push(verdict);
            }
        }
        if !errors.is_empty() {
            verdicts.push("not played".to_owned());
        }
        let wrong: u32 = outcomes.iter().map(|outcome| outcome.wrong_resets).sum();
        [
            scenario.name.to_owned(),
            scenario.expected.words(),
            verdicts.join("; "),
            spread(outcomes.iter().filter_map(|outcome| outcome.detect)),
            spread(outcomes.iter().filter_map(|outcome| outcome.recover)),
            (outcomes.len() + errors.len()).to_string(),
            wrong.to_string(),
        ]
    }
}

/// Least, median and most, in milliseconds.
fn millis(mut times: Vec<Duration>) -> String {
    times.sort();
    let told = |at: usize| times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3);
    let (median, last) = (times.len() / 2, times.len().saturating_sub(1));
    format!("{:.0} / {:.0} / {:.0}", told(0), told(median), told(last))
}

pub(crate) fn is_right(outcome: &Outcome) -> bool {
    outcome.as_expected && outcome.wrong_resets == 0
}

fn verdict(outcome: &Outcome) -> String {
    let cause = outcome.cause.as_ref().map(|cause| format!(" ({cause})"));
    format!("{}{}", outcome.verdict, cause.unwrap_or_default())
}

/// What the daemon logged, on lines of its own, if the run was not as is due.
pub(crate) fn log(played: &Result<Outcome>) -> String {
    let log = played.as_ref().ok().and_then(|outcome| outcome.log.as_ref());
    log.map(|log| format!("\n{log}")).unwrap_or_default()
}

/// A run in a few words: the verdict, when it came, and when the guest was back.
pub(crate) fn brief(outcome: &Outcome) -> String {
    let mut line = verdict(outcome);
    if let Some(detect) = outcome.detect {
        let _ = write!(line, ", {:.1} s", detect.as_secs_f64());
    }
    if let Some(recover) = outcome.recover {
        let _ = write!(line, ", back {:.1} s", recover.as_secs_f64());
    }
    line
}

/// A run in a line.
pub(crate) fn told(outcome: &Outcome) -> String {
    let mut line = verdict(outcome);
    if let Some(detect) = outcome.detect {
        let _ = write!(line, " after {:.1} s", detect.as_secs_f64());
    }
    if let Some(recover) = outcome.recover {
        let _ = write!(line, ", back {:.1} s later", recover.as_secs_f64());
    }
    if let Some(announced) = outcome.announced {
        let _ = write!(line, ", reset {} ms after it was announced", announced.as_millis());
    }
    if outcome.wrong_resets > 0 {
        let _ = write!(line, ", {} WRONG RESETS", outcome.wrong_resets);
    }
    let due = if outcome.as_expected { "" } else { "WRONG: " };
    format!("{due}{line}: {}", outcome.reason)
}

const INTRODUCTION: &str = "\
## Each scenario

Written by `cargo xtask matrix`, which plays everything here anew. In each scenario something becomes of a real guest,
under TCG unless its name begins with `kvm-`, while a daemon watches it and an idle bystander; in what follows, *due* is
what has to come of it, and a wrong reset is one from outside, by QEMU's own account, of a guest that had to be left
alone. Times are the least, the median and the most of all runs: from the fault to the verdict as `status` and
`incidents` tell it, asked five times a second, and from the verdict, or for a guest that reboots itself from the fault,
to the first sign of life.
";

const ANNOUNCED: &str = "\
Where QEMU itself says that the guest crashed (`GUEST_PANICKED`, `WATCHDOG`, or the `STOP` of an internal error), from
that event to the moment at which it took `system_reset`, by its own trace of the commands that it is sent: least,
median and most. All evidence was taken meanwhile. QEMU then needs 0.2 s more to reset every device and to load kernel
and initramfs again. A guest that runs on after its panic is first watched for 50 ms, in case that it writes its dump.

";

#[cfg(test)]
mod tests {
    use flatline_tests::scenario;

    use super::*;

    fn outcome(verdict: &str, seconds: u64) -> Outcome {
        Outcome {
            verdict: verdict.to_owned(),
            detect: Some(Duration::from_secs(seconds)),
            announced: Some(Duration::from_millis(seconds)),
            as_expected: true,
            ..Outcome::default()
        }
    }

    #[test]
    fn a_row_has_the_spread_of_all_runs_and_each_verdict_once() {
        let scenarios = scenario::all();
        let mut report = Report::new(&scenarios[..1]);
        for seconds in [13, 11, 12] {
            report.add(&scenarios[0], Ok(outcome("crashed", seconds)));
        }
        let cells = report.rows[0].cells();
        assert_eq!(&cells[2..], ["crashed", "11.0 / 12.0 / 13.0", "", "3", "0"]);
        assert_eq!(report.failures(), "");
        assert!(report.announced().contains("| 11 / 12 / 13"));
        let summary = report.summary();
        assert!(summary.starts_with("3 runs, 3 of them as is due, 0 wrong resets."), "{summary}");
    }

    #[test]
    fn what_took_longer_is_told_from_what_was_starved() {
        let scenarios = scenario::all();
        let mut report = Report::new(&scenarios[..1]);
        for (seconds, reason) in [(12, ""), (14, ""), (15, STARVED)] {
            let (cause, reason) = (Some("spinning".to_owned()), reason.to_owned());
            report.add(&scenarios[0], Ok(Outcome { cause, reason, ..outcome("crashed", seconds) }));
        }
        let summary = report.summary();
        let expected = "Of 3 crashes that were not announced, 1 were found within `flat_for` + 3 s of the fault. Of the 2 \
                        later ones, 1 had been let run";
        assert!(summary.contains(expected), "{summary}");
    }

    #[test]
    fn a_wrong_reset_is_a_failure_whatever_the_verdict() {
        let scenarios = scenario::all();
        let mut report = Report::new(&scenarios[..1]);
        let reset = Outcome { wrong_resets: 1, ..outcome("crashed", 11) };
        report.add(&scenarios[0], Ok(reset));
        report.add(&scenarios[0], Err(anyhow::anyhow!("no room")));
        let failures = report.failures();
        assert!(failures.contains("WRONG RESETS") && failures.contains("no room"), "{failures}");
        assert!(report.rows[0].cells()[2].contains("**wrong**"));
    }
}
