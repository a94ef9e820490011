//! Which lines of the terminal show what: a low one goes without what can be done without, and rows come first.

use ratatui::layout::Rect;

/// From this height on, a page has a line for what is wrong, and one for the keys.
const PAGE_WHOLE: u16 = 6;

/// The parts of the list, from the top; one that has no room has no height.
#[derive(Debug)]
pub(in crate::cli::top) struct Regions {
    pub(in crate::cli::top) title: Rect,
    pub(in crate::cli::top) summary: Rect,
    pub(in crate::cli::top) banners: Rect,
    pub(in crate::cli::top) header: Rect,
    pub(in crate::cli::top) rows: Rect,
    pub(in crate::cli::top) reason: Rect,
    pub(in crate::cli::top) keys: Rect,
}

impl Regions {
    /// Those of a terminal of this size, with so many banners; a filter that is typed is always seen.
    pub(super) fn of(size: (u16, u16), banners: usize, is_filtering: bool) -> Self {
        let banners = u16::try_from(banners).unwrap_or(0);
        let from = |height: u16, lines: u16| Some(if size.1 >= height { lines } else { 0 });
        let keys = if is_filtering { from(1, 1) } else { from(7, 1) };
        let heights =
            [from(9, 1), from(3, 1), from(5, banners), from(4, 1), None, from(10, 1), keys];
        let [title, summary, banners, header, rows, reason, keys] = stacked(size, heights);
        Self { title, summary, banners, header, rows, reason, keys }
    }
}

/// The parts of a VM's page, and of the help: title, what is wrong, text, keys.
pub(in crate::cli::top) fn page_regions(size: (u16, u16)) -> [Rect; 4] {
    let more = Some(u16::from(size.1 >= PAGE_WHOLE));
    stacked(size, [Some(size.1.min(1)), more, None, more])
}

/// The lines of text that a page has.
pub(super) fn page_lines(size: (u16, u16)) -> usize {
    let [_, _, text, _] = page_regions(size);
    text.height.into()
}

/// Parts of these heights below each other. The one without has the lines that the others leave.
fn stacked<const N: usize>((width, height): (u16, u16), heights: [Option<u16>; N]) -> [Rect; N] {
    let left = height.saturating_sub(heights.iter().flatten().sum());
    let mut y = 0;
    heights.map(|lines| {
        let area = Rect::new(0, y, width, lines.unwrap_or(left));
        y = area.bottom();
        area
    })
}
