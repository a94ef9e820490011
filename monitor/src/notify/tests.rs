//! Targets as they may be: well, slow, down, unwilling, and hostile.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::runtime::Runtime;

use super::{END_LIMIT, Notifier, event::EventKind};
use crate::{
    config::{Config, Target},
    metrics::NotificationCounts,
};

/// For what comes at once, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// What a receiver got: the head in lower case, and the body.
struct Request {
    head: String,
    body: String,
}

/// Answers each connection by `answer`, which gets its number.
fn receiver(
    listener: TcpListener,
    answer: impl Fn(usize, &mut TcpStream) + Send + 'static,
) -> mpsc::Receiver<Request> {
    let (sender, requests) = mpsc::channel();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                    break;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                continue;
            }
            let body = String::from_utf8(body).expect("UTF-8");
            answer(number, &mut stream);
            if sender.send(Request { head, body }).is_err() {
                return;
            }
        }
    });
    requests
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

fn say(text: &'static str) -> impl Fn(usize, &mut TcpStream) + Send + 'static {
    move |_, stream| drop(stream.write_all(text.as_bytes()))
}

const OK: &str = "HTTP/1.1 204 No Content\r\n\r\n";

fn targets(text: &str) -> Vec<Target> {
    Config::parse(text, "test.toml").expect("valid").notify
}

fn webhook(address: SocketAddr, more: &str) -> String {
    format!(
        "[[notify]]\nevents = \"all\"\nwebhook = \"http://{address}/hook\"\nlimit = \"1s\"\n{more}\n"
    )
}

/// One that tells, and what it lives in.
struct Stage {
    telling: Notifier,
    counts: NotificationCounts,
    dir: tempfile::TempDir,
    runtime: Runtime,
}

impl Stage {
    fn new(text: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let (runtime, dir) = (runtime.expect("a runtime"), tempfile::tempdir());
        let (dir, counts) = (dir.expect("a directory"), NotificationCounts::default());
        let telling = start(&runtime, text, dir.path(), &counts);
        Self { telling, counts, dir, runtime }
    }

    /// Tells of some event called so; returns how long that took.
    fn tell(&self, reason: &str) -> Duration {
        tell(&self.telling, reason)
    }

    fn complaint(&self) -> String {
        self.telling.complaints().join("; ")
    }

    fn wait_for_complaint(&self, part: &str) {
        wait_for(|| self.complaint().contains(part), || self.complaint());
    }

    fn finish(&self) {
        self.runtime.block_on(self.telling.finish());
    }

    fn left(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("telling.json")).unwrap_or_default()
    }
}

fn start(runtime: &Runtime, text: &str, dir: &Path, counts: &NotificationCounts) -> Notifier {
    let _entered = runtime.enter();
    Notifier::start(&targets(text), dir, counts.clone())
}

fn tell(telling: &Notifier, reason: &str) -> Duration {
    let begun = Instant::now();
    let reason = reason.to_owned();
    telling.publish(|events, now| [events.of_host(EventKind::SensorLost, reason, now)]);
    begun.elapsed()
}

fn wait_for(is_so: impl Fn() -> bool, last: impl Fn() -> String) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "{}", last());
        thread::sleep(Duration::from_millis(5));
    }
}

fn reasons(requests: &mpsc::Receiver<Request>, count: usize) -> Vec<String> {
    let one = |_| body(requests)["reason"].as_str().expect("a reason").to_owned();
    (0..count).map(one).collect()
}

fn body(requests: &mpsc::Receiver<Request>) -> Value {
    let request = requests.recv_timeout(SOON).expect("told");
    serde_json::from_str(&request.body).expect("JSON")
}

#[test]
fn a_webhook_gets_each_event_in_order_with_its_headers() {
    let (listener, address) = listen();
    let requests = receiver(listener, say(OK));
    let stage = Stage::new(&webhook(address, ""));
    stage.tell("first");
    stage.tell("second");
    let request = requests.recv_timeout(SOON).expect("told");
    assert!(request.head.starts_with("POST /hook HTTP/1.1\r\n"), "{}", request.head);
    for header in
        ["content-type: application/json", "webhook-id: ", "webhook-timestamp: ", "host: "]
    {
        assert!(request.head.contains(header), "{}", request.head);
    }
    assert!(!request.head.contains("webhook-signature"), "there is no secret");
    assert!(request.body.contains("\"first\""), "{}", request.body);
    assert_eq!(reasons(&requests, 1), ["second"]);
    assert_eq!(stage.complaint(), "");
}

