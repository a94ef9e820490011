//! The files of `/proc/PID` that hold text which others choose: `stat`, `status`, `fdinfo`, `mountinfo`.
//!
//! Names of processes, threads and mount points are free text.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::proc(bytes));
