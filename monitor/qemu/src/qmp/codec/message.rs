//! What comes of the bytes: messages, and what is wrong with them.

use std::{fmt, io};

use serde_json::Value;

use super::{
    MAX_COMMAND_BYTES, MAX_DEPTH, MAX_MESSAGE_BYTES, MAX_MESSAGE_MEMBERS, MAX_SKIPPED_BYTES,
    MAX_UNASKED_BYTES,
};
use crate::text::{MAX_TEXT_CHARS, printable};

/// What is wrong with the bytes that came, or with the command that is to go. After an error of the
/// decoder the stream is out of step and must be closed.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The connection itself failed.
    #[error("cannot read or write the QMP connection")]
    Io(#[from] io::Error),
    /// Something else than white space stands outside an object.
    #[error("byte 0x{byte:02x} where a QMP message should start")]
    Garbage {
        /// The first such byte.
        byte: u8,
    },
    /// A message is longer than `MAX_SKIPPED_BYTES`.
    #[error("a QMP message of more than {MAX_SKIPPED_BYTES} bytes")]
    TooLarge,
    /// The braces balance, but it is no JSON.
    #[error("a QMP message that is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// A command is longer than `MAX_COMMAND_BYTES`.
    #[error("a QMP command of {bytes} bytes; at most {MAX_COMMAND_BYTES} are sent")]
    CommandTooLarge {
        /// Its length.
        bytes: usize,
    },
}

/// Why a message is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// It is longer than `MAX_MESSAGE_BYTES`.
    Bytes,
    /// It is longer than `MAX_UNASKED_BYTES`, and answers no command that may have a long answer.
    Unasked,
    /// It is nested deeper than `MAX_DEPTH`.
    Depth {
        /// The byte of the message from which on it is, the first being 0.
        at: usize,
    },
    /// It has more than `MAX_MESSAGE_MEMBERS` members.
    Members {
        /// As above.
        at: usize,
    },
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes => write!(f, "longer than {MAX_MESSAGE_BYTES} bytes"),
            Self::Unasked => {
                write!(
                    f,
                    "longer than the {MAX_UNASKED_BYTES} bytes that are taken of what was not asked for"
                )
            }
            Self::Depth { at } => {
                write!(f, "nested deeper than {MAX_DEPTH}, from its byte {at} on")
            }
            Self::Members { at } => {
                write!(f, "of more than {MAX_MESSAGE_MEMBERS} members, from its byte {at} on")
            }
        }
    }
}

/// What a message is that is skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SkippedKind {
    /// The first message on a connection.
    Greeting,
    /// A command's result or refusal.
    Reply,
    /// An event of this name; bounded and printable.
    Event(String),
    /// Of no known kind.
    Unknown,
}

/// A message of a QEMU.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// The first message on a connection.
    Greeting,
    /// A command's result.
    Return {
        /// The command's id; `None` if it is not one of ours.
        id: Option<u64>,
        /// The result as it came.
        value: Value,
    },
    /// A command's refusal.
    Error {
        /// The command's id; `None` if QEMU could not read the command.
        id: Option<u64>,
        /// QEMU's error class, such as `GenericError`; bounded and printable.
        class: String,
        /// QEMU's description; bounded and printable.
        desc: String,
    },
    /// Something happened.
    Event {
        /// As it came: bounded by the message only.
        name: String,
        /// As it came; `Null` if the event has none.
        data: Value,
    },
    /// An object of no known kind.
    Unknown,
    /// One that would take too much of us, and was not read.
    Skipped {
        /// What it is.
        kind: SkippedKind,
        /// The id of the command that it answers; `None` if it is not one of ours.
        id: Option<u64>,
        /// Why it was skipped.
        excess: Excess,
    },
}

impl From<Value> for Message {
    fn from(mut message: Value) -> Self {
        let id = message.get("id").and_then(Value::as_u64);
        if message.get("QMP").is_some() {
            Self::Greeting
        } else if let Some(value) = message.get_mut("return") {
            Self::Return { id, value: value.take() }
        } else if let Some(error) = message.get("error") {
            let text = |field: &str, max_chars| {
                printable(error.get(field).and_then(Value::as_str).unwrap_or_default(), max_chars)
            };
            let class = text("class", MAX_TEXT_CHARS);
            Self::Error { id, class, desc: text("desc", 4 * MAX_TEXT_CHARS) }
        } else if let Some(name) = message.get("event").and_then(Value::as_str) {
            let name = name.to_owned();
            let data = message.get_mut("data").map(Value::take).unwrap_or_default();
            Self::Event { name, data }
        } else {
            Self::Unknown
        }
    }
}
