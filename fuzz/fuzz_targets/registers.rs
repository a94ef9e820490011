//! The text of `info registers -a` and `info lapic`, from a QEMU that may have been taken over.
//!
//! A field that is missing is an error, and never a zero.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::registers(bytes));
