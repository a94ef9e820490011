//! A VM's own page.

use super::paint::{Paint, REVERSED, STRONG};
use super::{PAGE_WHOLE, page_lines, stale_text};
use crate::cli::top::model::{Page, Stale};

const KEYS: &str = "Esc Back  Up/Down PgUp/PgDn Home/End Scroll  n Next  p Previous  F10 Quit";

pub(super) fn draw(paint: &mut Paint, page: &Page, stale: Option<&Stale>) {
    let area = paint.area();
    let whole = area.height >= PAGE_WHOLE;
    let wrong = stale.map(stale_text).or_else(|| page.complaint.clone());
    let name = format!("{}  (process {})", page.key.name, page.key.pid);
    match &wrong {
        Some(wrong) if !whole => paint.bar(0, wrong, REVERSED),
        _ => {
            paint.text(0, 0, area.width, &name, STRONG);
        }
    }
    let first = if whole { 2 } else { 1 };
    if let Some(wrong) = wrong.filter(|_| whole) {
        paint.bar(1, &wrong, REVERSED);
    }
    let lines = page_lines((area.width, area.height));
    // What is gone isn't so any more.
    paint.stale |= page.complaint.is_some();
    for (y, line) in (first..area.height).zip(page.lines.iter().skip(page.scroll).take(lines)) {
        let style = paint.style(line.tone);
        let style = if line.strong { style.patch(STRONG) } else { style };
        paint.text(0, y, area.width, &line.text, style);
    }
    if whole {
        let last = page.lines.len();
        let to = last.min(page.scroll + lines);
        let y = area.height - 1;
        paint.bar(y, KEYS, REVERSED);
        if to < last || page.scroll > 0 {
            paint.right(area.width, y, &format!(" {to}/{last}"), REVERSED);
        }
    }
}
