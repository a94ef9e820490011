use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::client::exchange;
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
    runtime.spawn(serve(listener, sender));
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

fn raw(path: &Path, line: &[u8]) -> Value {
    let reply = exchange(path, line, TIME_LIMIT).expect("a reply");
    serde_json::from_slice(&reply).expect("JSON")
}

#[test]
fn requests_have_their_documented_form_and_reach_the_owner_of_the_state() {
    let (directory, _runtime) = server();
    let path = socket_path(directory.path());
    for line in [
        json!({"command": "status"}),
        json!({"command": "show", "vm": "a"}),
        json!({"command": "incidents", "vm": null}),
        json!({"command": "incidents", "vm": "a"}),
        json!({"command": "evidence", "id": "i", "file": "f", "offset": 7}),
    ] {
        assert_eq!(raw(&path, format!("{line}\n").as_bytes()), json!({"ok": line}));
    }
    let request = Request::Incidents { vm: Some("a".to_owned()) };
    let answer: Request = ask(directory.path(), &request).expect("an answer");
    assert_eq!(answer, request);
}

#[test]
fn a_refusal_comes_with_its_kind() {
    let (directory, _runtime) = server();
    let answer = ask::<Value>(directory.path(), &Request::Show { vm: "b".to_owned() });
    let Err(ClientError::Refused(refusal)) = answer else { panic!("{answer:?}") };
    assert_eq!((refusal.kind, refusal.message.as_str()), (RefusalKind::NoSuchVm, "no VM b"));
    let line = raw(&socket_path(directory.path()), b"{\"command\":\"show\",\"vm\":\"b\"}\n");
    assert_eq!(line, json!({"error": {"kind": "no-such-vm", "message": "no VM b"}}));
}

#[test]
fn a_request_that_is_not_understood_or_too_long_is_refused() {
    let (directory, _runtime) = server();
    let path = socket_path(directory.path());
    for line in [&b"hello\n"[..], b"{\"command\":\"destroy\"}\n", b"\xff\n", b"\n"] {
        assert_eq!(raw(&path, line)["error"]["kind"], "bad-request");
    }
    let long = raw(&path, &vec![b' '; REQUEST_MAX_BYTES + 1]);
    assert!(long["error"]["message"].as_str().is_some_and(|text| text.contains("longer")));
    let mut fits = b"{\"command\":\"status\"}".to_vec();
    fits.resize(REQUEST_MAX_BYTES, b' ');
    fits.push(b'\n');
    assert_eq!(raw(&path, &fits)["ok"]["command"], "status");
}

#[test]
fn slow_clients_are_cut_off_and_do_not_stop_others() {
    let (directory, _runtime) = server();
    let path = socket_path(directory.path());
    let mut slow = StdStream::connect(&path).expect("connected");
    slow.write_all(b"{\"comm").expect("written");
    let start = Instant::now();
    ask::<Value>(directory.path(), &Request::Status).expect("others are served");
    assert!(start.elapsed() < TIME_LIMIT / 2);
    slow.set_read_timeout(Some(TIME_LIMIT * 2)).expect("a limit");
    assert_eq!(slow.read(&mut [0; 8]).expect("the end, not a time-out"), 0);
    assert!(start.elapsed() > TIME_LIMIT / 2);
}

#[test]
fn one_client_too_many_is_told_that_the_daemon_is_busy() {
    let (directory, _runtime) = server();
    let path = socket_path(directory.path());
    let idle = (0..CONNECTIONS_MAX).map(|_| StdStream::connect(&path).expect("connected"));
    let idle = idle.collect::<Vec<_>>();
    let answer = ask::<Value>(directory.path(), &Request::Status);
    let Err(ClientError::Refused(refusal)) = answer else { panic!("{answer:?}") };
    assert_eq!(refusal.kind, RefusalKind::Busy);
    drop(idle);
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
    drop(StdListener::bind(&path).expect("a socket that nobody serves"));
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
    let error = answer.expect_err("nobody there");
    assert!(matches!(error, ClientError::Unreachable { .. }));
    let path: PathBuf = socket_path(directory.path());
    assert!(error.to_string().contains(path.to_str().expect("a path")), "{error}");

    let _mute = StdListener::bind(&path).expect("bound");
    let error = exchange(&path, b"{}\n", Duration::from_millis(200)).expect_err("mute");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}
