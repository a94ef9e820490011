//! Hosts of 64-bit Arm, and what is tried on them: the same with guests of two kernels, without and with a console log.

use flatline_tests::scenario::arm_host::{BUSY, UNASKED};

use super::{Column, Host, Trial, column};
use crate::architecture::Architecture;

/// Those hosts.
pub(in crate::hosts) const HOSTS: [Host; 1] = [Host {
    name: "arm-6.12",
    kernel: "6.12.",
    qemu_suite: None,
    architecture: Architecture::Aarch64,
}];

/// What the versions of guests' kernels begin with.
pub(in crate::hosts) const KERNELS: [&str; 2] = ["6.1.", "6.12."];

/// Guests of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hosts) struct Guests {
    /// One of [`KERNELS`].
    pub(in crate::hosts) kernel: &'static str,
    /// Whether QEMU writes down what comes over their consoles.
    pub(in crate::hosts) console_log: bool,
}

/// The headings of the four columns that each row has.
pub(in crate::hosts) const HEADINGS: [&str; 4] =
    ["guest 6.1", "guest 6.1, console log", "guest 6.12", "guest 6.12, console log"];
const fn guests(kernel: &'static str, console_log: bool) -> Guests {
    Guests { kernel, console_log }
}
macro_rules! crash {
    ($what:literal, $scenario:literal) => {
        each!($what, Guest, $scenario, concat!($scenario, "-console"))
    };
}
macro_rules! healthy {
    ($what:literal, $guest:expr) => {
        each!($what, Beside, $guest, $guest)
    };
}
macro_rules! each {
    ($what:literal, $trial:ident, $name:expr, $with_log:expr) => {
        [
            column(concat!($what, ", guest 6.1"), Trial::$trial(guests("6.1.", false), $name)),
            column(
                concat!($what, ", guest 6.1, console log"),
                Trial::$trial(guests("6.1.", true), $with_log),
            ),
            column(concat!($what, ", guest 6.12"), Trial::$trial(guests("6.12.", false), $name)),
            column(
                concat!($what, ", guest 6.12, console log"),
                Trial::$trial(guests("6.12.", true), $with_log),
            ),
        ]
    };
}
/// The rows.
pub(in crate::hosts) const ROWS: [(&str, [Column; 4]); 7] = [
    ("panic, 1 vCPU", crash!("panic, 1 vCPU", "arm-panic-1")),
    ("panic, 2 vCPUs", crash!("panic, 2 vCPUs", "arm-panic-2")),
    ("halt, 1 vCPU", crash!("halt, 1 vCPU", "arm-halt-1")),
    ("halt, 2 vCPUs", crash!("halt, 2 vCPUs", "arm-halt-2")),
    ("idle", healthy!("idle", "guest")),
    ("busy", healthy!("busy", BUSY)),
    ("idle, no address", healthy!("idle, no address", UNASKED)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_its_columns_by_their_headings_and_kernels_that_are_made() {
        for (what, columns) in ROWS {
            for (column, heading) in columns.iter().zip(HEADINGS) {
                assert_eq!(column.name, format!("{what}, {heading}"));
                let (Trial::Guest(guests, _) | Trial::Beside(guests, _)) = column.trial else {
                    panic!("{}: no guests", column.name);
                };
                assert!(KERNELS.contains(&guests.kernel));
                assert_eq!(guests.console_log, heading.ends_with("console log"));
                assert!(heading.contains(guests.kernel.trim_end_matches('.')));
            }
        }
    }
}
