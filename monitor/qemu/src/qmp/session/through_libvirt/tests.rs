//! Sessions with a `virsh` made up here, and what is read of what it prints.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{sync::mpsc, time::timeout};

use super::{
    command::{refusal_in, reply_in},
    events::{LINE_BYTES, event_in, read_line},
};
use crate::{
    discover::{self, VmId},
    program::virsh::Virsh,
    qmp::{
        LibvirtTarget, Limits, QmpError, QmpEvent, QmpHandle, QmpNotice, QmpState, Room, RunState,
        Transport, codec::MAX_MESSAGE_BYTES, session::spawn,
    },
};

type Notices = mpsc::Receiver<(VmId, QmpNotice)>;

/// A session with a `virsh` that is a script of these cases, for the domain `d` of this very process.
fn session(dir: &Path, cases: &str) -> (QmpHandle, Notices) {
    let script = dir.join("virsh");
    let own = std::process::id();
    let text = format!(
        "for last; do :; done\ncase \"$*\" in\n{cases}\n\
         *query-cpus-fast*) echo '{{\"return\":[{{\"thread-id\":{own}}}]}}';;\n\
         *query-status*) echo '{{\"return\":{{\"status\":\"running\"}}}}';;\n\
         *qemu-monitor-event*) exec sleep 30;;\n\
         *) echo \"error: $last\" >&2; exit 1;;\nesac\n"
    );
    std::fs::write(&script, text).unwrap();
    let vm = VmId { pid: own, start_ticks: discover::start_ticks(own).unwrap() };
    let virsh = Virsh::new("qemu:///system", "c7a5fdbd-edaf-9455-926a-d65c16db1809")
        .by(&["/bin/sh", script.to_str().unwrap()]);
    let target = LibvirtTarget { vm, virsh, domain: "d".to_owned(), link: None, uid: 0 };
    let (sender, notices) = mpsc::channel(64);
    (spawn(Transport::Libvirt(target), sender, Limits::default(), Room::default()), notices)
}

async fn next(notices: &mut Notices) -> QmpNotice {
    timeout(Duration::from_secs(20), notices.recv()).await.expect("in time").expect("one").1
}

async fn ready(notices: &mut Notices) {
    assert_eq!(next(notices).await, QmpNotice::State(QmpState::Connecting));
    assert_eq!(next(notices).await, QmpNotice::State(QmpState::Ready));
    assert_eq!(next(notices).await, QmpNotice::RunState(RunState::Running));
}

#[tokio::test]
async fn a_session_through_virsh_answers_its_callers_with_qemus_words() {
    let dir = tempfile::tempdir().unwrap();
    let cases = "*'\"x\"'*) echo '{\"return\":{\"a\":1},\"id\":\"libvirt-9\"}';;\n\
                 *'\"no\"'*) echo '{\"error\":{\"class\":\"GenericError\",\"desc\":\"n\"}}';;\n\
                 *'\"late\"'*) sleep 30;;";
    let (handle, mut notices) = session(dir.path(), cases);
    ready(&mut notices).await;
    let limit = Duration::from_secs(20);
    let (x, no) = tokio::join!(
        handle.execute("x", Some(json!({"b": "c d"})), limit),
        handle.execute("no", None, limit)
    );
    assert_eq!(x.unwrap(), json!({"a": 1}));
    assert!(matches!(no, Err(QmpError::Command { .. })), "{no:?}");
    let begin = Instant::now();
    let late = handle.execute("late", None, Duration::from_millis(300)).await;
    assert!(matches!(late, Err(QmpError::Timeout { .. })), "{late:?}");
    assert!(begin.elapsed() < Duration::from_secs(20));
    let state = next(&mut notices).await;
    assert!(matches!(state, QmpNotice::State(QmpState::Unresponsive { .. })), "{state:?}");
    // The next answer shows that it is there again.
    assert!(handle.execute("x", None, limit).await.is_ok());
    assert_eq!(next(&mut notices).await, QmpNotice::State(QmpState::Ready));
    assert_eq!(next(&mut notices).await, QmpNotice::RunState(RunState::Running));
}

#[tokio::test]
async fn events_come_with_their_details_and_only_of_this_domain() {
    let dir = tempfile::tempdir().unwrap();
    let cases = "*qemu-monitor-event*)\n\
         echo \"2026: event STOP for domain 'other': <null>\"\n\
         echo \"2026: event GUEST_PANICKED for domain 'd': {\\\"action\\\":\\\"pause\\\"}\"\n\
         exec sleep 30;;";
    let (_handle, mut notices) = session(dir.path(), cases);
    let mut heard = Vec::new();
    while heard.len() < 4 {
        heard.push(next(&mut notices).await);
    }
    let panicked = QmpEvent::GuestPanicked { action: "pause".to_owned() };
    assert!(heard.contains(&QmpNotice::Event(panicked)), "{heard:?}");
    assert!(heard.contains(&QmpNotice::RunState(RunState::Running)), "{heard:?}");
}

