//! What has room: the lines of the list on a low terminal, and its columns on a narrow one.

use std::ops::Range;

use super::list;
use crate::cli::top::model::{Model, Overlay};

/// Which line is what.
#[derive(Debug)]
pub(super) struct Regions {
    pub(super) title: Option<u16>,
    pub(super) summary: Option<u16>,
    pub(super) banners: Range<u16>,
    pub(super) header: Option<u16>,
    pub(super) rows: Range<u16>,
    pub(super) reason: Option<u16>,
    pub(super) keys: Option<u16>,
}

impl Regions {
    /// A low terminal goes without what can be done without: rows come first.
    pub(super) fn of(model: &Model) -> Self {
        let height = model.size.1;
        let banners = u16::try_from(list::banners(model).len()).unwrap_or(0);
        let mut next = 0;
        let mut take = |count: u16, from_height: u16| {
            let count = if height >= from_height { count } else { 0 };
            next += count;
            next - count..next
        };
        let line = |range: Range<u16>| range.clone().next();
        let title = line(take(1, 9));
        let summary = line(take(1, 3));
        let banners = take(banners, 5);
        let header = line(take(1, 4));
        let keys = u16::from(height >= 7 || matches!(model.overlay, Overlay::Filtering(_)));
        let reason = u16::from(height >= 10);
        let end = height.saturating_sub(keys + reason);
        Self {
            title,
            summary,
            banners,
            header,
            rows: next.min(end)..end,
            reason: (reason > 0).then_some(end),
            keys: (keys > 0).then_some(height.saturating_sub(1)),
        }
    }
}

/// How wide each column is; 0: it isn't there. One column is left between two.
#[derive(Debug, Default)]
pub(super) struct Widths {
    pub(super) name: u16,
    pub(super) pid: u16,
    pub(super) state: u16,
    /// vCPU, packets from and to the guest, requests.
    pub(super) figures: [u16; 4],
    pub(super) in_flight: u16,
    pub(super) life: u16,
    pub(super) restarts: u16,
    pub(super) line: u16,
    pub(super) reason: u16,
}

impl Widths {
    /// A narrow terminal goes without some; a wide one has longer lines, and the reasons.
    pub(super) fn of(width: u16, names: u16) -> Self {
        let mut widths = Self { name: 14, state: 12, ..Self::default() };
        let mut left = i32::from(width) - 2 - 15 - 13;
        // What has room in turn, together with the column beside it.
        let mut take = |width: u16| {
            let fits = left > i32::from(width);
            left -= if fits { i32::from(width) + 1 } else { 0 };
            if fits { width } else { 0 }
        };
        widths.line = take(8);
        widths.life = take(5);
        widths.figures = [take(4), 0, 0, 0];
        widths.in_flight = take(4);
        for figure in &mut widths.figures[1..] {
            *figure = take(4);
        }
        widths.restarts = take(3);
        // Seconds show best one by one.
        let wide = width >= 110;
        widths.pid = if wide { take(7) } else { 0 };
        let mut left = u16::try_from(left.max(0)).unwrap_or(0);
        let more = |column: &mut u16, most: u16, left: &mut u16| {
            let add = most.saturating_sub(*column).min(*left);
            *column += add;
            *left -= add;
        };
        if widths.line > 0 {
            more(&mut widths.line, 18, &mut left);
        }
        more(&mut widths.name, names.clamp(14, 30), &mut left);
        if wide && widths.line > 0 {
            more(&mut widths.line, if width >= 180 { 60 } else { 30 }, &mut left);
        }
        if wide && left > 20 {
            widths.reason = left - 1;
        } else if widths.line > 0 {
            more(&mut widths.line, u16::MAX, &mut left);
        }
        widths
    }
}
