//! `flatline-heartbeat`, the agent for guests: at regular intervals, a frame on each network card that says that the
//! guest's user space lives. The program on the host's tap hears it and takes it off the network.
//!
//! It has neither a standard library nor one of the system, so that it is small, static, and the same everywhere. It is a loop
//! over one wait; what it must never do is block on anything but that: a check that hangs is the very thing to be seen.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod arguments;
mod beat;
mod check;
pub mod sys;

use arguments::Arguments;
use beat::Beats;
use check::{Check, Outcome};
use sys::{Environment, Waited, say};

/// What it prints when asked for help, or told something that it doesn't know.
const USAGE: &str = "\
usage: flatline-heartbeat [--interval SECONDS] [--port PATH] [--name NAME] [--check COMMAND ...]

Sends a heartbeat every SECONDS (1 to 3600; 1) on every network card, or to a virtio-serial port.
With --check, which comes last, only as long as COMMAND exits with 0 within SECONDS; NAME, or the
command's own, is what the host says when it doesn't.
Needs CAP_NET_RAW, or the right to open PATH. On SIGTERM, tells the host that the guest goes down.
";
const OUTPUT: u32 = 1;
const ERROR: u32 = 2;

/// Runs until it is told to end; returns the exit code.
pub fn run(words: &[&str], environment: &Environment<'_>) -> i32 {
    let arguments = match arguments::parse(words) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            say(OUTPUT, &[USAGE]);
            return 0;
        }
        Err(wrong) => {
            say(ERROR, &["flatline-heartbeat: ", wrong.what, ": ", wrong.word, "\n", USAGE]);
            return 2;
        }
    };
    let Some(signals) = sys::Signals::block() else {
        say(ERROR, &["flatline-heartbeat: signals can't be waited for\n"]);
        return 1;
    };
    let mut beats = match Beats::begin(&arguments) {
        Ok(beats) => beats,
        Err(why) => {
            say(ERROR, &["flatline-heartbeat: ", why, "\n"]);
            return 1;
        }
    };
    let check = Check::new(&arguments.check, *environment);
    beat_on(&arguments, &signals, check, &mut beats);
    beats.leave();
    0
}

fn beat_on(
    arguments: &Arguments<'_>,
    signals: &sys::Signals,
    mut check: Check<'_>,
    beats: &mut Beats<'_>,
) {
    let mut next_ms = sys::now_ms();
    loop {
        let now_ms = sys::now_ms();
        let outcome = if now_ms >= next_ms {
            // A guest that was paused or suspended goes on from now, and makes nothing up for.
            next_ms = now_ms + u64::from(arguments.interval_ms);
            check.due()
        } else {
            check.look()
        };
        match outcome {
            Outcome::Well => beats.beat(),
            Outcome::Failed => beats.check_failed(),
            Outcome::Open => {}
        }
        if signals.wait(next_ms.saturating_sub(sys::now_ms())) == Waited::Told {
            check.end();
            return;
        }
    }
}
