mod access;
mod list;
mod pages;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use tokio::{runtime::Runtime, sync::watch};

use tempfile::TempDir;

use super::{
    AGAIN_AFTER, CONNECTIONS_MAX, Server, Site, Sources, TIME_LIMIT,
    page_snapshot::{self, Publisher},
};
use crate::{
    api::listener::{HEAD_LIMIT, HEAD_MAX_BYTES},
    config::{EvidenceReaders, Metrics},
    history::RateHistory,
    metrics::{Counts, Exposition, IncidentCounts, NotificationCounts, Snapshot},
    storage::incidents::IncidentStore,
};
use flatline_detector::policy::Mode;

/// Longer than whatever is to come at once, and shorter than any limit.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A server on a port of its own, and the runtime that it lives in.
struct TestSite {
    server: Server,
    address: SocketAddr,
    site: Arc<Site>,
    publisher: Publisher,
    state: TempDir,
    _latest: watch::Sender<Option<Arc<Snapshot>>>,
    _runtime: Runtime,
}

fn site_at(address: SocketAddr, snapshot: Option<Snapshot>, settings: Metrics) -> TestSite {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let entered = runtime.enter();
    let (latest, receiver) = watch::channel(snapshot.map(Arc::new));
    let incidents = IncidentCounts::new(UNIX_EPOCH);
    let (counts, told) = (Counts::default(), NotificationCounts::default());
    let (publisher, subscriber) = page_snapshot::pair();
    let state = tempfile::tempdir().expect("a directory");
    let sources = Sources {
        exposition: Exposition::new(receiver, &Arc::default(), &counts, &incidents, &told),
        subscriber,
        lines: RateHistory::new(pages::INTERVAL),
        store: Arc::new(IncidentStore::open(state.path()).expect("a store")),
        state_dir: state.path().to_owned(),
    };
    let settings = Metrics { listen: Some(address), ..settings };
    let site = Site::new(sources, &settings);
    let server = Server::start(&site, &settings).expect("it has an address");
    drop(entered);
    TestSite { server, address, site, publisher, state, _latest: latest, _runtime: runtime }
}

/// Figures, and no page.
fn figures_only() -> Metrics {
    let hosts = vec!["hypervisor".to_owned()];
    Metrics { listen: None, page: false, hosts, evidence: EvidenceReaders::Root }
}

fn site(snapshot: Option<Snapshot>) -> TestSite {
    site_with(snapshot, figures_only())
}

fn site_with(snapshot: Option<Snapshot>, settings: Metrics) -> TestSite {
    // Given back at once, and not handed out again so soon.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let site = site_at(address, snapshot, settings);
    assert_eq!(site.server.complaint(), None);
    site
}

fn empty() -> Snapshot {
    Snapshot {
        at: UNIX_EPOCH,
        mode: Mode::Recover,
        is_storm: false,
        is_degraded: false,
        programs: Vec::new(),
        maps: Vec::new(),
        uncounted_taps: 0,
        most_vms: 4,
        vms: Vec::new(),
    }
}

/// What comes back for these bytes until the end, as text.
fn exchange(site: &TestSite, request: &str) -> String {
    String::from_utf8_lossy(&bytes(site, request)).into_owned()
}

