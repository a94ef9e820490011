//! A VM's own page: its lines, its signals against their thresholds, its incidents with their reasons, and all else.

use std::time::{Duration, SystemTime};

use crate::api::view::{ShowView, SignalView};
use crate::storage::incident::{Incident, Outcome};
use unicode_width::UnicodeWidthStr as _;

use super::{Key, Row};
use crate::cli::ecg;
use crate::cli::severity::{self, Tone};
use crate::cli::show;
use crate::cli::table::{brief, or_dash, padded, row, safe, seconds, shortened, time};
use crate::cli::top::wrap::wrap;

/// Incidents that are shown, the last ones.
const INCIDENTS: usize = 20;
/// Ticks after which incidents are asked for again, where nothing says that there is a new one.
const INCIDENTS_EVERY: u32 = 10;

/// A line of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::top) struct Text {
    pub(in crate::cli::top) text: String,
    pub(in crate::cli::top) tone: Tone,
    /// A heading.
    pub(in crate::cli::top) strong: bool,
}

/// What the daemon answered about a page's VM.
#[derive(Debug)]
pub(in crate::cli::top) struct PageAnswer {
    pub(in crate::cli::top) key: Key,
    /// `None`: there is no such VM; else why there is no answer.
    pub(in crate::cli::top) show: Result<Box<ShowView>, Option<String>>,
    /// `None`: they weren't asked for, or weren't answered.
    pub(in crate::cli::top) incidents: Option<Vec<Incident>>,
}

/// An open page.
#[derive(Debug)]
pub(in crate::cli::top) struct Page {
    /// The VM.
    pub(in crate::cli::top) key: Key,
    view: Option<Box<ShowView>>,
    incidents: Option<Vec<Incident>>,
    /// Why the view is not what is so now.
    pub(in crate::cli::top) complaint: Option<String>,
    /// What the incidents belong to: state, cause and restarts; and the ticks since they were asked for.
    standing: Option<(String, Option<String>, u32)>,
    until_incidents: u32,
    /// The first line on the screen.
    pub(in crate::cli::top) scroll: usize,
    /// All lines, for the width that they were composed for.
    pub(in crate::cli::top) lines: Vec<Text>,
}

impl Page {
    /// The page of a VM that is to be asked about.
    pub(super) fn new(key: Key) -> Self {
        Self {
            key,
            view: None,
            incidents: None,
            complaint: None,
            standing: None,
            until_incidents: 0,
            scroll: 0,
            lines: Vec::new(),
        }
    }

    /// Whether incidents are to be asked for with the next question, which is about to be asked.
    pub(in crate::cli::top) fn wants_incidents(&mut self) -> bool {
        let due = self.until_incidents == 0;
        self.until_incidents = if due { INCIDENTS_EVERY - 1 } else { self.until_incidents - 1 };
        due
    }

    /// What the list says of it now.
    pub(super) fn on_rows(&mut self, rows: &[Row]) {
        let Some(row) = rows.iter().find(|row| row.is(&self.key)) else {
            self.complaint = Some(GONE.to_owned());
            return;
        };
        let vm = &row.vm;
        let standing = (vm.state.clone(), vm.cause.clone(), vm.restarts_in_window);
        if self.standing.as_ref() != Some(&standing) {
            self.standing = Some(standing);
            self.until_incidents = 0;
        }
    }

    /// The daemon's answer; one about another VM is a page's that was closed since.
    pub(in crate::cli::top) fn on_answer(&mut self, answer: PageAnswer) {
        let PageAnswer { key, show, incidents } = answer;
        if key != self.key {
            return;
        }
        match show {
            // The pid may be another's by now.
            Ok(view) if Key::of(&view.vm) == key => {
                self.view = Some(view);
                self.complaint = None;
            }
            Ok(_) | Err(None) => self.complaint = Some(GONE.to_owned()),
            Err(Some(why)) => self.complaint = Some(why),
        }
        if incidents.is_some() {
            self.incidents = incidents;
        }
    }

    /// Has the line `to` as the first of `lines` on the screen, or as far as there are any.
    pub(super) fn scroll_to(&mut self, to: usize, lines: usize) {
        self.scroll = to.min(self.lines.len().saturating_sub(lines));
    }

    /// Makes the lines anew, for so many columns.
    pub(super) fn compose(&mut self, columns: usize, unicode: bool, now: SystemTime) {
        let mut out = Lines { lines: Vec::new(), columns };
        match &self.view {
            Some(view) => {
                out.verdict(view, now);
                if columns >= *ecg::WIDTHS.start() {
                    out.history(view, unicode);
                }
                out.signals(&view.signals, now);
                out.incidents(self.incidents.as_deref());
                out.facts(view);
            }
            None if self.complaint.is_none() => out.say("", "asking the daemon"),
            None => {}
        }
        self.lines = out.lines;
    }
}

const GONE: &str = "this VM is gone; what follows is what was last known of it";

/// Lines in the making.
struct Lines {
    lines: Vec<Text>,
    columns: usize,
}

impl Lines {
    fn push(&mut self, text: String, tone: Tone, strong: bool) {
        self.lines.push(Text { text, tone, strong });
    }

    /// A sentence, with as many lines as it takes; all but the first are indented like the first.
    fn say(&mut self, indent: &str, text: &str) {
        for line in wrap(&safe(text), self.columns.saturating_sub(indent.width())) {
            self.push(format!("{indent}{line}"), Tone::Plain, false);
        }
    }

