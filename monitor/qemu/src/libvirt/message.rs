//! The messages of libvirt's RPC: its numbers, its header, and what is in the few that are used.
//!
//! From libvirt's src/rpc/virnetprotocol.x, src/remote/remote_protocol.x and src/remote/qemu_protocol.x, which are its promise
//! to its older clients since 2009: numbers are only ever added.

use serde_json::Value;

use super::xdr::{Reader, Writer};
use crate::{
    qmp::{QmpEvent, codec::MAX_UNASKED_BYTES},
    text::{MAX_TEXT_CHARS, printable},
};

/// The length, and six words more.
pub(super) const HEADER_BYTES: usize = 28;
const VERSION: u32 = 1;

/// Whom a message is for: a program's number.
pub(super) mod program {
    pub(in crate::libvirt) const REMOTE: u32 = 0x2000_8086;
    pub(in crate::libvirt) const QEMU: u32 = 0x2000_8087;
    pub(in crate::libvirt) const KEEPALIVE: u32 = 0x6b65_6570;
}

/// The calls that are made, by their program and their number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Procedure(pub(super) u32, pub(super) i32);

pub(super) const CONNECT_OPEN: Procedure = Procedure(program::REMOTE, 1);
pub(super) const AUTH_LIST: Procedure = Procedure(program::REMOTE, 66);
pub(super) const MONITOR_COMMAND: Procedure = Procedure(program::QEMU, 1);
pub(super) const MONITOR_EVENT_REGISTER: Procedure = Procedure(program::QEMU, 4);
const MONITOR_EVENT: Procedure = Procedure(program::QEMU, 6);
pub(super) const MONITOR_COMMAND_WITH_FILES: Procedure = Procedure(program::QEMU, 7);
const PING: Procedure = Procedure(program::KEEPALIVE, 1);
const PONG: Procedure = Procedure(program::KEEPALIVE, 2);

const CALL: i32 = 0;
const REPLY: i32 = 1;
const EVENT: i32 = 2;
const CALL_WITH_FILES: i32 = 4;
const OK: i32 = 0;
/// `VIR_ERR_NO_DOMAIN` and `VIR_ERR_OPERATION_INVALID`, the latter of a domain that does not run.
const GONE: [i32; 2] = [42, 55];

/// What stands before each message's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) procedure: Procedure,
    kind: i32,
    /// The number of the call that is made or answered.
    pub(super) serial: u32,
    status: i32,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A reply's body is what was asked for.
    Reply,
    /// A reply's body is a [`Refusal`].
    Refusal,
    /// A [`DomainEvent`].
    DomainEvent,
    /// It is to be answered with [`pong`].
    Ping,
    /// Any other, which was not asked for.
    Other,
}

impl Header {
    /// From the words behind the length.
    pub(super) fn read(bytes: &[u8; HEADER_BYTES - 4]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let (program, _version, number) = (reader.word()?, reader.word()?, reader.number()?);
        let (kind, serial, status) = (reader.number()?, reader.word()?, reader.number()?);
        Some(Self { procedure: Procedure(program, number), kind, serial, status })
    }

    pub(super) fn kind(&self) -> Kind {
        match (self.kind, self.procedure) {
            (REPLY, _) if self.status == OK => Kind::Reply,
            (REPLY, _) => Kind::Refusal,
            (EVENT, MONITOR_EVENT) => Kind::DomainEvent,
            (EVENT, PING) => Kind::Ping,
            _ => Kind::Other,
        }
    }
}

fn message(procedure: Procedure, kind: i32, serial: u32, body: &[u8]) -> Vec<u8> {
    let Procedure(program, number) = procedure;
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    let header = Writer::default().word(length).word(program).word(VERSION).number(number);
    let mut message = header.number(kind).word(serial).number(OK).finish();
    message.extend(body);
    message
}

/// A call.
pub(super) fn call(procedure: Procedure, serial: u32, body: &[u8]) -> Vec<u8> {
    message(procedure, CALL, serial, body)
}

