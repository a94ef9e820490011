//! Clients of a daemon: one that asks for its status, a page that is open, and a Prometheus.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::stage::Stage;

/// For an answer.
const LIMIT: Duration = Duration::from_secs(20);
/// How often the list of VMs asks, as its script has it.
const PAGE_EVERY: Duration = Duration::from_secs(1);
/// The interval that `docs/metrics.md` shows for Prometheus.
const SCRAPE_EVERY: Duration = Duration::from_secs(15);

/// What `status` says, and how long it took until all of it was there.
pub(crate) fn status(stage: &Stage<'_>) -> Result<(Value, Duration)> {
    let begin = Instant::now();
    let body = of_socket(stage, "/status")?;
    let took = begin.elapsed();
    Ok((serde_json::from_str(&body).context("status is no JSON")?, took))
}

fn of_socket(stage: &Stage<'_>, path: &str) -> Result<String> {
    let stream = UnixStream::connect(stage.control_socket())?;
    stream.set_read_timeout(Some(LIMIT))?;
    get(stream, path, "application/json")
}

fn scrape(stage: &Stage<'_>) -> Result<String> {
    let stream = TcpStream::connect(stage.metrics)?;
    stream.set_read_timeout(Some(LIMIT))?;
    get(stream, "/metrics", "application/openmetrics-text;version=1.0.0")
}

/// The body of an answer that says 200.
fn get(mut stream: impl Read + Write, path: &str, accept: &str) -> Result<String> {
    // The older version of HTTP knows no chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    let status = head.split(' ').nth(1);
    ensure!(status == Some("200"), "{path}: {}: {body}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

/// A page that is open, and a Prometheus that scrapes, for as long as `during` takes.
///
/// # Errors
/// What `during` returned; and if one of them had no answer even once.
pub(crate) fn beside<T>(stage: &Stage<'_>, during: impl FnOnce() -> Result<T>) -> Result<T> {
    std::thread::scope(|scope| {
        let (stop_page, page_stops) = mpsc::channel();
        let (stop_prometheus, prometheus_stops) = mpsc::channel();
        let page =
            scope.spawn(move || each(PAGE_EVERY, || of_socket(stage, "/api/status"), &page_stops));
        let prometheus =
            scope.spawn(move || each(SCRAPE_EVERY, || scrape(stage), &prometheus_stops));
        let outcome = during();
        drop((stop_page, stop_prometheus));
        for (client, thread) in [("the page", page), ("Prometheus", prometheus)] {
            let answers = thread.join().map_err(|_| anyhow!("{client} panicked"))?;
            answers.with_context(|| client.to_owned())?;
        }
        outcome
    })
}

/// Asks again and again until the other end of `stop` is dropped.
fn each(every: Duration, ask: impl Fn() -> Result<String>, stop: &Receiver<()>) -> Result<()> {
    let mut due = Instant::now();
    loop {
        let body = ask()?;
        ensure!(!body.is_empty(), "the answer is empty");
        due += every;
        let wait = due.saturating_duration_since(Instant::now());
        if stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
            return Ok(());
        }
    }
}
