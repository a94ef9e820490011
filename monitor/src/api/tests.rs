use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::Router;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::client::{exchange, http};
use super::{
    BindError, CONNECTIONS_MAX, ClientError, ControlRequest, REQUEST_MAX_BYTES, RefusalKind, Reply,
    Request, TIME_LIMIT, ask, bind, serve, socket_path,
};

/// A server that knows the VM `a`, and its runtime, which ends it.
fn server() -> (TempDir, Runtime) {
    let directory = TempDir::new().expect("a directory");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let entered = runtime.enter();
    let listener = bind(directory.path()).expect("bound");
    let (sender, mut requests) = mpsc::channel::<ControlRequest>(4);
    runtime.spawn(serve(listener, sender, Router::new()));
    runtime.spawn(async move {
        while let Some(ControlRequest { request, reply }) = requests.recv().await {
            let answer = match request {
                Request::Show { vm } if vm != "a" => {
                    Reply::error(RefusalKind::NoSuchVm, format!("no VM {vm}"))
                }
                request => Reply::ok(&request),
            };
            let _ = reply.send(answer);
        }
    });
    drop(entered);
    (directory, runtime)
}

/// What comes back for these bytes until the end: the status, and the body as JSON.
fn raw(path: &Path, request: &[u8]) -> (u16, Value) {
    let mut stream = StdStream::connect(path).expect("connected");
    stream.set_read_timeout(Some(TIME_LIMIT * 2)).expect("a limit");
    // It may be refused before all of it is sent.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).unwrap_or_default())
}

