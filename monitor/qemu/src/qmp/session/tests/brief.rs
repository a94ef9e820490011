//! Sessions that take the socket for a batch of commands only.

use super::*;

/// A machine under load must not make it give up; and nothing is polled.
pub(super) fn unhurried() -> Limits {
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
    (spawn(Transport::Brief(target), sender, limits, Room::default()), notices)
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
