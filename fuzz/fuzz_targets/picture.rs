//! The PPM that QEMU's `screendump` writes, from a QEMU that may have been taken over.
//!
//! A header must not have what it claims allocated, and all that is within bounds comes out as a PNG.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::picture(bytes));
