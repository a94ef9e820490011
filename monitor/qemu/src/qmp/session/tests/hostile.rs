//! What a QEMU that was taken over may send.

use super::{brief::unhurried, *};

#[tokio::test]
async fn floods_are_refused() {
    let message = "{\"event\": \"BLOCK_IO_ERROR\"}".repeat(2_000);
    let state_events = "{\"event\": \"STOP\"}".repeat(201);
    let blanks = " ".repeat(40 << 20);
    for (flood, says) in [(message, "messages"), (state_events, "events"), (blanks, "bytes")] {
        let (_dir, path, listener) = serve();
        let limits = Limits { bytes_per_second: 1 << 20, ..quick() };
        let (_handle, mut notices) = own_session(&path, limits);
        let mut server = ready(&listener, &mut notices).await;
        tokio::spawn(async move {
            // It ends when the session hangs up.
            let _ = server.stream.write_all(flood.as_bytes()).await;
        });
        let mut events = 0;
        let reason = loop {
            match next(&mut notices).await {
                QmpNotice::Event(_) => events += 1,
                QmpNotice::State(state) => break refusal(state),
                QmpNotice::RunState(_) => panic!("a run state"),
            }
        };
        assert!(reason.starts_with("flood: ") && reason.contains(says), "{reason}");
        assert!(events <= 200, "{events}");
    }
}

#[tokio::test]
async fn a_machine_that_resets_itself_hundreds_of_times_a_second_is_heard_on() {
    let (_dir, path, listener) = serve();
    let (_handle, mut notices) = own_session(&path, quick());
    let mut server = ready(&listener, &mut notices).await;
    // QEMU 5.2 with SeaBIOS 1.14 on q35 was seen to do so 260 to 400 times a second.
    let reset =
        "{\"event\": \"RESET\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\n";
    let resets = reset.repeat(1_500) + "{\"event\": \"STOP\"}\n";
    let writer = tokio::spawn(async move {
        server.stream.write_all(resets.as_bytes()).await.expect("taken");
        server
    });
    let mut heard = 0;
    loop {
        match next(&mut notices).await {
            QmpNotice::Event(QmpEvent::Reset { guest: true }) => heard += 1,
            QmpNotice::Event(QmpEvent::Stop) => break,
            other => panic!("{other:?}"),
        }
    }
    // What is left out is a surplus.
    assert!((100..1_500).contains(&heard), "{heard}");
    writer.await.expect("a writer");
}

#[tokio::test]
async fn a_message_that_does_not_end_and_one_that_was_not_asked_for_end_the_connection() {
    let begun = "{\"event\": \"".to_owned();
    let unasked = format!("{{\"x\": \"{}\"}}", "x".repeat(2 << 20));
    let default = Limits::default().message;
    for (said, message, says) in [
        (begun, Duration::from_millis(200), "was not complete within"),
        (unasked, default, "not asked for"),
    ] {
        let (_dir, path, listener) = serve();
        let limits = Limits { message, ..quick() };
        let (_handle, mut notices) = own_session(&path, limits);
        let mut server = ready(&listener, &mut notices).await;
        tokio::spawn(async move {
            // It ends when the session hangs up.
            let _ = server.stream.write_all(said.as_bytes()).await;
            let _ = server.stream.read_line(&mut String::new()).await;
        });
        let state = next_state(&mut notices).await;
        assert!(format!("{state:?}").contains(says), "{state:?}");
    }
}

/// Nested deeper than is taken.
fn deep() -> String {
    "[".repeat(200) + &"]".repeat(200)
}

/// More members than are taken.
fn many() -> String {
    format!("[{}0]", "0,".repeat(1 << 18))
}

/// More bytes than are taken.
fn large() -> String {
    format!("\"{}\"", "x".repeat(5 << 20))
}

