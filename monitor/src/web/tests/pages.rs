//! The page and what it asks for, over a real connection.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use serde_json::{Value, json, value::Serializer};

use super::{AT_ONCE, TestSite, empty, exchange, figures_only, site_with};
use crate::{
    api::view::{PolicyView, ShowView, StatusView},
    config::{EvidenceReaders, Metrics},
    storage::{incident::Incident, incidents::IncidentStore},
    web::{
        page_rows::Row,
        page_snapshot::{
            self, FiguresView, IN_SIGHT_MAX, InSight, Looks, PageSnapshot, Publisher, SHOWN_MAX,
        },
    },
};
use flatline_qemu::discover::VmId;

pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// Everything that a browser is told about each answer.
const HEADERS: [&str; 5] = [
    "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n",
    "x-content-type-options: nosniff\r\n",
    "referrer-policy: no-referrer\r\n",
    "cross-origin-resource-policy: same-origin\r\n",
    "cache-control: no-store\r\n",
];

/// A site with an incident, and a cookie for it.
pub(super) struct Page {
    pub(super) site: TestSite,
    pub(super) cookie: String,
}

pub(super) fn page_site(evidence: EvidenceReaders) -> Page {
    let settings = Metrics { page: true, evidence, ..figures_only() };
    let site = site_with(Some(empty()), settings);
    let mut incident = Incident::new(
        "20261122T100001Z-web".to_owned(),
        "web".to_owned(),
        "halted".to_owned(),
        "<img src=x onerror=alert(1)>".to_owned(),
        UNIX_EPOCH,
    );
    let store = IncidentStore::open(site.state.path()).expect("a store");
    let png: &[u8] = b"\x89PNG\r\n\x1a\nrest";
    for (name, content) in [
        ("screen.png", png),
        ("registers.txt", b"<script>"),
        ("recording.flr", b"r"),
        ("other.txt", b"o"),
    ] {
        store.add_evidence(&incident.id, name, content).expect("kept");
        incident.evidence.push(name.to_owned());
    }
    store.put(&incident).expect("kept");
    let link = site.site.sessions().link(Instant::now()).expect("random");
    let session = site.site.sessions().open(&link, Instant::now()).expect("good");
    Page { site, cookie: format!("flatline-session={session}") }
}

impl Page {
    /// What a browser with the cookie gets for a path.
    pub(super) fn get(&self, path: &str) -> String {
        self.ask("GET", path, "localhost", "")
    }

    fn ask(&self, method: &str, path: &str, host: &str, headers: &str) -> String {
        let cookie = match host.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => {
                self.cookie.replace('=', &format!("-{port}="))
            }
            _ => self.cookie.clone(),
        };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nCookie: a=b; {cookie}\r\n");
        exchange(&self.site, &format!("{head}{headers}\r\n"))
    }
}

pub(super) fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// A tick of VMs with these pids, of which so much is looked at.
fn snapshot(tick: u64, pids: &[u32], looks: &Looks) -> PageSnapshot {
    let vm = |pid: &u32| {
        json!({"name": "web", "uuid": null, "pid": pid, "accelerator": "kvm", "run_state": null,
            "state": "alive", "cause": null, "reason": "r", "since": "2026-11-22T10:00:00Z",
            "flat_seconds": 1.0, "restarts_in_window": 0, "guest_resets_in_window": 0,
            "vcpus": [], "network": null, "storage": null})
    };
    let show = |pid: &u32| -> ShowView {
        let mut view = vm(pid);
        let policy = crate::config::Config::parse("", "").expect("defaults").policy;
        let policy = PolicyView::serialize(&policy, Serializer).expect("JSON");
        let more = json!({"executable": "", "uid": 0, "start_ticks": 1, "qmp": "", "taps": [],
            "disks": [], "unseen_networks": null, "unseen_storage": null, "signals": [],
            "policy": policy, "notes": []});
        for (name, value) in more.as_object().expect("an object") {
            view[name] = value.clone();
        }
        serde_json::from_value(view).expect("a view")
    };
    let status: StatusView = serde_json::from_value(json!({
        "host": {"version": "1", "hostname": "h", "kernel": "k", "uptime_seconds": 1,
            "mode": "observe", "vms": pids.len(), "probes": [], "degraded": null},
        "vms": pids.iter().map(vm).collect::<Vec<_>>()}))
    .expect("a view");
    let shown_if_there = |pid: &u32| (*pid, pids.contains(pid).then(|| show(pid)));
    PageSnapshot {
        tick,
        at: UNIX_EPOCH,
        published: Instant::now(),
        interval: INTERVAL,
        host: status.host,
        vms: looks.all.then_some(status.vms),
        has_rows: looks.rows,
        figures: figures(pids, &looks.in_sight),
        shown: looks.shown.iter().map(shown_if_there).collect::<BTreeMap<_, _>>(),
    }
}