#[tokio::test]
async fn a_domain_that_is_another_qemu_is_never_told_anything() {
    let dir = tempfile::tempdir().unwrap();
    let cases = "*query-cpus-fast*) echo '{\"return\":[{\"thread-id\":1}]}';;";
    let (handle, mut notices) = session(dir.path(), cases);
    assert_eq!(next(&mut notices).await, QmpNotice::State(QmpState::Connecting));
    match next(&mut notices).await {
        QmpNotice::State(QmpState::Refused { reason }) => {
            assert!(reason.contains("another QEMU"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let told = handle.execute("system_reset", None, Duration::from_secs(5)).await;
    assert!(matches!(told, Err(QmpError::NotConnected { .. })), "{told:?}");
}

#[tokio::test]
async fn a_libvirt_that_goes_away_is_a_connection_that_ends() {
    let dir = tempfile::tempdir().unwrap();
    let cases = "*'\"x\"'*) echo 'error: failed to connect to the hypervisor' >&2; exit 1;;";
    let (handle, mut notices) = session(dir.path(), cases);
    ready(&mut notices).await;
    let told = handle.execute("x", None, Duration::from_secs(20)).await;
    assert!(matches!(told, Err(QmpError::NotConnected { .. })), "{told:?}");
    let state = next(&mut notices).await;
    assert!(matches!(state, QmpNotice::State(QmpState::Closed { .. })), "{state:?}");
    // It is tried again.
    assert_eq!(next(&mut notices).await, QmpNotice::State(QmpState::Ready));
    handle.close();
    let told = handle.execute("x", None, Duration::from_secs(5)).await;
    assert!(matches!(told, Err(QmpError::SessionClosed)), "{told:?}");
}

#[test]
fn an_event_is_read_from_the_lines_of_each_version() {
    let shutdown = QmpEvent::Shutdown { guest: true, reason: "guest-panic".to_owned() };
    for line in [
        "2026-11-25 03:00:00.123+0000: event SHUTDOWN for domain 'web 1': \
         {\"guest\":true,\"reason\":\"guest-panic\"}",
        "2026-11-25 03:00:00.123+0000: event SHUTDOWN for domain web 1: \
         {\"guest\":true,\"reason\":\"guest-panic\"}",
        "event SHUTDOWN at 1371.400000 for domain 'web 1': \
         {\"guest\":true,\"reason\":\"guest-panic\"}",
    ] {
        assert_eq!(event_in(line, "web 1"), Some(shutdown.clone()), "{line}");
    }
    let stop = "2026-11-25 03:00:00.123+0000: event STOP for domain 'a': <null>";
    assert_eq!(event_in(stop, "a"), Some(QmpEvent::Stop));
}

#[test]
fn what_is_no_event_of_this_domain_is_none() {
    for line in [
        "",
        "event loop interrupted",
        "events received: 3",
        "event STOP for domain 'other': <null>",
        "event STOP for domain 'web-10': <null>",
        "event stop for domain 'web-1': <null>",
        "event STOP for domain 'web-1",
    ] {
        assert_eq!(event_in(line, "web-1"), None, "{line}");
    }
}

#[test]
fn a_reply_is_qemus_own_with_its_errors() {
    let reply = reply_in("query-status", br#"{"return":{"status":"running"},"id":"libvirt-7"}"#);
    assert_eq!(reply.unwrap(), json!({"status": "running"}));
    let error = br#"{"id":"libvirt-8","error":{"class":"CommandNotFound","desc":"a\u001b[1m"}}"#;
    match reply_in("x", error) {
        Err(QmpError::Command { class, desc, .. }) => {
            assert_eq!((class.as_str(), desc.as_str()), ("CommandNotFound", "a?[1m"));
        }
        other => panic!("{other:?}"),
    }
    for garbage in [&b""[..], b"[]", b"{}", b"no JSON", b"{\"return\":"] {
        let reply = reply_in("x", garbage);
        assert!(matches!(reply, Err(QmpError::Malformed { .. })), "{reply:?}");
    }
}

#[test]
fn a_libvirt_that_is_not_there_is_told_from_one_that_refuses() {
    let lost = refusal_in(
        "stop",
        "error: failed to connect to the hypervisor\nerror: Failed to connect socket to \
         '/var/run/libvirt/libvirt-sock': No such file or directory\n",
    );
    assert!(matches!(lost, QmpError::NotConnected { .. }), "{lost:?}");
    let gone = refusal_in("stop", "error: failed to get domain 'c7a5fdbd'\n");
    assert!(matches!(gone, QmpError::NotConnected { .. }), "{gone:?}");
    let refused = refusal_in("stop", "error: Timed out during operation: cannot acquire\n");
    assert!(matches!(&refused, QmpError::Command { class, .. } if class == "libvirt"));
    assert!(refused.to_string().contains("cannot acquire"), "{refused}");
}

#[tokio::test]
async fn a_line_without_an_end_takes_no_more_room_than_one_may() {
    let mut text = vec![b'x'; 4 * LINE_BYTES];
    text.extend_from_slice(b"\nnext\nrest");
    let mut from = &text[..];
    let mut line = Vec::new();
    assert!(read_line(&mut from, &mut line).await);
    assert_eq!(line.len(), LINE_BYTES);
    line.clear();
    assert!(read_line(&mut from, &mut line).await);
    assert_eq!(line, b"next");
    line.clear();
    assert!(!read_line(&mut from, &mut line).await);
    assert_eq!(line, b"rest");
}

#[test]
fn an_answer_that_is_more_than_is_taken_is_said_to_be_that() {
    let deep = "[".repeat(200) + &"]".repeat(200);
    let deep = format!("{{\"return\":{deep},\"id\":\"libvirt-9\"}}");
    let cut = format!("{{\"return\":\"{}", "x".repeat(MAX_MESSAGE_BYTES));
    for (printed, says) in [(deep, "nested deeper"), (cut, "longer than")] {
        let error = reply_in("query-block", printed.as_bytes()).unwrap_err();
        assert!(matches!(error, QmpError::Skipped { .. }), "{error:?}");
        assert!(error.to_string().contains(says), "{error}");
    }
}
