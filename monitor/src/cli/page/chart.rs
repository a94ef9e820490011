//! The guest's lines as an SVG drawing: a row for each figure, second by second, with what happened across them.
//!
//! What is not known is a grey band, and never a zero. All words in it are those of this program.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::SystemTime;

use crate::api::view::MarkKind;
use crate::cli::ecg;
use crate::storage::incident::Incident;
use askama::Template;
use flatline_detector::verdict::{PINNED_RATIO, STILL_BUSY_RATIO};

use super::recorded::Recorded;

/// In the drawing's own units.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 150.0;
const END: f64 = 850.0;
const TOP: f64 = 48.0;
const ROW: f64 = 62.0;
const GAP: f64 = 16.0;
/// Whatever is above zero is seen.
const LEAST: f64 = 2.0;
/// Marks of one drawing.
const MOST_MARKS: usize = 60;

/// Where something begins and ends.
type Span = (f64, f64);

/// What the template draws.
#[derive(Template)]
#[template(path = "chart.svg")]
struct Chart {
    height: f64,
    silences: Vec<Span>,
    rows: Vec<Row>,
    marks: Vec<Mark>,
    seconds: usize,
    flat_for: Option<humantime::FormattedDuration>,
}

/// A figure's row.
struct Row {
    label: &'static str,
    scale: String,
    base: f64,
    /// Levels that the verdict knows: the place, the share, and the name of each.
    levels: Vec<(f64, f64, &'static str)>,
    gaps: Vec<Span>,
    /// One for each time that is known without a gap.
    paths: Vec<String>,
}

/// Something that happened.
struct Mark {
    x: f64,
    class: &'static str,
    what: &'static str,
    /// Where its name stands, if it has room.
    name_y: Option<f64>,
}

/// Draws what was recorded around an incident; `None` where that is less than two seconds.
///
/// # Errors
/// Where the template can't be written.
pub(super) fn draw(recorded: &Recorded, incident: &Incident) -> askama::Result<Option<String>> {
    let window = recorded.window(incident);
    if window.len() < 2 {
        return Ok(None);
    }
    let history = &recorded.history;
    let scale = Scale { first: index(window.start), seconds: index(window.len()) };
    let base = |number: usize| TOP + index(number) * (ROW + GAP) + ROW;
    let values = |row: &[Option<f64>]| row.get(window.clone()).unwrap_or_default().to_vec();
    let rows = vec![
        row("packets sent", Some("/s"), &values(&history.packets_from_guest), &scale, base(0)),
        row("packets to it", Some("/s"), &values(&history.packets_to_guest), &scale, base(1)),
        row("requests done", Some("/s"), &values(&history.completed), &scale, base(2)),
        row("busiest vCPU", None, &values(&history.vcpu_wanted), &scale, base(3)),
    ];
    let chart = Chart {
        height: TOP + index(rows.len()) * (ROW + GAP) + 24.0,
        silences: silences(recorded, incident, &scale),
        rows,
        marks: marks(recorded, incident, &scale),
        seconds: window.len(),
        flat_for: recorded.flat_for.map(humantime::format_duration),
    };
    chart.render().map(Some)
}

/// Where seconds stand.
struct Scale {
    first: f64,
    seconds: f64,
}

impl Scale {
    /// The place of a second that is counted from the recording's begin.
    fn x(&self, second: f64) -> f64 {
        LEFT + (second - self.first) / self.seconds * (END - LEFT)
    }

    /// The same, where it is in the drawing.
    fn inside(&self, second: f64) -> Option<f64> {
        (self.first..=self.first + self.seconds).contains(&second).then(|| self.x(second))
    }

    fn clamped(&self, second: f64) -> f64 {
        self.x(second.clamp(self.first, self.first + self.seconds))
    }

