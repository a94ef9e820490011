//! The columns of the list: which ones have room, how wide each is, and what stands in it.

use std::time::Duration;

use crate::history::Rate;
use ratatui::layout::HorizontalAlignment;

use super::figures::{figure, line, percent};
use crate::cli::severity;
use crate::cli::table::{brief, or_dash};
use crate::cli::top::model::{Row, life};

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Name,
    Pid,
    State,
    Vcpu,
    Sent,
    Received,
    Completed,
    InFlight,
    Life,
    Restarts,
    Line,
    Reason,
}

/// All of them from the left, with their titles.
const TITLES: [(Field, &str); 12] = [
    (Field::Name, "VM"),
    (Field::Pid, "PID"),
    (Field::State, "STATE"),
    (Field::Vcpu, "CPU%"),
    (Field::Sent, "TX/s"),
    (Field::Received, "RX/s"),
    (Field::Completed, "IO/s"),
    (Field::InFlight, "INFL"),
    (Field::Life, "ALIVE"),
    (Field::Restarts, "RST"),
    (Field::Line, "LINE"),
    (Field::Reason, "REASON"),
];

/// What has room in turn beside name and state, and its width.
const BY_IMPORTANCE: [(Field, u16); 9] = [
    (Field::Line, 8),
    (Field::Life, 5),
    (Field::Vcpu, 4),
    (Field::InFlight, 4),
    (Field::Sent, 4),
    (Field::Received, 4),
    (Field::Completed, 4),
    (Field::Restarts, 3),
    (Field::Pid, 7),
];

/// A column that has room.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) field: Field,
    pub(super) title: &'static str,
    pub(super) width: u16,
}

/// The columns of a terminal that is `width` wide, with names of `names` columns at most. One column is left before the
/// first and between two. A narrow terminal goes without some; a wide one has longer lines, and the reasons.
pub(super) fn columns(width: u16, names: u16) -> Vec<Column> {
    let is_wide = width >= 110;
    let mut widths = [0; TITLES.len()];
    widths[Field::Name as usize] = width.saturating_sub(1).min(14);
    widths[Field::State as usize] = width.saturating_sub(16).min(12);
    let mut left = width.saturating_sub(2 + 15 + 13);
    for (field, width) in BY_IMPORTANCE {
        if left > width && (is_wide || field != Field::Pid) {
            widths[field as usize] = width;
            left -= width + 1;
        }
    }
    let mut grow = |field: Field, most: u16, left: u16| {
        let width = &mut widths[field as usize];
        let more = most.saturating_sub(*width).min(left);
        *width += more;
        left - more
    };
    let has_line = width >= 30 + 9;
    // Seconds show best one by one.
    if has_line {
        left = grow(Field::Line, 18, left);
    }
    left = grow(Field::Name, names.clamp(14, 30), left);
    if is_wide {
        left = grow(Field::Line, if width >= 180 { 60 } else { 30 }, left);
    }
    if is_wide && left > 20 {
        grow(Field::Reason, left - 1, left);
    } else if has_line {
        grow(Field::Line, u16::MAX, left);
    }
    let columns = TITLES.into_iter().zip(widths);
    columns
        .filter(|(_, width)| *width > 0)
        .map(|((field, title), width)| Column { field, title, width })
        .collect()
}

impl Column {
    /// Figures stand below each other's ends.
    pub(super) fn alignment(&self) -> HorizontalAlignment {
        match self.field {
            Field::Name | Field::State | Field::Line | Field::Reason => HorizontalAlignment::Left,
            _ => HorizontalAlignment::Right,
        }
    }

    /// What stands in it of `row`.
    pub(super) fn text(&self, row: &Row, unicode: bool) -> String {
        let vm = &row.vm;
        match self.field {
            Field::Name => vm.name.clone(),
            Field::Pid => vm.pid.to_string(),
            Field::State if vm.hold.is_some() => format!("{} H", vm.state),
            Field::State => vm.state.clone(),
            Field::Vcpu => percent(row.rate(Rate::Vcpu)),
            Field::Sent => figure(row.rate(Rate::PacketsFromGuest)),
            Field::Received => figure(row.rate(Rate::PacketsToGuest)),
            Field::Completed => figure(row.rate(Rate::Completed)),
            Field::InFlight => figure(row.rate(Rate::InFlight)),
            Field::Life => {
                let flat = vm.flat_seconds.and_then(|flat| Duration::try_from_secs_f64(flat).ok());
                or_dash(flat.map(brief))
            }
            Field::Restarts => figure(Some(vm.restarts_in_window.into())),
            Field::Line => {
                let is_silent = !matches!(&*vm.state, "alive" | "starting" | "held");
                line(&life(&row.ticks, self.width.into()), is_silent, unicode)
            }
            Field::Reason => severity::reason(vm),
        }
    }
}
