//! Draws the model into cells. Pure, and whatever the terminal's size.

mod figures;
mod help;
mod layout;
mod list;
mod page;
mod paint;
#[cfg(test)]
mod tests;

use ratatui::buffer::Buffer;

use super::model::{Model, Overlay, Stale};
use crate::cli::table::brief;

pub(super) use help::HELP;
use paint::Paint;

/// From this height on, a page has a title, a line for what is wrong, and one for the keys.
const PAGE_WHOLE: u16 = 6;

/// The lines of rows that the list has.
pub(super) fn list_lines(model: &Model) -> usize {
    layout::Regions::of(model).rows.len()
}

/// The lines of text that a page has.
pub(super) fn page_lines((_, height): (u16, u16)) -> usize {
    let around = if height >= PAGE_WHOLE { 3 } else { 1 };
    usize::from(height.saturating_sub(around))
}

/// Draws all of it. `buffer` is empty, and as large as the terminal.
pub(super) fn draw(model: &Model, buffer: &mut Buffer) {
    let stale = model.feed.stale();
    let mut paint = Paint { buffer, look: model.look, stale: stale.is_some() };
    match (&model.overlay, &model.page) {
        (Overlay::Help(line), _) => help::draw(&mut paint, *line),
        (_, Some(page)) => page::draw(&mut paint, page, stale.as_ref()),
        (overlay, None) => {
            list::draw(&mut paint, model, stale.as_ref());
            if let Overlay::Sorting(column) = overlay {
                help::columns(&mut paint, *column);
            }
        }
    }
}

/// That what is shown is old.
fn stale_text(stale: &Stale) -> String {
    let age = brief(stale.age);
    match &*stale.why {
        "" => format!("STALE, {age} old: the daemon doesn't answer"),
        why => format!("STALE, {age} old: {why}"),
    }
}
