//! A VM's own page.

use super::paint::{Paint, REVERSED, STRONG};
use crate::cli::top::model::{Page, Stale, page_regions};

const KEYS: &str = "Esc Back  Up/Down PgUp/PgDn Home/End Scroll  n Next  p Previous  F10 Quit";

pub(super) fn draw(paint: &mut Paint, size: (u16, u16), page: &Page, stale: Option<&Stale>) {
    let [title, complaint, text, keys] = page_regions(size);
    let wrong = stale.map(ToString::to_string).or_else(|| page.complaint.clone());
    match &wrong {
        // Too low a terminal for both.
        Some(wrong) if complaint.is_empty() => paint.line(title, wrong, REVERSED),
        _ => {
            let name = format!("{}  (process {})", page.key.name, page.key.pid);
            paint.line(title, &name, STRONG);
        }
    }
    if let Some(wrong) = wrong {
        paint.line(complaint, &wrong, REVERSED);
    }
    // What is gone isn't so any more.
    paint.stale |= page.complaint.is_some();
    for (area, line) in text.rows().zip(page.lines.iter().skip(page.scroll)) {
        let style = paint.style(line.tone);
        paint.line(area, &line.text, if line.strong { style.patch(STRONG) } else { style });
    }
    let last = page.lines.len();
    let to = last.min(page.scroll + usize::from(text.height));
    paint.line(keys, KEYS, REVERSED);
    if to < last || page.scroll > 0 {
        paint.right(keys, &format!(" {to}/{last}"), REVERSED);
    }
}
