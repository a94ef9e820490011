//! Sessions with a server made up here, over real Unix sockets.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::{Instant, timeout},
};

use super::*;
use crate::qmp::{QmpEvent, RunState};

type Notices = mpsc::Receiver<(VmId, QmpNotice)>;

const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

fn quick() -> Limits {
    Limits {
        greeting: Duration::from_millis(150),
        handshake: Duration::from_millis(400),
        busy_pause: Duration::from_millis(50),
        closed_pause_min: Duration::from_millis(10),
        closed_pause_max: Duration::from_millis(50),
        notice: Duration::from_millis(100),
        ..Limits::default()
    }
}

fn process(pid: u32) -> VmId {
    VmId { pid, start_ticks: crate::discover::start_ticks(pid).unwrap() }
}

fn start(vm: VmId, socket: &Path, limits: Limits) -> (QmpHandle, Notices) {
    let (sender, mut notices) = mpsc::channel(64);
    let target = QmpTarget::at_path(vm, socket);
    let handle = spawn_with_limits(target, sender, limits);
    assert!(notices.try_recv().is_err());
    (handle, notices)
}

/// A server in this very process, so that it passes for the QEMU.
fn serve() -> (tempfile::TempDir, PathBuf, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (dir, path, listener)
}

fn own_session(path: &Path, limits: Limits) -> (QmpHandle, Notices) {
    start(process(std::process::id()), path, limits)
}

async fn next(notices: &mut Notices) -> QmpNotice {
    let next = timeout(Duration::from_secs(4), notices.recv()).await;
    next.expect("a notice in time").expect("a session").1
}

async fn next_state(notices: &mut Notices) -> QmpState {
    match next(notices).await {
        QmpNotice::State(state) => state,
        other => panic!("{other:?} instead of a state"),
    }
}

async fn expect_run_state(notices: &mut Notices, expected: RunState) {
    assert_eq!(next(notices).await, QmpNotice::RunState(expected));
}

struct Server {
    stream: BufReader<UnixStream>,
}

impl Server {
    async fn accept(listener: &UnixListener) -> Self {
        let stream = BufReader::new(listener.accept().await.unwrap().0);
        let mut server = Self { stream };
        server.say(GREETING).await;
        server
    }

    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next command's name and id.
    async fn hear(&mut self) -> (String, u64) {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        let command: Value = serde_json::from_str(&line).unwrap();
        (command["execute"].as_str().unwrap().to_owned(), command["id"].as_u64().unwrap())
    }

    async fn answer(&mut self, expected: &str, result: Value) {
        let (command, id) = self.hear().await;
        assert_eq!(command, expected);
        self.say(&json!({"return": result, "id": id}).to_string()).await;
    }

    async fn negotiate(listener: &UnixListener) -> Self {
        let mut server = Self::accept(listener).await;
        server.answer("qmp_capabilities", json!({})).await;
        server.answer("query-status", json!({"status": "running"})).await;
        server
    }
}

async fn ready(listener: &UnixListener, notices: &mut Notices) -> Server {
    let server = Server::negotiate(listener).await;
    assert_eq!(next_state(notices).await, QmpState::Connecting);
    assert_eq!(next_state(notices).await, QmpState::Ready);
    expect_run_state(notices, RunState::Running).await;
    server
}

fn refusal(state: QmpState) -> String {
    match state {
        QmpState::Refused { reason } => reason,
        other => panic!("{other:?} instead of Refused"),
    }
}

#[tokio::test]
async fn a_server_that_greets_becomes_ready_and_its_answers_find_their_callers() {
    let (_dir, path, listener) = serve();
    let (handle, mut notices) = own_session(&path, quick());
    let mut server = ready(&listener, &mut notices).await;
    let limit = Duration::from_secs(1);
    let server = async {
        let ((first, first_id), (second, second_id)) = (server.hear().await, server.hear().await);
        let (a, b) = if first == "a" { (first_id, second_id) } else { (second_id, first_id) };
        assert_ne!(first, second);
        server.say("{\"event\": \"RESET\", \"data\": {\"guest\": true}}").await;
        let error = json!({"error": {"class": "GenericError", "desc": "no"}, "id": b});
        server.say(&error.to_string()).await;
        server.say(&json!({"return": 1, "id": 999}).to_string()).await;
        server.say(&json!({"return": "for a", "id": a}).to_string()).await;
    };
    let (a, b, ()) =
        tokio::join!(handle.execute("a", None, limit), handle.execute("b", None, limit), server);
    assert_eq!(a.unwrap(), json!("for a"));
    assert!(matches!(b, Err(QmpError::Command { desc, .. }) if desc == "no"));
    let reset = QmpNotice::Event(QmpEvent::Reset { guest: true });
    assert_eq!(next(&mut notices).await, reset);
}

