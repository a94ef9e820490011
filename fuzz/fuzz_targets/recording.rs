//! A recording, as `replay` is given it.
//!
//! It may come from anywhere, and the state machine that judges it adds to the moments that stand in it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::recording(bytes));
