//! What the documents have in common that tasks write.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::capture;

/// The machine, in a line.
pub(crate) fn machine() -> Result<String> {
    let cpus = std::thread::available_parallelism()?;
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model
        .map_or("CPUs of an unknown model", |model| model.trim_start_matches([' ', '\t', ':']));
    let is_virtual = info.lines().any(|line| {
        line.starts_with("flags") && line.split_ascii_whitespace().any(|flag| flag == "hypervisor")
    });
    let kind = if is_virtual { "a virtual machine" } else { "a machine" };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let date = capture(Command::new("date").args(["-u", "+%F"])).unwrap_or_default();
    Ok(format!("{kind} with {cpus} CPUs ({model}), Linux {}, on {date}", kernel.trim()))
}

/// In lines of at most 116 characters, those of a list item indented.
pub(crate) fn wrapped(text: &str) -> String {
    const WIDTH: usize = 116;
    let indent = if text.starts_with("- ") { "  " } else { "" };
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line != 0 && line + 1 + word.chars().count() > WIDTH {
            lines.push(format!("{indent}{word}"));
        } else if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

/// A table with a heading and columns of even width.
pub(crate) fn table<const COLUMNS: usize>(lines: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| width(column).unwrap_or_default());
    let padded = |line: &[String; COLUMNS]| {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let Some((heading, rows)) = lines.split_first() else { return String::new() };
    let rule = widths.map(|width| "-".repeat(width));
    let rows = rows.iter().map(padded);
    [padded(heading), padded(&rule)].into_iter().chain(rows).collect()
}

/// Least, median and most, in seconds; nothing if there are none.
pub(crate) fn spread(times: impl Iterator<Item = Duration>) -> String {
    let mut seconds: Vec<f64> = times.map(|time| time.as_secs_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    match (seconds.first(), seconds.last()) {
        (Some(least), Some(most)) => {
            format!("{least:.1} / {:.1} / {most:.1}", seconds[seconds.len() / 2])
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_wrapped_and_a_list_item_stays_one() {
        let text = wrapped(&format!("- {}", "word ".repeat(60)));
        assert!(text.lines().all(|line| line.len() <= 116));
        assert!(text.lines().skip(1).all(|line| line.starts_with("  word")));
    }
}
