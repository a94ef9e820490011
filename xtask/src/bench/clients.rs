//! Clients of a daemon: one that asks for its status, a page that is open, and a Prometheus.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;

use super::page::Page;
use super::stage::Stage;

/// For an answer.
const LIMIT: Duration = Duration::from_secs(20);
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
    get(stream, path, "Accept: application/json")
}

/// As a browser asks, which takes what is compressed.
fn of_page(stage: &Stage<'_>, path: &str) -> Result<String> {
    let stream = UnixStream::connect(stage.control_socket())?;
    stream.set_read_timeout(Some(LIMIT))?;
    get(stream, path, "Accept-Encoding: gzip, deflate, br")
}

fn scrape(stage: &Stage<'_>) -> Result<String> {
    let stream = TcpStream::connect(stage.metrics)?;
    stream.set_read_timeout(Some(LIMIT))?;
    get(stream, "/metrics", "Accept: application/openmetrics-text;version=1.0.0")
}

/// The body of an answer that says 200.
fn get(mut stream: impl Read + Write, path: &str, header: &str) -> Result<String> {
    // The older version of HTTP knows no chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n{header}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no head")? + 4;
    let (head, body) = answer.split_at(end);
    let head = String::from_utf8_lossy(head);
    let mut text = String::new();
    if head.contains("content-encoding: gzip\r\n") {
        GzDecoder::new(body).read_to_string(&mut text)?;
    } else {
        text.push_str(&String::from_utf8_lossy(body));
    }
    let status = head.split(' ').nth(1);
    ensure!(status == Some("200"), "{path}: {}: {text}", head.lines().next().unwrap_or_default());
    Ok(text)
}

/// A page that is open, and a Prometheus that scrapes, for as long as `during` takes.
///
/// # Errors
/// What `during` returned; and if one of them had no answer even once.
pub(crate) fn beside<T>(stage: &Stage<'_>, during: impl FnOnce() -> Result<T>) -> Result<T> {
    std::thread::scope(|scope| {
        let (stop_page, page_stops) = mpsc::channel();
        let (stop_prometheus, prometheus_stops) = mpsc::channel();
        let page = scope.spawn(move || {
            let mut page = Page::default();
            again_and_again(&page_stops, || page.take(&of_page(stage, &page.question()?)?))
        });
        let prometheus = scope.spawn(move || {
            again_and_again(&prometheus_stops, || {
                ensure!(!scrape(stage)?.is_empty(), "the answer is empty");
                Ok(SCRAPE_EVERY)
            })
        });
        let outcome = during();
        drop((stop_page, stop_prometheus));
        for (client, thread) in [("the page", page), ("Prometheus", prometheus)] {
            let answers = thread.join().map_err(|_| anyhow!("{client} panicked"))?;
            answers.with_context(|| client.to_owned())?;
        }
        outcome
    })
}

/// Asks again and again, each time after as long as `ask` returns, until the other end of `stop` is dropped.
fn again_and_again(stop: &Receiver<()>, mut ask: impl FnMut() -> Result<Duration>) -> Result<()> {
    loop {
        let begin = Instant::now();
        let wait = ask()?.saturating_sub(begin.elapsed());
        if stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
            return Ok(());
        }
    }
}
