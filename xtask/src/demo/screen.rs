//! What the demo's audience sees: sentences, and a table of the guests that renews itself.
//!
//! On a terminal the table is redrawn in place. Elsewhere, and in CI, each renewal is appended, so that
//! a log keeps all that was shown.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How often an unchanged table is renewed.
const RENEWAL: Duration = Duration::from_secs(1);

/// Columns of a terminal that does not tell how many it has.
const DEFAULT_COLUMNS: usize = 80;

/// One guest's row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    name: String,
    state: String,
    vcpu_percent: String,
    /// From the guest, and to it.
    packets: String,
    /// Reads, and writes.
    requests: String,
    reason: String,
}

/// The demo's standard output.
pub(super) struct Screen {
    terminal: bool,
    colours: bool,
    begin: Instant,
    /// Lines of the table right above the cursor: those that a renewal replaces.
    replaceable: usize,
    shown: Option<(Instant, Vec<String>)>,
}

impl Row {
    /// The row of a VM of `status --json`. What isn't known is a dash, never a zero.
    pub(super) fn new(vm: &Value) -> Self {
        let text = |value: &Value| safe(value.as_str().unwrap_or("-"));
        let both = |object: &Value, names: [&str; 2]| {
            let [one, two] = names.map(|name| object[name].as_u64());
            one.zip(two).map_or_else(|| "-".to_owned(), |(one, two)| format!("{one}/{two}"))
        };
        let vcpus = vm["vcpus"].as_array().map_or(&[][..], Vec::as_slice);
        let busy: Option<f64> = vcpus.iter().map(|vcpu| vcpu["busy_ratio"].as_f64()).sum();
        let busy = busy.filter(|_| !vcpus.is_empty());
        Self {
            name: text(&vm["name"]),
            state: text(&vm["state"]),
            vcpu_percent: busy
                .map_or_else(|| "-".to_owned(), |busy| format!("{:.1}", busy * 100.0)),
            packets: both(&vm["network"], ["guest_tx_packets", "guest_rx_packets"]),
            requests: both(&vm["storage"], ["read_ops", "write_ops"]),
            reason: text(&vm["reason"]),
        }
    }

    fn header() -> Self {
        let [name, state, vcpu_percent, packets, requests, reason] =
            ["GUEST", "STATE", "vCPU %", "SENT/GOT", "READ/WRITTEN", "REASON"].map(str::to_owned);
        Self { name, state, vcpu_percent, packets, requests, reason }
    }

    fn line(&self, time: &str) -> String {
        let Self { name, state, vcpu_percent, packets, requests, reason } = self;
        format!(
            "{time:>6}  {name:<8}  {state:<12}  {vcpu_percent:>6}  {packets:>8}  {requests:>12}  {reason}"
        )
    }
}

impl Screen {
    /// The standard output, as it is.
    pub(super) fn new() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let terminal = std::io::stdout().is_terminal() && !set("CI");
        let colours = terminal && !set("NO_COLOR");
        Self { terminal, colours, begin: Instant::now(), replaceable: 0, shown: None }
    }

    /// The heading of a step.
    pub(super) fn step(&mut self, text: &str) {
        let text = if self.colours { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
        self.say("");
        self.say(&text);
    }

    /// A line that stays. What the table showed before stays too.
    pub(super) fn say(&mut self, text: &str) {
        self.replaceable = 0;
        self.shown = None;
        println!("{text}");
    }

    /// Shows the guests, if a state changed or a second is over.
    pub(super) fn table(&mut self, rows: &[Row]) {
        let states: Vec<String> = rows.iter().map(|row| row.state.clone()).collect();
        let header_due = match &self.shown {
            Some((at, shown)) if at.elapsed() < RENEWAL && *shown == states => return,
            shown => self.terminal || shown.is_none(),
        };
        let time = format!("{:.1} s", self.begin.elapsed().as_secs_f64());
        let mut lines = Vec::new();
        if header_due {
            lines.push(Row::header().line("TIME"));
        }
        for row in rows {
            let mut line = row.line(&time);
            if self.terminal {
                // A line that wraps would be two, and the next renewal would miss one.
                line = line.chars().take(columns()).collect();
            }
            lines.push(if self.colours { coloured(&line, &row.state) } else { line });
        }
        let mut out = std::io::stdout().lock();
        // An output that can't be written to is no reason to leave the guests alone.
        if self.terminal && self.replaceable > 0 {
            let _ = write!(out, "\x1b[{}A\x1b[J", self.replaceable);
        }
        for line in &lines {
            let _ = writeln!(out, "{line}");
        }
        let _ = out.flush();
        self.replaceable = lines.len();
        self.shown = Some((Instant::now(), states));
    }
}

fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    match size {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => DEFAULT_COLUMNS,
    }
}

fn coloured(line: &str, state: &str) -> String {
    let colour = match state {
        "alive" => 32,
        "suspect" | "recovering" => 33,
        "crashed" | "failed" => 31,
        _ => return line.to_owned(),
    };
    line.replacen(state, &format!("\x1b[{colour}m{state}\x1b[0m"), 1)
}

/// The text without what could move a terminal's cursor: some of it comes from guests.
pub(super) fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_a_dash() {
        let vm = serde_json::json!({"name": "a", "state": "starting", "vcpus": [], "network": null,
            "storage": {"read_ops": 1, "write_ops": 2}});
        let row = Row::new(&vm);
        assert_eq!((row.vcpu_percent.as_str(), row.packets.as_str()), ("-", "-"));
        assert_eq!((row.requests.as_str(), row.reason.as_str()), ("1/2", "-"));
    }

    #[test]
    fn all_vcpus_of_a_guest_are_summed() {
        let vm = serde_json::json!({"vcpus": [{"busy_ratio": 0.5}, {"busy_ratio": 0.25}]});
        assert_eq!(Row::new(&vm).vcpu_percent, "75.0");
    }

    #[test]
    fn a_guest_cannot_move_the_cursor() {
        assert_eq!(safe("a\x1b[2Jb\n"), "a?[2Jb?");
    }
}
