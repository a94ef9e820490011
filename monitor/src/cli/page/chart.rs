//! The guest's lines as an SVG drawing: a row for each figure, second by second, with what happened across them.
//!
//! What is not known is a grey band, and never a zero. All words in it are those of this program.

use std::fmt::Write as _;
use std::time::SystemTime;

use crate::api::view::MarkKind;
use crate::storage::incident::Incident;
use flatline_detector::verdict::{PINNED_RATIO, STILL_BUSY_RATIO};

use super::recorded::{Recorded, word};

/// In the drawing's own units.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 48.0;
const ROW: f64 = 62.0;
const GAP: f64 = 16.0;
/// Whatever is above zero is seen.
const LEAST: f64 = 2.0;
/// Marks of one drawing.
const MOST_MARKS: usize = 60;

/// A figure.
struct Figure<'a> {
    label: &'static str,
    unit: &'static str,
    values: &'a [Option<f64>],
    /// What the whole height stands for, where that does not depend on the values.
    full: Option<f64>,
    /// Levels that the verdict knows.
    levels: &'static [(f64, &'static str)],
}

/// Draws what was recorded around an incident; `None` where that is less than two seconds.
pub(super) fn draw(recorded: &Recorded, incident: &Incident) -> Option<String> {
    let window = recorded.window(incident);
    if window.len() < 2 {
        return None;
    }
    let history = &recorded.history;
    let figures = [
        figure("packets sent", "/s", &history.packets_from_guest),
        figure("packets to it", "/s", &history.packets_to_guest),
        figure("requests done", "/s", &history.completed),
        Figure {
            full: Some(1.0),
            levels: &[(PINNED_RATIO, "pinned"), (STILL_BUSY_RATIO, "still")],
            ..figure("busiest vCPU", "", &history.vcpu_wanted)
        },
    ];
    let scale = Scale { first: index(window.start), seconds: index(window.len()) };
    let height = TOP + index(figures.len()) * (ROW + GAP) + 24.0;
    let mut out = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"The guest's lines, second by second\">"
    );
    silence(&mut out, recorded, incident, &scale, height);
    for (number, figure) in figures.iter().enumerate() {
        let base = TOP + index(number) * (ROW + GAP) + ROW;
        let values = figure.values.get(window.clone()).unwrap_or_default();
        row(&mut out, figure, values, &scale, base);
    }
    marks(&mut out, recorded, incident, &scale, height);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{y}\">{} s before the end</text>\
         <text x=\"{}\" y=\"{y}\" class=\"end\">the recording's end</text>\n</svg>",
        window.len(),
        WIDTH - RIGHT,
        y = height - 6.0,
    );
    legend(&mut out, recorded);
    Some(out)
}

fn figure<'a>(label: &'static str, unit: &'static str, values: &'a [Option<f64>]) -> Figure<'a> {
    Figure { label, unit, values, full: None, levels: &[] }
}

/// Where seconds stand.
struct Scale {
    first: f64,
    seconds: f64,
}

impl Scale {
    /// The place of a second that is counted from the recording's begin.
    fn x(&self, second: f64) -> f64 {
        LEFT + (second - self.first) / self.seconds * (WIDTH - LEFT - RIGHT)
    }

    /// The same, where it is in the drawing.
    fn inside(&self, second: f64) -> Option<f64> {
        (self.first..=self.first + self.seconds).contains(&second).then(|| self.x(second))
    }

    fn clamped(&self, second: f64) -> f64 {
        self.x(second.clamp(self.first, self.first + self.seconds))
    }
}

/// The time without a sign of life, and from where on that was too long.
fn silence(out: &mut String, recorded: &Recorded, incident: &Incident, scale: &Scale, height: f64) {
    let Some(life) = incident.last_sign_of_life else { return };
    let begin = recorded.second_of(life);
    let end = incident.recovered_at.map_or(f64::MAX, |at| recorded.second_of(at));
    let mut band = |from: f64, class: &str| {
        let (from, to) = (scale.clamped(from), scale.clamped(end));
        if to > from {
            let _ = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"/>",
                to - from,
                height - TOP - 24.0
            );
        }
    };
    band(begin, "silent");
    if let Some(flat_for) = recorded.flat_for {
        band(begin + flat_for.as_secs_f64(), "silent");
    }
}