/// A call with one descriptor, which goes with a byte of its own behind it.
pub(super) fn call_with_file(procedure: Procedure, serial: u32, body: &[u8]) -> Vec<u8> {
    let counted = [Writer::default().word(1).finish().as_slice(), body].concat();
    message(procedure, CALL_WITH_FILES, serial, &counted)
}

/// The answer to a ping.
pub(super) fn pong() -> Vec<u8> {
    message(PONG, EVENT, 0, &[])
}

/// Opens what `name` says, `qemu:///system` or `qemu:///session`.
pub(super) fn open(name: &str) -> Vec<u8> {
    Writer::default().word(1).string(name).word(0).finish()
}

/// Asks for all of QEMU's events of all domains.
pub(super) fn register() -> Vec<u8> {
    Writer::default().word(0).word(0).word(0).finish()
}

/// Which domain is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID, by which libvirt looks it up.
    pub uuid: [u8; 16],
}

impl Domain {
    /// From its name, and its UUID as it is written; `None` if that is none.
    pub fn new(name: &str, uuid: &str) -> Option<Self> {
        let digits: String = uuid.chars().filter(|letter| *letter != '-').collect();
        let is_whole = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u128::from_str_radix(&digits, 16).ok().filter(|_| is_whole)?;
        Some(Self { name: name.to_owned(), uuid: number.to_be_bytes() })
    }
}

/// A QMP command for a domain's monitor. The id of the running domain, which libvirt does not look at, is left out.
pub(super) fn monitor_command(domain: &Domain, command: &str) -> Vec<u8> {
    let named = Writer::default().string(&domain.name).fixed(&domain.uuid).number(-1);
    named.string(command).word(0).finish()
}

/// What libvirt said instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// In its words, printable.
    pub(super) text: String,
    /// Whether there is no such domain that runs: nothing was passed on to it.
    pub(super) is_gone: bool,
}

impl Refusal {
    pub(super) fn read(body: &[u8]) -> Self {
        let mut reader = Reader::new(body);
        let code = reader.number();
        let _domain = reader.number();
        let text = reader.optional_string().flatten().map(String::from_utf8_lossy);
        let text = text.map_or_else(
            || "no reason given".to_owned(),
            |text| printable(&text, 4 * MAX_TEXT_CHARS),
        );
        Self { text, is_gone: code.is_some_and(|code| GONE.contains(&code)) }
    }
}

/// The domains' answer in a reply to [`MONITOR_COMMAND`], and to the one with files.
pub(super) fn answer(body: &[u8]) -> Option<&[u8]> {
    Reader::new(body).string()
}

/// An event of a domain's QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DomainEvent {
    pub(super) uuid: [u8; 16],
    pub(super) event: QmpEvent,
}

impl DomainEvent {
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let _callback = reader.number()?;
        let (_name, uuid, _id) = (reader.string()?, reader.fixed()?, reader.number()?);
        let name = std::str::from_utf8(reader.string()?).ok()?;
        let _seconds: [u8; 8] = reader.fixed()?;
        let _microseconds = reader.word()?;
        let details = reader.optional_string()?.filter(|text| text.len() <= MAX_UNASKED_BYTES);
        let data =
            details.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or(Value::Null);
        Some(Self { uuid, event: QmpEvent::parse(name, &data) })
    }
}

