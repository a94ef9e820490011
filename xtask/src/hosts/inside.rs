//! What is tried inside of a host, a cell after the other on its serial line.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use flatline_tests::guest::{self, GuestConfig};
use flatline_tests::scenario::{
    self, Expected, FLAT_FOR, Outcome, Place, Programs, Scenario, Stage,
};
use flatline_tests::{image, interrupt};

use super::catalogue::{self, Column, Host, Trial};
use super::cell::{Cell, Overdue};
use super::disks::PAYLOAD;
use crate::architecture::Architecture;
use crate::matrix::report;

mod arm;
mod offers;
mod shared;

/// The hidden task that does it.
pub(crate) const TASK: &str = "hosts-inside";
/// What names the host among the words of its kernel's command line, and what only some columns.
pub(super) const HOST_WORD: &str = "flatline.host";
pub(super) const COLUMNS_WORD: &str = "flatline.columns";
/// The column in which the guests' QEMU calls itself.
pub(super) const QEMU: &str = "QEMU";
/// How soon after `flat_for` a crash is to be found that was not announced.
const SOON: std::time::Duration = std::time::Duration::from_secs(3);
/// The scenario of a guest that QEMU pauses at its panic.
const PAUSES: &str = "pvpanic-pause";
/// For an end-to-end test, in seconds.
const TEST_LIMIT: &str = "240";

/// Prints a cell, whole, whichever thread it comes from.
fn tell(cell: &Cell) {
    static LINE: Mutex<()> = Mutex::new(());
    let _whole = LINE.lock();
    let mut stdout = std::io::stdout();
    // What can't be written can't be told either; the cell is then missing.
    let _ = writeln!(stdout, "{}", serde_json::to_string(cell).unwrap_or_default());
    let _ = stdout.flush();
}

/// Tries all that the command line asks for.
///
/// # Errors
///
/// If the host is none, or what was brought is not there.
pub(crate) fn task() -> Result<()> {
    interrupt::install()?;
    let words = std::fs::read_to_string("/proc/cmdline")?;
    let host = word(&words, HOST_WORD).and_then(catalogue::host).context("no such host")?;
    let only = word(&words, COLUMNS_WORD).unwrap_or_default();
    let wanted =
        |column: &Column| only.is_empty() || only.split(',').any(|name| name == slug(column));
    tell(&Cell::empty(QEMU, qemu_version()?));
    let payload = Path::new(PAYLOAD);
    let daemon = payload.join("flatline");
    if catalogue::OFFERS.iter().any(wanted) && !offers::check(&daemon, &mut tell)? {
        let why = "the daemon refuses this kernel";
        catalogue::columns(&host)
            .iter()
            .skip(1)
            .filter(|each| wanted(each))
            .for_each(|each| tell(&Cell::empty(each.name, why)));
        return Ok(());
    }
    if host.architecture == Architecture::Aarch64 {
        return arm::play(&host, &daemon, wanted, &mut tell);
    }
    let images = image::build(&payload.join("guest"), |step| eprintln!("{step}"))?;
    let programs = Programs { daemon, images };
    let columns = catalogue::columns(&host);
    let by_name = |name: &str| columns.iter().any(|each| each.name == name && wanted(each));
    shared::play(&programs, by_name, &mut tell);
    let scenarios = catalogue::CRASHES.iter().chain(&catalogue::HEALTHY);
    play(scenarios.filter(|each| wanted(each)), &host, &programs)?;
    for column in catalogue::COUNTS.iter().filter(|each| wanted(each)) {
        tell(&match host.omits(column) {
            Some(why) => Cell::empty(column.name, why),
            None => test(column, &payload.join("e2e"), &programs.daemon),
        });
    }
    Ok(())
}

/// Where the payload has the images of guests of such a kernel, if not of the one that all have.
pub(super) fn images_of(kernel: &str) -> String {
    format!("guest-{}", kernel.trim_end_matches('.'))
}

/// As the guests' QEMU says it.
fn qemu_version() -> Result<String> {
    let dir = tempfile::tempdir()?;
    let mut command = guest::version_command(dir.path())?;
    let output = command.output().context("cannot run QEMU")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = text.lines().next().and_then(|line| line.strip_prefix("QEMU emulator version "));
    let first = first.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(first.split_whitespace().next().unwrap_or_default().to_owned())
}

/// A word of the command line.
fn word<'a>(words: &'a str, name: &str) -> Option<&'a str> {
    words.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// A column's name in a word.
pub(super) fn slug(column: &Column) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    column.name.to_ascii_lowercase().replace(", ", "-").chars().map(plain).collect()
}

