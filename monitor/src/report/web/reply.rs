//! Answers: what stands in all of their heads, and bodies that are made once for however many ask.

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use serde::Serialize;
use tokio::sync::Mutex;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";

/// An answer in words.
pub(super) fn text(status: StatusCode, words: impl Into<String>) -> Response<Full<Bytes>> {
    let mut words = words.into();
    words.push('\n');
    response(status, TEXT, Bytes::from(words))
}

/// Says that nothing but reading is possible.
pub(super) fn only_reading() -> Response<Full<Bytes>> {
    let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    refusal
}

/// An answer of these bytes.
pub(super) fn response(
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The body of an answer, as it is and compressed.
#[derive(Clone, Debug)]
pub(super) struct Body {
    plain: Bytes,
    gzipped: Bytes,
}

impl Body {
    /// `value` as JSON. A thousand VMs are more than a megabyte, of which a twentieth is left compressed.
    pub(super) fn json(value: &impl Serialize) -> io::Result<Self> {
        let plain = serde_json::to_vec(value)?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&plain)?;
        Ok(Self { gzipped: encoder.finish()?.into(), plain: plain.into() })
    }

    /// The answer, in the form that `request` takes.
    pub(super) fn answer<B>(self, request: &Request<B>) -> Response<Full<Bytes>> {
        let accepted = request.headers().get(ACCEPT_ENCODING).and_then(|it| it.to_str().ok());
        let takes_gzip = accepted.is_some_and(|accepted| {
            accepted.split(',').any(|coding| matches!(coding.trim(), "gzip" | "*"))
        });
        let mut answer = if takes_gzip {
            let mut answer = response(StatusCode::OK, JSON, self.gzipped);
            answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            answer
        } else {
            response(StatusCode::OK, JSON, self.plain)
        };
        answer.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
        answer
    }
}

/// A body that is made once for each number of what it is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Made(Arc<Mutex<Option<(u64, Body)>>>);

impl Made {
    /// The body for `number`, which `make` makes on a thread that may take its time.
    pub(super) async fn get(
        &self,
        number: u64,
        make: impl FnOnce() -> io::Result<Body> + Send + 'static,
    ) -> io::Result<Body> {
        // Whoever comes meanwhile waits for this one: so much work and memory, however many ask.
        let mut made = Arc::clone(&self.0).lock_owned().await;
        if let Some((of, body)) = &*made
            && *of == number
        {
            return Ok(body.clone());
        }
        // It takes the lock along, since whoever asked may go away before it is done.
        let task = tokio::task::spawn_blocking(move || {
            let body = make()?;
            *made = Some((number, body.clone()));
            Ok(body)
        });
        task.await.map_err(io::Error::other)?
    }
}