/// What fuzzers find in a message behind its length: an event, and the words of a refusal; `None` where it has no header.
pub(crate) fn fuzz(bytes: &[u8]) -> Option<(Option<QmpEvent>, String)> {
    let (header, body) = bytes.split_first_chunk()?;
    let _kind = Header::read(header)?.kind();
    assert!(answer(body).is_none_or(|answer| answer.len() <= body.len()));
    Some((DomainEvent::read(body).map(|told| told.event), Refusal::read(body).text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_of(message: &[u8]) -> Header {
        Header::read(message[4..HEADER_BYTES].try_into().unwrap()).unwrap()
    }

    /// As a server tells of an event.
    fn event(name: &str, details: Option<&str>) -> Vec<u8> {
        let body = Writer::default().number(0).string("web 1").fixed(&[7; 16]).number(3);
        let body = body.string(name).fixed(&[0; 8]).word(12);
        let body = match details {
            Some(text) => body.word(1).string(text),
            None => body.word(0),
        };
        body.finish()
    }

    #[test]
    fn a_call_is_seven_words_and_its_body() {
        // Length, program, version, procedure, kind, serial, status.
        let auth = [
            0, 0, 0, 28, 0x20, 0, 0x80, 0x86, 0, 0, 0, 1, 0, 0, 0, 66, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0,
        ];
        assert_eq!(call(AUTH_LIST, 0, &[]), auth);
        let header = header_of(&call_with_file(MONITOR_COMMAND_WITH_FILES, 9, b"1234"));
        assert_eq!((header.kind, header.serial), (CALL_WITH_FILES, 9));
        assert_eq!(header.kind(), Kind::Other);
        let domain = Domain { name: "ab".to_owned(), uuid: [9; 16] };
        let body = monitor_command(&domain, "{}");
        assert_eq!(body.len(), (4 + 4) + 16 + 4 + (4 + 4) + 4);
    }

    #[test]
    fn a_domain_is_named_by_its_uuid() {
        let domain = Domain::new("web-1", "c7a5fdbd-edaf-9455-926a-d65c16db1809").unwrap();
        assert_eq!((domain.uuid[0], domain.uuid[15]), (0xc7, 0x09));
        for none in [
            "",
            "c7a5fdbd",
            "c7a5fdbd-edaf-9455-926a-d65c16db180g",
            "+7a5fdbdedaf9455926ad65c16db1809",
        ] {
            assert_eq!(Domain::new("web-1", none), None, "{none}");
        }
    }

    #[test]
    fn what_comes_is_told_apart() {
        let kind = |procedure, kind, status| Header { procedure, kind, serial: 1, status }.kind();
        assert_eq!(kind(MONITOR_COMMAND, REPLY, OK), Kind::Reply);
        assert_eq!(kind(MONITOR_COMMAND, REPLY, 1), Kind::Refusal);
        assert_eq!(kind(MONITOR_EVENT, EVENT, OK), Kind::DomainEvent);
        assert_eq!(kind(PING, EVENT, OK), Kind::Ping);
        assert_eq!(kind(PONG, EVENT, OK), Kind::Other);
        assert_eq!(kind(Procedure(program::REMOTE, 6), EVENT, OK), Kind::Other);
        assert_eq!(header_of(&pong()).procedure, PONG);
    }

    #[test]
    fn an_event_is_read_with_and_without_details() {
        let panicked = QmpEvent::GuestPanicked { action: "pause".to_owned() };
        let read = DomainEvent::read(&event("GUEST_PANICKED", Some(r#"{"action":"pause"}"#)));
        assert_eq!(read, Some(DomainEvent { uuid: [7; 16], event: panicked }));
        let stop = DomainEvent::read(&event("STOP", None)).unwrap();
        assert_eq!(stop.event, QmpEvent::Stop);
        let long = format!("{{\"action\":\"{}\"}}", "x".repeat(MAX_UNASKED_BYTES));
        let bare = QmpEvent::parse("GUEST_PANICKED", &Value::Null);
        assert_eq!(DomainEvent::read(&event("GUEST_PANICKED", Some(&long))).unwrap().event, bare);
        let whole = event("STOP", Some("{}"));
        for length in 0..whole.len() {
            assert_eq!(DomainEvent::read(&whole[..length]), None, "cut at {length}");
        }
    }

    #[test]
    fn a_refusal_says_whether_the_domain_is_gone() {
        let refusal = |code: i32, text: &str| {
            Refusal::read(&Writer::default().number(code).number(10).word(1).string(text).finish())
        };
        let gone = refusal(42, "Domain not found: \u{1b}[1m");
        assert!(gone.is_gone && gone.text == "Domain not found: ?[1m", "{gone:?}");
        assert!(refusal(55, "domain is not running").is_gone);
        assert!(!refusal(68, "Timed out during operation").is_gone);
        assert_eq!(Refusal::read(&[]).text, "no reason given");
    }
}