#[test]
fn no_producer_waits_for_a_receiver_and_no_receiver_for_another() {
    let (slow, slow_address) = listen();
    let (good, good_address) = listen();
    // It takes connections, and never answers.
    let _slow = receiver(slow, |_, _| thread::sleep(Duration::from_secs(60)));
    let requests = receiver(good, say(OK));
    let (_, down) = listen();
    let text = format!(
        "{}{}{}",
        webhook(slow_address, "queue = 5"),
        webhook(down, ""),
        webhook(good_address, "")
    );
    let stage = Stage::new(&text);
    let took: Duration = (0..100).map(|number| stage.tell(&number.to_string())).sum();
    assert!(took < Duration::from_millis(500), "{took:?}");
    let wanted: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(reasons(&requests, 100), wanted);
    stage.wait_for_complaint("did not answer within 1s");
    stage.wait_for_complaint("cannot connect");
    assert!(stage.complaint().contains("95 events are lost"), "{}", stage.complaint());
    // At the end, nothing waits for them either.
    let begun = Instant::now();
    stage.finish();
    assert!(begun.elapsed() < END_LIMIT + SOON, "{:?}", begun.elapsed());
    assert!(stage.left().matches("\"sensor-lost\"").count() >= 104, "{}", stage.left());
}

#[test]
fn a_receiver_that_is_down_and_comes_back_gets_all_that_waited_and_hears_how_many_did_not() {
    let (listener, address) = listen();
    drop(listener);
    let stage = Stage::new(&webhook(address, "queue = 3"));
    for number in 0..5 {
        stage.tell(&number.to_string());
    }
    stage.wait_for_complaint("cannot connect to 127.0.0.1");
    let listener = TcpListener::bind(address).expect("the same port");
    let requests = receiver(listener, say(OK));
    let told: Vec<Value> = (0..3).map(|_| body(&requests)).collect();
    let reasons: Vec<_> = told.iter().filter_map(|told| told["reason"].as_str()).collect();
    // Whichever was under way when there was no room any more stays.
    assert!(matches!(reasons[..], ["0" | "1" | "2", "3", "4"]), "{reasons:?}");
    let dropped: u64 = told.iter().filter_map(|told| told["dropped"].as_u64()).sum();
    assert_eq!(dropped, 2, "{told:?}");
    wait_for(|| stage.complaint().is_empty(), || stage.complaint());
}

