//! Text into cells: whatever it is, it stays inside of its place, and takes the columns that it was given.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget as _;
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

    /// Fills the line `area` with `text`, which is cut off at its end.
    pub(super) fn line(&mut self, area: Rect, text: &str, style: Style) {
        Line::styled(self.fitted(text, area.width), style).render(area, self.buffer);
    }

    /// Puts `text` at the end of the line `area`.
    pub(super) fn right(&mut self, area: Rect, text: &str, style: Style) {
        let text = Span::styled(self.fitted(text, area.width), style);
        Line::from(text).right_aligned().render(area, self.buffer);
    }

    /// `text` as the terminal shows it in at most `width` columns. Marks that have no columns of their own are left
    /// out: terminals don't agree about them, and a VM's name could shift all that stands behind its name.
    pub(super) fn fitted(&self, text: &str, width: u16) -> String {
        let seen = |c: &char| c.width().is_some_and(|width| width > 0);
        let ascii = |c: char| if c.is_ascii() || self.look.unicode { c } else { '?' };
        let text: String = safe(text).chars().filter(seen).map(ascii).collect();
        shortened(&text, width.into(), if self.look.unicode { "…" } else { "~" })
    }
}

pub(super) const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);
pub(super) const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
