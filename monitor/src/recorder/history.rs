//! The last minutes of a VM, second by second, made of its recording: for `show`, and for an incident's page.
//!
//! A second in which a rate was missing has none: missing is not zero.

use std::time::Duration;

use crate::{
    api::view::{HistoryView, MarkKind, MarkView, MemoryMomentView},
    history::{RATES, Rate, Recent, TickRates},
};
use flatline_detector::recording::{Decoded, Segment, record::Record};
use flatline_detector::{
    activity::Activity,
    verdict::{Act, Input},
};

/// Of a second that was seen for less than this part, nothing is said.
const SEEN_ENOUGH: f64 = 0.5;

/// A figure a second, while it is gathered.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// The figure's sum, weighted by time.
    sum: f64,
    /// Seconds over which it is known.
    known: f64,
    /// It was missing for a part.
    missing: bool,
}

/// The rates of a second, in the order of [`Rate`].
type Second = [Cell; RATES];

/// The seconds up to `now`, at most `keep` of them; segments that can't be read are left out. Of a rest, which is one record,
/// `recent` ticks tell more, as far as there are any.
pub(crate) fn history(
    segments: &[impl AsRef<Segment>],
    now: Duration,
    keep: Duration,
    recent: Option<&Recent>,
) -> HistoryView {
    let begins = segments.first().map_or(now, |segment| segment.as_ref().began);
    let span = now.saturating_sub(begins).min(keep);
    let seconds = usize::try_from(span.as_secs()).unwrap_or(usize::MAX);
    // Seconds are counted back from now.
    let zero = now.as_secs_f64() - span.as_secs_f64().floor();
    let mut cells = vec![Second::default(); seconds];
    let (mut marks, mut memory) = (Vec::new(), Vec::new());
    for segment in segments {
        let Ok(Decoded { records, .. }) = segment.as_ref().decode() else { continue };
        for record in records {
            let second = index(record.at.as_secs_f64() - zero).filter(|second| *second < seconds);
            match (&record.input, second) {
                (Input::Tick(tick), _) => add(&mut cells, zero, record.at, &tick.activity),
                (Input::Lived { tick, .. }, _) => {
                    add_rest(&mut cells, zero, record.at, &tick.activity, recent);
                }
                (Input::Memory(read), Some(second)) => {
                    memory.push(MemoryMomentView::new(read, second));
                }
                _ => {}
            }
            if let (Some(kind), Some(second)) = (mark(&record), second) {
                let text = record.changed.map(|changed| changed.reason).unwrap_or_default();
                marks.push(MarkView { second, kind, text });
            }
        }
    }
    let row = |rate: Rate| {
        let value = |second: &Second| {
            let cell = second[rate as usize];
            let known = !cell.missing && cell.known >= SEEN_ENOUGH;
            known.then(|| (cell.sum / cell.known * 1e4).round() / 1e4)
        };
        cells.iter().map(value).collect()
    };
    HistoryView {
        seconds,
        packets_from_guest: row(Rate::PacketsFromGuest),
        completed: row(Rate::Completed),
        vcpu: row(Rate::Vcpu),
        vcpu_wanted: row(Rate::VcpuWanted),
        in_flight: row(Rate::InFlight),
        probe_answers: row(Rate::ProbeAnswers),
        packets_to_guest: row(Rate::PacketsToGuest),
        memory,
        marks,
    }
}

/// Something that was decided, or done, to the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// When, since the host's start.
    pub at: Duration,
    /// What.
    pub kind: MarkKind,
    /// Why.
    pub text: String,
}

/// All that was decided or done, the oldest first; segments that can't be read are left out.
pub(crate) fn moments(segments: &[impl AsRef<Segment>]) -> Vec<Moment> {
    let decoded = segments.iter().filter_map(|segment| segment.as_ref().decode().ok());
    let moment = |record: Record| {
        let kind = mark(&record)?;
        let text = record.changed.map(|changed| changed.reason).unwrap_or_default();
        Some(Moment { at: record.at, kind, text })
    };
    decoded.flat_map(|decoded| decoded.records).filter_map(moment).collect()
}

/// What a record marks, where it does.
fn mark(record: &Record) -> Option<MarkKind> {
    match (&record.act, &record.input, &record.changed) {
        (Act::Recovered | Act::BeatsAgain, _, _) => Some(MarkKind::Life),
        (Act::Convict(_) | Act::NotRecovered(_) | Act::GiveUp(_) | Act::Report(_), _, _) => {
            Some(MarkKind::Verdict)
        }
        (_, Input::Restarted { .. }, _) => Some(MarkKind::Restart),
        (_, _, Some(changed)) => match changed.state {
            "suspect" => Some(MarkKind::Suspicion),
            "held" => Some(MarkKind::Held),
            "unobservable" => Some(MarkKind::Unobservable),
            "alive" => Some(MarkKind::Life),
            _ => None,
        },
        _ => None,
    }
}

/// Adds what a tick that ended at `at` says to the seconds that it covers.
fn add(cells: &mut [Second], zero: f64, at: Duration, activity: &Activity) {
    let ends = at.as_secs_f64() - zero;
    let begins = ends - activity.elapsed.as_secs_f64();
    add_span(cells, (begins, ends), TickRates::of(activity).all());
}

/// The same of a rest that ended at `at`: what its ticks say, where these are still known, and else what it was in the mean.
fn add_rest(
    cells: &mut [Second],
    zero: f64,
    at: Duration,
    activity: &Activity,
    recent: Option<&Recent>,
) {
    let mean = TickRates::of(activity).all();
    let mut ends = at.as_secs_f64() - zero;
    let begins = ends - activity.elapsed.as_secs_f64();
    for (tick_begins, rates) in recent.into_iter().flat_map(Recent::newest_first) {
        let tick_begins = (tick_begins - zero).max(begins);
        if tick_begins >= ends {
            continue;
        }
        let mut known = rates.all();
        known.iter_mut().zip(mean).for_each(|(rate, mean)| *rate = rate.or(mean));
        add_span(cells, (tick_begins, ends), known);
        ends = tick_begins;
    }
    add_span(cells, (begins, ends), mean);
}

/// Adds rates to the seconds that such a time covers, from `zero` on.
fn add_span(cells: &mut [Second], (begins, ends): (f64, f64), rates: [Option<f64>; RATES]) {
    let Some(last) = index(ends.max(0.0)) else { return };
    let first = index(begins.max(0.0)).unwrap_or(0);
    for (second, row) in cells.iter_mut().enumerate().take(last.saturating_add(1)).skip(first) {
        #[expect(clippy::cast_precision_loss, reason = "it is bounded")]
        let start = second as f64;
        let overlap = ends.min(start + 1.0) - begins.max(start);
        if overlap <= 0.0 {
            continue;
        }
        for (cell, rate) in row.iter_mut().zip(rates) {
            match rate {
                Some(rate) => {
                    cell.sum += rate * overlap;
                    cell.known += overlap;
                }
                None => cell.missing = true,
            }
        }
    }
}

/// The second that a moment lies in.
fn index(moment: f64) -> Option<usize> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is bounded")]
    (0.0..1e9).contains(&moment).then_some(moment as usize)
}