/// The figures of those VMs that are in sight.
fn figures(pids: &[u32], in_sight: &InSight) -> BTreeMap<u32, FiguresView> {
    let is_seen = |pid: &&u32| match in_sight {
        InSight::All => true,
        InSight::Of(some) => some.contains(pid),
    };
    let figures = FiguresView { vcpu: Some(0.5), in_flight: Some(3), flat_seconds: Some(1.25) };
    pids.iter().filter(is_seen).map(|pid| (*pid, figures)).collect()
}

/// The rows of these VMs.
fn rows(pids: &[u32], tick: u64) -> impl Iterator<Item = (VmId, Row<'static>)> {
    let row = move |pid: &u32| Row {
        pid: *pid,
        name: "<b>web",
        uuid: None,
        uid: 0,
        // Of one of them, something changes in each tick.
        state: if *pid == 8 && tick.is_multiple_of(2) { "suspect" } else { "alive" },
        cause: None,
        reason: "r".into(),
        hold: None,
        restarts_in_window: 0,
        vcpus: 2,
    };
    pids.iter()
        .map(move |pid| (VmId { pid: *pid, start_ticks: 1 }, row(pid)))
        .collect::<Vec<_>>()
        .into_iter()
}

/// Ticks as the loop does.
fn ticking(publisher: &Publisher, ends: &AtomicBool) {
    let mut tick = 0;
    while !ends.load(Ordering::Relaxed) {
        tick += 1;
        if let Some(looks) = publisher.wanted(Instant::now(), INTERVAL) {
            publisher.rows.update_all(tick, rows(&[7, 8], tick));
            publisher.publish(snapshot(tick, &[7, 8], &looks));
        }
        thread::sleep(INTERVAL);
    }
}

/// Ends the ticks however the test ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Carries `test` out while ticks come.
pub(super) fn while_ticking(page: &Page, test: impl FnOnce()) {
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| ticking(&page.site.publisher, &ends));
        let _ends = Ends(&ends);
        test();
    });
}

#[test]
fn the_page_and_its_files_are_served_with_all_that_confines_them() {
    let page = page_site(EvidenceReaders::Root);
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page/main.js", "text/javascript; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/api/incidents", "application/json"),
    ] {
        let answer = page.get(path);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answer}");
        assert!(answer.contains(&format!("content-type: {kind}\r\n")), "{path}: {answer}");
        for header in HEADERS {
            assert!(answer.contains(header), "{path}: {header}: {answer}");
        }
        assert!(!answer.contains("access-control-"), "{answer}");
    }
    for path in
        ["/page/", "/page/../main.js", "/page/main.js/", "/api/", "/api/hold", "//", "/index.html"]
    {
        let answer = page.get(path);
        assert!(
            answer.starts_with("HTTP/1.1 404 ") && answer.contains(HEADERS[0]),
            "{path}: {answer}"
        );
    }
}

#[test]
fn a_browser_that_asks_for_a_host_that_is_not_ours_is_served_nothing() {
    let page = page_site(EvidenceReaders::All);
    let ask = |path: &str, host: &str| page.ask("GET", path, host, "");
    for path in
        ["/", "/api/incidents", "/api/status", "/api/evidence/20261122T100001Z-web/screen.png"]
    {
        let answer = ask(path, "rebound.example:9477");
        assert!(answer.starts_with("HTTP/1.1 421 "), "{path}: {answer}");
        assert!(body(&answer).contains("metrics.hosts"), "{answer}");
        let answer = exchange(&page.site, &format!("GET {path} HTTP/1.0\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.0 421 "), "{path}: {answer}");
    }
    for host in ["hypervisor:1", "127.0.0.1", "[::1]:9477"] {
        assert!(ask("/", host).starts_with("HTTP/1.1 200 "), "{host}");
    }
}

#[test]
fn nothing_can_be_done_but_to_read() {
    let page = page_site(EvidenceReaders::All);
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in ["/", "/api/status", "/api/hold"] {
            let answer = page.ask(method, path, "localhost", "");
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
        }
    }
    let answer = page.ask("HEAD", "/", "localhost", "");
    assert!(answer.starts_with("HTTP/1.1 200 ") && body(&answer).is_empty(), "{answer}");
}

#[test]
fn a_viewer_is_answered_from_the_next_tick_with_what_it_looks_at() {
    let page = page_site(EvidenceReaders::All);
    while_ticking(&page, || {
        let begun = Instant::now();
        let json = |path: &str| -> Value {
            let answer = page.get(path);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            serde_json::from_str(body(&answer)).expect("JSON")
        };
        let status = json("/api/status");
        assert_eq!(status["vms"][1]["pid"], 8, "{status}");
        assert_eq!(
            (&status["host"]["hostname"], &status["lines"]["tick"]),
            (&json!("h"), &json!(0))
        );
        assert_eq!(json("/api/show?pid=7")["vm"]["pid"], 7);
        assert_eq!(json("/api/show?pid=9")["vm"], Value::Null);
        assert_eq!(json("/api/lines")["interval_seconds"], 0.1);
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        for wrong in
            ["/api/show", "/api/show?pid=", "/api/show?pid=x", "/api/show?pid=-1", "/api/show?vm=7"]
        {
            let answer = page.get(wrong);
            assert!(answer.starts_with("HTTP/1.1 400 "), "{wrong}: {answer}");
        }
    });
}