    fn heading(&mut self, text: &str) {
        if !self.lines.is_empty() {
            self.push(String::new(), Tone::Plain, false);
        }
        self.push(text.to_owned(), Tone::Plain, true);
    }

    fn verdict(&mut self, view: &ShowView, now: SystemTime) {
        let vm = &view.vm;
        let age = brief(now.duration_since(vm.since).unwrap_or_default());
        let line = format!("{} for {age}", safe(&severity::state(vm)));
        self.push(line, Tone::of(&vm.state), true);
        self.say("", &severity::reason(vm));
        if let Some(hold) = &vm.hold {
            self.say("", &format!("on hold: {hold}"));
        }
        if let Some(dump) = &view.memory_dump {
            self.say("", &show::memory_dump(dump));
        }
        for note in &view.notes {
            self.say("", &format!("note: {note}"));
        }
    }

    fn history(&mut self, view: &ShowView, unicode: bool) {
        let Some(history) = &view.history else { return };
        self.heading("LAST MINUTES");
        let style = ecg::Style { columns: self.columns, unicode };
        for line in ecg::draw(history, view.policy.flat_for, style).lines() {
            let end = if unicode { "…" } else { "..." };
            self.push(shortened(line, self.columns, end), Tone::Plain, false);
        }
    }

    /// Four columns, of which the two in the middle share what the others leave.
    fn signals(&mut self, signals: &[SignalView], now: SystemTime) {
        let names = signals.iter().map(|signal| safe(&signal.name).width()).max().unwrap_or(0);
        let name = names.clamp("SIGNAL".len(), 16);
        let verdict = 14;
        let rest = self.columns.saturating_sub(name + verdict + 6).max(16);
        let widths = [name, rest - rest * 2 / 5, rest * 2 / 5, verdict];
        self.heading(&row(widths, &["SIGNAL", "VALUE", "THRESHOLD", "VERDICT"].map(str::to_owned)));
        for signal in signals {
            let SignalView { name, value, threshold, since, verdict } = signal;
            let verdict = match since {
                Some(since) => format!("{verdict} for {}", age(since, now)),
                None => verdict.clone(),
            };
            let cells = [name, value, threshold, &verdict].map(|cell| safe(cell));
            let mut cells = cells.iter().zip(widths).map(|(cell, width)| wrap(cell, width));
            let cells: [Vec<String>; 4] = std::array::from_fn(|_| cells.next().unwrap_or_default());
            for line in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
                let line = cells.each_ref().map(|cell| cell.get(line).cloned().unwrap_or_default());
                self.push(row(widths, &line), Tone::Plain, false);
            }
        }
    }

    fn incidents(&mut self, incidents: Option<&[Incident]>) {
        self.heading("INCIDENTS");
        match incidents {
            None => self.say("", "not known yet"),
            Some([]) => self.say("", "none"),
            Some(incidents) => {
                incidents.iter().rev().take(INCIDENTS).for_each(|incident| self.incident(incident));
                if let Some(more) = incidents.len().checked_sub(INCIDENTS).filter(|more| *more > 0)
                {
                    self.say("", &format!("and {more} earlier ones: flatline incidents --vm VM"));
                }
            }
        }
    }

    fn incident(&mut self, incident: &Incident) {
        let outcome = incident.outcome.map_or("under way", Outcome::as_str);
        let tone = match incident.outcome {
            Some(Outcome::Recovered) => Tone::Good,
            None => Tone::Notable,
            Some(_) => Tone::Bad,
        };
        let head = format!(
            "{}  {}, {}: {outcome}",
            time(Some(incident.detected_at)),
            safe(&incident.cause),
            safe(&or_dash(incident.action.as_ref())),
        );
        for line in wrap(&head, self.columns) {
            self.push(line, tone, false);
        }
        self.say("  ", &incident.reason);
        let detected = seconds(incident.detect_seconds);
        let recovered = seconds(incident.recover_seconds);
        let more = format!("{}; detected in {detected}, recovered in {recovered}", incident.id);
        self.say("  ", &more);
    }

    fn facts(&mut self, view: &ShowView) {
        self.heading("ALL ELSE");
        let facts = show::facts(view);
        // The state and its reason stand at the top.
        let facts = facts.iter().filter(|(name, _)| !["state", "cause", "reason"].contains(name));
        let mut facts: Vec<(&str, String)> = facts.cloned().collect();
        facts.extend(view.taps.iter().map(|tap| {
            let hook = if tap.attached { &*tap.hook } else { "not attached" };
            let text = format!(
                "{} in {}, index {}, {hook} {}",
                tap.name, tap.netns, tap.ifindex, tap.detail
            );
            ("tap", text)
        }));
        let width = facts.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
        let width = if self.columns < width * 2 { 0 } else { width + 2 };
        for (name, value) in facts {
            let lines = wrap(&safe(&value), self.columns.saturating_sub(width).max(1));
            for (index, line) in lines.iter().enumerate() {
                let name = if index == 0 && width > 0 { name } else { "" };
                self.push(padded(name, width) + line, Tone::Plain, false);
            }
        }
    }
}

/// How long ago `since` was; words that are no time stay as they are.
fn age(since: &str, now: SystemTime) -> String {
    match humantime::parse_rfc3339(since) {
        Ok(since) => brief(now.duration_since(since).unwrap_or(Duration::ZERO)),
        Err(_) => since.to_owned(),
    }
}
