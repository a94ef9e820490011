//! Which client sees what over TCP, and how a link becomes a session.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::Value;

use super::{
    TestSite, empty, exchange, figures_only, get,
    pages::{body, page_site},
    site_with,
};
use crate::{
    api::{ask_for_link, bind, serve, socket_path, view::LinkView},
    config::{EvidenceReaders, Metrics},
};

const PICTURE: &str = "/api/evidence/20261122T100001Z-web/registers.txt";

fn local(site: &TestSite, path: &str, cookie: &str) -> String {
    exchange(site, &format!("GET {path} HTTP/1.1\r\nHost: localhost:1\r\nCookie: {cookie}\r\n\r\n"))
}

/// The link that the Unix socket hands out.
fn link(site: &TestSite) -> LinkView {
    let directory = tempfile::tempdir().expect("a directory");
    let entered = site._runtime.enter();
    let listener = bind(directory.path()).expect("bound");
    let (requests, _) = tokio::sync::mpsc::channel(1);
    site._runtime.spawn(serve(listener, requests, site.site.socket_routes()));
    drop(entered);
    ask_for_link(directory.path()).expect("a link")
}

/// The path of a link, and the cookie that opening it brings.
fn open(site: &TestSite) -> (String, String) {
    let link = link(site);
    let base = format!("http://{}", site.address);
    let path = link.url.strip_prefix(&base).expect("of this listener").to_owned();
    let answer = local(site, &path, "");
    assert!(answer.starts_with("HTTP/1.1 303 "), "{answer}");
    assert!(answer.contains("location: /\r\n"), "{answer}");
    let cookie = answer.split_once("set-cookie: ").expect("a cookie").1;
    let (cookie, attributes) = cookie.split_once(';').expect("attributes");
    let attributes = attributes.lines().next().expect("one");
    assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Strict; Max-Age=43200");
    assert!(cookie.starts_with("flatline-session-1="), "{cookie}");
    (path, cookie.to_owned())
}

#[test]
fn without_a_session_there_are_figures_and_a_hint() {
    let page = page_site(EvidenceReaders::All);
    for path in ["/", "/page/main.js", "/api/status", "/api/incidents", PICTURE] {
        for cookie in ["", "flatline-session-1=", "flatline-session-1=x", "flatline-session=x"] {
            let answer = local(&page.site, path, cookie);
            assert!(answer.starts_with("HTTP/1.1 403 "), "{path}: {answer}");
            assert!(body(&answer).contains("`flatline web`"), "{path}: {answer}");
            assert!(answer.contains("content-security-policy: "), "{answer}");
        }
    }
    for path in ["/none", "/status", "/web"] {
        let answer = local(&page.site, path, "");
        assert!(
            answer.starts_with("HTTP/1.1 404 ") && body(&answer).contains("/metrics"),
            "{path}"
        );
    }
    assert!(get(&page.site, "/metrics").ends_with("# EOF\n"));
}

#[test]
fn a_link_opens_the_page_once_and_what_the_socket_alone_has_is_not_there() {
    let page = page_site(EvidenceReaders::Root);
    let site = &page.site;
    let (path, cookie) = open(site);
    for path in ["/", "/api/incidents", PICTURE] {
        let answer = local(site, path, &format!("a=b; {cookie}; c"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    }
    for path in ["/status", "/hold", "/show?vm=a", "/web"] {
        assert!(local(site, path, &cookie).starts_with("HTTP/1.1 404 "), "{path}");
    }
    let wrong = format!("{}A", &path[..path.len() - 1]);
    let session = cookie.split_once('=').expect("a value").1;
    for path in [&path, &wrong, "/login?token=", &format!("/login?token={session}")] {
        let answer = local(site, path, "");
        assert!(answer.starts_with("HTTP/1.1 403 "), "{path}: {answer}");
        assert!(!answer.contains("set-cookie"), "{answer}");
    }
    assert!(local(site, "/login", "").starts_with("HTTP/1.1 400 "));
    assert!(local(site, "/api/incidents", &cookie).starts_with("HTTP/1.1 200 "), "as before");
    // Another port's browser sends it as well, by another name.
    let other = cookie.replace("-1=", "-2=");
    assert!(local(site, "/", &other).starts_with("HTTP/1.1 403 "));
}

#[test]
fn a_preview_uses_no_link_up_and_tls_in_front_makes_the_cookie_secure() {
    let page = page_site(EvidenceReaders::Root);
    let url = link(&page.site).url;
    let path = url.split_once("/login").expect("a path").1;
    let ask = |method: &str, headers: &str| {
        let head = format!("{method} /login{path} HTTP/1.1\r\nHost: hypervisor\r\n");
        exchange(&page.site, &format!("{head}{headers}\r\n"))
    };
    assert!(ask("HEAD", "").starts_with("HTTP/1.1 403 "));
    assert!(ask("POST", "").starts_with("HTTP/1.1 405 "));
    let answer = ask("GET", "X-Forwarded-Proto: https\r\n");
    assert!(answer.contains("Max-Age=43200; Secure\r\n"), "{answer}");
}

#[test]
fn evidence_comes_with_a_session_unless_it_is_off() {
    let page = page_site(EvidenceReaders::Root);
    assert!(page.get(PICTURE).starts_with("HTTP/1.1 200 "));
    assert!(!page.get("/api/incidents").contains("flatline-no-evidence"));
    let page = page_site(EvidenceReaders::Off);
    let answer = page.get(PICTURE);
    assert!(answer.starts_with("HTTP/1.1 403 ") && body(&answer).contains("metrics.evidence"));
    let answer = page.get("/api/incidents");
    assert!(answer.contains("flatline-no-evidence: no evidence is served here"), "{answer}");
}

#[test]
fn the_socket_has_figures_and_page_as_well_and_no_link_where_there_is_no_page() {
    let settings = Metrics { page: false, ..figures_only() };
    let site = site_with(Some(empty()), settings);
    let directory = tempfile::tempdir().expect("a directory");
    let entered = site._runtime.enter();
    let listener = bind(directory.path()).expect("bound");
    let (requests, _) = tokio::sync::mpsc::channel(1);
    site._runtime.spawn(serve(listener, requests, site.site.socket_routes()));
    drop(entered);
    let ask = |request: &str| {
        let mut stream = UnixStream::connect(socket_path(directory.path())).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
        stream
            .write_all(format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes())
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    };
    assert!(ask("GET /metrics").ends_with("# EOF\n"));
    assert!(ask("GET /api/incidents").starts_with("HTTP/1.1 200 "));
    let refusal = ask("POST /web");
    let refusal: Value = serde_json::from_str(body(&refusal)).expect("JSON");
    assert_eq!(refusal["kind"], "nothing");
    // The loop is gone here.
    assert!(ask("GET /status").starts_with("HTTP/1.1 500 "));
}