fn get(path: &Path, target: &str) -> (u16, Value) {
    raw(path, format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
}

fn post(path: &Path, target: &str, body: &str) -> (u16, Value) {
    let head = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n");
    raw(path, format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
}

#[test]
fn requests_have_their_documented_form_and_reach_the_owner_of_the_state() {
    let (directory, _runtime) = server();
    let path = socket_path(directory.path());
    for (target, expected) in [
        ("/status", json!({"command": "status"})),
        ("/show?vm=a", json!({"command": "show", "vm": "a"})),
        ("/lines", json!({"command": "lines", "vm": null})),
        ("/incidents", json!({"command": "incidents", "vm": null})),
        ("/incidents?vm=a%20%26b", json!({"command": "incidents", "vm": "a &b"})),
        (
            "/evidence?id=i&file=f&offset=7",
            json!({"command": "evidence", "id": "i", "file": "f", "offset": 7}),
        ),
    ] {
        assert_eq!(get(&path, target), (200, expected), "{target}");
    }
    for (target, body, expected) in [
        ("/hold", "", json!({"command": "hold", "vm": null, "seconds": null})),
        (
            "/hold",
            r#"{"vm": "a", "seconds": 5}"#,
            json!({"command": "hold", "vm": "a", "seconds": 5}),
        ),
        ("/release", r#"{"vm": "a"}"#, json!({"command": "release", "vm": "a"})),
        ("/record", "{}", json!({"command": "record", "vm": null})),
    ] {
        assert_eq!(post(&path, target, body), (200, expected), "{target}");
    }
    let text = |text: &str| Some(text.to_owned());
    for request in [
        Request::Status,
        Request::Show { vm: "a".to_owned() },
        Request::Incidents { vm: text("a b&c=%d/é\u{202e}") },
        Request::Evidence { id: "i?".to_owned(), file: "f#".to_owned(), offset: u64::MAX },
        Request::Hold { vm: text("\"'\\"), seconds: Some(3) },
        Request::Record { vm: None },
    ] {
        let answer: Value = ask(directory.path(), &request).expect("an answer");
        assert_eq!(answer, serde_json::to_value(&request).expect("JSON"));
    }
}

#[test]
fn a_refusal_comes_with_its_kind() {
    let (directory, _runtime) = server();
    let answer = ask::<Value>(directory.path(), &Request::Show { vm: "b".to_owned() });
    let Err(ClientError::Refused(refusal)) = answer else { panic!("{answer:?}") };
    assert_eq!((refusal.kind, refusal.message.as_str()), (RefusalKind::NoSuchVm, "no VM b"));
    let answer = get(&socket_path(directory.path()), "/show?vm=b");
    assert_eq!(answer, (404, json!({"kind": "no-such-vm", "message": "no VM b"})));
}

#[test]
fn a_request_that_is_not_understood_or_too_long_is_refused() {
    let (directory, _runtime) = server();
    let path = socket_path(directory.path());
    for (status, kind) in [
        get(&path, "/show"),
        get(&path, "/evidence?id=i&file=f&offset=x"),
        post(&path, "/hold", "hello"),
        post(&path, "/hold", r#"{"seconds": -1}"#),
    ] {
        assert_eq!((status, &kind["kind"]), (400, &json!("bad-request")));
    }
    assert_eq!(get(&path, "/destroy").0, 404);
    assert_eq!(get(&path, "/hold").0, 405, "what changes something is no GET");
    for garbage in [&b"hello\n"[..], b"{\"command\":\"status\"}\n", b"\xff\n\r\n"] {
        assert_eq!(raw(&path, garbage).0, 400);
    }
    let fits = format!("{{}}{}", " ".repeat(REQUEST_MAX_BYTES - 2));
    assert_eq!(post(&path, "/record", &fits).1["command"], "record");
    let (status, long) = post(&path, "/record", &format!("{fits} "));
    assert_eq!((status, &long["kind"]), (400, &json!("bad-request")));
}

#[test]
fn slow_clients_are_cut_off_and_do_not_stop_others() {
    let (directory, _runtime) = server();
    let path = socket_path(directory.path());
    let mut slow = StdStream::connect(&path).expect("connected");
    slow.write_all(b"GET /sta").expect("written");
    let start = Instant::now();
    ask::<Value>(directory.path(), &Request::Status).expect("others are served");
    assert!(start.elapsed() < TIME_LIMIT / 2);
    slow.set_read_timeout(Some(TIME_LIMIT * 2)).expect("a limit");
    assert_eq!(slow.read(&mut [0; 8]).expect("the end, not a time-out"), 0);
    assert!(start.elapsed() > TIME_LIMIT / 2);
}

#[test]
fn more_silent_clients_than_there_are_places_keep_no_other_out() {
    let (directory, _runtime) = server();
    let path = socket_path(directory.path());
    let silent = (0..3 * CONNECTIONS_MAX).map(|_| StdStream::connect(&path).expect("connected"));
    let silent = silent.collect::<Vec<_>>();
    let start = Instant::now();
    ask::<Value>(directory.path(), &Request::Status).expect("an answer");
    assert!(start.elapsed() < TIME_LIMIT / 2);
    drop(silent);
}

#[test]
fn the_socket_has_its_mode_and_nothing_else_is_left_in_the_directory() {
    let (directory, _runtime) = server();
    let mode = std::fs::metadata(socket_path(directory.path())).expect("there").permissions();
    assert_eq!(mode.mode() & 0o7777, 0o660);
    let names = std::fs::read_dir(directory.path()).expect("listed");
    let names = names.map(|entry| entry.expect("an entry").file_name()).collect::<Vec<_>>();
    assert_eq!(names, ["control.sock"]);
}

#[test]
fn a_stale_socket_is_replaced_a_served_one_and_a_file_are_not() {
    let directory = TempDir::new().expect("a directory");
    let path = socket_path(directory.path());
    drop(StdListener::bind(&path).expect("a socket that is not served"));
    let runtime = Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let _served = bind(directory.path()).expect("replaced");
    assert!(matches!(bind(directory.path()), Err(BindError::InUse(_))));
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, "mine").expect("a file");
    assert!(matches!(bind(directory.path()), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read(&path).expect("there"), b"mine");
}

#[test]
fn a_daemon_that_is_not_there_or_never_answers_is_unreachable_at_its_path() {
    let directory = TempDir::new().expect("a directory");
    let answer = ask::<Value>(directory.path(), &Request::Status);
    let error = answer.expect_err("not there");
    assert!(matches!(error, ClientError::Unreachable { .. }));
    let path: PathBuf = socket_path(directory.path());
    assert!(error.to_string().contains(path.to_str().expect("a path")), "{error}");

    let _mute = StdListener::bind(&path).expect("bound");
    let request = http(&Request::Status, false).expect("a request");
    let error = exchange(&path, request, Duration::from_millis(200)).expect_err("mute");
    let error = error.downcast_ref::<std::io::Error>().expect("of the system's");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_daemon_that_speaks_another_protocol_is_not_understood() {
    let directory = TempDir::new().expect("a directory");
    let listener = StdListener::bind(socket_path(directory.path())).expect("bound");
    let older = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let _ = stream.read(&mut [0; 1024]).expect("a request");
        stream.write_all(b"{\"error\":{\"kind\":\"bad-request\"}}\n").expect("answered");
    });
    let answer = ask::<Value>(directory.path(), &Request::Status);
    assert!(matches!(answer, Err(ClientError::NotUnderstood { .. })), "{answer:?}");
    older.join().expect("it answered");
}