#[tokio::test]
async fn a_silent_server_is_busy_and_is_tried_again() {
    let (_dir, path, listener) = serve();
    let (handle, mut notices) = own_session(&path, quick());
    let silent = listener.accept().await.unwrap();
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    assert_eq!(next_state(&mut notices).await, QmpState::Busy);
    let refused = handle.execute("stop", None, Duration::from_secs(1)).await;
    assert!(matches!(refused, Err(QmpError::NotConnected { .. })));
    // No other connection was made meanwhile, and this one is served once its turn has come.
    let second = timeout(Duration::from_millis(300), listener.accept()).await;
    assert!(second.is_err(), "given up, and tried again");
    let mut server = Server { stream: BufReader::new(silent.0) };
    server.say(GREETING).await;
    server.answer("qmp_capabilities", json!({})).await;
    server.answer("query-status", json!({"status": "running"})).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
}

#[tokio::test]
async fn a_silent_server_that_hangs_up_is_connected_to_again() {
    let (_dir, path, listener) = serve();
    let (_handle, mut notices) = own_session(&path, quick());
    let silent = listener.accept().await.unwrap();
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    assert_eq!(next_state(&mut notices).await, QmpState::Busy);
    drop(silent);
    assert!(matches!(next_state(&mut notices).await, QmpState::Closed { .. }));
    Server::negotiate(&listener).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
}

/// Two sockets of the same QEMU.
fn of_two(first: &Path, second: &Path, limits: Limits) -> (QmpHandle, Notices) {
    let (sender, notices) = mpsc::channel(64);
    let vm = process(std::process::id());
    let sockets = [first, second].map(ListeningSocket::at_path).into();
    let target = QmpTarget { vm, sockets, threads: ThreadsTold::default() };
    (spawn_with_limits(target, sender, limits), notices)
}

#[tokio::test]
async fn a_second_socket_is_used_where_the_first_one_does_not_greet_and_kept() {
    let (_one, first, silent) = serve();
    let (_two, second, listener) = serve();
    let (_handle, mut notices) = of_two(&first, &second, quick());
    let never_greeted = silent.accept().await.unwrap();
    let mut server = ready(&listener, &mut notices).await;
    // The one that waited in vain was hung up on, and no other came.
    let mut rest = [0; 1];
    let mut stream = never_greeted.0;
    let read =
        timeout(Duration::from_secs(2), tokio::io::AsyncReadExt::read(&mut stream, &mut rest));
    assert_eq!(read.await.expect("an end").unwrap(), 0);
    let again = timeout(Duration::from_millis(300), silent.accept()).await;
    assert!(again.is_err(), "it was tried although the other one serves");
    // When its connection ends, it is the first to be tried again.
    server.say("").await;
    drop(server);
    assert!(matches!(next_state(&mut notices).await, QmpState::Closed { .. }));
    Server::negotiate(&listener).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
}

#[tokio::test]
async fn a_second_socket_is_used_where_the_first_one_is_not_there_or_talks_nonsense() {
    let (_two, second, listener) = serve();
    let (_handle, mut notices) = of_two(Path::new("/nowhere/q.sock"), &second, quick());
    ready(&listener, &mut notices).await;
    let (_one, first, nonsense) = serve();
    let (_handle, mut notices) = of_two(&first, &second, quick());
    let mut stream = nonsense.accept().await.unwrap().0;
    stream.write_all(b"HTTP/1.1 400\r\n").await.unwrap();
    ready(&listener, &mut notices).await;
}

