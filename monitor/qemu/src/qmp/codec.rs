//! QMP's framing: a byte stream in, messages out; commands in, bytes out. Does no I/O of its own.
//!
//! A message is a JSON object, and its end is found by balancing braces (`outline`), not by line ends: a monitor
//! with `pretty=on` sends objects of many lines. The decoder remembers how far it has looked, so a
//! peer that sends byte by byte costs no more than one that sends at once.
//!
//! A message that would take too much of us, by its size, its depth or its members, is *skipped*: its bytes are dropped
//! as they come, up to `MAX_SKIPPED_BYTES`, and what is left of it is what it was and which command it answers
//! ([`Message::Skipped`]). So the stream stays in step, and one answer that is larger than it should be, as that of a
//! disk on a chain of a hundred overlays is, costs that answer alone.

mod message;
mod outline;
mod unasked;

use bytes::{Buf, BufMut, BytesMut};
use serde::Serialize;
use serde_json::Value;
use tokio_util::codec::{Decoder, Encoder};

pub use message::{CodecError, Excess};
pub(crate) use message::{Message, SkippedKind};

use outline::Outline;

/// The longest message that is taken, in bytes. The longest that is ever asked for is
/// `info registers -a`: 1.4 to 6 KB a vCPU (AVX-512 state), so a few hundred vCPUs, JSON's escapes
/// of line ends included.
pub(crate) const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The longest message that is taken of what answers no command, in bytes: events of QEMU have some hundred, and reading JSON costs
/// its reader many times what it costs its writer.
pub(crate) const MAX_UNASKED_BYTES: usize = 16 << 10;

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
pub(super) struct Command<'a> {
    /// Its name.
    pub(super) execute: &'a str,
    /// Its arguments, an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) arguments: Option<&'a Value>,
    /// Comes back in its reply.
    pub(super) id: u64,
}

/// Frames one connection; start a new one with each connection.
#[derive(Debug, Default)]
pub(crate) struct QmpCodec {
    /// The bytes of the buffer that have been looked at; the outline is as of there.
    scanned: usize,
    outline: Outline,
    /// Why the message is skipped; `None` for one that is taken.
    excess: Option<Excess>,
    /// Bytes of the message that were dropped so far.
    skipped_bytes: usize,
}

impl QmpCodec {
    /// Whether a message was begun of which the end has not come; `buffer` is what was not decoded yet.
    pub(crate) fn is_within(&self, buffer: &[u8]) -> bool {
        !buffer.is_empty() || self.excess.is_some()
    }

    /// Goes on looking for the end of the message; how many bytes of the buffer belong to it, if it ends there.
    fn scan(&mut self, buffer: &[u8]) -> Option<usize> {
        for (at, &byte) in buffer.iter().enumerate().skip(self.scanned) {
            let has_ended = self.outline.step(byte);
            if self.excess.is_none() {
                self.excess = self.excess_at(at);
            }
            if has_ended {
                return Some(at + 1);
            }
        }
        self.scanned = buffer.len();
        None
    }

    /// In what the message is more than is taken, as of its byte `at`.
    fn excess_at(&self, at: usize) -> Option<Excess> {
        if at >= MAX_MESSAGE_BYTES {
            Some(Excess::Bytes)
        } else if self.outline.members() > MAX_MESSAGE_MEMBERS {
            Some(Excess::Members { at })
        } else if self.outline.depth() > MAX_DEPTH {
            Some(Excess::Depth { at })
        } else {
            None
        }
    }
}

impl QmpCodec {
    /// The next message of the buffer, if it is complete. `most` tells how many bytes are taken of the reply to the command with
    /// this id; a longer one is skipped, as is what answers none and is longer than [`MAX_UNASKED_BYTES`]. Neither is read but for
    /// what it is.
    ///
    /// # Errors
    /// If the bytes are no messages.
    pub(crate) fn next(
        &mut self,
        buffer: &mut BytesMut,
        most: impl Fn(u64) -> usize,
    ) -> Result<Option<Message>, CodecError> {
        if self.scanned == 0 && self.excess.is_none() {
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            buffer.advance(blank);
            match buffer.first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(&byte) => return Err(CodecError::Garbage { byte }),
            }
        }
        let end = self.scan(buffer);
        let Some(excess) = self.excess else {
            let Some(length) = end else { return Ok(None) };
            let Self { outline, .. } = std::mem::take(self);
            let message = buffer.split_to(length);
            let (kind, id) = outline.into_parts();
            if length > MAX_UNASKED_BYTES {
                let most = id.filter(|_| kind == SkippedKind::Reply).map_or(0, most);
                if length > most {
                    return Ok(Some(Message::Skipped { kind, id, excess: Excess::Unasked }));
                }
            }
            let taken = match kind {
                SkippedKind::Event(_) => unasked::event(&message),
                SkippedKind::Unknown => unasked::unknown(&message),
                SkippedKind::Greeting | SkippedKind::Reply => {
                    serde_json::from_slice::<Value>(&message).map(Message::from)
                }
            };
            return taken.map(Some).map_err(CodecError::Json);
        };
        let dropped = end.unwrap_or(buffer.len());
        buffer.advance(dropped);
        self.scanned = 0;
        self.skipped_bytes = self.skipped_bytes.saturating_add(dropped);
        if self.skipped_bytes > MAX_SKIPPED_BYTES {
            return Err(CodecError::TooLarge);
        }
        if end.is_none() {
            return Ok(None);
        }
        let (kind, id) = std::mem::take(self).outline.into_parts();
        Ok(Some(Message::Skipped { kind, id, excess }))
    }
}

impl Decoder for QmpCodec {
    type Item = Message;
    type Error = CodecError;

    /// Takes any reply for that to a command which may have a long one.
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, CodecError> {
        self.next(buffer, |_| MAX_MESSAGE_BYTES)
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