#[test]
fn a_receiver_that_refuses_loses_that_event_and_gets_the_next() {
    let (listener, address) = listen();
    let requests = receiver(listener, |number, stream| {
        let refusal = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\n\r\nno\u{1b}[31m!\n";
        let answer = if number == 0 { refusal } else { OK };
        let _ = stream.write_all(answer.as_bytes());
    });
    let stage = Stage::new(&webhook(address, ""));
    stage.tell("first");
    stage.wait_for_complaint("answered 401 Unauthorized: no?[31m!; check its URL and secret");
    stage.tell("second");
    requests.recv_timeout(SOON).expect("told");
    let second = body(&requests);
    assert_eq!((&second["reason"], &second["dropped"]), (&"second".into(), &1.into()));
    wait_for(|| stage.complaint().is_empty(), || stage.complaint());
}

#[test]
fn a_receiver_that_asks_for_a_pause_gets_it_and_then_the_same_event_with_the_same_id() {
    let (listener, address) = listen();
    let requests = receiver(listener, |number, stream| {
        let later = "HTTP/1.1 429 Too Many\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n";
        let _ = stream.write_all(if number == 0 { later } else { OK }.as_bytes());
    });
    let stage = Stage::new(&webhook(address, ""));
    stage.tell("once");
    let first = body(&requests);
    let asked = Instant::now();
    let second = body(&requests);
    assert!(asked.elapsed() > Duration::from_millis(1800), "{:?}", asked.elapsed());
    assert_eq!(first["id"], second["id"]);
}

#[test]
fn what_is_no_answer_or_too_much_of_one_is_bounded() {
    let endless = |stream: &mut TcpStream, begin: &str| {
        let _ = stream.write_all(begin.as_bytes());
        while stream.write_all(&[b'x'; 65536]).is_ok() {}
    };
    for (answer, part) in [
        (
            "HTTP/1.1 302 Found\r\nLocation: http://other/\r\n\r\n",
            "it is at http://other/; redirects",
        ),
        ("SSH-2.0-OpenSSH\r\n", "doesn't answer in HTTP"),
        ("", "doesn't answer in HTTP"),
    ] {
        let (listener, address) = listen();
        let _requests = receiver(listener, say(answer));
        let stage = Stage::new(&webhook(address, ""));
        stage.tell("once");
        stage.wait_for_complaint(part);
    }
    for begin in ["HTTP/1.1 200 OK\r\nX: ", "HTTP/1.1 500 No\r\n\r\n"] {
        let (listener, address) = listen();
        let _requests = receiver(listener, move |_, stream| endless(stream, begin));
        let stage = Stage::new(&webhook(address, ""));
        stage.tell("once");
        stage.wait_for_complaint(if begin.contains("500") { "answered 500" } else { "in HTTP" });
        assert!(stage.complaint().len() < 2000, "{}", stage.complaint().len());
    }
}

#[test]
fn what_waits_is_told_by_the_next_daemon_and_gone_once_it_was() {
    let (listener, address) = listen();
    drop(listener);
    let text = webhook(address, "");
    let stage = Stage::new(&text);
    stage.tell("first");
    stage.tell("second");
    stage.finish();
    assert!(stage.left().contains("first"), "{}", stage.left());
    let requests = receiver(TcpListener::bind(address).expect("the same port"), say(OK));
    let next = start(&stage.runtime, &text, stage.dir.path(), &stage.counts);
    // With the end of that daemon.
    assert_eq!(reasons(&requests, 3), ["first", "second", ""]);
    stage.runtime.block_on(next.finish());
    assert_eq!(stage.left(), "");
    assert_eq!(body(&requests)["event"], "daemon-stopped");
}

#[test]
fn a_new_configuration_takes_over_what_waits_for_a_target_that_stays() {
    let (listener, address) = listen();
    drop(listener);
    let (good, good_address) = listen();
    let requests = receiver(good, say(OK));
    let stage = Stage::new(&webhook(address, "name = \"stays\""));
    stage.tell("waits");
    stage.wait_for_complaint("stays is not told");
    let _entered = stage.runtime.enter();
    let (other, other_address) = listen();
    let others = receiver(other, say(OK));
    let new = format!(
        "{}{}",
        webhook(other_address, "name = \"comes\""),
        webhook(good_address, "name = \"stays\"")
    );
    stage.telling.reconfigure(&targets(&new));
    assert_eq!(reasons(&requests, 1), ["waits"]);
    stage.tell("new");
    assert_eq!(reasons(&requests, 1), ["new"]);
    assert_eq!(reasons(&others, 1), ["new"]);
    stage.telling.reconfigure(&[]);
    stage.tell("to no target");
    assert_eq!(stage.telling.complaints(), [""; 0]);
}

#[test]
fn a_command_gets_its_event_in_its_environment_and_again_if_it_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    let (out, script) = (dir.path().join("out"), dir.path().join("told"));
    let text = format!(
        "#!/bin/sh\necho \"$1 $FLATLINE_EVENT $FLATLINE_REASON $FLATLINE_DROPPED\" >> {0}\n\
         [ $(wc -l < {0}) -gt 1 ]\n",
        out.display()
    );
    std::fs::write(&script, text).expect("written");
    let command = format!(
        "[[notify]]\nevents = \"all\"\ncommand = [\"/bin/sh\", {:?}, \"--now\"]\n",
        script.display().to_string()
    );
    let stage = Stage::new(&command);
    stage.tell("it's \"gone\"; $(id)");
    stage.wait_for_complaint("exited with code 1");
    let said = || std::fs::read_to_string(&out).unwrap_or_default();
    wait_for(|| said().lines().count() == 2, said);
    assert_eq!(said(), "--now sensor-lost it's \"gone\"; $(id) 0\n".repeat(2));
    wait_for(|| stage.complaint().is_empty(), || stage.complaint());
}

#[test]
fn an_alertmanager_gets_what_is_wrong_and_its_end() {
    let (listener, address) = listen();
    let requests = receiver(listener, say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    let text = format!("[[notify]]\nevents = \"all\"\nalertmanager = \"http://{address}/am\"\n");
    let stage = Stage::new(&text);
    stage.tell("gone");
    let request = requests.recv_timeout(SOON).expect("told");
    assert!(request.head.starts_with("POST /am/api/v2/alerts HTTP/1.1\r\n"), "{}", request.head);
    let alerts: Value = serde_json::from_str(&request.body).expect("JSON");
    assert_eq!(alerts[0]["labels"]["alertname"], "FlatlineSensorLost");
    let ends = alerts[0]["endsAt"].clone();
    stage
        .telling
        .publish(|events, now| [events.of_host(EventKind::SensorBack, String::new(), now)]);
    let alerts = body(&requests);
    assert_eq!(alerts.as_array().map(Vec::len), Some(1));
    assert!(alerts[0]["endsAt"].as_str() < ends.as_str(), "{alerts} {ends}");
}