#[tokio::test]
async fn of_two_sockets_that_are_both_in_use_either_is_taken_once_it_is_free() {
    let (_one, first, busy) = serve();
    let (_two, second, listener) = serve();
    let (_handle, mut notices) = of_two(&first, &second, quick());
    let _first = busy.accept().await.unwrap();
    let second = listener.accept().await.unwrap();
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    assert_eq!(next_state(&mut notices).await, QmpState::Busy);
    let mut server = Server { stream: BufReader::new(second.0) };
    server.say(GREETING).await;
    server.answer("qmp_capabilities", json!({})).await;
    server.answer("query-status", json!({"status": "running"})).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
}

#[tokio::test]
async fn a_server_in_another_process_than_the_qemu_is_refused() {
    let (_dir, path, listener) = serve();
    // It has the socket, but another process called `listen`.
    let theirs = std::os::fd::AsFd::as_fd(&listener).try_clone_to_owned().unwrap();
    let mut child = Command::new("sleep").arg("60").stdin(theirs).spawn().unwrap();
    let (_handle, mut notices) = start(process(child.id()), &path, quick());
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    let reason = refusal(next_state(&mut notices).await);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(reason.contains(&format!("not to {}", child.id())), "{reason}");
    // It was told nothing.
    let (stream, _) = listener.accept().await.unwrap();
    let mut said = String::new();
    BufReader::new(stream).read_line(&mut said).await.unwrap();
    assert_eq!(said, "");
}

#[tokio::test]
async fn a_socket_on_which_the_qemu_does_not_listen_is_not_even_connected_to() {
    let (_dir, path, listener) = serve();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let (_handle, mut notices) = start(process(child.id()), &path, quick());
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    let state = next_state(&mut notices).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        matches!(&state, QmpState::Closed { reason } if reason.contains("listens on no socket")),
        "{state:?}"
    );
    let came = timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(came.is_err());
}

#[tokio::test]
async fn a_process_that_only_has_the_pid_of_the_qemu_is_refused() {
    let (_dir, path, _listener) = serve();
    let vm = process(std::process::id());
    let earlier = VmId { start_ticks: vm.start_ticks - 1, ..vm };
    let (_handle, mut notices) = start(earlier, &path, quick());
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    assert!(refusal(next_state(&mut notices).await).contains("is gone"));
}

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
        (format!("{{\"return\": {deep}, \"id\": 999}}"), "an answer that nobody waits for, nested"),
        (format!("{{\"return\": {deep}}}"), "an answer that nobody waits for, nested"),
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

#[tokio::test]
async fn a_late_answer_makes_an_unresponsive_server_ready_and_its_run_state_is_asked_again() {
    let (_dir, path, listener) = serve();
    let (handle, mut notices) = own_session(&path, quick());
    let mut server = ready(&listener, &mut notices).await;
    let before = std::time::Instant::now();
    let limit = Duration::from_millis(50);
    let late = handle.execute("late", None, limit).await;
    assert!(matches!(late, Err(QmpError::Timeout { .. })));
    match next_state(&mut notices).await {
        QmpState::Unresponsive { since } => assert!(since >= before && since < before + limit),
        other => panic!("{other:?}"),
    }
    server.answer("late", json!({})).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
    server.answer("query-status", json!({"status": "paused"})).await;
    expect_run_state(&mut notices, RunState::Paused).await;
}

#[tokio::test]
async fn unanswered_commands_are_limited_and_count_after_their_time_is_up() {
    let (_dir, path, listener) = serve();
    let (handle, mut notices) = own_session(&path, Limits { unanswered: 3, ..quick() });
    let _server = ready(&listener, &mut notices).await;
    for _ in 0..3 {
        let result = handle.execute("x", None, Duration::from_millis(20)).await;
        assert!(matches!(result, Err(QmpError::Timeout { .. })));
    }
    let before = Instant::now();
    let result = handle.execute("x", None, Duration::from_secs(3)).await;
    assert!(matches!(result, Err(QmpError::Busy)));
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_connection_that_ends_is_closed_and_made_again() {
    let (_dir, path, listener) = serve();
    let (handle, mut notices) = own_session(&path, quick());
    let mut server = ready(&listener, &mut notices).await;
    let hang_up = async {
        server.hear().await;
        drop(server);
    };
    let limit = Duration::from_secs(1);
    let (result, ()) = tokio::join!(handle.execute("quit", None, limit), hang_up);
    assert!(matches!(result, Err(QmpError::Disconnected { .. })));
    assert!(matches!(next_state(&mut notices).await, QmpState::Closed { .. }));
    Server::negotiate(&listener).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
    expect_run_state(&mut notices, RunState::Running).await;
}

#[tokio::test]
async fn a_socket_that_appears_later_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("late.sock");
    let (_handle, mut notices) = own_session(&path, quick());
    assert_eq!(next_state(&mut notices).await, QmpState::Connecting);
    assert!(matches!(next_state(&mut notices).await, QmpState::Closed { .. }));
    let listener = UnixListener::bind(&path).unwrap();
    Server::negotiate(&listener).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
}

