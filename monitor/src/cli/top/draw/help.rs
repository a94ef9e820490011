//! The keys, and the columns to sort by.

use super::paint::{Paint, REVERSED, STRONG};
use super::{PAGE_WHOLE, page_lines};
use crate::cli::top::model::Column;
use ratatui::style::Style;

/// What is to know, a line each.
pub(in crate::cli::top) const HELP: [&str; 40] = [
    "Every VM with its line: what its guest sent and stored, a column a tick.",
    "  high   it did as much as at most in this time      low   a little",
    "  flat   nothing came from it (idle guests are flat, too)",
    "  thick  flat, and silent for so long that it is suspected, or worse",
    "  dot    not known (? on terminals without Unicode)",
    "",
    "  Up Down k j       the VM above, below          PgUp PgDn   a screen of them",
    "  Home g            the top, and stay there      End G       the last one",
    "  Enter Right       its page                     q F10 ^C    end",
    "  / \\ F3 F4         filter by name, UUID, pid, state, cause, owner; Esc: all",
    "  ^Z                stop, until `fg`             ^L          draw anew",
    "",
    "Sorting (the same key once more turns it round, as R and I do):",
    "  S state, who needs somebody first              N name",
    "  P vCPU time                                    T network",
    "  D disk                                         F in flight",
    "  L last sign of life                            C restarts",
    "  < > , .           the column beside            F6          choose one",
    "",
    "On a VM's page:",
    "  Esc q Left        back                         n p         next VM, previous",
    "  Up Down PgUp PgDn Home End   scroll",
    "",
    "Columns:",
    "  STATE  and H: somebody has it on hold",
    "  CPU%   time of its vCPUs together, in percent of one CPU of the host",
    "  TX/s   packets that the guest sent a second, without answers to probes",
    "  RX/s   packets that were sent to it",
    "  IO/s   requests to its disks that completed",
    "  INFL   requests in flight",
    "  ALIVE  how long ago the last sign of life was",
    "  RST    restarts that count towards the limit now",
    "  -      not known: never a zero",
    "",
    "States: failed (a person is needed), crashed (convicted), recovering",
    "(restarted), suspect (being asked), unobservable (a figure can't be read),",
    "held (no verdict is to be given), starting, alive.",
    "",
    "No key changes anything but this view. `flatline hold` and `flatline release`",
    "do; see `flatline --help`.",
];

pub(super) fn draw(paint: &mut Paint, line: usize) {
    let area = paint.area();
    let whole = area.height >= PAGE_WHOLE;
    paint.stale = false;
    paint.text(0, 0, area.width, "flatline top: keys", STRONG);
    let first = if whole { 2 } else { 1 };
    let lines = page_lines((area.width, area.height));
    for (y, text) in (first..area.height).zip(HELP.iter().skip(line).take(lines)) {
        paint.text(0, y, area.width, text, Style::new());
    }
    if whole {
        paint.bar(area.height - 1, "Up/Down PgUp/PgDn Scroll  any other key: back", REVERSED);
    }
}

/// The menu of columns, over the list.
pub(super) fn columns(paint: &mut Paint, chosen: Column) {
    const WIDTH: u16 = 24;
    let top = if paint.area().height >= 14 { 4 } else { 0 };
    paint.text(2, top, WIDTH, &format!("{:<24}", " Sort by"), REVERSED);
    for (y, column) in (top + 1..).zip(Column::ALL) {
        let (name, key) = column.describe();
        let mark = if column == chosen { '>' } else { ' ' };
        let text = format!("{:<24}", format!("{mark}{key}  {name}"));
        let style = if column == chosen { STRONG } else { Style::new() };
        paint.text(2, y, WIDTH, &text, style);
    }
}
