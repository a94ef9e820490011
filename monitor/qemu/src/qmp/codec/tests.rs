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
        Message::Event { name: "STOP".into(), data: Value::Null },
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
    let reply = json!({"error": {"class": "GenericError", "desc": "\u{7}".repeat(9_999)}, "id": 3});
    let messages = decode_all(reply.to_string().as_bytes()).unwrap();
    let class = "GenericError".to_owned();
    assert_eq!(messages, [Message::Error { id: Some(3), class, desc: "?".repeat(256) }]);
}

#[test]
fn an_unread_clock_and_an_unknown_object_are_tolerated() {
    let input = r#"{"event": "X", "timestamp": {"seconds": -1, "microseconds": -1}} {"new": 1}"#;
    let event = Message::Event { name: "X".into(), data: Value::Null };
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

/// A message that is skipped, and one behind it that is not.
fn skipped_before_another(input: &str) -> Message {
    let messages = decode_all(format!("{input}\r\n{{\"event\": \"STOP\"}}").as_bytes()).unwrap();
    let [skipped, Message::Event { name, .. }] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(name, "STOP");
    skipped.clone()
}

#[test]
fn deep_nesting_is_skipped_and_is_no_stack_overflow() {
    let objects = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    let excess = Excess::Depth { at: MAX_DEPTH * 5 };
    let expected = Message::Skipped { kind: SkippedKind::Unknown, id: None, excess };
    assert_eq!(skipped_before_another(&objects), expected);
    let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
    let arrays = format!("{{\"return\": {open}{close}, \"id\": 9}}");
    let excess = Excess::Depth { at: 11 + MAX_DEPTH - 1 };
    let expected = Message::Skipped { kind: SkippedKind::Reply, id: Some(9), excess };
    assert_eq!(skipped_before_another(&arrays), expected);
}

#[test]
fn a_message_is_skipped_just_where_serde_json_would_not_follow() {
    let nested = |levels: usize| {
        format!("{{\"return\": {}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1))
    };
    let messages = decode_all(nested(MAX_DEPTH).as_bytes()).unwrap();
    assert!(matches!(messages[..], [Message::Return { .. }]), "{messages:?}");
    let deeper = nested(MAX_DEPTH + 1);
    assert!(matches!(skipped_before_another(&deeper), Message::Skipped { .. }));
    assert!(serde_json::from_str::<Value>(&deeper).is_err());
}

#[test]
fn what_stands_in_step_with_others_is_not_nested() {
    let input = format!("{{\"return\": [{}[]]}}", "[[]],".repeat(1000));
    assert!(matches!(decode_all(input.as_bytes()).unwrap()[..], [Message::Return { .. }]));
}

#[test]
fn a_message_above_the_limit_is_skipped_and_one_at_it_is_not() {
    let frame = |bytes: usize| format!("{{\"return\": \"{}\", \"id\": 3}}", "x".repeat(bytes - 23));
    assert_eq!(frame(100).len(), 100);
    let messages = decode_all(frame(MAX_MESSAGE_BYTES).as_bytes()).unwrap();
    assert!(matches!(messages[..], [Message::Return { .. }]));
    let above = frame(MAX_MESSAGE_BYTES + 1);
    let expected =
        Message::Skipped { kind: SkippedKind::Reply, id: Some(3), excess: Excess::Bytes };
    assert_eq!(skipped_before_another(&above), expected);
    let unfinished = &above.as_bytes()[..MAX_MESSAGE_BYTES];
    assert!(decode_all(unfinished).unwrap().is_empty());
}

#[test]
fn a_message_that_is_skipped_takes_no_room_and_one_that_never_ends_is_an_error() {
    let (mut codec, mut buffer) = (QmpCodec::default(), BytesMut::new());
    let piece = [b'x'; 1 << 16];
    buffer.put_slice(b"{\"return\": \"");
    let mut sent = buffer.len();
    let error = loop {
        buffer.put_slice(&piece);
        sent += piece.len();
        match codec.decode(&mut buffer) {
            Ok(None) => {}
            Ok(Some(message)) => panic!("{message:?}"),
            Err(error) => break error,
        }
        assert!(buffer.len() <= MAX_MESSAGE_BYTES, "{} bytes are held", buffer.len());
        assert!(buffer.is_empty() || sent <= MAX_MESSAGE_BYTES, "held after {sent} bytes");
    };
    assert!(matches!(error, CodecError::TooLarge), "{error}");
    assert!(sent <= MAX_SKIPPED_BYTES + piece.len(), "only after {sent} bytes");
}

#[test]
fn a_message_that_would_take_a_multiple_of_its_size_in_memory_is_skipped() {
    let members = "{\"\":0},".repeat(MAX_MESSAGE_MEMBERS / 2);
    let input = format!("{{\"return\": [{members}{{}}], \"id\": 3}}");
    assert!(input.len() < MAX_MESSAGE_BYTES);
    match skipped_before_another(&input) {
        Message::Skipped { kind: SkippedKind::Reply, id: Some(3), excess } => {
            assert!(matches!(excess, Excess::Members { at } if at < input.len()), "{excess:?}");
        }
        other => panic!("{other:?}"),
    }
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

#[test]
fn what_was_not_asked_for_is_read_only_where_it_is_short() {
    let long = format!("[{}0]", "[],".repeat(MAX_UNASKED_BYTES / 3));
    let next = |text: String| {
        let most = |id: u64| if id == 7 { MAX_MESSAGE_BYTES } else { 0 };
        QmpCodec::default().next(&mut BytesMut::from(text.as_bytes()), most).unwrap().unwrap()
    };
    let is_skipped =
        |text: String| matches!(next(text), Message::Skipped { excess: Excess::Unasked, .. });
    assert!(is_skipped(format!("{{\"event\": \"X\", \"data\": {long}}}")));
    assert!(is_skipped(format!("{{\"x\": {long}}}")));
    assert!(is_skipped(format!("{{\"return\": {long}, \"id\": 8}}")));
    assert!(is_skipped(format!("{{\"return\": {long}}}")));
    assert!(!is_skipped(format!("{{\"return\": {long}, \"id\": 7}}")));
    assert!(!is_skipped("{\"event\": \"X\", \"data\": [[]]}".to_owned()));
}
