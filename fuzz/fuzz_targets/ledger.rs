//! Which VMs are left alone and which reset themselves when, as that is read back from the state directory.
//!
//! One that is torn is reported, and holds all VMs.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flatline::fuzzing::ledger(bytes));
