//! The last minutes of a VM as lines of text, like an ECG. Pure: text out of figures.
//!
//! A column stands for one second or more: of packets, requests and answers it shows the most that there was in
//! it, of the vCPUs' time the mean. What is not known is a dot, and never a zero.

mod columns;
mod figures;
pub(super) mod ink;
#[cfg(test)]
mod tests;

use std::{fmt::Write, time::Duration};

use crate::api::view::{HistoryView, MarkKind};

use super::table::{duration, safe};
use columns::Columns;
use ink::{ASCII, UNICODE};

/// The narrowest and the widest drawing, in columns of the terminal.
pub(super) const WIDTHS: std::ops::RangeInclusive<usize> = 60..=120;
/// Columns before the drawing, and after it.
const LABEL: usize = 14;
const SCALE: usize = 14;
/// Marks that are told in words: the last ones.
const TOLD: usize = 8;

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Width of the terminal; one outside of [`WIDTHS`] is brought into them.
    pub(super) columns: usize,
    /// It shows Unicode.
    pub(super) unicode: bool,
}

/// Draws `history`, with the level of `flat_for` in it.
pub(super) fn draw(history: &HistoryView, flat_for: Duration, style: Style) -> String {
    let ink = if style.unicode { UNICODE } else { ASCII };
    let plot = style.columns.clamp(*WIDTHS.start(), *WIDTHS.end()) - LABEL - SCALE;
    let seconds = history.seconds;
    if seconds == 0 {
        return "nothing is recorded yet\n".to_owned();
    }
    let step = seconds.div_ceil(plot);
    let columns = Columns { seconds, step, plot };
    let mut out = String::new();
    let ago = format!("{} ago", duration(Duration::from_secs(seconds as u64)));
    let used = seconds.div_ceil(step);
    line(&mut out, "", &format!("{}{ago:<used$}", " ".repeat(plot - used)), "now");
    let peaks = [
        ("packets sent", &history.packets_from_guest, "/s"),
        ("requests done", &history.completed, "/s"),
    ];
    for (label, row, unit) in peaks {
        columns.peaks(&mut out, label, row, unit, &ink);
    }
    columns.vcpus(&mut out, history, &ink);
    columns.peaks(&mut out, "in flight", &history.in_flight, "", &ink);
    columns.peaks(&mut out, "probe answers", &history.probe_answers, "/s", &ink);
    columns.silence(&mut out, history, flat_for, &ink);
    columns.marks(&mut out, &history.marks);
    for mark in history.marks.iter().skip(history.marks.len().saturating_sub(TOLD)) {
        let (letter, word) = name(mark.kind);
        let ago = seconds.saturating_sub(mark.second);
        let text = if mark.text.is_empty() { String::new() } else { format!(": {}", mark.text) };
        let _ = writeln!(out, "  {letter} {ago:>4} s ago  {word}{}", safe(&text));
    }
    if step > 1 {
        let _ = writeln!(out, "  a column is {step} s; {} is not known", ink.unknown);
    } else {
        let _ = writeln!(out, "  a column is a second; {} is not known", ink.unknown);
    }
    out
}

fn line(out: &mut String, label: &str, drawn: &str, scale: &str) {
    // Writing to a string cannot fail.
    let text = format!("{label:<LABEL$}{drawn} {scale}");
    let _ = writeln!(out, "{}", text.trim_end());
}

/// What the highest of a row's values is, in words; `None`: no value is known.
pub(super) fn scale(most: Option<f64>, unit: &str) -> String {
    match most {
        None => "not known".to_owned(),
        Some(most) if most <= 0.0 => "none".to_owned(),
        Some(most) if most < 10.0 => format!("max {most:.1}{unit}"),
        Some(most) => format!("max {most:.0}{unit}"),
    }
}

/// The letter of a mark, and the word for it.
pub(super) fn name(kind: MarkKind) -> (char, &'static str) {
    match kind {
        MarkKind::Verdict => ('V', "verdict"),
        MarkKind::Restart => ('R', "restarted"),
        MarkKind::Suspicion => ('s', "suspected"),
        MarkKind::Life => ('L', "lives"),
        MarkKind::Held => ('h', "held"),
        MarkKind::Unobservable => ('u', "unobservable"),
        MarkKind::Other => ('o', "something else"),
    }
}

fn heavier(one: char, other: char) -> char {
    const BY_WEIGHT: &str = "VRsLhuo ";
    let weight = |letter: char| BY_WEIGHT.find(letter).unwrap_or(BY_WEIGHT.len());
    if weight(other) < weight(one) { other } else { one }
}
