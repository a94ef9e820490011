//! The figures as a table on the terminal and as `docs/costs.md`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::figures::{Rounds, digits};
use super::prices::Prices;
use crate::document::{machine, table, wrapped};

/// What a figure should come to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// All that was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) prices: Prices,
    sections: Vec<Section>,
    notes: Vec<String>,
    failed: Vec<String>,
    /// How many sections and notes were shown.
    shown: (usize, usize),
}

/// Figures of one subject.
#[derive(Debug)]
pub(crate) struct Section {
    title: String,
    unit: &'static str,
    how: &'static str,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    unit: &'static str,
    rounds: Rounds,
    /// Of rows that have one: the figure itself, whose floor was taken off.
    whole: Option<f64>,
    target: Option<Target>,
    remedy: &'static str,
}

impl Target {
    pub(crate) const fn at_most(most: f64) -> Self {
        Self::AtMost(most)
    }

    pub(crate) const fn at_least(least: f64) -> Self {
        Self::AtLeast(least)
    }

    /// The target, and whether it is met or by how much it is missed.
    fn judge(self, value: f64) -> (String, Result<(), String>) {
        let number = |value: f64| format!("{value:.0$}", digits(value).min(1));
        let plain = |target: f64| format!("{target}");
        match self {
            Self::AtMost(most) if value <= most => (format!("≤ {}", plain(most)), Ok(())),
            Self::AtMost(most) => {
                (format!("≤ {}", plain(most)), Err(format!("missed by {}", number(value - most))))
            }
            Self::AtLeast(least) if value >= least => (format!("≥ {}", plain(least)), Ok(())),
            Self::AtLeast(least) => {
                (format!("≥ {}", plain(least)), Err(format!("missed by {}", number(least - value))))
            }
        }
    }
}

impl Report {
    /// The section of that title, which is begun if there is none.
    pub(crate) fn section(
        &mut self,
        title: &str,
        unit: &'static str,
        how: &'static str,
    ) -> &mut Section {
        let at = self.sections.iter().position(|section| section.title == title);
        let at = at.unwrap_or_else(|| {
            let title = title.to_owned();
            self.sections.push(Section { title, unit, how, rows: Vec::new() });
            self.sections.len() - 1
        });
        &mut self.sections[at]
    }

    /// Something to be told in words.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// A part that could not be measured to its end.
    pub(crate) fn fail(&mut self, part: &str, error: &anyhow::Error) {
        self.note(format!("{part}: not measured to the end: {error:#}"));
        self.failed.push(part.to_owned());
    }

    /// The parts that could not be measured to their ends.
    pub(crate) fn failed(&self) -> &[String] {
        &self.failed
    }

    /// The tables and notes that were not shown so far, for a terminal.
    pub(crate) fn news(&mut self) -> String {
        let sections = self.sections.iter().skip(self.shown.0);
        let tables = sections.map(|section| format!("\n{}\n\n{}", section.title, section.table()));
        let notes = self.notes.iter().skip(self.shown.1);
        let notes = notes.map(|note| format!("\n{}\n", wrapped(&format!("- {note}"))));
        let news = tables.chain(notes).collect();
        self.shown = (self.sections.len(), self.notes.len());
        news
    }

    /// What a host pays, if any of it was measured.
    pub(crate) fn prices(&self) -> Option<String> {
        let lines = self.prices.lines();
        let heading = ["what", "median (middle half)"].map(str::to_owned);
        let lines: Vec<_> = std::iter::once(heading).chain(lines).collect();
        (lines.len() > 1).then(|| table(&lines))
    }

    /// Writes `docs/costs.md`.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(text, "{INTRODUCTION}\nMeasured on {}.\n", machine()?);
        if let Some(prices) = self.prices() {
            let _ = write!(text, "\n## What a host pays\n\n{prices}");
        }
        for Section { title, how, .. } in &self.sections {
            let _ = write!(text, "\n## {title}\n\n{}\n", wrapped(how));
            let section = self.sections.iter().find(|section| section.title == *title);
            let _ = write!(text, "\n{}", section.map(Section::table).unwrap_or_default());
        }
        let missed = self.missed();
        if !missed.is_empty() {
            let _ = write!(text, "\n## Targets that were missed\n\n{missed}");
        }
        let _ = write!(text, "\n## Notes\n\n");
        for note in &self.notes {
            let _ = writeln!(text, "{}", wrapped(&format!("- {note}")));
        }
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
    }

    /// An item for each missed target: by how much, and what meeting it would take.
    pub(crate) fn missed(&self) -> String {
        let mut told = BTreeSet::new();
        let mut items = String::new();
        for (section, row) in self
            .sections
            .iter()
            .flat_map(|section| section.rows.iter().map(move |row| (section, row)))
        {
            let judged = row.target.map(|target| target.judge(row.rounds.median()).1);
            let Some(Err(how)) = judged else { continue };
            let remedy = if told.insert(row.remedy) { row.remedy } else { "As above." };
            let item = format!("- {}, {}: {how} {}. {remedy}", section.title, row.what, row.unit);
            items.push_str(&wrapped(&item));
            items.push('\n');
        }
        items
    }
}

