//! QMP's framing: a byte stream in, messages out; commands in, bytes out. Does no I/O of its own.
//!
//! A message is a JSON object, and its end is found by balancing braces, not by line ends: a monitor
//! with `pretty=on` sends objects of many lines. The decoder remembers how far it has looked, so a
//! peer that sends byte by byte costs no more than one that sends at once.
//!
//! A message that would take too much of us, by its size, its depth or its members, is *skipped*: its bytes are dropped
//! as they come, up to `MAX_SKIPPED_BYTES`, and what is left of it is what it was and which command it answers
//! ([`Message::Skipped`]). So the stream stays in step, and one answer that is larger than it should be, as that of a
//! disk on a chain of a hundred overlays is, costs that answer alone.

mod message;
mod outline;

use bytes::{Buf, BufMut, BytesMut};
use serde::Serialize;
use serde_json::Value;
use tokio_util::codec::{Decoder, Encoder};

pub use message::{CodecError, Excess, Message, SkippedKind};

use outline::Outline;

/// The longest message that is taken, in bytes. The longest that is ever asked for is
/// `info registers -a`: 1.4 to 6 KB a vCPU (AVX-512 state), so a few hundred vCPUs, JSON's escapes
/// of line ends included.
pub(crate) const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The longest message that is skipped, in bytes: the registers of 4,096 vCPUs, QEMU's maximum. One that is longer is
/// taken for one that never ends.
pub(crate) const MAX_SKIPPED_BYTES: usize = 24 << 20;

/// How deep the objects and arrays of a message may be nested: as deep as serde_json follows. `query-block` nests a
/// level for each overlay of a disk.
pub(crate) const MAX_DEPTH: usize = 127;

/// The most objects, arrays and further members in one message. Parsed JSON takes up to 100 times
/// the room of its text (an object of one member is a whole tree node), which this bounds to some
/// 50 MB. `query-cpus-fast` of 4,096 vCPUs has 50,000.
pub(crate) const MAX_MESSAGE_MEMBERS: usize = 1 << 17;

/// The longest command that is sent, in bytes.
pub(crate) const MAX_COMMAND_BYTES: usize = 64 << 10;

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
    braces: usize,
    brackets: usize,
    members: usize,
    in_string: bool,
    escaped: bool,
    /// The message that is being skipped.
    skipping: Option<Skipping>,
}

#[derive(Debug)]
struct Skipping {
    excess: Excess,
    outline: Outline,
    /// Those that were dropped so far.
    bytes: usize,
}

/// How far a look at the buffer came.
enum Scan {
    /// The message ends before this byte.
    Ends(usize),
    /// More of it has to come.
    GoesOn,
    /// It is more than is taken.
    Exceeds(Excess),
}

impl QmpCodec {
    /// Goes on looking for the end of the message at the buffer's start.
    fn scan(&mut self, buffer: &[u8]) -> Scan {
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
                    self.braces += 1;
                    self.members += 1;
                }
                b'[' => {
                    self.brackets += 1;
                    self.members += 1;
                }
                b',' => self.members += 1,
                b']' => self.brackets = self.brackets.saturating_sub(1),
                // The first byte is an opening brace, so there is at least one here.
                b'}' => self.braces -= 1,
                _ => {}
            }
            if self.members > MAX_MESSAGE_MEMBERS {
                return Scan::Exceeds(Excess::Members { at });
            }
            if self.braces + self.brackets > MAX_DEPTH {
                return Scan::Exceeds(Excess::Depth { at });
            }
            if self.braces == 0 {
                return Scan::Ends(at + 1);
            }
        }
        if buffer.len() > MAX_MESSAGE_BYTES {
            return Scan::Exceeds(Excess::Bytes);
        }
        self.scanned = buffer.len();
        Scan::GoesOn
    }

    /// Drops what is there of the message that is being skipped.
    fn skip(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, CodecError> {
        let Some(mut skipping) = self.skipping.take() else { return Ok(None) };
        let end = skipping.outline.take(buffer);
        let dropped = end.unwrap_or(buffer.len());
        buffer.advance(dropped);
        skipping.bytes = skipping.bytes.saturating_add(dropped);
        if skipping.bytes > MAX_SKIPPED_BYTES {
            return Err(CodecError::TooLarge);
        }
        if end.is_none() {
            self.skipping = Some(skipping);
            return Ok(None);
        }
        let (kind, id) = skipping.outline.into_parts();
        Ok(Some(Message::Skipped { kind, id, excess: skipping.excess }))
    }
}

impl Decoder for QmpCodec {
    type Item = Message;
    type Error = CodecError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, CodecError> {
        if self.skipping.is_some() {
            return self.skip(buffer);
        }
        if self.scanned == 0 {
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            buffer.advance(blank);
            match buffer.first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(&byte) => return Err(CodecError::Garbage { byte }),
            }
        }
        let length = match self.scan(buffer) {
            Scan::Ends(length) => length,
            Scan::GoesOn => return Ok(None),
            Scan::Exceeds(excess) => {
                // From its start on, since what it is may stand there.
                let skipping = Skipping { excess, outline: Outline::default(), bytes: 0 };
                *self = Self { skipping: Some(skipping), ..Self::default() };
                return self.skip(buffer);
            }
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
mod tests;
