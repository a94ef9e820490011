//! `flatline-heartbeat`, the agent for guests: at regular intervals, a frame on each network card that says that the
//! guest's user space lives. The program on the host's tap hears it and takes it off the network.
//!
//! It has no standard library, so that it is small, static, and the same with every C library. What it does is a loop
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
use check::Check;
use sys::{Waited, say};

/// What it prints when asked for help, or told something that it doesn't know.
const USAGE: &str = "\
usage: flatline-heartbeat [--interval SECONDS] [--port PATH] [--name NAME] [--check COMMAND ...]

Sends a heartbeat every SECONDS (1 to 3600; 1) on every network card, or to a virtio-serial port.
With --check, which comes last, only as long as COMMAND exits with 0 within SECONDS; NAME, or the
command's own, is what the host says when it doesn't.
Needs CAP_NET_RAW, or the right to open PATH. On SIGTERM, tells the host that the guest goes down.
";

/// Runs until it is told to end; returns the exit code.
pub fn run(words: &[&str]) -> i32 {
    let arguments = match arguments::parse(words) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            say(1, &[USAGE]);
            return 0;
        }
        Err(wrong) => {
            say(2, &["flatline-heartbeat: ", wrong.what, ": ", wrong.word, "\n", USAGE]);
            return 2;
        }
    };
    let Some(signals) = sys::Signals::block() else {
        say(2, &["flatline-heartbeat: signals can't be waited for\n"]);
        return 1;
    };
    let mut beats = match Beats::begin(&arguments) {
        Ok(beats) => beats,
        Err(why) => {
            say(2, &["flatline-heartbeat: ", why, "\n"]);
            return 1;
        }
    };
    beat_on(&arguments, &signals, &mut beats);
    beats.leave();
    0
}

fn beat_on(arguments: &Arguments<'_>, signals: &sys::Signals, beats: &mut Beats<'_>) {
    let mut check = Check::new(&arguments.check);
    let mut next_ms = sys::now_ms();
    loop {
        let now_ms = sys::now_ms();
        if now_ms >= next_ms {
            // A guest that was paused or suspended goes on from now, and makes nothing up for.
            next_ms = now_ms + u64::from(arguments.interval_ms);
            check.begin(next_ms);
            if check.is_none() {
                beats.beat();
            }
        }
        match signals.wait(check.wait_ms(now_ms).min(next_ms.saturating_sub(now_ms))) {
            Waited::Told => {
                check.end();
                return;
            }
            Waited::ChildEnded | Waited::Long => {}
        }
        match check.outcome(sys::now_ms()) {
            Some(true) => beats.beat(),
            Some(false) => beats.check_failed(),
            None => {}
        }
    }
}
