//! The daemon's configuration file.
//!
//! An error must name a line that the file has.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::config(bytes));
