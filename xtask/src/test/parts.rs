//! The parts of a run: each is timed, and its failure keeps no other from running.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::heading;

/// What was run so far, in order.
#[derive(Debug)]
pub(super) struct Parts {
    begin: Instant,
    done: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    name: &'static str,
    wall: Duration,
    /// CPU time of the programs that ended meanwhile, in all their threads.
    cpu: Duration,
    failed: bool,
}

impl Parts {
    pub(super) fn new() -> Self {
        Self { begin: Instant::now(), done: Vec::new() }
    }

    /// Runs a part, and says what it took. Returns its result, or `None` if it failed, which is then printed.
    pub(super) fn run<T>(
        &mut self,
        name: &'static str,
        part: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        let (begin, cpu_before) = (Instant::now(), cpu_of_children());
        let result = part();
        let cpu = cpu_of_children().saturating_sub(cpu_before);
        let part = Part { name, wall: begin.elapsed(), cpu, failed: result.is_err() };
        if let Err(error) = &result {
            eprintln!("{error:#}");
        }
        let how = if part.failed { "failed" } else { "done" };
        heading(&format!("{name}: {how} in {} s", part.wall.as_secs()));
        self.done.push(part);
        result.ok()
    }

    /// Prints the table of all parts.
    ///
    /// # Errors
    ///
    /// If a part failed: the names of those that did.
    pub(super) fn end(self) -> Result<()> {
        let all = self.begin.elapsed();
        eprint!("\n{}", table(&self.done, all));
        let failed: Vec<_> =
            self.done.iter().filter(|part| part.failed).map(|part| part.name).collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// A row a part, and one of all, in seconds.
fn table(parts: &[Part], all: Duration) -> String {
    let row = |name: &str, wall: Duration, cpu: Duration, note: &str| {
        format!("{name:<24} {:>7.1} {:>7.1}{note}\n", wall.as_secs_f64(), cpu.as_secs_f64())
    };
    let mut text = format!("{:<24} {:>7} {:>7}\n", "part", "wall s", "CPU s");
    for part in parts {
        text += &row(part.name, part.wall, part.cpu, if part.failed { "  failed" } else { "" });
    }
    text + &row("all", all, parts.iter().map(|part| part.cpu).sum(), "")
}

/// CPU time of all programs that were run and waited for, from `/proc/self/stat` (proc_pid_stat(5)); nothing if that can't
/// be read.
fn cpu_of_children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name before may have anything in it but this.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    // cutime and cstime, the 16th and 17th field of all.
    let ticks: u64 = fields
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_fails_keeps_no_other_from_running_and_is_named() {
        let mut parts = Parts::new();
        assert_eq!(parts.run("one", || -> Result<u8> { bail!("no") }), None);
        assert_eq!(parts.run("two", || Ok(2)), Some(2));
        let error = parts.end().expect_err("one failed");
        assert_eq!(error.to_string(), "failed: one");
    }

    #[test]
    fn each_part_has_a_row_with_its_times() {
        let (wall, cpu) = (Duration::from_millis(61_250), Duration::from_secs(100));
        let part = |name, failed| Part { name, wall, cpu, failed };
        let text = table(&[part("lint", false), part("unit tests", true)], wall * 2);
        let rows: Vec<_> = text.lines().collect();
        assert_eq!(rows[1].split_whitespace().collect::<Vec<_>>(), ["lint", "61.2", "100.0"]);
        assert!(rows[2].ends_with("failed"));
        assert_eq!(rows[3].split_whitespace().collect::<Vec<_>>(), ["all", "122.5", "200.0"]);
    }
}