#[tokio::test]
async fn an_answer_that_is_more_than_is_taken_fails_alone_and_the_others_find_their_callers() {
    for (value, says) in [(deep(), "nested deeper"), (many(), "members"), (large(), "bytes")] {
        let (_dir, path, listener) = serve();
        let (handle, mut notices) = own_session(&path, quick());
        let mut server = ready(&listener, &mut notices).await;
        let limit = Duration::from_secs(20);
        let server = async {
            let ids = [server.hear().await, server.hear().await, server.hear().await];
            let id = |name: &str| ids.iter().find(|(heard, _)| heard == name).unwrap().1;
            // Whichever was asked first; its id stands behind what is returned, or before it.
            server.say(&json!({"return": 1, "id": id("a")}).to_string()).await;
            server.say(&format!("{{\"return\": {value}, \"id\": {}}}", id("b"))).await;
            server.say(&json!({"return": 3, "id": id("c")}).to_string()).await;
            let (again, id) = server.hear().await;
            assert_eq!(again, "b");
            server.say(&format!("{{\"id\": {id}, \"return\": {value}}}")).await;
            server.say("{\"event\": \"STOP\"}").await;
            server
        };
        let callers = async {
            let (a, b, c) = tokio::join!(
                handle.execute("a", None, limit),
                handle.execute("b", None, limit),
                handle.execute("c", None, limit)
            );
            (a, b, c, handle.execute("b", None, limit).await)
        };
        let ((a, b, c, again), _server) = tokio::join!(callers, server);
        assert_eq!((a.unwrap(), c.unwrap()), (json!(1), json!(3)));
        for skipped in [b, again] {
            let error = skipped.unwrap_err();
            assert!(matches!(error, QmpError::Skipped { .. }) && error.is_answer(), "{error:?}");
            let text = error.to_string();
            assert!(text.starts_with("QEMU's answer to b is not taken: "), "{text}");
            assert!(text.contains(says), "{text}");
        }
        assert_eq!(next(&mut notices).await, QmpNotice::Event(QmpEvent::Stop));
    }
}

#[tokio::test]
async fn an_event_that_is_skipped_has_the_run_state_asked_and_many_are_a_flood() {
    let (_dir, path, listener) = serve();
    let limits = Limits { skipped_events: 2, ..unhurried() };
    let (_handle, mut notices) = own_session(&path, limits);
    let mut server = ready(&listener, &mut notices).await;
    let event = format!("{{\"event\": \"RESET\", \"data\": {}}}", deep());
    for state in ["paused", "running"] {
        server.say(&event).await;
        server.answer("query-status", json!({"status": state})).await;
        expect_run_state(&mut notices, RunState::parse(state)).await;
    }
    server.say(&event).await;
    let reason = refusal(next_state(&mut notices).await);
    assert!(reason.starts_with("flood: 3 events"), "{reason}");
}

#[tokio::test]
async fn what_nobody_waits_for_is_refused_where_it_would_have_to_be_skipped() {
    let deep = deep();
    for (said, says) in [
        (
            format!("{{\"return\": {deep}, \"id\": 999}}"),
            "an answer that no command waits for, nested",
        ),
        (format!("{{\"return\": {deep}}}"), "an answer that no command waits for, nested"),
        (format!("{{\"a\": {deep}}}"), "a QMP message of no known kind, nested"),
        (format!("{{\"QMP\": {deep}}}"), "a second greeting on one connection, nested"),
    ] {
        let (_dir, path, listener) = serve();
        let (_handle, mut notices) = own_session(&path, quick());
        let mut server = ready(&listener, &mut notices).await;
        server.say(&said).await;
        let reason = refusal(next_state(&mut notices).await);
        assert!(reason.starts_with(says), "{reason}");
    }
}

#[tokio::test]
async fn an_answer_that_never_ends_is_refused() {
    let (_dir, path, listener) = serve();
    let limits = Limits { bytes_per_second: usize::MAX, ..quick() };
    let (handle, mut notices) = own_session(&path, limits);
    let mut server = ready(&listener, &mut notices).await;
    let asked =
        tokio::spawn(async move { handle.execute("a", None, Duration::from_secs(60)).await });
    server.hear().await;
    tokio::spawn(async move {
        let piece = vec![b'x'; 1 << 20];
        let _ = server.stream.write_all(b"{\"return\": \"").await;
        // It ends when the session hangs up.
        while server.stream.write_all(&piece).await.is_ok() {}
    });
    let refused = timeout(Duration::from_secs(60), notices.recv()).await.unwrap();
    let Some((_, QmpNotice::State(state))) = refused else { panic!("{refused:?}") };
    let reason = refusal(state);
    assert!(reason.starts_with("a QMP message of more than"), "{reason}");
    assert!(matches!(asked.await.unwrap(), Err(QmpError::Disconnected { .. })));
}

#[tokio::test]
async fn nonsense_is_refused() {
    for nonsense in ["HTTP/1.1 400\r\n", "{\"event\": \"STOP\"}", "{\"QMP\": }"] {
        let (_dir, path, listener) = serve();
        let (_handle, mut notices) = own_session(&path, quick());
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(nonsense.as_bytes()).await.unwrap();
        assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
        refusal(next_state(&mut notices).await);
    }
}
