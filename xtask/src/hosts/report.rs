//! `docs/hosts.md`: each host's cells, and what is not as is due.

use std::fmt::Write as _;

use super::catalogue::{self, Column, Host, arm};
use super::cell::Cell;
use super::results::Played;
use crate::architecture::Architecture;
use crate::document::{table, wrapped};

/// Letters of what is not as is due.
const MOST_IN_A_CELL: usize = 60;
const MOST_OF_A_FAILURE: usize = 400;

/// The document, from what was played of each host.
pub(super) fn document(played: &[(Host, Option<Played>)]) -> String {
    let mut text = format!("# Hosts\n\n{}\n\n## Kernels and QEMUs\n\n", wrapped(INTRODUCTION));
    let mut lines = vec![["host", "kernel", "QEMU", "played", "daemon (CRC)"].map(str::to_owned)];
    for (host, played) in played {
        let words = match played {
            Some(played) => {
                let daemon = format!("{:08x}", played.daemon_crc32);
                [played.kernel.clone(), played.qemu.clone(), played.on.clone(), daemon]
            }
            None => [host.kernel.to_owned(), String::new(), "not yet".to_owned(), String::new()],
        };
        let [kernel, qemu, on, daemon] = words;
        lines.push([host.name.to_owned(), kernel, qemu, on, daemon]);
    }
    text.push_str(&table(&lines));
    section::<4>(&mut text, "What they offer", OFFERS, played, &catalogue::OFFERS);
    let is_x86 = |(host, _): &&(Host, _)| host.architecture == Architecture::X86_64;
    let (x86, others): (Vec<_>, Vec<_>) = played.iter().partition(is_x86);
    let x86: Vec<_> = x86.into_iter().cloned().collect();
    section::<6>(&mut text, "Guests that crash", CRASHES, &x86, &catalogue::CRASHES);
    section::<5>(&mut text, "Guests that are left alone", HEALTHY, &x86, &catalogue::HEALTHY);
    section::<5>(&mut text, "Counts, and a restart", COUNTS, &x86, &catalogue::COUNTS);
    for (host, played) in others {
        on_arm(&mut text, host, played.as_ref());
    }
    let failures = failures(played);
    if !failures.is_empty() {
        let items: Vec<String> = failures.iter().map(|line| wrapped(line)).collect();
        let _ = write!(text, "\n## Not as it is due\n\n{}\n", items.join("\n"));
    }
    let empty = reasons(played);
    if !empty.is_empty() {
        let items: Vec<String> = empty.iter().map(|line| wrapped(line)).collect();
        let _ = write!(text, "\n## Empty cells\n\n{}\n", items.join("\n"));
    }
    text
}

/// A table with a row a host; `COLUMNS` counts its name too.
fn section<const COLUMNS: usize>(
    text: &mut String,
    title: &str,
    words: &str,
    played: &[(Host, Option<Played>)],
    columns: &[Column],
) {
    let _ = write!(text, "\n## {title}\n\n{}\n\n", wrapped(words));
    let row = |first: &str, cell: &dyn Fn(&Column) -> String| -> [String; COLUMNS] {
        row_of([first.to_owned()].into_iter().chain(columns.iter().map(cell)))
    };
    let mut rows = vec![row("host", &|column| column.name.to_owned())];
    rows.extend(played.iter().map(|(host, played)| {
        row(host.name, &|column| shown(cell_of(played.as_ref(), column.name)))
    }));
    text.push_str(&table(&rows));
}

/// A table of a host of 64-bit Arm, with a row for each thing that is tried.
fn on_arm(text: &mut String, host: &Host, played: Option<&Played>) {
    let _ = write!(text, "\n## 64-bit Arm: {}\n\n{}\n\n", host.name, wrapped(ON_ARM));
    let heading = [host.name].into_iter().chain(arm::HEADINGS).map(str::to_owned);
    let mut lines: Vec<[String; 5]> = vec![row_of(heading)];
    for (what, columns) in &arm::ROWS {
        let cells = columns.iter().map(|column| shown(cell_of(played, column.name)));
        lines.push(row_of([(*what).to_owned()].into_iter().chain(cells)));
    }
    text.push_str(&table(&lines));
}

