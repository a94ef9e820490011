//! Poses as a QEMU and misbehaves at its monitor: what a QEMU that its guest took over could do.
//!
//! It takes a command line like QEMU's, `-name NAME -qmp unix:PATH,server=on,wait=off -fake MANNER`,
//! listens on the socket, and treats one client after the other in that manner. With `-files N` it has so many files
//! open, with `-threads N` so many threads, and with `-taps N` it makes so many taps again and again. It ends when its
//! standard input does, so that none outlives a test that was killed.

mod floods;
mod lives;
mod masses;
mod memory;
mod panics;
mod talk;

use std::{os::unix::net::UnixListener, time::Duration};

use anyhow::{Context as _, Result, bail};
use floods::{
    babble, cost, flood_events, flood_garbage, greet_only, hoard, nest_deeply, one_endless_line,
    say_nothing,
};
use lives::{
    QUICK_BYTES, SLOW_BYTES, THREADS, hang_up_within_a_reply, live, reset_without_end,
    speak_in_bytes,
};
use memory::dump;
use panics::{
    SLOW, hangs_up_once, late, lie, paint, panicked, slow_reset, turns_to_garbage, verbose,
};

/// One that aborts is found before that.
const ABORTS_AFTER: Duration = Duration::from_secs(4);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option);
        at.and_then(|at| arguments.get(at + 1)).with_context(|| format!("no {option}"))
    };
    let socket = value("-qmp")?.strip_prefix("unix:").context("-qmp is no unix: socket")?;
    let path = socket.split(',').next().unwrap_or(socket);
    let manner = match value("-fake")?.as_str() {
        "silent" => say_nothing,
        "mute" => greet_only,
        "events" => flood_events,
        "garbage" => flood_garbage,
        "endless" => one_endless_line,
        "deep" => nest_deeply,
        "liar" => |client| lie(client, SLOW),
        "lies" => |client| lie(client, Duration::ZERO),
        "bytewise" => |client| speak_in_bytes(client, QUICK_BYTES),
        "dripping" => |client| speak_in_bytes(client, SLOW_BYTES),
        "cut" => hang_up_within_a_reply,
        "painter" => paint,
        "verbose" => |client| panicked(client, verbose),
        "hangs-up" => |client| panicked(client, hangs_up_once),
        "turns" => |client| panicked(client, turns_to_garbage),
        "resets" => reset_without_end,
        "slow-reset" => |client| panicked(client, slow_reset),
        "late" => |client| panicked(client, late),
        "hoards" => hoard,
        "babbles" => babble,
        "costs" => cost,
        "lives" => live,
        "dumps" => |client| dump(client, false),
        "dumps-slowly" => |client| dump(client, true),
        "aborts" => {
            std::thread::sleep(ABORTS_AFTER);
            std::process::abort()
        }
        other => bail!("no manner {other}"),
    };
    let number = |option: &str| value(option).ok().and_then(|number| number.parse().ok());
    let _files = number("-files").map(|count| masses::open(&format!("{path}.files"), count));
    // No client came yet.
    let _ = THREADS.set(number("-threads").map_or_else(Vec::new, masses::start));
    if let Some(count) = number("-taps") {
        masses::remake_taps(count);
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot bind {path}"))?;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // The client hanging up is how each of these ends.
            let _ = manner(client);
        }
    });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
