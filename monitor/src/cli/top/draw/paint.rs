//! Text into cells: whatever it is, it stays inside of its place, and takes the columns that it was given.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use unicode_width::UnicodeWidthChar as _;

use crate::cli::severity::Tone;
use crate::cli::table::{safe, shortened};
use crate::cli::top::model::Look;

/// Where is drawn, and with what.
pub(super) struct Paint<'a> {
    pub(super) buffer: &'a mut Buffer,
    pub(super) look: Look,
    /// What is shown is old.
    pub(super) stale: bool,
}

impl Paint<'_> {
    pub(super) fn area(&self) -> Rect {
        self.buffer.area
    }

    /// The style of a tone. Without colours, what is bad is bold.
    pub(super) fn style(&self, tone: Tone) -> Style {
        let plain = Style::new();
        let toned = match (tone, self.look.colours) {
            (Tone::Plain, _) | (Tone::Good | Tone::Notable, false) => plain,
            (Tone::Good, true) => plain.fg(Color::Green),
            (Tone::Notable, true) => plain.fg(Color::Yellow),
            (Tone::Bad, true) => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
            (Tone::Bad, false) => plain.add_modifier(Modifier::BOLD),
        };
        if self.stale { toned.add_modifier(Modifier::DIM) } else { toned }
    }

    /// Puts `text` at `x` in line `y`, and cuts it off after `width` columns. Returns the column after it.
    pub(super) fn text(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) -> u16 {
        let area = self.area();
        if y >= area.bottom() || x >= area.right() {
            return x;
        }
        let width = usize::from(width.min(area.right() - x));
        let text =
            shortened(&self.drawable(text), width, if self.look.unicode { "…" } else { "~" });
        self.buffer.set_stringn(x, y, text, width, style).0
    }

    /// The same, ending before column `end`.
    pub(super) fn right(&mut self, end: u16, y: u16, text: &str, style: Style) {
        // Figures only, a column each.
        let width = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.text(end.saturating_sub(width), y, width, text, style);
    }

    /// A line that is filled to its end.
    pub(super) fn bar(&mut self, y: u16, text: &str, style: Style) {
        let area = self.area();
        if y < area.bottom() {
            self.buffer.set_style(Rect { y, height: 1, ..area }, style);
            self.text(0, y, area.width, text, style);
        }
    }

    /// `text` as the terminal shows it. Marks that have no columns of their own are left out: terminals don't agree about
    /// them, and a VM's name could shift all that stands behind its name.
    fn drawable(&self, text: &str) -> String {
        let seen = |c: &char| c.width().is_some_and(|width| width > 0);
        let ascii = |c: char| if c.is_ascii() || self.look.unicode { c } else { '?' };
        safe(text).chars().filter(seen).map(ascii).collect()
    }
}

pub(super) const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);
pub(super) const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
