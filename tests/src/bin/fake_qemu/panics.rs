//! Monitors of guests that panicked, which are asked for evidence and told to reset.

use std::{
    fs::File,
    io::{BufReader, Write as _},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    floods::DEPTH,
    talk::{GREETING, answer_next, next_request, next_request_with},
};

/// How long a reset takes that is slow.
const SLOW_RESET: Duration = Duration::from_secs(8);
/// How long an answer takes that is late.
const LATE: Duration = Duration::from_secs(20);
/// How long the liar takes for each answer: below any limit for one command.
pub(super) const SLOW: Duration = Duration::from_secs(1);
/// What no screen ever showed, and how much the painter claims to have written of it.
const PICTURE: &[u8] = b"P6\n100000 100000\n255\n";
const PICTURE_BYTES: u64 = 1 << 40;

/// Says that the guest panicked whatever is done about it, and takes so long over each answer.
pub(super) fn lie(mut client: UnixStream, takes: Duration) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        answer_next(&mut client, &mut requests, |command| {
            std::thread::sleep(takes);
            match command {
                "query-status" => {
                    json!({"status": "guest-panicked", "singlestep": false, "running": false})
                }
                "query-cpus-fast" => json!([]),
                _ => json!({}),
            }
        })?;
    }
}

/// Says that the guest panicked, and draws a picture of an absurd size of it.
pub(super) fn paint(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let (mut bytes, mut canvas) = (Vec::new(), None);
    loop {
        let request = next_request_with(&mut client, &mut bytes, &mut canvas)?;
        let answer = match request["execute"].as_str() {
            Some("query-status") => {
                json!({"status": "guest-panicked", "singlestep": false, "running": false})
            }
            Some("query-cpus-fast") => json!([]),
            Some("add-fd") => json!({"fdset-id": 1, "fd": 3}),
            Some("screendump") => {
                let mut canvas = canvas.take().map(File::from).context("nothing to paint on")?;
                canvas.write_all(PICTURE)?;
                canvas.set_len(PICTURE_BYTES)?;
                json!({})
            }
            _ => json!({}),
        };
        let answer = json!({"return": answer, "id": request["id"]});
        client.write_all(format!("{answer}\r\n").as_bytes())?;
    }
}

/// Whether it was told to reset the guest, and then to let it go on.
static WAS_RESET: AtomicBool = AtomicBool::new(false);

static GOES_ON: AtomicBool = AtomicBool::new(false);

/// Whether it has misbehaved once.
static HAS_ONCE: AtomicBool = AtomicBool::new(false);

/// What comes of one command.
pub(super) enum Says {
    /// This is its result, as JSON.
    Text(String),
    /// The result that a QEMU in good health gives.
    Usual,
    /// These bytes, and then the connection ends.
    Last(&'static [u8]),
}

/// Says that the guest panicked until that is reset and let go on, as a QEMU does, but for what `says` has it do.
pub(super) fn panicked(mut client: UnixStream, says: fn(&str) -> Says) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        let request = next_request(&mut requests)?;
        let command = request["execute"].as_str().unwrap_or_default();
        let result = match says(command) {
            Says::Text(text) => text,
            Says::Usual => usual(command).to_string(),
            Says::Last(bytes) => return Ok(client.write_all(bytes)?),
        };
        client.write_all(
            format!("{{\"return\": {result}, \"id\": {}}}\r\n", request["id"]).as_bytes(),
        )?;
    }
}

pub(super) fn usual(command: &str) -> Value {
    match command {
        "query-status" => {
            let status = match (WAS_RESET.load(Relaxed), GOES_ON.load(Relaxed)) {
                (false, _) => "guest-panicked",
                (true, false) => "prelaunch",
                (true, true) => "running",
            };
            json!({"status": status, "singlestep": false, "running": status == "running"})
        }
        "system_reset" => {
            WAS_RESET.store(true, Relaxed);
            json!({})
        }
        "cont" => {
            GOES_ON.store(true, Relaxed);
            json!({})
        }
        command if command.starts_with("query-") => json!([]),
        _ => json!({}),
    }
}

/// Answers questions at a length that no client takes: by its bytes, its members or its depth.
pub(super) fn verbose(command: &str) -> Says {
    match command {
        "human-monitor-command" => Says::Text(format!("\"{}\"", "x".repeat(6 << 20))),
        "query-block" => Says::Text(format!("[{}0]", "0,".repeat(1_000_000))),
        "query-named-block-nodes" => Says::Text("[".repeat(DEPTH) + &"]".repeat(DEPTH)),
        _ => Says::Usual,
    }
}

/// Is gone, once, when it is asked for its disks.
pub(super) fn hangs_up_once(command: &str) -> Says {
    if command == "query-block" && !HAS_ONCE.swap(true, Relaxed) {
        return Says::Last(b"{\"return\": [{\"device\"");
    }
    Says::Usual
}

/// Has no QMP to say when it is asked for its disks.
pub(super) fn turns_to_garbage(command: &str) -> Says {
    if command == "query-block" { Says::Last(b"\xff\xff") } else { Says::Usual }
}

/// Takes longer for an account of its disks than a client waits for all that comes after it.
pub(super) fn late(command: &str) -> Says {
    if command == "query-block" {
        std::thread::sleep(LATE);
    }
    Says::Usual
}

/// Takes longer for a reset than a client waits for one command.
pub(super) fn slow_reset(command: &str) -> Says {
    if command == "system_reset" {
        std::thread::sleep(SLOW_RESET);
    }
    Says::Usual
}