fn row(out: &mut String, figure: &Figure<'_>, values: &[Option<f64>], scale: &Scale, base: f64) {
    let most = values.iter().flatten().copied().fold(0.0, f64::max);
    let full = figure.full.unwrap_or(most).max(most).max(f64::MIN_POSITIVE);
    let y = |value: f64| base - if value > 0.0 { (value / full * ROW).max(LEAST) } else { 0.0 };
    let x = |second: usize| scale.x(scale.first + index(second));
    let _ = writeln!(out, "<text x=\"8\" y=\"{}\">{}</text>", base - ROW / 2.0, figure.label);
    let said = match figure.full {
        _ if values.iter().all(Option::is_none) => "not known".to_owned(),
        Some(_) => format!("max {:.0} %", most * 100.0),
        None if most <= 0.0 => "none".to_owned(),
        None if most < 10.0 => format!("max {most:.1}{}", figure.unit),
        None => format!("max {most:.0}{}", figure.unit),
    };
    let _ = writeln!(out, "<text x=\"8\" y=\"{}\">{said}</text>", base - ROW / 2.0 + 16.0);
    let right = WIDTH - RIGHT + 8.0;
    let _ = writeln!(out, "<path class=\"base\" d=\"M{LEFT} {base}H{}\"/>", WIDTH - RIGHT);
    for (level, name) in figure.levels {
        let at = base - level / full * ROW;
        let _ = writeln!(
            out,
            "<path class=\"level\" d=\"M{LEFT} {at:.1}H{end}\"/><text class=\"level\" x=\"{right}\" \
             y=\"{:.1}\">{:.0} % {name}</text>",
            at + 4.0,
            level * 100.0,
            end = WIDTH - RIGHT,
        );
    }
    // A path for each time that is known without a gap, a band for each that isn't.
    let mut second = 0;
    while second < values.len() {
        let rest = values.get(second..).unwrap_or_default();
        let known = rest.iter().take_while(|value| value.is_some()).count();
        if known == 0 {
            let missing = rest.iter().take_while(|value| value.is_none()).count();
            let _ = writeln!(
                out,
                "<rect class=\"unknown\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{ROW}\"/>",
                x(second),
                base - ROW,
                x(second + missing) - x(second)
            );
            second += missing;
            continue;
        }
        let mut path = format!("M{:.1} {base}", x(second));
        for (number, value) in rest.iter().take(known).flatten().enumerate() {
            let _ = write!(path, "V{:.1}H{:.1}", y(*value), x(second + number + 1));
        }
        let _ = writeln!(out, "<path class=\"line\" d=\"{path}V{base}\"/>");
        second += known;
    }
}

/// What happened, across all rows.
fn marks(out: &mut String, recorded: &Recorded, incident: &Incident, scale: &Scale, height: f64) {
    let moments = recorded.kinds_of(incident).filter(|(_, kind)| {
        matches!(kind, MarkKind::Suspicion | MarkKind::Verdict | MarkKind::Restart | MarkKind::Life)
    });
    let mut all: Vec<(SystemTime, &'static str, &'static str)> = moments
        .map(|(at, kind)| {
            let class = match kind {
                MarkKind::Verdict => "verdict",
                MarkKind::Restart => "restart",
                MarkKind::Life => "life",
                _ => "suspicion",
            };
            (at, class, word(kind))
        })
        .collect();
    if let Some(life) = incident.last_sign_of_life {
        all.push((life, "life", "last sign of life"));
    }
    all.sort_by_key(|(at, _, _)| *at);
    let drop = all.len().saturating_sub(MOST_MARKS);
    let mut places = [f64::MIN; 3];
    for (at, class, what) in all.into_iter().skip(drop) {
        let Some(x) = scale.inside(recorded.second_of(at)) else { continue };
        // Names that would stand on top of each other stand in three lines; a fourth is told by its colour.
        let room = index(what.len()) * 6.5 + 6.0;
        let line = places.iter().position(|end| x >= *end);
        let _ = writeln!(
            out,
            "<path class=\"mark {class}\" d=\"M{x:.1} {TOP}V{:.1}\"><title>{what}</title></path>",
            height - 24.0
        );
        if let Some((line, end)) = line.and_then(|line| Some((line, places.get_mut(line)?))) {
            *end = x + room;
            let y = TOP - 6.0 - index(line) * 14.0;
            let _ = writeln!(
                out,
                "<text class=\"mark {class}\" x=\"{x:.1}\" y=\"{y:.1}\">{what}</text>"
            );
        }
    }
}

fn legend(out: &mut String, recorded: &Recorded) {
    let flat_for = recorded.flat_for.map_or_else(String::new, |flat_for| {
        format!(
            ", darker from where it had lasted for {}, which makes a guest suspect",
            humantime::format_duration(flat_for)
        )
    });
    let _ = writeln!(
        out,
        "<p class=\"legend\">A column is a second. Shaded: no sign of life{flat_for}. Grey: not known. The busiest \
         vCPU is the share of the time in which it ran, or waited for a CPU of the host.</p>"
    );
}

#[expect(clippy::cast_precision_loss, reason = "a recording has an hour at most")]
fn index(number: usize) -> f64 {
    number as f64
}
