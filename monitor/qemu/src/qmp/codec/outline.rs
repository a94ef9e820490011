//! Outline of a message, byte by byte: where it ends, how large it is, what it is, and which command it answers.
//!
//! QEMU's reply bears its command's id as an outermost member, behind the result or before it. So those members are
//! looked at to the message's very end, and nothing is guessed from the order of answers: which command it was for is
//! said by QEMU itself, in a message of any size. Of names and values no more than [`MAX_TEXT_CHARS`] bytes are held,
//! and of all that is nested nothing.

use super::SkippedKind;
use crate::text::{MAX_TEXT_CHARS, printable};

/// What was seen of one message so far.
#[derive(Debug, Default)]
pub(super) struct Outline {
    braces: usize,
    brackets: usize,
    members: usize,
    in_string: bool,
    escaped: bool,
    /// The outermost member that is being read.
    name: Token,
    value: Token,
    has_colon: bool,
    /// What was found.
    id: Option<u64>,
    is_greeting: bool,
    is_reply: bool,
    event: Option<String>,
}

/// A name or a plain value, as it stands in the text; empty for what is nested.
#[derive(Debug, Default)]
struct Token {
    bytes: Vec<u8>,
    is_text: bool,
    is_cut: bool,
}

impl Token {
    fn push(&mut self, byte: u8) {
        if self.bytes.len() < MAX_TEXT_CHARS {
            self.bytes.push(byte);
        } else {
            self.is_cut = true;
        }
    }

    fn number(&self) -> Option<u64> {
        let text = std::str::from_utf8(&self.bytes).ok()?;
        text.parse().ok().filter(|_| !self.is_text && !self.is_cut)
    }
}

impl Outline {
    /// Takes the message's next byte, of which the first is its opening brace; `true` at its closing one.
    pub(super) fn step(&mut self, byte: u8) -> bool {
        let is_outermost = self.braces == 1 && self.brackets == 0;
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            if is_outermost && self.in_string {
                self.token().push(byte);
            }
            return false;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if is_outermost {
                    self.token().is_text = true;
                }
            }
            b'{' => {
                self.braces += 1;
                self.members += 1;
            }
            b'[' => {
                self.brackets += 1;
                self.members += 1;
            }
            b']' => self.brackets = self.brackets.saturating_sub(1),
            b'}' => {
                if is_outermost {
                    self.end_member();
                }
                self.braces = self.braces.saturating_sub(1);
                return self.braces == 0;
            }
            b',' => {
                self.members += 1;
                if is_outermost {
                    self.end_member();
                }
            }
            b':' if is_outermost => self.has_colon = true,
            _ if is_outermost && !byte.is_ascii_whitespace() => self.token().push(byte),
            _ => {}
        }
        false
    }

    /// How many objects and arrays are open.
    pub(super) fn depth(&self) -> usize {
        self.braces + self.brackets
    }

    /// How many objects, arrays and further members there were.
    pub(super) fn members(&self) -> usize {
        self.members
    }

    fn token(&mut self) -> &mut Token {
        if self.has_colon { &mut self.value } else { &mut self.name }
    }

    /// Notes the outermost member that was read to its end.
    fn end_member(&mut self) {
        let (name, value) = (std::mem::take(&mut self.name), std::mem::take(&mut self.value));
        self.has_colon = false;
        match name.bytes.as_slice() {
            b"id" => self.id = value.number(),
            b"QMP" => self.is_greeting = true,
            b"return" | b"error" => self.is_reply = true,
            b"event" if value.is_text => {
                let name = String::from_utf8_lossy(&value.bytes);
                self.event = Some(printable(&name, MAX_TEXT_CHARS));
            }
            _ => {}
        }
    }

    /// What the message is, with its id, once it has ended: all that is known of one that is skipped.
    pub(super) fn into_parts(self) -> (SkippedKind, Option<u64>) {
        let kind = match self.event {
            _ if self.is_greeting => SkippedKind::Greeting,
            _ if self.is_reply => SkippedKind::Reply,
            Some(name) => SkippedKind::Event(name),
            None => SkippedKind::Unknown,
        };
        (kind, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of `text`.
    fn read(text: &str) -> (SkippedKind, Option<u64>) {
        let mut outline = Outline::default();
        for (at, byte) in text.bytes().enumerate() {
            assert_eq!(outline.step(byte), at + 1 == text.len(), "{text} at {at}");
        }
        outline.into_parts()
    }

    #[test]
    fn the_id_is_found_before_and_behind_what_is_returned_and_nowhere_within() {
        let reply = |id| (SkippedKind::Reply, id);
        assert_eq!(read(r#"{"return": [{"id": 1, "x": "}\"]"}, 5], "id": 42}"#), reply(Some(42)));
        assert_eq!(read("{\n \"id\" : 42 ,\n\"return\":{\"id\": 1}\n}"), reply(Some(42)));
        assert_eq!(read(r#"{"return": {"id": 1}}"#), reply(None));
        assert_eq!(read(r#"{"return": "\", \"id\": 1", "id": 42}"#), reply(Some(42)));
        assert_eq!(read(r#"{"error": {"class": "x", "desc": "y"}, "id": 7}"#), reply(Some(7)));
    }

    #[test]
    fn an_id_that_is_none_of_ours_is_none() {
        for id in ["\"42\"", "-1", "4.5", "[42]", "{\"a\": 42}", "null", "1e2", &"9".repeat(99)] {
            assert_eq!(read(&format!("{{\"return\": 1, \"id\": {id}}}")).1, None, "{id}");
        }
    }

    #[test]
    fn an_event_has_its_name_bounded_and_printable() {
        let event = |name: &str| (SkippedKind::Event(name.to_owned()), None);
        assert_eq!(read(r#"{"data": {"event": "NO"}, "event": "RESET"}"#), event("RESET"));
        assert_eq!(read("{\"event\": \"\u{7}a\"}"), event("?a"));
        let long = read(&format!("{{\"event\": \"{}\"}}", "x".repeat(1 << 20)));
        assert_eq!(long, event(&"x".repeat(MAX_TEXT_CHARS)));
    }

    #[test]
    fn what_is_neither_is_unknown() {
        for text in ["{}", r#"{"a": {"return": 1}}"#, r#"{"event": ["RESET"]}"#, "{]]:,}"] {
            assert_eq!(read(text).0, SkippedKind::Unknown, "{text}");
        }
        assert_eq!(read(r#"{"QMP": {}, "return": 1}"#).0, SkippedKind::Greeting);
    }
}
