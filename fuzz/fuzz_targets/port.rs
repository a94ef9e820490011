//! What a guest writes to the port of flatline's agent.
//!
//! However it is cut into pieces, it says the same, and no more of it is kept than a line.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::port(bytes));