#[test]
fn a_tick_is_published_only_while_it_has_viewers_and_of_so_many_vms_at_most() {
    let (publisher, subscriber) = page_snapshot::pair();
    assert_eq!(publisher.wanted(Instant::now(), INTERVAL), None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("one");
    let pids: Vec<u32> = (0..).take(SHOWN_MAX + 3).collect();
    let all = Looks { all: true, rows: true, shown: pids.clone(), ..Looks::default() };
    runtime.block_on(async {
        // What was published before the question is as good, while it is new.
        publisher.publish(snapshot(1, &[], &all));
        for pid in &pids {
            assert!(subscriber.vm(*pid).await.is_some_and(|it| it.shown[pid].is_none()));
        }
    });
    let looks = |now| publisher.wanted(now, INTERVAL);
    let shown = Looks { shown: pids[3..].to_vec(), ..Looks::default() };
    assert_eq!(looks(Instant::now()), Some(shown.clone()));
    let in_sight = InSight::Of([7, 8].into());
    assert!(runtime.block_on(subscriber.list(&in_sight)).is_some());
    let listed = Looks { rows: true, in_sight, ..shown };
    assert_eq!(looks(Instant::now()), Some(listed), "the rows and these, and not all");
    let many = InSight::Of((0..).take(2 * IN_SIGHT_MAX).collect());
    assert!(runtime.block_on(subscriber.list(&many)).is_some());
    let seen = looks(Instant::now()).expect("looked at");
    assert_eq!(seen.drawn().count(), IN_SIGHT_MAX + SHOWN_MAX);
    let later = looks(Instant::now() + Duration::from_secs(5)).expect("still");
    assert_eq!((later.rows, later.in_sight), (true, InSight::default()), "scrolled away");
    assert_eq!(looks(Instant::now() + Duration::from_secs(11)), None, "no viewer for 11 s");
    let list = async { tokio::time::timeout(INTERVAL, subscriber.all()).await };
    assert!(runtime.block_on(list).is_err(), "the last snapshot is given up");
}

#[test]
fn incidents_are_served_as_they_were_recorded() {
    let page = page_site(EvidenceReaders::All);
    let answer = page.get("/api/incidents");
    let incidents: Value = serde_json::from_str(body(&answer)).expect("JSON");
    assert_eq!(incidents["incidents"][0]["reason"], "<img src=x onerror=alert(1)>");
    assert_eq!(incidents["older"], 0);
    assert!(!answer.contains("flatline-no-evidence"), "{answer}");
}

#[test]
fn evidence_is_a_picture_or_text_of_a_known_name_and_nothing_else() {
    let page = page_site(EvidenceReaders::All);
    let ask = |path: &str| page.get(&format!("/api/evidence/{path}"));
    let picture = ask("20261122T100001Z-web/screen.png");
    assert!(picture.contains("content-type: image/png\r\n") && picture.ends_with("rest"));
    let text = ask("20261122T100001Z-web/registers.txt");
    assert!(text.contains("content-type: text/plain; charset=utf-8\r\n"), "{text}");
    assert!(text.contains("x-content-type-options: nosniff") && text.ends_with("<script>"));
    std::fs::write(page.site.state.path().join("secret"), "s").expect("written");
    for path in [
        "",
        "20261122T100001Z-web",
        "20261122T100001Z-web/",
        "20261122T100001Z-web/recording.flr",
        "20261122T100001Z-web/incident.json",
        "20261122T100001Z-web/other.txt",
        "20261122T100001Z-web/console.txt",
        "20261122T100001Z-web/../20261122T100001Z-web/screen.png",
        "../incidents/20261122T100001Z-web/screen.png",
        "../secret",
        "%2e%2e/secret",
        "20261122T100001Z-web/screen%2epng",
        "none/screen.png",
    ] {
        let answer = ask(path);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    let directory = page.site.state.path().join("incidents/20261122T100001Z-web");
    std::fs::write(directory.join("screen.png"), "<svg onload=alert(1)>").expect("written");
    assert!(ask("20261122T100001Z-web/screen.png").starts_with("HTTP/1.1 404 "), "no picture");
    std::fs::write(directory.join("console.txt"), vec![b'a'; (4 << 20) + 1]).expect("written");
    assert!(ask("20261122T100001Z-web/console.txt").starts_with("HTTP/1.1 413 "), "too large");
}
