//! `flatline status`: a row for each VM, the most severe states first.

use std::time::{Duration, SystemTime};

use crate::api::Request;
use crate::api::view::{HostView, ProbeState, StatusView, VmView};
use crate::config::Config;
use unicode_width::UnicodeWidthStr as _;

use super::ask::ask;
use super::severity::{self, Tone};
use super::table::{brief, duration, or_dash, padded, safe, seconds, shortened};
use super::{Answer, Failure, json, terminal};

/// The columns before the reason, in their order.
const COLUMNS: [&str; 7] = ["VM", "PID", "STATE", "SINCE", "FLAT", "RESTARTS", "RUN STATE"];
const STATE: usize = 2;
/// Columns that a narrow terminal goes without: the first one first.
const DISPENSABLE: [usize; 4] = [6, 5, 4, 3];
/// So much of a reason says something.
const REASON_MIN: usize = 28;

/// How to print.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// The terminal's columns; `None`: as long as it takes.
    columns: Option<usize>,
    unicode: bool,
    colours: bool,
}

pub(super) fn run(config: &Config, as_json: bool) -> Result<Answer, Failure> {
    let view: StatusView = ask(config, &Request::Status)?;
    if as_json {
        return json(&view).map(Answer::good);
    }
    let look = Look {
        columns: terminal::columns(),
        unicode: terminal::unicode(),
        colours: terminal::colours(),
    };
    Ok(Answer::good(text(&view, SystemTime::now(), look)))
}

fn text(view: &StatusView, now: SystemTime, look: Look) -> String {
    let end = if look.unicode { "…" } else { "..." };
    let fit = |line: &str| match look.columns {
        Some(columns) => shortened(line, columns, end),
        None => line.to_owned(),
    };
    let mut out = String::new();
    for (line, tone) in host(&view.host) {
        out.push_str(&coloured(&fit(&line), tone, look));
        out.push('\n');
    }
    out.push_str(&fit(&safe(&severity::summary(&view.vms))));
    out.push('\n');
    if view.vms.is_empty() {
        return out;
    }
    let mut vms: Vec<&VmView> = view.vms.iter().collect();
    vms.sort_by(|one, other| {
        let key = |vm: &VmView| (severity::rank(vm), vm.pid);
        key(one).cmp(&key(other)).then_with(|| one.name.cmp(&other.name))
    });
    let cells: Vec<_> = vms.iter().map(|vm| cells(vm, now).map(|cell| safe(&cell))).collect();
    let mut widths = COLUMNS.map(|name| name.width() + 2);
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width() + 2);
        }
    }
    if let Some(columns) = look.columns {
        for column in DISPENSABLE {
            if widths.iter().sum::<usize>() + REASON_MIN > columns {
                widths[column] = 0;
            }
        }
    }
    let line = |cells: [&str; COLUMNS.len()], tone: Tone, reason: &str| {
        let mut left = look.columns;
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let room = left.map_or(width, |left| left.min(width));
            let cell = if width == 0 { String::new() } else { shortened(cell, room, end) };
            let tone = if column == STATE { tone } else { Tone::Plain };
            // The spaces stay outside, so that they can be cut off.
            let spaces = room.saturating_sub(cell.width());
            line.push_str(&(coloured(&cell, tone, look) + &padded("", spaces)));
            left = left.map(|left| left - room);
        }
        line.push_str(&left.map_or_else(|| reason.to_owned(), |left| shortened(reason, left, end)));
        line.trim_end().to_owned() + "\n"
    };
    out.push_str(&line(COLUMNS, Tone::Plain, "REASON"));
    for (vm, cells) in vms.iter().zip(&cells) {
        let reason = safe(&severity::reason(vm));
        out.push_str(&line(cells.each_ref().map(String::as_str), Tone::of(&vm.state), &reason));
    }
    out
}

fn cells(vm: &VmView, now: SystemTime) -> [String; COLUMNS.len()] {
    [
        vm.name.clone(),
        vm.pid.to_string(),
        severity::state(vm),
        // The clock may have been set back.
        brief(now.duration_since(vm.since).unwrap_or_default()),
        seconds(vm.flat_seconds),
        vm.restarts_in_window.to_string(),
        or_dash(vm.run_state.as_ref()),
    ]
}

fn coloured(text: &str, tone: Tone, look: Look) -> String {
    let code = match tone {
        _ if !look.colours => return text.to_owned(),
        Tone::Plain => return text.to_owned(),
        Tone::Good => 32,
        Tone::Notable => 33,
        Tone::Bad => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// What is to say of the host, a line each.
fn host(host: &HostView) -> Vec<(String, Tone)> {
    let uptime = duration(Duration::from_secs(host.uptime_seconds));
    let head = format!(
        "flatline {} on {}, Linux {}, up {uptime}, mode {}",
        safe(&host.version),
        safe(host.hostname.as_deref().unwrap_or("this host")),
        safe(&host.kernel),
        host.mode.as_str(),
    );
    let mut lines = vec![(head, Tone::Plain)];
    if let Some(degraded) = &host.degraded {
        lines.push((format!("degraded: {}", safe(degraded)), Tone::Bad));
    }
    for probe in &host.probes {
        let state = match probe.state {
            ProbeState::Attached => continue,
            ProbeState::Failed => "failed",
            ProbeState::Unsupported => "unsupported",
        };
        let line = format!("probe {} {state}: {}", safe(&probe.name), safe(&probe.detail));
        lines.push((line, Tone::Notable));
    }
    lines
}

#[cfg(test)]
mod tests;