fn bytes(site: &TestSite, request: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(site.address).expect("connected");
    stream.set_read_timeout(Some(TIME_LIMIT * 2)).expect("a limit");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = Vec::new();
    // A reset after the answer is an end, too.
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn get(site: &TestSite, path: &str) -> String {
    exchange(site, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
}

#[test]
fn figures_are_at_metrics_in_the_format_that_was_asked_for() {
    let site = site(Some(empty()));
    let answer = get(&site, "/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(answer.ends_with("\n# EOF\n"), "{answer}");
    assert!(get(&site, "/metrics?name[]=up").ends_with("\n# EOF\n"));
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n";
    let answer = exchange(&site, request);
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    let answer = exchange(&site, "HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn figures_are_for_those_that_ask_for_this_host() {
    let site = site(Some(empty()));
    let ask = |hosts: &str| exchange(&site, &format!("GET /metrics HTTP/1.0\r\n{hosts}\r\n"));
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for host in ["127.0.0.1:9477", "[::1]", "localhost:1", "hypervisor:9477", &own] {
        assert!(ask(&format!("Host: {host}\r\n")).ends_with("# EOF\n"), "{host}");
    }
    assert!(ask("").ends_with("# EOF\n"), "no browser leaves it out");
    for hosts in ["Host: evil.example\r\n", "Host: localhost\r\nHost: evil.example\r\n"] {
        let answer = ask(hosts);
        assert!(
            answer.starts_with("HTTP/1.0 421 ") && answer.contains("metrics.hosts"),
            "{answer}"
        );
    }
}

#[test]
fn without_the_page_nothing_else_is_served_and_the_answer_says_where_figures_are() {
    let site = site(Some(empty()));
    for path in ["/", "/metric", "/metrics/", "//metrics", "/../metrics", "/etc/passwd", "*"] {
        let answer = get(&site, path);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        assert!(answer.contains("/metrics\n"), "{path}: {answer}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request = format!(
            "{method} /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
        );
        let answer = exchange(&site, &request);
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
        assert!(answer.contains("allow: GET, HEAD"), "{method}: {answer}");
    }
}

#[test]
fn before_the_first_tick_nothing_is_made_up() {
    let answer = get(&site(None), "/metrics");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[test]
fn what_is_no_request_or_too_long_is_refused_and_others_are_served_on() {
    let site = site(Some(empty()));
    let long_target =
        format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(HEAD_MAX_BYTES));
    let long_header = format!(
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "a".repeat(HEAD_MAX_BYTES)
    );
    let many = "X: 1\r\n".repeat(200);
    let many = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{many}\r\n");
    for request in ["\0\0\0\0\r\n\r\n", "hello\r\n\r\n", &long_target, &long_header, &many] {
        let answer = exchange(&site, request);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        assert!(get(&site, "/metrics").ends_with("# EOF\n"));
    }
}

#[test]
fn more_silent_clients_than_there_are_places_keep_no_other_out() {
    let site = site(Some(empty()));
    let mut silent: Vec<_> =
        (0..3 * CONNECTIONS_MAX).map(|_| TcpStream::connect(site.address).expect("open")).collect();
    for stream in &mut silent {
        // The first ones may have been cut off by now.
        let _ = stream.write_all(b"GET /metrics HT");
    }
    let begun = Instant::now();
    assert!(get(&site, "/metrics").ends_with("# EOF\n"));
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let oldest = silent.first_mut().expect("one");
    oldest.set_read_timeout(Some(AT_ONCE)).expect("a limit");
    assert!(matches!(oldest.read(&mut [0; 8]), Ok(0) | Err(_)));
}

#[test]
fn a_silent_client_is_cut_off() {
    let site = site(Some(empty()));
    let mut silent = TcpStream::connect(site.address).expect("connected");
    silent.set_read_timeout(Some(TIME_LIMIT * 2)).expect("a limit");
    silent.write_all(b"GET /metrics HTTP/1.1\r\n").expect("written");
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"));
    assert!(begun.elapsed() > HEAD_LIMIT / 2 && begun.elapsed() < TIME_LIMIT * 2);
}

#[test]
fn an_address_that_is_taken_is_said_and_served_once_it_is_free() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let site = site_at(taken.local_addr().expect("an address"), Some(empty()), figures_only());
    let complaint = site.server.complaint().expect("it is taken");
    assert!(complaint.starts_with(&format!("no metrics: {}: ", site.address)), "{complaint}");
    drop(taken);
    let begun = Instant::now();
    while site.server.complaint().is_some() {
        assert!(begun.elapsed() < AGAIN_AFTER * 2, "{:?}", site.server.complaint());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(get(&site, "/metrics").ends_with("# EOF\n"));
}

#[test]
fn with_the_server_its_clients_and_its_address_go() {
    let TestSite { server, address, _latest: latest, _runtime: runtime, .. } = site(Some(empty()));
    let mut client = TcpStream::connect(address).expect("connected");
    client.set_read_timeout(Some(AT_ONCE)).expect("a limit");
    client.write_all(b"GET").expect("written");
    std::thread::sleep(Duration::from_millis(200));
    drop((server, latest));
    assert!(
        !matches!(client.read(&mut [0; 8]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    );
    let begun = Instant::now();
    while TcpStream::connect(address).is_ok() {
        assert!(begun.elapsed() < AT_ONCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(runtime);
}
