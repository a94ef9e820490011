//! The record of an incident, as it is read back from the state directory.
//!
//! A torn or foreign one is reported and left in place.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::incident(bytes));
