//! What an incident's recording tells: figures a second, what was decided, and by which policy.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::api::view::{HistoryView, MarkKind};
use crate::cli::ecg;
use crate::recorder::history::{Moment, history, moments};
use crate::storage::incident::Incident;
use flatline_detector::recording::file::Reader;

use super::{RECORDING, Row};

/// Before the last sign of life, so much is of interest.
const BEFORE: Duration = Duration::from_secs(120);
/// A ring in memory holds no more than an hour.
const MOST_KEPT: Duration = Duration::from_secs(3600);
/// What the record tells in whole seconds is the same as a moment within this time.
const SAME: Duration = Duration::from_millis(1500);
/// More moments are not told: the last ones are.
const MOST_MOMENTS: usize = 40;

/// A recording that was read, as far as it could be.
pub(super) struct Recorded {
    /// Figures a second.
    pub(super) history: HistoryView,
    /// When the first second begins.
    pub(super) begins: SystemTime,
    /// Silence before the VM was suspected.
    pub(super) flat_for: Option<Duration>,
    /// What was decided and done, with its time.
    moments: Vec<(SystemTime, Moment)>,
    /// Why not all of it could be read.
    pub(super) complaint: Option<String>,
}

impl Recorded {
    /// Reads the file's bytes.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut recorded = Self {
            history: HistoryView::default(),
            begins: SystemTime::UNIX_EPOCH,
            flat_for: None,
            moments: Vec::new(),
            complaint: None,
        };
        let mut reader = match Reader::new(Cursor::new(bytes), Path::new(RECORDING)) {
            Ok(reader) => reader,
            Err(error) => {
                recorded.complaint = Some(error.to_string());
                return recorded;
            }
        };
        let (mut segments, mut ends) = (Vec::new(), Duration::ZERO);
        loop {
            match reader.next_segment() {
                Ok(Some((segment, decoded))) => {
                    let last = decoded.records.last().map_or(segment.began, |record| record.at);
                    ends = ends.max(last);
                    segments.push(Arc::new(segment));
                }
                Ok(None) => break,
                // What was read before the tear is as good as ever.
                Err(error) => {
                    recorded.complaint = Some(error.to_string());
                    break;
                }
            }
        }
        let header = reader.header();
        recorded.history = history(&segments, ends, MOST_KEPT, None);
        let span = Duration::from_secs(recorded.history.seconds as u64);
        recorded.begins = header.wall_clock(ends.saturating_sub(span));
        recorded.flat_for = Some(header.detection.policy.flat_for);
        let at = |moment: Moment| (header.wall_clock(moment.at), moment);
        recorded.moments = moments(&segments).into_iter().map(at).collect();
        recorded
    }

    /// Seconds from the first figure to a time, which may lie outside.
    pub(super) fn second_of(&self, time: SystemTime) -> f64 {
        match time.duration_since(self.begins) {
            Ok(after) => after.as_secs_f64(),
            Err(before) => -before.duration().as_secs_f64(),
        }
    }

    /// The seconds that are worth drawing.
    pub(super) fn window(&self, incident: &Incident) -> std::ops::Range<usize> {
        let life = incident.last_sign_of_life.unwrap_or(incident.detected_at);
        let first = self.second_of(life) - BEFORE.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is bounded"
        )]
        let first = first.clamp(0.0, 1e6) as usize;
        // An incident of another time: all of it.
        if first >= self.history.seconds {
            0..self.history.seconds
        } else {
            first..self.history.seconds
        }
    }

    /// What was decided and done since the last sign of life: an idle guest is suspected and acquitted all the
    /// time, which has nothing to do with its crash.
    fn moments_of<'a>(
        &'a self,
        incident: &Incident,
    ) -> impl Iterator<Item = &'a (SystemTime, Moment)> {
        let begin = incident.last_sign_of_life.unwrap_or(incident.detected_at);
        let begin = begin.checked_sub(SAME).unwrap_or(begin);
        self.moments.iter().filter(move |(at, _)| *at >= begin)
    }

    /// The same by time and kind.
    pub(super) fn kinds_of(
        &self,
        incident: &Incident,
    ) -> impl Iterator<Item = (SystemTime, MarkKind)> {
        self.moments_of(incident).map(|(at, moment)| (*at, moment.kind))
    }

    /// What was decided on the way, and the record doesn't have.
    pub(super) fn other_moments(&self, incident: &Incident) -> Vec<Row> {
        let known = [
            (MarkKind::Verdict, Some(incident.detected_at)),
            (MarkKind::Restart, incident.action_at),
            (MarkKind::Life, incident.recovered_at),
        ];
        let is_known = |at: SystemTime, kind: MarkKind| {
            known.iter().any(|(known, time)| {
                *known == kind && time.is_some_and(|time| apart(at, time) <= SAME)
            })
        };
        let others = self.moments_of(incident).filter(|(at, moment)| !is_known(*at, moment.kind));
        let rows: Vec<Row> = others
            .map(|(at, moment)| (*at, ecg::name(moment.kind).1, moment.text.clone()))
            .collect();
        rows.get(rows.len().saturating_sub(MOST_MOMENTS)..).unwrap_or_default().to_vec()
    }
}

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}
