//! The keys, and the columns to sort by.

use ratatui::layout::Rect;
use ratatui::style::Style;

use super::paint::{Paint, REVERSED, STRONG};
use crate::cli::top::help::HELP;
use crate::cli::top::model::{Column, page_regions};

pub(super) fn draw(paint: &mut Paint, size: (u16, u16), line: usize) {
    let [title, _, text, keys] = page_regions(size);
    paint.stale = false;
    paint.line(title, "flatline top: keys", STRONG);
    for (area, text) in text.rows().zip(HELP.iter().skip(line)) {
        paint.line(area, text, Style::new());
    }
    paint.line(keys, "Up/Down PgUp/PgDn Scroll  any other key: back", REVERSED);
}

/// The menu of columns, over the list.
pub(super) fn columns(paint: &mut Paint, (_, height): (u16, u16), chosen: Column) {
    let top = if height >= 14 { 4 } else { 0 };
    let mut line = |y: u16, text: &str, style: Style| {
        paint.line(Rect::new(2, y, 24, 1), &format!("{text:<24}"), style);
    };
    line(top, " Sort by", REVERSED);
    for (y, column) in (top + 1..).zip(Column::ALL) {
        let (name, key) = column.describe();
        let (mark, style) = if column == chosen { ('>', STRONG) } else { (' ', Style::new()) };
        line(y, &format!("{mark}{key}  {name}"), style);
    }
}