    /// The span of seconds that are counted from the drawing's begin.
    fn span(&self, seconds: &Range<usize>) -> Span {
        let x = |second: usize| self.x(self.first + index(second));
        (x(seconds.start), x(seconds.end))
    }
}

/// The time without a sign of life, and from where on that was too long.
fn silences(recorded: &Recorded, incident: &Incident, scale: &Scale) -> Vec<Span> {
    let Some(life) = incident.last_sign_of_life else { return Vec::new() };
    let begin = recorded.second_of(life);
    let end = incident.recovered_at.map_or(f64::MAX, |at| recorded.second_of(at));
    let too_long = recorded.flat_for.map(|flat_for| begin + flat_for.as_secs_f64());
    let begins = [Some(begin), too_long].into_iter().flatten();
    let spans = begins.map(|begin| (scale.clamped(begin), scale.clamped(end)));
    spans.filter(|(from, to)| to > from).collect()
}

/// The row of a figure with a `unit`, whose highest value is as high as the row; without one, it is a share of 1.
fn row(
    label: &'static str,
    unit: Option<&str>,
    values: &[Option<f64>],
    scale: &Scale,
    base: f64,
) -> Row {
    let most = values.iter().flatten().copied().fold(0.0, f64::max);
    let full = if unit.is_some() { most.max(f64::MIN_POSITIVE) } else { most.max(1.0) };
    let y = |value: f64| base - if value > 0.0 { (value / full * ROW).max(LEAST) } else { 0.0 };
    let is_known = values.iter().any(Option::is_some);
    let said = match unit {
        None if is_known => format!("max {:.0} %", most * 100.0),
        _ => ecg::scale(is_known.then_some(most), unit.unwrap_or_default()),
    };
    let levels = [(PINNED_RATIO, "pinned"), (STILL_BUSY_RATIO, "still")];
    let levels = levels.map(|(level, name)| (base - level / full * ROW, level, name));
    let (mut gaps, mut paths) = (Vec::new(), Vec::new());
    let mut second = 0;
    for part in values.chunk_by(|one, other| one.is_some() == other.is_some()) {
        let (from, to) = scale.span(&(second..second + part.len()));
        if part.iter().any(Option::is_none) {
            gaps.push((from, to));
        } else {
            let mut path = format!("M{from:.1} {base}");
            for (number, value) in (second..).zip(part.iter().flatten()) {
                let (_, end) = scale.span(&(number..number + 1));
                // Writing to a string cannot fail.
                let _ = write!(path, "V{:.1}H{end:.1}", y(*value));
            }
            paths.push(format!("{path}V{base}"));
        }
        second += part.len();
    }
    let levels = if unit.is_none() { levels.to_vec() } else { Vec::new() };
    Row { label, scale: said, base, levels, gaps, paths }
}

/// What happened, across all rows.
fn marks(recorded: &Recorded, incident: &Incident, scale: &Scale) -> Vec<Mark> {
    let moments = recorded.kinds_of(incident).filter_map(|(at, kind)| {
        let class = match kind {
            MarkKind::Verdict => "verdict",
            MarkKind::Restart => "restart",
            MarkKind::Life => "life",
            MarkKind::Suspicion => "suspicion",
            MarkKind::Held | MarkKind::Unobservable | MarkKind::Other => return None,
        };
        Some((at, class, ecg::name(kind).1))
    });
    let life = incident.last_sign_of_life.map(|life| (life, "life", "last sign of life"));
    let mut all: Vec<(SystemTime, &str, &str)> = moments.chain(life).collect();
    all.sort_by_key(|(at, _, _)| *at);
    let drop = all.len().saturating_sub(MOST_MARKS);
    let mut places = [f64::MIN; 3];
    let mark = |(at, class, what): (SystemTime, &'static str, &'static str)| {
        let x = scale.inside(recorded.second_of(at))?;
        // Names that would stand on top of each other stand in three lines; a fourth is told by its colour.
        let mut lines = places.iter_mut().enumerate();
        let name_y = lines.find(|(_, end)| x >= **end).map(|(line, end)| {
            *end = x + index(what.len()) * 6.5 + 6.0;
            TOP - 6.0 - index(line) * 14.0
        });
        Some(Mark { x, class, what, name_y })
    };
    all.into_iter().skip(drop).filter_map(mark).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a recording has an hour at most")]
fn index(number: usize) -> f64 {
    number as f64
}
