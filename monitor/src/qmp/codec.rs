//! QMP's framing: a byte stream in, messages out; commands in, bytes out. Does no I/O of its own.
//!
//! A message is a JSON object, and its end is found by balancing braces, not by line ends: a monitor
//! with `pretty=on` sends objects of many lines. The decoder remembers how far it has looked, so a
//! peer that sends byte by byte costs no more than one that sends at once.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use serde::Serialize;
use serde_json::Value;
use tokio_util::codec::{Decoder, Encoder};

use super::{MAX_TEXT_CHARS, printable};

/// The longest message that is taken, in bytes. The longest that is ever asked for is
/// `info registers -a`: 1.4 to 6 KB a vCPU (AVX-512 state), so a few hundred vCPUs, JSON's escapes
/// of line ends included.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The most objects, arrays and further members in one message. Parsed JSON takes up to 100 times
/// the room of its text (an object of one member is a whole tree node), which this bounds to some
/// 50 MB. `query-cpus-fast` of 4,096 vCPUs has 50,000.
pub const MAX_MESSAGE_MEMBERS: usize = 1 << 17;

/// The longest command that is sent, in bytes.
pub const MAX_COMMAND_BYTES: usize = 64 << 10;

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
    /// A message is longer than [`MAX_MESSAGE_BYTES`].
    #[error("a QMP message of more than {MAX_MESSAGE_BYTES} bytes")]
    TooLarge,
    /// A message has more than [`MAX_MESSAGE_MEMBERS`] members.
    #[error("a QMP message of more than {MAX_MESSAGE_MEMBERS} members")]
    TooManyMembers,
    /// The braces balance, but it is no JSON, or is nested deeper than serde_json follows (128).
    #[error("a QMP message that is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// A command is longer than [`MAX_COMMAND_BYTES`].
    #[error("a QMP command of {bytes} bytes; at most {MAX_COMMAND_BYTES} are sent")]
    CommandTooLarge {
        /// Its length.
        bytes: usize,
    },
}

/// A message of a QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
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
        /// The host's clock since the Unix epoch, as QEMU read it; `None` if it could not.
        timestamp: Option<Duration>,
    },
    /// An object of no known kind.
    Unknown,
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
            let timestamp = message.get("timestamp").and_then(timestamp);
            let data = message.get_mut("data").map(Value::take).unwrap_or_default();
            Self::Event { name, data, timestamp }
        } else {
            Self::Unknown
        }
    }
}

/// QEMU sends -1 for both when it cannot read the clock.
fn timestamp(value: &Value) -> Option<Duration> {
    let seconds = value.get("seconds")?.as_u64()?;
    let microseconds = value.get("microseconds")?.as_u64().filter(|us| *us < 1_000_000)?;
    Some(Duration::from_secs(seconds) + Duration::from_micros(microseconds))
}

/// A command to a QEMU.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Command<'a> {
    /// Its name.
    pub execute: &'a str,
    /// Its arguments, an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<&'a Value>,
    /// Comes back in its reply.
    pub id: u64,
}

/// Frames one connection; start a new one with each connection.
#[derive(Debug, Default)]
pub struct QmpCodec {
    /// The bytes of the buffer that have been looked at; the fields below are as of there.
    scanned: usize,
    depth: usize,
    members: usize,
    in_string: bool,
    escaped: bool,
}

impl QmpCodec {
    /// Goes on looking for the end of the message at the buffer's start; its length if it is there.
    fn scan(&mut self, buffer: &[u8]) -> Result<Option<usize>, CodecError> {
        let window = &buffer[..buffer.len().min(MAX_MESSAGE_BYTES)];
        for (at, byte) in window.iter().enumerate().skip(self.scanned) {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' => {
                    self.depth += 1;
                    self.members += 1;
                }
                b'[' | b',' => self.members += 1,
                // The first byte is an opening brace, so the depth is at least one here.
                b'}' => self.depth -= 1,
                _ => {}
            }
            if self.members > MAX_MESSAGE_MEMBERS {
                return Err(CodecError::TooManyMembers);
            }
            if self.depth == 0 {
                return Ok(Some(at + 1));
            }
        }
        if buffer.len() > MAX_MESSAGE_BYTES {
            return Err(CodecError::TooLarge);
        }
        self.scanned = buffer.len();
        Ok(None)
    }
}

