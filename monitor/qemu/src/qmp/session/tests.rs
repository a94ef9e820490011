//! Sessions with a server made up here, over real Unix sockets.

mod brief;
mod hostile;
mod sockets;

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
        greeting: Duration::from_millis(700),
        handshake: Duration::from_secs(2),
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
    let handle = spawn(Transport::Keep(target), sender, limits, Room::default());
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
async fn what_a_server_said_before_it_hung_up_is_heard_though_a_command_can_no_longer_be_sent() {
    let (_dir, path, listener) = serve();
    let (handle, mut notices) = own_session(&path, quick());
    let mut server = ready(&listener, &mut notices).await;
    server.say("{\"event\": \"STOP\"}").await;
    drop(server);
    // Nothing was waited for since: the session finds the command first, and that it can't be sent.
    let unsent = handle.execute("a", None, Duration::from_secs(1)).await;
    assert!(matches!(unsent, Err(QmpError::Disconnected { .. })), "{unsent:?}");
    assert_eq!(next(&mut notices).await, QmpNotice::Event(QmpEvent::Stop));
    let state = next_state(&mut notices).await;
    assert!(matches!(state, QmpState::Closed { .. }), "{state:?}");
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
    let _handle = spawn(Transport::Keep(target), sender, quick(), Room::default());
    let mut server = ready(&listener, &mut notices).await;
    server.say(&"{\"event\": \"STOP\"}".repeat(6)).await;
    // The notices aren't taken until the session has hung up.
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