/// So many cells; what is missing is empty.
fn row_of<const COLUMNS: usize>(mut cells: impl Iterator<Item = String>) -> [String; COLUMNS] {
    std::array::from_fn(|_| cells.next().unwrap_or_default())
}

fn cell_of<'a>(played: Option<&'a Played>, column: &str) -> Option<&'a Cell> {
    played?.cells.iter().find(|cell| cell.column == column)
}

/// A cell in a table: why one is empty, and what is not as is due, stands below in whole.
fn shown(cell: Option<&Cell>) -> String {
    match cell {
        None => String::new(),
        Some(Cell { as_due: None, .. }) => "-".to_owned(),
        Some(Cell { as_due: Some(true), text, .. }) => plain(text),
        Some(Cell { as_due: Some(false), text, .. }) => {
            format!("**wrong**: {}", short(&plain(text), MOST_IN_A_CELL))
        }
    }
}

/// In one line, without what would end a cell.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/")
}

fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most).chain("...".chars()).collect()
}

/// What is not as is due, a line each.
pub(super) fn failures(played: &[(Host, Option<Played>)]) -> Vec<String> {
    let wrong = |cell: &&Cell| cell.as_due == Some(false);
    lines(played, wrong, |cell| {
        let detail = cell.detail.as_deref().filter(|detail| !detail.is_empty());
        let first = detail.and_then(|detail| detail.lines().next()).unwrap_or_default();
        format!("{}. {}", plain(&cell.text), short(first, MOST_OF_A_FAILURE))
    })
}

/// Why cells are empty, a line each; what is so for the same reason on one host is one.
fn reasons(played: &[(Host, Option<Played>)]) -> Vec<String> {
    let mut all: Vec<(String, Vec<String>, String)> = Vec::new();
    for (host, played) in played {
        let names: Vec<&str> = catalogue::columns(host).iter().map(|each| each.name).collect();
        for name in names {
            let why = match cell_of(played.as_ref(), name) {
                None if played.is_none() => "this host was not played yet".to_owned(),
                None => "it was broken off before".to_owned(),
                Some(cell) if cell.as_due.is_none() => plain(&cell.text),
                Some(_) => continue,
            };
            match all.iter_mut().find(|(of, _, same)| of == host.name && *same == why) {
                Some((_, names, _)) => names.push(name.to_owned()),
                None => all.push((host.name.to_owned(), vec![name.to_owned()], why)),
            }
        }
    }
    let line = |(host, names, why): &(String, Vec<String>, String)| {
        let is_whole =
            catalogue::host(host).is_some_and(|of| catalogue::columns(&of).len() == names.len());
        let names = if is_whole { "all".to_owned() } else { names.join("; ") };
        format!("- {host}, {names}: {why}.")
    };
    all.iter().map(line).collect()
}

fn lines(
    played: &[(Host, Option<Played>)],
    chosen: impl Fn(&&Cell) -> bool,
    words: impl Fn(&Cell) -> String,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (host, played) in played {
        for cell in played.iter().flat_map(|played| &played.cells).filter(&chosen) {
            lines.push(format!("- {}, {}: {}", host.name, cell.column, words(cell)));
        }
    }
    lines
}

/// All hosts with what was played of them.
pub(super) fn with_results(of: impl Fn(&Host) -> Option<Played>) -> Vec<(Host, Option<Played>)> {
    catalogue::hosts().map(|host| (host, of(&host))).collect()
}

const INTRODUCTION: &str = "Written by `cargo xtask hosts`: real KVM hosts, each a Debian 12 with a kernel of Debian's own, in \
    a QEMU (8.1 or newer) that emulates an AMD machine with SVM and two CPUs, or a 64-bit Arm machine. flatline runs inside, and so do its guests: \
    unmodified 64-bit Linux 6.1 under `-accel kvm` with `-cpu host`, and boot sectors. Emulation makes all of it many times \
    slower than such a host is, and no clock with it. A cell that is *wrong* is told of below, and so is why a cell is empty.";