impl Decoder for QmpCodec {
    type Item = Message;
    type Error = CodecError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, CodecError> {
        if self.scanned == 0 {
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            buffer.advance(blank);
            match buffer.first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(&byte) => return Err(CodecError::Garbage { byte }),
            }
        }
        let Some(length) = self.scan(buffer)? else {
            return Ok(None);
        };
        *self = Self::default();
        let message = buffer.split_to(length);
        let value: Value = serde_json::from_slice(&message).map_err(CodecError::Json)?;
        Ok(Some(Message::from(value)))
    }
}

impl Encoder<Command<'_>> for QmpCodec {
    type Error = CodecError;

    fn encode(&mut self, command: Command<'_>, buffer: &mut BytesMut) -> Result<(), CodecError> {
        let text = serde_json::to_vec(&command).map_err(CodecError::Json)?;
        if text.len() > MAX_COMMAND_BYTES {
            return Err(CodecError::CommandTooLarge { bytes: text.len() });
        }
        buffer.reserve(text.len() + 1);
        buffer.put_slice(&text);
        buffer.put_u8(b'\n');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \
        \"package\": \"Debian\"}, \"capabilities\": [\"oob\"]}}\r\n";

    fn decode_all(input: &[u8]) -> Result<Vec<Message>, CodecError> {
        let mut buffer = BytesMut::from(input);
        let mut codec = QmpCodec::default();
        let mut messages = Vec::new();
        while let Some(message) = codec.decode(&mut buffer)? {
            messages.push(message);
        }
        Ok(messages)
    }

    fn three_messages() -> (String, Vec<Message>) {
        let input = format!(
            "{GREETING} {{\"return\": {{\"a\\\\\": \"}} \\\" {{{{ ] , \\\\\"}}, \"id\": 7}}\r\n\
             {{\n    \"timestamp\": {{\n \"seconds\": 5, \"microseconds\": 250000\n }},\n\
             \"event\": \"STOP\"\n}}\n"
        );
        let expected = vec![
            Message::Greeting,
            Message::Return { id: Some(7), value: json!({"a\\": "} \" {{ ] , \\"}) },
            Message::Event {
                name: "STOP".into(),
                data: Value::Null,
                timestamp: Some(Duration::from_millis(5_250)),
            },
        ];
        (input, expected)
    }

    #[test]
    fn several_messages_plain_and_pretty_come_out_of_one_buffer() {
        let (input, expected) = three_messages();
        assert_eq!(decode_all(input.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn a_split_at_any_byte_changes_nothing() {
        let (input, expected) = three_messages();
        for split in 0..=input.len() {
            let mut codec = QmpCodec::default();
            let mut buffer = BytesMut::new();
            let mut messages = Vec::new();
            for part in [&input.as_bytes()[..split], &input.as_bytes()[split..]] {
                buffer.put_slice(part);
                while let Some(message) = codec.decode(&mut buffer).unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, expected, "split at {split}");
        }
    }

    #[test]
    fn a_byte_at_a_time_is_looked_at_once_only() {
        let text = format!("{{\"return\": \"{}\"}}", "{".repeat(1 << 20));
        let mut codec = QmpCodec::default();
        let mut buffer = BytesMut::new();
        for (at, byte) in text.bytes().enumerate() {
            assert_eq!(codec.scanned, at);
            buffer.put_u8(byte);
            let message = codec.decode(&mut buffer).unwrap();
            assert_eq!(message.is_some(), at + 1 == text.len());
        }
    }

    #[test]
    fn an_error_reply_is_bounded_and_printable() {
        let reply =
            json!({"error": {"class": "GenericError", "desc": "\u{7}".repeat(9_999)}, "id": 3});
        let messages = decode_all(reply.to_string().as_bytes()).unwrap();
        let class = "GenericError".to_owned();
        assert_eq!(messages, [Message::Error { id: Some(3), class, desc: "?".repeat(256) }]);
    }

    #[test]
    fn an_unread_clock_and_an_unknown_object_are_tolerated() {
        let input =
            r#"{"event": "X", "timestamp": {"seconds": -1, "microseconds": -1}} {"new": 1}"#;
        let event = Message::Event { name: "X".into(), data: Value::Null, timestamp: None };
        assert_eq!(decode_all(input.as_bytes()).unwrap(), [event, Message::Unknown]);
    }

    #[test]
    fn garbage_between_messages_is_an_error() {
        for input in ["SSH-2.0", "[1]", "}", "{} x", "\0"] {
            let error = decode_all(input.as_bytes()).unwrap_err();
            assert!(matches!(error, CodecError::Garbage { .. }), "{input:?}: {error}");
        }
    }

    #[test]
    fn balanced_braces_that_are_no_json_are_an_error() {
        assert!(matches!(decode_all(b"{\"a\": }"), Err(CodecError::Json(_))));
        assert!(matches!(decode_all(b"{\"a\": \"\xff\"}"), Err(CodecError::Json(_))));
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
        let input = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        assert!(matches!(decode_all(input.as_bytes()), Err(CodecError::Json(_))));
        let input = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(decode_all(input.as_bytes()), Err(CodecError::Json(_))));
    }

    #[test]
    fn a_message_above_the_limit_is_an_error_and_one_at_it_is_not() {
        let frame = |bytes: usize| format!("{{\"return\": \"{}\"}}", "x".repeat(bytes - 14));
        assert_eq!(frame(100).len(), 100);
        assert_eq!(decode_all(frame(MAX_MESSAGE_BYTES).as_bytes()).unwrap().len(), 1);
        let above = frame(MAX_MESSAGE_BYTES + 1);
        assert!(matches!(decode_all(above.as_bytes()), Err(CodecError::TooLarge)));
        let unfinished = &above.as_bytes()[..MAX_MESSAGE_BYTES];
        assert!(decode_all(unfinished).unwrap().is_empty());
    }

    #[test]
    fn a_message_that_would_take_a_multiple_of_its_size_in_memory_is_an_error() {
        let input =
            format!("{{\"return\": [{}{{}}]}}", "{\"\":0},".repeat(MAX_MESSAGE_MEMBERS / 2));
        assert!(input.len() < MAX_MESSAGE_BYTES);
        assert!(matches!(decode_all(input.as_bytes()), Err(CodecError::TooManyMembers)));
    }

    #[test]
    fn a_command_is_one_line_with_its_id() {
        let mut buffer = BytesMut::new();
        let arguments = json!({"command-line": "info\nlapic"});
        let command = Command { execute: "x", arguments: Some(&arguments), id: 9 };
        QmpCodec::default().encode(command, &mut buffer).unwrap();
        let command = Command { execute: "cont", arguments: None, id: 10 };
        QmpCodec::default().encode(command, &mut buffer).unwrap();
        let expected = "{\"execute\":\"x\",\"arguments\":{\"command-line\":\"info\\nlapic\"},\"id\":9}\n\
            {\"execute\":\"cont\",\"id\":10}\n";
        assert_eq!(buffer, expected);
    }

    #[test]
    fn an_oversized_command_is_not_sent() {
        let arguments = json!({ "a": "x".repeat(MAX_COMMAND_BYTES) });
        let command = Command { execute: "x", arguments: Some(&arguments), id: 1 };
        let mut buffer = BytesMut::new();
        let error = QmpCodec::default().encode(command, &mut buffer).unwrap_err();
        assert!(matches!(error, CodecError::CommandTooLarge { .. }));
        assert!(buffer.is_empty());
    }
}
