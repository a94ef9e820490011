//! The rows of a drawing, of which each column stands for one second or more.

use std::time::Duration;

use crate::api::view::{HistoryView, MarkView};
use flatline_detector::verdict::{PINNED_RATIO, STILL_BUSY_RATIO};

use super::{
    super::table::duration,
    figures::{Silence, mean, peak, silence},
    heavier,
    ink::{Ink, level},
    line, name, scale,
};

/// The height of the vCPUs' time.
#[derive(Clone, Copy, PartialEq)]
enum Band {
    /// Some vCPU runs, or wants to, all the time.
    Pinned,
    /// They use so much together.
    Between(f64),
    /// They stand still.
    Still,
    Unknown,
}

/// How seconds are put into columns: the last one ends now.
pub(super) struct Columns {
    pub(super) seconds: usize,
    pub(super) step: usize,
    pub(super) plot: usize,
}

impl Columns {
    /// The columns' values of a row.
    fn of<'a, T>(&self, row: &'a [T]) -> Vec<&'a [T]> {
        let row = row.get(..self.seconds.min(row.len())).unwrap_or_default();
        let mut columns: Vec<&[T]> = row.rchunks(self.step).collect();
        columns.reverse();
        columns
    }

    /// Characters, aligned to the right.
    fn aligned(&self, drawn: impl Iterator<Item = char>) -> String {
        let drawn: String = drawn.collect();
        let width = self.plot;
        format!("{drawn:>width$}")
    }

    /// A row of which each column shows its highest value.
    pub(super) fn peaks(
        &self,
        out: &mut String,
        label: &str,
        row: &[Option<f64>],
        unit: &str,
        ink: &Ink,
    ) {
        let columns: Vec<Option<f64>> = self.of(row).into_iter().map(peak).collect();
        let most = columns.iter().flatten().copied().fold(0.0, f64::max);
        let drawn = columns.iter().map(|value| match value {
            None => ink.unknown,
            Some(value) if *value <= 0.0 => ink.flat,
            Some(value) => level(value / most, ink),
        });
        let scale = scale(columns.iter().any(Option::is_some).then_some(most), unit);
        line(out, label, &self.aligned(drawn), &scale);
    }

    /// The vCPUs' time in three bands, so that both levels that the verdict knows are seen.
    pub(super) fn vcpus(&self, out: &mut String, history: &HistoryView, ink: &Ink) {
        let used = self.of(&history.vcpu).into_iter().map(mean);
        let wanted = self.of(&history.vcpu_wanted).into_iter().map(mean);
        let bands: Vec<Band> = used
            .zip(wanted)
            .map(|pair| match pair {
                // On a busy host, a vCPU that spins waits more than it runs.
                (_, Some(wanted)) if wanted >= PINNED_RATIO => Band::Pinned,
                (Some(used), _) if used < STILL_BUSY_RATIO => Band::Still,
                (Some(used), _) => Band::Between(used),
                (None, _) => Band::Unknown,
            })
            .collect();
        let is = |wanted: Band, ink: char| {
            bands.iter().map(move |band| if *band == wanted { ink } else { ' ' })
        };
        let high = is(Band::Pinned, ink.levels.last().copied().unwrap_or(' '));
        let between = bands.iter().map(|band| match band {
            Band::Unknown => ink.unknown,
            Band::Between(used) => level(used / PINNED_RATIO, ink),
            Band::Pinned | Band::Still => ' ',
        });
        let low = is(Band::Still, ink.flat);
        let percent = |ratio: f64| format!("{:.0} %", ratio * 100.0);
        let pinned = format!("{} {} pinned", ink.at_least, percent(PINNED_RATIO));
        line(out, "vCPU time", &self.aligned(high), &pinned);
        line(out, "", &self.aligned(between), "between");
        line(out, "", &self.aligned(low), &format!("< {} still", percent(STILL_BUSY_RATIO)));
    }

    /// How long nothing was heard, below `flat_for` and from there on.
    pub(super) fn silence(
        &self,
        out: &mut String,
        history: &HistoryView,
        flat_for: Duration,
        ink: &Ink,
    ) {
        let silence = silence(history);
        let beyond = |length: usize| Duration::from_secs(length as u64) >= flat_for;
        let drawn = self.of(&silence).into_iter().map(|column| {
            if column.contains(&Silence::Lives) {
                return ' ';
            }
            match column.last() {
                Some(Silence::For(length)) if beyond(*length) => ink.too_flat,
                Some(Silence::For(_)) => ink.flat,
                _ => ink.unknown,
            }
        });
        let scale = format!("{} {}+", ink.too_flat, duration(flat_for));
        line(out, "silent", &self.aligned(drawn), &scale);
    }

    pub(super) fn marks(&self, out: &mut String, marks: &[MarkView]) {
        let mut letters = vec![' '; self.seconds];
        // The weightiest of a second, and then of a column, is shown.
        for mark in marks {
            if let Some(letter) = letters.get_mut(mark.second) {
                *letter = heavier(*letter, name(mark.kind).0);
            }
        }
        let drawn =
            self.of(&letters).into_iter().map(|column| column.iter().copied().fold(' ', heavier));
        line(out, "", &self.aligned(drawn), "");
    }
}