#[tokio::test]
async fn after_notices_that_were_not_taken_the_run_state_is_asked_again() {
    let (_dir, path, listener) = serve();
    let (sender, mut notices) = mpsc::channel(4);
    let vm = process(std::process::id());
    let target = QmpTarget::at_path(vm, &path);
    let _handle = spawn_with_limits(target, sender, quick());
    let mut server = ready(&listener, &mut notices).await;
    server.say(&"{\"event\": \"STOP\"}".repeat(6)).await;
    // Nobody takes the notices until the session has hung up.
    let mut rest = String::new();
    server.stream.read_line(&mut rest).await.unwrap_or(0);
    for _ in 0..4 {
        assert_eq!(next(&mut notices).await, QmpNotice::Event(QmpEvent::Stop));
    }
    match next_state(&mut notices).await {
        QmpState::Closed { reason } => assert!(reason.contains("not taken"), "{reason}"),
        other => panic!("{other:?}"),
    }
    Server::negotiate(&listener).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
    expect_run_state(&mut notices, RunState::Running).await;
}

#[tokio::test]
async fn the_task_ends_when_it_is_closed_and_when_its_last_handle_is_dropped() {
    for close in [true, false] {
        let (_dir, path, listener) = serve();
        let (handle, mut notices) = own_session(&path, quick());
        let _server = ready(&listener, &mut notices).await;
        let kept = close.then(|| handle.clone());
        if close {
            handle.close();
        }
        drop(handle);
        let ended = timeout(Duration::from_secs(1), notices.recv()).await.unwrap();
        assert_eq!(ended, None);
        if let Some(kept) = kept {
            let result = kept.execute("x", None, Duration::from_secs(1)).await;
            assert!(matches!(result, Err(QmpError::SessionClosed)));
        }
    }
}

/// A machine under load must not make it give up; and nothing is polled.
fn unhurried() -> Limits {
    let long = Duration::from_secs(3);
    Limits {
        greeting: long,
        handshake: long,
        notice: long,
        brief_poll: Duration::from_secs(60),
        ..quick()
    }
}

fn brief_session(path: &Path, limits: Limits) -> (QmpHandle, Notices) {
    let (sender, notices) = mpsc::channel(64);
    let vm = process(std::process::id());
    let target = QmpTarget::at_path(vm, path);
    (spawn_by(Transport::Brief(target), sender, limits), notices)
}

/// Nothing more comes on this connection, which the session has ended.
async fn expect_the_end(server: &mut Server) {
    let mut rest = String::new();
    let read = timeout(Duration::from_secs(2), server.stream.read_line(&mut rest)).await;
    assert_eq!(read.expect("an end").unwrap(), 0, "{rest}");
}

#[tokio::test]
async fn a_brief_session_leaves_the_socket_free_and_is_ready_all_the_same() {
    let (_dir, path, listener) = serve();
    let limits = unhurried();
    let (handle, mut notices) = brief_session(&path, limits);
    let mut server = ready(&listener, &mut notices).await;
    expect_the_end(&mut server).await;
    drop(server);
    // Nothing is reported of that, and the next command makes its own connection, by which the run state is told.
    let limit = Duration::from_secs(3);
    let serve_once = async {
        let mut server = Server::negotiate(&listener).await;
        server.answer("x", json!({"a": 1})).await;
        expect_the_end(&mut server).await;
    };
    let (answer, ()) = tokio::join!(handle.execute("x", None, limit), serve_once);
    assert_eq!(answer.unwrap(), json!({"a": 1}));
    expect_run_state(&mut notices, RunState::Running).await;
    assert!(notices.try_recv().is_err());
}

