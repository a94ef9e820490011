//! What QEMU answers when it is asked for the statistics of a balloon.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::balloon(bytes));
