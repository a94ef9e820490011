//! A small blocking QMP client: how a test steers a guest past the daemon.
//!
//! On a socket of its own, because one QMP socket serves one client, and the daemon needs the other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::interrupt;

/// A stopped or frozen QEMU does not answer: no reply within this is an error.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one read blocks before the client looks for a signal.
const READ_TIMEOUT: Duration = Duration::from_millis(100);

/// A connection past its greeting.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
    events: Vec<Value>,
    last_id: u64,
}

impl Qmp {
    /// Takes a fresh connection through its greeting.
    ///
    /// # Errors
    ///
    /// If the socket is busy (no greeting), or QEMU refuses.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            line: Vec::new(),
            events: Vec::new(),
            last_id: 0,
        };
        let greeting = qmp.read(Instant::now() + REPLY_TIMEOUT)?.context("no QMP greeting")?;
        if greeting.get("QMP").is_none() {
            bail!("not a QMP greeting: {greeting}");
        }
        qmp.execute("qmp_capabilities", &Value::Null)?;
        Ok(qmp)
    }

    /// Carries out a command (`arguments` null: none) and returns what stands under `return`.
    ///
    /// # Errors
    ///
    /// If QEMU refuses (with its words), hangs up, or does not answer within 10 s.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.last_id += 1;
        let mut request = json!({ "execute": command, "id": self.last_id });
        if !arguments.is_null() {
            request["arguments"] = arguments.clone();
        }
        let text = format!("{request}\n");
        self.stream.get_mut().write_all(text.as_bytes()).context("cannot write to QMP")?;
        let end = Instant::now() + REPLY_TIMEOUT;
        loop {
            let Some(message) = self.read(end)? else {
                bail!("QMP: no reply to {command} within {REPLY_TIMEOUT:?}");
            };
            if message.get("event").is_some() {
                self.events.push(message);
                continue;
            }
            // A reply that came after its command was given up on.
            if message.get("id").and_then(Value::as_u64) != Some(self.last_id) {
                continue;
            }
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = message.get("error") {
                return Err(anyhow!("QMP: {command}: {error}"));
            }
        }
    }

    /// The events that came since the last call, oldest first. It waits for none.
    ///
    /// # Errors
    ///
    /// If QEMU hung up, after the last event was fetched.
    pub fn take_events(&mut self) -> Result<Vec<Value>> {
        loop {
            match self.read(Instant::now()) {
                Ok(Some(message)) if message.get("event").is_some() => self.events.push(message),
                Ok(Some(_)) => {}
                Err(error) if self.events.is_empty() => return Err(error),
                // Its last words come before the news that it hung up.
                Ok(None) | Err(_) => return Ok(std::mem::take(&mut self.events)),
            }
        }
    }

    /// The next message, or nothing until `end`.
    fn read(&mut self, end: Instant) -> Result<Option<Value>> {
        loop {
            // What was read of a line before a timeout stays in `line`.
            match self.stream.read_until(b'\n', &mut self.line) {
                Ok(_) if self.line.ends_with(b"\n") => {
                    let message = serde_json::from_slice(&self.line).context("QMP sent no JSON");
                    self.line.clear();
                    return message.map(Some);
                }
                Ok(_) => bail!("QMP: QEMU hung up"),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("cannot read from QMP"),
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            interrupt::check()?;
        }
    }
}

/// When an event took place, by QEMU's account, to the microsecond.
///
/// # Errors
///
/// If it doesn't say so.
pub fn time_of(event: &Value) -> Result<SystemTime> {
    let at = &event["timestamp"];
    let part = |field: &str| at[field].as_u64().with_context(|| format!("no {field} in {event}"));
    let since_epoch =
        Duration::from_secs(part("seconds")?) + Duration::from_micros(part("microseconds")?);
    Ok(SystemTime::UNIX_EPOCH + since_epoch)
}