#[tokio::test]
async fn a_brief_session_takes_several_callers_with_one_connection() {
    let (_dir, path, listener) = serve();
    let limits = unhurried();
    let (handle, mut notices) = brief_session(&path, limits);
    let mut server = ready(&listener, &mut notices).await;
    expect_the_end(&mut server).await;
    let limit = Duration::from_secs(3);
    let serve_once = async {
        let mut server = Server::negotiate(&listener).await;
        server.answer("a", json!(1)).await;
        server.answer("b", json!(2)).await;
        expect_the_end(&mut server).await;
    };
    let both =
        async { tokio::join!(handle.execute("a", None, limit), handle.execute("b", None, limit)) };
    let ((a, b), ()) = tokio::join!(both, serve_once);
    assert_eq!((a.unwrap(), b.unwrap()), (json!(1), json!(2)));
}

#[tokio::test]
async fn a_brief_session_asks_for_the_run_state_every_so_often() {
    let (_dir, path, listener) = serve();
    let limits = Limits { brief_poll: Duration::from_millis(50), ..unhurried() };
    let (_handle, mut notices) = brief_session(&path, limits);
    let mut server = ready(&listener, &mut notices).await;
    expect_the_end(&mut server).await;
    drop(server);
    for _ in 0..2 {
        let mut server = Server::negotiate(&listener).await;
        expect_the_end(&mut server).await;
        expect_run_state(&mut notices, RunState::Running).await;
    }
}

#[tokio::test]
async fn a_socket_that_is_in_use_for_a_moment_is_waited_for_by_a_brief_session() {
    let (_dir, path, listener) = serve();
    let limits = Limits { greeting: Duration::from_millis(300), ..unhurried() };
    let (handle, mut notices) = brief_session(&path, limits);
    let mut server = ready(&listener, &mut notices).await;
    expect_the_end(&mut server).await;
    let limit = Duration::from_secs(3);
    let in_use = async {
        // No greeting for longer than that takes; then it is free.
        let (silent, _) = listener.accept().await.unwrap();
        tokio::time::sleep(limits.greeting * 2).await;
        let mut server = Server { stream: BufReader::new(silent) };
        server.say(GREETING).await;
        server.answer("qmp_capabilities", json!({})).await;
        server.answer("query-status", json!({"status": "running"})).await;
        server.answer("x", json!({})).await;
        expect_the_end(&mut server).await;
    };
    let (answer, ()) = tokio::join!(handle.execute("x", None, limit), in_use);
    assert!(answer.is_ok(), "{answer:?}");
    expect_run_state(&mut notices, RunState::Running).await;
    assert!(notices.try_recv().is_err());
}

#[tokio::test]
async fn a_caller_of_a_brief_session_is_told_that_there_is_no_connection() {
    let (_dir, path, listener) = serve();
    let limits = unhurried();
    let (handle, mut notices) = brief_session(&path, limits);
    let mut server = ready(&listener, &mut notices).await;
    expect_the_end(&mut server).await;
    drop((server, listener));
    std::fs::remove_file(&path).unwrap();
    let result = handle.execute("x", None, Duration::from_secs(3)).await;
    assert!(matches!(result, Err(QmpError::NotConnected { .. })), "{result:?}");
    assert!(matches!(next_state(&mut notices).await, QmpState::Closed { .. }));
}

#[tokio::test]
async fn a_command_that_a_brief_session_gets_no_answer_to_makes_it_unresponsive() {
    let (_dir, path, listener) = serve();
    let limits = unhurried();
    let (handle, mut notices) = brief_session(&path, limits);
    let mut server = ready(&listener, &mut notices).await;
    expect_the_end(&mut server).await;
    let limit = Duration::from_millis(300);
    let (late, mut server) =
        tokio::join!(handle.execute("late", None, limit), Server::negotiate(&listener));
    assert!(matches!(late, Err(QmpError::Timeout { .. })), "{late:?}");
    expect_run_state(&mut notices, RunState::Running).await;
    assert!(matches!(next_state(&mut notices).await, QmpState::Unresponsive { .. }));
    // The connection is kept, since QEMU may still answer.
    server.answer("late", json!({})).await;
    assert_eq!(next_state(&mut notices).await, QmpState::Ready);
}
