//! What answers no command: events, of whose data a few members are read, and objects of no known kind.
//!
//! To make a tree of JSON costs many times what it costs to pass over it, and what is said here, a QEMU that was taken over may say
//! as often as it likes. So the text is checked and passed over, and only members that some event is read for become values.

use serde::{
    Deserialize,
    de::{Error as _, IgnoredAny},
};
use serde_json::{Map, Value, value::RawValue};

use super::Message;

/// The longest member that is read, in bytes: what stands in one is a word or two.
const MOST_MEMBER_BYTES: usize = 1 << 10;

#[derive(Deserialize)]
struct Event<'a> {
    event: String,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

/// The members of all events' data that are read (`QmpEvent`).
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, default)]
    action: Option<&'a RawValue>,
    #[serde(borrow, default)]
    guest: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reason: Option<&'a RawValue>,
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
}

/// The event that a message is, with what is read of its data; `Null` where that is nothing.
///
/// # Errors
/// If it is no JSON, or no event.
pub(super) fn event(message: &[u8]) -> Result<Message, serde_json::Error> {
    let Event { event: name, data } = serde_json::from_str(text(message)?)?;
    let object = data.filter(|data| data.get().starts_with('{'));
    let members = object.and_then(|data| serde_json::from_str::<Members<'_>>(data.get()).ok());
    Ok(Message::Event { name, data: members.map_or(Value::Null, |members| members.read()) })
}

/// What is said of an object of no known kind: that it is JSON.
///
/// # Errors
/// If it isn't.
pub(super) fn unknown(message: &[u8]) -> Result<Message, serde_json::Error> {
    serde_json::from_str::<IgnoredAny>(text(message)?).map(|_| Message::Unknown)
}

/// The text of a message: what is passed over is not seen to be none.
fn text(message: &[u8]) -> Result<&str, serde_json::Error> {
    std::str::from_utf8(message).map_err(serde_json::Error::custom)
}

impl Members<'_> {
    fn read(self) -> Value {
        let Self { action, guest, reason, status } = self;
        let named = [("action", action), ("guest", guest), ("reason", reason), ("status", status)];
        let read = named.into_iter().filter_map(|(name, raw)| {
            let raw = raw.filter(|raw| raw.get().len() <= MOST_MEMBER_BYTES)?;
            Some((name.to_owned(), serde_json::from_str(raw.get()).ok()?))
        });
        let read: Map<String, Value> = read.collect();
        if read.is_empty() { Value::Null } else { Value::Object(read) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(message: &str) -> Option<(String, Value)> {
        match event(message.as_bytes()) {
            Ok(Message::Event { name, data }) => Some((name, data)),
            _ => None,
        }
    }

    #[test]
    fn of_an_event_the_members_are_read_that_some_event_is_read_for() {
        let data = r#"{"guest": true, "reason": "guest-reset", "info": {"arg": [1, 2]}}"#;
        let read = |data: &str| {
            let text =
                format!(r#"{{"timestamp": {{"seconds": 1}}, "event": "X", "data": {data}}}"#);
            read(&text).unwrap().1
        };
        assert_eq!(read(data), json!({"guest": true, "reason": "guest-reset"}));
        assert_eq!(read(r#"{"action": "pause"}"#), json!({"action": "pause"}));
        assert_eq!(read(r#"{"status": {"a": 1}}"#), json!({"status": {"a": 1}}));
        for other in ["[[], []]", "null", "7", "{}", r#"{"x": {"action": 1}}"#] {
            assert_eq!(read(other), Value::Null, "{other}");
        }
        let long = format!(r#"{{"guest": false, "reason": "{}"}}"#, "x".repeat(MOST_MEMBER_BYTES));
        assert_eq!(read(&long), json!({"guest": false}));
    }

    #[test]
    fn what_is_no_json_is_an_error_wherever_that_shows() {
        for text in [r#"{"event": "X", "data": [}"#, r#"{"event": "X", "data": {"guest": tru}}"#] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read(r#"{"event": "X"}"#), Some(("X".to_owned(), Value::Null)));
        assert!(unknown(b"{\"a\": [[], {}]}").is_ok() && unknown(b"{\"a\": [}").is_err());
    }
}
