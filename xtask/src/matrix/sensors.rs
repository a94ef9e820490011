//! `cargo xtask matrix --sensors`: each fault with each sensor taken away, and its section of `docs/verdicts.md`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use flatline_tests::interrupt;
use flatline_tests::scenario::sensors::{FAULTS, SENSORS, Trial};
use flatline_tests::scenario::{Outcome, Programs, UNCONFIRMED_FLAT_FOR};

use super::{report, schedule};
use crate::document::{machine, table, wrapped};
use crate::process::{elapsed, heading, workspace_root};
use crate::verdicts::{self, Section};

/// What came of a trial, or why it could not be played.
type Played = (Trial, Result<Outcome>);

/// Those whose sensor is among `only`; all, if there are none.
///
/// # Errors
///
/// If no sensor has such a name.
pub(super) fn chosen(only: &[String]) -> Result<Vec<Trial>> {
    for name in only {
        if !SENSORS.iter().any(|sensor| sensor.name() == name) {
            let names = SENSORS.map(|sensor| sensor.name()).join(", ");
            bail!("no sensor is called {name}: there are {names}");
        }
    }
    let mut trials = Trial::all();
    if !only.is_empty() {
        trials.retain(|trial| only.iter().any(|name| trial.sensor.name() == name));
    }
    Ok(trials)
}

/// Plays them all, and writes if they are all that there are.
///
/// # Errors
///
/// If a guest was reset wrongly, a crash taken for life, something could not be played, or Ctrl-C came.
pub(super) fn task(trials: &[Trial], programs: &Programs) -> Result<()> {
    let begin = Instant::now();
    heading(&format!("{} trials", trials.len()));
    let cpus = std::thread::available_parallelism()?.get();
    let mut all: Vec<Played> = Vec::new();
    schedule::play(
        trials,
        schedule::STAGES,
        cpus,
        |trial, cpus| trial.play(programs, || cpus.take(trial.pins())),
        |trial, played| {
            let (line, log) = (told(trial, &played), report::log(&played));
            println!("{:>8}  {line}{log}", elapsed(begin.elapsed()));
            all.push((*trial, played));
        },
    );
    interrupt::check()?;
    println!("\n{}", results(&all));
    if trials.len() == Trial::all().len() {
        let path = workspace_root().join("docs/verdicts.md");
        write(&path, &all)?;
        heading(&format!("{} has it all", path.display()));
    }
    let failed = failures(&all);
    if !failed.is_empty() {
        bail!("not as it is due:\n{}", failed.join("\n"));
    }
    heading(&format!("all as it is due, in {}", elapsed(begin.elapsed())));
    Ok(())
}

fn told(trial: &Trial, played: &Result<Outcome>) -> String {
    let outcome = match played {
        Ok(outcome) => report::told(outcome),
        Err(error) => format!("NOT PLAYED: {error:#}"),
    };
    format!("without {}, {}: {outcome}", trial.sensor.name(), trial.fault.words())
}

fn failures(all: &[Played]) -> Vec<String> {
    let is_right = |played: &Result<Outcome>| played.as_ref().is_ok_and(report::is_right);
    let wrong = all.iter().filter(|(_, played)| !is_right(played));
    wrong.map(|(trial, played)| format!("- {}", told(trial, played))).collect()
}

fn write(path: &Path, all: &[Played]) -> Result<()> {
    let introduction = format!(
        "Written by `cargo xtask matrix --sensors`, on {}. Each fault comes to a guest that lacks one of its sensors; \
         `unconfirmed_flat_for` is {} s. Times are from the fault to the verdict, and from there to the first sign \
         of life; without a verdict, the state after 40 s stands there.",
        machine()?,
        UNCONFIRMED_FLAT_FOR.as_secs()
    );
    let mut text = format!(
        "## With one sensor less\n\n{}\n\n{}\nHow each is taken away:\n\n",
        wrapped(&introduction),
        results(all)
    );
    for sensor in SENSORS {
        let _ =
            writeln!(text, "{}", wrapped(&format!("- **{}**: {}.", sensor.name(), sensor.how())));
    }
    let failed = failures(all);
    if !failed.is_empty() {
        let items: Vec<String> = failed.iter().map(|line| wrapped(line)).collect();
        let _ =
            write!(text, "\n### Not as it is due with one sensor less\n\n{}\n", items.join("\n"));
    }
    verdicts::put(path, Section::Sensors, &text)
}

fn results(all: &[Played]) -> String {
    let [a, b, c, d, e] = FAULTS.map(|fault| fault.words().to_owned());
    let mut lines = vec![["without".to_owned(), a, b, c, d, e, "wrong resets".to_owned()]];
    for sensor in SENSORS {
        let its = || all.iter().filter(move |(trial, _)| trial.sensor == sensor);
        if its().next().is_none() {
            continue;
        }
        let [a, b, c, d, e] = FAULTS.map(|fault| {
            let played = its().find(|(trial, _)| trial.fault == fault);
            played.map(|(_, played)| cell(played)).unwrap_or_default()
        });
        let outcomes = its().filter_map(|(_, played)| played.as_ref().ok());
        let wrong: u32 = outcomes.map(|outcome| outcome.wrong_resets).sum();
        lines.push([sensor.name().to_owned(), a, b, c, d, e, wrong.to_string()]);
    }
    table(&lines)
}

fn cell(played: &Result<Outcome>) -> String {
    let Ok(outcome) = played else { return "not played".to_owned() };
    let mut cell = match (&outcome.cause, outcome.detect) {
        (Some(cause), Some(detect)) => format!("{cause}, {:.1} s", detect.as_secs_f64()),
        _ => outcome.verdict.clone(),
    };
    if let Some(recover) = outcome.recover {
        let _ = write!(cell, ", back {:.1} s", recover.as_secs_f64());
    }
    if report::is_right(outcome) { cell } else { format!("**wrong**: {cell}") }
}

#[cfg(test)]
mod tests {
    use flatline_tests::scenario::sensors::{Fault, Sensor};

    use super::*;

    #[test]
    fn a_crash_that_was_taken_for_life_is_a_failure_and_is_marked() {
        let trial = |sensor, fault| Trial { sensor, fault };
        let outcome = |verdict: &str, as_expected| Outcome {
            verdict: verdict.to_owned(),
            as_expected,
            ..Outcome::default()
        };
        let all = [
            (trial(Sensor::Tap, Fault::Halt), Ok(outcome("suspect", true))),
            (trial(Sensor::Tap, Fault::Panic), Ok(outcome("alive", false))),
            (trial(Sensor::Disk, Fault::Idle), Err(anyhow::anyhow!("no room"))),
        ];
        let text = results(&all);
        assert!(text.contains("| suspect ") && text.contains("**wrong**: alive"), "{text}");
        let failures = failures(&all);
        assert_eq!(failures.len(), 2, "{failures:?}");
        assert!(failures[1].contains("no room"), "{failures:?}");
    }

    #[test]
    fn only_named_sensors_are_tried_and_a_wrong_name_is_refused() {
        let names =
            |only: &[&str]| chosen(&only.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&["qmp"]).map(|trials| trials.len()).ok(), Some(FAULTS.len()));
        assert_eq!(names(&[]).map(|trials| trials.len()).ok(), Some(45));
        assert!(names(&["tea"]).is_err());
    }
}
