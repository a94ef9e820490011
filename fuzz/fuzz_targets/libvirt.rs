//! What comes from libvirt's socket: headers, answers, events and refusals.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::libvirt(bytes));
