//! Draws the model into cells, whatever the terminal's size. Pure.

mod columns;
mod figures;
mod help;
mod list;
mod page;
mod paint;
#[cfg(test)]
mod tests;

use ratatui::buffer::Buffer;

use super::model::{Model, Overlay};
use paint::Paint;

/// Draws all of it. `buffer` is empty, and as large as the terminal.
pub(super) fn draw(model: &Model, buffer: &mut Buffer) {
    let stale = model.feed.stale();
    let mut paint = Paint { buffer, look: model.look, stale: stale.is_some() };
    match (&model.overlay, &model.page) {
        (Overlay::Help(line), _) => help::draw(&mut paint, model.size, *line),
        (_, Some(page)) => page::draw(&mut paint, model.size, page, stale.as_ref()),
        (overlay, None) => {
            list::draw(&mut paint, model, stale.as_ref());
            if let Overlay::Sorting(column) = overlay {
                help::columns(&mut paint, model.size, *column);
            }
        }
    }
}
