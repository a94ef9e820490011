//! The last minutes of a VM as lines of text, like an ECG. Pure: text out of figures.
//!
//! A column stands for one second or more: of packets, requests and answers it shows the most that there was in
//! it, of the vCPUs' time the mean. What is not known is a dot, and never a zero.

use std::fmt::Write;
use std::time::Duration;

use flatline::report::view::{HistoryView, MarkKind, MarkView};
use flatline::verdict::{PINNED_RATIO, STILL_BUSY_RATIO};

use super::table::{duration, safe};

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

/// The characters that are drawn with.
struct Ink {
    unknown: char,
    flat: char,
    too_flat: char,
    levels: &'static [char],
    at_least: char,
}

const UNICODE: Ink = Ink {
    unknown: '·',
    flat: '─',
    too_flat: '━',
    levels: &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
    at_least: '≥',
};
const ASCII: Ink = Ink {
    unknown: '?',
    flat: '_',
    too_flat: '=',
    levels: &['.', ':', '-', '+', 'o', 'O', '%', '#'],
    at_least: '>',
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

/// A silence, as the verdict counts it.
#[derive(Clone, Copy, PartialEq)]
enum Silence {
    /// A sign of life.
    Lives,
    /// So many seconds without one.
    For(usize),
    /// A figure is missing.
    Unknown,
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

/// How seconds are put into columns: the last one ends now.
struct Columns {
    seconds: usize,
    step: usize,
    plot: usize,
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
    fn peaks(&self, out: &mut String, label: &str, row: &[Option<f64>], unit: &str, ink: &Ink) {
        let columns: Vec<Option<f64>> = self.of(row).into_iter().map(peak).collect();
        let most = columns.iter().flatten().copied().fold(0.0, f64::max);
        let drawn = columns.iter().map(|value| match value {
            None => ink.unknown,
            Some(value) if *value <= 0.0 => ink.flat,
            Some(value) => level(value / most, ink),
        });
        let scale = match most {
            _ if columns.iter().all(Option::is_none) => "not known".to_owned(),
            most if most <= 0.0 => "none".to_owned(),
            most if most < 10.0 => format!("max {most:.1}{unit}"),
            most => format!("max {most:.0}{unit}"),
        };
        line(out, label, &self.aligned(drawn), &scale);
    }

    /// The vCPUs' time in three bands, so that both levels that the verdict knows are seen.
    fn vcpus(&self, out: &mut String, history: &HistoryView, ink: &Ink) {
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
    fn silence(&self, out: &mut String, history: &HistoryView, flat_for: Duration, ink: &Ink) {
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

    fn marks(&self, out: &mut String, marks: &[MarkView]) {
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

/// The letter of a mark, and the word for it.
fn name(kind: MarkKind) -> (char, &'static str) {
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

/// The character for a share of the highest.
fn level(share: f64, ink: &Ink) -> char {
    let steps = u32::try_from(ink.levels.len()).unwrap_or(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is bounded")]
    let index = (share * f64::from(steps)).ceil().clamp(1.0, f64::from(steps)) as usize - 1;
    ink.levels.get(index).copied().unwrap_or(ink.unknown)
}

/// The highest of what is known; `None` where that is nothing, or zero and not all is known.
fn peak(column: &[Option<f64>]) -> Option<f64> {
    let most = column.iter().flatten().copied().reduce(f64::max)?;
    (most > 0.0 || column.iter().all(Option::is_some)).then_some(most)
}

fn mean(column: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = column.iter().flatten().copied().collect();
    let number = u32::try_from(known.len()).ok().filter(|number| *number > 0)?;
    Some(known.iter().sum::<f64>() / f64::from(number))
}

/// The silence at the end of each second. A row of which nothing is ever known (a VM without a tap) says
/// nothing about it.
fn silence(history: &HistoryView) -> Vec<Silence> {
    let rows = [&history.packets_from_guest, &history.completed];
    let rows: Vec<_> = rows.into_iter().filter(|row| row.iter().any(Option::is_some)).collect();
    let mut length = 0;
    let state = |second: usize| {
        let figures = || rows.iter().map(|row| row.get(second).copied().flatten());
        if figures().flatten().any(|figure| figure > 0.0) {
            length = 0;
            Silence::Lives
        } else if rows.is_empty() || figures().any(|figure| figure.is_none()) {
            length = 0;
            Silence::Unknown
        } else {
            length += 1;
            Silence::For(length)
        }
    };
    (0..history.seconds).map(state).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flatline::report::view::{HistoryView, MarkKind, MarkView};

    use super::{Style, draw};

    const FLAT_FOR: Duration = Duration::from_secs(10);

    fn mark(second: usize, kind: MarkKind, text: &str) -> MarkView {
        MarkView { second, kind, text: text.to_owned() }
    }

    /// 28 seconds of a guest that works, panics and is restarted.
    fn history() -> HistoryView {
        let mut history = HistoryView { seconds: 28, ..HistoryView::default() };
        for second in 0..28_u32 {
            let at = |values: &[(u32, f64)]| {
                values.iter().find(|(at, _)| *at == second).map_or(0.0, |(_, value)| *value)
            };
            history.packets_from_guest.push(Some(at(&[(0, 1.0), (2, 4.0), (26, 8.0)])));
            let completed = at(&[(1, 100.0), (4, 700.0), (25, 800.0), (27, 20.0)]);
            history.completed.push((second != 3).then_some(completed));
            // The vCPU that spins gets a third of the time from a busy host.
            let (vcpu, wanted) = match second {
                0..5 => (0.1, 0.1),
                5..24 => (0.33, 0.99),
                24 => (0.002, 0.002),
                _ => (0.6, 0.7),
            };
            history.vcpu.push((second != 3).then_some(vcpu));
            history.vcpu_wanted.push((second != 3).then_some(wanted));
            history.in_flight.push(Some(0.0));
            history.probe_answers.push(None);
        }
        history.marks = vec![
            mark(14, MarkKind::Suspicion, "silent for 10.0 s"),
            mark(16, MarkKind::Verdict, "a vCPU was pinned\x1b[2J"),
            mark(17, MarkKind::Restart, ""),
            mark(25, MarkKind::Life, "guest completed 800 requests"),
        ];
        history
    }

    #[test]
    fn a_panic_and_a_restart_are_drawn_with_all_levels() {
        let drawn = draw(&history(), FLAT_FOR, Style { columns: 60, unicode: true });
        let expected = "
                  28s ago                      now
packets sent      ▁─▄───────────────────────█─ max 8.0/s
requests done     ─▁─·▇────────────────────█─▁ max 800/s
vCPU time              ███████████████████     ≥ 80 % pinned
                  ▁▁▁·▁                    ▆▆▆ between
                                          ─    < 1 % still
in flight         ──────────────────────────── none
probe answers     ···························· not known
silent               · ─────────━━━━━━━━━━━    ━ 10s+
                                s VR       L
  s   14 s ago  suspected: silent for 10.0 s
  V   12 s ago  verdict: a vCPU was pinned\\u{1b}[2J
  R   11 s ago  restarted
  L    3 s ago  lives: guest completed 800 requests
  a column is a second; · is not known
";
        assert_eq!(format!("\n{drawn}"), expected);
    }

    #[test]
    fn the_same_without_unicode_is_plain_ascii() {
        let drawn = draw(&history(), FLAT_FOR, Style { columns: 60, unicode: false });
        assert!(drawn.is_ascii(), "{drawn}");
        let expected = "
                  28s ago                      now
packets sent      ._+_______________________#_ max 8.0/s
requests done     _._?%____________________#_. max 800/s
vCPU time              ###################     > 80 % pinned
                  ...?.                    OOO between
                                          _    < 1 % still
in flight         ____________________________ none
probe answers     ???????????????????????????? not known
silent               ? _________===========    = 10s+
                                s VR       L
  s   14 s ago  suspected: silent for 10.0 s
  V   12 s ago  verdict: a vCPU was pinned\\u{1b}[2J
  R   11 s ago  restarted
  L    3 s ago  lives: guest completed 800 requests
  a column is a second; ? is not known
";
        assert_eq!(format!("\n{drawn}"), expected);
    }

    #[test]
    fn a_long_time_is_put_into_columns_without_losing_a_single_packet() {
        let mut history = HistoryView { seconds: 300, ..HistoryView::default() };
        history.packets_from_guest = vec![Some(0.0); 300];
        history.packets_from_guest[250] = Some(1.0);
        history.completed = vec![Some(0.0); 300];
        history.completed[100] = None;
        let drawn = draw(&history, FLAT_FOR, Style { columns: 80, unicode: true });
        let rows: Vec<&str> = drawn.lines().collect();
        assert!(rows.iter().all(|row| row.chars().count() <= 80), "{drawn}");
        assert_eq!(rows[1].matches('█').count(), 1, "{drawn}");
        assert_eq!(rows[2].matches('·').count(), 1, "{drawn}");
        assert!(rows[8].contains("━") && rows[8].contains(" 10s+"), "{drawn}");
        assert!(drawn.ends_with("  a column is 6 s; · is not known\n"), "{drawn}");
    }

    #[test]
    fn what_is_never_known_is_drawn_as_that_and_not_as_a_flat_line() {
        let none = vec![None; 5];
        let history = HistoryView {
            seconds: 5,
            packets_from_guest: none.clone(),
            packets_to_guest: none.clone(),
            completed: none.clone(),
            vcpu: none.clone(),
            vcpu_wanted: none.clone(),
            in_flight: none.clone(),
            probe_answers: none,
            marks: Vec::new(),
        };
        let drawn = draw(&history, FLAT_FOR, Style { columns: 80, unicode: true });
        assert!(!drawn.contains('─') && drawn.matches("·····").count() == 6, "{drawn}");
    }

    #[test]
    fn any_width_and_any_rows_are_drawn() {
        for columns in [0, 60, 61, 119, 120, 5000] {
            for seconds in [0, 1, 59, 3600, 100_000] {
                let mut history = self::history();
                history.seconds = seconds;
                let drawn = draw(&history, FLAT_FOR, Style { columns, unicode: true });
                let widest = drawn.lines().take(9).map(|row| row.chars().count()).max();
                assert!(
                    widest.is_some_and(|widest| widest <= 120),
                    "{columns}, {seconds}: {drawn}"
                );
            }
        }
    }
}