const OFFERS: &str = "*check*: what `flatline check` says, and its exit code; where it refuses the host, `flatline run` must too. \
    *hook*: what a guest's tap is counted by, which must be what check names. *programs*: of the programs that watch the host, \
    those that `flatline status --json` says are attached; each that is lost must be named by check, and by what is degraded, \
    and nothing else may be.";
const CRASHES: &str = "The scenarios of [verdicts.md](verdicts.md), each with a daemon of its own and an idle guest beside that \
    must be left alone. From the fault to the verdict, and from there until the guest is back. A crash that is not announced is \
    to be found within `flat_for` (10 s) and 3 s more, and for as long as the daemon, the guest or the whole host waited for a \
    CPU meanwhile; each guest is reset once, and no other.";
const HEALTHY: &str = "Each is watched for 40 s, and may not be reset; *idle*, on two vCPUs, and *busy* beside each other. *idle=poll* and *masked wait* have no address to be asked \
    at, and may stay suspected.";
const ON_ARM: &str = "A host of 64-bit Arm (QEMU's `virt` with GICv3), and its guests: unmodified Linux of Debian's under `-accel \
    kvm` with `-cpu host`. flatline and its tests are built for it on another machine, as `cargo xtask dist --target \
    aarch64-unknown-linux-gnu` builds them. With a *console log*, QEMU also writes the serial console to a file. Crashes are to \
    be found as above. The healthy ones run beside each other; *idle, no address* has no agent and no disk either, and may stay \
    suspected.";
const COUNTS: &str = "End-to-end tests that are played inside of the host with its guests: packets and bytes of taps equal the \
    kernel's own, through each hook; requests of disks equal QEMU's; pages that the host writes back later are counted once, \
    for their VM; and nothing is lost while the daemon is killed and started three times under load.";

#[cfg(test)]
mod tests {
    use super::*;

    fn played(cells: Vec<Cell>) -> Vec<(Host, Option<Played>)> {
        let played = Played {
            host: "linux-6.12".to_owned(),
            kernel: "6.12.117".to_owned(),
            qemu: "7.2".to_owned(),
            on: "2026-11-30".to_owned(),
            daemon_crc32: 1,
            cells,
        };
        with_results(|host| (host.name == "linux-6.12").then(|| played.clone()))
    }

    #[test]
    fn a_wrong_cell_is_marked_and_told_in_whole_and_an_empty_one_has_its_reason() {
        let text = document(&played(vec![
            Cell::played("halt", "halted, 10.2 s", true),
            Cell::played("idle", "crashed", false).with_detail("WRONG: it was reset\nand more"),
            Cell::empty("pvpanic", "QEMU 5.2 has no -action"),
        ]));
        assert!(
            text.contains("| halted, 10.2 s |") && text.contains("| **wrong**: crashed |"),
            "{text}"
        );
        assert!(text.contains("- linux-6.12, idle: crashed. WRONG: it was reset\n"), "{text}");
        assert!(text.contains("- linux-6.12, pvpanic: QEMU 5.2 has no -action."), "{text}");
        assert!(text.contains("- linux-6.1, all: this host was not played yet."), "{text}");
        let widths: Vec<usize> = text
            .lines()
            .skip_while(|line| !line.starts_with("## Guests that are left"))
            .filter(|line| line.starts_with('|'))
            .take(3)
            .map(|line| line.matches('|').count())
            .collect();
        assert_eq!(widths, [6, 6, 6]);
    }

    #[test]
    fn what_would_end_a_cell_is_not_in_it() {
        let cell = Cell::played("check", "a | b\nc", true);
        assert_eq!(shown(Some(&cell)), "a / b c");
        assert_eq!(shown(None), "");
    }
}
