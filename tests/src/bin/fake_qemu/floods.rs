//! Monitors that say nothing, or too much.

use std::{io::Write as _, os::unix::net::UnixStream, time::Duration};

use anyhow::Result;
use serde_json::json;

use super::talk::{GREETING, behave};

/// Events at a time: writing each by itself would make the flood a brook.
const EVENTS_A_WRITE: usize = 1000;
/// Deeper than any parser should follow, within four megabytes.
pub(super) const DEPTH: usize = 100_000;
/// Just less than the longest message that is taken.
const HOARD_BYTES: usize = 4_000_000;
/// Messages as long as are taken without having been asked for, and so many of them that they are a flood.
const BABBLE_BYTES: usize = 16_000;
const BABBLES_EVERY: Duration = Duration::from_millis(4);
/// The same of members, and their time: sixty within a second are less than the mebibyte from which on they are a flood.
const COSTLY_BYTES: usize = 16_000;
const COSTLY_EVERY: Duration = Duration::from_millis(17);

pub(super) fn say_nothing(mut client: UnixStream) -> Result<()> {
    Ok(std::io::copy(&mut client, &mut std::io::sink()).map(|_| ())?)
}

pub(super) fn greet_only(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    say_nothing(client)
}

/// Behaves until the client trusts it, then reports that the VM stopped, over and over.
pub(super) fn flood_events(mut client: UnixStream) -> Result<()> {
    behave(&mut client)?;
    let event = json!({"timestamp": {"seconds": 1, "microseconds": 1}, "event": "STOP"});
    let events = format!("{event}\r\n").repeat(EVENTS_A_WRITE);
    loop {
        client.write_all(events.as_bytes())?;
    }
}

/// Behaves until the client trusts it, and begins a message that has no end.
pub(super) fn hoard(mut client: UnixStream) -> Result<()> {
    behave(&mut client)?;
    client.write_all(b"{\"event\": \"")?;
    client.write_all(&vec![b'x'; HOARD_BYTES])?;
    say_nothing(client)
}

/// Behaves until the client trusts it, and then says what it was not asked, in long messages that say nothing.
pub(super) fn babble(mut client: UnixStream) -> Result<()> {
    behave(&mut client)?;
    let message = format!("{{\"x\": [{}0]}}\r\n", "0,".repeat(BABBLE_BYTES / 2));
    loop {
        client.write_all(message.as_bytes())?;
        std::thread::sleep(BABBLES_EVERY);
    }
}

/// Behaves until the client trusts it, and then says what it was not asked, just less than is a flood: all of it members
/// of members, which cost most to read.
pub(super) fn cost(mut client: UnixStream) -> Result<()> {
    behave(&mut client)?;
    let members = "[],".repeat(COSTLY_BYTES / 3);
    let timestamp = json!({"seconds": 1, "microseconds": 1});
    let message =
        format!("{{\"timestamp\": {timestamp}, \"event\": \"X\", \"data\": [{members}0]}}\r\n");
    loop {
        client.write_all(message.as_bytes())?;
        std::thread::sleep(COSTLY_EVERY);
    }
}

pub(super) fn flood_garbage(mut client: UnixStream) -> Result<()> {
    let garbage = vec![0xff; 1 << 16];
    loop {
        client.write_all(&garbage)?;
    }
}

pub(super) fn one_endless_line(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    client.write_all(b"{\"event\": \"")?;
    let name = vec![b'x'; 1 << 16];
    loop {
        client.write_all(&name)?;
    }
}

pub(super) fn nest_deeply(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let message = format!("{}1{}\r\n", "{\"a\":".repeat(DEPTH), "}".repeat(DEPTH));
    loop {
        client.write_all(message.as_bytes())?;
    }
}
