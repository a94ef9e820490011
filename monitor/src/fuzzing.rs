//! Entry points by which fuzzers and unit tests hand any bytes to the parsers, private ones too. They are there for these
//! alone: `cargo xtask fuzz` sets `cfg(fuzzing)`, and no other build has this module.
//!
//! Each entry takes any bytes, must come back, and states what must hold of whatever is made of them. A new
//! one is a function here with a row in the table, and in `fuzz/` a target of one line with a few seeds.

pub use flatline_detector::recording::fuzzing::recording;
pub use flatline_qemu::fuzzing::{command_line, libvirt, proc, qmp, registers};

use crate::config::{Config, ConfigError};
use flatline_samples::{GuestMemory, Strain};

/// A name, and what takes the bytes.
pub type Entry = (&'static str, fn(&[u8]));

/// All of them; the names are those of the targets and of the folders of their seeds.
pub const ENTRIES: &[Entry] = &[
    ("balloon", balloon),
    ("command_line", command_line),
    ("config", config),
    ("incident", incident),
    ("ledger", ledger),
    ("libvirt", libvirt),
    ("picture", picture),
    ("port", port),
    ("proc", proc),
    ("qmp", qmp),
    ("recording", recording),
    ("registers", registers),
];

/// The configuration file. An error names a line that the file has.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match Config::parse(&text, "fuzzed.toml") {
        Ok(config) => {
            let policy = config.policy_for("any", None);
            assert!(policy.flat_for >= config.sample_interval * 2, "{policy:?}");
            assert!(policy.unconfirmed_flat_for >= policy.flat_for, "{policy:?}");
        }
        Err(ConfigError::Invalid { line, .. }) => {
            assert!((1..=text.lines().count().max(1) + 1).contains(&line), "line {line}");
        }
        Err(error) => panic!("parsing does no I/O: {error}"),
    }
}

/// An incident's record.
pub fn incident(bytes: &[u8]) {
    crate::storage::incidents::fuzzing::record(bytes);
}

/// What outlives the daemon beside incidents.
pub fn ledger(bytes: &[u8]) {
    crate::storage::ledger::fuzzing::ledger(bytes);
}

/// What QEMU writes when it is asked for a picture of its console.
pub fn picture(bytes: &[u8]) {
    crate::recovery::evidence::fuzz(bytes);
}

/// What a guest writes to the port of flatline's agent: in one piece and byte by byte it says the same.
pub fn port(bytes: &[u8]) {
    crate::sampler::port::fuzzing::port(bytes);
}

/// What QEMU answers when it is asked for a balloon's statistics.
pub fn balloon(bytes: &[u8]) {
    const NOW: u64 = 1 << 32;
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    let Some(told) = GuestMemory::parse(&value, NOW) else { return };
    assert!(told.told_at <= NOW && told.used() <= told.total, "{told:?}");
    let before = GuestMemory { told_at: 0, major_faults: Some(0), ..told };
    if let Some(strain) = Strain::between(&before, &told) {
        assert!((0.0..=1.0).contains(&strain.available), "{strain:?}");
        assert!(strain.major_faults.is_finite(), "{strain:?}");
    }
}

#[cfg(test)]
mod tests;
