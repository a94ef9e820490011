//! QEMU's own trace of the QMP commands that it takes.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Guest;
use crate::qmp;

/// In each line of QEMU's trace of the commands that it takes.
const TAKEN: &str = "handle_qmp_command";

impl Guest {
    /// When QEMU first took this QMP command, from any client, by its own trace; `None` if it never did, or does not
    /// trace them ([`GuestConfig::traces_commands`](crate::machine::GuestConfig::traces_commands)).
    ///
    /// # Errors
    ///
    /// If the trace can't be read, or has another shape.
    pub fn took_command_at(&self, command: &str) -> Result<Option<SystemTime>> {
        let Some(trace) = self.trace()? else { return Ok(None) };
        let found = first_taken(&trace, command);
        found.with_context(|| format!("guest {}: no such line is known: {trace}", self.name))
    }

    /// How many QMP commands QEMU took so far, from all clients, by its own trace.
    ///
    /// # Errors
    ///
    /// As [`Guest::times_taken`].
    pub fn commands_taken(&self) -> Result<usize> {
        self.times_taken(TAKEN)
    }

    /// How often QEMU took a QMP command that has `wanted` in it, by its own trace.
    ///
    /// # Errors
    ///
    /// If it does not trace them ([`GuestConfig::traces_commands`](crate::machine::GuestConfig::traces_commands)), or the trace can't be read.
    pub fn times_taken(&self, wanted: &str) -> Result<usize> {
        let trace = self.trace()?.with_context(|| format!("guest {}: no trace", self.name))?;
        Ok(trace.lines().filter(|line| line.contains(wanted)).count())
    }

    fn trace(&self) -> Result<Option<String>> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path)
                .with_context(|| format!("guest {}: {}", self.name, path.display()))
        };
        self.trace_path.as_ref().map(read).transpose()
    }

    /// How long after the first of these `events` with this name QEMU took a `system_reset`, if there was one.
    ///
    /// # Errors
    ///
    /// As [`Self::took_command_at`].
    pub fn reset_after(&self, name: &str, events: &[Value]) -> Result<Option<Duration>> {
        let Some(event) = events.iter().find(|event| event["event"] == name) else {
            return Ok(None);
        };
        let Some(taken) = self.took_command_at("system_reset")? else { return Ok(None) };
        Ok(taken.duration_since(qmp::time_of(event)?).ok())
    }
}

/// The moment of the first line with this command, as `PID@SECONDS.MICROSECONDS:handle_qmp_command mon ADDRESS req:
/// JSON`; an error if a line with it has no such moment.
fn first_taken(trace: &str, command: &str) -> Result<Option<SystemTime>> {
    let wanted = format!("\"{command}\"");
    let is_it = |line: &&str| line.contains(TAKEN) && line.contains(&wanted);
    let Some(line) = trace.lines().find(is_it) else { return Ok(None) };
    let moment = line.split(['@', ':']).nth(1).context("no moment")?;
    let (seconds, micros) = moment.split_once('.').context("no microseconds")?;
    let since_epoch =
        Duration::from_secs(seconds.parse()?) + Duration::from_micros(micros.parse()?);
    Ok(Some(SystemTime::UNIX_EPOCH + since_epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_tells_when_a_command_was_first_taken() {
        let trace = "\
7@1795574657.169888:handle_qmp_command mon 0x55 req: {\"execute\": \"qmp_capabilities\"}
7@1795574657.000009:handle_qmp_command mon 0x55 req: {\"execute\": \"system_reset\", \"id\": 3}
7@1795574658.000009:handle_qmp_command mon 0x55 req: {\"execute\": \"system_reset\", \"id\": 4}
";
        let taken = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_574_657_000_009);
        assert_eq!(first_taken(trace, "system_reset").unwrap(), Some(taken));
        assert_eq!(first_taken(trace, "quit").unwrap(), None);
        assert!(first_taken("handle_qmp_command \"quit\"", "quit").is_err());
    }
}
