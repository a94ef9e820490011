//! HTTP responses: the headers that all of them have, and JSON bodies kept plain and compressed.

use std::io::{self, Write as _};

use axum::{
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::Response,
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;

/// The content type of plain text.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
/// The content type of JSON.
pub(crate) const JSON: &str = "application/json";

/// An answer in words.
pub(crate) fn text(status: StatusCode, words: impl Into<String>) -> Response {
    let mut words = words.into();
    words.push('\n');
    response(status, TEXT, Bytes::from(words))
}

/// Says that nothing but reading is possible.
pub(crate) fn only_reading() -> Response {
    let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    refusal
}

/// An answer of these bytes.
pub(crate) fn response(status: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The body of an answer, as it is and compressed.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    plain: Bytes,
    gzipped: Bytes,
}

impl Body {
    /// `value` as JSON. A thousand VMs are more than a megabyte, of which a twentieth is left compressed.
    pub(crate) fn json(value: &impl Serialize) -> io::Result<Self> {
        let plain = serde_json::to_vec(value)?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&plain)?;
        Ok(Self { gzipped: encoder.finish()?.into(), plain: plain.into() })
    }

    /// The answer, in the form that a request with these headers takes.
    pub(crate) fn answer(self, headers: &HeaderMap) -> Response {
        let accepted = headers.get(ACCEPT_ENCODING).and_then(|it| it.to_str().ok());
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
