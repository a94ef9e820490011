//! A QEMU's command line, as `/proc/PID/cmdline` has it.
//!
//! The user that runs a QEMU chooses it, and a guest that took its QEMU over may rewrite it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::command_line(bytes));
