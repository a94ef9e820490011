//! Monitors that hand out the memory of a guest that panicked.

use std::{
    fs::File,
    io::Write as _,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    panics::usual,
    talk::{GREETING, next_request_with},
};

/// The memory of a guest, and from one byte to the next where it comes slowly.
const MEMORY_BYTES: usize = 3 << 20;
const SLOW_MEMORY: Duration = Duration::from_millis(50);

/// Whether a dump is being written.
static IS_WRITING: AtomicBool = AtomicBool::new(false);

/// Says that the guest panicked, and hands its memory out where that is asked for, a byte at a time without end if it is slow.
pub(super) fn dump(mut client: UnixStream, is_slow: bool) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let (mut bytes, mut pipe) = (Vec::new(), None);
    loop {
        let request = next_request_with(&mut client, &mut bytes, &mut pipe)?;
        let answer = match request["execute"].as_str().unwrap_or_default() {
            "query-dump-guest-memory-capability" => json!({"formats": ["elf"]}),
            "dump-guest-memory" => {
                let mut pipe = File::from(pipe.take().context("no pipe")?);
                IS_WRITING.store(true, Relaxed);
                std::thread::spawn(move || {
                    if is_slow {
                        while pipe.write_all(&[0]).is_ok() {
                            std::thread::sleep(SLOW_MEMORY);
                        }
                    }
                    let _ = pipe.write_all(&vec![0; MEMORY_BYTES]);
                    IS_WRITING.store(false, Relaxed);
                });
                json!({})
            }
            "query-dump" => {
                let status = if IS_WRITING.load(Relaxed) { "active" } else { "completed" };
                json!({"status": status, "completed": 1, "total": MEMORY_BYTES})
            }
            command => usual(command),
        };
        let answer = json!({"return": answer, "id": request["id"]});
        client.write_all(format!("{answer}\r\n").as_bytes())?;
    }
}