/// Plays scenarios one after the other: beside another, a stage's clock is that of the CPUs that this one leaves it.
fn play<'a>(
    columns: impl Iterator<Item = &'a Column>,
    host: &Host,
    programs: &Programs,
) -> Result<()> {
    let all = scenario::all();
    for column in columns {
        interrupt::check()?;
        let Trial::Scenario(name) = column.trial else { continue };
        if let Some(why) = host.omits(column) {
            tell(&Cell::empty(column.name, why));
            continue;
        }
        let mut scenario =
            *all.iter().find(|scenario| scenario.name == name).context("no such scenario")?;
        if name == PAUSES {
            scenario.guests = pauses_at_a_panic;
        }
        tell(&played(column, &scenario, programs));
    }
    Ok(())
}

/// A guest with pvpanic, as every QEMU understands it: `-action` came with 6.0.
fn pauses_at_a_panic(place: &mut Place) -> Result<Vec<GuestConfig>> {
    let mut config = place.linux("guest")?;
    (config.pvpanic, config.no_shutdown) = (true, true);
    Ok(vec![config])
}

/// Plays a scenario on a stage of its own.
fn played(column: &Column, scenario: &Scenario, programs: &Programs) -> Cell {
    let played =
        Stage::set_up(scenario, programs).and_then(|stage| scenario::run(scenario, &stage));
    cell(column.name, scenario, &played)
}

/// What came of a scenario. A crash that was not announced is to be found within [`SOON`], and the time that the host kept the
/// daemon and the guest from its CPUs.
fn cell(column: &str, scenario: &Scenario, played: &Result<Outcome>) -> Cell {
    let outcome = match played {
        Ok(outcome) => outcome,
        Err(error) => return Cell::unplayed(column, error),
    };
    let detail = format!("{}{}", report::told(outcome), report::log(played));
    let mut cell = Cell::played(column, report::brief(outcome), report::is_right(outcome));
    if matches!(scenario.expected, Expected::Crashed { .. })
        && !matches!(outcome.cause.as_deref(), Some("panicked" | "watchdog"))
        && let (Some(detect), Some(found_at)) = (outcome.detect, outcome.found_at)
    {
        let limit = FLAT_FOR + SOON;
        let verdict_ago = found_at.elapsed().unwrap_or_default();
        cell.overdue = (detect > limit).then(|| Overdue {
            fault_ago: (verdict_ago + detect).as_secs_f64(),
            verdict_ago: verdict_ago.as_secs_f64(),
            by: (detect - limit).as_secs_f64(),
            withheld: outcome.withheld.unwrap_or_default().as_secs_f64(),
        });
    }
    cell.with_detail(detail)
}

/// Runs end-to-end tests, as they are played on any machine.
fn test(column: &Column, runner: &Path, daemon: &Path) -> Cell {
    let Trial::Tests(names) = column.trial else { return Cell::empty(column.name, "no test") };
    let (mut passed, mut skipped, mut why) = (0, Vec::new(), Vec::new());
    for name in names {
        match run_test(name, runner, daemon) {
            Ok(Verdict::Passed) => passed += 1,
            Ok(Verdict::Skipped(reason)) => skipped.push(reason),
            Err(error) => why.push(format!("{name}: {error:#}")),
        }
    }
    let is_due = passed + skipped.len() == names.len();
    if passed == 0 && is_due {
        return Cell::empty(column.name, skipped.join("; "));
    }
    let left_out: String = skipped.iter().map(|reason| format!("; {reason}")).collect();
    let text = format!("{passed} of {} tests{left_out}", names.len());
    Cell::played(column.name, text, is_due).with_detail(why.join("\n"))
}

enum Verdict {
    Passed,
    Skipped(String),
}

fn run_test(name: &str, runner: &Path, daemon: &Path) -> Result<Verdict> {
    interrupt::check()?;
    let guests: PathBuf = Path::new(PAYLOAD).join("guest");
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", TEST_LIMIT]).arg(runner).args(["--exact", name]);
    command.env("FLATLINE_BINARY", daemon).env("FLATLINE_GUEST_DIR", guests);
    let Output { status, stdout, stderr } = command.output().context("cannot run the tests")?;
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if let Some((_, reason)) = text.split_once("skipped: ") {
        // The runner puts it in parentheses.
        let reason = reason.lines().next().unwrap_or_default();
        return Ok(Verdict::Skipped(reason.strip_suffix(')').unwrap_or(reason).to_owned()));
    }
    if !status.success() {
        bail!("{status}: {}", end_of(&text));
    }
    ensure!(text.contains("1 passed"), "it is not there: {}", end_of(&text));
    Ok(Verdict::Passed)
}

/// The last lines.
fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_named_by_a_word_of_the_command_line() {
        let slugs: Vec<String> =
            catalogue::columns(&catalogue::HOSTS[0]).iter().map(slug).collect();
        assert!(
            slugs.contains(&"panic-1-vcpu".to_owned()) && slugs.contains(&"idle-poll".to_owned())
        );
        let words = "quiet flatline.host=linux-6 flatline.columns=check,halt";
        assert_eq!(word(words, HOST_WORD), Some("linux-6"));
        assert_eq!(word(words, COLUMNS_WORD), Some("check,halt"));
        assert_eq!(word("flatline.hosts=x", HOST_WORD), None);
    }
}
