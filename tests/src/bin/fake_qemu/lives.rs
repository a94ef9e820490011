//! Monitors of guests that run, which say so in a way of their own.

use std::{
    io::{BufReader, Write as _},
    os::unix::net::UnixStream,
    sync::OnceLock,
    time::Duration,
};

use anyhow::Result;
use serde_json::json;

use super::talk::{GREETING, answer_next, next_request};

/// From one byte to the next, of one that is patient and of one whose greeting takes a quarter of a minute.
pub(super) const QUICK_BYTES: Duration = Duration::from_micros(500);
pub(super) const SLOW_BYTES: Duration = Duration::from_millis(150);
/// From one reset of the guest's own to the next: no burst, which would count as one.
const RESETS_APART: Duration = Duration::from_millis(2100);

/// What it says are its vCPUs.
pub(super) static THREADS: OnceLock<Vec<i32>> = OnceLock::new();

/// Says that the guest runs, as one that has so many vCPUs.
pub(super) fn live(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        answer_next(&mut client, &mut requests, |command| match command {
            "query-status" => json!({"status": "running", "singlestep": false, "running": true}),
            "query-cpus-fast" => {
                let threads = THREADS.get().into_iter().flatten().enumerate();
                threads.map(|(n, id)| json!({"cpu-index": n, "thread-id": id})).collect()
            }
            command if command.starts_with("query-") => json!([]),
            _ => json!({}),
        })?;
    }
}

/// Says that the guest runs, and again and again that it reset itself.
pub(super) fn reset_without_end(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut says = Some(client.try_clone()?);
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        answer_next(&mut client, &mut requests, |command| match command {
            "query-status" => json!({"status": "running", "singlestep": false, "running": true}),
            "query-cpus-fast" => json!([]),
            _ => json!({}),
        })?;
        // No event comes before the first command is answered.
        if let Some(mut client) = says.take() {
            std::thread::spawn(move || {
                let (at, data) = (json!({"seconds": 1, "microseconds": 1}), json!({"guest": true}));
                let event = json!({"timestamp": at, "event": "RESET", "data": data});
                while client.write_all(format!("{event}\r\n").as_bytes()).is_ok() {
                    std::thread::sleep(RESETS_APART);
                }
            });
        }
    }
}

/// Says that the guest runs, a byte at a time.
pub(super) fn speak_in_bytes(mut client: UnixStream, pause: Duration) -> Result<()> {
    let say = |client: &mut UnixStream, text: &str| -> Result<()> {
        for byte in text.bytes() {
            client.write_all(&[byte])?;
            std::thread::sleep(pause);
        }
        Ok(())
    };
    say(&mut client, GREETING)?;
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        let request = next_request(&mut requests)?;
        let status = json!({"status": "running", "singlestep": false, "running": true});
        let answer = if request["execute"] == "query-status" { status } else { json!({}) };
        say(&mut client, &format!("{}\r\n", json!({"return": answer, "id": request["id"]})))?;
    }
}

/// Answers twice as it should, and is gone in the middle of the third answer.
pub(super) fn hang_up_within_a_reply(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut requests = BufReader::new(client.try_clone()?);
    for answer in [json!({}), json!({"status": "running", "singlestep": false, "running": true})] {
        let id = next_request(&mut requests)?["id"].clone();
        client.write_all(format!("{}\r\n", json!({"return": answer, "id": id})).as_bytes())?;
    }
    next_request(&mut requests)?;
    Ok(client.write_all(b"{\"return\": [{\"cpu-ind")?)
}
