//! The door through which fuzzers and unit tests throw bytes at the parsers, private ones too. It is there for
//! them alone.
//!
//! Each entry takes any bytes, must come back, and states what must hold of what is made of them.

use bytes::BytesMut;
use tokio_util::codec::Decoder;

pub use crate::discover::fuzzing::{command_line, proc};
use crate::libvirt::fuzz as parts;

use crate::{
    qmp::{
        ArmLevel, QmpEvent,
        codec::{CodecError, Message, QmpCodec, SkippedKind},
        commands::fuzz as replies,
        operating_system, parse_arm_registers, parse_lapic, parse_pic, parse_registers,
    },
    text::MAX_TEXT_CHARS,
};

/// What comes from a QMP socket: in one piece and byte by byte it is the same messages.
pub fn qmp(bytes: &[u8]) {
    let whole = messages(bytes, bytes.len().max(1));
    // Some pieces, which the bytes themselves choose, so that an input that fails fails again.
    let piece = bytes.iter().fold(1_usize, |sum, byte| (sum * 31 + usize::from(*byte)) % 97) + 1;
    let pieces = messages(bytes, piece);
    assert_eq!(whole.1, pieces.1, "whole and in pieces of {piece}");
    assert_eq!(whole.0, pieces.0, "whole and in pieces of {piece}");
    for message in whole.0 {
        if let Message::Return { value, .. } = &message {
            replies(value);
        }
        if let Message::Event { name, data, .. } = &message {
            check_event(&QmpEvent::parse(name, data));
        }
        if let Message::Skipped { kind: SkippedKind::Event(name), .. } = message {
            check_event(&QmpEvent::Other(name));
        }
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

/// The bodies of libvirt's messages: an answer, an event, a refusal.
pub fn libvirt(bytes: &[u8]) {
    if let Some((event, words)) = parts(bytes) {
        event.iter().for_each(check_event);
        assert!(words.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{words:?}");
    }
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
        assert!(!vcpus.iter().any(|vcpu| vcpu.level == ArmLevel::User && vcpu.is_off()));
    }
    assert_eq!(operating_system(&text), operating_system(&text));
    // Whatever it says, it is of that text alone.
    assert_eq!(parse_lapic(&text), parse_lapic(&text));
    assert_eq!(parse_pic(&text), parse_pic(&text));
}