impl Section {
    /// A floor itself.
    pub(crate) fn floor(&mut self, what: &str, rounds: &Rounds) {
        self.value(&format!("*floor: {what}*"), rounds, None, "");
    }

    /// A figure without a floor.
    pub(crate) fn value(
        &mut self,
        what: &str,
        rounds: &Rounds,
        target: Option<Target>,
        remedy: &'static str,
    ) {
        self.in_unit(what, rounds, self.unit, target, remedy);
    }

    /// A figure in another unit than the section's.
    pub(crate) fn in_unit(
        &mut self,
        what: &str,
        rounds: &Rounds,
        unit: &'static str,
        target: Option<Target>,
        remedy: &'static str,
    ) {
        let (what, rounds) = (what.to_owned(), rounds.clone());
        self.rows.push(Row { what, unit, rounds, whole: None, target, remedy });
    }

    /// A figure of which only what it has above its floor matters.
    pub(crate) fn over(
        &mut self,
        what: &str,
        rounds: &Rounds,
        floor: &Rounds,
        target: Option<Target>,
        remedy: &'static str,
    ) -> Result<()> {
        self.rows.push(Row {
            what: what.to_owned(),
            unit: self.unit,
            rounds: rounds.minus(floor).with_context(|| what.to_owned())?,
            whole: Some(rounds.median()),
            target,
            remedy,
        });
        Ok(())
    }

    fn table(&self) -> String {
        let mut lines =
            vec![["what", "median (middle half)", "whole", "target", ""].map(str::to_owned)];
        for row in &self.rows {
            let (target, verdict) = row.target.map_or_else(Default::default, |target| {
                let (target, verdict) = target.judge(row.rounds.median());
                (target, verdict.map_or_else(|missed| missed, |()| "met".to_owned()))
            });
            let plus = if row.whole.is_some() && row.rounds.median() >= 0.0 { "+" } else { "" };
            let whole = row.whole.map(|whole| format!("{whole:.0$}", digits(whole)));
            let value = format!("{plus}{} {}", row.rounds, row.unit);
            lines.push([row.what.clone(), value, whole.unwrap_or_default(), target, verdict]);
        }
        table(&lines)
    }
}

const INTRODUCTION: &str = "\
# What flatline costs

Written by `cargo xtask bench`, which measures everything here anew. Where a figure has a floor, as an empty program at
the same hook, both are measured in the same run, in turns, and what is shown first is the difference, round by
round: absolute figures move from machine to machine, differences much less. A figure is the median of all rounds,
with the values between which the middle half of them lies; *whole* is a figure with its floor.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_says_by_how_much_and_what_it_would_take() {
        let rounds = |value| Rounds::new(vec![value]).expect("a value");
        let mut report = Report::default();
        let section = report.section("A thing", "ns", "");
        section.value("met", &rounds(8.0), Some(Target::at_most(8.0)), "Nothing.");
        section
            .over("dear", &rounds(30.0), &rounds(10.0), Some(Target::at_most(8.0)), "Less.")
            .expect("one each");
        section.value("few", &rounds(40.0), Some(Target::at_least(50.0)), "More.");
        let missed = report.missed();
        assert_eq!(
            missed,
            "- A thing, dear: missed by 12.0 ns. Less.\n- A thing, few: missed by 10.0 ns. More.\n"
        );
        let table = report.news();
        assert_eq!(report.news(), "", "each is shown once");
        assert!(
            table.contains("| dear | +20.0 (20.0 to 20.0) ns | 30.0  | ≤ 8    | missed by 12.0 |"),
            "{table}"
        );
    }
}
