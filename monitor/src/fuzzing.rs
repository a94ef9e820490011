//! The door through which fuzzers and unit tests throw bytes at the parsers, private ones too. It is there for
//! them alone: `cargo xtask fuzz` sets `cfg(fuzzing)`, and no other build has this module.
//!
//! Each entry takes any bytes, must come back, and states what must hold of whatever is made of them. A new
//! one is a function here with a row in the table, and in `fuzz/` a target of one line with a few seeds.

use bytes::BytesMut;
use tokio_util::codec::Decoder;

use crate::{
    config::{Config, ConfigError},
    qmp::{
        MAX_TEXT_CHARS, QmpEvent,
        codec::{CodecError, Message, QmpCodec, SkippedKind},
        operating_system, parse_arm_registers, parse_lapic, parse_pic, parse_registers,
    },
    sample::{GuestMemory, Strain},
};

/// A name, and what takes the bytes.
pub type Entry = (&'static str, fn(&[u8]));

/// All of them; the names are those of the targets and of the folders of their seeds.
pub const ENTRIES: &[Entry] = &[
    ("command_line", command_line),
    ("config", config),
    ("incident", incident),
    ("ledger", ledger),
    ("picture", picture),
    ("port", port),
    ("proc", proc),
    ("qmp", qmp),
    ("recording", recording),
    ("registers", registers),
];

/// A QEMU's command line.
pub fn command_line(bytes: &[u8]) {
    crate::discover::fuzzing::command_line(bytes);
}

/// The configuration file. An error names a line that the file has.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match Config::parse(&text, "fuzzed.toml") {
        Ok(config) => {
            let policy = config.policy_for("any");
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
    crate::recover::evidence::fuzz(bytes);
}

/// What a guest writes to the port of flatline's agent: in one piece and byte by byte it says the same.
pub fn port(bytes: &[u8]) {
    crate::sample::port::fuzzing::port(bytes);
}

/// Files of `/proc/PID`.
pub fn proc(bytes: &[u8]) {
    crate::discover::fuzzing::proc(bytes);
}

/// What comes from a QMP socket: in one piece and byte by byte it is the same messages.
pub fn qmp(bytes: &[u8]) {
    let whole = messages(bytes, bytes.len().max(1));
    // Some pieces, which the bytes themselves choose, so that an input that fails fails again.
    let piece = bytes.iter().fold(1_usize, |sum, byte| (sum * 31 + usize::from(*byte)) % 97) + 1;
    let pieces = messages(bytes, piece);
    assert_eq!(whole.1, pieces.1, "whole and in pieces of {piece}");
    assert_eq!(whole.0, pieces.0, "whole and in pieces of {piece}");
    for message in whole.0 {
        crate::qmp::fuzzing::replies(&message);
        if let Message::Return { value, .. } = &message {
            statistics(value);
        }
        if let Message::Event { name, data, .. } = &message {
            check_event(&QmpEvent::parse(name, data));
        }
        if let Message::Skipped { kind: SkippedKind::Event(name), .. } = message {
            check_event(&QmpEvent::Other(name));
        }
    }
}

/// A balloon's statistics.
fn statistics(value: &serde_json::Value) {
    const NOW: u64 = 1 << 32;
    let Some(told) = GuestMemory::parse(value, NOW) else { return };
    assert!(told.told_at <= NOW && told.used() <= told.total, "{told:?}");
    let before = GuestMemory { told_at: 0, major_faults: Some(0), ..told };
    if let Some(strain) = Strain::between(&before, &told) {
        assert!((0.0..=1.0).contains(&strain.available), "{strain:?}");
        assert!(strain.major_faults.is_finite(), "{strain:?}");
    }
}

/// The messages, and the error that ended them.
fn messages(bytes: &[u8], piece: usize) -> (Vec<Message>, Option<String>) {
    let (mut codec, mut buffer, mut messages) = (QmpCodec::default(), BytesMut::new(), Vec::new());
    for part in bytes.chunks(piece) {
        buffer.extend_from_slice(part);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    let told = match error {
                        // How far serde_json came is told in lines, which are the same.
                        CodecError::Json(source) => source.to_string(),
                        other => other.to_string(),
                    };
                    return (messages, Some(told));
                }
            }
        }
    }
    (messages, None)
}

fn check_event(event: &QmpEvent) {
    let text = match event {
        QmpEvent::GuestPanicked { action: text }
        | QmpEvent::Watchdog { action: text }
        | QmpEvent::BlockIoError { action: text }
        | QmpEvent::Shutdown { reason: text, .. }
        | QmpEvent::MigrationStatus(text)
        | QmpEvent::Other(text) => text.as_str(),
        QmpEvent::GuestCrashloaded
        | QmpEvent::Reset { .. }
        | QmpEvent::Stop
        | QmpEvent::Resume
        | QmpEvent::Suspend
        | QmpEvent::Wakeup
        | QmpEvent::DeviceDeleted => "",
    };
    assert!(text.len() <= MAX_TEXT_CHARS && text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
}

/// A recording, which anybody may hand to `replay`.
pub fn recording(bytes: &[u8]) {
    crate::report::recording::fuzzing::recording(bytes);
}

/// The text of `info registers -a`, of `info lapic`, and of `info pic`.
pub fn registers(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(vcpus) = parse_registers(&text) {
        assert!(!vcpus.is_empty() && vcpus.iter().all(|vcpu| vcpu.cpl <= 3));
    }
    if let Ok(vcpus) = parse_arm_registers(&text) {
        assert!(!vcpus.is_empty());
        // One that runs user code was started.
        assert!(!vcpus.iter().any(|vcpu| vcpu.user && vcpu.is_off()));
    }
    assert_eq!(operating_system(&text), operating_system(&text));
    // Whatever it says, it is of that text alone.
    assert_eq!(parse_lapic(&text), parse_lapic(&text));
    assert_eq!(parse_pic(&text), parse_pic(&text));
}

#[cfg(test)]
mod tests;
