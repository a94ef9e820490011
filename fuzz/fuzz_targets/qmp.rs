//! What comes from a QMP socket: its framing, its messages, its events and its replies.
//!
//! Whatever the pieces in which it comes, it is the same messages.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::qmp(bytes));
